//! The fused log-ratio loss on the CPU: chunks of rows through two products and one pass.

use std::ops::Range;

use crate::device::cpu::par_rows;
use crate::error::Result;
use crate::ops::Write::{Accumulate, Overwrite};
use crate::ops::math::exp;
use crate::ops::matmul::{nn, nt, tn};
use crate::ops::reduce::{largest, sum};
use crate::tensor::{Tensor, TensorMut};

/// Elements of a row summed in f32 before the sum joins an f64 total: 128 additions per lane.
const SPAN: usize = 4096;

pub(super) fn forward(
    h: Tensor<'_>,
    head: Tensor<'_>,
    targets: Tensor<'_>,
    mut log_probs: TensorMut<'_>,
    mut dh: Option<TensorMut<'_>>,
    mut logits: TensorMut<'_>,
) -> Result<()> {
    for rows in chunks(h.rows(), logits.rows()) {
        let h = h.slice_rows(rows.clone());
        let mut z = logits.reborrow().slice_rows(0..rows.len());
        nt(h, head, None, z.reborrow(), 1.0, Overwrite)?;
        let outputs = [z.reborrow(), log_probs.reborrow().slice_rows(rows.clone())];
        let targets = targets.slice_rows(rows.clone());
        let with_gradient = dh.is_some();
        par_rows(
            outputs,
            1,
            #[inline(always)]
            |i, [mut z, mut log_prob]| {
                let target = targets.row::<u32>(i)[0] as usize;
                let row = Softmax::of(z.row(0), target);
                log_prob.row::<f32>(0)[0] = row.log_prob;
                if with_gradient {
                    row.unit_gradient(z.row(0), target, 1.0);
                }
            },
        );
        if let Some(dh) = &mut dh {
            nn(z.as_ref(), head, dh.reborrow().slice_rows(rows), 1.0, Overwrite)?;
        }
    }
    Ok(())
}

pub(super) fn backward_head(
    h: Tensor<'_>,
    head: Tensor<'_>,
    targets: Tensor<'_>,
    factors: Tensor<'_>,
    mut dhead: TensorMut<'_>,
    mut logits: TensorMut<'_>,
) -> Result<()> {
    for rows in chunks(h.rows(), logits.rows()) {
        let h = h.slice_rows(rows.clone());
        let mut z = logits.reborrow().slice_rows(0..rows.len());
        nt(h, head, None, z.reborrow(), 1.0, Overwrite)?;
        par_rows(
            [z.reborrow()],
            1,
            #[inline(always)]
            |i, [mut z]| {
                let target = targets.row::<u32>(rows.start + i)[0] as usize;
                let factor = factors.row::<f32>(rows.start + i)[0];
                Softmax::of(z.row(0), target).unit_gradient(z.row(0), target, factor);
            },
        );
        tn(z.as_ref(), h, dhead.reborrow(), 1.0, Accumulate)?;
    }
    Ok(())
}

fn chunks(rows: usize, at_once: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(at_once.max(1)).map(move |i| i..(i + at_once).min(rows))
}

/// What is known of a row after its logits became `e^(z - max z)`.
struct Softmax {
    log_prob: f32,
    /// `Σ_{v≠y}` of the exponentials.
    others: f64,
    /// The target's exponential.
    own: f64,
}

impl Softmax {
    /// Overwrites the logits `z` with `e^(z - max z)`. 3 reads and 1 write of the row.
    #[inline(always)]
    fn of(z: &mut [f32], target: usize) -> Self {
        let max = largest(z);
        let own_logit = z[target];
        let mut others = 0.0;
        for (i, span) in z.chunks_mut(SPAN).enumerate() {
            span.iter_mut().for_each(|x| *x = exp(*x - max));
            if target / SPAN == i {
                let kept = std::mem::take(&mut span[target % SPAN]);
                others += f64::from(sum(span, |x| x));
                span[target % SPAN] = kept;
            } else {
                others += f64::from(sum(span, |x| x));
            }
        }
        let own = f64::from(z[target]);
        let log_prob = f64::from(own_logit) - f64::from(max) - (own + others).ln();
        Softmax { log_prob: log_prob as f32, others, own }
    }

    /// Overwrites the exponentials with `factor · ([v = y] - p_v)`.
    #[inline(always)]
    fn unit_gradient(&self, z: &mut [f32], target: usize, factor: f32) {
        let scale = f64::from(factor) / (self.own + self.others);
        let negative = -scale as f32;
        z.iter_mut().for_each(|x| *x *= negative);
        z[target] = (self.others * scale) as f32;
    }
}
