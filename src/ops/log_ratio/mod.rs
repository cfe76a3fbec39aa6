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
//!
//! `T` is f32 on the CPU, where the gradient takes the place of the logits in f32; on CUDA bf16, and the
//! gradient is rounded once to bf16, over the first half of each row of logits, for the product to read.
//!
//! Logits may be as large as f32 allows, or -inf. A row with NaN or +inf, or of nothing but -inf, has NaN as its
//! log-probability and in its gradient, so that the step's finite flag sees it; on CUDA so has one whose
//! target is V or more. A target of -inf among others has log-probability -inf and a finite gradient.

mod cpu;
mod cuda;

use std::ops::Range;

use crate::device::Device;
use crate::error::Result;
use crate::ops::Write::{Accumulate, Overwrite};
use crate::ops::check::Check;
use crate::ops::matmul::{self, Types};
use crate::tensor::{DType, Tensor, TensorMut};

/// Overwrites `log_probs [R, 1]` and, when given, `dh [R, D]` with the unit gradient of each
/// row's log-probability (without it the second product is not computed).
///
/// `h [R, D]`, `head [V, D]`, `dh` as [`matmul`] takes and gives them: on the CPU f32, `head` of any float
/// type, on CUDA bf16, `dh` also f32. `targets [R, 1]` u32, `logits [chunk, V]` f32 scratch: its rows are the
/// rows handled at once. 2·R·V·D FLOP, twice that with `dh`.
///
/// Errors: shapes and types that do not fit; on the CPU a target of V or more; on CUDA, logits whose rows
/// are not whole packs of 16 bytes.
pub fn forward(
    h: Tensor<'_>,
    head: Tensor<'_>,
    targets: Tensor<'_>,
    mut log_probs: TensorMut<'_>,
    mut dh: Option<TensorMut<'_>>,
    mut logits: TensorMut<'_>,
) -> Result<()> {
    let check = Check::on(logits.device(), "log_ratio::forward");
    check_products(check, h, head, logits.as_ref())?;
    check_targets(check, targets, h.rows(), head.rows())?;
    check.f32("log_probs", log_probs.as_ref(), [h.rows(), 1], "rows, 1")?;
    if let Some(dh) = &dh {
        let types = Types::on(logits.device()).output;
        check.typed("dh", dh.as_ref(), types, h.shape(), "rows, width")?;
    }
    for rows in chunks(h.rows(), logits.rows()) {
        let mut z = logits.reborrow().slice_rows(0..rows.len());
        matmul::nt(h.slice_rows(rows.clone()), head, None, z.reborrow(), 1.0, Overwrite)?;
        let log_probs = log_probs.reborrow().slice_rows(rows.clone());
        let targets = targets.slice_rows(rows.clone());
        let Some(dh) = &mut dh else {
            self::log_probs(z, targets, log_probs)?;
            continue;
        };
        gradients(z.reborrow(), targets, None, Some(log_probs))?;
        let dh = dh.reborrow().slice_rows(rows);
        matmul::nn(gradients_in(z.as_ref()), head, dh, 1.0, Overwrite)?;
    }
    Ok(())
}

/// `dhead [V, D] += Σ_r factors[r] · unit logit gradient of row r ⊗ h_r`, f32, for a head that is
/// trained. Recomputes the logits chunk by chunk: 4·R·V·D FLOP. `factors [R, 1]` f32; the rest as
/// [`forward`].
pub fn backward_head(
    h: Tensor<'_>,
    head: Tensor<'_>,
    targets: Tensor<'_>,
    factors: Tensor<'_>,
    mut dhead: TensorMut<'_>,
    mut logits: TensorMut<'_>,
) -> Result<()> {
    let check = Check::on(logits.device(), "log_ratio::backward_head");
    check_products(check, h, head, logits.as_ref())?;
    check_targets(check, targets, h.rows(), head.rows())?;
    check.f32("factors", factors, [h.rows(), 1], "rows, 1")?;
    check.f32("dhead", dhead.as_ref(), head.shape(), "vocabulary, width")?;
    for rows in chunks(h.rows(), logits.rows()) {
        let h = h.slice_rows(rows.clone());
        let mut z = logits.reborrow().slice_rows(0..rows.len());
        matmul::nt(h, head, None, z.reborrow(), 1.0, Overwrite)?;
        let factors = Some(factors.slice_rows(rows.clone()));
        gradients(z.reborrow(), targets.slice_rows(rows), factors, None)?;
        matmul::tn(gradients_in(z.as_ref()), h, dhead.reborrow(), 1.0, Accumulate)?;
    }
    Ok(())
}

/// What [`forward`] does between its products when no gradient is asked for: overwrites `log_probs [rows, 1]`;
/// what `logits [rows, V]` hold afterwards is of no use. Reads `logits` once. Errors: as [`forward`].
pub fn log_probs(
    logits: TensorMut<'_>,
    targets: Tensor<'_>,
    log_probs: TensorMut<'_>,
) -> Result<()> {
    let check = Check::on(logits.device(), "log_ratio::log_probs");
    let [rows, vocabulary] = logits.shape();
    check_logits(check, logits.as_ref(), vocabulary)?;
    check_targets(check, targets, rows, vocabulary)?;
    check.f32("log_probs", log_probs.as_ref(), [rows, 1], "rows, 1")?;
    match logits.device() {
        Device::Cpu => cpu::log_probs(logits, targets, log_probs),
        Device::Cuda(cuda) => cuda::log_probs(cuda, logits, targets, log_probs)?,
    }
    Ok(())
}

/// What [`forward`] and [`backward_head`] do between their products: overwrites `logits [rows, V]` with the
/// gradients that [`gradients_in`] then finds there, unit ones or, with `factors [rows, 1]` f32, those times
/// them; and `log_probs [rows, 1]` when given.
///
/// 12 FLOP an element; reads `logits` once and on CUDA, of rows beyond shared memory, the rest again, from L2; writes
/// as much or, on CUDA, half. Errors: as [`forward`].
pub fn gradients(
    logits: TensorMut<'_>,
    targets: Tensor<'_>,
    factors: Option<Tensor<'_>>,
    log_probs: Option<TensorMut<'_>>,
) -> Result<()> {
    let check = Check::on(logits.device(), "log_ratio::gradients");
    let [rows, vocabulary] = logits.shape();
    check_logits(check, logits.as_ref(), vocabulary)?;
    check_targets(check, targets, rows, vocabulary)?;
    if let Some(factors) = factors {
        check.f32("factors", factors, [rows, 1], "rows, 1")?;
    }
    if let Some(log_probs) = &log_probs {
        check.f32("log_probs", log_probs.as_ref(), [rows, 1], "rows, 1")?;
    }
    match logits.device() {
        Device::Cpu => cpu::gradients(logits, targets, factors, log_probs),
        Device::Cuda(cuda) => cuda::gradients(cuda, logits, targets, factors, log_probs)?,
    }
    Ok(())
}

/// The gradients `[rows, V]` that [`gradients`] left in `logits`: f32, on CUDA bf16 in the first half of each row.
pub fn gradients_in(logits: Tensor<'_>) -> Tensor<'_> {
    match logits.device() {
        Device::Cpu => logits,
        Device::Cuda(_) => logits.halves().slice_cols(0..logits.cols()),
    }
}

/// The log-probability of each branch: `sums[b]` = the sum of rows `offsets[b]..offsets[b + 1]` of `log_probs`, in row
/// order, in f64. The same bits on every device.
///
/// `log_probs [R, 1]` f32; `offsets [1, B + 1]` u32, rising; `sums [B, 1]` f64, overwritten. Errors: shapes and types
/// that do not fit, on the CPU offsets that fall or leave the rows; on CUDA such a branch's sum is NaN.
pub fn branch_sums(log_probs: Tensor<'_>, offsets: Tensor<'_>, sums: TensorMut<'_>) -> Result<()> {
    let check = Check::on(log_probs.device(), "log_ratio::branch_sums");
    let branches = sums.rows();
    check.f32("log_probs", log_probs, [log_probs.rows(), 1], "rows, 1")?;
    check.u32("offsets", offsets, [1, branches + 1], "1, branches + 1")?;
    check.f64("sums", sums.as_ref(), [branches, 1], "branches, 1")?;
    match log_probs.device() {
        Device::Cpu => {
            check_offsets(check, offsets.row::<u32>(0), log_probs.rows())?;
            cpu::branch_sums(log_probs, offsets, sums);
        }
        Device::Cuda(cuda) => cuda::branch_sums(cuda, log_probs, offsets, sums)?,
    }
    Ok(())
}

/// Rows of logits that `bytes` have room for: whole tiles of a product where there is room for one, 16 at least.
///
/// A product reads the whole head for a chunk, so that below some 500 rows an H200 waits for memory.
pub fn rows_at_once(vocabulary: usize, bytes: usize) -> usize {
    const TILE: usize = 128;
    let rows = bytes / (vocabulary.max(1) * DType::F32.size());
    if rows < TILE { rows.max(16) } else { rows / TILE * TILE }
}

fn chunks(rows: usize, at_once: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(at_once.max(1)).map(move |i| i..(i + at_once).min(rows))
}

fn check_products(check: Check, h: Tensor<'_>, head: Tensor<'_>, logits: Tensor<'_>) -> Result<()> {
    let ([rows, width], vocabulary) = (h.shape(), head.rows());
    let types = Types::on(logits.device());
    check.typed("h", h, types.input, [rows, width], "rows, width")?;
    check.typed("head", head, types.weight, [vocabulary, width], "vocabulary, width")?;
    check_logits(check, logits, vocabulary)?;
    if logits.rows() == 0 && rows > 0 {
        let message = format!("logits has 0 rows, expected at least 1 for {rows} rows");
        return Err(check.error(message));
    }
    Ok(())
}

fn check_logits(check: Check, logits: Tensor<'_>, vocabulary: usize) -> Result<()> {
    let shape = [logits.rows(), vocabulary];
    check.packed("logits", logits, &[DType::F32], shape, "rows at once, vocabulary")
}

fn check_targets(check: Check, targets: Tensor<'_>, rows: usize, vocabulary: usize) -> Result<()> {
    check.u32("targets", targets, [rows, 1], "rows, 1")?;
    check.below("targets", targets, vocabulary, "the vocabulary")
}

fn check_offsets(check: Check, offsets: &[u32], rows: usize) -> Result<()> {
    let last = u32::try_from(rows).unwrap_or(u32::MAX);
    for (b, pair) in offsets.windows(2).enumerate() {
        let [begin, end] = [pair[0], pair[1]];
        if end < begin || end > last {
            let b = b + 1;
            return Err(check.error(format!(
                "offsets[{b}] is {end}, expected {begin} to {last} (from the branch before to the rows)"
            )));
        }
    }
    Ok(())
}
