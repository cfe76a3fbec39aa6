//! Runs of the real binary: killed, interrupted, resumed, on any number of threads: same bytes.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::fixture::Fixture;

/// 20 steps of several packs each, a checkpoint after every one of them.
const RUN: &str = "--steps 20 --lora-r 4 --batch-pairs 24 --token-budget 150 --lr 5e-3 \
                   --held-out 0.1 --eval-every 7 --save-every 1 --keep 3";

fn silkie(fixture: &Fixture, out: &str, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_silkie"));
    command.arg("train").arg("--out").arg(fixture.path(out)).args(arguments.split_whitespace());
    command.stdin(Stdio::null());
    command
}

fn start(fixture: &Fixture, out: &str) -> Command {
    let mut command = silkie(fixture, out, RUN);
    command.arg("--model").arg(fixture.path("model")).arg("--data").arg(fixture.path("data"));
    command
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    output
}

/// Waits until the checkpoint of `step` is there while `child` runs.
fn wait_for(checkpoints: &Path, step: u64, child: &mut Child) {
    let path = checkpoints.join(format!("step-{step:08}"));
    let started = Instant::now();
    while !path.exists() && child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < Duration::from_secs(300), "no checkpoint of step {step}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a run leaves that must not depend on how it went: the adapter, and metrics without times.
fn result(fixture: &Fixture, out: &str) -> (Vec<u8>, Vec<String>) {
    let mut rows = fixture.metrics(out, "train");
    rows.extend(fixture.metrics(out, "evaluation"));
    let without_time = rows.iter_mut().map(|row| {
        row.as_object_mut().unwrap().remove("seconds");
        row.to_string()
    });
    (fixture.adapter(out), without_time.collect())
}

fn number(output: &Output, key: &str) -> u64 {
    let text = String::from_utf8_lossy(&output.stdout);
    let json: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    json[key].as_u64().unwrap_or_else(|| panic!("{key} in {json}"))
}

#[test]
fn killed_and_resumed_equals_never_stopped_on_any_number_of_threads() {
    let fixture = Fixture::new(24);
    succeed(start(&fixture, "whole").env("RAYON_NUM_THREADS", "1"));
    let whole = result(&fixture, "whole");
    assert_eq!(whole.1.len(), 20 + 4, "20 steps, 4 evaluations");

    let mut child = start(&fixture, "killed")
        .env("RAYON_NUM_THREADS", "2")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&fixture.path("killed/checkpoints"), 10, &mut child);
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    assert!(!fixture.path("killed/adapter").exists(), "killed before the end");
    // A step that the killed run logged after its checkpoint must not appear twice.
    let log = fixture.path("killed/metrics.jsonl");
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, text + "{\"kind\": \"train\", \"step\": 99, \"half a li").unwrap();

    let mut resumed = silkie(&fixture, "killed", "--resume --json");
    let output = succeed(resumed.env("RAYON_NUM_THREADS", "3"));
    assert!((10..20).contains(&number(&output, "resumed_at")));
    assert_eq!(result(&fixture, "killed"), whole);

    let names = fs::read_dir(fixture.path("killed/checkpoints")).unwrap();
    assert_eq!(names.count(), 3, "--keep 3");
    let output =
        succeed(silkie(&fixture, "killed", "--resume --json").env("RAYON_NUM_THREADS", "2"));
    assert_eq!(number(&output, "resumed_at"), 20, "a finished run has nothing left to do");
    assert_eq!(result(&fixture, "killed"), whole);
}

#[test]
fn ctrl_c_saves_and_says_how_to_go_on() {
    let fixture = Fixture::new(24);
    succeed(&mut start(&fixture, "whole"));
    let child = start(&fixture, "stopped").stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap();
    wait_for(&fixture.path("stopped/checkpoints"), 4, &mut child);
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{errors}");
    let last = errors.lines().last().unwrap();
    assert!(last.contains("of 20; go on with: silkie train --resume --out"), "{errors}");
    let refused = silkie(&fixture, "stopped", "--resume --lr 1e-4").output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--lr 0.0001: the run in"));
    succeed(&mut silkie(&fixture, "stopped", "--resume"));
    assert_eq!(result(&fixture, "stopped"), result(&fixture, "whole"));
}
