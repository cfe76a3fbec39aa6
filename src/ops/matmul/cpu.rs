//! Matrix products on the CPU: the device's GEMM, and dot products for a few rows.

use half::{bf16, f16};

use crate::device::cpu::par_cols;
use crate::device::gemm::{self, Operand, Store, Widen};
use crate::ops::Write;
use crate::ops::matmul::store;
use crate::tensor::{DType, Tensor, TensorMut};

/// Rows up to which `nt` reads the weight as it lies instead of packing it: token by token
/// generation, bound by the memory that holds the weight.
const FEW_ROWS: usize = 4;
/// Weight rows a task of that path handles.
const FEW_ROWS_BLOCK: usize = 32;

pub(super) fn nt(
    a: Tensor<'_>,
    b: Tensor<'_>,
    bias: Option<Tensor<'_>>,
    c: TensorMut<'_>,
    alpha: f32,
    write: Write,
) {
    if a.rows() > FEW_ROWS {
        let store = Store { bias, ..store(alpha, write) };
        return gemm::parallel(Operand::plain(a), Operand::transposed(b), c, store);
    }
    match b.dtype() {
        DType::F32 => few_rows::<f32>(a, b, bias, c, alpha, write),
        DType::Bf16 => few_rows::<bf16>(a, b, bias, c, alpha, write),
        DType::F16 => few_rows::<f16>(a, b, bias, c, alpha, write),
        other => unreachable!("a weight of type {other:?}"),
    }
}

pub(super) fn nn(a: Tensor<'_>, b: Tensor<'_>, c: TensorMut<'_>, alpha: f32, write: Write) {
    gemm::parallel(Operand::plain(a), Operand::plain(b), c, store(alpha, write));
}

pub(super) fn tn(a: Tensor<'_>, b: Tensor<'_>, c: TensorMut<'_>, alpha: f32, write: Write) {
    gemm::parallel(Operand::transposed(a), Operand::plain(b), c, store(alpha, write));
}

/// Every row of `b` is read once and multiplied with all rows of `a`.
fn few_rows<T: Widen>(
    a: Tensor<'_>,
    b: Tensor<'_>,
    bias: Option<Tensor<'_>>,
    c: TensorMut<'_>,
    alpha: f32,
    write: Write,
) {
    par_cols(
        c,
        FEW_ROWS_BLOCK,
        #[inline(always)]
        |first, mut c| {
            for j in 0..c.cols() {
                let weight = b.row::<T>(first + j);
                let shift = bias.map_or(0.0, |bias| bias.row::<f32>(0)[first + j]);
                for i in 0..c.rows() {
                    let y = alpha * dot(a.row(i), weight) + shift;
                    let to = &mut c.row::<f32>(i)[j];
                    *to = if write == Write::Accumulate { *to + y } else { y };
                }
            }
        },
    );
}

/// `Σ a·b` in 64 running sums: four vectors hide the latency of an addition.
#[inline(always)]
fn dot<T: Widen>(a: &[f32], b: &[T]) -> f32 {
    const WIDE: usize = 64;
    let mut sums = [0.0f32; WIDE];
    let (mut a, mut b) = (a.chunks_exact(WIDE), b.chunks_exact(WIDE));
    for (x, y) in (&mut a).zip(&mut b) {
        for l in 0..WIDE {
            sums[l] += x[l] * y[l].widen();
        }
    }
    for (l, (x, y)) in a.remainder().iter().zip(b.remainder()).enumerate() {
        sums[l] += x * y.widen();
    }
    let mut width = WIDE / 2;
    while width > 0 {
        for l in 0..width {
            sums[l] += sums[l + width];
        }
        width /= 2;
    }
    sums[0]
}
