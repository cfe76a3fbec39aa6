//! Matrix products on CUDA, by cuBLASLt.

use crate::device::cuda::{Cuda, gemm};
use crate::device::gemm::{Operand, Store};
use crate::error::Result;
use crate::ops::Write;
use crate::ops::matmul::store;
use crate::tensor::{Tensor, TensorMut};

pub(super) fn nt(
    cuda: Cuda,
    a: Tensor<'_>,
    b: Tensor<'_>,
    bias: Option<Tensor<'_>>,
    c: TensorMut<'_>,
    alpha: f32,
    write: Write,
) -> Result<()> {
    let store = Store { bias, ..store(alpha, write) };
    gemm(cuda, Operand::plain(a), Operand::transposed(b), c, store)
}

pub(super) fn nn(
    cuda: Cuda,
    a: Tensor<'_>,
    b: Tensor<'_>,
    c: TensorMut<'_>,
    alpha: f32,
    write: Write,
) -> Result<()> {
    gemm(cuda, Operand::plain(a), Operand::plain(b), c, store(alpha, write))
}

pub(super) fn tn(
    cuda: Cuda,
    a: Tensor<'_>,
    b: Tensor<'_>,
    c: TensorMut<'_>,
    alpha: f32,
    write: Write,
) -> Result<()> {
    gemm(cuda, Operand::transposed(a), Operand::plain(b), c, store(alpha, write))
}
