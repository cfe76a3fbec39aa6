//! Layer normalisation over the last axis.
//!
//! ```text
//! forward    μ = mean(x)     r = 1 / sqrt(mean((x − μ)²) + eps)     x̂ = (x − μ) · r     y = x̂ · w + b
//! backward   g = dy · w      dx = r · (g − mean(g) − x̂ · mean(g · x̂))
//!            dw += Σ_rows dy · x̂     db += Σ_rows dy
//! ```
//!
//! Sums in f32, so `|x − μ|` must stay below 1e18. `T` is f32; on CUDA also bf16: `y` and `dx` are
//! then rounded once. Source: Ba, Kiros and Hinton, arXiv 1607.06450.

mod cpu;
mod cuda;

use crate::device::Device;
use crate::error::Result;
use crate::ops::Write;
use crate::ops::check::Check;
use crate::tensor::{Tensor, TensorMut};

/// Rows that a kernel sums the parameters' gradients of before they join the others: as in
/// [`rms_norm`](super::rms_norm).
const CHUNK_WEIGHT: usize = 64;

/// `x`, `y`: `[rows, cols]` T; `weight`, `bias`: `[1, cols]` T; `mean`, `rstd`: `[rows, 1]` f32, kept
/// for [`backward`].
///
/// Overwrites `y`, `mean` and `rstd`. 8 FLOP per element; reads and writes `[rows, cols]` once.
/// Errors: a shape or dtype that differs from these; on CUDA, rows that are not whole packs of 16
/// bytes.
pub fn forward(
    x: Tensor<'_>,
    weight: Tensor<'_>,
    bias: Tensor<'_>,
    y: TensorMut<'_>,
    mean: TensorMut<'_>,
    rstd: TensorMut<'_>,
    eps: f32,
) -> Result<()> {
    let check = Check::on(x.device(), "layer_norm::forward");
    let ([rows, cols], t) = (x.shape(), [x.dtype()]);
    check.packed("x", x, check.activations(), [rows, cols], "rows, cols")?;
    check.packed("weight", weight, &t, [1, cols], "1, cols")?;
    check.packed("bias", bias, &t, [1, cols], "1, cols")?;
    check.packed("y", y.as_ref(), &t, [rows, cols], "rows, cols")?;
    check.f32("mean", mean.as_ref(), [rows, 1], "rows, 1")?;
    check.f32("rstd", rstd.as_ref(), [rows, 1], "rows, 1")?;
    match x.device() {
        Device::Cpu => cpu::forward(x, weight, bias, y, mean, rstd, eps),
        Device::Cuda(cuda) => cuda::forward(cuda, x, weight, bias, y, mean, rstd, eps)?,
    }
    Ok(())
}

/// Elements of `partials` on a GPU for `x` of this shape; the CPU needs none.
pub fn partials([rows, cols]: [usize; 2]) -> usize {
    2 * rows.div_ceil(CHUNK_WEIGHT) * cols
}

/// `x`, `dy`, `dx`: `[rows, cols]` T; `weight`: `[1, cols]` T; `dweight`, `dbias`: `[1, cols]` f32;
/// `mean`, `rstd`: `[rows, 1]` f32 as [`forward`] left them; `partials`: scratch, where there is a
/// `dweight` or `dbias` one row of at least [`partials`] f32, on the CPU empty.
///
/// Writes `dx` as `write` says, adds to `dweight` and `dbias` unless frozen (`None`). 14 FLOP per
/// element and 5 more for the parameters; reads `x` and `dy` once (the CPU twice), writes `dx` once.
/// Errors: as [`forward`].
pub fn backward(
    x: Tensor<'_>,
    weight: Tensor<'_>,
    mean: Tensor<'_>,
    rstd: Tensor<'_>,
    dy: Tensor<'_>,
    dx: TensorMut<'_>,
    dweight: Option<TensorMut<'_>>,
    dbias: Option<TensorMut<'_>>,
    partials: TensorMut<'_>,
    write: Write,
) -> Result<()> {
    let check = Check::on(x.device(), "layer_norm::backward");
    let ([rows, cols], t) = (x.shape(), [x.dtype()]);
    check.packed("x", x, check.activations(), [rows, cols], "rows, cols")?;
    check.packed("weight", weight, &t, [1, cols], "1, cols")?;
    check.f32("mean", mean, [rows, 1], "rows, 1")?;
    check.f32("rstd", rstd, [rows, 1], "rows, 1")?;
    check.packed("dy", dy, &t, [rows, cols], "rows, cols")?;
    check.packed("dx", dx.as_ref(), &t, [rows, cols], "rows, cols")?;
    for (name, gradient) in [("dweight", &dweight), ("dbias", &dbias)] {
        if let Some(gradient) = gradient {
            check.f32(name, gradient.as_ref(), [1, cols], "1, cols")?;
            check.scratch("partials", partials.as_ref(), self::partials([rows, cols]))?;
        }
    }
    match x.device() {
        Device::Cpu => cpu::backward(x, weight, mean, rstd, dy, dx, dweight, dbias, write),
        Device::Cuda(cuda) => {
            cuda::backward(cuda, x, weight, mean, rstd, dy, dx, dweight, dbias, partials, write)?;
        }
    }
    Ok(())
}
