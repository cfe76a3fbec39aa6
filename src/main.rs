//! `silkie`: parse, run, print the error, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    silkie::cli::main()
}
