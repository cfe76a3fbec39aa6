//! Rope on CUDA: `kernels/rope.cu`.

use crate::device::cuda::{Arguments, Cuda, Grid, KernelName};
use crate::error::Result;
use crate::tensor::{DType, Tensor, TensorMut};

const TURN_F32: KernelName = KernelName("rope_turn_f32");
const TURN_BF16: KernelName = KernelName("rope_turn_bf16");

const THREADS: u32 = 256;
/// Tokens of a block: a warp takes one.
const TOKENS: usize = THREADS as usize / 32;

#[repr(C)]
#[derive(Clone, Copy)]
struct Turn {
    qk: *mut u8,
    position: *const u8,
    table: *const u8,
    logn: *const u8, // null: none
    qk_stride: i64,
    position_stride: i64,
    table_stride: i64,
    logn_stride: i64,
    tokens: i64,
    q_heads: i32,
    head_dim: i32,
    positions: u32,
    direction: f32,
}
const _: () = assert!(size_of::<Turn>() == 88);
// SAFETY: field by field `Turn` of the kernel file.
unsafe impl Arguments for Turn {}

/// `direction` is the sign of the angle.
pub(super) fn turn(
    cuda: Cuda,
    mut qk: TensorMut<'_>,
    positions: Tensor<'_>,
    table: Tensor<'_>,
    logn: Option<Tensor<'_>>,
    head_dim: usize,
    direction: f32,
) -> Result<()> {
    let known = logn.map_or(table.rows(), |logn| logn.rows().min(table.rows()));
    let arguments = Turn {
        qk: qk.as_mut_ptr(),
        position: positions.as_ptr(),
        table: table.as_ptr(),
        logn: logn.map_or(std::ptr::null(), |logn| logn.as_ptr()),
        qk_stride: qk.row_stride() as i64,
        position_stride: positions.row_stride() as i64,
        table_stride: table.row_stride() as i64,
        logn_stride: logn.map_or(0, |logn| logn.row_stride() as i64),
        tokens: qk.rows() as i64,
        q_heads: (qk.cols() / (2 * head_dim)) as i32,
        head_dim: head_dim as i32,
        positions: known as u32,
        direction,
    };
    let kernel = if qk.dtype() == DType::Bf16 { &TURN_BF16 } else { &TURN_F32 };
    let grid = Grid::new([qk.rows().div_ceil(TOKENS) as u32, 1, 1], THREADS);
    // SAFETY: `validate` checked that every pointer covers its rows and columns on this device, in
    // whole packs of this dtype, and the kernel reads no row of `table` and `logn` from `known` on;
    // the views borrow them.
    unsafe { cuda.launch(kernel, grid, &arguments) }
}
