//! The latest accesses to every cell of a memory.
//!
//! A cell holds some pieces in place, in order of age; what is older lies in a table beside. A piece goes
//! once a later one, which comes after it, stands for it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use super::cell::{Cells, Pieces, stride};
use super::piece::{Piece, READS, STRONG, WRITES};
use super::views::{UNFINISHED, Views};
use crate::mapping::Mapping;

/// Pieces of a cell in the table at most; then the oldest is forgotten.
const MOST_BESIDE: usize = 64;

/// What is remembered of a memory.
pub struct Shadow<'a> {
    cells: Cells<'a>,
    /// Binary logarithm of the bytes of a cell.
    pub cell: u32,
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

impl<'a> Shadow<'a> {
    /// Bytes that a shadow takes of memory of `bytes` bytes.
    pub const fn bytes(bytes: usize, cell: u32, slots: usize) -> usize {
        bytes.div_ceil(1 << cell) * stride(slots)
    }

    /// Of cells with so many pieces in place. `is_shared`: several threads of the host use it.
    pub fn new(
        cells: &'a Mapping,
        cell: u32,
        slots: usize,
        is_shared: bool,
        beside: &'a Beside,
    ) -> Self {
        Shadow { cells: Cells::new(cells, slots, is_shared), cell, beside }
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
        self.cells.with(index, epoch, |cell| {
            let is_over = |old: &Piece| is_private && views.is_past(old);
            if cell.all().iter().all(is_over) {
                cell.clear();
            }
            let mut at = 0;
            while let Some(old) = cell.all().get(at) {
                match compare(old, new, views) {
                    Ok(is_past) if is_past || is_over(old) => cell.remove(at),
                    Err(conflict) => {
                        if !is_seen(&conflict.old, new, &cell.all()[at + 1..], views) {
                            return Err(conflict);
                        }
                        at += 1;
                    }
                    Ok(_) => at += 1,
                }
            }
            if cell.has_more() {
                self.compare_beside(index, new, views, cell.all(), is_over)?;
            }
            if !is_private && new.kind & WRITES == 0 {
                cell.thin_out(new);
            }
            if let Some(oldest) = cell.push(*new) {
                self.put_beside(index, cell, oldest);
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
        in_place: &[Piece],
        is_over: impl Fn(&Piece) -> bool,
    ) -> Result<(), Box<Conflict>> {
        let mut table = self.beside.table();
        let Some(pieces) = table.get_mut(&index) else { return Ok(()) };
        let mut at = 0;
        while at < pieces.len() {
            match compare(&pieces[at], new, views) {
                Ok(is_past) if is_past || is_over(&pieces[at]) => drop(pieces.remove(at)),
                Err(conflict) => {
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
    fn put_beside(&self, index: usize, cell: &Pieces<'_>, piece: Piece) {
        let mut table = self.beside.table();
        let pieces = table.entry(index).or_default();
        if !cell.set_more() {
            pieces.clear();
        }
        if pieces.len() == MOST_BESIDE {
            pieces.remove(0);
        }
        pieces.push(piece);
    }

    /// A write of bytes of the cell that is not over.
    pub fn unfinished(&self, index: usize, epoch: u32, bytes: Range<u8>) -> Option<Piece> {
        self.cells.with(index, epoch, |cell| {
            let is_meant = |piece: &&mut Piece| {
                piece.time == UNFINISHED
                    && piece.kind & WRITES != 0
                    && piece.bytes().start < bytes.end
                    && bytes.start < piece.bytes().end
            };
            cell.all().iter_mut().find(is_meant).copied()
        })
    }

    /// An access that was not over is now: it happens at `twin.time`.
    pub fn finish(&self, index: usize, epoch: u32, twin: &Piece) {
        self.cells.with(index, epoch, |cell| {
            let is_meant = |old: &&mut Piece| old.time == UNFINISHED && old.is_twin_of(twin);
            if let Some(old) = cell.all().iter_mut().find(is_meant) {
                old.time = twin.time;
            } else if cell.has_more() {
                let mut table = self.beside.table();
                let pieces = table.entry(index).or_default();
                if let Some(old) = pieces.iter_mut().find(is_meant) {
                    old.time = twin.time;
                }
            }
        })
    }
}

/// Whether a piece of the past need not be remembered beside a new one. Errors: they race.
#[inline(always)]
fn compare(old: &Piece, new: &Piece, views: &Views) -> Result<bool, Box<Conflict>> {
    if !old.overlaps(new) {
        return Ok(false);
    }
    let may_conflict = old.conflicts_with(new);
    if (old.kind | new.kind) & WRITES == 0 && !old.is_of_warp_of(new) && !views.is_past(old) {
        // The latest reads of other warps are kept: to ask what orders them costs more.
        return Ok(false);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::lanes::ALL;
    use crate::exec::race::piece;
    use crate::memory::Region;
    use crate::ptx::ast::Space;

    const SLOTS: usize = 4;

    /// A shadow of 64 bytes in cells of 16, and what the 32 warps of a block know.
    struct Bench {
        cells: Mapping,
        beside: Beside,
        views: Views,
        epoch: u32,
    }

    impl Bench {
        fn new() -> Bench {
            let mut views = Views::new(32);
            views.start(0, [ALL; 32].into_iter());
            let cells = Mapping::reserve(Shadow::bytes(64, 4, SLOTS)).unwrap();
            Bench { cells, beside: Beside::default(), views, epoch: 1 }
        }

        fn shadow(&self) -> Shadow<'_> {
            Shadow::new(&self.cells, 4, SLOTS, true, &self.beside)
        }

        /// An access of one lane to some bytes; with whom it races: a warp and a lane.
        fn touch(&self, kind: u8, warp: u32, lane: u32, bytes: Range<u64>) -> Option<[u32; 2]> {
            self.touch_at(self.views.now(), kind, warp, lane, bytes)
        }

        fn touch_at(
            &self,
            time: u32,
            kind: u8,
            warp: u32,
            lane: u32,
            bytes: Range<u64>,
        ) -> Option<[u32; 2]> {
            let whole = Piece::new(time, self.views.block(), warp, 0, kind);
            let region = Region::reserve(0).unwrap();
            let (offsets, mask) = ([bytes.start; 32], 1 << lane);
            let target = crate::exec::address::Target {
                space: Space::Shared,
                region: &region,
                offsets,
                window: 0,
                mask,
            };
            let length = (bytes.end - bytes.start) as usize;
            let found = piece::split(&target, length, 4, &whole, |index, piece| {
                self.shadow().touch(index, self.epoch, &piece, &self.views, true)
            });
            found.err().map(|conflict| [conflict.old.warp(), conflict.old_lane])
        }
    }

    #[test]
    fn what_nothing_orders_races() {
        let mut bench = Bench::new();
        assert_eq!(bench.touch(WRITES, 0, 3, 4..8), None);
        assert_eq!(bench.touch(READS, 0, 3, 4..8), None, "the thread itself");
        assert_eq!(bench.touch(READS, 0, 4, 4..8), Some([0, 3]), "another lane");
        assert_eq!(bench.touch(READS, 1, 3, 4..8), Some([0, 3]), "another warp");
        assert_eq!(bench.touch(WRITES, 1, 3, 0..16), Some([0, 3]), "more bytes");
        bench.views.meet();
        assert_eq!(bench.touch(WRITES, 1, 3, 0..16), None, "after a barrier");
    }

    #[test]
    fn neighbouring_bytes_do_not_race() {
        let bench = Bench::new();
        for byte in 0..16 {
            assert_eq!(bench.touch(WRITES, byte % 4, byte, byte as u64..byte as u64 + 1), None);
        }
        assert_eq!(bench.touch(READS, 3, 7, 7..8), None);
        assert_eq!(bench.touch(READS, 3, 7, 6..8), Some([2, 6]));
    }

    /// More readers than a cell has places for; each is remembered.
    #[test]
    fn no_reader_is_forgotten() {
        for late in 0..30 {
            let mut bench = Bench::new();
            for warp in 0..30 {
                assert_eq!(bench.touch(READS, warp, 9, 8..12), None);
            }
            for warp in (0..30).filter(|&warp| warp != late) {
                bench.views.arrive(1, warp, ALL);
            }
            bench.views.leave(1, 31, ALL);
            assert_eq!(bench.touch(WRITES, 31, 0, 8..12), Some([late, 9]));
            assert_eq!(bench.touch(WRITES, 31, 0, 12..16), None);
        }
    }

    #[test]
    fn another_epoch_starts_anew() {
        let mut bench = Bench::new();
        for warp in 0..30 {
            assert_eq!(bench.touch(READS, warp, 0, 0..4), None);
        }
        bench.epoch += 1;
        assert_eq!(bench.touch(WRITES, 31, 0, 0..4), None);
    }

    /// A copy is no access of its time, but of all times until it is done.
    #[test]
    fn copies_last_until_they_are_done() {
        let mut bench = Bench::new();
        assert_eq!(bench.touch_at(UNFINISHED, READS, 0, 1, 0..16), None);
        bench.views.meet();
        assert_eq!(bench.touch(WRITES, 1, 1, 4..8), Some([0, 1]), "after a barrier");
        assert_eq!(bench.touch(WRITES, 0, 1, 4..8), Some([0, 1]), "by its own thread");
        bench.views.meet();
        let region = Region::reserve(0).unwrap();
        let target = crate::exec::address::Target {
            space: Space::Shared,
            region: &region,
            offsets: [0; 32],
            window: 0,
            mask: 2,
        };
        let whole = Piece::new(bench.views.now(), 0, 0, 0, READS);
        let _: Result<(), ()> = piece::split(&target, 16, 4, &whole, |index, piece| {
            bench.shadow().finish(index, bench.epoch, &piece);
            Ok(())
        });
        assert_eq!(bench.touch(WRITES, 1, 1, 4..8), Some([0, 1]), "since it was done");
        bench.views.meet();
        assert_eq!(bench.touch(WRITES, 1, 1, 4..8), None);
    }
}
