//! Embedding on CUDA: `kernels/embedding.cu`.

use crate::device::cuda::{Arguments, Cuda, KernelName};
use crate::error::Result;
use crate::ops::rows;
use crate::tensor::{DType, Tensor, TensorMut};

const FORWARD_F32: KernelName = KernelName("embedding_forward_f32");
const FORWARD_BF16: KernelName = KernelName("embedding_forward_bf16");
const FORWARD_WIDEN: KernelName = KernelName("embedding_forward_widen_f32");
const FORWARD_ROUND: KernelName = KernelName("embedding_forward_round_bf16");
const BACKWARD_F32: KernelName = KernelName("embedding_backward_f32");
const BACKWARD_BF16: KernelName = KernelName("embedding_backward_bf16");

#[repr(C)]
#[derive(Clone, Copy)]
struct Forward {
    source: *const u8,
    table: *const u8,
    features: *const u8,
    x: *mut u8,
    source_stride: i64,
    table_stride: i64,
    features_stride: i64,
    x_stride: i64,
    vocab: i32,
    feature_rows: i32,
    cols: i32,
}
const _: () = assert!(size_of::<Forward>() == 80);
// SAFETY: field by field `Forward` of the kernel file.
unsafe impl Arguments for Forward {}

#[repr(C)]
#[derive(Clone, Copy)]
struct Backward {
    inverse: *const u8,
    room: i64,
    dx: *const u8,
    dtable: *mut u8, // null: frozen
    dfeatures: *mut u8,
    dx_stride: i64,
    dtable_stride: i64,
    dfeatures_stride: i64,
    tokens: i32,
    vocab: i32,
    feature_rows: i32,
    cols: i32,
}
const _: () = assert!(size_of::<Backward>() == 80);
// SAFETY: field by field `Backward` of the kernel file.
unsafe impl Arguments for Backward {}

pub(super) fn forward(
    cuda: Cuda,
    source: Tensor<'_>,
    table: Tensor<'_>,
    features: Tensor<'_>,
    mut x: TensorMut<'_>,
) -> Result<()> {
    let kernel = match (table.dtype(), x.dtype()) {
        (DType::Bf16, DType::Bf16) => &FORWARD_BF16,
        (DType::Bf16, _) => &FORWARD_WIDEN,
        (_, DType::Bf16) => &FORWARD_ROUND,
        _ => &FORWARD_F32,
    };
    let arguments = Forward {
        source: source.as_ptr(),
        table: table.as_ptr(),
        features: features.as_ptr(),
        x: x.as_mut_ptr(),
        source_stride: source.row_stride() as i64,
        table_stride: table.row_stride() as i64,
        features_stride: features.row_stride() as i64,
        x_stride: x.row_stride() as i64,
        vocab: table.rows() as i32,
        feature_rows: features.rows() as i32,
        cols: table.cols() as i32,
    };
    let grid = rows::tiles_of_rows(x.rows(), x.cols(), [table.dtype(), x.dtype()]);
    // SAFETY: `forward` checked that every pointer covers its rows and columns on this device, in
    // whole packs of these dtypes; the kernel checks the sources; the views borrow them.
    unsafe { cuda.launch(kernel, grid, &arguments) }
}

pub(super) fn backward(
    cuda: Cuda,
    inverse: Tensor<'_>,
    dx: Tensor<'_>,
    mut dtable: Option<TensorMut<'_>>,
    mut dfeatures: TensorMut<'_>,
    vocab: usize,
) -> Result<()> {
    let kernel = if dx.dtype() == DType::Bf16 { &BACKWARD_BF16 } else { &BACKWARD_F32 };
    let arguments = Backward {
        inverse: inverse.as_ptr(),
        room: rows::room(inverse) as i64,
        dx: dx.as_ptr(),
        dtable: dtable.as_mut().map_or(std::ptr::null_mut(), TensorMut::as_mut_ptr),
        dfeatures: dfeatures.as_mut_ptr(),
        dx_stride: dx.row_stride() as i64,
        dtable_stride: dtable.as_ref().map_or(0, |dtable| dtable.row_stride() as i64),
        dfeatures_stride: dfeatures.row_stride() as i64,
        tokens: dx.rows() as i32,
        vocab: vocab as i32,
        feature_rows: dfeatures.rows() as i32,
        cols: dx.cols() as i32,
    };
    let grid = rows::tiles_of_columns(rows::room(inverse), dx.cols(), [dx.dtype(), DType::F32]);
    // SAFETY: as in `forward`; the kernel checks what the inverse says.
    unsafe { cuda.launch(kernel, grid, &arguments) }
}
