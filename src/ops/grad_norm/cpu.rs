//! Gradient norm on the CPU, chunk by chunk.

use rayon::prelude::*;

use super::{CHUNK, Step, Verdict};
use crate::device::cpu::{par_cols, simd};
use crate::ops::reduce::fold;
use crate::tensor::{Tensor, TensorMut};

/// Sums kept side by side, as the kernel's threads keep them: each has `PER_THREAD`, a warp is
/// `WARP` threads.
const LANES: usize = 1024;
const PER_THREAD: usize = 4;
const WARP: usize = 32;

pub(super) fn forward(
    g: Tensor<'_>,
    step: Tensor<'_>,
    mut partials: TensorMut<'_>,
    mut verdict: TensorMut<'_>,
    most: f64,
) {
    let g = g.row::<f32>(0);
    par_cols(
        partials.reborrow(),
        1,
        #[inline(always)]
        |chunk, mut partial| {
            let g = &g[chunk * CHUNK..];
            let square = |g: f32| f64::from(g) * f64::from(g);
            partial.row::<f64>(0)[0] = sum_in_order(&g[..g.len().min(CHUNK)], square);
        },
    );
    let sum = sum_in_order(partials.row::<f64>(0), |sum| sum);
    let step = bytemuck::cast_slice::<f64, Step>(step.row(0))[0];
    judge(sum, &step, &mut bytemuck::cast_slice_mut::<f64, Verdict>(verdict.row(0))[0], most);
}

fn judge(sum: f64, step: &Step, verdict: &mut Verdict, most: f64) {
    let norm = sum.sqrt() * step.scale;
    let clip = if most > 0.0 { (most / (norm + 1e-6)).min(1.0) } else { 1.0 };
    verdict.norm = norm;
    if sum.is_finite() && step.loss.is_finite() {
        (verdict.scale, verdict.finite) = (step.scale * clip, 1.0);
        verdict.updates += 1.0;
    } else {
        (verdict.scale, verdict.finite) = (0.0, 0.0);
        verdict.skipped += 1.0;
    }
}

/// `Σ term(x)`, in the order that `kernels/grad_norm.cu` tells.
#[inline(always)]
fn sum_in_order<T: Copy>(x: &[T], term: impl Fn(T) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let (rounds, rest) = x.as_chunks::<LANES>();
    for x in rounds {
        for l in 0..LANES {
            lanes[l] += term(x[l]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += term(x);
    }
    let mut threads = [0.0; LANES / PER_THREAD];
    for (thread, [a, b, c, d]) in threads.iter_mut().zip(lanes.as_chunks::<PER_THREAD>().0) {
        *thread = (a + b) + (c + d);
    }
    threads.as_chunks::<WARP>().0.iter().fold(0.0, |sum, warp| sum + fold(*warp))
}

pub(super) fn first_non_finite(g: &[f32]) -> Option<usize> {
    let bad = g.par_chunks(CHUNK).position_first(|g| {
        !simd(
            #[inline(always)]
            || finite(g),
        )
    })?;
    g[bad * CHUNK..].iter().position(|x| !x.is_finite()).map(|i| bad * CHUNK + i)
}

#[inline(always)]
fn finite(g: &[f32]) -> bool {
    g.iter().fold(true, |ok, g| ok & g.is_finite())
}
