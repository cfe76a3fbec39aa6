//! Tests of this program in processes of their own: what the environment says is read once.

use std::process::Command;

/// What a test printed.
pub struct Said {
    pub stdout: String,
    pub stderr: String,
}

/// Set where [`alone`] runs a test.
const MARK: &str = "CUDA_EMULATOR_TEST_ALONE";

/// Runs a test with variables of the environment; it must pass.
pub fn run_test(test: &str, variables: &[(&str, &str)]) -> Said {
    let program = std::env::current_exe().expect("the path of this program");
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture"]).envs(variables.iter().copied());
    let output = command.output().expect("this program runs");
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    let passed = output.status.success() && stdout.contains("1 passed");
    assert!(passed, "{test} {variables:?}: {stdout}{stderr}");
    Said { stdout, stderr }
}

/// Runs the test that calls this in a process of its own, where it gets `None`.
pub fn alone(test: &str, variables: &[(&str, &str)]) -> Option<Said> {
    let is_inside = std::env::var_os(MARK).is_some();
    (!is_inside).then(|| run_test(test, &[variables, &[(MARK, "1")]].concat()))
}
