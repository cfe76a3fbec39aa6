//! Whole rows: gathered, scattered, scaled, converted, added. The rows that reach the head, the
//! keys and values of a cache, position embeddings, casts.
//!
//! `T` is f32; on CUDA also bf16: sums are then f32 and rounded once, and what is copied, or added
//! to, may be of the other type where it says so. On CUDA rows are whole packs of 16 bytes, and an
//! index, which the host cannot see there, may point beyond: a row that does not exist reads as
//! NaN, and nothing is written to it.

mod cpu;
mod cuda;
mod inverse;

use crate::device::Device;
use crate::error::Result;
use crate::ops::check::Check;
use crate::tensor::{DType, Tensor, TensorMut};
pub(crate) use cuda::{tiles_of_columns, tiles_of_rows};
pub(crate) use inverse::{check as check_inverse, room, segments};
pub use inverse::{inverse_len, invert};

/// `dst[i] = src[index[i]]`. `src`: `[N, D]` T; `index`: u32 `[R, 1]`; `dst`: `[R, D]` T,
/// overwritten.
///
/// No arithmetic, `R · D` elements read and written. Errors: a shape or dtype that differs; an
/// index beyond `src`, which on CUDA gives a row of NaN.
pub fn gather(src: Tensor<'_>, index: Tensor<'_>, dst: TensorMut<'_>) -> Result<()> {
    let check = Check::on(src.device(), "rows::gather");
    let (rows, [limit, width]) = (index.rows(), src.shape());
    check.packed("src", src, check.activations(), [limit, width], "rows, width")?;
    check.u32("index", index, [rows, 1], "gathered rows, 1")?;
    check.packed("dst", dst.as_ref(), &[src.dtype()], [rows, width], "gathered rows, width")?;
    check.below("index", index, limit, "rows of src")?;
    match src.device() {
        Device::Cpu => cpu::gather(src, index, dst),
        Device::Cuda(cuda) => cuda::gather(cuda, src, index, dst)?,
    }
    Ok(())
}

/// `dst[index[i]] = src[i]`, of equal indices the last. `src`: `[R, D]` T; `inverse`: u32
/// `[1, 3·room + 1]`, what [`invert`] makes of the index, which may be shorter than `R`; `dst`:
/// `[N, D]` T, of which only the named rows are overwritten.
///
/// No arithmetic, `R · D` elements read and written. Errors: a shape or dtype that differs, an
/// inverse that [`invert`] did not make; an index beyond `dst`, which on CUDA is passed over.
pub fn scatter(src: Tensor<'_>, inverse: Tensor<'_>, dst: TensorMut<'_>) -> Result<()> {
    scattered(Check::on(src.device(), "rows::scatter"), src, inverse, dst.as_ref())?;
    match src.device() {
        Device::Cpu => cpu::scatter(src, inverse, dst),
        Device::Cuda(cuda) => cuda::scatter(cuda, src, inverse, dst)?,
    }
    Ok(())
}

/// `dst[index[i]] += src[i]`, in the order of `i`: the transpose of [`gather`], same arguments as
/// [`scatter`].
///
/// `R · D` additions; reads `src` once, and reads and writes the named rows once. Errors: as
/// [`scatter`].
pub fn scatter_add(src: Tensor<'_>, inverse: Tensor<'_>, dst: TensorMut<'_>) -> Result<()> {
    scattered(Check::on(src.device(), "rows::scatter_add"), src, inverse, dst.as_ref())?;
    match src.device() {
        Device::Cpu => cpu::scatter_add(src, inverse, dst),
        Device::Cuda(cuda) => cuda::scatter_add(cuda, src, inverse, dst)?,
    }
    Ok(())
}

/// `x[i] *= factors[i]`. `x`: `[R, D]` T, overwritten; `factors`: `[R, 1]` f32.
///
/// One FLOP per element. Errors: a shape or dtype that differs.
pub fn scale(x: TensorMut<'_>, factors: Tensor<'_>) -> Result<()> {
    let check = Check::on(x.device(), "rows::scale");
    let [rows, width] = x.shape();
    check.packed("x", x.as_ref(), check.activations(), [rows, width], "rows, width")?;
    check.f32("factors", factors, [rows, 1], "rows, 1")?;
    match x.device() {
        Device::Cpu => cpu::scale(x, factors),
        Device::Cuda(cuda) => cuda::scale(cuda, x, factors)?,
    }
    Ok(())
}

/// `y = x`, both `[R, D]`; on CUDA each may be f32 or bf16, and what is narrowed is rounded to
/// nearest even. Errors: a shape or dtype that differs.
pub fn copy(x: Tensor<'_>, y: TensorMut<'_>) -> Result<()> {
    let check = Check::on(x.device(), "rows::copy");
    let shape = x.shape();
    check.packed("x", x, check.activations(), shape, "rows, width")?;
    check.packed("y", y.as_ref(), check.activations(), shape, "rows, width")?;
    match x.device() {
        Device::Cpu => cpu::copy(x, y),
        Device::Cuda(cuda) => cuda::copy(cuda, x, y)?,
    }
    Ok(())
}

/// `y += x`, both `[R, D]` T, or `y` f32 and `x` bf16. One FLOP per element. Errors: a shape or
/// dtype that differs.
pub fn add(x: Tensor<'_>, y: TensorMut<'_>) -> Result<()> {
    let check = Check::on(x.device(), "rows::add");
    let shape = x.shape();
    check.packed("x", x, check.activations(), shape, "rows, width")?;
    check.packed("y", y.as_ref(), sums_of(x), shape, "rows, width")?;
    match x.device() {
        Device::Cpu => cpu::add(x, y),
        Device::Cuda(cuda) => cuda::add(cuda, x, y)?,
    }
    Ok(())
}

/// `y[i] += x[i mod P]`: one position embedding `x` `[P, D]` T for each of the `n` images in `y`
/// `[n·P, D]` T.
///
/// One FLOP per element. Errors: a shape or dtype that differs, rows of `y` no multiple of `P`.
pub fn add_cycled(x: Tensor<'_>, y: TensorMut<'_>) -> Result<()> {
    let check = Check::on(x.device(), "rows::add_cycled");
    cycled(check, ("x", x, check.activations()), ("y", y.as_ref(), &[x.dtype()]))?;
    match x.device() {
        Device::Cpu => cpu::add_cycled(x, y),
        Device::Cuda(cuda) => cuda::add_cycled(cuda, x, y)?,
    }
    Ok(())
}

/// `dx[p] += Σ_n dy[n·P + p]`, in the order of `n`: the transpose of [`add_cycled`]. `dy`:
/// `[n·P, D]` T; `dx`: `[P, D]` T or f32, added to.
///
/// One FLOP per element. Errors: a shape or dtype that differs, rows of `dy` no multiple of `P`.
pub fn add_cycled_backward(dy: Tensor<'_>, dx: TensorMut<'_>) -> Result<()> {
    let check = Check::on(dy.device(), "rows::add_cycled_backward");
    cycled(check, ("dx", dx.as_ref(), sums_of(dy)), ("dy", dy, check.activations()))?;
    match dy.device() {
        Device::Cpu => cpu::add_cycled_backward(dy, dx),
        Device::Cuda(cuda) => cuda::add_cycled_backward(cuda, dy, dx)?,
    }
    Ok(())
}

/// What `x` may be added to.
fn sums_of(x: Tensor<'_>) -> &'static [DType] {
    match x.dtype() {
        DType::Bf16 => &[DType::Bf16, DType::F32],
        _ => &[DType::F32],
    }
}

fn scattered(check: Check, src: Tensor<'_>, inverse: Tensor<'_>, dst: Tensor<'_>) -> Result<()> {
    let ([rows, width], limit) = (src.shape(), dst.rows());
    check.packed("src", src, check.activations(), [rows, width], "scattered rows, width")?;
    check.packed("dst", dst, &[src.dtype()], [limit, width], "rows, width")?;
    check_inverse(check, inverse, rows, limit)
}

fn cycled(
    check: Check,
    (one_name, one, one_types): (&str, Tensor<'_>, &[DType]),
    (many_name, many, many_types): (&str, Tensor<'_>, &[DType]),
) -> Result<()> {
    let ([period, width], rows) = (one.shape(), many.rows());
    check.packed(one_name, one, one_types, [period, width], "period, width")?;
    check.packed(many_name, many, many_types, [rows, width], "rows, width")?;
    if rows > 0 && (period == 0 || rows % period != 0) {
        return Err(check.error(format!(
            "{many_name} has {rows} rows, expected a multiple of the {period} rows of {one_name}"
        )));
    }
    Ok(())
}
