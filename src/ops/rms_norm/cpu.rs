//! RMS normalisation on the CPU: one pass per row for the statistics, one for the result.

use super::Residual;
use crate::device::cpu::par_rows;
use crate::ops::{Write, reduce, rows_per_chunk};
use crate::tensor::{Tensor, TensorMut};

pub(super) fn forward(
    x: Tensor<'_>,
    residual: Option<Residual<'_>>,
    weight: Tensor<'_>,
    y: TensorMut<'_>,
    rstd: TensorMut<'_>,
    eps: f32,
) {
    let Some(Residual { add, mut h }) = residual else {
        return normalise(x, weight, y, rstd, eps);
    };
    par_rows(
        [h.reborrow()],
        rows_per_chunk(x.cols()),
        #[inline(always)]
        |first, [mut h]| {
            for i in 0..h.rows() {
                let terms = x.row::<f32>(first + i).iter().zip(add.row::<f32>(first + i));
                h.row(i).iter_mut().zip(terms).for_each(|(h, (x, add))| *h = x + add);
            }
        },
    );
    normalise(h.as_ref(), weight, y, rstd, eps);
}

fn normalise(x: Tensor<'_>, weight: Tensor<'_>, y: TensorMut<'_>, rstd: TensorMut<'_>, eps: f32) {
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
    h: Tensor<'_>,
    weight: Tensor<'_>,
    rstd: Tensor<'_>,
    dy: Tensor<'_>,
    dh: TensorMut<'_>,
    dweight: Option<TensorMut<'_>>,
    write: Write,
) {
    let (w, [rows, n]) = (weight.row::<f32>(0), h.shape());
    par_rows(
        [dh],
        rows_per_chunk(n),
        #[inline(always)]
        |first, [mut dh]| {
            for i in 0..dh.rows() {
                let (h, dy) = (h.row::<f32>(first + i), dy.row::<f32>(first + i));
                let r = rstd.row::<f32>(first + i)[0];
                // r · mean(g · h), r taken in first: h · r is of order one, h may not be
                let along = reduce::sum3(dy, w, h, |dy, w, h| dy * w * (h * r)) / n as f32;
                let value = |dy: f32, w: f32, h: f32| r * (dy * w - h * r * along);
                let terms = dy.iter().zip(w).zip(h);
                let dh = dh.row::<f32>(i).iter_mut().zip(terms);
                match write {
                    Write::Overwrite => dh.for_each(|(d, ((dy, w), h))| *d = value(*dy, *w, *h)),
                    Write::Accumulate => dh.for_each(|(d, ((dy, w), h))| *d += value(*dy, *w, *h)),
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
                let (h, dy) = (&h.row::<f32>(i)[first..], &dy.row::<f32>(i)[first..]);
                for ((sum, h), dy) in sums.iter_mut().zip(h).zip(dy) {
                    *sum += dy * (h * r);
                }
            },
        );
    }
}
