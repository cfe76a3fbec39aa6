//! The register tile: `M` rows by `V` vectors of `C`, one pass over the depth.

use pulp::{Arch, Simd, WithSimd};

/// Size of a full tile of `C` on this CPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    /// Rows: 24 accumulators of 32 registers with AVX-512, 12 of 16 otherwise.
    pub rows: usize,
    /// Columns: two vectors.
    pub cols: usize,
}

impl Tile {
    pub fn of_this_cpu() -> Self {
        struct Detect;
        impl WithSimd for Detect {
            type Output = Tile;
            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> Tile {
                Tile { rows: if S::F32_LANES == 16 { 12 } else { 6 }, cols: 2 * S::F32_LANES }
            }
        }
        Arch::new().dispatch(Detect)
    }
}

/// A block of `C` and the packed panels whose product it receives.
pub(super) struct Block {
    pub rows: usize,
    pub cols: usize,
    pub depth: usize,
    /// Panels of `Tile::rows` rows (the last may have fewer), each `[depth, rows]`.
    pub a: *const f32,
    /// Panels of `Tile::cols` columns (the last may be one vector), each `[depth, cols]`.
    pub b: *const f32,
    pub c: *mut f32,
    pub c_stride: usize,
    pub alpha: f32,
    pub accumulate: bool,
    pub bias: Option<*const f32>,
}

/// `C (+)= alpha · A B + bias` on one block.
///
/// # Safety
/// The panels hold what [`Block`] says, `C` and the bias the block's rows and columns; nobody
/// else touches the block of `C` meanwhile.
pub(super) unsafe fn block(block: Block) {
    struct Run(Block);
    impl WithSimd for Run {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            // SAFETY: the promise of `block`.
            unsafe { sweep(simd, &self.0) }
        }
    }
    Arch::new().dispatch(Run(block));
}

/// Every panel of `A` (it stays in L1) against every panel of `B` (they stay in L2).
///
/// # Safety
/// That of [`block`].
#[inline(always)]
pub(super) unsafe fn sweep<S: Simd>(simd: S, block: &Block) {
    let lanes = S::F32_LANES;
    let panel_rows = if lanes == 16 { 12 } else { 6 };
    for i in (0..block.rows).step_by(panel_rows) {
        let rows = panel_rows.min(block.rows - i);
        for j in (0..block.cols).step_by(2 * lanes) {
            let cols = (2 * lanes).min(block.cols - j);
            // SAFETY: offsets of whole panels before this one, inside what `Block` names.
            let (a, b, c) = unsafe {
                let c = block.c.add(i * block.c_stride + j);
                (block.a.add(i * block.depth), block.b.add(j * block.depth), c)
            };
            let bias = block.bias.map(|bias| bias.wrapping_add(j));
            macro_rules! tiles {
                ($($m:literal)*) => {
                    // SAFETY: the panels were packed for exactly these tile sizes.
                    unsafe {
                        match (rows, cols <= lanes) {
                            $(($m, true) => tile::<S, $m, 1>(simd, block, a, b, c, cols, bias),
                            ($m, false) => tile::<S, $m, 2>(simd, block, a, b, c, cols, bias),)*
                            _ => unreachable!("a panel of A has 1 to 12 rows"),
                        }
                    }
                };
            }
            tiles!(1 2 3 4 5 6 7 8 9 10 11 12);
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, const M: usize, const V: usize>(
    simd: S,
    block: &Block,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    cols: usize,
    bias: Option<*const f32>,
) {
    let lanes = S::F32_LANES;
    let mut sum = [[simd.splat_f32s(0.0); V]; M];
    for p in 0..block.depth {
        // SAFETY: row p of the panels, [depth, M] and [depth, V vectors].
        unsafe {
            let b = b.add(p * V * lanes).cast::<S::f32s>();
            let columns: [S::f32s; V] = std::array::from_fn(|v| b.add(v).read_unaligned());
            for i in 0..M {
                let x = simd.splat_f32s(*a.add(p * M + i));
                for v in 0..V {
                    sum[i][v] = simd.mul_add_e_f32s(x, columns[v], sum[i][v]);
                }
            }
        }
    }

    let alpha = simd.splat_f32s(block.alpha);
    for i in 0..M {
        for v in 0..V {
            let used = lanes.min(cols.saturating_sub(v * lanes));
            // SAFETY: row i of the tile, of whose vector v the first `used` columns exist.
            unsafe {
                let at = c.add(i * block.c_stride + v * lanes);
                let mut y = simd.mul_f32s(alpha, sum[i][v]);
                if let Some(bias) = bias {
                    y = simd.add_f32s(y, load(simd, bias.add(v * lanes), used));
                }
                if block.accumulate {
                    y = simd.add_f32s(y, load(simd, at, used));
                }
                if used == lanes {
                    at.cast::<S::f32s>().write_unaligned(y);
                } else {
                    simd.partial_store_f32s(std::slice::from_raw_parts_mut(at, used), y);
                }
            }
        }
    }
}

/// `used` elements as a vector, the rest zero.
#[inline(always)]
unsafe fn load<S: Simd>(simd: S, at: *const f32, used: usize) -> S::f32s {
    // SAFETY: the caller's promise: `used` elements from `at` may be read.
    unsafe {
        if used == S::F32_LANES {
            at.cast::<S::f32s>().read_unaligned()
        } else {
            simd.partial_load_f32s(std::slice::from_raw_parts(at, used))
        }
    }
}
