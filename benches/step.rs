//! The DPO step: `cargo bench --bench step -- [--pairs lone]`, the same as `silkie bench step`.

use std::process::ExitCode;

use clap::Parser;
use silkie::cli::bench::step::Step;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    step: Step,
    /// What cargo bench always passes.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match Flags::parse().step.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("step: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
