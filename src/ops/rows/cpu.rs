//! Rows on the CPU. Scatters run in parallel over columns: every task walks all segments.

use super::inverse;
use crate::device::cpu::{par_cols, par_rows};
use crate::ops::{reduce, rows_per_chunk};
use crate::tensor::{Tensor, TensorMut};

pub(super) fn gather(src: Tensor<'_>, index: Tensor<'_>, dst: TensorMut<'_>) {
    par_rows([dst], rows_per_chunk(src.cols()), |first, [mut dst]| {
        for i in 0..dst.rows() {
            let from = index.row::<u32>(first + i)[0] as usize;
            dst.row::<f32>(i).copy_from_slice(src.row::<f32>(from));
        }
    });
}

pub(super) fn scatter(src: Tensor<'_>, inverse: Tensor<'_>, dst: TensorMut<'_>) {
    par_cols(dst, reduce::COLS_PER_TASK, |first, mut dst| {
        let cols = first..first + dst.cols();
        for (to, sources) in inverse::segments(inverse) {
            let last = sources[sources.len() - 1] as usize;
            dst.row::<f32>(to).copy_from_slice(&src.row::<f32>(last)[cols.clone()]);
        }
    });
}

pub(super) fn scatter_add(src: Tensor<'_>, inverse: Tensor<'_>, dst: TensorMut<'_>) {
    par_cols(
        dst,
        reduce::COLS_PER_TASK,
        #[inline(always)]
        |first, mut dst| {
            let cols = first..first + dst.cols();
            for (to, sources) in inverse::segments(inverse) {
                for &from in sources {
                    reduce::add(dst.row(to), &src.row::<f32>(from as usize)[cols.clone()]);
                }
            }
        },
    );
}

pub(super) fn scale(x: TensorMut<'_>, factors: Tensor<'_>) {
    let chunk = rows_per_chunk(x.cols());
    par_rows(
        [x],
        chunk,
        #[inline(always)]
        |first, [mut x]| {
            for i in 0..x.rows() {
                let factor = factors.row::<f32>(first + i)[0];
                x.row::<f32>(i).iter_mut().for_each(|x| *x *= factor);
            }
        },
    );
}

pub(super) fn copy(x: Tensor<'_>, y: TensorMut<'_>) {
    par_rows([y], rows_per_chunk(x.cols()), |first, [mut y]| {
        for i in 0..y.rows() {
            y.row::<f32>(i).copy_from_slice(x.row(first + i));
        }
    });
}

pub(super) fn add(x: Tensor<'_>, y: TensorMut<'_>) {
    par_rows(
        [y],
        rows_per_chunk(x.cols()),
        #[inline(always)]
        |first, [mut y]| {
            for i in 0..y.rows() {
                reduce::add(y.row::<f32>(i), x.row::<f32>(first + i));
            }
        },
    );
}

pub(super) fn add_cycled(x: Tensor<'_>, y: TensorMut<'_>) {
    par_rows(
        [y],
        rows_per_chunk(x.cols()),
        #[inline(always)]
        |first, [mut y]| {
            for i in 0..y.rows() {
                reduce::add(y.row::<f32>(i), x.row::<f32>((first + i) % x.rows()));
            }
        },
    );
}

pub(super) fn add_cycled_backward(dy: Tensor<'_>, dx: TensorMut<'_>) {
    let period = dx.rows();
    par_rows(
        [dx],
        rows_per_chunk(dy.cols()),
        #[inline(always)]
        |first, [mut dx]| {
            for p in 0..dx.rows() {
                for i in (first + p..dy.rows()).step_by(period) {
                    reduce::add(dx.row::<f32>(p), dy.row::<f32>(i));
                }
            }
        },
    );
}
