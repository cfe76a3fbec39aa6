//! Attention over a flat stream of tokens that holds several sequences or trees:
//! `o_i = Σ_j softmax_j(scale · q_i·k_j) v_j`, j over the keys that query i sees.
//!
//! Which keys those are is told by [`Segment`]s: a run of queries sees a whole prefix range and
//! its own range, causally or not. A tree is one trunk segment and one segment per branch whose
//! prefix is the trunk; an image is one bidirectional segment; resampler and KV-cache decoding
//! are segments whose queries and keys lie in different tensors.
//!
//! q, k, v, o and their gradients are [`Heads`]: columns of views of any row stride, heads side by side
//! or interleaved; q, k and v usually are columns of one fused product. f32 on the CPU; on a GPU bf16,
//! with f32 arithmetic, log-sum-exp and delta, and head_dim a multiple of 8 up to 128.
//! Blocked with an online softmax: no buffer grows with queries times keys, and a tile of keys
//! that a block of queries does not see is never computed. Bytes do not depend on the number of
//! threads. With S visible (query, key) pairs: forward 4·S·heads·head_dim FLOP, backward
//! 10·S·heads·head_dim (on a GPU 14: scores and their gradients once by queries, once by keys); compute bound.
//! Source of the blocking: Dao et al., arXiv 2205.14135.

mod cpu;
mod cuda;
mod heads;
mod plan;

use crate::device::Device;
use crate::error::Result;
use crate::ops::check::Check;
use crate::tensor::{DType, Tensor, TensorMut};

pub use cuda::DIMS as HEAD_DIMS_CUDA;
pub use heads::{Heads, HeadsMut};
pub use plan::{plan, plan_len};

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

/// Who sees whom: segments, and for a GPU what its kernels read of them.
#[derive(Clone, Copy)]
pub struct Mask<'a> {
    segments: &'a [Segment],
    plan: Tensor<'a>,
}

impl<'a> Mask<'a> {
    /// For the CPU.
    pub fn of(segments: &'a [Segment]) -> Self {
        Mask { segments, plan: Tensor::vector::<u32>(&[]) }
    }

    /// For a GPU: `plan`, u32 `[1, n]` in its memory, is what [`plan()`] made of the segments for as many
    /// queries and keys.
    pub fn planned(plan: Tensor<'a>) -> Self {
        Mask { segments: &[], plan }
    }
}

impl Mask<'_> {
    fn check(self, check: Check, device: Device, queries: usize, keys: usize) -> Result<()> {
        match device {
            Device::Cpu => check_segments(check, self.segments, queries, keys),
            Device::Cuda(_) => {
                let (n, expected) = (self.plan.cols(), plan_len(queries, keys));
                check.flat("plan", self.plan, DType::U32, n)?;
                if n < expected {
                    let message = format!("plan has {n} elements, expected {expected} or more");
                    return Err(check.error(message));
                }
                Ok(())
            }
        }
    }
}

/// Overwrites `o [Tq, H·hd]` and `lse [H, Tq]`, the logarithm of each softmax's denominator, kept
/// for [`backward`]. `k`, `v` are `[Tk, H·hd]`. Queries that see no key get `o = 0`, `lse = -inf`.
///
/// Errors: shapes that do not fit; segments out of range, out of order or overlapping; a scale that is not finite
/// and above 0. A plan made for other numbers of queries and keys stops the kernel, which the driver tells.
pub fn forward(
    q: Heads<'_>,
    k: Heads<'_>,
    v: Heads<'_>,
    mask: Mask<'_>,
    o: HeadsMut<'_>,
    lse: TensorMut<'_>,
    scale: f32,
) -> Result<()> {
    let device = q.columns().device();
    let check = Check::on(device, "attention::forward");
    let inputs = Inputs::new(check, q, k, v, scale)?;
    let (queries, keys) = (q.columns().rows(), k.columns().rows());
    inputs.check(check, "o", o.as_ref(), queries)?;
    check.f32("lse", lse.as_ref(), [inputs.heads, queries], "heads, queries")?;
    mask.check(check, device, queries, keys)?;
    match device {
        Device::Cpu => cpu::forward(inputs, mask.segments, o, lse),
        Device::Cuda(cuda) => cuda::forward(cuda, inputs, mask.plan, o, lse)?,
    }
    Ok(())
}

/// Overwrites `dq`, `dk`, `dv` from `d_o`, with `o` and `lse` of [`forward`]; queries and keys
/// that no segment names get 0. `delta [H, Tq]` is scratch. Probabilities are recomputed from
/// `lse`.
///
/// Errors: as [`forward`].
pub fn backward(
    q: Heads<'_>,
    k: Heads<'_>,
    v: Heads<'_>,
    o: Heads<'_>,
    lse: Tensor<'_>,
    d_o: Heads<'_>,
    mask: Mask<'_>,
    dq: HeadsMut<'_>,
    dk: HeadsMut<'_>,
    dv: HeadsMut<'_>,
    delta: TensorMut<'_>,
    scale: f32,
) -> Result<()> {
    let device = q.columns().device();
    let check = Check::on(device, "attention::backward");
    let inputs = Inputs::new(check, q, k, v, scale)?;
    let (queries, keys) = (q.columns().rows(), k.columns().rows());
    for (name, heads) in [("o", o), ("d_o", d_o), ("dq", dq.as_ref())] {
        inputs.check(check, name, heads, queries)?;
    }
    for (name, heads) in [("dk", dk.as_ref()), ("dv", dv.as_ref())] {
        inputs.check(check, name, heads, keys)?;
    }
    for (name, tensor) in [("lse", lse), ("delta", delta.as_ref())] {
        check.f32(name, tensor, [inputs.heads, queries], "heads, queries")?;
    }
    mask.check(check, device, queries, keys)?;
    match device {
        Device::Cpu => cpu::backward(inputs, o, lse, d_o, mask.segments, dq, dk, dv, delta),
        Device::Cuda(cuda) => {
            cuda::backward(cuda, inputs, mask.plan, o, lse, d_o, dq, dk, dv, delta)?;
        }
    }
    Ok(())
}

/// What both passes read.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    q: Heads<'a>,
    k: Heads<'a>,
    v: Heads<'a>,
    heads: usize,
    scale: f32,
}

impl<'a> Inputs<'a> {
    fn new(check: Check, q: Heads<'a>, k: Heads<'a>, v: Heads<'a>, scale: f32) -> Result<Self> {
        let (width, dim) = (q.columns().cols(), q.lay().dim);
        let Some(heads) = q.lay().count(width) else {
            let message = format!("q has {width} columns, expected a multiple of head_dim {dim}");
            return Err(check.error(message));
        };
        if let Device::Cuda(_) = q.columns().device()
            && !(dim.is_multiple_of(8) && dim <= 128)
        {
            return Err(check.error(format!(
                "head_dim is {dim}, expected a multiple of 8 up to 128 on a GPU; the CPU takes any"
            )));
        }
        if !(scale > 0.0 && scale.is_finite()) {
            let message = format!("scale is {scale}, expected a finite number above 0");
            return Err(check.error(message));
        }
        let inputs = Inputs { q, k, v, heads, scale };
        let keys = k.columns().rows();
        inputs.check(check, "q", q, q.columns().rows())?;
        inputs.check(check, "k", k, keys)?;
        inputs.check(check, "v", v, keys)?;
        Ok(inputs)
    }

    /// `x` has as many heads of the same size as q, and so many rows.
    fn check(&self, check: Check, name: &str, x: Heads<'_>, rows: usize) -> Result<()> {
        let (lay, dim) = (x.lay(), self.q.lay().dim);
        if lay.dim != dim {
            let got = lay.dim;
            return Err(check.error(format!("{name} has head_dim {got}, expected {dim} as q")));
        }
        let cols = lay.columns(self.heads - 1).end;
        let types: &[DType] = match self.q.columns().device() {
            Device::Cpu => &[DType::F32],
            Device::Cuda(_) => &[DType::Bf16],
        };
        check.packed(name, x.columns(), types, [rows, cols], "rows, from first head to last")
    }
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
