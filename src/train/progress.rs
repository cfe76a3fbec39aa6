//! What a run says while it goes on, and in the end.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::train::metrics::{EvaluationRow, StepRow};

/// What a run tells while it goes on.
pub enum Progress<'a> {
    /// A sentence.
    Note(&'a str),
    /// Something that comes before the first step: how much of it is done.
    Work {
        /// What is computed.
        what: &'static str,
        /// Units in all.
        total: u64,
        /// Units done.
        done: u64,
    },
    /// Training starts, after so many of so many steps.
    Begin {
        /// Steps done by an earlier process.
        done: u64,
        /// Steps in all.
        total: u64,
    },
    /// A step was done.
    Step(&'a StepRow),
    /// The held-out records were evaluated.
    Evaluation(&'a EvaluationRow),
    /// A checkpoint was saved.
    Saved(&'a Path),
}

/// Who listens to a run.
pub type Sink<'a> = dyn FnMut(Progress<'_>) + 'a;

/// What a run did. The keys of `silkie train --json`.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Steps in all.
    pub steps: u64,
    /// Steps that an earlier process had done.
    pub resumed_at: u64,
    /// Records that were trained on.
    pub records: usize,
    /// Records that were only evaluated.
    pub held_out_records: usize,
    /// Trained parameters.
    pub parameters: usize,
    /// Pairs (answers for `sft`) of this process.
    pub pairs: u64,
    /// Rows of the token stream of this process.
    pub tokens: u64,
    /// Wall time of the steps of this process.
    pub seconds: f64,
    /// Steps that were skipped because something was not finite.
    pub skipped: u64,
    /// The last step of this process; null when there was none.
    pub last: Option<StepRow>,
    /// The held-out records before the first step.
    pub before: Option<EvaluationRow>,
    /// The held-out records after the last step.
    pub after: Option<EvaluationRow>,
    /// The adapter, or the model.
    pub output: PathBuf,
}
