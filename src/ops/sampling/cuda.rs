//! Sampling on CUDA: `kernels/sampling.cu`.

use crate::device::cuda::{Arguments, Cuda, Grid, KernelName};
use crate::error::Result;
use crate::tensor::{Tensor, TensorMut};

const GREEDY: KernelName = KernelName("sampling_greedy_f32");
const NUCLEUS: KernelName = KernelName("sampling_nucleus_f32");

const THREADS: u32 = 512;
/// Bytes of the sums that each thread of a block has of 16 digits.
const BINS: u32 = 16 * THREADS * size_of::<u64>() as u32;

#[repr(C)]
#[derive(Clone, Copy)]
struct Sampling {
    logits: *const u8,
    nucleus: *const u8, // null, as are uniform and weights: greedy
    uniform: *const u8,
    weights: *mut u8,
    token: *mut u8,
    logits_stride: i64,
    uniform_stride: i64,
    weights_stride: i64,
    token_stride: i64,
    vocab: i64,
}
const _: () = assert!(size_of::<Sampling>() == 80);
// SAFETY: field by field `Sampling` of the kernel file.
unsafe impl Arguments for Sampling {}

pub(super) fn greedy(cuda: Cuda, logits: Tensor<'_>, mut token: TensorMut<'_>) -> Result<()> {
    let arguments = arguments(logits, &mut token);
    let grid = Grid::new([logits.rows() as u32, 1, 1], THREADS);
    // SAFETY: `greedy` checked that every pointer covers its rows and columns on this device, logits
    // in whole packs; the views borrow them.
    unsafe { cuda.launch(&GREEDY, grid, &arguments) }
}

pub(super) fn nucleus(
    cuda: Cuda,
    logits: Tensor<'_>,
    nucleus: Tensor<'_>,
    uniform: Tensor<'_>,
    mut weights: TensorMut<'_>,
    mut token: TensorMut<'_>,
) -> Result<()> {
    let arguments = Sampling {
        nucleus: nucleus.as_ptr(),
        uniform: uniform.as_ptr(),
        weights: weights.as_mut_ptr(),
        uniform_stride: uniform.row_stride() as i64,
        weights_stride: weights.row_stride() as i64,
        ..arguments(logits, &mut token)
    };
    let grid = Grid { shared: BINS, ..Grid::new([logits.rows() as u32, 1, 1], THREADS) };
    // SAFETY: `nucleus` checked that every pointer covers its rows and columns on this device, logits
    // and weights in whole packs; the views borrow them.
    unsafe { cuda.launch(&NUCLEUS, grid, &arguments) }
}

fn arguments(logits: Tensor<'_>, token: &mut TensorMut<'_>) -> Sampling {
    Sampling {
        logits: logits.as_ptr(),
        nucleus: std::ptr::null(),
        uniform: std::ptr::null(),
        weights: std::ptr::null_mut(),
        token: token.as_mut_ptr(),
        logits_stride: logits.row_stride() as i64,
        uniform_stride: 0,
        weights_stride: 0,
        token_stride: token.row_stride() as i64,
        vocab: logits.cols() as i64,
    }
}
