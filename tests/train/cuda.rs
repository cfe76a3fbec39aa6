//! A run whose norm and AdamW are a GPU's leaves the bytes of a run on the CPU.

use std::cell::Cell;
use std::fs;

use serde_json::Value;
use silkie::train::{self, Progress, Summary};
use silkie::{Error, Result};

use super::fixture::Fixture;
use super::run::falsify;
use crate::support::cuda;

/// Clipped, with rates and decays that differ from tensor to tensor.
const RUN: &str = "batch-pairs = 12\ntoken-budget = 200\nlr = 5e-3\nwarmup-steps = 2\n\
                   max-grad-norm = 0.05\nlr-scale = ['c_attn=0.5']\nsave-every = 3\nkeep = 9\n\
                   held-out = 0.1\neval-every = 0\n";

/// Trains in folder `out` until it is done, or `stop_after` so many steps.
fn run(
    fixture: &Fixture,
    out: &str,
    toml: &str,
    resume: bool,
    stop_after: Option<u64>,
) -> Result<(Summary, String)> {
    let config = fixture.settings(out, toml).resolve()?;
    let (done, mut notes) = (Cell::new(0), String::new());
    let stop = || stop_after.is_some_and(|steps| done.get() >= steps);
    let summary = train::run(&config, resume, &stop, &mut |progress| match progress {
        Progress::Step(row) => done.set(row.step),
        Progress::Note(text) => notes += &format!("{text}\n"),
        _ => {}
    })?;
    Ok((summary, notes))
}

/// All that a run leaves and that does not tell the time or the device: metrics, tensors of the
/// checkpoints with where the run stood, and the result.
fn left(fixture: &Fixture, out: &str, result: &str) -> Vec<(String, Vec<u8>)> {
    let mut left = Vec::new();
    for kind in ["train", "evaluation"] {
        for (i, mut row) in fixture.metrics(out, kind).into_iter().enumerate() {
            row.as_object_mut().unwrap().remove("seconds");
            left.push((format!("{kind} {i}"), row.to_string().into_bytes()));
        }
    }
    let folder = fixture.path(out).join("checkpoints");
    let mut checkpoints: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    checkpoints.sort();
    for path in checkpoints {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let state = fs::read_to_string(path.join("state.json")).unwrap();
        let mut state: Value = serde_json::from_str(&state).unwrap();
        state.as_object_mut().unwrap().remove("metrics"); // lengths of files that tell the time
        left.push((format!("{name} state"), state.to_string().into_bytes()));
        left.push((format!("{name} tensors"), fs::read(path.join("tensors.safetensors")).unwrap()));
    }
    left.push((result.to_string(), fs::read(fixture.path(out).join(result)).unwrap()));
    left
}

#[track_caller]
fn assert_same(got: &[(String, Vec<u8>)], expected: &[(String, Vec<u8>)]) {
    let names = |left: &[(String, Vec<u8>)]| left.iter().map(|l| l.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(got), names(expected));
    for ((name, got), (_, expected)) in got.iter().zip(expected) {
        let text = String::from_utf8_lossy(got);
        assert!(got == expected, "{name} differs: {}", &text[..text.len().min(300)]);
    }
}

#[test]
fn an_adapter_has_the_bytes_of_the_cpu_stopped_and_resumed_on_either_device() {
    if cuda().is_none() {
        return;
    }
    let fixture = Fixture::new(20);
    let adapter = "adapter/adapter_model.safetensors";
    let on = |device: &str| format!("{RUN}lora-r = 4\nsteps = 7\ndevice = '{device}'\n");
    run(&fixture, "cpu", &on("cpu"), false, None).unwrap();
    let expected = left(&fixture, "cpu", adapter);

    let (summary, notes) = run(&fixture, "cuda", &on("cuda"), false, None).unwrap();
    assert_eq!((summary.steps, summary.skipped), (7, 0));
    assert!(summary.last.unwrap().grad_norm > 0.05, "the gradient is clipped");
    assert!(notes.contains("clips and updates; forward and backward run on the CPU"), "{notes}");
    assert_same(&left(&fixture, "cuda", adapter), &expected);

    for (out, first, second) in
        [("twice", "cuda", "cuda"), ("to-cpu", "cuda", "cpu"), ("from-cpu", "cpu", "cuda")]
    {
        let stopped = run(&fixture, out, &on(first), false, Some(4));
        assert!(matches!(stopped, Err(Error::Interrupted(_))));
        run(&fixture, out, &on(second), true, None).unwrap();
        let mut left = left(&fixture, out, adapter);
        left.retain(|(name, _)| !name.starts_with("step-00000004"));
        assert_same(&left, &expected);
    }
}

#[test]
fn a_model_has_the_bytes_of_the_cpu() {
    if cuda().is_none() {
        return;
    }
    let fixture = Fixture::new(6);
    for device in ["cpu", "cuda"] {
        let toml = format!("{RUN}steps = 2\ntrainable = 'full'\ndevice = '{device}'\n");
        run(&fixture, device, &toml, false, None).unwrap();
    }
    let [cpu, cuda] = ["cpu", "cuda"].map(|out| left(&fixture, out, "model/model.safetensors"));
    assert_same(&cuda, &cpu);
}

#[test]
fn a_step_that_is_not_finite_is_skipped_there_too() {
    if cuda().is_none() {
        return;
    }
    let fixture = Fixture::new(6);
    let on = |device: &str| {
        format!(
            "{RUN}lora-r = 4\nbatch-records = 1\nshuffle = 'none'\nheld-out = 0.0\nepochs = 1\n\
             device = '{device}'\n"
        )
        .replace("batch-pairs = 12\n", "")
        .replacen("held-out = 0.1\n", "", 1)
    };
    run(&fixture, "first", &on("cpu"), false, None).unwrap(); // makes the reference
    falsify(&fixture, 1, f64::INFINITY, |record| record == 2);
    let skipped = |device: &str| {
        let (summary, notes) = run(&fixture, device, &on(device), false, None).unwrap();
        assert_eq!((summary.skipped, summary.steps), (1, 6), "{device}");
        assert!(notes.contains("step 3: loss or gradient is not finite"), "{notes}");
        assert!(notes.contains("records.jsonl:3 (id-2)"), "{notes}");
        left(&fixture, device, "adapter/adapter_model.safetensors")
    };
    assert_same(&skipped("cuda"), &skipped("cpu"));
}
