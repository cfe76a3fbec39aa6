//! Bicubic resize on the CPU: sixteen weighted rows per row of the larger side.

use crate::device::cpu::{par_cols, par_rows};
use crate::ops::{reduce, rows_per_chunk};
use crate::tensor::{Tensor, TensorMut};

pub(super) fn forward(src: Tensor<'_>, dst: TensorMut<'_>, from: usize, to: usize) {
    par_rows(
        [dst],
        rows_per_chunk(16 * src.cols()),
        #[inline(always)]
        |first, [mut dst]| {
            for i in 0..dst.rows() {
                dst.row::<f32>(i).fill(0.0);
                neighbours(first + i, from, to, |row, weight| {
                    reduce::add_scaled(dst.row::<f32>(i), src.row::<f32>(row), weight);
                });
            }
        },
    );
}

pub(super) fn backward(ddst: Tensor<'_>, dsrc: TensorMut<'_>, from: usize, to: usize) {
    par_cols(
        dsrc,
        reduce::COLS_PER_TASK,
        #[inline(always)]
        |first, mut dsrc| {
            let cols = first..first + dsrc.cols();
            for i in 0..ddst.rows() {
                let ddst = &ddst.row::<f32>(i)[cols.clone()];
                neighbours(i, from, to, |row, weight| {
                    reduce::add_scaled(dsrc.row::<f32>(row), ddst, weight);
                });
            }
        },
    );
}

/// Calls `visit(source row, weight)` for every source that row `i` of the result is made of.
#[inline(always)]
fn neighbours(i: usize, from: usize, to: usize, mut visit: impl FnMut(usize, f32)) {
    if from == to {
        return visit(i, 1.0);
    }
    for (y, weight_y) in taps(i / to, from, to) {
        for (x, weight_x) in taps(i % to, from, to) {
            visit(y * from + x, (weight_y * weight_x) as f32);
        }
    }
}

/// Along one axis: the four sources of position `i`, clamped, and their weights.
fn taps(i: usize, from: usize, to: usize) -> [(usize, f64); 4] {
    let centre = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
    let left = centre.floor();
    std::array::from_fn(|k| {
        let place = left + k as f64 - 1.0;
        let row = place.clamp(0.0, (from - 1) as f64) as usize;
        (row, cubic((centre - place).abs()))
    })
}

/// Keys' cubic at distance `x`, `a = -0.75`.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.75;
    if x <= 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}
