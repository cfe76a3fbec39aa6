//! AdamW on the CPU: one pass over the four arrays, chunk by chunk.

use half::bf16;

use super::{AdamW, Chunk, Table};
use crate::device::cpu::par_tasks;
use crate::ops::grad_norm::{Step, Verdict};
use crate::tensor::{Tensor, TensorMut};

pub(super) fn step(
    g: Tensor<'_>,
    step: Tensor<'_>,
    verdict: Tensor<'_>,
    table: &Table,
    p: TensorMut<'_>,
    m: TensorMut<'_>,
    v: TensorMut<'_>,
    copy: Option<TensorMut<'_>>,
    config: &AdamW,
) {
    let step = bytemuck::cast_slice::<f64, Step>(step.row(0))[0];
    let verdict = bytemuck::cast_slice::<f64, Verdict>(verdict.row(0))[0];
    if verdict.finite == 0.0 {
        return;
    }
    let (g, chunks) = (g.row::<f32>(0), table.chunks.view());
    let chunks = bytemuck::cast_slice::<u8, Chunk>(chunks.elements());
    par_tasks(
        chunks.len(),
        #[inline(always)]
        |i| {
            let chunk = &chunks[i];
            let s = Scalars::new(&step, &verdict, chunk, config);
            let range = chunk.first as usize..(chunk.first + chunk.count) as usize;
            // SAFETY: the buffers are exclusively ours, and `Table::new` made the chunks disjoint.
            let alias = |t| unsafe { TensorMut::alias_cols(t, range.clone()) };
            let [mut p, mut m, mut v] = [&p, &m, &v].map(alias);
            let p = p.row::<f32>(0);
            let elements =
                p.iter_mut().zip(&g[range.clone()]).zip(m.row::<f32>(0)).zip(v.row::<f32>(0));
            for (((p, g), m), v) in elements {
                let g = g * s.grad_scale;
                *m += s.pull * (g - *m);
                *v = *v * s.decay + s.fresh * g * g;
                *p = *p * s.keep + s.size * *m / (v.sqrt() / s.root + s.eps);
            }
            if let Some(copy) = &copy {
                alias(copy)
                    .row::<bf16>(0)
                    .iter_mut()
                    .zip(p)
                    .for_each(|(copy, p)| *copy = bf16::from_f32(*p));
            }
        },
    );
}

/// What is the same for all elements of a chunk; as in `kernels/adamw.cu`, bit by bit.
struct Scalars {
    grad_scale: f32,
    pull: f32,  // 1 − β₁
    decay: f32, // β₂
    fresh: f32, // 1 − β₂
    keep: f32,  // 1 − lr · wd
    size: f32,  // −lr / (1 − β₁ᵗ)
    root: f32,  // sqrt(1 − β₂ᵗ)
    eps: f32,
}

impl Scalars {
    fn new(step: &Step, verdict: &Verdict, chunk: &Chunk, config: &AdamW) -> Scalars {
        let AdamW { beta1, beta2, eps } = *config;
        let lr = step.lr * chunk.lr_scale;
        let correction = |beta: f64| 1.0 - power(beta, verdict.updates as u64);
        Scalars {
            grad_scale: verdict.scale as f32,
            pull: (1.0 - beta1) as f32,
            decay: beta2 as f32,
            fresh: (1.0 - beta2) as f32,
            keep: (1.0 - lr * chunk.weight_decay) as f32,
            size: -((lr / correction(beta1)) as f32),
            root: correction(beta2).sqrt() as f32,
            eps: eps as f32,
        }
    }
}

/// `base^n` by squaring: a library's `pow` differs between the CPU and CUDA.
fn power(mut base: f64, mut n: u64) -> f64 {
    let mut result = 1.0;
    while n > 0 {
        if n % 2 == 1 {
            result *= base;
        }
        base *= base;
        n /= 2;
    }
    result
}
