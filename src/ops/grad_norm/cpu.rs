//! Gradient norm on the CPU, chunk by chunk.

use rayon::prelude::*;

use crate::device::cpu::simd;
use crate::ops::rows_per_chunk;

/// Sums kept side by side: two AVX-512 registers of f64.
const LANES: usize = 16;

pub(super) fn sum_of_squares(g: &[f32]) -> f64 {
    let chunks = g.par_chunks(rows_per_chunk(1));
    let partials: Vec<f64> = chunks
        .map(|g| {
            simd(
                #[inline(always)]
                || squares(g),
            )
        })
        .collect();
    partials.iter().sum()
}

pub(super) fn first_non_finite(g: &[f32]) -> Option<usize> {
    let size = rows_per_chunk(1);
    let bad = g.par_chunks(size).position_first(|g| {
        !simd(
            #[inline(always)]
            || finite(g),
        )
    })?;
    g[bad * size..].iter().position(|x| !x.is_finite()).map(|i| bad * size + i)
}

#[inline(always)]
fn squares(g: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (chunks, rest) = g.as_chunks::<LANES>();
    for g in chunks {
        for l in 0..LANES {
            let g = f64::from(g[l]);
            lanes[l] += g * g;
        }
    }
    for (lane, &g) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(g) * f64::from(g);
    }
    lanes.iter().sum()
}

#[inline(always)]
fn finite(g: &[f32]) -> bool {
    g.iter().fold(true, |ok, g| ok & g.is_finite())
}
