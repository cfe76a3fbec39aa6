//! RMS normalisation on the CPU: one pass per row for the statistics, one for the result.

use crate::device::cpu::par_rows;
use crate::ops::{Write, reduce, rows_per_chunk};
use crate::tensor::{Tensor, TensorMut};

pub(super) fn forward(
    x: Tensor<'_>,
    weight: Tensor<'_>,
    y: TensorMut<'_>,
    rstd: TensorMut<'_>,
    eps: f32,
) {
    let (w, n) = (weight.row::<f32>(0), x.cols());
    par_rows(
        [y, rstd],
        rows_per_chunk(n),
        #[inline(always)]
        |first, [mut y, mut rstd]| {
            for i in 0..y.rows() {
                let (x, y) = (x.row::<f32>(first + i), y.row::<f32>(i));
                let r = 1.0 / (reduce::sum(x, |x| x * x) / n as f32 + eps).sqrt();
                rstd.row::<f32>(i)[0] = r;
                for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                    *y = x * r * w;
                }
            }
        },
    );
}

pub(super) fn backward(
    x: Tensor<'_>,
    weight: Tensor<'_>,
    rstd: Tensor<'_>,
    dy: Tensor<'_>,
    dx: TensorMut<'_>,
    dweight: Option<TensorMut<'_>>,
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
                let r = rstd.row::<f32>(first + i)[0];
                // r² · mean(g · x), r taken in first: x · r is of order one, x may not be
                let along = reduce::sum3(dy, w, x, |dy, w, x| dy * w * (x * r)) / n as f32;
                let value = |dy: f32, w: f32, x: f32| r * (dy * w - x * r * along);
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
                let r = rstd.row::<f32>(i)[0];
                let (x, dy) = (&x.row::<f32>(i)[first..], &dy.row::<f32>(i)[first..]);
                for ((sum, x), dy) in sums.iter_mut().zip(x).zip(dy) {
                    *sum += dy * (x * r);
                }
            },
        );
    }
}
