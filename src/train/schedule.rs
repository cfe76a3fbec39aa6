//! The learning rate of each step, counted from 0.
//!
//! ```text
//! warm-up   peak · k / warm                                          k < warm
//! cosine    peak · (m + (1 − m) · ½ (1 + cos(π (k − warm) / (total − warm))))   else
//! constant  peak                                                     else
//! ```
//!
//! With m = 0 this is transformers' `get_cosine_schedule_with_warmup`: the first step has lr 0.

use serde::{Deserialize, Serialize};

/// The shape after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Half a cosine, down to `min_ratio`.
    Cosine,
    /// No decay.
    Constant,
}

/// A learning rate over `total` steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The shape after the warm-up.
    pub shape: Shape,
    /// The highest learning rate.
    pub peak: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Steps of the run.
    pub total: u64,
    /// Where the cosine ends, as a share of the peak.
    pub min_ratio: f64,
}

impl Schedule {
    /// Learning rate of step `k`, the first being 0. Beyond `total` it stays where it ended.
    pub fn lr(&self, k: u64) -> f64 {
        if k < self.warmup {
            return self.peak * k as f64 / self.warmup as f64;
        }
        match self.shape {
            Shape::Constant => self.peak,
            Shape::Cosine => {
                let span = self.total.saturating_sub(self.warmup).max(1) as f64;
                let progress = ((k - self.warmup) as f64 / span).min(1.0);
                let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
                self.peak * (self.min_ratio + (1.0 - self.min_ratio) * cosine)
            }
        }
    }
}

/// Warm-up steps of a share of the run, rounded up as transformers does.
pub fn warmup_steps(ratio: f64, total: u64) -> u64 {
    (ratio * total as f64).ceil() as u64
}
