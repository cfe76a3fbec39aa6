//! Sampling: from a row of logits to a token, the most likely or one of the most likely.
//!
//! ```text
//! greedy    the largest logit, the lowest id among equals
//! nucleus   w = exp((x − max x) / temperature)     W = ⌊w · 2⁴⁴⌋
//!   order   w falling, ids rising among equals     M(i) = Σ W up to and with i, in this order
//!   kept    all up to the first i with M(i) >= top_p · M(last)
//!   token   the first i with M(i) > uniform · M(last kept)
//! ```
//!
//! A weight is f32, rounded operation by operation; masses are whole numbers, whose sums know no
//! order: every device chooses the same token. Against exact arithmetic a choice can differ only
//! where `uniform` or `top_p` lies within the rounding of the weights of a boundary, a share of
//! `3e-7 + 1.2e-7 · (max x − x) / temperature` of each. NaN never wins: it and −inf weigh nothing,
//! and a row of nothing else gives token 0. Where the largest logit is +inf, only such weigh
//! anything. Source: Holtzman et al., arXiv 1904.09751.

mod cpu;
mod cuda;

use bytemuck::{Pod, Zeroable};

use crate::device::Device;
use crate::error::Result;
use crate::ops::check::Check;
use crate::tensor::{DType, Tensor, TensorMut};

/// How [`nucleus`] chooses: one row of f32 on the device, so that a captured step reads what the host
/// wrote before its replay.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Nucleus {
    /// Divides the logits; > 0. Towards 0 the choice is [`greedy`]'s, or one of its equals.
    pub temperature: f32,
    /// In (0, 1]: the probability that those kept reach.
    pub top_p: f32,
}

/// Most tokens to choose from: no sum of masses overflows.
const MOST: usize = 1 << 19;

impl Nucleus {
    /// Elements of a row.
    pub const COLS: usize = size_of::<Nucleus>() / size_of::<f32>();

    /// As a row.
    pub fn view(&self) -> Tensor<'_> {
        Tensor::vector::<f32>(bytemuck::cast_slice(std::slice::from_ref(self)))
    }
}

/// `logits`: `[rows, vocab]` f32; `token`: u32 `[rows, 1]`, overwritten.
///
/// One read. Errors: a shape or dtype that differs; more than 2^19 tokens; on CUDA, rows that are not
/// whole packs of 16 bytes.
pub fn greedy(logits: Tensor<'_>, token: TensorMut<'_>) -> Result<()> {
    let check = Check::on(logits.device(), "sampling::greedy");
    validate(check, logits, token.as_ref())?;
    match logits.device() {
        Device::Cpu => cpu::greedy(logits, token),
        Device::Cuda(cuda) => cuda::greedy(cuda, logits, token)?,
    }
    Ok(())
}

/// `logits`: `[rows, vocab]` f32; `nucleus`: `[1, 2]` f32 (a [`Nucleus`]); `uniform`: `[rows, 1]` f64
/// in [0, 1), which decides; `token`: u32 `[rows, 1]`, overwritten.
///
/// Overwrites `weights` `[rows, vocab]` f32, scratch. Reads `logits` twice and `weights` some 20 times:
/// nothing is sorted. A `uniform` beyond its range gives the first or the last token that is kept; a
/// `temperature` or `top_p` that is not above 0, or NaN, the most likely. Errors: as [`greedy`].
pub fn nucleus(
    logits: Tensor<'_>,
    nucleus: Tensor<'_>,
    uniform: Tensor<'_>,
    weights: TensorMut<'_>,
    token: TensorMut<'_>,
) -> Result<()> {
    let check = Check::on(logits.device(), "sampling::nucleus");
    validate(check, logits, token.as_ref())?;
    check.f32("nucleus", nucleus, [1, Nucleus::COLS], "1, fields of Nucleus")?;
    check.f64("uniform", uniform, [logits.rows(), 1], "rows, 1")?;
    check.packed("weights", weights.as_ref(), &[DType::F32], logits.shape(), "rows, vocab")?;
    match logits.device() {
        Device::Cpu => cpu::nucleus(logits, nucleus, uniform, weights, token),
        Device::Cuda(cuda) => cuda::nucleus(cuda, logits, nucleus, uniform, weights, token)?,
    }
    Ok(())
}

fn validate(check: Check, logits: Tensor<'_>, token: Tensor<'_>) -> Result<()> {
    let [rows, vocab] = logits.shape();
    check.packed("logits", logits, &[DType::F32], [rows, vocab], "rows, vocab")?;
    if vocab > MOST {
        return Err(check.error(format!("logits has {vocab} columns, expected at most {MOST}")));
    }
    check.u32("token", token, [rows, 1], "rows, 1")
}
