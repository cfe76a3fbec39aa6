//! `cp.async`: copies from global to shared memory that are under way until their thread waits.
//!
//! A copy is checked when it is issued, and its destination is marked as pending. The bytes move, and
//! hold values, when the thread that issued it waits for its group. That is as late as a device may do
//! it, so that a wait that is missing is seen.

use std::convert::Infallible;

use super::address::{Target, addresses, target};
use super::lanes::{Lane, Run, Width, compile, each};
use super::program::Instruction;
use super::race::Watch;
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
    /// What the race detector will have to be told: while there is one.
    issued: Vec<Issue>,
    /// Instructions issued so far.
    count: u32,
}

/// What one instruction copies.
struct Issue {
    number: u32,
    /// The instruction.
    at: u32,
    mask: u32,
    bytes: usize,
    read: [usize; 32],
    to: [u64; 32],
    from: [u64; 32],
}

#[derive(Clone, Copy)]
struct Copy {
    lane: u8,
    /// Bytes that are written; those past `read` become zero.
    bytes: u8,
    read: u8,
    /// The group of its lane that it belongs to.
    group: u32,
    issue: u32,
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
            let issue = Issue {
                number: warp.copies.count,
                at: warp.at,
                mask,
                bytes: N,
                read: sizes,
                to: to.offsets,
                from: from.offsets,
            };
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
                    issue: issue.number,
                    to: to_offset as u32,
                    from: from_offset,
                });
            }
            issue.targets(
                block,
                #[inline(always)]
                |target, bytes, does| touch(warp, block, target, bytes, does),
            )?;
            if block.watch.is_some() {
                warp.copies.issued.push(issue);
                warp.copies.count += 1;
            }
            Ok(())
        },
    )
}

impl Issue {
    /// What is read, by the lanes that read as many bytes, and what is written.
    #[inline(always)]
    fn targets<E>(
        &self,
        block: &Block<'_>,
        mut each: impl FnMut(&Target<'_>, usize, Touch) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut from = Target {
            space: Space::Global,
            region: block.memory.region(),
            offsets: self.from,
            window: 0,
            mask: 0,
        };
        let mut rest = self.mask;
        while rest != 0 {
            let bytes = self.read[rest.trailing_zeros() as usize & 31];
            from.mask = (0..32).map(|lane| ((self.read[lane] == bytes) as u32) << lane).sum();
            from.mask &= rest;
            rest &= !from.mask;
            if bytes > 0 {
                each(&from, bytes, Touch::CopyFrom)?;
            }
        }
        let (space, region, offsets) = (Space::Shared, block.shared, self.to);
        let to = Target { space, region, offsets, window: 0, mask: self.mask };
        each(&to, self.bytes, Touch::CopyTo)
    }
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
        true if bytes == N => region.load(offset, true, &mut [0; N]),
        true => region.readable(offset, bytes).map(|_| ()).map_err(|(_, kind)| kind),
        false => Ok(()),
    }
}

/// And pending from now on.
fn writable<const N: usize>(region: &Region, offset: u64, is_checked: bool) -> Result<(), Kind> {
    if !offset.is_multiple_of(N as u64) {
        return Err(Kind::Misaligned);
    }
    match is_checked {
        true => region.begin_copy::<N>(offset),
        false if offset.saturating_add(N as u64) > region.bytes() as u64 => Err(Kind::OutOfBounds),
        false => Ok(()),
    }
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
            let AsyncCopies { waiting, committed, issued, .. } = &mut warp.copies;
            let mut done = Vec::new();
            waiting.retain(|copy| {
                let age = committed[copy.lane as usize] as i64 - copy.group as i64;
                let is_done = mask >> copy.lane & 1 != 0 && age > instruction.immediate;
                if is_done {
                    finish(copy, block);
                    done.push(copy.issue);
                }
                !is_done
            });
            if let Some(watch) = block.watch {
                // Of lanes that wait apart, the first ends the copies of all: to take them for later than they
                // are would make races where there are none.
                issued.retain(|issue| {
                    let is_done = done.contains(&issue.number);
                    if is_done {
                        tell(watch, issue, warp.index, block);
                    }
                    !is_done
                });
            }
            Ok(())
        },
    )
}

/// Tells that the copies of an instruction are done.
fn tell(watch: &Watch<'_>, issue: &Issue, warp: u32, block: &Block<'_>) {
    let told: Result<(), Infallible> = issue.targets(block, |target, bytes, does| {
        watch.finish(warp, issue.at, target, bytes, does);
        Ok(())
    });
    let Ok(()) = told;
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
