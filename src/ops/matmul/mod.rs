//! Matrix products: `nt` is a linear layer, `nn` its input gradient, `tn` its weight gradient.
//!
//! All three are 2·M·N·K FLOP and compute bound from about 16 rows up; below, they read the
//! weight once, at the speed of memory. On the CPU everything is f32, but `b` of `nt` and `nn` may
//! be bf16 or f16, as a weight lies in its file: it is widened inside packing. Sums are f32, in
//! fixed chunks of the inner dimension, so that bytes do not depend on the number of threads.
//!
//! On CUDA `a` and `b` are bf16, `c` is bf16 or f32, rounded once, and `bias` has the type of `c`.

mod cpu;
mod cuda;

use crate::device::Device;
use crate::device::gemm::Store;
use crate::error::Result;
use crate::ops::Write;
use crate::ops::check::Check;
use crate::tensor::{DType, Tensor, TensorMut};

/// `c (+)= alpha · a bᵀ + bias`: a linear layer. `a [M, K]`, `b [N, K]`, `bias [1, N]`, `c [M, N]`,
/// written as `write` says; `bias` is added either way.
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
    let check = Check::on(c.device(), "matmul::nt");
    let types = Types::on(c.device());
    let ([m, k], n) = (a.shape(), b.rows());
    check.typed("a", a, types.input, [m, k], "rows, inputs")?;
    check.typed("b", b, types.weight, [n, k], "outputs, inputs")?;
    check.typed("c", c.as_ref(), types.output, [m, n], "rows, outputs")?;
    if let Some(bias) = bias {
        check.typed("bias", bias, &[c.dtype()], [1, n], "1, outputs")?;
    }
    match c.device() {
        Device::Cpu => cpu::nt(a, b, bias, c, alpha, write),
        Device::Cuda(cuda) => cuda::nt(cuda, a, b, bias, c, alpha, write)?,
    }
    Ok(())
}

/// `c (+)= alpha · a b`: the input gradient of a linear layer. `a [M, N]`, `b [N, K]`, `c [M, K]`,
/// written as `write` says.
///
/// 2·M·N·K FLOP. Errors: a shape or dtype that differs from these.
pub fn nn(a: Tensor<'_>, b: Tensor<'_>, c: TensorMut<'_>, alpha: f32, write: Write) -> Result<()> {
    let check = Check::on(c.device(), "matmul::nn");
    let types = Types::on(c.device());
    let ([m, n], k) = (a.shape(), b.cols());
    check.typed("a", a, types.input, [m, n], "rows, outputs")?;
    check.typed("b", b, types.weight, [n, k], "outputs, inputs")?;
    check.typed("c", c.as_ref(), types.output, [m, k], "rows, inputs")?;
    match c.device() {
        Device::Cpu => cpu::nn(a, b, c, alpha, write),
        Device::Cuda(cuda) => cuda::nn(cuda, a, b, c, alpha, write)?,
    }
    Ok(())
}

/// `c (+)= alpha · aᵀ b`: the weight gradient of a linear layer. `a [R, M]`, `b [R, N]`,
/// `c [M, N]`, written as `write` says; on the CPU `b` is f32.
///
/// 2·R·M·N FLOP. Errors: a shape or dtype that differs from these.
pub fn tn(a: Tensor<'_>, b: Tensor<'_>, c: TensorMut<'_>, alpha: f32, write: Write) -> Result<()> {
    let check = Check::on(c.device(), "matmul::tn");
    let types = Types::on(c.device());
    let ([r, m], n) = (a.shape(), b.cols());
    check.typed("a", a, types.input, [r, m], "rows, outputs")?;
    check.typed("b", b, types.input, [r, n], "rows, inputs")?;
    check.typed("c", c.as_ref(), types.output, [m, n], "outputs, inputs")?;
    match c.device() {
        Device::Cpu => cpu::tn(a, b, c, alpha, write),
        Device::Cuda(cuda) => cuda::tn(cuda, a, b, c, alpha, write)?,
    }
    Ok(())
}

/// The element types of a device.
pub(crate) struct Types {
    pub input: &'static [DType],
    pub weight: &'static [DType],
    pub output: &'static [DType],
}

impl Types {
    pub fn on(device: Device) -> Types {
        use DType::{Bf16, F16, F32};
        match device {
            Device::Cpu => Types { input: &[F32], weight: &[F32, Bf16, F16], output: &[F32] },
            Device::Cuda(_) => Types { input: &[Bf16], weight: &[Bf16], output: &[F32, Bf16] },
        }
    }
}

fn store(alpha: f32, write: Write) -> Store<'static> {
    match write {
        Write::Overwrite => Store::overwrite(alpha),
        Write::Accumulate => Store::accumulate(alpha),
    }
}
