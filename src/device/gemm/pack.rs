//! Packing: the order in which the kernel reads, and the place where weights become f32.

use std::ops::Range;

use half::{bf16, f16};

use super::Operand;
use super::kernel::Tile;
use crate::tensor::{DType, Element, Tensor};

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
#[inline(always)]
pub(super) fn a_panel(a: Operand<'_>, rows: Range<usize>, depth: Range<usize>, panel: &mut [f32]) {
    let width = rows.len();
    if !a.transposed {
        return transposed::<f32>(a.data, rows, depth, width, panel);
    }
    for (p, to) in depth.zip(panel.chunks_exact_mut(width)) {
        let from = &a.data.row::<f32>(p)[rows.clone()];
        to.iter_mut().zip(from).for_each(|(y, x)| *y = *x);
    }
}

/// Depth `depth` and columns `cols` of `b` as panels `[depth, tile.cols]`; a last panel of at most
/// half the columns is one vector wide; missing columns are 0.
#[inline(always)]
pub(super) fn b_panels(
    b: Operand<'_>,
    depth: Range<usize>,
    cols: Range<usize>,
    tile: Tile,
    panels: &mut [f32],
) {
    match b.data.dtype() {
        DType::F32 => b_panels_of::<f32>(b, depth, cols, tile, panels),
        DType::Bf16 => b_panels_of::<bf16>(b, depth, cols, tile, panels),
        DType::F16 => b_panels_of::<f16>(b, depth, cols, tile, panels),
        other => unreachable!("a weight of type {other:?}"),
    }
}

/// [`b_panels`] of a known type.
#[inline(always)]
pub(super) fn b_panels_of<T: Widen>(
    b: Operand<'_>,
    depth: Range<usize>,
    cols: Range<usize>,
    tile: Tile,
    panels: &mut [f32],
) {
    let panel = tile.cols * depth.len().max(1);
    for (j, panel) in cols.clone().step_by(tile.cols).zip(panels.chunks_mut(panel)) {
        let cols = j..(j + tile.cols).min(cols.end);
        let width = if 2 * cols.len() <= tile.cols { tile.cols / 2 } else { tile.cols };
        b_panel::<T>(b, depth.clone(), cols, width, panel);
    }
}

#[inline(always)]
fn b_panel<T: Widen>(
    b: Operand<'_>,
    depth: Range<usize>,
    cols: Range<usize>,
    width: usize,
    panel: &mut [f32],
) {
    if b.transposed {
        return transposed::<T>(b.data, cols, depth, width, panel);
    }
    for (p, to) in depth.zip(panel.chunks_exact_mut(width)) {
        let from = &b.data.row::<T>(p)[cols.clone()];
        to.iter_mut().zip(from).for_each(|(y, x)| *y = x.widen());
        to[from.len()..].fill(0.0);
    }
}

/// Side of the squares in which a panel is transposed.
const SQUARE: usize = 16;

/// `panel[p][j] = x[rows.start + j][depth.start + p]`, panel rows of `width`, 0 beyond `rows`.
#[inline(always)]
fn transposed<T: Widen>(
    x: Tensor<'_>,
    rows: Range<usize>,
    depth: Range<usize>,
    width: usize,
    panel: &mut [f32],
) {
    for first in (0..width).step_by(SQUARE) {
        let lanes = SQUARE.min(width - first);
        let rows = rows.start + first..rows.end.min(rows.start + first + lanes);
        for p in (0..depth.len()).step_by(SQUARE) {
            let len = SQUARE.min(depth.len() - p);
            let mut square = [[0.0f32; SQUARE]; SQUARE];
            for (to, j) in square.iter_mut().zip(rows.clone()) {
                let from = &x.row::<T>(j)[depth.start + p..][..len];
                if let Ok(from) = <&[T; SQUARE]>::try_from(from) {
                    *to = from.map(T::widen);
                } else {
                    to.iter_mut().zip(from).for_each(|(y, x)| *y = x.widen());
                }
            }
            transpose(&square, &mut panel[p * width + first..], width, len, lanes);
        }
    }
}

/// Columns of `square` as `rows` rows of `cols` elements, `stride` apart in `to`.
#[inline(always)]
fn transpose(
    square: &[[f32; SQUARE]; SQUARE],
    to: &mut [f32],
    stride: usize,
    rows: usize,
    cols: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: this CPU has AVX-512.
        return unsafe { transpose_avx512(square, to, stride, rows, cols) };
    }
    for (i, to) in to.chunks_mut(stride).enumerate().take(rows) {
        to.iter_mut().zip(square).take(cols).for_each(|(y, row)| *y = row[i]);
    }
}

/// By halves: in squares of 16, 8, 4 and 2 the upper right and lower left quarters change places.
/// Several times faster than element by element.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn transpose_avx512(
    square: &[[f32; SQUARE]; SQUARE],
    to: &mut [f32],
    stride: usize,
    rows: usize,
    cols: usize,
) {
    use std::arch::x86_64::*;
    // SAFETY: a row of the square is the 16 elements of a register.
    let mut lines: [__m512; SQUARE] =
        std::array::from_fn(|i| unsafe { _mm512_loadu_ps(square[i].as_ptr()) });
    exchange::<8>(&mut lines);
    exchange::<4>(&mut lines);
    exchange::<2>(&mut lines);
    exchange::<1>(&mut lines);
    let mask = u16::MAX >> (SQUARE - cols);
    for (i, line) in lines.into_iter().enumerate().take(rows) {
        let to = &mut to[i * stride..][..cols];
        // SAFETY: the mask has as many bits as `to` elements.
        unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), mask, line) };
    }
}

/// In every square of 2·HALF, two rows and two shuffles at a time.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn exchange<const HALF: usize>(lines: &mut [std::arch::x86_64::__m512; SQUARE]) {
    use std::arch::x86_64::*;
    // Lane j of the new upper row: the old one's, or in the right half the lower row's left.
    let (mut upper, mut lower) = ([0i32; SQUARE], [0i32; SQUARE]);
    for j in 0..SQUARE {
        let right = j & HALF != 0;
        upper[j] = (if right { SQUARE + j - HALF } else { j }) as i32;
        lower[j] = (if right { SQUARE + j } else { j + HALF }) as i32;
    }
    // SAFETY: 16 indices are a register.
    let (upper, lower) = unsafe {
        (_mm512_loadu_si512(upper.as_ptr().cast()), _mm512_loadu_si512(lower.as_ptr().cast()))
    };
    for i in 0..SQUARE {
        if i & HALF == 0 {
            let (a, b) = (lines[i], lines[i + HALF]);
            lines[i] = _mm512_permutex2var_ps(a, upper, b);
            lines[i + HALF] = _mm512_permutex2var_ps(a, lower, b);
        }
    }
}
