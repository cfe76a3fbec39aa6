//! A plan's invariants, read back from its words.

use std::ops::Range;

use super::*;

struct Tile {
    rows: Range<usize>,
    first: isize,
    order: u32,
    entries: Vec<Entry>,
}

struct Entry {
    others: Range<usize>,
    full: u32,
    blocks: [u8; 8],
}

/// Rows of a tile of each list.
const ROWS: [usize; 3] = [128, 64, 64];
const STRIP: usize = 16;

fn planned(segments: &[Segment], queries: usize, keys: usize) -> Vec<u32> {
    let mut words = vec![u32::MAX; attention::plan_len(queries, keys)];
    let len = attention::plan(segments, queries, keys, &mut words).unwrap();
    assert!(words[len..].iter().all(|&word| word == u32::MAX), "written beyond {len}");
    words.truncate(len);
    words
}

fn list(words: &[u32], which: usize) -> Vec<Tile> {
    let [count, at] = [words[2 * which] as usize, words[2 * which + 1] as usize];
    let tile = |words: &[u32], t: &[u32]| {
        let [entries, count] = [t[4] as usize, t[5] as usize];
        let entry = |e: &[u32]| Entry {
            others: e[0] as usize..e[0] as usize + (e[1] & 0xff) as usize,
            full: e[1] >> 8,
            blocks: std::array::from_fn(|s| (e[2 + s / 4] >> (8 * (s % 4))) as u8),
        };
        Tile {
            rows: t[1] as usize..t[2] as usize,
            first: t[0] as i32 as isize,
            order: t[3],
            entries: words[entries..entries + 4 * count].chunks(4).map(entry).collect(),
        }
    };
    words[at..at + 8 * count].chunks(8).map(|t| tile(words, t)).collect()
}

impl Tile {
    /// Rows of strip `s` that are the tile's.
    fn strip(&self, s: usize) -> Range<usize> {
        let at = |s: usize| {
            let row = self.first + (s * STRIP) as isize;
            row.clamp(self.rows.start as isize, self.rows.end as isize) as usize
        };
        at(s)..at(s + 1)
    }
}

/// Every pair that sees each other is in one block of every list, and what a kernel would take for granted holds.
fn check(segments: &[Segment], queries: usize, keys: usize) {
    let words = planned(segments, queries, keys);
    assert_eq!(words[6..8], [queries as u32, keys as u32]);
    let mut seen = vec![false; queries * keys];
    for i in 0..queries {
        super::keys(segments, i).iter().for_each(|j| seen[i * keys + j] = true);
        let ranges = &words[8 + 4 * i..][..4];
        for (j, &seen) in seen[i * keys..][..keys].iter().enumerate() {
            let inside = |r: &[u32]| (r[0]..r[1]).contains(&(j as u32));
            assert_eq!(ranges.chunks(2).any(inside), seen, "ranges of {i}, key {j}");
        }
    }
    for (which, rows) in ROWS.into_iter().enumerate() {
        let by_query = which < 2;
        let pair = |own: usize, other: usize| {
            if by_query { own * keys + other } else { other * keys + own }
        };
        let (own, others) = if by_query { (queries, keys) } else { (keys, queries) };
        let tiles = list(&words, which);
        let (mut covered, mut computed) = (vec![0; own], vec![0; queries * keys]);
        let mut work = Vec::new();
        for tile in &tiles {
            tile.rows.clone().for_each(|row| covered[row] += 1);
            assert!(!tile.rows.is_empty() && tile.first <= tile.rows.start as isize);
            assert!(tile.rows.end as isize <= tile.first + rows as isize);
            let strips = rows / STRIP;
            let mut slots: Vec<_> =
                (0..strips).map(|i| (tile.order >> (4 * i) & 0xf) as usize).collect();
            slots.sort_unstable();
            assert!(slots.into_iter().eq(0..strips), "order {:x}", tile.order);
            work.push(tile.entries.iter().flat_map(|e| e.blocks).map(u8::count_ones).sum::<u32>());
            for entry in &tile.entries {
                assert!((1..=64).contains(&entry.others.len()) && entry.others.end <= others);
                assert!(entry.blocks[strips..].iter().all(|&bits| bits == 0));
                for s in 0..strips {
                    let strip = tile.strip(s);
                    if entry.full >> s & 1 == 1 {
                        let all = |own| entry.others.clone().all(|other| seen[pair(own, other)]);
                        assert!(strip.clone().all(all) && entry.others.len() == 64);
                        assert!(entry.blocks[s] == 0xff && !strip.is_empty());
                    }
                    for u in (0..8).filter(|u| entry.blocks[s] >> u & 1 == 1) {
                        let start = entry.others.start + 8 * u;
                        let unit = start..(start + 8).min(entry.others.end);
                        let mut needed = false;
                        for (own, other) in
                            strip.clone().flat_map(|own| unit.clone().map(move |o| (own, o)))
                        {
                            computed[pair(own, other)] += 1;
                            needed |= seen[pair(own, other)];
                        }
                        assert!(needed, "list {which}: strip {s}, unit {u} of {:?}", entry.others);
                    }
                }
            }
        }
        assert!(covered.iter().all(|&n| n == 1), "list {which}: every row in one tile");
        assert!(work.is_sorted_by(|a, b| a >= b), "list {which}: longest first");
        for (at, (&seen, &computed)) in seen.iter().zip(&computed).enumerate() {
            assert!(
                computed <= 1 && (computed == 1 || !seen),
                "list {which}: pair {at}: {computed}"
            );
        }
    }
}

#[test]
fn every_case_has_a_plan() {
    for (_, case) in cases() {
        check(&case.segments, case.queries, case.keys);
    }
    let group = trees(&[(340, &[100, 100, 100, 100])]);
    check(&group, 740, 740);
    check(&[Segment::all(0, 256, 0, 1024)], 256, 1024);
}

/// Runs of queries with gaps between; each sees a prefix and its own keys, in either order, anywhere.
fn any_segments(pieces: &[(u32, u32, u32, u32, u32, bool, bool)]) -> (Vec<Segment>, usize, usize) {
    let (mut segments, mut at, mut keys) = (Vec::new(), 0, 1);
    for &(gap, len, prefix_start, prefix_len, apart, causal, is_behind) in pieces {
        let own_len = if causal { len } else { apart * 3 };
        let (first, second) = if is_behind { (own_len, prefix_len) } else { (prefix_len, own_len) };
        let next = prefix_start + first + apart;
        let (prefix, own) = if is_behind { (next, prefix_start) } else { (prefix_start, next) };
        segments.push(segment([at + gap, len], [prefix, prefix_len], [own, own_len], causal));
        at += gap + len;
        keys = keys.max(next + second);
    }
    (segments, at as usize + 3, keys as usize + 2)
}

#[test]
fn any_mask_has_a_plan() {
    let piece = (0u32..9, 0u32..170, 0u32..200, 0u32..150, 0u32..40, any::<bool>(), any::<bool>());
    runner(60)
        .run(&prop::collection::vec(piece, 0..6), |pieces| {
            let (segments, queries, keys) = any_segments(&pieces);
            check(&segments, queries, keys);
            Ok(())
        })
        .unwrap();
}

#[test]
fn any_pack_has_a_plan() {
    let tree = (1u32..200, prop::collection::vec(1u32..90, 0..5));
    runner(60)
        .run(&prop::collection::vec(tree, 1..8), |shape| {
            let shape: Vec<_> = shape.iter().map(|(t, b)| (*t, b.as_slice())).collect();
            let segments = trees(&shape);
            let tokens = segments.iter().map(|s| s.q_len as usize).sum();
            check(&segments, tokens, tokens);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_buffer_that_is_too_short_is_refused() {
    let expected = attention::plan_len(10, 20);
    let message = refusal(attention::plan(&[], 10, 20, &mut vec![0; expected - 1]));
    let got = expected - 1;
    assert_eq!(
        message,
        format!("attention::plan: plan has {got} elements, expected {expected} or more")
    );
}
