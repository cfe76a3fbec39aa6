//! Attention on CUDA: `kernels/attention/`.

mod backward;
mod forward;

pub(super) use backward::backward;
pub(super) use forward::forward;

use super::Heads;
use crate::device::cuda::{Cuda, KernelName};

/// The instances of the CUDA kernels: any other head_dim, a multiple of 8, runs the next of these, its rows filled up
/// with zeros in shared memory.
pub const DIMS: [usize; 4] = [32, 64, 104, 128];
type Kernels = [KernelName; DIMS.len()];

/// The kernel for heads of `dim`, and the dimension that it was made for.
fn instance(kernels: &'static Kernels, dim: usize) -> (&'static KernelName, usize) {
    let i = DIMS.iter().position(|&made_for| dim <= made_for).expect("checked by the op");
    (&kernels[i], DIMS[i])
}

/// `Heads` of plan.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct Lain {
    data: *mut u8,
    stride: i64,
    head_stride: i64,
}
const _: () = assert!(size_of::<Lain>() == 24);

impl Lain {
    fn of(heads: Heads<'_>) -> Lain {
        let columns = heads.columns();
        Lain {
            data: columns.as_ptr().cast_mut(),
            stride: columns.row_stride() as i64,
            head_stride: heads.lay().stride as i64,
        }
    }
}

/// Blocks that stay: as many as the GPU runs at once where a multiprocessor holds `each`.
fn resident(cuda: Cuda, each: usize) -> u32 {
    (cuda.gpu().multiprocessors as usize * each) as u32
}
