//! Launches of `kernels/attention/delta.cu` and `backward.cu`.

use super::{Kernels, Lain, instance, resident};
use crate::device::cuda::{Arguments, Cuda, Grid, KernelName};
use crate::error::Result;
use crate::ops::attention::plan::ROWS_BACKWARD;
use crate::ops::attention::{Heads, HeadsMut, Inputs};
use crate::tensor::{Tensor, TensorMut};

const DELTA: KernelName = KernelName("attention_delta_bf16");
const BACKWARD: Kernels = [
    KernelName("attention_backward_d32_bf16"),
    KernelName("attention_backward_d64_bf16"),
    KernelName("attention_backward_d104_bf16"),
    KernelName("attention_backward_d128_bf16"),
];
const THREADS: u32 = 128;
/// Queries whose delta a block makes.
const ROWS_DELTA: usize = 32;
/// Blocks of a multiprocessor: registers for no more.
const RESIDENT: usize = 2;

#[repr(C)]
#[derive(Clone, Copy)]
struct Delta {
    o: Lain,
    d_o: Lain,
    delta: *mut u8,
    stride: i64,
    rows: i32,
    dim: i32,
}
const _: () = assert!(size_of::<Delta>() == 72);
// SAFETY: field by field `Delta` of the kernel file.
unsafe impl Arguments for Delta {}

#[repr(C)]
#[derive(Clone, Copy)]
struct Backward {
    q: Lain,
    k: Lain,
    v: Lain,
    d_o: Lain,
    dq: Lain,
    dk: Lain,
    dv: Lain,
    plan: *const u8,
    lse: *const u8,
    delta: *const u8,
    lse_stride: i64,
    delta_stride: i64,
    queries: i32,
    keys: i32,
    heads: i32,
    dim: i32,
    scale: f32,
    unused: i32,
}
const _: () = assert!(size_of::<Backward>() == 232);
// SAFETY: field by field `Backward` of the kernel file.
unsafe impl Arguments for Backward {}

/// Bytes of shared memory of a block, `Room` of the kernel file: own rows and two stages of others, of two tensors
/// each; what the four warps hand to each other; two stages of log-sum-exp and delta.
const fn shared(dim: usize) -> usize {
    let (rows, handed, statistics) = (6 * ROWS_BACKWARD, 4 * 2048, 2 * 2 * 4 * ROWS_BACKWARD);
    2 * dim * rows + handed + statistics
}

pub(in super::super) fn backward(
    cuda: Cuda,
    inputs: Inputs<'_>,
    plan: Tensor<'_>,
    o: Heads<'_>,
    lse: Tensor<'_>,
    d_o: Heads<'_>,
    dq: HeadsMut<'_>,
    dk: HeadsMut<'_>,
    dv: HeadsMut<'_>,
    mut delta: TensorMut<'_>,
) -> Result<()> {
    let Inputs { q, k, v, heads, scale } = inputs;
    let (queries, keys) = (q.columns().rows(), k.columns().rows());
    let dim = q.lay().dim;
    let arguments = Delta {
        o: Lain::of(o),
        d_o: Lain::of(d_o),
        delta: delta.as_mut_ptr(),
        stride: delta.row_stride() as i64,
        rows: queries as i32,
        dim: dim as i32,
    };
    let grid = Grid::new([queries.div_ceil(ROWS_DELTA) as u32, heads as u32, 1], THREADS);
    // SAFETY: `backward` of the op checked that o and d_o cover these rows and heads in whole chunks, delta a row
    // for each head; the views borrow them.
    unsafe { cuda.launch(&DELTA, grid, &arguments)? };

    let (kernel, made_for) = instance(&BACKWARD, dim);
    let arguments = Backward {
        q: Lain::of(q),
        k: Lain::of(k),
        v: Lain::of(v),
        d_o: Lain::of(d_o),
        dq: Lain::of(dq.as_ref()),
        dk: Lain::of(dk.as_ref()),
        dv: Lain::of(dv.as_ref()),
        plan: plan.as_ptr(),
        lse: lse.as_ptr(),
        delta: delta.as_ref().as_ptr(),
        lse_stride: lse.row_stride() as i64,
        delta_stride: delta.as_ref().row_stride() as i64,
        queries: queries as i32,
        keys: keys as i32,
        heads: heads as i32,
        dim: dim as i32,
        scale,
        unused: 0,
    };
    let tiles = queries.div_ceil(ROWS_BACKWARD) + keys.div_ceil(ROWS_BACKWARD);
    let blocks = resident(cuda, RESIDENT).min((tiles * heads) as u32);
    let grid = Grid { shared: shared(made_for) as u32, ..Grid::new([blocks, 1, 1], THREADS) };
    // SAFETY: as above, of all these tensors; the kernel stops where the plan was made for other numbers of queries
    // and keys, and the plan of these names no row beyond them.
    unsafe { cuda.launch(kernel, grid, &arguments) }
}
