//! The part of a warp's access that lies in one cell of a shadow: which lanes touch which bytes, when and how.

use std::ops::Range;

use super::clock::Time;
use super::views::UNFINISHED;
use crate::exec::address::Target;
use crate::exec::lanes::{ALL, LANES};
use crate::exec::program::Order;

/// What an access does: bits.
pub type Kind = u8;
pub const READS: Kind = 1;
pub const WRITES: Kind = 2;
/// Others may do the same at the same time.
pub const STRONG: Kind = 4;
/// But only those of the same block.
pub const OF_BLOCK: Kind = 8;

/// Kind of an access of an order.
pub fn kind(does: Kind, order: Order) -> Kind {
    match (order.is_strong, order.is_of_block) {
        (false, _) => does,
        (true, false) => does | STRONG,
        (true, true) => does | STRONG | OF_BLOCK,
    }
}

/// Bytes of a cell and the lanes of a warp that touch them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Piece {
    pub time: Time,
    pub block: u32,
    lanes: u32,
    /// The instruction, and in the low bits the warp.
    place: u32,
    start: u8,
    end: u8,
    /// Binary logarithm of the bytes of each lane, one lane after the other; or [`TOGETHER`].
    spread: u8,
    pub kind: Kind,
}

/// Every lane touches all the bytes.
const TOGETHER: u8 = 0xFF;
const WARP_BITS: u32 = 5;

impl Piece {
    pub const NONE: Piece =
        Piece { time: 0, block: 0, lanes: 0, place: 0, start: 0, end: 0, spread: 0, kind: 0 };

    /// Of the instruction `at` of a warp; bytes and lanes are yet to come.
    pub fn new(time: Time, block: u32, warp: u32, at: u32, kind: Kind) -> Piece {
        Piece { time, block, place: at << WARP_BITS | warp, kind, ..Piece::NONE }
    }

    /// The first four bytes of a cell, by one lane.
    #[cfg(test)]
    pub fn of_lane(self, lane: u32) -> Piece {
        Piece { lanes: 1 << lane, end: 4, spread: TOGETHER, ..self }
    }

    pub fn warp(&self) -> u32 {
        self.place & ((1 << WARP_BITS) - 1)
    }

    /// Index of the instruction.
    pub fn at(&self) -> u32 {
        self.place >> WARP_BITS
    }

    pub fn bytes(&self) -> Range<u8> {
        self.start..self.end
    }

    /// The lanes that touch some of the bytes, which overlap with its own.
    #[inline]
    pub fn lanes_at(&self, bytes: Range<u8>) -> u32 {
        if self.spread == TOGETHER {
            return self.lanes;
        }
        let first = (bytes.start.max(self.start) - self.start) >> self.spread;
        let last = (bytes.end.min(self.end) - 1 - self.start) >> self.spread;
        ALL >> (LANES as u32 - 1 - (last - first) as u32)
            << (self.lanes.trailing_zeros() + first as u32)
    }

    /// The bytes that one of its lanes touches.
    #[inline]
    pub fn bytes_of(&self, lane: u32) -> Range<u8> {
        if self.spread == TOGETHER {
            return self.bytes();
        }
        let start = self.start + ((lane - self.lanes.trailing_zeros()) << self.spread) as u8;
        start..start + (1 << self.spread)
    }

    #[inline]
    pub fn is_of_warp_of(&self, other: &Piece) -> bool {
        self.block == other.block && self.warp() == other.warp()
    }

    #[inline]
    pub fn overlaps(&self, other: &Piece) -> bool {
        self.start < other.end && other.start < self.end
    }

    #[inline]
    pub fn lies_in(&self, other: &Piece) -> bool {
        self.start >= other.start && self.end <= other.end
    }

    /// Whether each byte in both is touched by one thread, the same in both. Of pieces of one block.
    #[inline]
    pub fn is_by_threads_of(&self, other: &Piece) -> bool {
        let first = |piece: &Piece| piece.lanes.trailing_zeros() as i32;
        let is_same = match (self.spread, other.spread) {
            (TOGETHER, _) | (_, TOGETHER) => {
                self.lanes == other.lanes && self.lanes.is_power_of_two()
            }
            (a, b) => {
                let shift = |piece: &Piece| piece.start as i32 - (first(piece) << a);
                a == b && shift(self) == shift(other)
            }
        };
        is_same && self.warp() == other.warp() && self.time != UNFINISHED
    }

    /// Whether it is the same access, but for the time.
    pub fn is_twin_of(&self, other: &Piece) -> bool {
        let without_time = |piece: &Piece| Piece { time: 0, ..*piece };
        without_time(self) == without_time(other)
    }

    /// Whether the two race when nothing orders them.
    #[inline]
    pub fn conflicts_with(&self, other: &Piece) -> bool {
        let (any, both) = (self.kind | other.kind, self.kind & other.kind);
        let is_mutual = both & STRONG != 0 && (any & OF_BLOCK == 0 || self.block == other.block);
        any & WRITES != 0 && !is_mutual
    }

    /// Whether it is an atomic operation that has seen the strong write of another one: whatever comes after the one
    /// comes after the other, for the memory model lets causality go from a write to the reads that see it.
    #[inline]
    pub fn has_seen(&self, old: &Piece) -> bool {
        let does = READS | WRITES | STRONG;
        self.kind & does == does
            && old.kind & WRITES != 0
            && old.lies_in(self)
            && !self.conflicts_with(old)
    }

    /// Whether whatever conflicts with an earlier access to bytes of this one conflicts with this one, too.
    #[inline]
    pub fn stands_for(&self, old: &Piece) -> bool {
        let writes = self.kind & WRITES >= old.kind & WRITES;
        let is_as_weak = self.kind & STRONG == 0
            || old.kind & STRONG != 0 && self.kind & OF_BLOCK >= old.kind & OF_BLOCK;
        writes && is_as_weak
    }
}

/// Takes the access of some lanes to `bytes` bytes each apart. Gives each piece, made from `whole`, with the number
/// of its cell of `1 << cell` bytes. No two pieces of a write overlap.
#[inline(always)]
pub fn split<E>(
    target: &Target<'_>,
    bytes: usize,
    cell: u32,
    whole: &Piece,
    mut each: impl FnMut(usize, Piece) -> Result<(), E>,
) -> Result<(), E> {
    let spread = bytes.trailing_zeros() as u8;
    let start = target.offsets[0];
    let is_dense = target.step() == Some(bytes as u64) && start.is_multiple_of(bytes as u64);
    if target.step() == Some(0) {
        let start = (start & ((1 << cell) - 1)) as u8;
        let (end, spread) = (start + bytes as u8, TOGETHER);
        let index = (target.offsets[0] >> cell) as usize;
        return each(index, Piece { lanes: ALL, start, end, spread, ..*whole });
    }
    if is_dense && bytes.is_power_of_two() {
        let end = start + (bytes * LANES) as u64;
        let mut at = start;
        while at < end {
            let cell_end = ((at >> cell) + 1 << cell).min(end);
            let first = at - start >> spread;
            let lanes = ALL >> (LANES as u64 - (cell_end - at >> spread)) << first;
            let from = (at & ((1 << cell) - 1)) as u8;
            let end = from + (cell_end - at) as u8;
            each((at >> cell) as usize, Piece { lanes, start: from, end, spread, ..*whole })?;
            at = cell_end;
        }
        return Ok(());
    }
    apart(target, bytes, cell, whole, each)
}

/// Lane by lane: neighbours that lie side by side, or at the same place, make one piece.
fn apart<E>(
    target: &Target<'_>,
    bytes: usize,
    cell: u32,
    whole: &Piece,
    mut each: impl FnMut(usize, Piece) -> Result<(), E>,
) -> Result<(), E> {
    let offsets = &target.offsets;
    let at_once = whole.kind & WRITES != 0 && do_some_coincide(target);
    let spread = bytes.trailing_zeros() as u8;
    let mut rest = target.mask;
    while rest != 0 {
        let lane = rest.trailing_zeros() as usize;
        let at = offsets[lane];
        let start = (at & ((1 << cell) - 1)) as u8;
        let end = start + bytes as u8;
        let mut piece = Piece { lanes: 1 << lane, start, end, spread: TOGETHER, ..*whole };
        let mut last = lane;
        for lane in lane + 1..LANES {
            if rest >> lane & 1 == 0 {
                if at_once { continue } else { break }
            }
            let is_beside = !at_once
                && bytes.is_power_of_two()
                && last + 1 == lane
                && offsets[lane] == offsets[last].wrapping_add(bytes as u64)
                && offsets[lane] >> cell == at >> cell
                && (piece.lanes.is_power_of_two() || piece.spread == spread);
            if is_beside {
                (piece.end, piece.spread) = (piece.end + bytes as u8, spread);
            } else if offsets[lane] != at || piece.spread != TOGETHER {
                if at_once { continue } else { break }
            }
            piece.lanes |= 1 << lane;
            last = lane;
        }
        rest &= !piece.lanes;
        each((at >> cell) as usize, piece)?;
    }
    Ok(())
}

/// Whether several lanes point to the same place.
pub fn do_some_coincide(target: &Target<'_>) -> bool {
    let (mut offsets, mut count) = ([0; LANES], 0);
    for lane in (0..LANES).filter(|lane| target.mask >> lane & 1 != 0) {
        offsets[count] = target.offsets[lane];
        count += 1;
    }
    let offsets = &mut offsets[..count];
    if offsets.is_sorted_by(|a, b| a < b) {
        return false;
    }
    offsets.sort_unstable();
    offsets.windows(2).any(|pair| pair[0] == pair[1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Region;
    use crate::ptx::ast::Space;

    /// Cells, bytes and lanes of the pieces of an access.
    fn pieces(
        offset: impl Fn(u64) -> u64,
        mask: u32,
        bytes: usize,
        cell: u32,
        kind: Kind,
    ) -> Vec<(usize, Range<u8>, u32)> {
        let region = Region::reserve(0).unwrap();
        let offsets = std::array::from_fn(|lane| offset(lane as u64));
        let target = Target { space: Space::Shared, region: &region, offsets, window: 0, mask };
        let whole = Piece::new(1, 0, 0, 0, kind);
        let mut all = Vec::new();
        let done: Result<(), ()> = split(&target, bytes, cell, &whole, |index, piece| {
            let lanes = piece.lanes_at(piece.bytes());
            assert_eq!(lanes, piece.lanes);
            for lane in (0..32).filter(|lane| lanes >> lane & 1 != 0) {
                let start = ((index as u64) << cell) + piece.bytes_of(lane).start as u64;
                assert_eq!(start, offset(lane as u64), "lane {lane}");
                assert_eq!(piece.bytes_of(lane).len(), bytes);
            }
            all.push((index, piece.bytes(), lanes));
            Ok(())
        });
        done.unwrap();
        all
    }

    #[test]
    fn dense_accesses_have_few_pieces() {
        let dense = pieces(|lane| 96 + 4 * lane, ALL, 4, 7, READS);
        assert_eq!(dense, [(0, 96..128, 0xff), (1, 0..96, 0xffff_ff00)]);
        let wide = pieces(|lane| 16 * lane, ALL, 16, 4, WRITES);
        assert!((0..32).map(|lane| (lane, 0..16, 1 << lane)).eq(wide));
        let short = pieces(|lane| 2 * lane, ALL, 2, 4, WRITES);
        assert!((0..4).map(|cell| (cell, 0..16, 0xff << (8 * cell))).eq(short));
        let some = pieces(|lane| 8 + 4 * lane, 0x0000_ff0f, 4, 7, WRITES);
        assert_eq!(some, [(0, 8..24, 0xf), (0, 40..72, 0xff00)]);
    }

    #[test]
    fn scattered_and_common_places() {
        assert_eq!(pieces(|_| 20, ALL, 4, 4, READS), [(1, 4..8, ALL)]);
        assert_eq!(pieces(|_| 20, ALL, 4, 4, WRITES), [(1, 4..8, ALL)]);
        let rows = pieces(|lane| 128 * lane, ALL, 4, 7, WRITES);
        assert!((0..32).map(|lane| (lane, 0..4, 1 << lane)).eq(rows));
        // Lanes 0 and 2, and lanes 1 and 3, at the same place: no two pieces of a write overlap.
        let pairs = |lane: u64| 4 * (lane % 2);
        assert_eq!(pieces(pairs, 0xf, 4, 4, WRITES), [(0, 0..4, 0b101), (0, 4..8, 0b1010)]);
        assert_eq!(pieces(pairs, 0xf, 4, 4, READS), [(0, 0..8, 0b11), (0, 0..8, 0b1100)]);
    }

    fn piece(kind: Kind, block: u32) -> Piece {
        Piece::new(1, block, 0, 0, kind).of_lane(0)
    }

    #[test]
    fn what_races_with_what() {
        let conflict = |a: Kind, b: Kind| {
            let found = piece(a, 0).conflicts_with(&piece(b, 1));
            assert_eq!(found, piece(b, 1).conflicts_with(&piece(a, 0)));
            found
        };
        let update = READS | WRITES | STRONG;
        assert!(!conflict(READS, READS) && !conflict(READS | STRONG, READS));
        assert!(conflict(READS, WRITES) && conflict(WRITES, WRITES));
        assert!(conflict(READS, update) && conflict(WRITES, update));
        assert!(conflict(WRITES, READS | STRONG) && !conflict(update, update));
        assert!(!conflict(WRITES | STRONG, READS | STRONG));
        assert!(conflict(update | OF_BLOCK, update), "of a block, and of another block");
        assert!(!piece(update | OF_BLOCK, 1).conflicts_with(&piece(update, 1)));
    }

    /// Whatever conflicts with a piece conflicts with that which stands for it.
    #[test]
    fn what_stands_for_what() {
        let kinds: Vec<Kind> = (1..16).filter(|kind| kind & (READS | WRITES) != 0).collect();
        for (old, new) in kinds.iter().flat_map(|&old| kinds.iter().map(move |&new| (old, new))) {
            let all_conflict = kinds.iter().flat_map(|&kind| [piece(kind, 0), piece(kind, 1)]);
            let mut others = all_conflict.filter(|other| piece(old, 0).conflicts_with(other));
            if piece(new, 0).stands_for(&piece(old, 0)) {
                assert!(others.all(|other| piece(new, 0).conflicts_with(&other)), "{old} {new}");
            }
        }
        assert!(piece(WRITES, 0).stands_for(&piece(READS, 0)));
        assert!(!piece(READS, 0).stands_for(&piece(WRITES, 0)));
    }
}
