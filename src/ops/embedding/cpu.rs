//! Embedding on the CPU: rows widened to f32 on the way out, summed by columns on the way back.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::device::cpu::{par_cols, par_rows};
use crate::ops::rows::segments;
use crate::ops::{reduce, rows_per_chunk};
use crate::tensor::{DType, Tensor, TensorMut};

pub(super) fn forward(
    source: Tensor<'_>,
    table: Tensor<'_>,
    features: Tensor<'_>,
    x: TensorMut<'_>,
) {
    let vocab = table.rows();
    par_rows(
        [x],
        rows_per_chunk(table.cols()),
        #[inline(always)]
        |first, [mut x]| {
            for i in 0..x.rows() {
                let source = source.row::<u32>(first + i)[0] as usize;
                let x = x.row::<f32>(i);
                match table.dtype() {
                    _ if source >= vocab => x.copy_from_slice(features.row(source - vocab)),
                    DType::Bf16 => table.row::<bf16>(source).convert_to_f32_slice(x),
                    DType::F16 => table.row::<f16>(source).convert_to_f32_slice(x),
                    _ => x.copy_from_slice(table.row(source)),
                }
            }
        },
    );
}

pub(super) fn backward(
    inverse: Tensor<'_>,
    dx: Tensor<'_>,
    dtable: Option<TensorMut<'_>>,
    dfeatures: TensorMut<'_>,
    vocab: usize,
) {
    if let Some(dtable) = dtable {
        par_cols(
            dtable,
            reduce::COLS_PER_TASK,
            #[inline(always)]
            |first, mut dtable| {
                let cols = first..first + dtable.cols();
                for (row, tokens) in segments(inverse).take_while(|(row, _)| *row < vocab) {
                    for &t in tokens {
                        reduce::add(dtable.row(row), &dx.row(t as usize)[cols.clone()]);
                    }
                }
            },
        );
    }
    par_cols(
        dfeatures,
        reduce::COLS_PER_TASK,
        #[inline(always)]
        |first, mut dfeatures| {
            let cols = first..first + dfeatures.cols();
            for (row, tokens) in segments(inverse).skip_while(|(row, _)| *row < vocab) {
                let sum = dfeatures.row::<f32>(row - vocab);
                sum.copy_from_slice(&dx.row(tokens[0] as usize)[cols.clone()]);
                for &t in &tokens[1..] {
                    reduce::add(sum, &dx.row(t as usize)[cols.clone()]);
                }
            }
        },
    );
}
