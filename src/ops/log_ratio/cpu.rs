//! The pass over a chunk of logits on the CPU, row by row, and the sums of branches.

use crate::device::cpu::par_rows;
use crate::ops::math::exp;
use crate::ops::reduce::{largest, sum};
use crate::tensor::{Tensor, TensorMut};

/// Elements of a row summed in f32 before the sum joins an f64 total: 128 additions per lane.
const SPAN: usize = 4096;

pub(super) fn log_probs(logits: TensorMut<'_>, targets: Tensor<'_>, log_probs: TensorMut<'_>) {
    par_rows(
        [logits, log_probs],
        1,
        #[inline(always)]
        |i, [mut z, mut log_prob]| {
            let target = targets.row::<u32>(i)[0] as usize;
            log_prob.row::<f32>(0)[0] = Softmax::of(z.row(0), target).log_prob;
        },
    );
}

pub(super) fn gradients(
    logits: TensorMut<'_>,
    targets: Tensor<'_>,
    factors: Option<Tensor<'_>>,
    log_probs: Option<TensorMut<'_>>,
) {
    let factor = |i: usize| factors.map_or(1.0, |factors| factors.row::<f32>(i)[0]);
    let Some(log_probs) = log_probs else {
        return par_rows(
            [logits],
            1,
            #[inline(always)]
            |i, [mut z]| {
                let target = targets.row::<u32>(i)[0] as usize;
                Softmax::of(z.row(0), target).gradient(z.row(0), target, factor(i));
            },
        );
    };
    par_rows(
        [logits, log_probs],
        1,
        #[inline(always)]
        |i, [mut z, mut log_prob]| {
            let target = targets.row::<u32>(i)[0] as usize;
            let row = Softmax::of(z.row(0), target);
            log_prob.row::<f32>(0)[0] = row.log_prob;
            row.gradient(z.row(0), target, factor(i));
        },
    );
}

pub(super) fn branch_sums(log_probs: Tensor<'_>, offsets: Tensor<'_>, mut sums: TensorMut<'_>) {
    for (b, branch) in offsets.row::<u32>(0).windows(2).enumerate() {
        let rows = branch[0] as usize..branch[1] as usize;
        let log_probs = rows.map(|r| f64::from(log_probs.row::<f32>(r)[0]));
        sums.row::<f64>(b)[0] = log_probs.fold(0.0, |sum, x| sum + x);
    }
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
    fn gradient(&self, z: &mut [f32], target: usize, factor: f32) {
        let scale = f64::from(factor) / (self.own + self.others);
        let negative = -scale as f32;
        z.iter_mut().for_each(|x| *x *= negative);
        z[target] = (self.others * scale) as f32;
    }
}
