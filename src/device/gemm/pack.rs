//! Packing: the order in which the kernel reads, and the place where weights become f32.

use std::ops::Range;

use half::{bf16, f16};

use super::Operand;
use super::kernel::Tile;
use crate::device::cpu::simd;
use crate::tensor::{DType, Element};

/// Elements of a weight, as f32. Plain integer arithmetic, so that it vectorises.
pub(crate) trait Widen: Element {
    /// The same value as f32.
    fn widen(self) -> f32;
}

impl Widen for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Widen for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Widen for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << 13;
        // The exponent's bias grows by 112; infinities and NaN keep all exponent bits set.
        let scaled = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
        let magnitude = if magnitude >= 31 << 23 { magnitude | 0xff << 23 } else { scaled };
        f32::from_bits(magnitude | (bits & 0x8000) << 16)
    }
}

/// Rows `rows` and depth `depth` of `a` as one panel `[depth, rows]`.
pub(super) fn a_panel(a: Operand<'_>, rows: Range<usize>, depth: Range<usize>, panel: &mut [f32]) {
    let n = rows.len();
    if a.transposed {
        for (p, to) in depth.zip(panel.chunks_exact_mut(n)) {
            to.copy_from_slice(&a.data.row::<f32>(p)[rows.clone()]);
        }
    } else {
        simd(|| {
            for (i, row) in rows.enumerate() {
                let from = &a.data.row::<f32>(row)[depth.clone()];
                transpose_into(from, &mut panel[i..], n);
            }
        });
    }
}

#[inline(always)]
fn transpose_into(from: &[f32], to: &mut [f32], step: usize) {
    for (x, y) in from.iter().zip(to.iter_mut().step_by(step)) {
        *y = *x;
    }
}

/// Depth `depth` and columns `cols` of `b` as panels `[depth, tile.cols]`; a last panel of at most
/// half the columns is one vector wide; missing columns are 0.
pub(super) fn b_panels(
    b: Operand<'_>,
    depth: Range<usize>,
    cols: Range<usize>,
    tile: Tile,
    panels: &mut [f32],
) {
    match b.data.dtype() {
        DType::F32 => simd(|| typed::<f32>(b, depth, cols, tile, panels)),
        DType::Bf16 => simd(|| typed::<bf16>(b, depth, cols, tile, panels)),
        DType::F16 => simd(|| typed::<f16>(b, depth, cols, tile, panels)),
        other => unreachable!("a weight of type {other:?}"),
    }
}

#[inline(always)]
fn typed<T: Widen>(
    b: Operand<'_>,
    depth: Range<usize>,
    cols: Range<usize>,
    tile: Tile,
    panels: &mut [f32],
) {
    for (j, panel) in
        cols.clone().step_by(tile.cols).zip(panels.chunks_mut(tile.cols * depth.len().max(1)))
    {
        let used = tile.cols.min(cols.end - j);
        let width = if 2 * used <= tile.cols { tile.cols / 2 } else { tile.cols };
        if b.transposed {
            columns::<T>(b, depth.clone(), j..j + used, width, panel);
        } else {
            for (p, to) in depth.clone().zip(panel.chunks_exact_mut(width)) {
                let from = &b.data.row::<T>(p)[j..j + used];
                to.iter_mut().zip(from).for_each(|(y, x)| *y = x.widen());
                to[used..].fill(0.0);
            }
        }
    }
}

/// A panel out of rows of the view: a transposition, in squares of 16.
#[inline(always)]
fn columns<T: Widen>(
    b: Operand<'_>,
    depth: Range<usize>,
    cols: Range<usize>,
    width: usize,
    panel: &mut [f32],
) {
    const SQUARE: usize = 16;
    for first in (0..width).step_by(SQUARE) {
        let lanes = SQUARE.min(width - first);
        let mut p = 0;
        while p < depth.len() {
            let len = SQUARE.min(depth.len() - p);
            let mut square = [[0.0f32; SQUARE]; SQUARE];
            for (j, row) in square.iter_mut().enumerate().take(lanes) {
                if first + j < cols.len() {
                    let from = &b.data.row::<T>(cols.start + first + j)[depth.start + p..][..len];
                    row.iter_mut().zip(from).for_each(|(y, x)| *y = x.widen());
                }
            }
            for q in 0..len {
                let to = &mut panel[(p + q) * width + first..][..lanes];
                to.iter_mut().enumerate().for_each(|(j, y)| *y = square[j][q]);
            }
            p += len;
        }
    }
}
