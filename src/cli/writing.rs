//! What the commands that write models share: `--dtype`, a progress bar, and how they stop.

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::interrupt;
use crate::error::{Error, Result};
use crate::tensor::DType;

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Storage {
    /// 32-bit float
    F32,
    /// bfloat16
    Bf16,
    /// IEEE half
    F16,
}

impl From<Storage> for DType {
    fn from(storage: Storage) -> Self {
        match storage {
            Storage::F32 => DType::F32,
            Storage::Bf16 => DType::Bf16,
            Storage::F16 => DType::F16,
        }
    }
}

/// An error once Ctrl-C was pressed: what is being written then disappears.
pub fn unless_stopped() -> Result<()> {
    match interrupt::requested() {
        true => Err(Error::Interrupted("stopped; nothing was written, start again".into())),
        false => Ok(()),
    }
}

/// A bar on stderr that counts `total` weights; hidden when stderr is no terminal.
pub fn bar(total: usize) -> ProgressBar {
    let bar = ProgressBar::new(total as u64);
    let template = "{wide_bar} {human_pos}/{human_len} weights {eta}";
    bar.set_style(ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()));
    bar
}
