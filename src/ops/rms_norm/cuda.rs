//! RMS normalisation on CUDA: `kernels/rms_norm.cu`.

use super::Residual;
use crate::device::cuda::{Arguments, Cuda, Grid, KernelName};
use crate::error::Result;
use crate::ops::Write;
use crate::tensor::{DType, Tensor, TensorMut};

/// In f32 and in bf16.
type Kernels = [KernelName; 2];

const FORWARD: Kernels = [KernelName("rms_norm_forward_f32"), KernelName("rms_norm_forward_bf16")];
const BACKWARD: Kernels =
    [KernelName("rms_norm_backward_f32"), KernelName("rms_norm_backward_bf16")];
const BACKWARD_WEIGHT: Kernels =
    [KernelName("rms_norm_backward_weight_f32"), KernelName("rms_norm_backward_weight_bf16")];

const THREADS: u32 = 256;
/// Packs of 16 bytes that a block of `backward_weight` is wide.
const WIDE: usize = 4;

#[repr(C)]
#[derive(Clone, Copy)]
struct Forward {
    x: *const u8,
    residual: *const u8, // null: none
    weight: *const u8,
    h: *mut u8,
    y: *mut u8,
    rstd: *mut u8,
    x_stride: i64,
    residual_stride: i64,
    h_stride: i64,
    y_stride: i64,
    rstd_stride: i64,
    cols: i32,
    eps: f32,
}
const _: () = assert!(size_of::<Forward>() == 96);
// SAFETY: field by field `Forward` of the kernel file.
unsafe impl Arguments for Forward {}

#[repr(C)]
#[derive(Clone, Copy)]
struct Backward {
    h: *const u8,
    weight: *const u8,
    rstd: *const u8,
    dy: *const u8,
    dh: *mut u8,
    h_stride: i64,
    rstd_stride: i64,
    dy_stride: i64,
    dh_stride: i64,
    cols: i32,
    adds: i32,
}
const _: () = assert!(size_of::<Backward>() == 80);
// SAFETY: field by field `Backward` of the kernel file.
unsafe impl Arguments for Backward {}

#[repr(C)]
#[derive(Clone, Copy)]
struct BackwardWeight {
    h: *const u8,
    rstd: *const u8,
    dy: *const u8,
    dweight: *mut u8,
    h_stride: i64,
    rstd_stride: i64,
    dy_stride: i64,
    rows: i32,
    cols: i32,
}
const _: () = assert!(size_of::<BackwardWeight>() == 64);
// SAFETY: field by field `BackwardWeight` of the kernel file.
unsafe impl Arguments for BackwardWeight {}

pub(super) fn forward(
    cuda: Cuda,
    x: Tensor<'_>,
    residual: Option<Residual<'_>>,
    weight: Tensor<'_>,
    mut y: TensorMut<'_>,
    mut rstd: TensorMut<'_>,
    eps: f32,
) -> Result<()> {
    let mut arguments = Forward {
        x: x.as_ptr(),
        residual: std::ptr::null(),
        weight: weight.as_ptr(),
        h: std::ptr::null_mut(),
        y: y.as_mut_ptr(),
        rstd: rstd.as_mut_ptr(),
        x_stride: x.row_stride() as i64,
        residual_stride: 0,
        h_stride: 0,
        y_stride: y.row_stride() as i64,
        rstd_stride: rstd.row_stride() as i64,
        cols: x.cols() as i32,
        eps,
    };
    if let Some(Residual { add, mut h }) = residual {
        (arguments.residual, arguments.residual_stride) = (add.as_ptr(), add.row_stride() as i64);
        (arguments.h, arguments.h_stride) = (h.as_mut_ptr(), h.row_stride() as i64);
    }
    // SAFETY: `forward` checked that every pointer covers its rows and columns on this device, in
    // whole packs of this dtype; the views borrow them.
    unsafe { cuda.launch(of(x.dtype(), &FORWARD), rows(x), &arguments) }
}

pub(super) fn backward(
    cuda: Cuda,
    h: Tensor<'_>,
    weight: Tensor<'_>,
    rstd: Tensor<'_>,
    dy: Tensor<'_>,
    mut dh: TensorMut<'_>,
    dweight: Option<TensorMut<'_>>,
    write: Write,
) -> Result<()> {
    let [h_stride, rstd_stride, dy_stride] = [h, rstd, dy].map(|t| t.row_stride() as i64);
    let arguments = Backward {
        h: h.as_ptr(),
        weight: weight.as_ptr(),
        rstd: rstd.as_ptr(),
        dy: dy.as_ptr(),
        dh: dh.as_mut_ptr(),
        h_stride,
        rstd_stride,
        dy_stride,
        dh_stride: dh.row_stride() as i64,
        cols: h.cols() as i32,
        adds: i32::from(write == Write::Accumulate),
    };
    // SAFETY: as in `forward`.
    unsafe { cuda.launch(of(h.dtype(), &BACKWARD), rows(h), &arguments)? };
    let Some(mut dweight) = dweight else { return Ok(()) };
    let arguments = BackwardWeight {
        h: h.as_ptr(),
        rstd: rstd.as_ptr(),
        dy: dy.as_ptr(),
        dweight: dweight.as_mut_ptr(),
        h_stride,
        rstd_stride,
        dy_stride,
        rows: h.rows() as i32,
        cols: h.cols() as i32,
    };
    let blocks = h.cols().div_ceil(WIDE * 16 / h.dtype().size());
    let grid = Grid::new([blocks as u32, 1, 1], THREADS);
    // SAFETY: as in `forward`.
    unsafe { cuda.launch(of(h.dtype(), &BACKWARD_WEIGHT), grid, &arguments) }
}

/// A block per row.
fn rows(x: Tensor<'_>) -> Grid {
    Grid::new([x.rows() as u32, 1, 1], THREADS)
}

fn of(dtype: DType, [f32, bf16]: &Kernels) -> &KernelName {
    if dtype == DType::Bf16 { bf16 } else { f32 }
}
