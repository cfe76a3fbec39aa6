//! Matrix products: `nt` is a linear layer, `nn` its input gradient, `tn` its weight gradient.
//!
//! All three are 2·M·N·K FLOP and compute bound from about 16 rows up; below, they read the
//! weight once, at the speed of memory. `b` of `nt` and `nn` may be bf16 or f16, as a weight lies
//! in its file: it is widened inside packing. Sums are f32, in fixed chunks of the inner
//! dimension, so that bytes do not depend on the number of threads.

mod cpu;

use crate::error::Result;
use crate::ops::Write;
use crate::ops::check::Check;
use crate::tensor::{Tensor, TensorMut};

/// `c (+)= alpha · a bᵀ + bias`: a linear layer. `a [M, K]` f32, `b [N, K]` f32, bf16 or f16,
/// `bias [1, N]` f32, `c [M, N]` f32, written as `write` says; `bias` is added either way.
///
/// 2·M·N·K FLOP. Errors: a shape or dtype that differs from these.
pub fn nt(
    a: Tensor<'_>,
    b: Tensor<'_>,
    bias: Option<Tensor<'_>>,
    c: TensorMut<'_>,
    alpha: f32,
    write: Write,
) -> Result<()> {
    let check = Check::on_cpu("matmul::nt");
    let ([m, k], n) = (a.shape(), b.rows());
    check.f32("a", a, [m, k], "rows, inputs")?;
    check.weight("b", b, [n, k], "outputs, inputs")?;
    check.f32("c", c.as_ref(), [m, n], "rows, outputs")?;
    if let Some(bias) = bias {
        check.f32("bias", bias, [1, n], "1, outputs")?;
    }
    cpu::nt(a, b, bias, c, alpha, write);
    Ok(())
}

/// `c (+)= alpha · a b`: the input gradient of a linear layer. `a [M, N]` f32, `b [N, K]` f32,
/// bf16 or f16, `c [M, K]` f32, written as `write` says.
///
/// 2·M·N·K FLOP. Errors: a shape or dtype that differs from these.
pub fn nn(a: Tensor<'_>, b: Tensor<'_>, c: TensorMut<'_>, alpha: f32, write: Write) -> Result<()> {
    let check = Check::on_cpu("matmul::nn");
    let ([m, n], k) = (a.shape(), b.cols());
    check.f32("a", a, [m, n], "rows, outputs")?;
    check.weight("b", b, [n, k], "outputs, inputs")?;
    check.f32("c", c.as_ref(), [m, k], "rows, inputs")?;
    cpu::nn(a, b, c, alpha, write);
    Ok(())
}

/// `c (+)= alpha · aᵀ b`: the weight gradient of a linear layer. `a [R, M]`, `b [R, N]`,
/// `c [M, N]`, all f32, `c` written as `write` says.
///
/// 2·R·M·N FLOP. Errors: a shape or dtype that differs from these.
pub fn tn(a: Tensor<'_>, b: Tensor<'_>, c: TensorMut<'_>, alpha: f32, write: Write) -> Result<()> {
    let check = Check::on_cpu("matmul::tn");
    let ([r, m], n) = (a.shape(), b.cols());
    check.f32("a", a, [r, m], "rows, outputs")?;
    check.f32("b", b, [r, n], "rows, inputs")?;
    check.f32("c", c.as_ref(), [m, n], "outputs, inputs")?;
    cpu::tn(a, b, c, alpha, write);
    Ok(())
}

/// `c += Σ_rows a`: the bias gradient of a linear layer. `a [R, N]`, `c [1, N]`, f32.
///
/// R·N FLOP, reads `a` once. Errors: a shape or dtype that differs from these.
pub fn column_sums(a: Tensor<'_>, c: TensorMut<'_>) -> Result<()> {
    let check = Check::on_cpu("matmul::column_sums");
    let [r, n] = a.shape();
    check.f32("a", a, [r, n], "rows, outputs")?;
    check.f32("c", c.as_ref(), [1, n], "1, outputs")?;
    cpu::column_sums(a, c);
    Ok(())
}
