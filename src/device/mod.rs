//! Where memory lives and work runs. Knows no ops.
//!
//! Today: the CPU, all cores ([`cpu`]). The backend is a value chosen at run time, so that one
//! binary serves every machine; each op's `mod.rs` matches on it.

mod buffer;
pub mod cpu;
pub(crate) mod gemm;
pub mod kernels;
pub mod memory;

pub use buffer::Buffer;

/// A place to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// The host, all cores, f32 arithmetic.
    Cpu,
}
