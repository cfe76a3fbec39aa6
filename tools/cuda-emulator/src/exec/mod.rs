//! Runs kernels: a warp at a time, blocks on all cores.
//!
//! [`Module::load`] turns PTX into programs: `decode` inlines device functions and gives every operand a
//! slot, and what an opcode does stands in `ops`. [`launch`] hands the blocks of a grid to threads
//! (`grid`); each runs the warps of a block in turns (`block`, `turn`), as a `schedule` says, while `race` watches
//! their accesses.

mod address;
mod allocate;
mod approx;
mod async_copy;
mod barrier;
mod block;
mod counters;
mod decode;
mod divergence;
mod double;
mod fault;
mod footprint;
mod grid;
mod half;
mod lanes;
mod module;
mod ops;
mod print;
mod problem;
mod program;
mod provided;
mod race;
mod rounding;
mod schedule;
mod touch;
mod turn;
mod warp;

pub use counters::Counters;
pub use module::{Kernel, LoadError, Module, Param};
pub use schedule::{Schedule, Schedules};

use crate::memory::Memory;
use crate::report::Fault;

/// A kernel, how many blocks and threads are to run it, and on what.
#[derive(Clone, Copy)]
pub struct Launch<'a> {
    pub kernel: &'a Kernel,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The bytes of all parameters, each at its offset.
    pub params: &'a [u8],
}

/// How a grid is run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Reads of what was never written, of what is still being copied, accesses outside of allocations and
    /// races are faults.
    pub checked: bool,
    /// Bytes that are touched for the first time are counted apart: it takes time and memory.
    pub counts_first: bool,
    /// Of the host, to run blocks on.
    pub threads: usize,
    pub schedule: Schedule,
}

/// Instructions of the warps of a block after which it counts as endless: about half a minute.
const ENDLESS: u64 = 1 << 30;

/// Runs a grid to its end. The caller has checked the limits of the device: threads, shared memory, bytes of
/// parameters.
pub fn launch(memory: &Memory, launch: &Launch<'_>, options: &Options) -> Result<Counters, Fault> {
    grid::run(memory, launch, options, ENDLESS)
}
