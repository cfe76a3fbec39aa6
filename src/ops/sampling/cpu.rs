//! Sampling on the CPU: the weight that a mass falls on is found digit by digit, without a sort.

use super::Nucleus;
use crate::device::cpu::par_rows;
use crate::ops::{math, rows_per_chunk};
use crate::tensor::{Tensor, TensorMut};

/// Mass of weight 1: the smallest that has any is 2^-44 of the largest.
const UNIT: f32 = (1u64 << 44) as f32;

/// Bits of a weight found at a time, and their values.
const BITS: u32 = 11;
const DIGITS: usize = 1 << BITS;

pub(super) fn greedy(logits: Tensor<'_>, token: TensorMut<'_>) {
    par_rows([token], rows_per_chunk(logits.cols()), |first, [mut token]| {
        for i in 0..token.rows() {
            (_, token.row::<u32>(i)[0]) = best(logits.row(first + i));
        }
    });
}

pub(super) fn nucleus(
    logits: Tensor<'_>,
    nucleus: Tensor<'_>,
    uniform: Tensor<'_>,
    weights: TensorMut<'_>,
    token: TensorMut<'_>,
) {
    let nucleus = bytemuck::cast_slice::<f32, Nucleus>(nucleus.row(0))[0];
    par_rows(
        [weights, token],
        1,
        #[inline(always)]
        |i, [mut weights, mut token]| {
            let (logits, weights) = (logits.row::<f32>(i), weights.row::<f32>(0));
            let (largest, _) = best(logits);
            for (w, x) in weights.iter_mut().zip(logits) {
                *w = weigh(*x, largest, nucleus.temperature);
            }
            token.row::<u32>(0)[0] = choose(weights, nucleus.top_p, uniform.row::<f64>(i)[0]);
        },
    );
}

/// The largest logit and its token, of equals the first; `(-inf, 0)` where none is above -inf.
fn best(logits: &[f32]) -> (f32, u32) {
    logits.iter().zip(0..).fold(
        (f32::NEG_INFINITY, 0),
        |best, (&x, token)| {
            if x > best.0 { (x, token) } else { best }
        },
    )
}

/// At most 1; the largest weighs 1, -inf and NaN nothing.
#[inline(always)]
fn weigh(x: f32, largest: f32, temperature: f32) -> f32 {
    let below = (x - largest) / temperature;
    let weight = if below <= 0.0 { math::exp(below) } else { 0.0 };
    let most = if x > f32::NEG_INFINITY { 1.0 } else { 0.0 };
    if x == largest { most } else { weight }
}

fn mass(weight: f32) -> u64 {
    (weight * UNIT) as u64
}

fn choose(weights: &[f32], top_p: f32, uniform: f64) -> u32 {
    let total: u64 = weights.iter().map(|&w| mass(w)).sum();
    if total == 0 {
        return 0;
    }
    let part = (f64::from(top_p) * total as f64).ceil() as u64;
    let last = find(weights, part.saturating_sub(1).min(total - 1));
    let kept = last.before + (last.equals_before() + 1) * mass(last.weight);
    let part = (uniform * kept as f64) as u64;
    let drawn = find(weights, part.min(kept - 1));
    let equals = weights.iter().zip(0..).filter(|(w, _)| w.to_bits() == drawn.weight.to_bits());
    equals.map(|(_, token)| token).nth(drawn.equals_before() as usize).unwrap_or(0)
}

/// Where a mass falls: on tokens of this weight.
struct Found {
    weight: f32,
    /// Mass of all tokens of larger weights.
    before: u64,
    target: u64,
}

impl Found {
    /// Tokens of this weight that come before the one on which the mass falls.
    fn equals_before(&self) -> u64 {
        (self.target - self.before) / mass(self.weight)
    }
}

/// Weights fall. Finds those on which the mass so far exceeds `target`, less than their total.
fn find(weights: &[f32], target: u64) -> Found {
    let (mut bits, mut before) = (0u32, 0);
    for shift in [2 * BITS, BITS, 0] {
        let mut sums = [0u64; DIGITS];
        for &w in weights {
            let key = w.to_bits();
            // not of the digits found so far
            if u64::from(key ^ bits) >> (shift + BITS) != 0 {
                continue;
            }
            sums[(key >> shift) as usize % DIGITS] += mass(w);
        }
        let mut digit = DIGITS - 1;
        while before + sums[digit] <= target {
            before += sums[digit];
            digit -= 1;
        }
        bits |= (digit as u32) << shift;
    }
    Found { weight: f32::from_bits(bits), before, target }
}
