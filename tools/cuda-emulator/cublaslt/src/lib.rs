//! A stand-in for cuBLASLt over the emulated CUDA driver: D = alpha op(A) op(B) + beta C + bias,
//! computed on the CPU.
//!
//! bf16, f16 or f32 in, sums in f32, one rounding on the way out. Everything else is refused with
//! `CUBLAS_STATUS_NOT_SUPPORTED` and a sentence on stderr.

mod attributes;
mod driver;
mod element;
mod gemm;
pub mod matmul;
pub mod objects;
mod problem;
pub mod status;
