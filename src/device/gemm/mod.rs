//! The GEMM of the CPU device: `C (+)= alpha · A B + bias`, f32 arithmetic.
//!
//! The usual three levels: `A` is packed into panels of a few rows, `B` into panels of two vector
//! registers' columns, both cut along the depth so that a panel of `A` stays in L1 and a block of
//! `B` in L2; the kernel keeps a whole tile of `C` in registers. `B` may be bf16 or f16: packing
//! widens it, so a frozen weight is read from its mapped file and never copied. Packing space
//! belongs to the thread and is reused, so nothing is allocated in the steady state.
//!
//! An element of `C` is one sum over the depth in fixed chunks, whatever the partition: the
//! result does not depend on the number of threads.

mod kernel;
mod pack;

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use crate::tensor::{Tensor, TensorMut};
use kernel::Tile;
pub(crate) use pack::Widen;

/// Depth of a packed chunk: 12 rows of `A` are then 24 KiB of the 32 KiB L1.
const DEPTH: usize = 512;
/// Columns of `B` a task packs at once: 512 KiB of L2 at full depth.
const COLUMNS: usize = 256;
/// Rows of `A` packed at once.
const ROWS: usize = 2048;
/// Elements of `A` packed at once, 4 MiB: bounds the packing space when the depth is a vocabulary.
const A_ELEMENTS: usize = 1 << 20;
/// Tasks that keep many cores busy; fewer columns are made up for by cutting rows.
const TASKS: usize = 16;
/// Multiply-adds below which handing out tasks costs more than it gains (about 10 us).
const SERIAL: usize = 1 << 20;

/// A matrix to multiply: a view, or the transpose of one.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    data: Tensor<'a>,
    transposed: bool,
}

impl<'a> Operand<'a> {
    /// The view itself.
    pub fn plain(data: Tensor<'a>) -> Self {
        Operand { data, transposed: false }
    }

    /// The view's transpose.
    pub fn transposed(data: Tensor<'a>) -> Self {
        Operand { data, transposed: true }
    }

    fn rows(&self) -> usize {
        self.data.shape()[usize::from(self.transposed)]
    }

    fn cols(&self) -> usize {
        self.data.shape()[usize::from(!self.transposed)]
    }

    /// Some rows and columns of it.
    fn part(&self, rows: Range<usize>, cols: Range<usize>) -> Self {
        let (rows, cols) = if self.transposed { (cols, rows) } else { (rows, cols) };
        Operand { data: self.data.slice_rows(rows).slice_cols(cols), ..*self }
    }
}

/// What becomes of the product.
#[derive(Clone, Copy)]
pub(crate) struct Store<'a> {
    /// Factor of the product.
    pub alpha: f32,
    /// Whether what `C` held is added.
    pub accumulate: bool,
    /// Added to every row, `[1, N]`.
    pub bias: Option<Tensor<'a>>,
}

impl Store<'_> {
    /// `C = alpha · A B`
    pub fn overwrite(alpha: f32) -> Self {
        Store { alpha, accumulate: false, bias: None }
    }

    /// `C += alpha · A B`
    pub fn accumulate(alpha: f32) -> Self {
        Store { alpha, accumulate: true, bias: None }
    }
}

/// On all cores. `a [M, K]` f32, `b [K, N]` any float type, `c [M, N]` f32.
pub(crate) fn parallel(a: Operand<'_>, b: Operand<'_>, c: TensorMut<'_>, store: Store<'_>) {
    let (m, n, k) = (a.rows(), b.cols(), a.cols());
    let few = m * n * k <= SERIAL;
    multiply(a, b, c, store, &|tasks, body| match few {
        true => (0..tasks).for_each(body),
        false => (0..tasks).into_par_iter().with_max_len(1).for_each(body),
    });
}

/// On this thread, for work that is already spread.
pub(crate) fn serial(a: Operand<'_>, b: Operand<'_>, c: TensorMut<'_>, store: Store<'_>) {
    multiply(a, b, c, store, &|tasks, body| (0..tasks).for_each(body));
}

type Run<'a> = &'a dyn Fn(usize, &(dyn Fn(usize) + Sync));

fn multiply(a: Operand<'_>, b: Operand<'_>, mut c: TensorMut<'_>, store: Store<'_>, run: Run<'_>) {
    let (m, n, k) = (a.rows(), b.cols(), a.cols());
    assert!(b.rows() == k && c.shape() == [m, n], "gemm of unequal shapes");
    let tile = Tile::of_this_cpu();
    for rows in spans(m, ROWS) {
        let width = (A_ELEMENTS / rows.len()).next_multiple_of(DEPTH);
        for (i, depth) in spans(k.max(1), width).enumerate() {
            let depth = depth.start..depth.end.min(k);
            let (a, b) = (a.part(rows.clone(), depth.clone()), b.part(depth.clone(), 0..n));
            let store = Store {
                accumulate: store.accumulate || i > 0,
                bias: store.bias.filter(|_| i == 0),
                ..store
            };
            let plan = Plan::new(tile, rows.len(), n, depth.len());
            let out = c.reborrow().slice_rows(rows.clone());
            with_scratch(&A_PANELS, plan.a_len(), |panels| plan.run(a, b, out, store, panels, run));
        }
    }
}

/// `0..len` in spans of `width`.
fn spans(len: usize, width: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(width).map(move |i| i..(i + width).min(len))
}

/// How one product is cut. A function of the shapes and the CPU only.
struct Plan {
    tile: Tile,
    m: usize,
    n: usize,
    k: usize,
    /// Chunk of the depth.
    depth: usize,
    /// Columns and rows of a task.
    columns: usize,
    rows: usize,
}

impl Plan {
    fn new(tile: Tile, m: usize, n: usize, k: usize) -> Self {
        let depth = k.div_ceil(k.div_ceil(DEPTH).max(1)).max(1);
        let columns = if n >= TASKS * COLUMNS { COLUMNS } else { COLUMNS / 2 };
        // A panel of B packed again for another block of rows pays when it has 8 panels of A.
        let cuts = TASKS.div_ceil(n.div_ceil(columns).max(1)).min(m.div_ceil(8 * tile.rows)).max(1);
        let rows = m.div_ceil(cuts).next_multiple_of(tile.rows);
        Plan { tile, m, n, k, depth, columns, rows }
    }

    fn a_len(&self) -> usize {
        self.m * self.k
    }

    fn b_len(&self) -> usize {
        self.columns.next_multiple_of(self.tile.cols) * self.depth
    }

    /// Chunks of the depth as `(start, len)`; one empty chunk for depth 0, which still writes `C`.
    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> {
        let count = self.k.div_ceil(self.depth).max(1);
        (0..count).map(|i| (i * self.depth, self.depth.min(self.k - i * self.depth)))
    }

    fn run(
        &self,
        a: Operand<'_>,
        b: Operand<'_>,
        c: TensorMut<'_>,
        store: Store<'_>,
        panels: &mut [f32],
        run: Run<'_>,
    ) {
        let shared = Shared(panels.as_mut_ptr());
        let panel_rows = self.tile.rows;
        let panels = if self.k == 0 { 0 } else { self.m.div_ceil(panel_rows) };
        let group = 4;
        run(panels.div_ceil(group), &|task| {
            for i in task * group..((task + 1) * group).min(panels) {
                let rows = i * panel_rows..((i + 1) * panel_rows).min(self.m);
                for (start, len) in self.chunks() {
                    // SAFETY: chunk and panel name their own part of the m·k elements.
                    let panel = unsafe {
                        let at = shared.get().add(start * self.m + rows.start * len);
                        std::slice::from_raw_parts_mut(at, rows.len() * len)
                    };
                    pack::a_panel(a, rows.clone(), start..start + len, panel);
                }
            }
        });

        let (column_tasks, row_tasks) = (self.n.div_ceil(self.columns), self.m.div_ceil(self.rows));
        run(column_tasks * row_tasks, &|task| {
            let (i, j) = (task % row_tasks, task / row_tasks);
            let rows = i * self.rows..((i + 1) * self.rows).min(self.m);
            let cols = j * self.columns..((j + 1) * self.columns).min(self.n);
            with_scratch(&B_PANELS, self.b_len(), |b_panels| {
                for (start, len) in self.chunks() {
                    pack::b_panels(b, start..start + len, cols.clone(), self.tile, b_panels);
                    let first = start == 0;
                    // SAFETY: tasks name disjoint blocks of C, which this call borrows
                    // exclusively; panels are only read from here on.
                    unsafe {
                        let a_panels = shared.get().add(start * self.m + rows.start * len);
                        kernel::block(kernel::Block {
                            rows: rows.len(),
                            cols: cols.len(),
                            depth: len,
                            a: a_panels,
                            b: b_panels.as_ptr(),
                            c: c.as_ref()
                                .as_ptr()
                                .cast::<f32>()
                                .cast_mut()
                                .add(rows.start * c.row_stride() + cols.start),
                            c_stride: c.row_stride(),
                            alpha: store.alpha,
                            accumulate: store.accumulate || !first,
                            bias: store
                                .bias
                                .filter(|_| first)
                                .map(|bias| bias.as_ptr().cast::<f32>().add(cols.start)),
                        });
                    }
                }
            });
        });
    }
}

/// A pointer tasks may share.
struct Shared(*mut f32);
// SAFETY: the tasks write disjoint parts, and read only after all writing tasks ended.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(&self) -> *mut f32 {
        self.0
    }
}

thread_local! {
    static A_PANELS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static B_PANELS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Lends this thread's buffer, grown to `len` elements of any value. While it is lent, a nested
/// use (a stolen task) gets a fresh one.
pub(crate) fn with_scratch<R>(
    buffer: &'static std::thread::LocalKey<Cell<Vec<f32>>>,
    len: usize,
    body: impl FnOnce(&mut [f32]) -> R,
) -> R {
    let mut data = buffer.take();
    if data.len() < len {
        data.resize(len, 0.0);
    }
    let result = body(&mut data[..len]);
    buffer.set(data);
    result
}
