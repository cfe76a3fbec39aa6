//! Where memory lives and work runs. Knows no ops.
//!
//! The CPU, all cores ([`cpu`]), and NVIDIA GPUs ([`cuda`]). The backend is a value chosen at run
//! time, so that one binary serves every machine; each op's `mod.rs` matches on it.

pub mod arena;
mod buffer;
pub mod cpu;
pub mod cuda;
pub(crate) mod gemm;
pub mod kernels;
pub mod memory;

use std::fmt;

pub use buffer::Buffer;
use cuda::Cuda;

use crate::error::{Error, Result};

/// A place to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The host, all cores, f32 arithmetic.
    Cpu,
    /// A GPU.
    Cuda(Cuda),
}

impl Device {
    /// Opens the device called `auto`, `cpu`, `cuda` or `cuda:N`. `auto` is the CPU until whole steps
    /// run on CUDA.
    ///
    /// Errors: another word; a GPU that cannot be used, with what is missing and the ways out.
    pub fn parse(name: &str) -> Result<Device> {
        match Self::gpu_named(name)? {
            None => Ok(Device::Cpu),
            Some(ordinal) => Cuda::open(ordinal).map(Device::Cuda),
        }
    }

    /// The number of the GPU that this word asks for, none for the CPU; opens nothing.
    ///
    /// Errors: another word.
    pub fn gpu_named(name: &str) -> Result<Option<usize>> {
        let gpu = match name {
            "auto" | "cpu" => return Ok(None),
            "cuda" => Some(0),
            _ => name.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok()),
        };
        let message = || format!("--device: expected auto, cpu, cuda or cuda:N, got {name}");
        gpu.map(Some).ok_or_else(|| Error::Usage(message()))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(cuda) => write!(f, "cuda:{}", cuda.ordinal()),
        }
    }
}
