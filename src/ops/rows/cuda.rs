//! Rows on CUDA: `kernels/rows.cu`.

use super::room;
use crate::device::cuda::{Arguments, Cuda, Grid, KernelName};
use crate::error::Result;
use crate::tensor::{DType, Tensor, TensorMut};

/// In f32 and in bf16.
type Kernels = [KernelName; 2];

const GATHER: Kernels = [KernelName("rows_gather_f32"), KernelName("rows_gather_bf16")];
const SCATTER: Kernels = [KernelName("rows_scatter_f32"), KernelName("rows_scatter_bf16")];
const SCATTER_ADD: Kernels =
    [KernelName("rows_scatter_add_f32"), KernelName("rows_scatter_add_bf16")];
const SCALE: Kernels = [KernelName("rows_scale_f32"), KernelName("rows_scale_bf16")];
const COPY: Kernels = [KernelName("rows_copy_f32"), KernelName("rows_copy_bf16")];
const COPY_WIDEN: KernelName = KernelName("rows_copy_widen_f32");
const COPY_ROUND: KernelName = KernelName("rows_copy_round_bf16");
const ADD: Kernels = [KernelName("rows_add_f32"), KernelName("rows_add_bf16")];
const ADD_WIDEN: KernelName = KernelName("rows_add_widen_f32");
const ADD_CYCLED: Kernels = [KernelName("rows_add_cycled_f32"), KernelName("rows_add_cycled_bf16")];
const ADD_CYCLED_BACKWARD: Kernels =
    [KernelName("rows_add_cycled_backward_f32"), KernelName("rows_add_cycled_backward_bf16")];
const ADD_CYCLED_BACKWARD_WIDEN: KernelName = KernelName("rows_add_cycled_backward_widen_f32");

const THREADS: u32 = 128;
/// Packs that a thread takes of a row, where its row is one.
const PACKS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy)]
struct Move {
    x: *const u8,
    y: *mut u8,
    x_stride: i64,
    y_stride: i64,
    cols: i32,
}
const _: () = assert!(size_of::<Move>() == 40);
// SAFETY: field by field `Move` of the kernel file.
unsafe impl Arguments for Move {}

#[repr(C)]
#[derive(Clone, Copy)]
struct Gather {
    x: *const u8,
    index: *const u8,
    y: *mut u8,
    x_stride: i64,
    index_stride: i64,
    y_stride: i64,
    x_rows: i32,
    cols: i32,
}
const _: () = assert!(size_of::<Gather>() == 56);
// SAFETY: field by field `Gather` of the kernel file.
unsafe impl Arguments for Gather {}

#[repr(C)]
#[derive(Clone, Copy)]
struct Scale {
    factors: *const u8,
    x: *mut u8,
    factors_stride: i64,
    x_stride: i64,
    cols: i32,
}
const _: () = assert!(size_of::<Scale>() == 40);
// SAFETY: field by field `Scale` of the kernel file.
unsafe impl Arguments for Scale {}

#[repr(C)]
#[derive(Clone, Copy)]
struct Scatter {
    x: *const u8,
    inverse: *const u8,
    room: i64,
    y: *mut u8,
    x_stride: i64,
    y_stride: i64,
    x_rows: i32,
    y_rows: i32,
    cols: i32,
}
const _: () = assert!(size_of::<Scatter>() == 64);
// SAFETY: field by field `Scatter` of the kernel file.
unsafe impl Arguments for Scatter {}

#[repr(C)]
#[derive(Clone, Copy)]
struct Cycle {
    x: *const u8,
    y: *mut u8,
    x_stride: i64,
    y_stride: i64,
    period: i32,
    cycles: i32,
    cols: i32,
}
const _: () = assert!(size_of::<Cycle>() == 48);
// SAFETY: field by field `Cycle` of the kernel file.
unsafe impl Arguments for Cycle {}

pub(super) fn gather(
    cuda: Cuda,
    src: Tensor<'_>,
    index: Tensor<'_>,
    mut dst: TensorMut<'_>,
) -> Result<()> {
    let arguments = Gather {
        x: src.as_ptr(),
        index: index.as_ptr(),
        y: dst.as_mut_ptr(),
        x_stride: src.row_stride() as i64,
        index_stride: index.row_stride() as i64,
        y_stride: dst.row_stride() as i64,
        x_rows: src.rows() as i32,
        cols: src.cols() as i32,
    };
    let grid = tiles_of_rows(dst.rows(), src.cols(), [src.dtype(); 2]);
    // SAFETY: `gather` checked that every pointer covers its rows and columns on this device, in
    // whole packs of this dtype; the kernel checks the index; the views borrow them.
    unsafe { cuda.launch(of(src.dtype(), &GATHER), grid, &arguments) }
}

pub(super) fn scatter(
    cuda: Cuda,
    src: Tensor<'_>,
    inverse: Tensor<'_>,
    mut dst: TensorMut<'_>,
) -> Result<()> {
    let arguments = scattered(src, inverse, &mut dst);
    let grid = tiles_of_rows(room(inverse), src.cols(), [src.dtype(); 2]);
    // SAFETY: as in `gather`; the kernel checks what the inverse says.
    unsafe { cuda.launch(of(src.dtype(), &SCATTER), grid, &arguments) }
}

pub(super) fn scatter_add(
    cuda: Cuda,
    src: Tensor<'_>,
    inverse: Tensor<'_>,
    mut dst: TensorMut<'_>,
) -> Result<()> {
    let arguments = scattered(src, inverse, &mut dst);
    let grid = tiles_of_columns(room(inverse), src.cols(), [src.dtype(); 2]);
    // SAFETY: as in `scatter`.
    unsafe { cuda.launch(of(src.dtype(), &SCATTER_ADD), grid, &arguments) }
}

fn scattered(src: Tensor<'_>, inverse: Tensor<'_>, dst: &mut TensorMut<'_>) -> Scatter {
    Scatter {
        x: src.as_ptr(),
        inverse: inverse.as_ptr(),
        room: room(inverse) as i64,
        y: dst.as_mut_ptr(),
        x_stride: src.row_stride() as i64,
        y_stride: dst.row_stride() as i64,
        x_rows: src.rows() as i32,
        y_rows: dst.rows() as i32,
        cols: src.cols() as i32,
    }
}

pub(super) fn scale(cuda: Cuda, mut x: TensorMut<'_>, factors: Tensor<'_>) -> Result<()> {
    let arguments = Scale {
        factors: factors.as_ptr(),
        x: x.as_mut_ptr(),
        factors_stride: factors.row_stride() as i64,
        x_stride: x.row_stride() as i64,
        cols: x.cols() as i32,
    };
    let grid = tiles_of_rows(x.rows(), x.cols(), [x.dtype(); 2]);
    // SAFETY: as in `gather`, of `scale`.
    unsafe { cuda.launch(of(x.dtype(), &SCALE), grid, &arguments) }
}

pub(super) fn copy(cuda: Cuda, x: Tensor<'_>, mut y: TensorMut<'_>) -> Result<()> {
    let kernel = match (x.dtype(), y.dtype()) {
        (DType::Bf16, DType::F32) => &COPY_WIDEN,
        (DType::F32, DType::Bf16) => &COPY_ROUND,
        (same, _) => of(same, &COPY),
    };
    let grid = tiles_of_rows(x.rows(), x.cols(), [x.dtype(), y.dtype()]);
    // SAFETY: as in `gather`, of `copy`.
    unsafe { cuda.launch(kernel, grid, &moved(x, &mut y)) }
}

pub(super) fn add(cuda: Cuda, x: Tensor<'_>, mut y: TensorMut<'_>) -> Result<()> {
    let kernel = match (x.dtype(), y.dtype()) {
        (DType::Bf16, DType::F32) => &ADD_WIDEN,
        (same, _) => of(same, &ADD),
    };
    let grid = tiles_of_rows(x.rows(), x.cols(), [x.dtype(), y.dtype()]);
    // SAFETY: as in `gather`, of `add`.
    unsafe { cuda.launch(kernel, grid, &moved(x, &mut y)) }
}

fn moved(x: Tensor<'_>, y: &mut TensorMut<'_>) -> Move {
    Move {
        x: x.as_ptr(),
        y: y.as_mut_ptr(),
        x_stride: x.row_stride() as i64,
        y_stride: y.row_stride() as i64,
        cols: x.cols() as i32,
    }
}

pub(super) fn add_cycled(cuda: Cuda, x: Tensor<'_>, mut y: TensorMut<'_>) -> Result<()> {
    let sizes = [x.rows(), y.rows()];
    let arguments = cycle(x, &mut y, sizes);
    let grid = tiles_of_columns(x.rows(), x.cols(), [x.dtype(); 2]);
    // SAFETY: as in `gather`, of `add_cycled`; rows of y are whole cycles of those of x.
    unsafe { cuda.launch(of(x.dtype(), &ADD_CYCLED), grid, &arguments) }
}

pub(super) fn add_cycled_backward(cuda: Cuda, dy: Tensor<'_>, mut dx: TensorMut<'_>) -> Result<()> {
    let kernel = match (dy.dtype(), dx.dtype()) {
        (DType::Bf16, DType::F32) => &ADD_CYCLED_BACKWARD_WIDEN,
        (same, _) => of(same, &ADD_CYCLED_BACKWARD),
    };
    let (period, rows) = (dx.rows(), dy.rows());
    let grid = tiles_of_columns(period, dy.cols(), [dy.dtype(), dx.dtype()]);
    // SAFETY: as in `add_cycled`.
    unsafe { cuda.launch(kernel, grid, &cycle(dy, &mut dx, [period, rows])) }
}

/// `rows` are whole periods.
fn cycle(x: Tensor<'_>, y: &mut TensorMut<'_>, [period, rows]: [usize; 2]) -> Cycle {
    Cycle {
        x: x.as_ptr(),
        y: y.as_mut_ptr(),
        x_stride: x.row_stride() as i64,
        y_stride: y.row_stride() as i64,
        period: period as i32,
        cycles: (rows / period.max(1)) as i32,
        cols: x.cols() as i32,
    }
}

/// Blocks that each take a tile of one row, where elements of these types meet: `kTileOfRow`.
pub(crate) fn tiles_of_rows(rows: usize, cols: usize, types: [DType; 2]) -> Grid {
    tiles(rows, cols, types, PACKS)
}

/// Blocks that each take the same columns of several rows, `lists` times:
/// `kTileOfRows`.
pub(crate) fn tiles_of_columns(lists: usize, cols: usize, types: [DType; 2]) -> Grid {
    tiles(lists, cols, types, 1)
}

fn tiles(rows: usize, cols: usize, [x, y]: [DType; 2], packs: usize) -> Grid {
    let pack = 16 / x.size().max(y.size());
    let tiles = cols.div_ceil(THREADS as usize * packs * pack);
    Grid::new([(rows * tiles) as u32, 1, 1], THREADS)
}

fn of(dtype: DType, [f32, bf16]: &Kernels) -> &KernelName {
    if dtype == DType::Bf16 { bf16 } else { f32 }
}
