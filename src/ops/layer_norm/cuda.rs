//! Layer normalisation on CUDA: `kernels/layer_norm.cu`.

use super::CHUNK_WEIGHT;
use crate::device::cuda::{Arguments, Cuda, KernelName};
use crate::error::Result;
use crate::ops::columns::{Kernels, grid, in_rows, of};
use crate::ops::{Write, column_sums};
use crate::tensor::{Tensor, TensorMut};

const FORWARD: Kernels =
    [KernelName("layer_norm_forward_f32"), KernelName("layer_norm_forward_bf16")];
const BACKWARD: Kernels =
    [KernelName("layer_norm_backward_f32"), KernelName("layer_norm_backward_bf16")];
const BACKWARD_WEIGHT: Kernels =
    [KernelName("layer_norm_backward_weight_f32"), KernelName("layer_norm_backward_weight_bf16")];

/// Rows of a block, as in `rms_norm`; forward reads two rows of parameters for them.
const CHUNK_FORWARD: usize = 32;
const CHUNK_BACKWARD: usize = 16;

#[repr(C)]
#[derive(Clone, Copy)]
struct Forward {
    x: *const u8,
    weight: *const u8,
    bias: *const u8,
    y: *mut u8,
    mean: *mut u8,
    rstd: *mut u8,
    x_stride: i64,
    y_stride: i64,
    mean_stride: i64,
    rstd_stride: i64,
    rows: i32,
    cols: i32,
    chunk: i32,
    eps: f32,
}
const _: () = assert!(size_of::<Forward>() == 96);
// SAFETY: field by field `Forward` of the kernel file.
unsafe impl Arguments for Forward {}

#[repr(C)]
#[derive(Clone, Copy)]
struct Backward {
    x: *const u8,
    weight: *const u8,
    mean: *const u8,
    rstd: *const u8,
    dy: *const u8,
    dx: *mut u8,
    partials: *mut u8,
    x_stride: i64,
    mean_stride: i64,
    rstd_stride: i64,
    dy_stride: i64,
    dx_stride: i64,
    rows: i32,
    cols: i32,
    chunk: i32,
    adds: i32,
}
const _: () = assert!(size_of::<Backward>() == 112);
// SAFETY: field by field `Backward` of the kernel file.
unsafe impl Arguments for Backward {}

pub(super) fn forward(
    cuda: Cuda,
    x: Tensor<'_>,
    weight: Tensor<'_>,
    bias: Tensor<'_>,
    mut y: TensorMut<'_>,
    mut mean: TensorMut<'_>,
    mut rstd: TensorMut<'_>,
    eps: f32,
) -> Result<()> {
    let arguments = Forward {
        x: x.as_ptr(),
        weight: weight.as_ptr(),
        bias: bias.as_ptr(),
        y: y.as_mut_ptr(),
        mean: mean.as_mut_ptr(),
        rstd: rstd.as_mut_ptr(),
        x_stride: x.row_stride() as i64,
        y_stride: y.row_stride() as i64,
        mean_stride: mean.row_stride() as i64,
        rstd_stride: rstd.row_stride() as i64,
        rows: x.rows() as i32,
        cols: x.cols() as i32,
        chunk: CHUNK_FORWARD as i32,
        eps,
    };
    // SAFETY: `forward` checked that every pointer covers its rows and columns on this device, in
    // whole packs of this dtype; the views borrow them.
    unsafe { cuda.launch(of(x.dtype(), &FORWARD), grid(x, CHUNK_FORWARD), &arguments) }
}

pub(super) fn backward(
    cuda: Cuda,
    x: Tensor<'_>,
    weight: Tensor<'_>,
    mean: Tensor<'_>,
    rstd: Tensor<'_>,
    dy: Tensor<'_>,
    mut dx: TensorMut<'_>,
    dweight: Option<TensorMut<'_>>,
    dbias: Option<TensorMut<'_>>,
    partials: TensorMut<'_>,
    write: Write,
) -> Result<()> {
    let mut arguments = Backward {
        x: x.as_ptr(),
        weight: weight.as_ptr(),
        mean: mean.as_ptr(),
        rstd: rstd.as_ptr(),
        dy: dy.as_ptr(),
        dx: dx.as_mut_ptr(),
        partials: std::ptr::null_mut(),
        x_stride: x.row_stride() as i64,
        mean_stride: mean.row_stride() as i64,
        rstd_stride: rstd.row_stride() as i64,
        dy_stride: dy.row_stride() as i64,
        dx_stride: dx.row_stride() as i64,
        rows: x.rows() as i32,
        cols: x.cols() as i32,
        chunk: CHUNK_BACKWARD as i32,
        adds: i32::from(write == Write::Accumulate),
    };
    if dweight.is_none() && dbias.is_none() {
        let grid = grid(x, CHUNK_BACKWARD);
        // SAFETY: as in `forward`.
        return unsafe { cuda.launch(of(x.dtype(), &BACKWARD), grid, &arguments) };
    }
    let blocks = x.rows().div_ceil(CHUNK_WEIGHT);
    let mut partials = in_rows(partials, 2 * blocks, x.cols());
    (arguments.partials, arguments.chunk) = (partials.as_mut_ptr(), CHUNK_WEIGHT as i32);
    let grid = grid(x, CHUNK_WEIGHT);
    // SAFETY: as in `forward`; `partials` has two rows for each block.
    unsafe { cuda.launch(of(x.dtype(), &BACKWARD_WEIGHT), grid, &arguments)? };
    for (gradient, part) in [(dweight, 0..blocks), (dbias, blocks..2 * blocks)] {
        if let Some(gradient) = gradient {
            column_sums::cuda::add_whole(cuda, partials.as_ref().slice_rows(part), gradient)?;
        }
    }
    Ok(())
}
