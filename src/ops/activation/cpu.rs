//! Activations on the CPU: one formula per element, exp and erf from [`math`].

use std::f32::consts::FRAC_1_SQRT_2;

use crate::device::cpu::par_rows;
use crate::ops::{math, rows_per_chunk};
use crate::tensor::{Tensor, TensorMut};

/// `1 / sqrt(2π)`, the height of the normal density.
const DENSITY: f32 = 0.398_942_3;

pub(super) fn gelu(x: Tensor<'_>, y: TensorMut<'_>) {
    par_rows(
        [y],
        rows_per_chunk(x.cols()),
        #[inline(always)]
        |first, [mut y]| {
            for i in 0..y.rows() {
                for (y, x) in y.row::<f32>(i).iter_mut().zip(x.row::<f32>(first + i)) {
                    *y = x * normal(*x);
                }
            }
        },
    );
}

pub(super) fn gelu_backward(x: Tensor<'_>, dy: Tensor<'_>, dx: TensorMut<'_>) {
    par_rows(
        [dx],
        rows_per_chunk(x.cols()),
        #[inline(always)]
        |first, [mut dx]| {
            for i in 0..dx.rows() {
                let inputs = x.row::<f32>(first + i).iter().zip(dy.row::<f32>(first + i));
                for (dx, (x, dy)) in dx.row::<f32>(i).iter_mut().zip(inputs) {
                    let slope = normal(*x) + x * (DENSITY * math::exp(-0.5 * (x * x)));
                    *dx = dy * slope;
                }
            }
        },
    );
}

pub(super) fn swiglu(a: Tensor<'_>, b: Tensor<'_>, s: TensorMut<'_>) {
    par_rows(
        [s],
        rows_per_chunk(a.cols()),
        #[inline(always)]
        |first, [mut s]| {
            for i in 0..s.rows() {
                let inputs = a.row::<f32>(first + i).iter().zip(b.row::<f32>(first + i));
                for (s, (a, b)) in s.row::<f32>(i).iter_mut().zip(inputs) {
                    *s = a * (b * sigmoid(*b));
                }
            }
        },
    );
}

pub(super) fn swiglu_backward(
    a: Tensor<'_>,
    b: Tensor<'_>,
    ds: Tensor<'_>,
    da: TensorMut<'_>,
    db: TensorMut<'_>,
) {
    par_rows(
        [da, db],
        rows_per_chunk(a.cols()),
        #[inline(always)]
        |first, [mut da, mut db]| {
            for i in 0..da.rows() {
                let inputs = a.row::<f32>(first + i).iter().zip(b.row::<f32>(first + i));
                let inputs = inputs.zip(ds.row::<f32>(first + i));
                let outputs = da.row::<f32>(i).iter_mut().zip(db.row::<f32>(i));
                for ((da, db), ((a, b), ds)) in outputs.zip(inputs) {
                    let gate = sigmoid(*b);
                    *da = ds * (b * gate);
                    *db = ds * (a * (gate * (1.0 + b * (1.0 - gate))));
                }
            }
        },
    );
}

/// `Φ(x)`: the share of a normal distribution below `x`.
#[inline(always)]
fn normal(x: f32) -> f32 {
    0.5 * (1.0 + math::erf(x * FRAC_1_SQRT_2))
}

/// `σ(x) = 1 / (1 + e^-x)`
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + math::exp(-x))
}
