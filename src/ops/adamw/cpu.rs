//! AdamW on the CPU: one pass over the four arrays.

use super::AdamW;
use crate::device::cpu::par_rows;
use crate::ops::rows_per_chunk;
use crate::tensor::TensorMut;

pub(super) fn step(
    p: &mut [f32],
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    grad_scale: f32,
    config: &AdamW,
) {
    let AdamW { lr, beta1, beta2, eps, weight_decay, step } = *config;
    let correction = |beta: f64| 1.0 - beta.powf(step as f64);
    let keep = (1.0 - lr * weight_decay) as f32;
    let pull = (1.0 - beta1) as f32;
    let (decay, fresh) = (beta2 as f32, (1.0 - beta2) as f32);
    let size = -(lr / correction(beta1)) as f32;
    let (root, eps) = (correction(beta2).sqrt() as f32, eps as f32);
    par_rows(
        [TensorMut::column(p), TensorMut::column(m), TensorMut::column(v)],
        rows_per_chunk(1),
        #[inline(always)]
        |first, [mut p, mut m, mut v]| {
            let (p, m, v) = (p.elements::<f32>(), m.elements::<f32>(), v.elements::<f32>());
            let elements = p.iter_mut().zip(&g[first..]).zip(m).zip(v);
            for (((p, g), m), v) in elements {
                let g = g * grad_scale;
                *m += pull * (g - *m);
                *v = *v * decay + fresh * g * g;
                *p = *p * keep + size * *m / (v.sqrt() / root + eps);
            }
        },
    );
}
