//! Bicubic resize of a square grid of vectors: position embeddings of another grid size.
//!
//! ```text
//! forward    dst[y, x] = Σ_ij  w_i(y) · w_j(x) · src[y_i, x_j]     over 4 × 4 neighbours
//! backward   dsrc += the transpose
//! ```
//!
//! Keys' kernel with a = −0.75, pixel centres at `(i + ½) · g/t − ½` (align_corners false), no
//! antialias, neighbours clamped at the border: `torch.nn.functional.interpolate(mode="bicubic")`.
//! Equal grids are copied. Source: Keys, IEEE TASSP 29 (1981).

mod cpu;

use crate::error::Result;
use crate::ops::check::Check;
use crate::tensor::{Tensor, TensorMut};

/// `src`: `[g·g, D]`; `dst`: `[t·t, D]`, overwritten.
///
/// `32·t²·D` FLOP. Errors: a shape or dtype that differs, rows that are no square number.
pub fn forward(src: Tensor<'_>, dst: TensorMut<'_>) -> Result<()> {
    let check = Check::on_cpu("interpolate::forward");
    let width = src.cols();
    check.f32("src", src, [src.rows(), width], "grid · grid, width")?;
    check.f32("dst", dst.as_ref(), [dst.rows(), width], "grid · grid, width")?;
    let (from, to) = (grid(check, "src", src)?, grid(check, "dst", dst.as_ref())?);
    cpu::forward(src, dst, from, to);
    Ok(())
}

/// `ddst`: `[t·t, D]`; `dsrc`: `[g·g, D]`, added to.
///
/// `32·t²·D` FLOP. Errors: a shape or dtype that differs, rows that are no square number.
pub fn backward(ddst: Tensor<'_>, dsrc: TensorMut<'_>) -> Result<()> {
    let check = Check::on_cpu("interpolate::backward");
    let width = ddst.cols();
    check.f32("ddst", ddst, [ddst.rows(), width], "grid · grid, width")?;
    check.f32("dsrc", dsrc.as_ref(), [dsrc.rows(), width], "grid · grid, width")?;
    let (from, to) = (grid(check, "dsrc", dsrc.as_ref())?, grid(check, "ddst", ddst)?);
    cpu::backward(ddst, dsrc, from, to);
    Ok(())
}

/// The side of a grid that fills the rows of `x`.
fn grid(check: Check, name: &str, x: Tensor<'_>) -> Result<usize> {
    let (rows, side) = (x.rows(), x.rows().isqrt());
    if rows == 0 || side * side != rows {
        let message = format!("{name} has {rows} rows, expected a square number of at least 1");
        return Err(check.error(message));
    }
    Ok(side)
}
