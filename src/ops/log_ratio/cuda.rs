//! The pass over a chunk of logits on CUDA, and the sums of branches: `kernels/log_ratio.cu`.

use crate::device::cuda::{Arguments, Cuda, Grid, KernelName};
use crate::error::Result;
use crate::tensor::{Tensor, TensorMut};

const LOG_PROBS: KernelName = KernelName("log_ratio_log_probs_f32");
const GRADIENTS: KernelName = KernelName("log_ratio_gradients_f32");
const BRANCH_SUMS: KernelName = KernelName("log_ratio_branch_sums_f32");

/// Of a block, a row's.
const THREADS: u32 = 512;
/// Bytes of shared memory that a block's own sums may take of what it can have.
const SUMS: u32 = 1024;
/// Branches of a block, and threads of each.
const BRANCHES: usize = 4;
const WARP: u32 = 32;

#[repr(C)]
#[derive(Clone, Copy)]
struct LogRatio {
    logits: *mut u8,
    targets: *const u8,
    factors: *const u8,
    log_probs: *mut u8,
    logits_stride: i64,
    targets_stride: i64,
    factors_stride: i64,
    log_probs_stride: i64,
    cols: i32,
    held: i32,
}
const _: () = assert!(size_of::<LogRatio>() == 72);
// SAFETY: field by field `LogRatio` of the kernel file.
unsafe impl Arguments for LogRatio {}

#[repr(C)]
#[derive(Clone, Copy)]
struct BranchSums {
    log_probs: *const u8,
    offsets: *const u8,
    sums: *mut u8,
    log_probs_stride: i64,
    sums_stride: i64,
    rows: i32,
    branches: i32,
}
const _: () = assert!(size_of::<BranchSums>() == 48);
// SAFETY: field by field `BranchSums` of the kernel file.
unsafe impl Arguments for BranchSums {}

pub(super) fn log_probs(
    cuda: Cuda,
    mut logits: TensorMut<'_>,
    targets: Tensor<'_>,
    log_probs: TensorMut<'_>,
) -> Result<()> {
    let arguments = arguments(&mut logits, targets, None, Some(log_probs));
    let grid = Grid::new([logits.rows() as u32, 1, 1], THREADS);
    // SAFETY: `log_probs` checked that every pointer covers its rows and columns on this device, logits in
    // whole packs; the views borrow them.
    unsafe { cuda.launch(&LOG_PROBS, grid, &arguments) }
}

pub(super) fn gradients(
    cuda: Cuda,
    mut logits: TensorMut<'_>,
    targets: Tensor<'_>,
    factors: Option<Tensor<'_>>,
    log_probs: Option<TensorMut<'_>>,
) -> Result<()> {
    // As many of a row's logits as there is room for, in whole packs.
    let room = (cuda.gpu().shared - SUMS) / 16 * 4;
    let held = logits.cols().min(room as usize);
    let arguments =
        LogRatio { held: held as i32, ..arguments(&mut logits, targets, factors, log_probs) };
    let grid = Grid::new([logits.rows() as u32, 1, 1], THREADS);
    let grid = Grid { shared: 4 * held as u32, ..grid };
    // SAFETY: as in `log_probs`; shared memory has room for `held` logits.
    unsafe { cuda.launch(&GRADIENTS, grid, &arguments) }
}

pub(super) fn branch_sums(
    cuda: Cuda,
    log_probs: Tensor<'_>,
    offsets: Tensor<'_>,
    mut sums: TensorMut<'_>,
) -> Result<()> {
    let arguments = BranchSums {
        log_probs: log_probs.as_ptr(),
        offsets: offsets.as_ptr(),
        sums: sums.as_mut_ptr(),
        log_probs_stride: log_probs.row_stride() as i64,
        sums_stride: sums.row_stride() as i64,
        rows: log_probs.rows() as i32,
        branches: sums.rows() as i32,
    };
    let blocks = sums.rows().div_ceil(BRANCHES) as u32;
    let grid = Grid::new([blocks, 1, 1], BRANCHES as u32 * WARP);
    // SAFETY: `branch_sums` checked that every pointer covers its rows on this device; the kernel itself looks
    // where offsets point. The views borrow them.
    unsafe { cuda.launch(&BRANCH_SUMS, grid, &arguments) }
}

fn arguments(
    logits: &mut TensorMut<'_>,
    targets: Tensor<'_>,
    factors: Option<Tensor<'_>>,
    log_probs: Option<TensorMut<'_>>,
) -> LogRatio {
    let stride = |tensor: Option<Tensor<'_>>| tensor.map_or(0, |t| t.row_stride() as i64);
    LogRatio {
        logits: logits.as_mut_ptr(),
        targets: targets.as_ptr(),
        factors: factors.map_or(std::ptr::null(), |factors| factors.as_ptr()),
        log_probs_stride: stride(log_probs.as_ref().map(TensorMut::as_ref)),
        log_probs: log_probs.map_or(std::ptr::null_mut(), |mut p| p.as_mut_ptr()),
        logits_stride: logits.row_stride() as i64,
        targets_stride: targets.row_stride() as i64,
        factors_stride: stride(factors),
        cols: logits.cols() as i32,
        held: 0,
    }
}
