//! One op, one place: `mod.rs` states the mathematics and checks the arguments once, `cpu.rs`
//! computes on the CPU device, `cuda.rs`, where there is one, launches kernels.
//!
//! | op | computes | where Qwen-VL has it |
//! |---|---|---|
//! | [`matmul`] | `a bᵀ`, `a b`, `aᵀ b` | every linear layer, its input and weight gradients |
//! | [`column_sums`] | the sum of the rows of a matrix | gradients of biases |
//! | [`attention`] | softmax over the keys of a segment, skipping what is masked | trees, vision tower, resampler, decoding |
//! | [`rms_norm`] | `h / rms(h) · w`, `h = x` or `x + residual` | decoder |
//! | [`layer_norm`] | `(x − mean) / std · w + b` | vision tower, resampler |
//! | [`rope`] | q and k turned by their position | decoder |
//! | [`activation`] | GELU, SwiGLU; a bias gradient on the way | the MLPs |
//! | [`embedding`] | rows of a table by token id, image features in their slots | decoder's input |
//! | [`rows`] | rows gathered, scattered, scaled, converted, added | scored rows, position embeddings, casts, caches |
//! | [`patch_embed`] | pixels → normalised patches → width → `ln_pre` | vision tower's input |
//! | [`interpolate`] | a grid of vectors at another size | position embeddings |
//! | [`log_ratio`] | log-probability of each target and its gradient, no `[R, V]` buffer | head and loss |
//! | [`sampling`] | the most likely token, or one of the most likely | generation |
//! | [`lora`] | the scaled B of all pairs into the tail columns of their weights | adapted maps, after each step |
//! | [`adamw`] | one optimizer step of all tensors | training |
//! | [`grad_norm`] | norm and clipping, the verdict on a step, search for non-finite values | training |
//!
//! Contract. Arguments come in the order inputs, outputs, sizes, scalars. Outputs are allocated by
//! the caller; no op allocates. Gradients of parameters always accumulate and are left out
//! (`None`) where frozen; gradients of activations follow their [`Write`] or say that they
//! overwrite. Row strides are honoured, so any argument may be columns of a wider buffer. Vectors
//! are `[1, n]`, numbers per row `[rows, 1]`, indices u32. The same input gives the same bytes on
//! any number of threads. Shapes, dtypes and indices are checked by the public function and
//! nowhere below it; an error names op, argument, expected and got.
//!
//! A document says: formula, shapes and dtypes, what is overwritten, FLOP and bytes, errors,
//! source. Shape letters: `T` tokens, `H` heads, `D` width, `V` vocabulary, `R` scored rows, `P`
//! patches of an image, `n` images.

pub mod activation;
pub mod adamw;
pub mod attention;
pub(crate) mod check;
pub mod column_sums;
pub(crate) mod columns;
pub mod embedding;
pub mod grad_norm;
pub mod interpolate;
pub mod layer_norm;
pub mod log_ratio;
pub mod lora;
pub(crate) mod math;
pub mod matmul;
pub mod patch_embed;
pub(crate) mod reduce;
pub mod rms_norm;
pub mod rope;
pub mod rows;
pub mod sampling;

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
