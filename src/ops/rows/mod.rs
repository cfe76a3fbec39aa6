//! Whole rows: gathered, scattered, scaled, added. The splice of image features into a token
//! stream, the rows that reach the head, position embeddings.

mod cpu;

use crate::error::Result;
use crate::ops::check::Check;
use crate::tensor::{Tensor, TensorMut};

/// `dst[i] = src[index[i]]`. `src`: `[N, D]`; `index`: u32 `[R, 1]`; `dst`: `[R, D]`, overwritten.
///
/// No arithmetic, `R · D` elements read and written. Errors: a shape or dtype that differs, an
/// index beyond `src`.
pub fn gather(src: Tensor<'_>, index: Tensor<'_>, dst: TensorMut<'_>) -> Result<()> {
    let check = Check::on_cpu("rows::gather");
    let (rows, [limit, width]) = (index.rows(), src.shape());
    check.f32("src", src, [limit, width], "rows, width")?;
    check.u32("index", index, [rows, 1], "gathered rows, 1")?;
    check.f32("dst", dst.as_ref(), [rows, width], "gathered rows, width")?;
    check.below("index", index, limit, "rows of src")?;
    cpu::gather(src, index, dst);
    Ok(())
}

/// `dst[index[i]] = src[i]`. `src`: `[R, D]`; `index`: u32 `[R, 1]`; `dst`: `[N, D]`, of which
/// only the named rows are overwritten; of equal indices the last wins.
///
/// No arithmetic, `R · D` elements read and written. Errors: a shape or dtype that differs, an
/// index beyond `dst`.
pub fn scatter(src: Tensor<'_>, index: Tensor<'_>, dst: TensorMut<'_>) -> Result<()> {
    scattered(Check::on_cpu("rows::scatter"), src, index, dst.as_ref())?;
    cpu::scatter(src, index, dst);
    Ok(())
}

/// `dst[index[i]] += src[i]`, in the order of `i`: the transpose of [`gather`], same arguments as
/// [`scatter`].
///
/// `R · D` additions. Errors: a shape or dtype that differs, an index beyond `dst`.
pub fn scatter_add(src: Tensor<'_>, index: Tensor<'_>, dst: TensorMut<'_>) -> Result<()> {
    scattered(Check::on_cpu("rows::scatter_add"), src, index, dst.as_ref())?;
    cpu::scatter_add(src, index, dst);
    Ok(())
}

/// `x[i] *= factors[i]`. `x`: `[R, D]`, overwritten; `factors`: `[R, 1]`.
///
/// One FLOP per element. Errors: a shape or dtype that differs.
pub fn scale(x: TensorMut<'_>, factors: Tensor<'_>) -> Result<()> {
    let check = Check::on_cpu("rows::scale");
    let [rows, width] = x.shape();
    check.f32("x", x.as_ref(), [rows, width], "rows, width")?;
    check.f32("factors", factors, [rows, 1], "rows, 1")?;
    cpu::scale(x, factors);
    Ok(())
}

/// `y = x`, both `[R, D]`. Errors: a shape or dtype that differs.
pub fn copy(x: Tensor<'_>, y: TensorMut<'_>) -> Result<()> {
    let check = Check::on_cpu("rows::copy");
    let shape = x.shape();
    check.f32("x", x, shape, "rows, width")?;
    check.f32("y", y.as_ref(), shape, "rows, width")?;
    cpu::copy(x, y);
    Ok(())
}

/// `y += x`, both `[R, D]`. One FLOP per element. Errors: a shape or dtype that differs.
pub fn add(x: Tensor<'_>, y: TensorMut<'_>) -> Result<()> {
    let check = Check::on_cpu("rows::add");
    let shape = x.shape();
    check.f32("x", x, shape, "rows, width")?;
    check.f32("y", y.as_ref(), shape, "rows, width")?;
    cpu::add(x, y);
    Ok(())
}

/// `y[i] += x[i mod P]`: one position embedding `x` `[P, D]` for each of the `n` images in `y`
/// `[n·P, D]`.
///
/// One FLOP per element. Errors: a shape or dtype that differs, rows of `y` no multiple of `P`.
pub fn add_cycled(x: Tensor<'_>, y: TensorMut<'_>) -> Result<()> {
    cycled(Check::on_cpu("rows::add_cycled"), ("x", x), ("y", y.as_ref()))?;
    cpu::add_cycled(x, y);
    Ok(())
}

/// `dx[p] += Σ_n dy[n·P + p]`, in the order of `n`: the transpose of [`add_cycled`]. `dy`:
/// `[n·P, D]`; `dx`: `[P, D]`, added to.
///
/// One FLOP per element. Errors: a shape or dtype that differs, rows of `dy` no multiple of `P`.
pub fn add_cycled_backward(dy: Tensor<'_>, dx: TensorMut<'_>) -> Result<()> {
    cycled(Check::on_cpu("rows::add_cycled_backward"), ("dx", dx.as_ref()), ("dy", dy))?;
    cpu::add_cycled_backward(dy, dx);
    Ok(())
}

fn scattered(check: Check, src: Tensor<'_>, index: Tensor<'_>, dst: Tensor<'_>) -> Result<()> {
    let (rows, [limit, width]) = (index.rows(), dst.shape());
    check.f32("src", src, [rows, width], "scattered rows, width")?;
    check.u32("index", index, [rows, 1], "scattered rows, 1")?;
    check.f32("dst", dst, [limit, width], "rows, width")?;
    check.below("index", index, limit, "rows of dst")
}

fn cycled(check: Check, one: (&str, Tensor<'_>), many: (&str, Tensor<'_>)) -> Result<()> {
    let ((one_name, one), (many_name, many)) = (one, many);
    let [period, width] = one.shape();
    check.f32(one_name, one, [period, width], "period, width")?;
    check.f32(many_name, many, [many.rows(), width], "rows, width")?;
    if many.rows() > 0 && (period == 0 || many.rows() % period != 0) {
        let rows = many.rows();
        return Err(check.error(format!(
            "{many_name} has {rows} rows, expected a multiple of the {period} rows of {one_name}"
        )));
    }
    Ok(())
}
