//! Tests of this program in processes of their own: what the environment says is read once.

use std::process::Command;

/// Runs a test with variables of the environment; it must pass. Gives what it printed.
pub fn run_test(test: &str, variables: &[(&str, &str)]) -> String {
    let program = std::env::current_exe().expect("the path of this program");
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture"]).envs(variables.iter().copied());
    let output = command.output().expect("this program runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{test}: {said}");
    said
}
