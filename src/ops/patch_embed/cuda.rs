//! Patch embedding on CUDA: `kernels/patch_embed/`.

use super::{Patches, padded};
use crate::device::cuda::{Arguments, Cuda, Grid, KernelName};
use crate::error::Result;
use crate::tensor::{Tensor, TensorMut};

const FORWARD: KernelName = KernelName("patch_embed_forward_bf16");
const BACKWARD_WEIGHT: KernelName = KernelName("patch_embed_backward_weight_bf16");

const THREADS: u32 = 256;
/// Patches of a block of forward.
const PATCHES: usize = 32;
/// Bytes of one of its two stages of weights: 16 of each row of 1664, bf16.
const STAGE: usize = 1664 * 32;
/// Bytes of its sums and corners.
const SHARED: usize = 4352;
/// Columns of dx of a block of backward, and pixels of a patch.
const COLUMNS: usize = 128;
const PIXELS: usize = 28;

#[repr(C)]
#[derive(Clone, Copy)]
struct Pixels {
    data: *const u8,
    stride: i64,
    scale: [f32; 3],
    shift: [f32; 3],
    patches: i32,
    grid: i32,
    patch: i32,
    piece: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Forward {
    pixels: Pixels,
    weight: *const u8,
    position: *const u8,
    norm_weight: *const u8,
    norm_bias: *const u8,
    x: *mut u8,
    y: *mut u8,
    mean: *mut u8,
    rstd: *mut u8,
    weight_stride: i64,
    position_stride: i64,
    x_stride: i64,
    y_stride: i64,
    mean_stride: i64,
    rstd_stride: i64,
    width: i32,
    eps: f32,
}
const _: () = assert!(size_of::<Forward>() == 176);
// SAFETY: field by field `Forward` of the kernel file.
unsafe impl Arguments for Forward {}

#[repr(C)]
#[derive(Clone, Copy)]
struct Backward {
    pixels: Pixels,
    dx: *const u8,
    dweight: *mut u8,
    dx_stride: i64,
    dweight_stride: i64,
    width: i32,
    window_rows: i32,
    window_cols: i32,
    /// Not read.
    padding: i32,
}
const _: () = assert!(size_of::<Backward>() == 104);
// SAFETY: field by field `Backward` of the kernel file, and what rounds it up to a multiple of 8.
unsafe impl Arguments for Backward {}

/// Bytes of shared memory of a block of forward: weights, in whose second stage the pixels are at first,
/// sums, values.
pub(super) fn shared(spec: &Patches) -> usize {
    let pixels = PATCHES * spec.patch_size * (3 * spec.patch_size + 4) / 4 * 4;
    STAGE
        + STAGE.max(pixels.next_multiple_of(16))
        + SHARED
        + PATCHES * 2 * (padded(spec.values()) + 8)
}

pub(super) fn forward(
    cuda: Cuda,
    pixels: Tensor<'_>,
    weight: Tensor<'_>,
    position: Tensor<'_>,
    norm_weight: Tensor<'_>,
    norm_bias: Tensor<'_>,
    mut x: Option<TensorMut<'_>>,
    mut y: TensorMut<'_>,
    mut mean: TensorMut<'_>,
    mut rstd: TensorMut<'_>,
    spec: &Patches,
    eps: f32,
) -> Result<()> {
    let arguments = Forward {
        pixels: pixels_of(pixels, spec),
        weight: weight.as_ptr(),
        position: position.as_ptr(),
        norm_weight: norm_weight.as_ptr(),
        norm_bias: norm_bias.as_ptr(),
        x: x.as_mut().map_or(std::ptr::null_mut(), TensorMut::as_mut_ptr),
        y: y.as_mut_ptr(),
        mean: mean.as_mut_ptr(),
        rstd: rstd.as_mut_ptr(),
        weight_stride: weight.row_stride() as i64,
        position_stride: position.row_stride() as i64,
        x_stride: x.map_or(0, |x| x.row_stride() as i64),
        y_stride: y.row_stride() as i64,
        mean_stride: mean.row_stride() as i64,
        rstd_stride: rstd.row_stride() as i64,
        width: y.cols() as i32,
        eps,
    };
    let blocks = [y.rows().div_ceil(PATCHES) as u32, 1, 1];
    let grid = Grid { shared: shared(spec) as u32, ..Grid::new(blocks, THREADS) };
    // SAFETY: `forward` checked that every pointer covers its rows and columns on this device, aligned
    // for copies of 16 bytes; `pixels` has the pictures that `spec` tells of; the views borrow them.
    unsafe { cuda.launch(&FORWARD, grid, &arguments) }
}

pub(super) fn backward_weight(
    cuda: Cuda,
    pixels: Tensor<'_>,
    dx: Tensor<'_>,
    mut dweight: TensorMut<'_>,
    spec: &Patches,
) -> Result<()> {
    if dx.rows() == 0 {
        return Ok(());
    }
    let side = spec.patch_size;
    let window_cols = side.min(PIXELS);
    let window_rows = PIXELS / window_cols;
    let arguments = Backward {
        pixels: pixels_of(pixels, spec),
        dx: dx.as_ptr(),
        dweight: dweight.as_mut_ptr(),
        dx_stride: dx.row_stride() as i64,
        dweight_stride: dweight.row_stride() as i64,
        width: dx.cols() as i32,
        window_rows: window_rows as i32,
        window_cols: window_cols as i32,
        padding: 0,
    };
    let windows = side.div_ceil(window_rows) * side.div_ceil(window_cols);
    let blocks = [windows as u32, dx.cols().div_ceil(COLUMNS) as u32, 1];
    // SAFETY: as in `forward`, checked by `backward`.
    unsafe { cuda.launch(&BACKWARD_WEIGHT, Grid::new(blocks, THREADS), &arguments) }
}

fn pixels_of(pixels: Tensor<'_>, spec: &Patches) -> Pixels {
    let std = spec.std.map(f64::from);
    let [address, stride] = [pixels.as_ptr().addr(), pixels.row_stride()];
    // A run of pixels of an even patch has an even number of bytes, at an even place.
    let is_even = [address, stride, spec.patch_size].iter().all(|n| n.is_multiple_of(2));
    Pixels {
        data: pixels.as_ptr(),
        stride: stride as i64,
        scale: std.map(|std| (1.0 / (255.0 * std)) as f32),
        shift: std::array::from_fn(|c| (-f64::from(spec.mean[c]) / std[c]) as f32),
        patches: (pixels.rows() * spec.count()) as i32,
        grid: spec.grid() as i32,
        patch: spec.patch_size as i32,
        piece: if is_even { 2 } else { 1 },
    }
}
