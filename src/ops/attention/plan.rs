//! What the CUDA kernels read of a mask: which tiles of keys a tile of queries visits, and which parts
//! of a tile it computes. Made on the host once per pack, for all layers; read from device memory,
//! so that one captured launch serves every pack.
//!
//! One u32 row:
//!
//! ```text
//! header        [8]         (number of tiles, where they start) of forward, of dq, of dk and dv; Tq, Tk
//! ranges        [Tq, 4]     keys that a query sees: prefix start..end, own start..end
//! tiles         [n, 8]      first row (may be negative), rows begin..end, order, entries' start and number
//! entries       [n, 4]      first row of the others, their number (1 to 64) | full << 8, two words of blocks
//! ```
//!
//! A tile is up to 128 rows of queries (forward), 64 of queries (dq) or 64 of keys (dk and dv), in strips of 16, which
//! is what a tensor core takes; its entries are the tiles of up to 64 others that it visits, in their
//! order. Bit `8·s + u` of an entry's blocks says that strip `s` needs the others `8u..8u + 8`, bit `s` of
//! full that all its rows see all 64. Tiles follow the flat stream, across branches. They end with
//! their last row where rows are queries, and then with their tree: a short strip stands where it sees few keys.
//!
//! Warps share a tile by strips, two each: nibble `i` of `order` is the strip of slot `i`, slots `2w`
//! and `2w + 1` are those of warp `w` (of forward) or of pair of warps `w`. They are paired so that the
//! slowest warp of every interval between two barriers has as little as possible to do: causal
//! strips the longest with the shortest. Tiles are sorted by their work, longest first.

use std::ops::Range;

use super::cpu::groups;
use super::{Segment, check_segments};
use crate::error::{Error, Result};
use crate::ops::check::Check;

/// Rows of a strip.
const STRIP: usize = 16;
/// Others of an entry.
const OTHERS: usize = 64;
/// Others of a block.
const UNIT: usize = 8;
/// Words of the header, of a tile, of an entry, of a query's ranges.
const HEADER: usize = 8;
const TILE: usize = 8;
const ENTRY: usize = 4;
const RANGES: usize = 4;

/// Rows of a tile of queries in forward, and of any tile in backward.
pub(super) const ROWS_FORWARD: usize = 128;
pub(super) const ROWS_BACKWARD: usize = 64;

/// Elements that a plan of so many queries and keys takes at most.
pub fn plan_len(queries: usize, keys: usize) -> usize {
    let list = |own: usize, rows: usize, others: usize| {
        // of two neighbouring groups one at least fills more than half a tile
        let tiles = 3 * own.div_ceil(rows) + 2;
        // a tile's spans of others are 64 or more apart
        tiles * (TILE + ENTRY * (2 * others.div_ceil(OTHERS) + 1))
    };
    HEADER
        + RANGES * queries
        + list(queries, ROWS_FORWARD, keys)
        + list(queries, ROWS_BACKWARD, keys)
        + list(keys, ROWS_BACKWARD, queries)
}

/// Writes the plan of `segments` over so many queries and keys to the front of `plan` and returns how
/// much of it that is. Time and size grow with the number of tiles visited.
///
/// Errors: segments out of range, out of order or overlapping; a `plan` shorter than [`plan_len`].
pub fn plan(segments: &[Segment], queries: usize, keys: usize, plan: &mut [u32]) -> Result<usize> {
    let expected = plan_len(queries, keys);
    if plan.len() < expected {
        let got = plan.len();
        let message = format!("plan has {got} elements, expected {expected} or more");
        return Err(Error::argument("attention::plan", message));
    }
    check_segments(Check::on_cpu("attention::plan"), segments, queries, keys)?;
    let seen = Seen::new(segments, queries);
    let mut words = vec![0; HEADER];
    words.extend(seen.ranges.iter().flat_map(|r| r.iter().flat_map(|r| [r.start, r.end])));
    let (by_query, by_key) = (seen.query_groups(), seen.key_groups(keys));
    let lists = [
        seen.of_queries(&by_query, ROWS_FORWARD, 2),
        seen.of_queries(&by_query, ROWS_BACKWARD, 1),
        seen.of_keys(&by_key),
    ];
    for (i, mut tiles) in lists.into_iter().enumerate() {
        tiles.sort_by_key(|tile| std::cmp::Reverse(tile.work()));
        (words[2 * i], words[2 * i + 1]) = (tiles.len() as u32, words.len() as u32);
        let mut entries = words.len() + TILE * tiles.len();
        for tile in &tiles {
            words.extend(tile.words(entries));
            entries += ENTRY * tile.entries.len();
        }
        words.extend(tiles.iter().flat_map(|tile| &tile.entries).flat_map(Entry::words));
    }
    words[6..HEADER].copy_from_slice(&[queries as u32, keys as u32]);
    plan[..words.len()].copy_from_slice(&words);
    Ok(words.len())
}

/// Who sees whom, by rows.
struct Seen<'a> {
    segments: &'a [Segment],
    /// Of each query: prefix and own keys.
    ranges: Vec<[Range<u32>; 2]>,
}

impl<'a> Seen<'a> {
    fn new(segments: &'a [Segment], queries: usize) -> Self {
        let mut ranges = vec![[0..0, 0..0]; queries];
        for s in segments {
            let rows = &mut ranges[s.q_start as usize..][..s.q_len as usize];
            for (row, i) in rows.iter_mut().zip(1..) {
                let own = if s.causal == 1 { i } else { s.own_len };
                *row = [(s.prefix_start, s.prefix_len), (s.own_start, own)]
                    .map(|(start, len)| if len == 0 { 0..0 } else { start..start + len });
            }
        }
        Seen { segments, ranges }
    }

    /// The queries, cut where a run of segments ends that share keys.
    fn query_groups(&self) -> Vec<Range<usize>> {
        let starts = groups(self.segments).map(|group| group[0].q_start as usize);
        let ends = groups(self.segments).filter_map(|group| group.last());
        let ends = ends.map(|s| s.q_start as usize + s.q_len as usize);
        cut(starts.chain(ends).collect(), self.ranges.len(), ROWS_BACKWARD)
    }

    /// The keys, cut where the first key of such a run lies.
    fn key_groups(&self, keys: usize) -> Vec<Range<usize>> {
        let first = |group: &[Segment]| {
            let starts = group
                .iter()
                .flat_map(|s| [(s.prefix_start, s.prefix_len), (s.own_start, s.own_len)]);
            starts.filter(|&(_, len)| len > 0).map(|(start, _)| start as usize).min()
        };
        cut(groups(self.segments).filter_map(first).collect(), keys, ROWS_BACKWARD)
    }

    /// Tiles of queries, each group cut from its end.
    fn of_queries(&self, groups: &[Range<usize>], rows: usize, together: usize) -> Vec<Tile> {
        let mut tiles = Vec::new();
        for group in groups {
            let count = group.len().div_ceil(rows);
            for i in 0..count {
                let first = group.end as isize - ((count - i) * rows) as isize;
                let begin = first.max(group.start as isize) as usize;
                let own = begin..(first + rows as isize) as usize;
                let seen = self.ranges[own.clone()].iter().flatten();
                let spans = spans(seen.map(|r| r.start as usize..r.end as usize).collect());
                let mut tile = Tile { first, rows: own, order: 0, entries: Vec::new() };
                for (i, span) in spans.iter().enumerate() {
                    // the last from its end: there lie the keys that not all see
                    let short = if i + 1 == spans.len() { span.len() % OTHERS } else { 0 };
                    for others in pieces(span.clone(), short) {
                        tile.entries.push(self.keys_visited(&tile, rows / STRIP, others));
                    }
                }
                tile.pair(rows / STRIP, together);
                tiles.push(tile);
            }
        }
        tiles
    }

    /// Tiles of keys, each group cut from its start.
    fn of_keys(&self, groups: &[Range<usize>]) -> Vec<Tile> {
        let mut tiles = Vec::new();
        for group in groups {
            for own in pieces(group.clone(), 0) {
                let spans = spans(self.queries_of(&own));
                let first = own.start as isize;
                let mut tile = Tile { first, rows: own, order: 0, entries: Vec::new() };
                for others in spans.into_iter().flat_map(|span| pieces(span, 0)) {
                    tile.entries.push(self.queries_visited(&tile, others));
                }
                tile.pair(ROWS_BACKWARD / STRIP, 1);
                tiles.push(tile);
            }
        }
        tiles
    }

    /// Ranges of queries of which each sees one of `keys`.
    fn queries_of(&self, keys: &Range<usize>) -> Vec<Range<usize>> {
        let meets = |start: u32, len: u32| {
            (start as usize) < keys.end && keys.start < start as usize + len as usize
        };
        let of_segment = |s: &Segment| {
            let first = s.q_start as usize;
            let all = first..first + s.q_len as usize;
            if meets(s.prefix_start, s.prefix_len) {
                return all;
            }
            // a causal query sees no key behind its own place
            let late = keys.start.saturating_sub(s.own_start as usize) * s.causal as usize;
            if meets(s.own_start, s.own_len) { first + late..all.end } else { 0..0 }
        };
        self.segments.iter().map(of_segment).collect()
    }

    /// The keys `others` as a tile of queries visits them.
    fn keys_visited(&self, tile: &Tile, strips: usize, others: Range<usize>) -> Entry {
        let mut entry = Entry::new(&others);
        for s in (0..strips).filter(|&s| !tile.strip(s).is_empty()) {
            let strip = &self.ranges[tile.strip(s)];
            if others.len() == OTHERS && strip.iter().all(|ranges| sees_all(ranges, &others)) {
                (entry.blocks[s], entry.full) = (u8::MAX, entry.full | 1 << s);
                continue;
            }
            for (u, unit) in units(&others).enumerate() {
                let is_seen = strip.iter().any(|ranges| sees_any(ranges, &unit));
                entry.blocks[s] |= u8::from(is_seen) << u;
            }
        }
        entry
    }

    /// The queries `others` as a tile of keys visits them.
    fn queries_visited(&self, tile: &Tile, others: Range<usize>) -> Entry {
        let mut entry = Entry::new(&others);
        for s in (0..ROWS_BACKWARD / STRIP).filter(|&s| !tile.strip(s).is_empty()) {
            let strip = tile.strip(s);
            let is_full = |ranges: &[Range<u32>; 2]| sees_all(ranges, &strip);
            if others.len() == OTHERS && self.ranges[others.clone()].iter().all(is_full) {
                entry.full |= 1 << s;
            }
            for (u, unit) in units(&others).enumerate() {
                let is_seen = self.ranges[unit].iter().any(|ranges| sees_any(ranges, &strip));
                entry.blocks[s] |= u8::from(is_seen) << u;
            }
        }
        entry
    }
}

fn sees_any(ranges: &[Range<u32>; 2], keys: &Range<usize>) -> bool {
    let meets = |r: &Range<u32>| (r.start as usize) < keys.end && keys.start < r.end as usize;
    ranges.iter().any(meets)
}

fn sees_all(ranges: &[Range<u32>; 2], keys: &Range<usize>) -> bool {
    ranges.iter().any(|r| r.start as usize <= keys.start && keys.end <= r.end as usize)
}

/// 0..len, cut at `starts`; a piece is left joined to the one before where both fit in `rows`.
fn cut(mut starts: Vec<usize>, len: usize, rows: usize) -> Vec<Range<usize>> {
    starts.extend([0, len]);
    starts.sort_unstable();
    starts.dedup();
    let mut pieces: Vec<Range<usize>> = Vec::new();
    for ends in starts.windows(2).filter(|ends| ends[1] <= len) {
        match pieces.last_mut() {
            Some(last) if ends[1] - last.start <= rows => last.end = ends[1],
            _ => pieces.push(ends[0]..ends[1]),
        }
    }
    pieces
}

/// Sorted; those that overlap, or have less than an entry between them, as one.
fn spans(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.retain(|r| !r.is_empty());
    ranges.sort_unstable_by_key(|r| r.start);
    let mut spans: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match spans.last_mut() {
            Some(last) if range.start < last.end + OTHERS => last.end = last.end.max(range.end),
            _ => spans.push(range),
        }
    }
    spans
}

/// A span in pieces of 64: one of `short` before them, a rest behind them.
fn pieces(span: Range<usize>, short: usize) -> impl Iterator<Item = Range<usize>> {
    let rest = span.start + short..span.end;
    let head = (short > 0).then_some(span.start..rest.start);
    head.into_iter()
        .chain(rest.clone().step_by(OTHERS).map(move |start| start..(start + OTHERS).min(rest.end)))
}

fn units(others: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = others.end;
    others.clone().step_by(UNIT).map(move |start| start..(start + UNIT).min(end))
}

/// Calls `each` with every way to pair `items`, whose number is even.
fn pairings(items: &[usize], chosen: &mut Vec<[usize; 2]>, each: &mut impl FnMut(&[[usize; 2]])) {
    let Some((&first, rest)) = items.split_first() else { return each(chosen) };
    for i in 0..rest.len() {
        let others: Vec<usize> = [&rest[..i], &rest[i + 1..]].concat();
        chosen.push([first, rest[i]]);
        pairings(&others, chosen, each);
        chosen.pop();
    }
}

/// Rows that are worked on together.
struct Tile {
    /// Row of the first slot; rows before `rows` and behind it are not this tile's.
    first: isize,
    rows: Range<usize>,
    order: u32,
    entries: Vec<Entry>,
}

/// Others that a tile visits.
struct Entry {
    start: usize,
    len: usize,
    /// Of each strip, the units that it needs.
    blocks: [u8; 8],
    /// Strips that need no mask.
    full: u8,
}

impl Entry {
    fn new(others: &Range<usize>) -> Self {
        Entry { start: others.start, len: others.len(), blocks: [0; 8], full: 0 }
    }

    fn words(&self) -> [u32; ENTRY] {
        let (low, high) = (&self.blocks[..4], &self.blocks[4..]);
        let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let len = self.len as u32 | u32::from(self.full) << 8;
        [self.start as u32, len, word(low), word(high)]
    }

    fn units(&self, strip: usize) -> u32 {
        self.blocks[strip].count_ones()
    }
}

impl Tile {
    /// The rows of strip `s` that are the tile's.
    fn strip(&self, s: usize) -> Range<usize> {
        let at = |s: usize| {
            let row = self.first + (s * STRIP) as isize;
            row.clamp(self.rows.start as isize, self.rows.end as isize) as usize
        };
        at(s)..at(s + 1)
    }

    fn words(&self, entries: usize) -> [u32; TILE] {
        let rows = [self.rows.start as u32, self.rows.end as u32];
        let (entries, count) = (entries as u32, self.entries.len() as u32);
        [self.first as u32, rows[0], rows[1], self.order, entries, count, 0, 0]
    }

    /// Blocks.
    fn work(&self) -> u32 {
        self.entries.iter().map(|entry| (0..8).map(|s| entry.units(s)).sum::<u32>()).sum()
    }

    /// Pairs the strips. The last `together` entries are worked on without a barrier between.
    fn pair(&mut self, strips: usize, together: usize) {
        let (single, last) = self.entries.split_at(self.entries.len().saturating_sub(together));
        let load = |entries: &[Entry]| -> Vec<u32> {
            (0..strips).map(|s| entries.iter().map(|e| e.units(s)).sum()).collect()
        };
        let single = single.iter().map(|entry| load(std::slice::from_ref(entry)));
        let mut intervals: Vec<Vec<u32>> = single.chain([load(last)]).collect();
        // where all strips have the same to do, every pairing is as good
        intervals.retain(|of_strip| of_strip.iter().any(|&units| units != of_strip[0]));
        let mut best = (u32::MAX, 0);
        let all: Vec<usize> = (0..strips).rev().collect();
        pairings(&all, &mut Vec::new(), &mut |pairs| {
            let slowest = |load: &Vec<u32>| pairs.iter().map(|&[a, b]| load[a] + load[b]).max();
            let cost = intervals.iter().filter_map(slowest).sum();
            if cost < best.0 {
                let slots = pairs.as_flattened().iter().enumerate();
                best = (cost, slots.map(|(i, &strip)| (strip as u32) << (4 * i)).sum());
            }
        });
        self.order = best.1;
    }
}
