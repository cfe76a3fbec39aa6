//! Layer normalisation on the CPU: mean, then variance about it, then the result, row by row.

use crate::device::cpu::par_rows;
use crate::ops::{Write, reduce, rows_per_chunk};
use crate::tensor::{Tensor, TensorMut};

pub(super) fn forward(
    x: Tensor<'_>,
    weight: Tensor<'_>,
    bias: Tensor<'_>,
    y: TensorMut<'_>,
    mean: TensorMut<'_>,
    rstd: TensorMut<'_>,
    eps: f32,
) {
    let (w, b, n) = (weight.row::<f32>(0), bias.row::<f32>(0), x.cols());
    par_rows(
        [y, mean, rstd],
        rows_per_chunk(n),
        #[inline(always)]
        |first, [mut y, mut mean, mut rstd]| {
            for i in 0..y.rows() {
                let (x, y) = (x.row::<f32>(first + i), y.row::<f32>(i));
                let mu = reduce::sum(x, |x| x) / n as f32;
                let variance = reduce::sum(x, |x| (x - mu) * (x - mu)) / n as f32;
                let r = 1.0 / (variance + eps).sqrt();
                mean.row::<f32>(i)[0] = mu;
                rstd.row::<f32>(i)[0] = r;
                for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
                    *y = (x - mu) * r * w + b;
                }
            }
        },
    );
}

pub(super) fn backward(
    x: Tensor<'_>,
    weight: Tensor<'_>,
    mean: Tensor<'_>,
    rstd: Tensor<'_>,
    dy: Tensor<'_>,
    dx: TensorMut<'_>,
    dweight: Option<TensorMut<'_>>,
    dbias: Option<TensorMut<'_>>,
    write: Write,
) {
    let (w, [rows, n]) = (weight.row::<f32>(0), x.shape());
    par_rows(
        [dx],
        rows_per_chunk(n),
        #[inline(always)]
        |first, [mut dx]| {
            for i in 0..dx.rows() {
                let (x, dy) = (x.row::<f32>(first + i), dy.row::<f32>(first + i));
                let (mu, r) = (mean.row::<f32>(first + i)[0], rstd.row::<f32>(first + i)[0]);
                let mean_g = reduce::sum2(dy, w, |dy, w| dy * w) / n as f32;
                let along = reduce::sum3(dy, w, x, |dy, w, x| dy * w * ((x - mu) * r)) / n as f32;
                let value = |dy: f32, w: f32, x: f32| r * (dy * w - mean_g - (x - mu) * r * along);
                let terms = dy.iter().zip(w).zip(x);
                let dx = dx.row::<f32>(i).iter_mut().zip(terms);
                match write {
                    Write::Overwrite => dx.for_each(|(d, ((dy, w), x))| *d = value(*dy, *w, *x)),
                    Write::Accumulate => dx.for_each(|(d, ((dy, w), x))| *d += value(*dy, *w, *x)),
                }
            }
        },
    );
    if let Some(dweight) = dweight {
        reduce::columns(
            dweight,
            rows,
            #[inline(always)]
            |i, first, sums| {
                let (mu, r) = (mean.row::<f32>(i)[0], rstd.row::<f32>(i)[0]);
                let (x, dy) = (&x.row::<f32>(i)[first..], &dy.row::<f32>(i)[first..]);
                for ((sum, x), dy) in sums.iter_mut().zip(x).zip(dy) {
                    *sum += dy * ((x - mu) * r);
                }
            },
        );
    }
    if let Some(dbias) = dbias {
        reduce::columns(
            dbias,
            rows,
            #[inline(always)]
            |i, first, sums| {
                let dy = &dy.row::<f32>(i)[first..];
                reduce::add(sums, dy);
            },
        );
    }
}
