//! Column sums on CUDA: `kernels/column_sums.cu`.

use super::CHUNK;
use crate::device::cuda::{Arguments, Cuda, Grid, KernelName};
use crate::error::Result;
use crate::ops::columns::{Kernels, in_rows, of};
use crate::tensor::{Tensor, TensorMut};

const COLUMN_SUMS: Kernels = [KernelName("column_sums_f32"), KernelName("column_sums_bf16")];
const THREADS: u32 = 256;
/// Bytes of a row that a block takes: a warp is as wide.
const WIDE: usize = 512;

#[repr(C)]
#[derive(Clone, Copy)]
struct Sums {
    a: *const u8,
    sums: *mut u8,
    a_stride: i64,
    sums_stride: i64,
    rows: i32,
    cols: i32,
    chunk: i32,
    adds: i32,
}
const _: () = assert!(size_of::<Sums>() == 48);
// SAFETY: field by field `Sums` of the kernel file.
unsafe impl Arguments for Sums {}

pub(super) fn add(
    cuda: Cuda,
    a: Tensor<'_>,
    c: TensorMut<'_>,
    partials: TensorMut<'_>,
) -> Result<()> {
    if a.rows() <= CHUNK {
        return add_whole(cuda, a, c);
    }
    let mut partials = in_rows(partials, a.rows().div_ceil(CHUNK), a.cols());
    launch(cuda, a, partials.reborrow(), CHUNK, false)?;
    add_whole(cuda, partials.as_ref(), c)
}

/// `c += Σ_rows a` for the few rows that blocks left of their sums, without scratch. `a`: `[rows,
/// cols]` f32 or bf16 in whole packs, `c`: `[1, cols]` f32, both on this device.
pub(crate) fn add_whole(cuda: Cuda, a: Tensor<'_>, c: TensorMut<'_>) -> Result<()> {
    debug_assert!(c.shape() == [1, a.cols()], "{a:?} summed to {c:?}");
    if a.rows() == 0 {
        return Ok(());
    }
    launch(cuda, a, c, a.rows(), true)
}

/// A row of `sums` for every `chunk` rows of `a`.
fn launch(
    cuda: Cuda,
    a: Tensor<'_>,
    mut sums: TensorMut<'_>,
    chunk: usize,
    adds: bool,
) -> Result<()> {
    let arguments = Sums {
        a: a.as_ptr(),
        sums: sums.as_mut_ptr(),
        a_stride: a.row_stride() as i64,
        sums_stride: sums.row_stride() as i64,
        rows: a.rows() as i32,
        cols: a.cols() as i32,
        chunk: chunk as i32,
        adds: i32::from(adds),
    };
    let strips = (a.cols() * a.dtype().size()).div_ceil(WIDE);
    let grid = Grid::new([strips as u32, sums.rows() as u32, 1], THREADS);
    // SAFETY: the callers, whose arguments `add` checked, bring matrices of whole packs, and sums of
    // as many columns with a row for each chunk, on this device; the views borrow them.
    unsafe { cuda.launch(of(a.dtype(), &COLUMN_SUMS), grid, &arguments) }
}
