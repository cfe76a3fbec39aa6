//! The pieces of the latest accesses to one cell of a memory, in place.

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, Ordering};

use super::piece::Piece;
use crate::mapping::Mapping;

/// What is at the start of a cell; zero at first.
#[repr(C)]
struct Header {
    lock: AtomicU8,
    /// Pieces in place.
    count: Cell<u8>,
    /// There are more elsewhere.
    has_more: Cell<bool>,
    /// The epoch that the pieces are of; those of another count for nothing.
    epoch: Cell<u32>,
}

const HEADER: usize = size_of::<Header>();
const PIECE: usize = size_of::<Piece>();
const CACHE_LINE: usize = 64;

/// Reads of the same bytes by different blocks that are remembered: as many as it takes to see that a write, from
/// whatever block, is not ordered with one.
const READING_BLOCKS: usize = 3;

/// Bytes that a cell of so many pieces takes.
pub const fn stride(slots: usize) -> usize {
    (HEADER + slots * PIECE).next_multiple_of(CACHE_LINE)
}

/// The cells of a memory, one after the other.
pub struct Cells<'a> {
    mapping: &'a Mapping,
    /// Pieces in place.
    slots: usize,
    /// Several threads of the host use them.
    are_shared: bool,
}

impl<'a> Cells<'a> {
    pub fn new(mapping: &'a Mapping, slots: usize, are_shared: bool) -> Self {
        Cells { mapping, slots, are_shared }
    }

    /// Calls `f` with a cell that nobody else uses meanwhile. Panics when there is none of this index.
    #[inline(always)]
    pub fn with<R>(&self, index: usize, epoch: u32, f: impl FnOnce(&mut Pieces<'_>) -> R) -> R {
        let offset = index * stride(self.slots);
        assert!(
            offset + stride(self.slots) <= self.mapping.bytes(),
            "a cell outside of its memory"
        );
        // SAFETY: inside the mapping, as just checked, and aligned, for a stride is; all-zero bytes are a Header, and
        // through shared references nobody changes it but in its Cells, under the lock.
        let (header, pieces) = unsafe {
            let at = self.mapping.start().add(offset);
            (at.cast::<Header>().as_ref(), at.add(HEADER).cast::<Piece>())
        };
        if self.are_shared {
            acquire(&header.lock);
        }
        // SAFETY: inside the mapping; all-zero bytes are Pieces. The lock keeps others out, and without it there is
        // nobody else.
        let slots = unsafe { std::slice::from_raw_parts_mut(pieces.as_ptr(), self.slots) };
        if header.epoch.replace(epoch) != epoch {
            header.count.set(0);
            header.has_more.set(false);
        }
        let result = f(&mut Pieces { header, slots });
        if self.are_shared {
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

/// The pieces of a cell, the oldest first.
pub struct Pieces<'a> {
    header: &'a Header,
    slots: &'a mut [Piece],
}

impl Pieces<'_> {
    #[inline(always)]
    pub fn all(&mut self) -> &mut [Piece] {
        &mut self.slots[..self.header.count.get() as usize]
    }

    pub fn has_more(&self) -> bool {
        self.header.has_more.get()
    }

    /// There are more elsewhere from now on; whether there were before.
    pub fn set_more(&self) -> bool {
        self.header.has_more.replace(true)
    }

    pub fn clear(&mut self) {
        self.header.count.set(0);
    }

    #[inline(always)]
    pub fn remove(&mut self, at: usize) {
        let pieces = self.all();
        for at in at + 1..pieces.len() {
            pieces[at - 1] = pieces[at];
        }
        self.header.count.set(self.header.count.get() - 1);
    }

    /// Appends a piece; gives the oldest when there is no place.
    #[inline(always)]
    pub fn push(&mut self, piece: Piece) -> Option<Piece> {
        let mut oldest = None;
        if self.all().len() == self.slots.len() {
            oldest = Some(self.slots[0]);
            self.remove(0);
        }
        let count = self.header.count.get();
        self.slots[count as usize] = piece;
        self.header.count.set(count + 1);
        oldest
    }

    /// Forgets the oldest read of the same bytes by another block, when there are enough.
    pub fn thin_out(&mut self, new: &Piece) {
        let is_such = |old: &&mut Piece| {
            old.kind == new.kind && old.block != new.block && old.bytes() == new.bytes()
        };
        let pieces = self.all();
        if pieces.len() >= READING_BLOCKS
            && pieces.iter_mut().filter(is_such).count() >= READING_BLOCKS
        {
            let oldest = pieces.iter_mut().position(|old| is_such(&old));
            oldest.into_iter().for_each(|at| self.remove(at));
        }
    }
}
