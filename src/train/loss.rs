//! Losses: from branch log-probabilities to a loss and `d loss / d log π` of every branch. f64.
//!
//! With `s = 1`, or `1 / scored tokens` when length-normalised, a pair's preference is
//!
//! ```text
//! x = (s_c π_c − s_r π_r) − (s_c ref_c − s_r ref_r)        π, ref: summed log-probabilities
//!
//! sigmoid   −log σ(βx)                                      ref = 0 when reference-free
//! hinge     max(0, 1 − βx)
//! ipo       (x − 1/(2β))²
//! robust    −(1−ε) log σ(βx) − ε log σ(−βx)                 label smoothing ε (cDPO)
//! simpo     −log σ(βx − γ)                                  no reference, length-normalised
//! ```
//!
//! plus `α · (−π_c / n_c)` when a likelihood term is asked for, and plain `sft`: `−π / n` of each
//! response. Sources: arXiv 2305.18290 (sigmoid), 2309.06657 (hinge), 2310.12036 (IPO),
//! 2405.14734 (SimPO), 2404.19733 (the likelihood term).

use serde::{Deserialize, Serialize};

use crate::data::pack::Pack;

/// What is minimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// DPO as published.
    Sigmoid,
    /// Hinge on the preference.
    Hinge,
    /// Squared distance of the preference to 1/(2β).
    Ipo,
    /// DPO with label smoothing (cDPO).
    Robust,
    /// Length-normalised, without a reference, with a target margin.
    Simpo,
    /// Likelihood of one answer (or all) of a record; no pairs.
    Sft,
}

/// A loss and its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Which one.
    pub kind: Kind,
    /// Strength of the pull to the reference.
    pub beta: f64,
    /// ε of `robust`.
    pub label_smoothing: f64,
    /// γ of `simpo`.
    pub gamma: f64,
    /// Leave the reference out (always so for `simpo`).
    pub reference_free: bool,
    /// Divide each log-probability by its scored tokens (always so for `simpo`).
    pub length_normalised: bool,
    /// Weight α of the likelihood of the chosen answer.
    pub rpo_alpha: f64,
}

/// One response: summed log-probabilities and how many tokens they sum.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// Under the policy.
    pub policy: f64,
    /// Under the reference; ignored where the loss knows none.
    pub reference: f64,
    /// Scored tokens.
    pub tokens: usize,
}

/// Loss of a pair and its derivatives by the policy's log-probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    /// The loss.
    pub loss: f64,
    /// `d loss / d π_chosen`; by the reference it is the negative of the preference's part.
    pub d_chosen: f64,
    /// `d loss / d π_rejected`.
    pub d_rejected: f64,
}

/// Sums over pairs (over responses for `sft`); [`Totals::mean`] divides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Pairs; responses for `sft`.
    pub count: u64,
    /// Losses.
    pub loss: f64,
    /// Rewards of chosen answers.
    pub chosen: f64,
    /// Rewards of rejected answers.
    pub rejected: f64,
    /// Pairs whose chosen answer has the higher reward; a tie is half a pair.
    pub right: f64,
    /// Pairs whose chosen answer has the higher log-probability; a tie is half a pair.
    pub ranked: f64,
    /// |margin|, to notice a reference that is not the starting policy.
    pub absolute: f64,
}

impl Totals {
    /// Adds another batch's sums.
    pub fn add(&mut self, other: &Totals) {
        self.count += other.count;
        self.loss += other.loss;
        self.chosen += other.chosen;
        self.rejected += other.rejected;
        self.right += other.right;
        self.ranked += other.ranked;
        self.absolute += other.absolute;
    }

    /// The same sums per pair; of nothing, zeros.
    pub fn mean(&self) -> Totals {
        let n = self.count.max(1) as f64;
        Totals {
            count: self.count,
            loss: self.loss / n,
            chosen: self.chosen / n,
            rejected: self.rejected / n,
            right: self.right / n,
            ranked: self.ranked / n,
            absolute: self.absolute / n,
        }
    }
}

impl Loss {
    /// Whether there is nothing to compare: `sft`.
    pub fn is_sft(&self) -> bool {
        self.kind == Kind::Sft
    }

    /// Whether the loss reads reference log-probabilities.
    pub fn needs_reference(&self) -> bool {
        !(self.is_sft() || self.reference_free || self.kind == Kind::Simpo)
    }

    /// The implicit reward `β s (π − ref)`.
    pub fn reward(&self, answer: Answer) -> f64 {
        let reference = if self.needs_reference() { answer.reference } else { 0.0 };
        self.beta * (answer.policy - reference) / self.divisor(answer.tokens)
    }

    /// Loss and derivatives of one pair.
    pub fn pair(&self, chosen: Answer, rejected: Answer) -> PairLoss {
        let (n_c, n_r) = (self.divisor(chosen.tokens), self.divisor(rejected.tokens));
        let mut x = chosen.policy / n_c - rejected.policy / n_r;
        if self.needs_reference() {
            x -= chosen.reference / n_c - rejected.reference / n_r;
        }
        let (loss, slope) = self.preference(x);
        let likelihood = self.rpo_alpha / chosen.tokens.max(1) as f64;
        PairLoss {
            loss: loss - likelihood * chosen.policy,
            d_chosen: slope / n_c - likelihood,
            d_rejected: -slope / n_r,
        }
    }

    /// Sums over a pack, and into `coefficients` (`[branches]`, overwritten) the derivative of the
    /// **sum** of its losses by each branch's policy log-probability.
    /// `policy`, `reference`: `[branches]`; `reference` may be empty where the loss knows none.
    pub fn pack(
        &self,
        pack: &Pack,
        policy: &[f64],
        reference: &[f64],
        coefficients: &mut Vec<f64>,
    ) -> Totals {
        coefficients.clear();
        coefficients.resize(pack.branches.len(), 0.0);
        let mut totals = Totals::default();
        if self.is_sft() {
            for (b, coefficient) in coefficients.iter_mut().enumerate() {
                let n = pack.scored(b).max(1) as f64;
                *coefficient = -1.0 / n;
                totals.loss -= policy[b] / n;
            }
            totals.count = policy.len() as u64;
            return totals;
        }
        let answer = |b: u32| {
            let b = b as usize;
            let reference = reference.get(b).copied().unwrap_or(0.0);
            Answer { policy: policy[b], reference, tokens: pack.scored(b) }
        };
        for &[c, r] in &pack.pairs {
            let (chosen, rejected) = (answer(c), answer(r));
            let pair = self.pair(chosen, rejected);
            coefficients[c as usize] += pair.d_chosen;
            coefficients[r as usize] += pair.d_rejected;
            totals.ranked += right(chosen.policy, rejected.policy);
            let (chosen, rejected) = (self.reward(chosen), self.reward(rejected));
            totals.count += 1;
            totals.loss += pair.loss;
            totals.chosen += chosen;
            totals.rejected += rejected;
            totals.right += right(chosen, rejected);
            totals.absolute += (chosen - rejected).abs();
        }
        totals
    }

    fn divisor(&self, tokens: usize) -> f64 {
        if self.length_normalised || self.kind == Kind::Simpo { tokens.max(1) as f64 } else { 1.0 }
    }

    /// The loss of preference `x` and its derivative.
    fn preference(&self, x: f64) -> (f64, f64) {
        let (beta, eps) = (self.beta, self.label_smoothing);
        let z = beta * x;
        match self.kind {
            Kind::Sigmoid => (softplus(-z), -beta * sigmoid(-z)),
            Kind::Hinge if z < 1.0 => (1.0 - z, -beta),
            Kind::Hinge => (0.0 * z, 0.0), // NaN stays NaN
            Kind::Ipo => {
                let distance = x - 0.5 / beta;
                (distance * distance, 2.0 * distance)
            }
            Kind::Robust => (
                (1.0 - eps) * softplus(-z) + eps * softplus(z),
                beta * (eps * sigmoid(z) - (1.0 - eps) * sigmoid(-z)),
            ),
            Kind::Simpo => (softplus(self.gamma - z), -beta * sigmoid(self.gamma - z)),
            Kind::Sft => (0.0, 0.0),
        }
    }
}

/// 1 when the chosen value is higher, one half for a tie, else 0.
pub fn right(chosen: f64, rejected: f64) -> f64 {
    if chosen > rejected {
        1.0
    } else if chosen == rejected {
        0.5
    } else {
        0.0
    }
}

/// log(1 + eᶻ) = −log σ(−z), for any z.
fn softplus(z: f64) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p()
}

/// 1 / (1 + e⁻ᶻ), exact to rounding at both ends.
fn sigmoid(z: f64) -> f64 {
    if z >= 0.0 {
        1.0 / (1.0 + (-z).exp())
    } else {
        let e = z.exp();
        e / (1.0 + e)
    }
}
