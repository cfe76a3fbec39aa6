//! `silkie bench`: the parts a user waits for, measured.

mod prepare;

use crate::error::Result;

/// Measure time and memory
#[derive(clap::Args)]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Prepare(prepare::Prepare),
}

impl Bench {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        match self.what {
            What::Prepare(prepare) => prepare.run(),
        }
    }
}
