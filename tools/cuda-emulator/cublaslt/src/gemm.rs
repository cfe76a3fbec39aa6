//! The arithmetic: operands are packed into panels of f32, tiles of D are summed over all of k in
//! registers and rounded once. Every element of D has one writer and sums in the order of k,
//! whatever the number of threads.

use std::thread;

use crate::problem::{Operand, Problem};

/// Where one batch lies on the host.
pub struct Places {
    pub a: *const u8,
    pub b: *const u8,
    /// `None`: beta is zero.
    pub c: Option<*const u8>,
    pub bias: Option<*const u8>,
    pub d: *mut u8,
}

// SAFETY: plain memory; threads write different elements of D and read what nobody writes, or, when
// C is D, what only they write.
unsafe impl Sync for Places {}

/// Rows and columns of a tile: its sums fill 12 of the 16 registers of AVX2.
const ROWS: usize = 6;
const COLUMNS: usize = 16;

type Sums = [[f32; COLUMNS]; ROWS];
/// Sums a tile from a panel of A and a panel of B.
type Sum = fn(&[f32], &[f32]) -> Sums;

/// # Safety
/// `places` point to operands as `problem` says; nobody else uses them.
pub unsafe fn run(problem: &Problem, alpha: f32, beta: f32, places: &Places) {
    let (m, n, k) = (problem.d.rows, problem.d.columns, problem.a.columns());
    // SAFETY: the caller's promise.
    let (a, b) = unsafe {
        (pack::<ROWS>(&problem.a, places.a, false), pack::<COLUMNS>(&problem.b, places.b, true))
    };
    let (tile_rows, tile_columns) = (m.div_ceil(ROWS), n.div_ceil(COLUMNS));
    let tiles = tile_rows * tile_columns;
    let sum = best_sum();
    let work = |tiles: std::ops::Range<usize>| {
        for tile in tiles {
            let (i, j) = (tile % tile_rows, tile / tile_rows);
            let panel_a = &a[i * ROWS * k..(i + 1) * ROWS * k];
            let panel_b = &b[j * COLUMNS * k..(j + 1) * COLUMNS * k];
            let sums = sum(panel_a, panel_b);
            // SAFETY: the caller's promise; each tile is stored once.
            unsafe { store(problem, alpha, beta, places, &sums, i * ROWS, j * COLUMNS) };
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(tiles);
    if threads < 2 || m * n * k < 1 << 18 {
        work(0..tiles);
        return;
    }
    thread::scope(|scope| {
        for thread in 0..threads {
            let range = tiles * thread / threads..tiles * (thread + 1) / threads;
            let work = &work;
            scope.spawn(move || work(range));
        }
    });
}

/// Panels of `N` rows of op(A) (or columns of op(B)), step of k by step of k; zero beyond the last.
///
/// # Safety
/// `at` points to the operand's first element.
unsafe fn pack<const N: usize>(operand: &Operand, at: *const u8, by_columns: bool) -> Vec<f32> {
    let (row_stride, column_stride) = operand.strides();
    let (count, k, stride, k_stride) = match by_columns {
        false => (operand.rows(), operand.columns(), row_stride, column_stride),
        true => (operand.columns(), operand.rows(), column_stride, row_stride),
    };
    let element = operand.matrix.element;
    let mut panels = vec![0.0; count.div_ceil(N) * N * k];
    for i in 0..count {
        let panel = &mut panels[i / N * N * k..];
        for step in 0..k {
            let offset = (i * stride + step * k_stride) * element.bytes();
            // SAFETY: the caller's promise; (i, step) lies in the operand.
            panel[step * N + i % N] = unsafe { element.read(at.add(offset)) };
        }
    }
    panels
}

/// # Safety
/// As [`run`]; the tile begins at an element of D.
unsafe fn store(
    problem: &Problem,
    alpha: f32,
    beta: f32,
    places: &Places,
    sums: &Sums,
    row: usize,
    column: usize,
) {
    let Problem { c, d, .. } = problem;
    let offset = |(row_stride, column_stride): (usize, usize), i, j| {
        (i * row_stride + j * column_stride) * d.element.bytes()
    };
    let (c_strides, d_strides) = (c.strides(), d.strides());
    for j in column..d.columns.min(column + COLUMNS) {
        for i in row..d.rows.min(row + ROWS) {
            let mut value = alpha * sums[i - row][j - column];
            // SAFETY: (i, j) lies in C and D, i in the bias.
            unsafe {
                if let Some(from) = places.c {
                    value += beta * c.element.read(from.add(offset(c_strides, i, j)));
                }
                if let Some(bias) = places.bias {
                    value += d.element.read(bias.add(i * d.element.bytes()));
                }
                d.element.write(places.d.add(offset(d_strides, i, j)), value);
            }
        }
    }
}

/// The fastest that this processor has.
fn best_sum() -> Sum {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has what the function is compiled for.
        return |a, b| unsafe { sum_avx2(a, b) };
    }
    |a, b| sum(a, b, |x, y, sum| x * y + sum)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn sum_avx2(a: &[f32], b: &[f32]) -> Sums {
    sum(a, b, f32::mul_add)
}

#[inline(always)]
fn sum(a: &[f32], b: &[f32], multiply_add: impl Fn(f32, f32, f32) -> f32) -> Sums {
    let mut sums = [[0.0; COLUMNS]; ROWS];
    for (a, b) in a.as_chunks::<ROWS>().0.iter().zip(b.as_chunks::<COLUMNS>().0) {
        for (sums, &a) in sums.iter_mut().zip(a) {
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = multiply_add(a, b, *sum);
            }
        }
    }
    sums
}
