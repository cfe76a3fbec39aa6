//! Root-mean-square normalisation over the last axis.
//!
//! ```text
//! forward    r = 1 / sqrt(mean(x²) + eps)     y = x · r · w
//! backward   g = dy · w     dx = r · (g − x · r² · mean(g · x))     dw += Σ_rows dy · x · r
//! ```
//!
//! Sums in f32, so `|x|` must stay below 1e18. Source: Zhang and Sennrich, arXiv 1910.07467;
//! eps inside the root, as Qwen does.

mod cpu;

use crate::error::Result;
use crate::ops::Write;
use crate::ops::check::Check;
use crate::tensor::{Tensor, TensorMut};

/// `x`, `y`: `[rows, cols]`; `weight`: `[1, cols]`; `rstd`: `[rows, 1]`, kept for [`backward`].
///
/// All f32; overwrites `y` and `rstd`. 4 FLOP per element; reads and writes `[rows, cols]` once.
/// Errors: a shape or dtype that differs from these.
pub fn forward(
    x: Tensor<'_>,
    weight: Tensor<'_>,
    y: TensorMut<'_>,
    rstd: TensorMut<'_>,
    eps: f32,
) -> Result<()> {
    let check = Check::on_cpu("rms_norm::forward");
    let [rows, cols] = x.shape();
    check.f32("x", x, [rows, cols], "rows, cols")?;
    check.f32("weight", weight, [1, cols], "1, cols")?;
    check.f32("y", y.as_ref(), [rows, cols], "rows, cols")?;
    check.f32("rstd", rstd.as_ref(), [rows, 1], "rows, 1")?;
    cpu::forward(x, weight, y, rstd, eps);
    Ok(())
}

/// `x`, `dy`, `dx`: `[rows, cols]`; `weight`, `dweight`: `[1, cols]`; `rstd`: `[rows, 1]` as
/// [`forward`] left it.
///
/// All f32; writes `dx` as `write` says, adds to `dweight` unless the weight is frozen (`None`).
/// 9 FLOP per element and 3 more for `dweight`; reads `x` and `dy` twice, writes `dx` once.
/// Errors: a shape or dtype that differs from these.
pub fn backward(
    x: Tensor<'_>,
    weight: Tensor<'_>,
    rstd: Tensor<'_>,
    dy: Tensor<'_>,
    dx: TensorMut<'_>,
    dweight: Option<TensorMut<'_>>,
    write: Write,
) -> Result<()> {
    let check = Check::on_cpu("rms_norm::backward");
    let [rows, cols] = x.shape();
    check.f32("x", x, [rows, cols], "rows, cols")?;
    check.f32("weight", weight, [1, cols], "1, cols")?;
    check.f32("rstd", rstd, [rows, 1], "rows, 1")?;
    check.f32("dy", dy, [rows, cols], "rows, cols")?;
    check.f32("dx", dx.as_ref(), [rows, cols], "rows, cols")?;
    if let Some(dweight) = &dweight {
        check.f32("dweight", dweight.as_ref(), [1, cols], "1, cols")?;
    }
    cpu::backward(x, weight, rstd, dy, dx, dweight, write);
    Ok(())
}
