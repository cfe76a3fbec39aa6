//! Layer normalisation over the last axis.
//!
//! ```text
//! forward    μ = mean(x)     r = 1 / sqrt(mean((x − μ)²) + eps)     x̂ = (x − μ) · r     y = x̂ · w + b
//! backward   g = dy · w      dx = r · (g − mean(g) − x̂ · mean(g · x̂))
//!            dw += Σ_rows dy · x̂     db += Σ_rows dy
//! ```
//!
//! Sums in f32, so `|x − μ|` must stay below 1e18. Source: Ba, Kiros and Hinton, arXiv 1607.06450.

mod cpu;

use crate::error::Result;
use crate::ops::Write;
use crate::ops::check::Check;
use crate::tensor::{Tensor, TensorMut};

/// `x`, `y`: `[rows, cols]`; `weight`, `bias`: `[1, cols]`; `mean`, `rstd`: `[rows, 1]`, kept for
/// [`backward`].
///
/// All f32; overwrites `y`, `mean` and `rstd`. 8 FLOP per element; reads and writes
/// `[rows, cols]` once. Errors: a shape or dtype that differs from these.
pub fn forward(
    x: Tensor<'_>,
    weight: Tensor<'_>,
    bias: Tensor<'_>,
    y: TensorMut<'_>,
    mean: TensorMut<'_>,
    rstd: TensorMut<'_>,
    eps: f32,
) -> Result<()> {
    let check = Check::on_cpu("layer_norm::forward");
    let [rows, cols] = x.shape();
    check.f32("x", x, [rows, cols], "rows, cols")?;
    check.f32("weight", weight, [1, cols], "1, cols")?;
    check.f32("bias", bias, [1, cols], "1, cols")?;
    check.f32("y", y.as_ref(), [rows, cols], "rows, cols")?;
    check.f32("mean", mean.as_ref(), [rows, 1], "rows, 1")?;
    check.f32("rstd", rstd.as_ref(), [rows, 1], "rows, 1")?;
    cpu::forward(x, weight, bias, y, mean, rstd, eps);
    Ok(())
}

/// `x`, `dy`, `dx`: `[rows, cols]`; `weight`, `dweight`, `dbias`: `[1, cols]`; `mean`, `rstd`:
/// `[rows, 1]` as [`forward`] left them.
///
/// All f32; writes `dx` as `write` says, adds to `dweight` and `dbias` unless frozen (`None`).
/// 14 FLOP per element and 5 more for the parameters; reads `x` and `dy` twice, writes `dx`
/// once. Errors: a shape or dtype that differs from these.
pub fn backward(
    x: Tensor<'_>,
    weight: Tensor<'_>,
    mean: Tensor<'_>,
    rstd: Tensor<'_>,
    dy: Tensor<'_>,
    dx: TensorMut<'_>,
    dweight: Option<TensorMut<'_>>,
    dbias: Option<TensorMut<'_>>,
    write: Write,
) -> Result<()> {
    let check = Check::on_cpu("layer_norm::backward");
    let [rows, cols] = x.shape();
    check.f32("x", x, [rows, cols], "rows, cols")?;
    check.f32("weight", weight, [1, cols], "1, cols")?;
    check.f32("mean", mean, [rows, 1], "rows, 1")?;
    check.f32("rstd", rstd, [rows, 1], "rows, 1")?;
    check.f32("dy", dy, [rows, cols], "rows, cols")?;
    check.f32("dx", dx.as_ref(), [rows, cols], "rows, cols")?;
    for (name, gradient) in [("dweight", &dweight), ("dbias", &dbias)] {
        if let Some(gradient) = gradient {
            check.f32(name, gradient.as_ref(), [1, cols], "1, cols")?;
        }
    }
    cpu::backward(x, weight, mean, rstd, dy, dx, dweight, dbias, write);
    Ok(())
}
