//! The CUDA kernels that `build.rs` compiled into this program: none when it found no nvcc.

use std::fmt;

/// A release of CUDA: of the toolkit that compiled the kernels, or the newest a driver knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 13 of 13.0.
    pub major: u32,
    /// 0 of 13.0.
    pub minor: u32,
}

/// What compiled the kernels.
pub struct Toolkit {
    /// nvcc's release.
    pub release: Version,
    /// The folder whose `bin` holds that nvcc.
    pub root: &'static str,
}

/// A file of `kernels/`: a fat binary with machine code and PTX, and what is in it.
pub struct Module {
    /// Path under `kernels/` without `.cu`: `rms_norm`.
    pub name: &'static str,
    fatbin: &'static Fatbin<[u8]>,
    /// Its entry points, once per architecture.
    pub kernels: &'static [Kernel],
}

/// What one entry point takes on one architecture, as ptxas told.
pub struct Kernel {
    /// The name to look it up by: `rms_norm_forward_bf16`.
    pub symbol: &'static str,
    /// `sm_80` or `sm_90a`.
    pub arch: &'static str,
    /// Of a thread.
    pub registers: u32,
    /// Bytes of static shared memory of a block.
    pub shared: u32,
    /// Bytes of a thread's stack, in local memory.
    pub stack: u32,
    /// Bytes of a thread's registers spilled to local memory.
    pub spills: u32,
}

/// The driver reads the header of a fat binary as 64-bit words.
#[repr(C, align(16))]
struct Fatbin<T: ?Sized>(T);

impl Module {
    /// What the driver loads, 16-byte aligned.
    pub fn fatbin(&self) -> &'static [u8] {
        &self.fatbin.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What compiled the kernels; none when there was no nvcc.
pub fn toolkit() -> Option<&'static Toolkit> {
    TOOLKIT.as_ref()
}

/// All files of `kernels/`, by name.
pub fn modules() -> &'static [Module] {
    MODULES
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
