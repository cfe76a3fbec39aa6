//! Pointwise activations: GELU (exact, by erf) of the vision tower, SwiGLU of the decoder.
//!
//! ```text
//! gelu     y = x · Φ(x)     Φ(x) = (1 + erf(x / √2)) / 2     dx = dy · (Φ(x) + x · φ(x))
//! swiglu   y = a · b · σ(b)     da = dy · b · σ(b)     db = dy · a · σ(b) · (1 + b · (1 − σ(b)))
//! ```
//!
//! Sources: Hendrycks and Gimpel, arXiv 1606.08415; Shazeer, arXiv 2002.05202.

mod cpu;

use crate::error::Result;
use crate::ops::check::Check;
use crate::tensor::{Tensor, TensorMut};

/// `x`, `y`: `[rows, cols]` f32. Overwrites `y`.
///
/// About 45 FLOP per element; one read, one write. Errors: a shape or dtype that differs.
pub fn gelu(x: Tensor<'_>, y: TensorMut<'_>) -> Result<()> {
    let check = Check::on_cpu("activation::gelu");
    let shape = x.shape();
    check.f32("x", x, shape, "rows, cols")?;
    check.f32("y", y.as_ref(), shape, "rows, cols")?;
    cpu::gelu(x, y);
    Ok(())
}

/// `x` (the input of [`gelu`]), `dy`, `dx`: `[rows, cols]` f32. Overwrites `dx`.
///
/// About 65 FLOP per element; two reads, one write. Errors: a shape or dtype that differs.
pub fn gelu_backward(x: Tensor<'_>, dy: Tensor<'_>, dx: TensorMut<'_>) -> Result<()> {
    let check = Check::on_cpu("activation::gelu_backward");
    let shape = x.shape();
    check.f32("x", x, shape, "rows, cols")?;
    check.f32("dy", dy, shape, "rows, cols")?;
    check.f32("dx", dx.as_ref(), shape, "rows, cols")?;
    cpu::gelu_backward(x, dy, dx);
    Ok(())
}

/// `a`, `b`, `y`: `[rows, cols]` f32; silu is on `b`. Overwrites `y`.
///
/// About 20 FLOP per element; two reads, one write. Errors: a shape or dtype that differs.
pub fn swiglu(a: Tensor<'_>, b: Tensor<'_>, y: TensorMut<'_>) -> Result<()> {
    let check = Check::on_cpu("activation::swiglu");
    let shape = a.shape();
    check.f32("a", a, shape, "rows, cols")?;
    check.f32("b", b, shape, "rows, cols")?;
    check.f32("y", y.as_ref(), shape, "rows, cols")?;
    cpu::swiglu(a, b, y);
    Ok(())
}

/// `a`, `b` (the inputs of [`swiglu`]), `dy`, `da`, `db`: `[rows, cols]` f32. Overwrites `da`, `db`.
///
/// About 25 FLOP per element; three reads, two writes. Errors: a shape or dtype that differs.
pub fn swiglu_backward(
    a: Tensor<'_>,
    b: Tensor<'_>,
    dy: Tensor<'_>,
    da: TensorMut<'_>,
    db: TensorMut<'_>,
) -> Result<()> {
    let check = Check::on_cpu("activation::swiglu_backward");
    let shape = a.shape();
    check.f32("a", a, shape, "rows, cols")?;
    check.f32("b", b, shape, "rows, cols")?;
    check.f32("dy", dy, shape, "rows, cols")?;
    check.f32("da", da.as_ref(), shape, "rows, cols")?;
    check.f32("db", db.as_ref(), shape, "rows, cols")?;
    cpu::swiglu_backward(a, b, dy, da, db);
    Ok(())
}
