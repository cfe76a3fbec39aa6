//! Log-probabilities of the scored tokens and their gradients, without a `[R, V]` buffer:
//! `log p_r = z_r[y_r] - ln Σ_v e^(z_r[v])`, `z = h · headᵀ`, for the rows whose next token
//! counts.
//!
//! The gradient of a row's log-probability by its hidden state,
//! `head[y] - Σ_v p_v head[v]`, does not depend on the loss. So each chunk of rows is one product
//! to logits, one pass in place that leaves the unit logit gradient `[v = y] - p_v`, and one
//! product back: 4·R·V·D FLOP in all, and memory for the chunk only. A loss then scales rows.
//! The target's entry of the unit gradient is `Σ_{v≠y} p_v`, summed without y: `1 - p_y` would
//! lose its digits when p_y is near 1. Chunks of head and loss together: Liger Kernel, arXiv
//! 2410.10989; leaving the loss out of the chunk is what makes it one pass here.

mod cpu;

use crate::error::Result;
use crate::ops::check::Check;
use crate::tensor::{Tensor, TensorMut};

/// Overwrites `log_probs [R, 1]` and, when given, `dh [R, D]` with the unit gradient of each
/// row's log-probability (without it the second product is not computed).
///
/// `h [R, D]` f32, `head [V, D]` any float type, `targets [R, 1]` u32, `logits [chunk, V]`
/// scratch: its rows are the rows handled at once. 2·R·V·D FLOP, twice that with `dh`.
///
/// Errors: shapes that do not fit, a target of V or more.
pub fn forward(
    h: Tensor<'_>,
    head: Tensor<'_>,
    targets: Tensor<'_>,
    log_probs: TensorMut<'_>,
    dh: Option<TensorMut<'_>>,
    logits: TensorMut<'_>,
) -> Result<()> {
    let check = Check::on_cpu("log_ratio::forward");
    check_inputs(check, h, head, targets, logits.as_ref())?;
    check.f32("log_probs", log_probs.as_ref(), [h.rows(), 1], "rows, 1")?;
    if let Some(dh) = &dh {
        check.f32("dh", dh.as_ref(), h.shape(), "rows, width")?;
    }
    cpu::forward(h, head, targets, log_probs, dh, logits)
}

/// `dhead [V, D] += Σ_r factors[r] · unit logit gradient of row r ⊗ h_r`, for a head that is
/// trained. Recomputes the logits chunk by chunk: 4·R·V·D FLOP. `factors [R, 1]`; the rest as
/// [`forward`].
pub fn backward_head(
    h: Tensor<'_>,
    head: Tensor<'_>,
    targets: Tensor<'_>,
    factors: Tensor<'_>,
    dhead: TensorMut<'_>,
    logits: TensorMut<'_>,
) -> Result<()> {
    let check = Check::on_cpu("log_ratio::backward_head");
    check_inputs(check, h, head, targets, logits.as_ref())?;
    check.f32("factors", factors, [h.rows(), 1], "rows, 1")?;
    check.f32("dhead", dhead.as_ref(), head.shape(), "vocabulary, width")?;
    cpu::backward_head(h, head, targets, factors, dhead, logits)
}

/// The log-probability of each branch: the sum of rows `offsets[b]..offsets[b + 1]`, in row
/// order, in f64. Panics when the offsets (B + 1 of them) leave the rows.
pub fn branch_sums(log_probs: Tensor<'_>, offsets: &[u32]) -> Vec<f64> {
    let sum = |rows: std::ops::Range<u32>| {
        rows.map(|r| f64::from(log_probs.row::<f32>(r as usize)[0])).sum()
    };
    offsets.windows(2).map(|b| sum(b[0]..b[1])).collect()
}

fn check_inputs(
    check: Check,
    h: Tensor<'_>,
    head: Tensor<'_>,
    targets: Tensor<'_>,
    logits: Tensor<'_>,
) -> Result<()> {
    let ([r, d], v) = (h.shape(), head.rows());
    check.f32("h", h, [r, d], "rows, width")?;
    check.weight("head", head, [v, d], "vocabulary, width")?;
    check.u32("targets", targets, [r, 1], "rows, 1")?;
    check.f32("logits", logits, [logits.rows(), v], "rows at once, vocabulary")?;
    if logits.rows() == 0 && r > 0 {
        return Err(check.error(format!("logits has 0 rows, expected at least 1 for {r} rows")));
    }
    check.below("targets", targets, v, "the vocabulary")
}
