//! The language decoder: pre-norm blocks of attention and gated MLP, over a pack of trees.
//!
//! ```text
//! x2  = x  + c_proj(attention(rope(c_attn(rms_norm(x)))))
//! out = x2 + mlp.c_proj(w1(h) · silu(w2(h))),   h = rms_norm(x2)
//! ```
//! c_attn has a bias and stacks q | k | v; nothing else has one. `D` hidden, `F` MLP width,
//! `T` tokens of the pack, `r` LoRA rank (0 without an adapter).

use crate::device::Buffer;
use crate::error::Result;
use crate::model::adapter::Adapter;
use crate::model::buffers::Buffers;
use crate::model::config::ModelConfig;
use crate::model::generate::LayerCache;
use crate::model::linear::{Bias, Linear, Lora};
use crate::model::names;
use crate::model::params::{Gradients, Loader, Weight};
use crate::ops::attention::{Heads, HeadsMut, Mask};
use crate::ops::{Write, activation, attention, rms_norm, rope, rows};
use crate::tensor::{Tensor, TensorMut};

/// One block's weights.
pub struct Block {
    ln_1: Weight,
    c_attn: Linear,
    c_proj: Linear,
    ln_2: Weight,
    w1: Linear,
    w2: Linear,
    mlp_c_proj: Linear,
    head_dim: usize,
    eps: f32,
}

/// What all blocks of one forward pass share.
#[derive(Clone, Copy)]
pub struct Shared<'a> {
    /// Flat buffer of trained values.
    pub values: &'a [f32],
    /// Position of each token, u32 `[T, 1]`.
    pub positions: Tensor<'a>,
    /// Rotary table, `[positions, head_dim]`.
    pub table: Tensor<'a>,
    /// Query scale per position (logn attention), `[positions, 1]`.
    pub logn: Option<Tensor<'a>>,
    /// Who attends to whom.
    pub mask: Mask<'a>,
    /// Policy or reference.
    pub lora: Lora,
}

/// What forward keeps of one block for backward; without backward one set serves all blocks.
pub struct Activations {
    rstd_1: Buffer, // [T, 1]
    h_1: Buffer,    // [T, D + r]   ln_1 output | u of c_attn
    qkv: Buffer,    // [T, 3D]      after rope
    o: Buffer,      // [T, D + r]   attention output | u of c_proj
    lse: Buffer,    // [heads, T]
    x_2: Buffer,    // [T, D]       residual stream after attention
    rstd_2: Buffer, // [T, 1]
    h_2: Buffer,    // [T, D + 2r]  ln_2 output | u of w1 | u of w2
    gate: Buffer,   // [T, 2F]      w1 output | w2 output
    s: Buffer,      // [T, F + r]   swiglu output | u of mlp.c_proj
}

impl Activations {
    /// Buffers for packs of up to `tokens` tokens and LoRA rank `rank`.
    pub(crate) fn new(
        config: &ModelConfig,
        tokens: usize,
        rank: usize,
        mut buffers: Buffers<'_>,
    ) -> Self {
        let (d, f) = (config.hidden_size, config.mlp_width());
        Activations {
            rstd_1: buffers.f32("rstd_1", tokens, 1),
            h_1: buffers.values("h_1", tokens, d + rank),
            qkv: buffers.values("qkv", tokens, 3 * d),
            o: buffers.values("o", tokens, d + rank),
            lse: buffers.f32("lse", config.num_attention_heads, tokens),
            x_2: buffers.values("x_2", tokens, d),
            rstd_2: buffers.f32("rstd_2", tokens, 1),
            h_2: buffers.values("h_2", tokens, d + 2 * rank),
            gate: buffers.values("gate", tokens, 2 * f),
            s: buffers.values("s", tokens, f + rank),
        }
    }
}

/// Buffers that backward of every block uses in turn.
pub struct Scratch {
    d_s: Buffer,    // [T, F]
    d_gate: Buffer, // [T, 2F]
    d_h: Buffer,    // [T, D]
    d_o: Buffer,    // [T, D]
    d_qkv: Buffer,  // [T, 3D]
    delta: Buffer,  // [heads, T]
    d_u: Buffer,    // [T, r]
}

impl Scratch {
    /// Buffers for packs of up to `tokens` tokens and LoRA rank `rank`.
    pub(crate) fn new(
        config: &ModelConfig,
        tokens: usize,
        rank: usize,
        mut buffers: Buffers<'_>,
    ) -> Self {
        let (d, f) = (config.hidden_size, config.mlp_width());
        Scratch {
            d_s: buffers.values("d_s", tokens, f),
            d_gate: buffers.values("d_gate", tokens, 2 * f),
            d_h: buffers.values("d_h", tokens, d),
            d_o: buffers.values("d_o", tokens, d),
            d_qkv: buffers.values("d_qkv", tokens, 3 * d),
            delta: buffers.f32("delta", config.num_attention_heads, tokens),
            d_u: buffers.values("d_u", tokens, rank),
        }
    }
}

/// Whether gradients are wanted below the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    /// Something below is trained: the residual gradient goes through.
    Trained,
    /// Nothing below is trained: stop at this block's own parameters.
    Frozen,
}

impl Block {
    /// Loads block `n` and its part of the adapter.
    pub fn load(
        loader: &mut Loader,
        config: &ModelConfig,
        adapter: Option<&Adapter>,
        n: usize,
    ) -> Self {
        let name = |part: &str| names::block(n, part);
        let mut linear = |part: &str, bias, slot| {
            Linear::load(loader, &name(part), bias).adapt(loader, adapter, &name(part), slot)
        };
        let c_attn = linear("attn.c_attn", Bias::Present, 0);
        let c_proj = linear("attn.c_proj", Bias::Absent, 0);
        let w1 = linear("mlp.w1", Bias::Absent, 0);
        let w2 = linear("mlp.w2", Bias::Absent, 1);
        let mlp_c_proj = linear("mlp.c_proj", Bias::Absent, 0);
        let ln_1 = loader.vector(&name("ln_1.weight"));
        let ln_2 = loader.vector(&name("ln_2.weight"));
        let (head_dim, eps) = (config.head_dim, config.layer_norm_epsilon);
        Block { ln_1, c_attn, c_proj, ln_2, w1, w2, mlp_c_proj, head_dim, eps }
    }

    /// `out = block(x)`; x, out `[T, D]`. With a cache, keys and values are appended to it and
    /// attention reads them there.
    pub fn forward(
        &self,
        shared: &Shared,
        x: Tensor,
        keep: &mut Activations,
        mut out: TensorMut,
        cache: Option<&mut LayerCache>,
    ) -> Result<()> {
        let (t, [_, d], values, lora) = (x.rows(), x.shape(), shared.values, shared.lora);
        let f = self.w1_width();

        // h = rms_norm(x);  q | k | v = c_attn(h);  rotate q and k
        let mut h_1 = keep.h_1.head_mut(t);
        let h = h_1.reborrow().slice_cols(0..d);
        rms_norm::forward(x, None, self.ln_1.view(values), h, keep.rstd_1.head_mut(t), self.eps)?;
        let mut qkv = keep.qkv.head_mut(t);
        self.c_attn.forward_adapted(values, h_1, qkv.reborrow(), Write::Overwrite, lora)?;
        let qk = qkv.reborrow().slice_cols(0..2 * d);
        rope::forward(qk, shared.positions, shared.table, shared.logn, self.head_dim)?;

        // o = softmax(q kᵀ / √head_dim) v
        let [q, k, v] = thirds(qkv.as_ref(), d);
        let (k, v) = match cache {
            Some(cache) => cache.append(k, v)?,
            None => (k, v),
        };
        let o = HeadsMut::dense(keep.o.head_mut(t).slice_cols(0..d), self.head_dim);
        let [q, k, v] = [q, k, v].map(|x| Heads::dense(x, self.head_dim));
        let lse = keep.lse.view_mut().slice_cols(0..t);
        attention::forward(q, k, v, shared.mask, o, lse, self.scale())?;

        // x2 = x + c_proj(o)
        let mut x_2 = keep.x_2.head_mut(t);
        rows::copy(x, x_2.reborrow())?;
        let o = keep.o.head_mut(t);
        self.c_proj.forward_adapted(values, o, x_2.reborrow(), Write::Accumulate, lora)?;

        // h = rms_norm(x2);  s = w1(h) · silu(w2(h));  out = x2 + mlp.c_proj(s)
        let mut h_2 = keep.h_2.head_mut(t);
        let h = h_2.reborrow().slice_cols(0..d);
        let rstd = keep.rstd_2.head_mut(t);
        rms_norm::forward(x_2.as_ref(), None, self.ln_2.view(values), h, rstd, self.eps)?;
        let (mut a, mut b) = keep.gate.head_mut(t).split_cols(f);
        self.w1.forward_adapted(values, h_2.reborrow(), a.reborrow(), Write::Overwrite, lora)?;
        self.w2.forward_adapted(values, h_2, b.reborrow(), Write::Overwrite, lora)?;
        let mut s = keep.s.head_mut(t);
        activation::swiglu(a.as_ref(), b.as_ref(), s.reborrow().slice_cols(0..f))?;
        rows::copy(x_2.as_ref(), out.reborrow())?;
        self.mlp_c_proj.forward_adapted(values, s, out, Write::Accumulate, lora)
    }

    /// Parameter gradients, and the gradient of x over that of out, in place: `d` `[T, D]`.
    pub fn backward(
        &self,
        shared: &Shared,
        gradients: &mut Gradients,
        x: Tensor,
        keep: &Activations,
        scratch: &mut Scratch,
        mut d: TensorMut,
        below: Below,
    ) -> Result<()> {
        let (t, [_, width], values, lora) = (x.rows(), x.shape(), shared.values, shared.lora);
        let f = self.w1_width();

        // out = x2 + mlp.c_proj(s);  s = w1(h) · silu(w2(h));  h = rms_norm(x2)
        let (s, h_2) = (keep.s.head(t), keep.h_2.head(t));
        let (d_out, d_u) = (d.as_ref(), &mut scratch.d_u);
        let mut d_s = scratch.d_s.head_mut(t);
        let dx = overwrite(d_s.reborrow());
        self.mlp_c_proj.backward(values, gradients, s, d_out, dx, d_u.head_mut(t), lora)?;
        let gate = keep.gate.head(t);
        let (a, b) = (gate.slice_cols(0..f), gate.slice_cols(f..2 * f));
        let (mut d_a, mut d_b) = scratch.d_gate.head_mut(t).split_cols(f);
        activation::swiglu_backward(a, b, d_s.as_ref(), d_a.reborrow(), d_b.reborrow(), None)?;
        let mut d_h = scratch.d_h.head_mut(t);
        let dx = overwrite(d_h.reborrow());
        self.w1.backward(values, gradients, h_2, d_a.as_ref(), dx, d_u.head_mut(t), lora)?;
        let dx = Some((d_h.reborrow(), Write::Accumulate));
        self.w2.backward(values, gradients, h_2, d_b.as_ref(), dx, d_u.head_mut(t), lora)?;
        let (x_2, rstd, weight) = (keep.x_2.head(t), keep.rstd_2.head(t), self.ln_2.view(values));
        let (d_h, (dw, partials)) = (d_h.as_ref(), gradients.of_sum(&self.ln_2));
        let write = Write::Accumulate;
        rms_norm::backward(x_2, weight, rstd, d_h, d.reborrow(), dw, partials, write)?;

        // x2 = x + c_proj(o);  o = attention(q, k, v)
        let o = keep.o.head(t);
        let mut d_o = scratch.d_o.head_mut(t);
        let dx = overwrite(d_o.reborrow());
        self.c_proj.backward(values, gradients, o, d.as_ref(), dx, d_u.head_mut(t), lora)?;
        let hd = self.head_dim;
        let [q, k, v] = thirds(keep.qkv.head(t), width).map(|x| Heads::dense(x, hd));
        let mut d_qkv = scratch.d_qkv.head_mut(t);
        let (d_q, d_kv) = d_qkv.reborrow().split_cols(width);
        let (d_k, d_v) = d_kv.split_cols(width);
        let [d_q, d_k, d_v] = [d_q, d_k, d_v].map(|x| HeadsMut::dense(x, hd));
        let [o, d_o] = [o.slice_cols(0..width), d_o.as_ref()].map(|x| Heads::dense(x, hd));
        let lse = keep.lse.view().slice_cols(0..t);
        let delta = scratch.delta.view_mut().slice_cols(0..t);
        let (mask, scale) = (shared.mask, self.scale());
        attention::backward(q, k, v, o, lse, d_o, mask, d_q, d_k, d_v, delta, scale)?;
        let d_qk = d_qkv.reborrow().slice_cols(0..2 * width);
        rope::backward(d_qk, shared.positions, shared.table, shared.logn, hd)?;

        // q | k | v = c_attn(h);  h = rms_norm(x)
        let (h_1, ln_1_frozen) = (keep.h_1.head(t), !self.ln_1.is_trained());
        let mut d_h = scratch.d_h.head_mut(t);
        if below == Below::Frozen && ln_1_frozen {
            let (d_qkv, d_u) = (d_qkv.as_ref(), d_u.head_mut(t));
            return self.c_attn.backward(values, gradients, h_1, d_qkv, None, d_u, lora);
        }
        let dx = overwrite(d_h.reborrow());
        self.c_attn.backward(values, gradients, h_1, d_qkv.as_ref(), dx, d_u.head_mut(t), lora)?;
        let (rstd, weight) = (keep.rstd_1.head(t), self.ln_1.view(values));
        let (d_h, (dw, partials)) = (d_h.as_ref(), gradients.of_sum(&self.ln_1));
        rms_norm::backward(x, weight, rstd, d_h, d, dw, partials, Write::Accumulate)
    }

    fn w1_width(&self) -> usize {
        self.mlp_c_proj.inputs()
    }

    fn scale(&self) -> f32 {
        (self.head_dim as f32).sqrt().recip()
    }
}

/// q, k, v of a fused `[T, 3D]` product.
fn thirds(qkv: Tensor<'_>, d: usize) -> [Tensor<'_>; 3] {
    [0, 1, 2].map(|i| qkv.slice_cols(i * d..(i + 1) * d))
}

/// A gradient that overwrites what its buffer held.
fn overwrite(dx: TensorMut<'_>) -> Option<(TensorMut<'_>, Write)> {
    Some((dx, Write::Overwrite))
}
