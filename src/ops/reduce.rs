//! Sums in a fixed order that vectorises: the same bytes for any number of threads, and the same
//! shape of loop in every op. Loops vectorise inside [`crate::device::cpu::simd`].

use std::ops::AddAssign;

use crate::device::cpu;
use crate::tensor::TensorMut;

/// Partial sums kept side by side, so that additions of one sum do not wait for each other.
const LANES: usize = 32;

/// Columns one task sums: 1 KiB of a row at a time.
pub(crate) const COLS_PER_TASK: usize = 256;

/// Rows summed before the partial sum joins the total: keeps f32 rounding near that of a tree.
const ROWS_PER_PARTIAL: usize = 64;

/// `Σ term(x)`
#[inline(always)]
pub(crate) fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for x in chunks {
        for l in 0..LANES {
            lanes[l] += term(x[l]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += term(x);
    }
    fold(lanes)
}

/// `Σ term(x, y)` over slices of one length.
#[inline(always)]
pub(crate) fn sum2(x: &[f32], y: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in xs.iter().zip(ys) {
        for l in 0..LANES {
            lanes[l] += term(x[l], y[l]);
        }
    }
    for (lane, (&x, &y)) in lanes.iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *lane += term(x, y);
    }
    fold(lanes)
}

/// `Σ term(x, y, z)` over slices of one length.
#[inline(always)]
pub(crate) fn sum3(x: &[f32], y: &[f32], z: &[f32], term: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let (zs, z_rest) = z.as_chunks::<LANES>();
    for ((x, y), z) in xs.iter().zip(ys).zip(zs) {
        for l in 0..LANES {
            lanes[l] += term(x[l], y[l], z[l]);
        }
    }
    for (lane, ((&x, &y), &z)) in lanes.iter_mut().zip(x_rest.iter().zip(y_rest).zip(z_rest)) {
        *lane += term(x, y, z);
    }
    fold(lanes)
}

/// Adds the lanes by halves: lane `l` and lane `l + N / 2`, and so on. `N` is a power of two.
#[inline(always)]
pub(crate) fn fold<T: Copy + AddAssign, const N: usize>(mut lanes: [T; N]) -> T {
    let mut width = N / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `out[j] += Σ_i term_i[j]` over `rows` rows, in row order, columns in parallel.
///
/// `add_row(i, first, sums)` adds row `i`'s terms of the columns from `first` on to `sums`.
/// `out` is one row: the gradient of a weight or bias.
#[inline(always)]
pub(crate) fn columns(
    out: TensorMut<'_>,
    rows: usize,
    add_row: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    cpu::par_cols(
        out,
        COLS_PER_TASK,
        #[inline(always)]
        |first, mut out| {
            let cols = out.cols();
            let mut total = [0.0f32; COLS_PER_TASK];
            for start in (0..rows).step_by(ROWS_PER_PARTIAL) {
                let mut partial = [0.0f32; COLS_PER_TASK];
                for i in start..(start + ROWS_PER_PARTIAL).min(rows) {
                    add_row(i, first, &mut partial[..cols]);
                }
                for (t, p) in total.iter_mut().zip(&partial) {
                    *t += p;
                }
            }
            for (o, t) in out.row::<f32>(0).iter_mut().zip(&total) {
                *o += t;
            }
        },
    );
}

/// `y += x`
#[inline(always)]
pub(crate) fn add(y: &mut [f32], x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
}

/// `y += factor · x`
#[inline(always)]
pub(crate) fn add_scaled(y: &mut [f32], x: &[f32], factor: f32) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * x);
}

/// The largest element; `-inf` of none. NaN elements do not count.
#[inline(always)]
pub(crate) fn largest(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for x in chunks {
        for l in 0..LANES {
            lanes[l] = if x[l] > lanes[l] { x[l] } else { lanes[l] };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = if x > *lane { x } else { *lane };
    }
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] = if lanes[l + width] > lanes[l] { lanes[l + width] } else { lanes[l] };
        }
        width /= 2;
    }
    lanes[0]
}
