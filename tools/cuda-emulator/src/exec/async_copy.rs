//! `cp.async`: copies from global to shared memory that are under way until their thread waits.
//!
//! A copy is checked when it is issued, and its destination is marked as pending. The bytes move, and
//! hold values, when the thread that issued it waits for its group. That is as late as a device may do
//! it, so that a wait that is missing is seen.

use super::address::{Target, addresses, target};
use super::lanes::{Lane, Run, Width, compile, each};
use super::program::Instruction;
use super::touch::{Touch, touch};
use super::warp::{Block, Warp};
use crate::memory::{INITIALISED, PENDING, Region};
use crate::ptx::ast::Space;
use crate::report::Kind;

/// What the lanes of a warp have issued and not waited for.
#[derive(Default)]
pub struct AsyncCopies {
    /// In the order of issue.
    waiting: Vec<Copy>,
    /// Groups that each lane has committed.
    committed: [u32; 32],
}

#[derive(Clone, Copy)]
struct Copy {
    lane: u8,
    /// Bytes that are written; those past `read` become zero.
    bytes: u8,
    read: u8,
    /// The group of its lane that it belongs to.
    group: u32,
    /// Offset in shared memory.
    to: u32,
    /// Offset in device memory.
    from: u64,
}

/// `cp.async` of 4, 8 or 16 bytes. Operands: destination, source, bytes to read, predicate to ignore the source.
/// The immediate holds the offsets of both addresses, the destination's in its high half.
pub fn issue(bytes: usize) -> Option<Run> {
    Some(match bytes {
        4 => issue_of::<4>(),
        8 => issue_of::<8>(),
        16 => issue_of::<16>(),
        _ => return None,
    })
}

fn issue_of<const N: usize>() -> Run {
    compile(
        #[inline(always)]
        |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
            let Instruction { access, immediate, operands: [to, from, read, ignored, ..], .. } =
                *instruction;
            let to_addresses = addresses(warp, block, to, access.width, immediate >> 32);
            let from_addresses = addresses(warp, block, from, Width::B64, immediate as i32 as i64);
            let (sizes, ignored) = (u32::load(warp, block, read), warp.predicate(ignored));
            let sizes = each(
                #[inline(always)]
                |lane| {
                    if ignored >> lane & 1 != 0 { 0 } else { sizes[lane].min(N as u32) as usize }
                },
            );
            let to = target(warp, block, Space::Shared, &to_addresses, mask);
            let from = target(warp, block, Space::Global, &from_addresses, mask);
            for lane in (0..32).filter(|lane| mask >> lane & 1 != 0) {
                let read = sizes[lane];
                let (to_offset, from_offset) = (to.offsets[lane], from.offsets[lane]);
                if let Err(kind) = readable::<N>(from.region, from_offset, read, block.is_checked) {
                    return Err(from.problem(kind, lane, from_addresses[lane], read, block));
                }
                if let Err(kind) = writable::<N>(to.region, to_offset, block.is_checked) {
                    return Err(to.problem(kind, lane, to_addresses[lane], N, block));
                }
                warp.copies.waiting.push(Copy {
                    lane: lane as u8,
                    bytes: N as u8,
                    read: read as u8,
                    group: warp.copies.committed[lane],
                    to: to_offset as u32,
                    from: from_offset,
                });
            }
            // Lanes that read as many bytes at once.
            let mut rest = mask;
            while rest != 0 {
                let size = sizes[rest.trailing_zeros() as usize & 31];
                let same =
                    (0..32).fold(0, |same, lane| same | ((sizes[lane] == size) as u32) << lane);
                let from = Target { mask: rest & same, ..from };
                rest &= !same;
                if size > 0 {
                    touch(warp, block, &from, size, Touch::CopyFrom)?;
                }
            }
            touch(warp, block, &to, N, Touch::CopyTo)
        },
    )
}

fn readable<const N: usize>(
    region: &Region,
    offset: u64,
    bytes: usize,
    is_checked: bool,
) -> Result<(), Kind> {
    if !offset.is_multiple_of(N as u64) {
        return Err(Kind::Misaligned);
    }
    if bytes > 0 && offset.saturating_add(N as u64) > region.bytes() as u64 {
        return Err(Kind::OutOfBounds);
    }
    match is_checked {
        true => region.readable(offset, bytes).map(|_| ()).map_err(|(_, kind)| kind),
        false => Ok(()),
    }
}

/// And pending from now on.
fn writable<const N: usize>(region: &Region, offset: u64, is_checked: bool) -> Result<(), Kind> {
    if !offset.is_multiple_of(N as u64) {
        return Err(Kind::Misaligned);
    }
    if offset.saturating_add(N as u64) > region.bytes() as u64 {
        return Err(Kind::OutOfBounds);
    }
    if is_checked {
        region.writable(offset, N).map_err(|(_, kind)| kind)?;
        region.mark(offset, N, PENDING, 0);
    }
    Ok(())
}

/// `cp.async.commit_group`
pub fn commit() -> Run {
    compile(
        #[inline(always)]
        |warp: &mut Warp, _: &Block<'_>, _: &Instruction, mask: u32| {
            for lane in 0..32 {
                warp.copies.committed[lane] += mask >> lane & 1;
            }
            Ok(())
        },
    )
}

/// `cp.async.wait_group n`: all but the n latest groups of a lane are done, and n is the immediate; -1 stands
/// for `cp.async.wait_all`, after which what was not committed is done too.
pub fn wait() -> Run {
    compile(
        #[inline(always)]
        |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask: u32| {
            let AsyncCopies { waiting, committed } = &mut warp.copies;
            waiting.retain(|copy| {
                let age = committed[copy.lane as usize] as i64 - copy.group as i64;
                let is_done = mask >> copy.lane & 1 != 0 && age > instruction.immediate;
                if is_done {
                    finish(copy, block);
                }
                !is_done
            });
            Ok(())
        },
    )
}

/// Moves the bytes: they hold values from now on.
fn finish(copy: &Copy, block: &Block<'_>) {
    let (bytes, read) = (copy.bytes as usize, copy.read as usize);
    let from = block.memory.region().data().wrapping_add(copy.from as usize);
    let to = block.shared.data().wrapping_add(copy.to as usize);
    // SAFETY: `issue` found both ranges inside of their regions, which are apart.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, read);
        std::ptr::write_bytes(to.add(read), 0, bytes - read);
    }
    if block.is_checked {
        block.shared.mark(copy.to as u64, bytes, INITIALISED, PENDING);
    }
}
