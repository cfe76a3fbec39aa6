//! `silkie bench`: the parts a user waits for, measured.

mod kernels;
mod prepare;
pub mod step;

use crate::error::Result;

/// Measure time and memory
#[derive(clap::Args)]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Kernels(kernels::Kernels),
    Prepare(prepare::Prepare),
    Step(step::Step),
}

impl Bench {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        match self.what {
            What::Kernels(kernels) => kernels.run(),
            What::Prepare(prepare) => prepare.run(),
            What::Step(step) => step.run(),
        }
    }
}
