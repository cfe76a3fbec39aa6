//! What several tests share.

mod compare;
mod cuda;
mod golden;
pub mod golden_model;
mod matrix;

use std::io::Write;
use std::path::PathBuf;

pub use compare::*;
pub use cuda::*;
pub use golden::Golden;
pub use matrix::*;

/// The folder of golden numbers: `SILKIE_GOLDENS`, else `../shared/goldens`. Says so when absent.
pub fn goldens() -> Option<PathBuf> {
    folder("SILKIE_GOLDENS", "../shared/goldens")
}

/// The folder of shared data (real preferences): `SILKIE_SHARED`, else `../shared`.
pub fn shared() -> Option<PathBuf> {
    folder("SILKIE_SHARED", "../shared")
}

fn folder(variable: &str, default: &str) -> Option<PathBuf> {
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(default);
    let path = std::env::var_os(variable).map_or(default, PathBuf::from);
    if path.is_dir() {
        return Some(path);
    }
    skip(format_args!("no folder {} ({variable} names another)", path.display()));
    None
}

/// Says that the running test is skipped and why, straight to stderr: what a passing test prints is
/// swallowed, and a skip must not look like a pass.
pub fn skip(why: impl std::fmt::Display) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    say(format_args!("{test} skipped: {why}"));
}

/// A line that is seen also when the test passes.
pub fn say(text: impl std::fmt::Display) {
    writeln!(std::io::stderr(), "{text}").expect("stderr can be written");
}

/// A property test of `cases` inputs, the same ones every time.
pub fn runner(cases: u32) -> proptest::test_runner::TestRunner {
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}
