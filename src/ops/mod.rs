//! One op, one place: `mod.rs` states the mathematics and checks the arguments once, `cpu.rs`
//! computes on the CPU device. Outputs are allocated by the caller; no op allocates.
//!
//! Arguments come in the order inputs, outputs, sizes, scalars. Gradients of parameters always
//! accumulate; gradients of activations follow their [`Write`]. Shape letters: `T` tokens,
//! `H` heads, `D` width, `V` vocabulary, `R` scored rows, `P` patches of an image.

pub mod activation;
pub mod adamw;
pub mod attention;
pub(crate) mod check;
pub mod embedding;
pub mod grad_norm;
pub mod interpolate;
pub mod layer_norm;
pub mod log_ratio;
pub(crate) mod math;
pub mod matmul;
pub mod patch_embed;
pub(crate) mod reduce;
pub mod rms_norm;
pub mod rope;
pub mod rows;

/// What a kernel does with what its output held before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// `y = …`
    Overwrite,
    /// `y += …`
    Accumulate,
}

/// Rows of `cols` elements that make one chunk of parallel work: 64 Ki elements, some 50 us of
/// a memory-bound op, so that a small input runs in one chunk and pays nothing for the others.
pub(crate) fn rows_per_chunk(cols: usize) -> usize {
    const ELEMENTS: usize = 64 * 1024;
    (ELEMENTS / cols.max(1)).max(1)
}
