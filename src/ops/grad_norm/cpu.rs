//! Gradient norm on the CPU, chunk by chunk.

use rayon::prelude::*;

use super::{CHUNK, PIECE, Step, Verdict};
use crate::device::cpu::{par_cols, simd};
use crate::ops::reduce::fold;
use crate::tensor::{Tensor, TensorMut};

/// Sums kept side by side: they fit the registers of AVX-512, and are what a warp keeps.
const LANES: usize = 128;
/// Threads of the block that adds the chunks' sums, and of a warp.
const THREADS: usize = 256;
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
            let mut sum = 0.0;
            for piece in g[..g.len().min(CHUNK)].chunks(PIECE) {
                sum += squares(piece);
            }
            partial.row::<f64>(0)[0] = sum;
        },
    );
    let sum = total(partials.row(0));
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

/// `Σ g²` of a piece.
#[inline(always)]
fn squares(g: &[f32]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = g.as_chunks::<LANES>();
    for g in chunks {
        for l in 0..LANES {
            lanes[l] += f64::from(g[l]) * f64::from(g[l]);
        }
    }
    for (lane, &g) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(g) * f64::from(g);
    }
    fold(lanes)
}

/// The sum of the chunks' sums.
fn total(partials: &[f64]) -> f64 {
    let mut threads = [0.0; THREADS];
    for partials in partials.chunks(THREADS) {
        threads.iter_mut().zip(partials).for_each(|(sum, partial)| *sum += partial);
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
