//! Root-mean-square normalisation over the last axis, after adding the residual.
//!
//! ```text
//! forward    h = x + residual     r = 1 / sqrt(mean(h²) + eps)     y = h · r · w
//! backward   g = dy · w     dh = r · (g − h · r² · mean(g · h))     dw += Σ_rows dy · h · r
//! ```
//!
//! Sums in f32, so `|h|` must stay below 1e18. `T` is f32; on CUDA also bf16: `h`, which the
//! statistics are taken of, `y` and `dh` are then rounded once. Source: Zhang and Sennrich, arXiv
//! 1910.07467; eps inside the root, as Qwen does.

mod cpu;
mod cuda;

use crate::device::Device;
use crate::error::Result;
use crate::ops::Write;
use crate::ops::check::Check;
use crate::tensor::{Tensor, TensorMut};

/// Rows that a kernel sums the weight's gradient of before it joins the others: with fewer, what is
/// written and read of those sums counts; with more, 8192 rows leave multiprocessors idle.
const CHUNK_WEIGHT: usize = 64;

/// What is added before the norm, and where the sum goes.
pub struct Residual<'a> {
    /// `[rows, cols]` T.
    pub add: Tensor<'a>,
    /// `[rows, cols]` T, overwritten by `x + add`.
    pub h: TensorMut<'a>,
}

/// `x`, `y`: `[rows, cols]` T; `weight`: `[1, cols]` T; `rstd`: `[rows, 1]` f32, kept for
/// [`backward`]. Without a `residual`, `h` is `x`.
///
/// Overwrites `y` and `rstd`. 4 FLOP per element; reads and writes `[rows, cols]` once, with a
/// residual twice. Errors: a shape or dtype that differs from these; on CUDA, rows that are not
/// whole packs of 16 bytes.
pub fn forward(
    x: Tensor<'_>,
    residual: Option<Residual<'_>>,
    weight: Tensor<'_>,
    y: TensorMut<'_>,
    rstd: TensorMut<'_>,
    eps: f32,
) -> Result<()> {
    let check = Check::on(x.device(), "rms_norm::forward");
    let ([rows, cols], t) = (x.shape(), [x.dtype()]);
    let wide = |name, tensor| check.packed(name, tensor, &t, [rows, cols], "rows, cols");
    check.packed("x", x, check.activations(), [rows, cols], "rows, cols")?;
    if let Some(Residual { add, h }) = &residual {
        wide("residual", *add)?;
        wide("h", h.as_ref())?;
    }
    check.packed("weight", weight, &t, [1, cols], "1, cols")?;
    wide("y", y.as_ref())?;
    check.f32("rstd", rstd.as_ref(), [rows, 1], "rows, 1")?;
    match x.device() {
        Device::Cpu => cpu::forward(x, residual, weight, y, rstd, eps),
        Device::Cuda(cuda) => cuda::forward(cuda, x, residual, weight, y, rstd, eps)?,
    }
    Ok(())
}

/// Elements of `partials` on a GPU for `h` of this shape; the CPU needs none.
pub fn partials([rows, cols]: [usize; 2]) -> usize {
    rows.div_ceil(CHUNK_WEIGHT) * cols
}

/// `h`, `dy`, `dh`: `[rows, cols]` T; `weight`: `[1, cols]` T; `dweight`: `[1, cols]` f32; `rstd`:
/// `[rows, 1]` f32 as [`forward`] left it, of the same `h`; `partials`: scratch, where there is a
/// `dweight` one row of at least [`partials`] f32, on the CPU empty.
///
/// Writes `dh` as `write` says, adds to `dweight` unless the weight is frozen (`None`). 9 FLOP per
/// element and 3 more for `dweight`; reads `h` and `dy` once (the CPU twice), writes `dh` once.
/// Errors: as [`forward`].
pub fn backward(
    h: Tensor<'_>,
    weight: Tensor<'_>,
    rstd: Tensor<'_>,
    dy: Tensor<'_>,
    dh: TensorMut<'_>,
    dweight: Option<TensorMut<'_>>,
    partials: TensorMut<'_>,
    write: Write,
) -> Result<()> {
    let check = Check::on(h.device(), "rms_norm::backward");
    let ([rows, cols], t) = (h.shape(), [h.dtype()]);
    let wide = |name, tensor| check.packed(name, tensor, &t, [rows, cols], "rows, cols");
    check.packed("h", h, check.activations(), [rows, cols], "rows, cols")?;
    check.packed("weight", weight, &t, [1, cols], "1, cols")?;
    check.f32("rstd", rstd, [rows, 1], "rows, 1")?;
    wide("dy", dy)?;
    wide("dh", dh.as_ref())?;
    if let Some(dweight) = &dweight {
        check.f32("dweight", dweight.as_ref(), [1, cols], "1, cols")?;
        check.scratch("partials", partials.as_ref(), self::partials([rows, cols]))?;
    }
    match h.device() {
        Device::Cpu => cpu::backward(h, weight, rstd, dy, dh, dweight, write),
        Device::Cuda(cuda) => {
            cuda::backward(cuda, h, weight, rstd, dy, dh, dweight, partials, write)?;
        }
    }
    Ok(())
}
