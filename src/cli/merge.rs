//! `silkie merge`: an adapter folded into its base, written as a model folder.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use crate::cli::writing::{Storage, bar, unless_stopped};
use crate::cli::{interrupt, print_json};
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::merge::merge;
use crate::model::names;

/// Fold a LoRA adapter into its base model and write the result as a model folder
///
/// The sum is made in f32 and rounded once; every other file of the base comes along. With --json
/// the last line of stdout is an object with the keys out, tensors, merged (tensors that the
/// adapter changed), bytes (of weights), seconds.
#[derive(Args)]
pub struct Merge {
    /// Base model folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Adapter folder (PEFT)
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Folder to write; must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Storage of the weights [default: each tensor as in the base]
    #[arg(long)]
    dtype: Option<Storage>,
    /// Print a JSON object as the last line
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    out: PathBuf,
    tensors: usize,
    merged: usize,
    bytes: usize,
    seconds: f64,
}

impl Merge {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let start = Instant::now();
        interrupt::install();
        let config = ModelConfig::read(&self.model)?;
        let elements: usize =
            names::tensors(&config).iter().map(|t| t.shape.iter().product::<usize>()).sum();
        let bar = bar(elements);
        let dtype = self.dtype.map(Into::into);
        let merged = merge(&self.model, &self.adapter, &self.out, dtype, |elements| {
            bar.inc(elements as u64);
            unless_stopped()
        })?;
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{}: {} tensors, {} of them changed by the adapter, {:.1} MB in {seconds:.1} s",
            self.out.display(),
            merged.tensors,
            merged.merged,
            merged.bytes as f64 / 1e6
        );
        let (tensors, merged, bytes) = (merged.tensors, merged.merged, merged.bytes);
        print_json(self.json, &Report { out: self.out, tensors, merged, bytes, seconds });
        Ok(())
    }
}
