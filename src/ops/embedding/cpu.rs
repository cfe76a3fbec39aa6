//! Embedding on the CPU: rows widened to f32 on the way out, summed by columns on the way back.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::device::cpu::par_rows;
use crate::ops::{reduce, rows_per_chunk};
use crate::tensor::{DType, Tensor, TensorMut};

pub(super) fn forward(ids: Tensor<'_>, table: Tensor<'_>, x: TensorMut<'_>) {
    par_rows(
        [x],
        rows_per_chunk(table.cols()),
        #[inline(always)]
        |first, [mut x]| {
            for i in 0..x.rows() {
                let id = ids.row::<u32>(first + i)[0] as usize;
                let x = x.row::<f32>(i);
                match table.dtype() {
                    DType::Bf16 => table.row::<bf16>(id).convert_to_f32_slice(x),
                    DType::F16 => table.row::<f16>(id).convert_to_f32_slice(x),
                    _ => x.copy_from_slice(table.row::<f32>(id)),
                }
            }
        },
    );
}

pub(super) fn backward(ids: Tensor<'_>, dx: Tensor<'_>, dtable: TensorMut<'_>) {
    reduce::add_rows_at(ids, dx, dtable);
}
