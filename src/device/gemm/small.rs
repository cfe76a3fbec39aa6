//! Products of at most one chunk and one block, such as the tiles of attention: one dispatch, no
//! plan.

use pulp::{Arch, Simd, WithSimd};

use super::kernel::{self, Block, Tile};
use super::{OWN_PANELS, Operand, Store, pack, with_scratch};
use crate::tensor::TensorMut;

/// `C (+)= alpha · A B + bias` on this thread.
pub(super) fn multiply(a: Operand<'_>, b: Operand<'_>, c: TensorMut<'_>, store: Store<'_>) {
    assert!(b.rows() == a.cols() && c.shape() == [a.rows(), b.cols()], "gemm of unequal shapes");
    let tile = Tile::of_this_cpu();
    let (a_len, width) = (a.rows() * a.cols(), b.cols().next_multiple_of(tile.cols));
    with_scratch(&OWN_PANELS, a_len + width * a.cols(), |panels| {
        Arch::new().dispatch(Small { a, b, c, store, tile, panels });
    });
}

struct Small<'a> {
    a: Operand<'a>,
    b: Operand<'a>,
    c: TensorMut<'a>,
    store: Store<'a>,
    tile: Tile,
    panels: &'a mut [f32],
}

impl WithSimd for Small<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Small { a, b, mut c, store, tile, panels } = self;
        let ([m, n], k) = (c.shape(), a.cols());
        let (a_panels, b_panels) = panels.split_at_mut(m * k);
        for i in (0..if k == 0 { 0 } else { m }).step_by(tile.rows) {
            let rows = i..m.min(i + tile.rows);
            let panel = &mut a_panels[i * k..rows.end * k];
            pack::a_panel(a, rows, 0..k, panel);
        }
        pack::b_panels(b, 0..k, 0..n, tile, b_panels);
        let block = Block {
            rows: m,
            cols: n,
            depth: k,
            a: a_panels.as_ptr(),
            b: b_panels.as_ptr(),
            c: c.as_mut_ptr().cast(),
            c_stride: c.row_stride(),
            alpha: store.alpha,
            accumulate: store.accumulate,
            bias: store.bias.map(|bias| bias.as_ptr().cast()),
        };
        // SAFETY: the panels were just packed for these sizes; C is exclusively ours.
        unsafe { kernel::sweep(simd, &block) }
    }
}
