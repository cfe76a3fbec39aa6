//! What cuDeviceGetAttribute answers, and the limits of a launch that follow from it.

use super::error::CUresult;
use super::settings::settings;

pub const MAX_THREADS_PER_BLOCK: u32 = 1024;
pub const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
pub const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];
pub const MULTIPROCESSORS: u32 = 4;
pub const MAX_THREADS_PER_MULTIPROCESSOR: u32 = 2048;
pub const MAX_BLOCKS_PER_MULTIPROCESSOR: u32 = 32;
/// Bytes of shared memory that a block may have without asking for more.
pub const SHARED_PER_BLOCK: u32 = 48 << 10;
/// Bytes that it may have after cuFuncSetAttribute, unless the environment says otherwise.
pub const SHARED_PER_BLOCK_OPT_IN: u32 = 163 << 10;
/// Bytes that the system takes of every block's share.
pub const SHARED_RESERVED_PER_BLOCK: u32 = 1 << 10;
pub const WARP: u32 = 32;
/// Compute capability 8.0.
pub const CAPABILITY: (i32, i32) = (8, 0);
/// Numbers that the driver's header of CUDA 13 knows.
const KNOWN: std::ops::RangeInclusive<i32> = 1..=162;

/// Bytes that a block may have after cuFuncSetAttribute.
pub fn shared_per_block_opt_in() -> u32 {
    settings().as_ref().map_or(SHARED_PER_BLOCK_OPT_IN, |settings| settings.shared)
}

pub fn shared_per_multiprocessor() -> u32 {
    shared_per_block_opt_in() + SHARED_RESERVED_PER_BLOCK
}

/// The value of an attribute by its number in `CUdevice_attribute`. What the emulator does not have
/// (textures, managed memory, clusters) is 0. Clocks and widths are those of an A100: they say
/// nothing about speed here.
pub fn attribute(number: i32) -> Result<i32, CUresult> {
    Ok(match number {
        1 => MAX_THREADS_PER_BLOCK as i32,
        2..=4 => MAX_BLOCK[(number - 2) as usize] as i32,
        5..=7 => MAX_GRID[(number - 5) as usize] as i32,
        8 => SHARED_PER_BLOCK as i32,
        9 => 64 << 10, // bytes of constant memory
        10 => WARP as i32,
        11 => i32::MAX,  // bytes of a pitch
        12 => 64 << 10,  // registers per block
        13 => 1_410_000, // clock, kHz
        14 => 512,       // texture alignment
        15 => 1,         // copies overlap kernels
        16 => MULTIPROCESSORS as i32,
        19 => 1,         // pinned host memory has a device address
        31 => 1,         // concurrent kernels
        36 => 1_215_000, // memory clock, kHz
        37 => 5120,      // bits of the memory bus
        38 => 40 << 20,  // bytes of L2
        39 => MAX_THREADS_PER_MULTIPROCESSOR as i32,
        40 => 3,  // copy engines
        41 => 1,  // unified addressing
        51 => 32, // texture pitch alignment
        75 => CAPABILITY.0,
        76 => CAPABILITY.1,
        78 => 1,      // stream priorities
        79 | 80 => 1, // L1 caches global and local memory
        81 => shared_per_multiprocessor() as i32,
        82 => 64 << 10, // registers per multiprocessor
        87 => 2,        // f32 rate over f64 rate
        90 => 1,        // preemption
        95 => 1,        // cooperative launch
        97 => shared_per_block_opt_in() as i32,
        99 => 1, // cuMemHostRegister
        106 => MAX_BLOCKS_PER_MULTIPROCESSOR as i32,
        111 => SHARED_RESERVED_PER_BLOCK as i32,
        115 => 1, // cuMemAllocAsync
        number if KNOWN.contains(&number) => 0,
        _ => return Err(CUresult::INVALID_VALUE),
    })
}
