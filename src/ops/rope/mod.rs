//! Rotary position embedding, half-split: dimension `i` turns with `i + d/2`.
//!
//! ```text
//! θ_i = base'^(−2i/d)     base' = base · alpha^(d / (d − 2))     (c, s) = (cos, sin)(p · θ_i)
//! forward    [x₁, x₂] ← [x₁·c − x₂·s,  x₂·c + x₁·s]     then q ← q · logn[p]
//! backward   the inverse turn, the same logn
//! ```
//!
//! One pass in place over q and k side by side, as the fused qkv product leaves them. Source: Su
//! et al., arXiv 2104.09864; dynamic NTK and logn as Qwen-VL computes them.

mod cpu;
mod table;

use crate::error::Result;
use crate::ops::check::Check;
use crate::tensor::{Tensor, TensorMut};

pub use table::{Table, logn, ntk_alpha};

/// Turns q and k by their positions.
///
/// `qk`: `[T, 2·H·head_dim]`, q in the first half of the columns, k in the second, overwritten;
/// `positions`: u32 `[T, 1]`; `table`: a [`Table`]'s view, `[P, head_dim]`; `logn`: `[P, 1]`
/// factors of q by position. 3 FLOP per element; reads and writes `qk` once.
///
/// Errors: a shape or dtype that differs, an odd `head_dim`, a position the table or `logn`
/// does not hold.
pub fn forward(
    qk: TensorMut<'_>,
    positions: Tensor<'_>,
    table: Tensor<'_>,
    logn: Option<Tensor<'_>>,
    head_dim: usize,
) -> Result<()> {
    validate(Check::on_cpu("rope::forward"), qk.as_ref(), positions, table, logn, head_dim)?;
    cpu::forward(qk, positions, table, logn, head_dim);
    Ok(())
}

/// Turns the gradients of q and k back: the arguments of [`forward`], `qk` their gradients.
pub fn backward(
    qk: TensorMut<'_>,
    positions: Tensor<'_>,
    table: Tensor<'_>,
    logn: Option<Tensor<'_>>,
    head_dim: usize,
) -> Result<()> {
    validate(Check::on_cpu("rope::backward"), qk.as_ref(), positions, table, logn, head_dim)?;
    cpu::backward(qk, positions, table, logn, head_dim);
    Ok(())
}

fn validate(
    check: Check,
    qk: Tensor<'_>,
    positions: Tensor<'_>,
    table: Tensor<'_>,
    logn: Option<Tensor<'_>>,
    head_dim: usize,
) -> Result<()> {
    let [tokens, cols] = qk.shape();
    if head_dim == 0 || !head_dim.is_multiple_of(2) || !cols.is_multiple_of(2 * head_dim) {
        let expected = format!("a multiple of 2 · head_dim = {}", 2 * head_dim);
        let message = format!("qk has {cols} columns, expected {expected}, head_dim even");
        return Err(check.error(message));
    }
    check.f32("qk", qk, [tokens, cols], "tokens, 2 · heads · head_dim")?;
    check.u32("positions", positions, [tokens, 1], "tokens, 1")?;
    check.f32("table", table, [table.rows(), head_dim], "positions, head_dim")?;
    check.below("positions", positions, table.rows(), "the table's positions")?;
    if let Some(logn) = logn {
        check.f32("logn", logn, [logn.rows(), 1], "positions, 1")?;
        check.below("positions", positions, logn.rows(), "the positions of logn")?;
    }
    Ok(())
}
