//! RMS normalisation on CUDA: `kernels/rms_norm.cu`.

use super::{CHUNK_WEIGHT, Residual};
use crate::device::cuda::{Arguments, Cuda, KernelName};
use crate::error::Result;
use crate::ops::columns::{Kernels, grid, in_rows, of};
use crate::ops::{Write, column_sums};
use crate::tensor::{Tensor, TensorMut};

const FORWARD: Kernels = [KernelName("rms_norm_forward_f32"), KernelName("rms_norm_forward_bf16")];
const BACKWARD: Kernels =
    [KernelName("rms_norm_backward_f32"), KernelName("rms_norm_backward_bf16")];
const BACKWARD_WEIGHT: Kernels =
    [KernelName("rms_norm_backward_weight_f32"), KernelName("rms_norm_backward_weight_bf16")];

/// Rows of a block: enough that reading the weight for each block adds 3 % to 256 rows, few enough
/// that 8192 rows make 512 blocks.
const CHUNK: usize = 16;

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
    rows: i32,
    cols: i32,
    chunk: i32,
    eps: f32,
}
const _: () = assert!(size_of::<Forward>() == 104);
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
    partials: *mut u8,
    h_stride: i64,
    rstd_stride: i64,
    dy_stride: i64,
    dh_stride: i64,
    rows: i32,
    cols: i32,
    chunk: i32,
    adds: i32,
}
const _: () = assert!(size_of::<Backward>() == 96);
// SAFETY: field by field `Backward` of the kernel file.
unsafe impl Arguments for Backward {}

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
        rows: x.rows() as i32,
        cols: x.cols() as i32,
        chunk: CHUNK as i32,
        eps,
    };
    if let Some(Residual { add, mut h }) = residual {
        (arguments.residual, arguments.residual_stride) = (add.as_ptr(), add.row_stride() as i64);
        (arguments.h, arguments.h_stride) = (h.as_mut_ptr(), h.row_stride() as i64);
    }
    // SAFETY: `forward` checked that every pointer covers its rows and columns on this device, in
    // whole packs of this dtype; the views borrow them.
    unsafe { cuda.launch(of(x.dtype(), &FORWARD), grid(x, CHUNK), &arguments) }
}

pub(super) fn backward(
    cuda: Cuda,
    h: Tensor<'_>,
    weight: Tensor<'_>,
    rstd: Tensor<'_>,
    dy: Tensor<'_>,
    mut dh: TensorMut<'_>,
    dweight: Option<TensorMut<'_>>,
    partials: TensorMut<'_>,
    write: Write,
) -> Result<()> {
    let mut arguments = Backward {
        h: h.as_ptr(),
        weight: weight.as_ptr(),
        rstd: rstd.as_ptr(),
        dy: dy.as_ptr(),
        dh: dh.as_mut_ptr(),
        partials: std::ptr::null_mut(),
        h_stride: h.row_stride() as i64,
        rstd_stride: rstd.row_stride() as i64,
        dy_stride: dy.row_stride() as i64,
        dh_stride: dh.row_stride() as i64,
        rows: h.rows() as i32,
        cols: h.cols() as i32,
        chunk: CHUNK as i32,
        adds: i32::from(write == Write::Accumulate),
    };
    let Some(dweight) = dweight else {
        // SAFETY: as in `forward`.
        return unsafe { cuda.launch(of(h.dtype(), &BACKWARD), grid(h, CHUNK), &arguments) };
    };
    let mut partials = in_rows(partials, h.rows().div_ceil(CHUNK_WEIGHT), h.cols());
    (arguments.partials, arguments.chunk) = (partials.as_mut_ptr(), CHUNK_WEIGHT as i32);
    let grid = grid(h, CHUNK_WEIGHT);
    // SAFETY: as in `forward`; `partials` has a row for each block.
    unsafe { cuda.launch(of(h.dtype(), &BACKWARD_WEIGHT), grid, &arguments)? };
    column_sums::cuda::add_whole(cuda, partials.as_ref(), dweight)
}
