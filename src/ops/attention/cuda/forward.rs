//! Launch of `kernels/attention/forward.cu`.

use super::{Kernels, Lain, instance, resident};
use crate::device::cuda::{Arguments, Cuda, Grid, KernelName};
use crate::error::Result;
use crate::ops::attention::plan::ROWS_FORWARD;
use crate::ops::attention::{HeadsMut, Inputs};
use crate::tensor::{Tensor, TensorMut};

const FORWARD: Kernels = [
    KernelName("attention_forward_d32_bf16"),
    KernelName("attention_forward_d64_bf16"),
    KernelName("attention_forward_d104_bf16"),
    KernelName("attention_forward_d128_bf16"),
];

const THREADS: u32 = 128;
/// Of a multiprocessor, by registers.
const MOST_BLOCKS: usize = 2;
/// Keys of a stage, of which there are two, and as many of values.
const STAGE: usize = 64;

#[repr(C)]
#[derive(Clone, Copy)]
struct Forward {
    q: Lain,
    k: Lain,
    v: Lain,
    o: Lain,
    lse: *mut u8,
    plan: *const u8,
    lse_stride: i64,
    queries: i32,
    keys: i32,
    heads: i32,
    dim: i32,
    scale: f32,
    unused: i32,
}
const _: () = assert!(size_of::<Forward>() == 144);
// SAFETY: field by field `Forward` of the kernel file.
unsafe impl Arguments for Forward {}

/// Bytes of shared memory of a block: `Room` of the kernel file.
const fn shared(dim: usize) -> usize {
    let (rows, ranges, lse) = (ROWS_FORWARD + 4 * STAGE, 16 * ROWS_FORWARD, 4 * ROWS_FORWARD);
    2 * dim * rows + ranges + lse
}

pub(in super::super) fn forward(
    cuda: Cuda,
    inputs: Inputs<'_>,
    plan: Tensor<'_>,
    o: HeadsMut<'_>,
    mut lse: TensorMut<'_>,
) -> Result<()> {
    let Inputs { q, k, v, heads, scale } = inputs;
    let (queries, keys) = (q.columns().rows(), k.columns().rows());
    if queries == 0 {
        return Ok(());
    }
    let (kernel, dim) = instance(&FORWARD, q.lay().dim);
    let arguments = Forward {
        q: Lain::of(q),
        k: Lain::of(k),
        v: Lain::of(v),
        o: Lain::of(o.as_ref()),
        lse: lse.as_mut_ptr(),
        plan: plan.as_ptr(),
        lse_stride: lse.row_stride() as i64,
        queries: queries as i32,
        keys: keys as i32,
        heads: heads as i32,
        dim: q.lay().dim as i32,
        scale,
        unused: 0,
    };
    let shared = shared(dim);
    let each = (cuda.gpu().shared as usize / shared).clamp(1, MOST_BLOCKS);
    let grid = Grid { shared: shared as u32, ..Grid::new([resident(cuda, each), 1, 1], THREADS) };
    // SAFETY: `forward` of the op checked that every pointer covers its rows and heads on this device, in
    // whole chunks of 16 bytes, and that the plan is as long as one of so many queries and keys; that it is one, the
    // kernel asks. The views borrow them; `o` is exclusive.
    unsafe { cuda.launch(kernel, grid, &arguments) }
}
