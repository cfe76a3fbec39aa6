//! Attention over a flat stream of tokens that holds several sequences or trees:
//! `o_i = Σ_j softmax_j(scale · q_i·k_j) v_j`, j over the keys that query i sees.
//!
//! Which keys those are is told by [`Segment`]s: a run of queries sees a whole prefix range and
//! its own range, causally or not. A tree is one trunk segment and one segment per branch whose
//! prefix is the trunk; an image is one bidirectional segment; resampler and KV-cache decoding
//! are segments whose queries and keys lie in different tensors.
//!
//! q, k, v, o and their gradients are `[tokens, heads · head_dim]` f32 views of any row stride,
//! head h in columns `h·head_dim..`; q, k and v usually are columns of one fused product.
//! Blocked with an online softmax: no buffer grows with queries times keys, and a tile of keys
//! that a block of queries does not see is never computed. Bytes do not depend on the number of
//! threads. With S visible (query, key) pairs: forward 4·S·heads·head_dim FLOP, backward
//! 10·S·heads·head_dim; compute bound. Source of the blocking: Dao et al., arXiv 2205.14135.

mod cpu;

use crate::error::Result;
use crate::ops::check::Check;
use crate::tensor::{Tensor, TensorMut};

/// Queries `q_start..q_start + q_len` see all keys of the prefix range and, of the own range,
/// all keys or (`causal` = 1, `own_len == q_len`) query i the keys `0..=i`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Segment {
    /// First query row.
    pub q_start: u32,
    /// Number of queries.
    pub q_len: u32,
    /// First key row that all queries see.
    pub prefix_start: u32,
    /// Number of such keys.
    pub prefix_len: u32,
    /// First key row of the own range.
    pub own_start: u32,
    /// Number of keys of the own range.
    pub own_len: u32,
    /// 1: causal within the own range; 0: all of it.
    pub causal: u32,
}

impl Segment {
    /// Queries `q_start..` see all of the keys `k_start..`: an image, a resampler, a cached prompt.
    pub fn all(q_start: usize, q_len: usize, k_start: usize, k_len: usize) -> Self {
        let [q_start, q_len, own_start, own_len] =
            [q_start, q_len, k_start, k_len].map(|x| x as u32);
        Segment { q_start, q_len, prefix_start: 0, prefix_len: 0, own_start, own_len, causal: 0 }
    }

    /// Tokens `start..` see the prefix and, causally, themselves: a trunk (no prefix) or a branch.
    pub fn causal(start: usize, len: usize, prefix_start: usize, prefix_len: usize) -> Self {
        let [start, len, prefix_start, prefix_len] =
            [start, len, prefix_start, prefix_len].map(|x| x as u32);
        Segment {
            q_start: start,
            q_len: len,
            prefix_start,
            prefix_len,
            own_start: start,
            own_len: len,
            causal: 1,
        }
    }
}

/// Overwrites `o [Tq, H·hd]` and `lse [Tq, H]`, the logarithm of each softmax's denominator, kept
/// for [`backward`]. `k`, `v` are `[Tk, H·hd]`. Queries that see no key get `o = 0`, `lse = -inf`.
///
/// Errors: shapes that do not fit; segments out of range, out of order or overlapping.
pub fn forward(
    q: Tensor<'_>,
    k: Tensor<'_>,
    v: Tensor<'_>,
    segments: &[Segment],
    o: TensorMut<'_>,
    lse: TensorMut<'_>,
    head_dim: usize,
    scale: f32,
) -> Result<()> {
    let check = Check::on_cpu("attention::forward");
    let heads = check_inputs(check, q, k, v, head_dim)?;
    check.f32("o", o.as_ref(), q.shape(), "queries, heads · head_dim")?;
    check.f32("lse", lse.as_ref(), [q.rows(), heads], "queries, heads")?;
    check_segments(check, segments, q.rows(), k.rows())?;
    let inputs = Inputs { q, k, v, head_dim, scale };
    cpu::forward(inputs, segments, o, lse);
    Ok(())
}

/// Overwrites `dq`, `dk`, `dv` from `d_o`, with `o` and `lse` of [`forward`]; queries and keys
/// that no segment names get 0. `delta [Tq, H]` is scratch. Probabilities are recomputed from
/// `lse`.
///
/// Errors: as [`forward`].
pub fn backward(
    q: Tensor<'_>,
    k: Tensor<'_>,
    v: Tensor<'_>,
    o: Tensor<'_>,
    lse: Tensor<'_>,
    d_o: Tensor<'_>,
    segments: &[Segment],
    dq: TensorMut<'_>,
    dk: TensorMut<'_>,
    dv: TensorMut<'_>,
    delta: TensorMut<'_>,
    head_dim: usize,
    scale: f32,
) -> Result<()> {
    let check = Check::on_cpu("attention::backward");
    let heads = check_inputs(check, q, k, v, head_dim)?;
    for (name, tensor) in [("o", o), ("d_o", d_o), ("dq", dq.as_ref())] {
        check.f32(name, tensor, q.shape(), "queries, heads · head_dim")?;
    }
    for (name, tensor) in [("dk", dk.as_ref()), ("dv", dv.as_ref())] {
        check.f32(name, tensor, k.shape(), "keys, heads · head_dim")?;
    }
    for (name, tensor) in [("lse", lse), ("delta", delta.as_ref())] {
        check.f32(name, tensor, [q.rows(), heads], "queries, heads")?;
    }
    check_segments(check, segments, q.rows(), k.rows())?;
    let inputs = Inputs { q, k, v, head_dim, scale };
    cpu::backward(inputs, o, lse, d_o, segments, dq, dk, dv, delta);
    Ok(())
}

/// What both passes read.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    q: Tensor<'a>,
    k: Tensor<'a>,
    v: Tensor<'a>,
    head_dim: usize,
    scale: f32,
}

/// The number of heads.
fn check_inputs(
    check: Check,
    q: Tensor<'_>,
    k: Tensor<'_>,
    v: Tensor<'_>,
    head_dim: usize,
) -> Result<usize> {
    let width = q.cols();
    if head_dim == 0 || !width.is_multiple_of(head_dim) {
        return Err(check
            .error(format!("q has {width} columns, expected a multiple of head_dim {head_dim}")));
    }
    check.f32("q", q, [q.rows(), width], "queries, heads · head_dim")?;
    check.f32("k", k, [k.rows(), width], "keys, heads · head_dim")?;
    check.f32("v", v, [k.rows(), width], "keys, heads · head_dim")?;
    Ok(width / head_dim)
}

fn check_segments(check: Check, segments: &[Segment], queries: usize, keys: usize) -> Result<()> {
    let end = |start: u32, len: u32| if len == 0 { 0 } else { start as usize + len as usize };
    let mut free = 0;
    for (i, s) in segments.iter().enumerate() {
        let (first, last) = (s.q_start as usize, s.q_start as usize + s.q_len as usize);
        let prefix_end = end(s.prefix_start, s.prefix_len);
        let own_end = end(s.own_start, s.own_len);
        let apart = prefix_end <= s.own_start as usize
            || own_end <= s.prefix_start as usize
            || prefix_end.min(own_end) == 0;
        let expected = if first < free || last > queries {
            format!("queries within {free}..{queries}, after those of the segment before")
        } else if prefix_end.max(own_end) > keys {
            format!("keys within 0..{keys}")
        } else if !apart {
            "prefix and own keys that do not overlap".to_string()
        } else if s.causal > 1 || s.causal == 1 && s.own_len != s.q_len {
            "causal 0, or 1 and as many own keys as queries".to_string()
        } else {
            free = last;
            continue;
        };
        return Err(check.error(format!("segment {i}: expected {expected}, got {s:?}")));
    }
    Ok(())
}
