//! The latest accesses to every cell of a memory.
//!
//! A cell holds some pieces in place, in order of age; what is older lies in a table beside. A piece goes
//! once a later one, which comes after it, stands for it.

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::piece::{Piece, READS, STRONG, WRITES};
use super::views::{UNFINISHED, Views};
use crate::mapping::Mapping;

/// What is at the start of a cell; zero at first.
#[repr(C)]
struct Header {
    lock: AtomicU8,
    /// Pieces in place.
    count: Cell<u8>,
    /// There are more in the table.
    has_more: Cell<bool>,
    /// The epoch that the pieces are of; those of another count for nothing.
    epoch: Cell<u32>,
}

const HEADER: usize = size_of::<Header>();
const PIECE: usize = size_of::<Piece>();
/// Pieces of a cell in the table at most; then the oldest is forgotten.
const MOST_BESIDE: usize = 64;
/// Reads of the same bytes by different blocks that are remembered: as many as it takes to see that a write, from
/// whatever block, is not ordered with one.
const READING_BLOCKS: usize = 3;

/// The cells of a memory.
pub struct Shadow<'a> {
    cells: &'a Mapping,
    /// Binary logarithm of the bytes of a cell.
    pub cell: u32,
    /// Pieces in place.
    slots: usize,
    /// Several threads of the host use it.
    is_shared: bool,
    beside: &'a Beside,
}

/// Pieces for which there was no place in their cells.
#[derive(Default)]
pub struct Beside {
    cells: Mutex<HashMap<usize, Vec<Piece>>>,
}

impl Beside {
    fn table(&self) -> MutexGuard<'_, HashMap<usize, Vec<Piece>>> {
        self.cells.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// An access of the past, and two lanes, its own and one of now, that touch the same byte in no order.
#[derive(Debug)]
pub struct Conflict {
    pub old: Piece,
    pub old_lane: u32,
    pub lane: u32,
}

/// Bytes that cells of so many pieces take.
fn stride(slots: usize) -> usize {
    (HEADER + slots * PIECE).next_multiple_of(align_of::<Header>())
}

/// A cell in use.
struct Pieces<'a> {
    header: &'a Header,
    slots: &'a mut [Piece],
}

impl<'a> Shadow<'a> {
    /// Bytes that a shadow takes of memory of `bytes` bytes.
    pub fn bytes(bytes: usize, cell: u32, slots: usize) -> usize {
        bytes.div_ceil(1 << cell) * stride(slots)
    }

    pub fn new(
        cells: &'a Mapping,
        cell: u32,
        slots: usize,
        is_shared: bool,
        beside: &'a Beside,
    ) -> Self {
        Shadow { cells, cell, slots, is_shared, beside }
    }

    /// Compares a piece with what is remembered, and remembers it. `is_private`: the memory is that of the block.
    #[inline]
    pub fn touch(
        &self,
        index: usize,
        epoch: u32,
        new: &Piece,
        views: &Views,
        is_private: bool,
    ) -> Result<(), Box<Conflict>> {
        self.with(index, epoch, |cell| {
            let is_over = |old: &Piece| is_private && old.time < views.floor();
            let mut at = 0;
            while at < cell.count() {
                match compare(&cell.slots[at], new, views) {
                    Ok(is_past) if is_past || is_over(&cell.slots[at]) => cell.remove(at),
                    Err(conflict) => {
                        let later = &cell.slots[at + 1..cell.count()];
                        if !is_seen(&conflict.old, new, later, views) {
                            return Err(conflict);
                        }
                        at += 1;
                    }
                    Ok(_) => at += 1,
                }
            }
            if cell.header.has_more.get() {
                self.compare_beside(index, new, views, cell, is_over)?;
            }
            if !is_private && new.kind & WRITES == 0 {
                cell.thin_out(new);
            }
            if let Some(oldest) = cell.push(*new) {
                self.put_beside(index, cell.header, oldest);
            }
            Ok(())
        })
    }

    #[cold]
    fn compare_beside(
        &self,
        index: usize,
        new: &Piece,
        views: &Views,
        cell: &Pieces<'_>,
        is_over: impl Fn(&Piece) -> bool,
    ) -> Result<(), Box<Conflict>> {
        let mut table = self.beside.table();
        let Some(pieces) = table.get_mut(&index) else { return Ok(()) };
        let mut at = 0;
        while at < pieces.len() {
            match compare(&pieces[at], new, views) {
                Ok(is_past) if is_past || is_over(&pieces[at]) => drop(pieces.remove(at)),
                Err(conflict) => {
                    let in_place = &cell.slots[..cell.count()];
                    let later = pieces[at + 1..].iter().chain(in_place);
                    if !is_seen(&conflict.old, new, later, views) {
                        return Err(conflict);
                    }
                    at += 1;
                }
                Ok(_) => at += 1,
            }
        }
        Ok(())
    }

    #[cold]
    fn put_beside(&self, index: usize, header: &Header, piece: Piece) {
        let mut table = self.beside.table();
        let pieces = table.entry(index).or_default();
        if !header.has_more.replace(true) {
            pieces.clear();
        }
        if pieces.len() == MOST_BESIDE {
            pieces.remove(0);
        }
        pieces.push(piece);
    }

    /// A write of bytes of the cell that is not over.
    pub fn unfinished(&self, index: usize, epoch: u32, bytes: Range<u8>) -> Option<Piece> {
        self.with(index, epoch, |cell| {
            let pieces = &cell.slots[..cell.count()];
            let is_meant = |piece: &&Piece| {
                piece.time == UNFINISHED
                    && piece.kind & WRITES != 0
                    && piece.bytes().start < bytes.end
                    && bytes.start < piece.bytes().end
            };
            pieces.iter().find(is_meant).copied()
        })
    }

    /// An access that was not over is now: it happens at `twin.time`.
    pub fn finish(&self, index: usize, epoch: u32, twin: &Piece) {
        self.with(index, epoch, |cell| {
            let count = cell.count();
            let is_meant = |old: &&mut Piece| old.time == UNFINISHED && old.is_twin_of(twin);
            if let Some(old) = cell.slots[..count].iter_mut().find(is_meant) {
                old.time = twin.time;
            } else if cell.header.has_more.get() {
                let mut table = self.beside.table();
                let pieces = table.entry(index).or_default();
                if let Some(old) = pieces.iter_mut().find(is_meant) {
                    old.time = twin.time;
                }
            }
        })
    }

    /// Calls `f` with a cell that nobody else uses meanwhile.
    #[inline(always)]
    fn with<R>(&self, index: usize, epoch: u32, f: impl FnOnce(&mut Pieces<'_>) -> R) -> R {
        let offset = index * stride(self.slots);
        debug_assert!(offset + stride(self.slots) <= self.cells.bytes());
        // SAFETY: `index` is that of a byte of the memory, which the emulator found to be allocated, and the mapping
        // has a cell for each of them; all-zero bytes are a Header.
        let (header, pieces) = unsafe {
            let at = self.cells.start().add(offset);
            (at.cast::<Header>().as_ref(), at.add(HEADER).cast::<Piece>())
        };
        if self.is_shared {
            acquire(&header.lock);
        }
        // SAFETY: as above, of Pieces; the lock keeps others out, and without it there is nobody else.
        let slots = unsafe { std::slice::from_raw_parts_mut(pieces.as_ptr(), self.slots) };
        if header.epoch.replace(epoch) != epoch {
            header.count.set(0);
            header.has_more.set(false);
        }
        let result = f(&mut Pieces { header, slots });
        if self.is_shared {
            header.lock.store(0, Ordering::Release);
        }
        result
    }
}

fn acquire(lock: &AtomicU8) {
    let mut tries = 0u32;
    while lock.compare_exchange_weak(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
        tries += 1;
        match tries % 64 {
            0 => std::thread::yield_now(),
            _ => std::hint::spin_loop(),
        }
    }
}

/// Whether a piece of the past need not be remembered beside a new one. Errors: they race.
#[inline(always)]
fn compare(old: &Piece, new: &Piece, views: &Views) -> Result<bool, Box<Conflict>> {
    if !old.overlaps(new) {
        return Ok(false);
    }
    let may_conflict = old.conflicts_with(new);
    if new.has_seen(old) {
        return Ok(true);
    }
    let may_go = old.lies_in(new) && new.stands_for(old);
    if !may_conflict && !may_go {
        return Ok(false);
    }
    match views.unordered(old, new) {
        None => Ok(may_go),
        Some([old_lane, lane]) if may_conflict => {
            Err(Box::new(Conflict { old: *old, old_lane, lane }))
        }
        Some(_) => Ok(false),
    }
}

/// Whether a strong write was seen by a later strong read which comes before the new piece. Causality goes from the
/// write to that read, and on.
#[cold]
fn is_seen<'p>(
    old: &Piece,
    new: &Piece,
    later: impl IntoIterator<Item = &'p Piece>,
    views: &Views,
) -> bool {
    const STRONG_READ: u8 = STRONG | READS;
    old.kind & (STRONG | WRITES) == STRONG | WRITES
        && later.into_iter().any(|read| {
            read.kind & STRONG_READ == STRONG_READ
                && !read.conflicts_with(old)
                && (old.lies_in(read) || new.lies_in(read))
                && views.unordered(read, new).is_none()
        })
}

impl Pieces<'_> {
    fn count(&self) -> usize {
        self.header.count.get() as usize
    }

    fn remove(&mut self, at: usize) {
        self.slots.copy_within(at + 1..self.count(), at);
        self.header.count.set(self.header.count.get() - 1);
    }

    /// Appends a piece; gives the oldest when there is no place.
    fn push(&mut self, piece: Piece) -> Option<Piece> {
        let mut oldest = None;
        if self.count() == self.slots.len() {
            oldest = Some(self.slots[0]);
            self.remove(0);
        }
        self.slots[self.count()] = piece;
        self.header.count.set(self.header.count.get() + 1);
        oldest
    }

    /// Forgets the oldest read of the same bytes by another block, when there are enough.
    fn thin_out(&mut self, new: &Piece) {
        let is_such = |old: &&Piece| {
            old.kind == new.kind && old.block != new.block && old.bytes() == new.bytes()
        };
        let pieces = &self.slots[..self.count()];
        if pieces.len() > READING_BLOCKS && pieces.iter().filter(is_such).count() >= READING_BLOCKS
        {
            let oldest = pieces.iter().position(|old| is_such(&old));
            oldest.into_iter().for_each(|at| self.remove(at));
        }
    }
}
