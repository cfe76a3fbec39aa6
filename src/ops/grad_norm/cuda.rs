//! Gradient norm on CUDA: `kernels/grad_norm.cu`.

use crate::device::cuda::{Arguments, Cuda, Grid, KernelName};
use crate::error::Result;
use crate::tensor::{Tensor, TensorMut};

const PARTIAL: KernelName = KernelName("grad_norm_partial_f32");
const VERDICT: KernelName = KernelName("grad_norm_verdict");
const THREADS: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy)]
struct Partial {
    g: *const u8,
    partial: *mut u8,
    n: i64,
}
const _: () = assert!(size_of::<Partial>() == 24);
// SAFETY: field by field `Partial` of the kernel file.
unsafe impl Arguments for Partial {}

#[repr(C)]
#[derive(Clone, Copy)]
struct Judge {
    partial: *const u8,
    step: *const u8,
    verdict: *mut u8,
    partials: i64,
    most: f64,
}
const _: () = assert!(size_of::<Judge>() == 40);
// SAFETY: field by field `Judge` of the kernel file.
unsafe impl Arguments for Judge {}

pub(super) fn forward(
    cuda: Cuda,
    g: Tensor<'_>,
    step: Tensor<'_>,
    mut partials: TensorMut<'_>,
    mut verdict: TensorMut<'_>,
    most: f64,
) -> Result<()> {
    let chunks = partials.cols();
    let partial = Partial { g: g.as_ptr(), partial: partials.as_mut_ptr(), n: g.cols() as i64 };
    let judge = Judge {
        partial: partial.partial,
        step: step.as_ptr(),
        verdict: verdict.as_mut_ptr(),
        partials: chunks as i64,
        most,
    };
    // SAFETY: `forward` checked that g has n elements, partials one for each chunk of them, and that
    // step and verdict are whole records, all on this device; the views borrow them.
    unsafe {
        cuda.launch(&PARTIAL, Grid::new([chunks as u32, 1, 1], THREADS), &partial)?;
        cuda.launch(&VERDICT, Grid::new([1; 3], THREADS), &judge)
    }
}
