//! Attention on the CPU: tiles of queries by keys that stay in L2, products by the device's GEMM.

use std::cell::Cell;
use std::ops::Range;

use super::{Heads, HeadsMut, Inputs, Segment};
use crate::device::cpu::{par_rows, par_tasks, simd};
use crate::device::gemm::{Operand, Store, serial, with_scratch};
use crate::ops::math::exp;
use crate::ops::reduce::sum2;
use crate::ops::rows_per_chunk;
use crate::tensor::{Tensor, TensorMut};

/// Queries of a block: a tile of scores is 64 KiB.
const QUERIES: usize = 128;
/// Keys of a tile.
const KEYS: usize = 128;
/// Rows of a tile in memory are whole vectors: loops over them have no remainder.
const VECTOR: usize = 16;

thread_local! {
    /// Tiles of the block this thread works on.
    static TILES: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// A tile of keys that some block of queries sees.
struct KeyTile {
    rows: Range<usize>,
    /// In the own range of a causal segment: the position of the block's first query minus that
    /// of the tile's first key. Query r sees `diagonal + r + 1` keys.
    diagonal: Option<isize>,
}

impl KeyTile {
    /// How many of the tile's keys query `r` of the block sees.
    fn visible(&self, r: usize) -> usize {
        let all = self.rows.len();
        self.diagonal.map_or(all, |d| (d + r as isize + 1).clamp(0, all as isize) as usize)
    }
}

/// The tiles of keys that the queries `block` (counted within the segment) see.
fn key_tiles(segment: &Segment, block: Range<usize>) -> impl Iterator<Item = KeyTile> + use<> {
    let (prefix, own) = (segment.prefix_start as usize, segment.own_start as usize);
    let causal = segment.causal == 1;
    let own_len = if causal { block.end } else { segment.own_len as usize };
    let cut = |len: usize| (0..len).step_by(KEYS).map(move |j| j..(j + KEYS).min(len));
    let before = cut(segment.prefix_len as usize)
        .map(move |r| KeyTile { rows: prefix + r.start..prefix + r.end, diagonal: None });
    let after = cut(own_len).map(move |r| KeyTile {
        rows: own + r.start..own + r.end,
        diagonal: causal.then_some(block.start as isize - r.start as isize),
    });
    before.chain(after)
}

/// Block `index` of the queries of a segment, counted within the segment.
fn query_block(segment: &Segment, index: usize) -> Range<usize> {
    let len = segment.q_len as usize;
    (index * QUERIES).min(len)..((index + 1) * QUERIES).min(len)
}

/// How many blocks hold its queries.
fn query_blocks(segment: &Segment) -> usize {
    (segment.q_len as usize).div_ceil(QUERIES)
}

/// The queries that no segment names.
fn gaps(segments: &[Segment], queries: usize) -> impl Iterator<Item = Range<usize>> {
    let starts = segments.iter().map(|s| s.q_start as usize).chain([queries]);
    let ends = segments.iter().map(|s| s.q_start as usize + s.q_len as usize);
    [0].into_iter().chain(ends).zip(starts).map(|(end, start)| end..start)
}

/// Units: (head, block of queries).
pub(super) fn forward(
    inputs: Inputs<'_>,
    segments: &[Segment],
    mut o: HeadsMut<'_>,
    mut lse: TensorMut<'_>,
) {
    let Inputs { q, k, v, heads, scale } = inputs;
    for gap in gaps(segments, q.columns().rows()) {
        (0..heads).for_each(|h| o.head(h).slice_rows(gap.clone()).fill(0.0f32));
        lse.reborrow().slice_cols(gap).fill(f32::NEG_INFINITY);
    }
    let most = segments.iter().map(query_blocks).max().unwrap_or(0);
    let per_head = segments.len() * most;
    par_tasks(per_head * heads, |unit| {
        let (head, index) = (unit / per_head, unit % per_head);
        let segment = &segments[index / most];
        let block = query_block(segment, index % most);
        if block.is_empty() {
            return;
        }
        let first = segment.q_start as usize;
        let rows = first + block.start..first + block.end;
        // SAFETY: segments do not overlap, so units differ in their rows or in their heads.
        let (o, lse) = unsafe { (o.alias(head), lse.alias_rows(head..head + 1)) };
        forward_block(
            q.head(head).slice_rows(rows.clone()),
            k.head(head),
            v.head(head),
            key_tiles(segment, block),
            o.slice_rows(rows.clone()),
            lse.slice_cols(rows),
            scale,
        );
    });
}

/// One block of queries of one head: `q`, `o` `[n, hd]`, `k`, `v` `[Tk, hd]`, `lse [1, n]`.
fn forward_block(
    q: Tensor<'_>,
    k: Tensor<'_>,
    v: Tensor<'_>,
    tiles: impl Iterator<Item = KeyTile>,
    mut o: TensorMut<'_>,
    mut lse: TensorMut<'_>,
    scale: f32,
) {
    let n = q.rows();
    with_scratch(&TILES, n * (KEYS + 2), |scratch| {
        let (p, state) = scratch.split_at_mut(n * KEYS);
        // Running maximum m and sum l of each row's softmax.
        let (max, total) = state.split_at_mut(n);
        max.fill(f32::NEG_INFINITY);
        total.fill(0.0);
        let mut store = Store::overwrite(1.0);
        for tile in tiles {
            let (k, v) = (k.slice_rows(tile.rows.clone()), v.slice_rows(tile.rows.clone()));
            let len = k.rows();
            let stride = len.next_multiple_of(VECTOR);
            let p = &mut p[..n * stride];
            // S = scale · Q Kᵀ
            let s = TensorMut::new(p, n, stride).slice_cols(0..len);
            serial(Operand::plain(q), Operand::transposed(k), s, Store::overwrite(scale));
            let o_before = store.accumulate.then(|| o.reborrow());
            simd(
                #[inline(always)]
                || online_softmax(p, &tile, max, total, o_before),
            );
            // O = O·e^(m - m') + P V
            let p = Tensor::new(p, n, stride).slice_cols(0..len);
            serial(Operand::plain(p), Operand::plain(v), o.reborrow(), store);
            store = Store::accumulate(1.0);
        }
        simd(
            #[inline(always)]
            || {
                for r in 0..n {
                    let o = o.row::<f32>(r);
                    if total[r] > 0.0 {
                        let inverse = 1.0 / total[r];
                        o.iter_mut().for_each(|x| *x *= inverse);
                    } else if total[r] == 0.0 {
                        o.fill(0.0);
                    }
                    lse.row::<f32>(0)[r] = max[r] + total[r].ln();
                }
            },
        );
    });
}

/// Turns a tile of scores into exponentials above the running maximum, row by row:
/// `m' = max(m, max S)   P = e^(S - m')   l' = l·e^(m - m') + Σ P   O = O·e^(m - m')`.
#[inline(always)]
fn online_softmax(
    s: &mut [f32],
    tile: &KeyTile,
    max: &mut [f32],
    total: &mut [f32],
    mut o: Option<TensorMut<'_>>,
) {
    let stride = tile.rows.len().next_multiple_of(VECTOR);
    for (r, s) in s.chunks_exact_mut(stride).enumerate() {
        s[tile.visible(r)..].fill(f32::NEG_INFINITY);
        let (s, _) = s.as_chunks_mut::<VECTOR>();
        let new = max[r].max(largest(s));
        // a row that has seen no key has no maximum to subtract; one of NaN keeps them
        let origin = if new == f32::NEG_INFINITY { 0.0 } else { new };
        let mut sums = [0.0f32; VECTOR];
        for s in s {
            for l in 0..VECTOR {
                s[l] = exp(s[l] - origin);
                sums[l] += s[l];
            }
        }
        let shrink = exp(max[r] - origin);
        total[r] = total[r] * shrink + halve(sums, |x, y| x + y);
        max[r] = new;
        if let Some(o) = o.as_mut().filter(|_| shrink != 1.0) {
            o.row::<f32>(r).iter_mut().for_each(|x| *x *= shrink);
        }
    }
}

/// The largest element, NaN not counting.
#[inline(always)]
fn largest(x: &[[f32; VECTOR]]) -> f32 {
    let larger = |x: f32, y: f32| if y > x { y } else { x };
    let mut lanes = [f32::NEG_INFINITY; VECTOR];
    for x in x {
        for l in 0..VECTOR {
            lanes[l] = larger(lanes[l], x[l]);
        }
    }
    halve(lanes, larger)
}

/// Joins the lanes pairwise.
#[inline(always)]
fn halve(mut lanes: [f32; VECTOR], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = VECTOR / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] = join(lanes[l], lanes[l + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The gradients of one head, or of all.
struct Gradients<'a> {
    dq: TensorMut<'a>,
    dk: TensorMut<'a>,
    dv: TensorMut<'a>,
    delta: TensorMut<'a>,
}

/// Runs of segments that share no key with another run: trees, images.
pub(super) fn groups(segments: &[Segment]) -> impl Iterator<Item = &[Segment]> {
    let mut rest = segments;
    std::iter::from_fn(move || {
        let mut end = 0;
        let joined = |s: &Segment, end: usize| {
            let starts = [(s.prefix_start, s.prefix_len), (s.own_start, s.own_len)];
            starts.iter().any(|&(start, len)| len > 0 && (start as usize) < end)
        };
        let len = rest.iter().take_while(|s| {
            let together = end == 0 || joined(s, end);
            for (start, len) in [(s.prefix_start, s.prefix_len), (s.own_start, s.own_len)] {
                if len > 0 {
                    end = end.max(start as usize + len as usize);
                }
            }
            together
        });
        let len = len.count();
        let (group, others) = rest.split_at(len);
        rest = others;
        (len > 0).then_some(group)
    })
}

/// Units: (group of segments that share keys, head). Each adds to its keys' rows alone.
pub(super) fn backward(
    inputs: Inputs<'_>,
    o: Heads<'_>,
    lse: Tensor<'_>,
    d_o: Heads<'_>,
    segments: &[Segment],
    mut dq: HeadsMut<'_>,
    mut dk: HeadsMut<'_>,
    mut dv: HeadsMut<'_>,
    mut delta: TensorMut<'_>,
) {
    let heads = inputs.heads;
    for h in 0..heads {
        for x in [dq.head(h), dk.head(h), dv.head(h)] {
            let chunk = rows_per_chunk(x.cols());
            par_rows([x], chunk, |_, [mut x]| x.fill(0.0f32));
        }
    }
    for gap in gaps(segments, inputs.q.columns().rows()) {
        delta.reborrow().slice_cols(gap).fill(0.0f32);
    }
    par_tasks(groups(segments).count() * heads, |unit| {
        let (group, head) = (unit / heads, unit % heads);
        let Some(segments) = groups(segments).nth(group) else { return };
        // SAFETY: units of different heads name disjoint columns; groups of one head touch
        // disjoint queries and disjoint keys.
        let gradients = unsafe {
            Gradients {
                dq: dq.alias(head),
                dk: dk.alias(head),
                dv: dv.alias(head),
                delta: delta.alias_rows(head..head + 1),
            }
        };
        let lse = lse.slice_rows(head..head + 1);
        let of_head = [inputs.q, inputs.k, inputs.v, o, d_o].map(|x| x.head(head));
        backward_group(of_head, lse, inputs.scale, segments, gradients);
    });
}

/// All segments of a group, one head.
fn backward_group(
    [q, k, v, o, d_o]: [Tensor<'_>; 5],
    lse: Tensor<'_>,
    scale: f32,
    segments: &[Segment],
    mut out: Gradients<'_>,
) {
    for segment in segments {
        for block in (0..query_blocks(segment)).map(|i| query_block(segment, i)) {
            let first = segment.q_start as usize;
            let rows = first + block.start..first + block.end;
            let (q, d_o) = (q.slice_rows(rows.clone()), d_o.slice_rows(rows.clone()));
            // delta_i = Σ dO_i · O_i = Σ_j P_ij dP_ij
            simd(
                #[inline(always)]
                || {
                    for (r, i) in rows.clone().enumerate() {
                        out.delta.row::<f32>(0)[i] = sum2(d_o.row(r), o.row(i), |x, y| x * y);
                    }
                },
            );
            let n = q.rows();
            for tile in key_tiles(segment, block) {
                let (k, v) = (k.slice_rows(tile.rows.clone()), v.slice_rows(tile.rows.clone()));
                let len = k.rows();
                let stride = len.next_multiple_of(VECTOR);
                with_scratch(&TILES, 2 * n * stride, |scratch| {
                    let (p, ds) = scratch.split_at_mut(n * stride);
                    // S = scale · Q Kᵀ   dP = dO Vᵀ
                    let s = TensorMut::new(p, n, stride).slice_cols(0..len);
                    serial(Operand::plain(q), Operand::transposed(k), s, Store::overwrite(scale));
                    let dp = TensorMut::new(ds, n, stride).slice_cols(0..len);
                    serial(Operand::plain(d_o), Operand::transposed(v), dp, Store::overwrite(1.0));
                    // P = e^(S - lse)   dS = P · (dP - delta)
                    let lse = lse.slice_cols(rows.clone());
                    let delta = out.delta.as_ref().slice_cols(rows.clone());
                    simd(
                        #[inline(always)]
                        || unsoftmax(p, ds, &tile, lse, delta),
                    );
                    let [p, ds] = [p, ds].map(|x| Tensor::new(x, n, stride).slice_cols(0..len));
                    // dV += Pᵀ dO   dK += scale · dSᵀ Q   dQ += scale · dS K
                    let dv = out.dv.reborrow().slice_rows(tile.rows.clone());
                    let dk = out.dk.reborrow().slice_rows(tile.rows.clone());
                    let dq = out.dq.reborrow().slice_rows(rows.clone());
                    let (one, scaled) = (Store::accumulate(1.0), Store::accumulate(scale));
                    serial(Operand::transposed(p), Operand::plain(d_o), dv, one);
                    serial(Operand::transposed(ds), Operand::plain(q), dk, scaled);
                    serial(Operand::plain(ds), Operand::plain(k), dq, scaled);
                });
            }
        }
    }
}

/// `P = e^(S - lse)   dS = P · (dP - delta)`, row by row; 0 where a key is not seen.
#[inline(always)]
fn unsoftmax(s: &mut [f32], dp: &mut [f32], tile: &KeyTile, lse: Tensor<'_>, delta: Tensor<'_>) {
    let stride = tile.rows.len().next_multiple_of(VECTOR);
    for (r, (s, dp)) in s.chunks_exact_mut(stride).zip(dp.chunks_exact_mut(stride)).enumerate() {
        let (lse, delta) = (lse.row::<f32>(0)[r], delta.row::<f32>(0)[r]);
        let seen = tile.visible(r);
        s[seen..].fill(f32::NEG_INFINITY);
        dp[seen..].fill(0.0);
        for (s, dp) in s.as_chunks_mut::<VECTOR>().0.iter_mut().zip(dp.as_chunks_mut::<VECTOR>().0)
        {
            for l in 0..VECTOR {
                s[l] = exp(s[l] - lse);
                dp[l] = s[l] * (dp[l] - delta);
            }
        }
    }
}
