//! AdamW on CUDA: `kernels/adamw.cu`.

use super::{AdamW, Table};
use crate::device::cuda::{Arguments, Cuda, Grid, KernelName};
use crate::error::Result;
use crate::tensor::{Tensor, TensorMut};

const STEP: KernelName = KernelName("adamw_step_f32");
const STEP_AND_COPY: KernelName = KernelName("adamw_step_bf16");
const THREADS: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy)]
struct AdamWUpdate {
    g: *const u8,
    step: *const u8,
    verdict: *const u8,
    chunks: *const u8,
    p: *mut u8,
    m: *mut u8,
    v: *mut u8,
    copy: *mut u8,
    beta1: f64,
    beta2: f64,
    eps: f64,
}
const _: () = assert!(size_of::<AdamWUpdate>() == 88);
// SAFETY: field by field `AdamWUpdate` of the kernel file.
unsafe impl Arguments for AdamWUpdate {}

pub(super) fn step(
    cuda: Cuda,
    g: Tensor<'_>,
    step: Tensor<'_>,
    verdict: Tensor<'_>,
    table: &Table,
    mut p: TensorMut<'_>,
    mut m: TensorMut<'_>,
    mut v: TensorMut<'_>,
    mut copy: Option<TensorMut<'_>>,
    config: &AdamW,
) -> Result<()> {
    let kernel = if copy.is_some() { STEP_AND_COPY } else { STEP };
    let update = AdamWUpdate {
        g: g.as_ptr(),
        step: step.as_ptr(),
        verdict: verdict.as_ptr(),
        chunks: table.chunks.view().as_ptr(),
        p: p.as_mut_ptr(),
        m: m.as_mut_ptr(),
        v: v.as_mut_ptr(),
        copy: copy.as_mut().map_or(std::ptr::null_mut(), TensorMut::as_mut_ptr),
        beta1: config.beta1,
        beta2: config.beta2,
        eps: config.eps,
    };
    let grid = Grid::new([table.chunks.rows() as u32, 1, 1], THREADS);
    // SAFETY: `step` checked that g, p, m, v and copy have n elements, that the table's chunks, which
    // `Table::new` made disjoint, end before n, and that step and verdict are whole records, all on
    // this device; the views and the table are borrowed.
    unsafe { cuda.launch(&kernel, grid, &update) }
}
