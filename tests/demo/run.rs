//! The demo from top to bottom, with a small world and a few steps: the path, not the learning.

use std::cell::Cell;
use std::process::Command;

use serde_json::Value;
use silkie::Error;
use silkie::demo::recipe::Recipe;
use silkie::demo::{self, Options, Progress};

fn options(out: &std::path::Path, seed: u64) -> Options {
    Options { out: out.into(), seed, controls: false, recipe: Recipe::SHORT }
}

#[test]
fn the_command_leaves_files_a_report_and_one_line_of_json() {
    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("demo");
    let mut command = Command::new(env!("CARGO_BIN_EXE_silkie"));
    let output = command
        .args(["demo", "--short", "--controls", "--json", "--out"])
        .arg(&out)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.contains("$ silkie prepare --records"), "{errors}");

    let stdout = String::from_utf8(output.stdout).unwrap();
    let json: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    for scores in [&json["before"], &json["after"], &json["controls"]["NLL alone"]] {
        for key in ["ranking_accuracy", "reward_accuracy", "faithful", "blank_accuracy"] {
            let share = scores[key].as_f64().unwrap_or_else(|| panic!("{key} in {json}"));
            assert!((0.0..=1.0).contains(&share), "{key}: {share}");
        }
        assert!(scores["reward_margin"].is_f64());
    }
    assert_eq!(json["before"]["reward_accuracy"], 0.5);
    assert!(json["seconds"].as_f64().unwrap() > 0.0);
    assert!(json["stages"].as_array().unwrap().len() >= 11);

    let html = std::fs::read_to_string(json["report"].as_str().unwrap()).unwrap();
    for part in ["captions: loss", "align: reward margin", "without the NLL term", "lora-r = 32"] {
        assert!(html.contains(part), "{part}");
    }
    for file in ["world/pictures.zip", "align/adapter/adapter_model.safetensors", "align.toml"] {
        assert!(out.join(file).exists(), "{file}");
    }
}

#[test]
fn stopped_it_goes_on_and_done_it_does_nothing_again() {
    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("demo");

    // Stops in the middle of the first training run.
    let is_stopped = Cell::new(false);
    let stopped = demo::run(&options(&out, 4), &|| is_stopped.get(), &mut |progress| {
        if let Progress::Work(2, 4) = progress {
            is_stopped.set(true);
        }
    });
    match stopped {
        Err(Error::Interrupted(message)) => assert!(message.contains("silkie demo"), "{message}"),
        other => panic!("{other:?}"),
    }

    let names = |seed| {
        let mut names = vec![];
        let outcome = demo::run(&options(&out, seed), &|| false, &mut |progress| {
            if let Progress::Done(what) = progress {
                names.push(what.to_string());
            }
        });
        (outcome, names)
    };
    let (outcome, first) = names(4);
    let outcome = outcome.unwrap();
    assert_eq!(first.iter().filter(|what| *what == "done before").count(), 6, "{first:?}");
    let (again, second) = names(4);
    assert!(second.iter().all(|what| what == "done before"), "{second:?}");
    assert_eq!(again.unwrap().after, outcome.after);

    match names(5).0 {
        Err(Error::Usage(message)) => assert!(message.contains("--out"), "{message}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_folder_of_something_else_is_left_alone() {
    let temporary = tempfile::tempdir().unwrap();
    std::fs::write(temporary.path().join("thesis.txt"), "mine").unwrap();
    match demo::run(&options(temporary.path(), 0), &|| false, &mut |_| ()) {
        Err(Error::Usage(message)) => assert!(message.contains("give another --out"), "{message}"),
        other => panic!("{other:?}"),
    }
}

/// What the README promises of the default seed, from about chance to nearly always right.
#[test]
fn the_demo_learns_to_tell_true_from_false() {
    let temporary = tempfile::tempdir().unwrap();
    let options = Options {
        out: temporary.path().join("demo"),
        seed: 0,
        controls: false,
        recipe: Recipe::DEFAULT,
    };
    let demo::Outcome { before, after, .. } = demo::run(&options, &|| false, &mut |_| ()).unwrap();
    let told = format!("{before:?} {after:?}");
    assert!((0.4..0.6).contains(&before.ranking_accuracy), "{told}");
    assert!(after.ranking_accuracy >= 0.95 && after.reward_accuracy >= 0.95, "{told}");
    assert!(before.faithful < 0.25 && after.faithful > 0.6, "{told}");
    for scores in [before, after] {
        assert!((0.48..=0.54).contains(&scores.blank_accuracy), "{told}");
    }
}
