//! One op, one place: `mod.rs` states the mathematics and checks the arguments once, `cpu.rs`
//! computes on the CPU device. Outputs are allocated by the caller; no op allocates.
//!
//! Arguments come in the order inputs, outputs, sizes, scalars. Gradients of parameters always
//! accumulate; gradients of activations follow their [`Write`]. Shape letters: `T` tokens,
//! `H` heads, `D` width, `V` vocabulary, `R` scored rows, `P` patches of an image.

pub(crate) mod check;
pub(crate) mod math;

/// What a kernel does with what its output held before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// `y = …`
    Overwrite,
    /// `y += …`
    Accumulate,
}
