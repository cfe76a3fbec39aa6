//! Rotary position embedding, half-split: dimension `i` turns with `i + d/2`.
//!
//! ```text
//! θ_i = base'^(−2i/d)     base' = base · alpha^(d / (d − 2))     (c, s) = (cos, sin)(p · θ_i)
//! forward    [x₁, x₂] ← [x₁·c − x₂·s,  x₂·c + x₁·s]     then q ← q · logn[p]
//! backward   the inverse turn, the same logn
//! ```
//!
//! One pass in place over q and k side by side, as the fused qkv product leaves them. `T` is f32; on
//! CUDA also bf16: arithmetic stays f32, q and k are rounded once. Source: Su et al., arXiv
//! 2104.09864; dynamic NTK and logn as Qwen-VL computes them.

mod cpu;
mod cuda;
mod table;

use crate::device::Device;
use crate::error::Result;
use crate::ops::check::Check;
use crate::tensor::{DType, Tensor, TensorMut};

pub use table::{Table, logn, ntk_alpha};

/// Turns q and k by their positions.
///
/// `qk`: `[tokens, 2·H·head_dim]` T, q in the first half of the columns, k in the second,
/// overwritten; `positions`: u32 `[tokens, 1]`; `table`: a [`Table`]'s view, `[P, head_dim]`; `logn`:
/// `[P, 1]` f32 factors of q by position. 3 FLOP per element; reads and writes `qk` once, and on
/// CUDA a row of the table once for each token.
///
/// Errors: a shape or dtype that differs, an odd `head_dim`, on CUDA one that is not a multiple of
/// 8; a position the table or `logn` does not hold. Positions on a GPU cannot be looked at: there,
/// such a position makes its row NaN.
pub fn forward(
    qk: TensorMut<'_>,
    positions: Tensor<'_>,
    table: Tensor<'_>,
    logn: Option<Tensor<'_>>,
    head_dim: usize,
) -> Result<()> {
    let check = Check::on(qk.device(), "rope::forward");
    turn(check, qk, positions, table, logn, head_dim, 1.0)
}

/// Turns the gradients of q and k back: the arguments of [`forward`], `qk` their gradients.
pub fn backward(
    qk: TensorMut<'_>,
    positions: Tensor<'_>,
    table: Tensor<'_>,
    logn: Option<Tensor<'_>>,
    head_dim: usize,
) -> Result<()> {
    let check = Check::on(qk.device(), "rope::backward");
    turn(check, qk, positions, table, logn, head_dim, -1.0)
}

/// `direction` is the sign of the angle.
fn turn(
    check: Check,
    qk: TensorMut<'_>,
    positions: Tensor<'_>,
    table: Tensor<'_>,
    logn: Option<Tensor<'_>>,
    head_dim: usize,
    direction: f32,
) -> Result<()> {
    validate(check, qk.as_ref(), positions, table, logn, head_dim)?;
    match qk.device() {
        Device::Cpu => cpu::turn(qk, positions, table, logn, head_dim, direction),
        Device::Cuda(cuda) => {
            cuda::turn(cuda, qk, positions, table, logn, head_dim, direction)?;
        }
    }
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
    if qk.device() != Device::Cpu && !head_dim.is_multiple_of(8) {
        let expected = "a multiple of 8: kernels turn 4 elements of each half of a head at a time";
        return Err(check.error(format!("head_dim is {head_dim}, expected {expected}")));
    }
    let shape = [tokens, cols];
    check.packed("qk", qk, check.activations(), shape, "tokens, 2 · heads · head_dim")?;
    check.u32("positions", positions, [tokens, 1], "tokens, 1")?;
    let shape = [table.rows(), head_dim];
    check.packed("table", table, &[DType::F32], shape, "positions, head_dim")?;
    check.below("positions", positions, table.rows(), "the table's positions")?;
    if let Some(logn) = logn {
        check.f32("logn", logn, [logn.rows(), 1], "positions, 1")?;
        check.below("positions", positions, logn.rows(), "the positions of logn")?;
    }
    Ok(())
}
