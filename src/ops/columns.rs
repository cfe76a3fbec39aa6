//! What launches of kernels share whose threads keep to their columns, row after row:
//! `kernels/common/columns.cuh`.

use crate::device::cuda::{Grid, KernelName};
use crate::tensor::{DType, Tensor, TensorMut};

/// In f32 and in bf16.
pub(crate) type Kernels = [KernelName; 2];

/// Columns of a row that the threads of a block hold between them; what is beyond is read again.
const HELD: usize = 4096;

/// Threads of a warp.
const WARP: usize = 32;

/// The kernel for activations of this type.
pub(crate) fn of(dtype: DType, [f32, bf16]: &Kernels) -> &KernelName {
    if dtype == DType::Bf16 { bf16 } else { f32 }
}

/// A block for every `chunk` rows of `x`, a thread for every pack of 16 bytes of a row.
pub(crate) fn grid(x: Tensor<'_>, chunk: usize) -> Grid {
    let pack = 16 / x.dtype().size();
    let threads = x.cols().clamp(1, HELD).div_ceil(pack).next_multiple_of(WARP);
    Grid::new([x.rows().div_ceil(chunk) as u32, 1, 1], threads as u32)
}

/// The first elements of `scratch`, one row, as `[rows, cols]`.
pub(crate) fn in_rows(scratch: TensorMut<'_>, rows: usize, cols: usize) -> TensorMut<'_> {
    scratch.slice_cols(0..rows * cols).reshape(rows, cols)
}
