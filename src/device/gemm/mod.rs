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
mod small;

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use crate::device::cpu::simd;
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
/// Elements of `B` packed once for all tasks, 8 MiB of the last level cache; a larger `B` is
/// packed by the tasks, and then has columns enough to keep all cores busy.
const B_ELEMENTS: usize = 2 << 20;
/// Tasks that keep many cores busy; fewer columns are made up for by cutting rows.
const TASKS: usize = 16;
/// Panels of `A` a task packs.
const GROUP: usize = 4;
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

    /// The view, as it lies.
    pub fn data(&self) -> Tensor<'a> {
        self.data
    }

    /// Whether the transpose of it is meant.
    pub fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// Of the matrix that is meant.
    pub fn rows(&self) -> usize {
        self.data.shape()[usize::from(self.transposed)]
    }

    /// As [`rows`](Self::rows).
    pub fn cols(&self) -> usize {
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
    if m * n * k <= SERIAL {
        return serial(a, b, c, store);
    }
    multiply(a, b, c, store, TASKS, &|tasks, body| {
        (0..tasks).into_par_iter().with_max_len(1).for_each(body);
    });
}

/// On this thread, for work that is already spread.
pub(crate) fn serial(a: Operand<'_>, b: Operand<'_>, c: TensorMut<'_>, store: Store<'_>) {
    let (n, k) = (b.cols(), a.cols());
    if k <= DEPTH && n <= COLUMNS && a.rows() <= COLUMNS {
        return small::multiply(a, b, c, store);
    }
    multiply(a, b, c, store, 1, &|tasks, body| (0..tasks).for_each(body));
}

type Run<'a> = &'a dyn Fn(usize, &(dyn Fn(usize) + Sync));

/// `run(n, body)` runs `body` for `0..n`; at least `tasks` calls of it keep all cores busy.
fn multiply(
    a: Operand<'_>,
    b: Operand<'_>,
    mut c: TensorMut<'_>,
    store: Store<'_>,
    tasks: usize,
    run: Run<'_>,
) {
    let (m, n, k) = (a.rows(), b.cols(), a.cols());
    assert!(b.rows() == k && c.shape() == [m, n], "gemm of unequal shapes");
    if n == 0 {
        return;
    }
    let tile = Tile::of_this_cpu();
    for rows in spans(m, ROWS) {
        // As deep as the packing space allows.
        let fits = (A_ELEMENTS / rows.len()).min((B_ELEMENTS / n).max(DEPTH));
        let width = (fits / DEPTH).max(1) * DEPTH;
        for (i, depth) in spans(k.max(1), width).enumerate() {
            let depth = depth.start..depth.end.min(k);
            let (a, b) = (a.part(rows.clone(), depth.clone()), b.part(depth.clone(), 0..n));
            let store = Store {
                accumulate: store.accumulate || i > 0,
                bias: store.bias.filter(|_| i == 0),
                ..store
            };
            let out = c.reborrow().slice_rows(rows.clone());
            Plan::new(tile, rows.len(), n, depth.len(), tasks).run(a, b, out, store, run);
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
    /// Rows and columns of a task.
    rows: usize,
    columns: usize,
    /// Whether `B` is packed once for all tasks; else each task packs its columns, for all rows.
    share: bool,
}

impl Plan {
    fn new(tile: Tile, m: usize, n: usize, k: usize, tasks: usize) -> Self {
        let depth = k.div_ceil(k.div_ceil(DEPTH).max(1)).max(1);
        let share = n.next_multiple_of(tile.cols) * k <= B_ELEMENTS;
        let columns = if share { COLUMNS / 2 } else { COLUMNS };
        let cuts = if share { tasks.div_ceil(n.div_ceil(columns).max(1)) } else { 1 };
        let rows = m.div_ceil(cuts).next_multiple_of(tile.rows);
        Plan { tile, m, n, k, depth, rows, columns, share }
    }

    fn a_len(&self) -> usize {
        self.m * self.k
    }

    /// Packed elements of `columns` columns at a depth of `k`.
    fn b_len(&self, columns: usize, k: usize) -> usize {
        columns.next_multiple_of(self.tile.cols) * k.max(1)
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
        run: Run<'_>,
    ) {
        let shared = if self.share { self.b_len(self.n, self.k) } else { 0 };
        let own = if self.share { 0 } else { self.b_len(self.columns, self.depth) };
        let [column_tasks, row_tasks] = [self.n.div_ceil(self.columns), self.m.div_ceil(self.rows)];
        with_scratch(&SHARED_PANELS, self.a_len() + shared, |panels| {
            let (a_panels, b_panels) = panels.split_at_mut(self.a_len());
            let (a_panels, b_panels) =
                (Shared(a_panels.as_mut_ptr()), Shared(b_panels.as_mut_ptr()));
            let a_tasks = if self.k == 0 { 0 } else { self.m.div_ceil(self.tile.rows * GROUP) };
            let b_tasks = if self.share { column_tasks } else { 0 };
            run(a_tasks + b_tasks, &|task| match task.checked_sub(a_tasks) {
                None => self.pack_a(a, task, &a_panels),
                Some(task) => self.pack_b(b, task, &b_panels),
            });
            run(column_tasks * row_tasks, &|task| {
                let (i, j) = (task % row_tasks, task / row_tasks);
                let rows = i * self.rows..((i + 1) * self.rows).min(self.m);
                let cols = j * self.columns..((j + 1) * self.columns).min(self.n);
                with_scratch(&OWN_PANELS, own, |own| {
                    for chunk in self.chunks() {
                        let b_panels = if self.share {
                            // SAFETY: where `pack_b` put this chunk of these columns.
                            unsafe { b_panels.get().add(self.b_at(chunk, cols.start)) }
                        } else {
                            let (start, len) = chunk;
                            simd(
                                #[inline(always)]
                                || {
                                    pack::b_panels(
                                        b,
                                        start..start + len,
                                        cols.clone(),
                                        self.tile,
                                        own,
                                    )
                                },
                            );
                            own.as_mut_ptr()
                        };
                        // SAFETY: tasks name disjoint blocks of C, which this call borrows
                        // exclusively; shared panels are only read once they are packed.
                        unsafe {
                            let a_panels = a_panels.get().add(self.a_at(chunk, rows.start));
                            self.block(&rows, &cols, chunk, a_panels, b_panels, &c, store);
                        }
                    }
                });
            });
        });
    }

    /// Where the packed rows from `row` on of a chunk start.
    fn a_at(&self, (start, len): (usize, usize), row: usize) -> usize {
        start * self.m + row * len
    }

    /// Where the shared packed columns from `column` on of a chunk start.
    fn b_at(&self, (start, len): (usize, usize), column: usize) -> usize {
        self.b_len(self.n, 1) * start + column * len
    }

    /// Packs a few panels of `A`.
    fn pack_a(&self, a: Operand<'_>, task: usize, panels: &Shared) {
        let group = self.tile.rows * GROUP;
        for first in (task * group..self.m.min((task + 1) * group)).step_by(self.tile.rows) {
            let rows = first..(first + self.tile.rows).min(self.m);
            for chunk @ (start, len) in self.chunks() {
                // SAFETY: chunk and rows name their own part of the m·k elements.
                let panel = unsafe {
                    let at = panels.get().add(self.a_at(chunk, first));
                    std::slice::from_raw_parts_mut(at, rows.len() * len)
                };
                simd(
                    #[inline(always)]
                    || pack::a_panel(a, rows.clone(), start..start + len, panel),
                );
            }
        }
    }

    /// Packs one task's columns of `B`.
    fn pack_b(&self, b: Operand<'_>, task: usize, panels: &Shared) {
        let cols = task * self.columns..((task + 1) * self.columns).min(self.n);
        for chunk @ (start, len) in self.chunks() {
            // SAFETY: chunk and columns name their own part of the shared elements; tasks start
            // at whole panels.
            let panels = unsafe {
                let at = panels.get().add(self.b_at(chunk, cols.start));
                std::slice::from_raw_parts_mut(at, self.b_len(cols.len(), len))
            };
            simd(
                #[inline(always)]
                || pack::b_panels(b, start..start + len, cols.clone(), self.tile, panels),
            );
        }
    }

    /// # Safety
    /// The panels are those of these rows, columns and chunk; nobody else touches this part of C.
    unsafe fn block(
        &self,
        rows: &Range<usize>,
        cols: &Range<usize>,
        (start, depth): (usize, usize),
        a: *const f32,
        b: *const f32,
        c: &TensorMut<'_>,
        store: Store<'_>,
    ) {
        let bias = store.bias.filter(|_| start == 0);
        let c_stride = c.row_stride();
        // SAFETY: rows and cols lie inside C, cols inside the bias; the rest is promised.
        unsafe {
            let c = c.as_ref().as_ptr().cast::<f32>().cast_mut();
            kernel::block(kernel::Block {
                rows: rows.len(),
                cols: cols.len(),
                depth,
                a,
                b,
                c: c.add(rows.start * c_stride + cols.start),
                c_stride,
                alpha: store.alpha,
                accumulate: store.accumulate || start > 0,
                bias: bias.map(|bias| bias.as_ptr().cast::<f32>().add(cols.start)),
            });
        }
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
    static SHARED_PANELS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static OWN_PANELS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
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
