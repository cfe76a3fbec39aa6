//! Every access of a warp to memory, after it was found to be allowed: what watches memory stands here.

use super::address::Target;
use super::problem::Problem;
use super::warp::{Block, Warp};

/// What an instruction does to the bytes that its lanes name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    Read,
    Write,
    /// An atomic operation: a read and a write that nothing comes between.
    Update,
    /// The source of an asynchronous copy, when it is issued.
    CopyFrom,
    /// Its destination, when it is issued.
    CopyTo,
}

/// The lanes of a target touch `bytes` bytes each. The instruction is `warp.at`.
#[inline(always)]
pub fn touch(
    warp: &mut Warp,
    block: &Block<'_>,
    target: &Target<'_>,
    bytes: usize,
    touch: Touch,
) -> Result<(), Box<Problem>> {
    warp.counters.touch(target, bytes, touch);
    if let Some(footprint) = block.footprint {
        footprint.touch(warp, block, target, bytes, touch);
    }
    match block.watch {
        Some(watch) => watch.touch(warp, block, target, bytes, touch),
        None => Ok(()),
    }
}
