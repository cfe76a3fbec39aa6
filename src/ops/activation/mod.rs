//! Pointwise activations: GELU (exact, by erf) of the vision tower, SwiGLU of the decoder.
//!
//! ```text
//! gelu     y = x · Φ(x)     Φ(x) = (1 + erf(x / √2)) / 2
//!          dx = dy · (Φ(x) + x · φ(x))     dbias += Σ_rows dx
//! swiglu   s = a · b · σ(b)     da = ds · b · σ(b)     db = ds · a · σ(b) · (1 + b · (1 − σ(b)))
//! ```
//!
//! `T` is f32; on CUDA also bf16: arithmetic stays f32 and every output is rounded once. No output
//! may be an input: gradients have buffers of their own, which all layers share. Sources: Hendrycks
//! and Gimpel, arXiv 1606.08415; Shazeer, arXiv 2002.05202.

mod cpu;
mod cuda;

use crate::device::Device;
use crate::error::Result;
use crate::ops::check::Check;
use crate::ops::column_sums;
use crate::tensor::{Tensor, TensorMut};

/// `x`, `y`: `[rows, cols]` T. Overwrites `y`.
///
/// About 45 FLOP per element; one read, one write. Errors: a shape or dtype that differs; on CUDA,
/// rows that are not whole packs of 16 bytes.
pub fn gelu(x: Tensor<'_>, y: TensorMut<'_>) -> Result<()> {
    let check = Check::on(x.device(), "activation::gelu");
    same(check, [("x", x), ("y", y.as_ref())])?;
    match x.device() {
        Device::Cpu => cpu::gelu(x, y),
        Device::Cuda(cuda) => cuda::gelu(cuda, x, y)?,
    }
    Ok(())
}

/// `x` (the input of [`gelu`]), `dy`, `dx`: `[rows, cols]` T; `dbias`: `[1, cols]` f32.
///
/// Overwrites `dx`, adds its column sums to `dbias` if asked: the bias gradient of the linear map
/// that gave `x`, here because this pass has every `dx` at hand before it is rounded. About 65 FLOP
/// per element; two reads, one write, on the CPU one more read for `dbias`. Errors: as [`gelu`].
pub fn gelu_backward(
    x: Tensor<'_>,
    dy: Tensor<'_>,
    mut dx: TensorMut<'_>,
    dbias: Option<TensorMut<'_>>,
) -> Result<()> {
    let check = Check::on(x.device(), "activation::gelu_backward");
    same(check, [("x", x), ("dy", dy), ("dx", dx.as_ref())])?;
    if let Some(dbias) = &dbias {
        check.f32("dbias", dbias.as_ref(), [1, x.cols()], "1, cols")?;
    }
    match x.device() {
        Device::Cpu => {
            cpu::gelu_backward(x, dy, dx.reborrow());
            let none = TensorMut::vector::<f32>(&mut []);
            dbias.map_or(Ok(()), |dbias| column_sums::add(dx.as_ref(), dbias, none))
        }
        Device::Cuda(cuda) => cuda::gelu_backward(cuda, x, dy, dx, dbias),
    }
}

/// `a`, `b`, `s`: `[rows, cols]` T; silu is on `b`. Overwrites `s`.
///
/// About 20 FLOP per element; two reads, one write. Errors: as [`gelu`].
pub fn swiglu(a: Tensor<'_>, b: Tensor<'_>, s: TensorMut<'_>) -> Result<()> {
    let check = Check::on(a.device(), "activation::swiglu");
    same(check, [("a", a), ("b", b), ("s", s.as_ref())])?;
    match a.device() {
        Device::Cpu => cpu::swiglu(a, b, s),
        Device::Cuda(cuda) => cuda::swiglu(cuda, a, b, s)?,
    }
    Ok(())
}

/// `a`, `b` (the inputs of [`swiglu`]), `ds`, `da`, `db`, `s`: `[rows, cols]` T.
///
/// Overwrites `da` and `db`, and `s`, if asked, with what [`swiglu`] gave: who did not keep it has
/// it again for the weight gradient of the map behind, without another read of `a` and `b`. About
/// 25 FLOP per element; three reads, two writes, with `s` three. Errors: as [`gelu`].
pub fn swiglu_backward(
    a: Tensor<'_>,
    b: Tensor<'_>,
    ds: Tensor<'_>,
    da: TensorMut<'_>,
    db: TensorMut<'_>,
    s: Option<TensorMut<'_>>,
) -> Result<()> {
    let check = Check::on(a.device(), "activation::swiglu_backward");
    same(check, [("a", a), ("b", b), ("ds", ds), ("da", da.as_ref()), ("db", db.as_ref())])?;
    if let Some(s) = &s {
        same(check, [("a", a), ("s", s.as_ref())])?;
    }
    match a.device() {
        Device::Cpu => {
            cpu::swiglu_backward(a, b, ds, da, db);
            if let Some(s) = s {
                cpu::swiglu(a, b, s);
            }
        }
        Device::Cuda(cuda) => cuda::swiglu_backward(cuda, a, b, ds, da, db, s)?,
    }
    Ok(())
}

/// All are activations like the first.
fn same<const N: usize>(check: Check, tensors: [(&str, Tensor<'_>); N]) -> Result<()> {
    let (_, first) = tensors[0];
    let dtype = [first.dtype()];
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        let dtypes = if i == 0 { check.activations() } else { &dtype };
        check.packed(name, tensor, dtypes, first.shape(), "rows, cols")?;
    }
    Ok(())
}
