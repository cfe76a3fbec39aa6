//! Pillow 10.1's bicubic resize, in its fixed-point arithmetic.
//!
//! Per axis, output position x covers the input around c = (x + 1/2)·scale, scale = in/out, with
//! support 2·max(scale, 1) (shrinking averages: "antialias"):
//!     w_i ∝ cubic((i + 1/2 − c) / max(scale, 1)),  Σ w = 1,  W_i = round(w_i · 2²²)
//!     y = clip((2²¹ + Σ W_i · x_i) >> 22)
//! cubic is Keys' kernel with a = −1/2. First along rows, then along columns, rounded to u8 in
//! between; an axis that already has its length is skipped. Equal to Pillow byte for byte.

use super::Rgb;
// The one thing data takes from device: a way to run a loop with the widest vectors there are.
use crate::device::cpu::simd;

/// Fractional bits of a weight: 8 bits of pixel and 2 of head room fill 32.
const BITS: u32 = 22;
const HALF: i32 = 1 << (BITS - 1);

/// Rows that are resized together along their length.
const ROWS: usize = 16;

/// Bytes of a row that stay in registers while the taps of one output row are added.
const LANES: usize = 64;

/// `[size, size, 3]` bytes of `picture`, aspect ratio not kept.
pub fn resize_bicubic(picture: &Rgb, size: usize) -> Vec<u8> {
    assert!(picture.pixels.len() == picture.width * picture.height * 3, "an Rgb that lies");
    assert!(picture.width > 0 && picture.height > 0, "an empty picture cannot be resized");
    let mut wide = None;
    if picture.width != size {
        let taps = Taps::new(picture.width, size);
        wide = Some(simd(
            #[inline(always)]
            || along_rows(picture, &taps),
        ));
    }
    let pixels = wide.as_deref().unwrap_or(&picture.pixels);
    if picture.height == size {
        return wide.unwrap_or_else(|| picture.pixels.clone());
    }
    let taps = Taps::new(picture.height, size);
    simd(
        #[inline(always)]
        || along_columns(pixels, size * 3, &taps),
    )
}

/// For each output position, the first input position and the weights from there on.
struct Taps {
    starts: Vec<usize>,
    /// `weights[k·x .. k·(x+1)]` belong to output x; unused ones at the end are not in `counts`.
    weights: Vec<i32>,
    counts: Vec<usize>,
    stride: usize,
}

impl Taps {
    fn new(input: usize, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = 2.0 * filter_scale;
        let stride = support.ceil() as usize * 2 + 1;
        let mut taps = Taps {
            starts: Vec::with_capacity(output),
            weights: vec![0; stride * output],
            counts: Vec::with_capacity(output),
            stride,
        };
        let mut exact = Vec::with_capacity(stride);
        for (x, weights) in taps.weights.chunks_exact_mut(stride).enumerate() {
            let center = (x as f64 + 0.5) * scale;
            // `as` truncates towards zero and saturates below it, as needed here.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            let at = |i: usize| cubic((i as f64 - center + 0.5) * (1.0 / filter_scale));
            exact.clear();
            exact.extend((start..end).map(at));
            let sum: f64 = exact.iter().sum();
            for (weight, w) in weights.iter_mut().zip(&exact) {
                let scaled = w / sum * f64::from(1 << BITS);
                *weight = (scaled + 0.5f64.copysign(scaled)) as i32;
            }
            taps.starts.push(start);
            taps.counts.push(end - start);
        }
        taps
    }

    #[inline(always)]
    fn of(&self, x: usize) -> (usize, &[i32]) {
        (self.starts[x], &self.weights[self.stride * x..][..self.counts[x]])
    }
}

/// Keys' cubic with a = −1/2.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    match x {
        _ if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        _ if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

/// `[height, width, 3]` → `[height, size, 3]`. Neighbours along a row need different weights, so
/// [`ROWS`] rows are turned into columns first and share each weight in one vector.
/// (Tried: row by row with three sums per pixel, 4 times slower.)
#[inline(always)]
fn along_rows(picture: &Rgb, taps: &Taps) -> Vec<u8> {
    let (in_bytes, out_bytes) = (picture.width * 3, taps.starts.len() * 3);
    let mut out = vec![0; picture.height * out_bytes];
    let mut columns = vec![[0u8; ROWS]; in_bytes];
    let mut done = vec![[0u8; ROWS]; out_bytes];
    let blocks = picture.pixels.chunks(in_bytes * ROWS);
    for (rows, out) in blocks.zip(out.chunks_mut(out_bytes * ROWS)) {
        for (r, row) in rows.chunks_exact(in_bytes).enumerate() {
            columns.iter_mut().zip(row).for_each(|(column, &v)| column[r] = v);
        }
        for (x, done) in done.chunks_exact_mut(3).enumerate() {
            let (start, weights) = taps.of(x);
            // One variable a channel: an array of three would not stay in registers.
            let (mut red, mut green, mut blue) = ([HALF; ROWS], [HALF; ROWS], [HALF; ROWS]);
            for (column, &w) in columns[start * 3..].chunks_exact(3).zip(weights) {
                add(&mut red, w, &column[0]);
                add(&mut green, w, &column[1]);
                add(&mut blue, w, &column[2]);
            }
            (done[0], done[1], done[2]) = (red.map(clip), green.map(clip), blue.map(clip));
        }
        for (r, row) in out.chunks_exact_mut(out_bytes).enumerate() {
            row.iter_mut().zip(&done).for_each(|(v, column)| *v = column[r]);
        }
    }
    out
}

/// sum += w · values
#[inline(always)]
fn add<const N: usize>(sum: &mut [i32; N], w: i32, values: &[u8; N]) {
    for i in 0..N {
        sum[i] += w * i32::from(values[i]);
    }
}

/// `[height, row]` → `[size, row]`, in bytes.
#[inline(always)]
fn along_columns(pixels: &[u8], row_bytes: usize, taps: &Taps) -> Vec<u8> {
    let size = taps.starts.len();
    let mut out = vec![0; size * row_bytes];
    for (y, out) in out.chunks_exact_mut(row_bytes).enumerate() {
        let (start, weights) = taps.of(y);
        let rows = &pixels[start * row_bytes..];
        let mut blocks = out.chunks_exact_mut(LANES);
        for (i, block) in blocks.by_ref().enumerate() {
            let mut sum = [HALF; LANES];
            for (row, &w) in rows.chunks_exact(row_bytes).zip(weights) {
                if let Some(values) = row[i * LANES..].first_chunk::<LANES>() {
                    add(&mut sum, w, values);
                }
            }
            block.copy_from_slice(&sum.map(clip));
        }
        let rest = blocks.into_remainder();
        let first = row_bytes - rest.len();
        for (j, out) in rest.iter_mut().enumerate() {
            let column = rows.chunks_exact(row_bytes).map(|row| i32::from(row[first + j]));
            *out = clip(HALF + column.zip(weights).map(|(v, &w)| w * v).sum::<i32>());
        }
    }
    out
}

#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}
