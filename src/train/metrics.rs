//! What a run says about itself: one row per step and per evaluation, in `metrics.jsonl` and in a
//! TensorBoard event file.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::train::events::{self, Events};
use crate::train::loss::Totals;

/// One optimiser step. Values are means over its pairs (its answers for `sft`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRow {
    /// Steps done, this one included.
    pub step: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Loss.
    pub loss: f64,
    /// Reward of chosen answers.
    pub chosen_reward: f64,
    /// Reward of rejected answers.
    pub rejected_reward: f64,
    /// Chosen minus rejected reward.
    pub margin: f64,
    /// Share of pairs whose chosen answer has the higher reward; ties count one half.
    pub accuracy: f64,
    /// Norm of the gradient of the mean loss, before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Pairs (answers for `sft`).
    pub pairs: u64,
    /// Rows of the token stream.
    pub tokens: u64,
    /// Packs.
    pub packs: u64,
    /// Wall time.
    pub seconds: f64,
    /// Whether the step was skipped because loss or gradient were not finite.
    pub skipped: bool,
}

/// One pass over held-out records.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluationRow {
    /// Steps done before it.
    pub step: u64,
    /// Loss.
    pub loss: f64,
    /// Share of pairs with the higher reward for the chosen answer; ties count one half.
    pub accuracy: f64,
    /// Share of pairs with the higher log-probability for the chosen answer.
    pub ranking_accuracy: f64,
    /// Reward of chosen answers.
    pub chosen_reward: f64,
    /// Reward of rejected answers.
    pub rejected_reward: f64,
    /// Chosen minus rejected reward.
    pub margin: f64,
    /// Pairs (answers for `sft`).
    pub pairs: u64,
}

impl EvaluationRow {
    /// Means of the sums of a pass.
    pub fn new(step: u64, totals: &Totals) -> Self {
        let mean = totals.mean();
        EvaluationRow {
            step,
            loss: mean.loss,
            accuracy: mean.right,
            ranking_accuracy: mean.ranked,
            chosen_reward: mean.chosen,
            rejected_reward: mean.rejected,
            margin: mean.chosen - mean.rejected,
            pairs: mean.count,
        }
    }
}

/// How far both files went at a checkpoint; a resumed run cuts them back to here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Bytes of `metrics.jsonl`.
    pub metrics: u64,
    /// Bytes of the event file.
    pub events: u64,
}

/// The two files of a run.
pub struct Metrics {
    path: PathBuf,
    file: File,
    events: Events,
}

/// A line of `metrics.jsonl`: `{"kind": "train", …}` or `{"kind": "evaluation", …}`.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line<'a> {
    Train(&'a StepRow),
    Evaluation(&'a EvaluationRow),
}

impl Metrics {
    /// Opens both files in `folder`, cut back to `position`.
    pub fn open(folder: &Path, position: Position) -> Result<Metrics> {
        let path = folder.join("metrics.jsonl");
        let file = events::open_cut(&path, position.metrics)?;
        let events = Events::open(&folder.join("events.out.tfevents.silkie"), position.events)?;
        Ok(Metrics { path, file, events })
    }

    /// Appends a step.
    pub fn step(&mut self, row: &StepRow) -> Result<()> {
        self.line(&Line::Train(row))?;
        let speed = |n: u64| n as f64 / row.seconds.max(f64::MIN_POSITIVE);
        self.events.scalars(
            row.step,
            &[
                ("train/loss", row.loss),
                ("train/reward/chosen", row.chosen_reward),
                ("train/reward/rejected", row.rejected_reward),
                ("train/reward/margin", row.margin),
                ("train/accuracy", row.accuracy),
                ("train/grad_norm", row.grad_norm),
                ("train/lr", row.lr),
                ("train/pairs_per_second", speed(row.pairs)),
                ("train/tokens_per_second", speed(row.tokens)),
            ],
        )
    }

    /// Appends an evaluation.
    pub fn evaluation(&mut self, row: &EvaluationRow) -> Result<()> {
        self.line(&Line::Evaluation(row))?;
        self.events.scalars(
            row.step,
            &[
                ("evaluation/loss", row.loss),
                ("evaluation/accuracy", row.accuracy),
                ("evaluation/ranking_accuracy", row.ranking_accuracy),
                ("evaluation/reward/chosen", row.chosen_reward),
                ("evaluation/reward/rejected", row.rejected_reward),
                ("evaluation/reward/margin", row.margin),
            ],
        )
    }

    /// Flushes both files to the disk and says where they end.
    pub fn position(&mut self) -> Result<Position> {
        let metrics = events::synced_len(&self.path, &mut self.file)?;
        Ok(Position { metrics, events: self.events.synced_len()? })
    }

    fn line(&mut self, line: &Line<'_>) -> Result<()> {
        let io = |e| Error::io(&self.path, "write", e);
        let mut text = serde_json::to_string(line).map_err(|e| io(e.into()))?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(io)
    }
}
