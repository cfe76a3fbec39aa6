//! What kernels do, counted: by an emulated driver, which has a function for it that a GPU's driver
//! does not have. The same for any schedule, so a test can hold a kernel to it.

use std::ffi::CStr;

use libloading::Library;

use super::Cuda;
use crate::error::Result;

/// A kernel that was launched, and what its launch did. Laid out as the driver writes it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Launched {
    name: [u8; 128],
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of shared memory that the launch asked for.
    pub dynamic_shared: u32,
    padding: u32,
    /// Of all its blocks.
    pub counters: Counters,
}

/// Instructions are a warp's: one for up to 32 lanes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Instructions.
    pub warp_instructions: u64,
    /// Lanes that took part in them.
    pub lane_instructions: u64,
    /// Loads from global memory, `cp.async` among them, atomics not.
    pub global_loads: u64,
    /// Stores to it.
    pub global_stores: u64,
    /// The different bytes that the lanes of an instruction read, summed over instructions.
    pub global_bytes_read: u64,
    /// And write.
    pub global_bytes_written: u64,
    /// The bytes read that this launch had neither read nor written before.
    pub first_bytes_read: u64,
    /// The bytes written that it had not written before.
    pub first_bytes_written: u64,
    /// The different sectors of 32 bytes that the lanes of an instruction touch, summed likewise.
    pub global_sectors: u64,
    /// The sectors that these bytes would fill.
    pub ideal_sectors: u64,
    /// Instructions on shared memory.
    pub shared_accesses: u64,
    /// Passes over its banks that they took.
    pub shared_wavefronts: u64,
    /// Passes that they would take without bank conflicts.
    pub ideal_wavefronts: u64,
    /// Passes that `ldmatrix` took.
    pub matrix_wavefronts: u64,
    /// And would take without bank conflicts.
    pub ideal_matrix_wavefronts: u64,
    /// Moved from and to local memory: spills, and arrays with computed indices.
    pub local_bytes: u64,
    /// Products on tensor cores.
    pub mma: u64,
    /// Multiply-adds in them.
    pub mma_macs: u64,
    /// Those of the slowest warp times the warps of its block, between barriers that all of them take.
    pub paced_macs: u64,
    /// Arrivals of warps at barriers of the block.
    pub block_barriers: u64,
    /// `__syncwarp`.
    pub warp_barriers: u64,
    /// Atomic operations, on global and on shared memory.
    pub atomics: u64,
    /// `cp.async`.
    pub cp_async: u64,
}

const _: () = assert!(size_of::<Launched>() == 344);

impl Launched {
    /// The kernel's symbol.
    pub fn name(&self) -> &str {
        let name = CStr::from_bytes_until_nul(&self.name).unwrap_or_default();
        name.to_str().unwrap_or_default()
    }
}

type Take = unsafe extern "C" fn(*mut Launched, usize) -> usize;

/// Launches that a driver remembers at most.
const REMEMBERED: usize = 1 << 16;

impl Cuda {
    /// Whether the driver counts: it is an emulated one, whose times mean nothing.
    pub fn counts(self) -> bool {
        take().is_some()
    }

    /// Runs `work` and waits for it. What its kernels did, in the order of their launches; nothing of
    /// a driver that does not count.
    pub fn count(self, work: impl FnOnce() -> Result<()>) -> Result<Vec<Launched>> {
        let Some(take) = take() else {
            work()?;
            return Ok(Vec::new());
        };
        self.synchronize()?;
        // SAFETY: without room nothing is written; recording begins anew.
        unsafe { take(std::ptr::null_mut(), 0) };
        work()?;
        self.synchronize()?;
        let mut launched: Vec<Launched> = Vec::with_capacity(REMEMBERED);
        // SAFETY: the driver writes so many of the type that it and this file declare.
        unsafe {
            let count = take(launched.as_mut_ptr(), REMEMBERED);
            launched.set_len(count.min(REMEMBERED));
        }
        Ok(launched)
    }
}

/// The function of the driver that this process has loaded.
fn take() -> Option<Take> {
    // SAFETY: the driver is loaded already, so this only finds it; it is never unloaded.
    unsafe {
        let driver = Library::new("libcuda.so").ok()?;
        let take = driver.get::<Take>(b"emucuda_take_launches").ok().map(|take| *take);
        std::mem::forget(driver);
        take
    }
}
