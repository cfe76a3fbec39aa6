//! Tails on CUDA: `kernels/lora.cu`.

use super::{Chunk, Table};
use crate::device::cuda::{Arguments, Cuda, Grid, KernelName};
use crate::error::Result;
use crate::tensor::Tensor;

const WRITE_TAILS: KernelName = KernelName("lora_write_tails_bf16");
const THREADS: u32 = 256;

const _: () = assert!(size_of::<Chunk>() == 48);

#[repr(C)]
#[derive(Clone, Copy)]
struct WriteTails {
    masters: *const u8,
    chunks: *const u8,
}
const _: () = assert!(size_of::<WriteTails>() == 16);
// SAFETY: field by field `WriteTails` of the kernel file.
unsafe impl Arguments for WriteTails {}

pub(super) fn write_tails(cuda: Cuda, masters: Tensor<'_>, table: &Table) -> Result<()> {
    let chunks = table.chunks.view();
    let arguments = WriteTails { masters: masters.as_ptr(), chunks: chunks.as_ptr() };
    let grid = Grid::new([chunks.rows() as u32, 1, 1], THREADS);
    // SAFETY: `write_tails` checked that the masters hold what the table reads, and that its chunks
    // are rows of the tails that the caller lent exclusively, all on this device.
    unsafe { cuda.launch(&WRITE_TAILS, grid, &arguments) }
}
