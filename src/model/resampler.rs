//! The resampler (`attn_pool`): one cross-attention from a fixed set of queries to the patches of an
//! image, then `ln_post` and `proj`. Its output rows replace the image slots of the prompt.
//!
//! ```text
//! kv = ln_kv(kv_proj x)                        x [P, W]: the tower's output
//! q  = (ln_q(query) + pos_embed) Wqᵀ + bq      k = (kv + resize(pos_embed)) Wkᵀ + bk
//! v  = kv Wvᵀ + bv                             y = ln_post(out_proj(attention(q, k, v))) · proj
//! ```
//! `Q` queries per image, `D` output width, `T` patches and `N` query rows of all images at hand.

use crate::device::Buffer;
use crate::error::Result;
use crate::model::buffers::Buffers;
use crate::model::config::ModelConfig;
use crate::model::linear::{Bias, Linear, Lora};
use crate::model::norm::{Norm, Stats};
use crate::model::params::{Gradients, Loader, Weight};
use crate::ops::attention::{Heads, HeadsMut, Mask, Segment};
use crate::ops::{Write, attention, column_sums, interpolate, matmul, rows};
use crate::tensor::{Tensor, TensorMut};

/// The resampler's weights.
pub struct Resampler {
    query: Weight,
    pos_embed: Weight,
    ln_q: Norm,
    kv_proj: Linear,
    ln_kv: Norm,
    in_proj_weight: Weight,
    in_proj_bias: Weight,
    out_proj: Linear,
    ln_post: Norm,
    proj: Weight,
    head_dim: usize,
    patches: usize,
}

/// What forward keeps for backward, for up to a number of images.
pub struct ResamplerActivations {
    /// `[T, W]` the tower's output, written by the caller before forward.
    pub input: Buffer,
    kv_raw: Buffer, // [T, D] kv_proj output
    ln_kv: Stats,
    kv: Buffer,       // [T, D] ln_kv output
    pos_kv: Buffer,   // [P, D] pos_embed resized to the patch grid
    k_in: Buffer,     // [T, D] kv + position
    kv_heads: Buffer, // [T, 2D] k | v
    ln_q: Stats,
    q_in: Buffer,     // [Q, D] ln_q(query) + pos_embed
    q: Buffer,        // [Q, D]
    q_all: Buffer,    // [N, D] q, once per image
    o: Buffer,        // [N, D]
    lse: Buffer,      // [heads, N]
    attended: Buffer, // [N, D] out_proj output
    ln_post: Stats,
    post: Buffer, // [N, D] ln_post output
    segments: Vec<Segment>,
}

/// Buffers of backward.
pub struct ResamplerScratch {
    d_post: Buffer,     // [N, D]
    d_attended: Buffer, // [N, D]
    d_o: Buffer,        // [N, D]
    d_q_all: Buffer,    // [N, D]
    d_kv_heads: Buffer, // [T, 2D]
    delta: Buffer,      // [heads, N]
    d_q: Buffer,        // [Q, D]
    d_q_in: Buffer,     // [Q, D]
    d_query: Buffer,    // [Q, D]
    d_k_in: Buffer,     // [T, D]
    d_pos_kv: Buffer,   // [P, D]
    d_kv_raw: Buffer,   // [T, D]
    /// `[T, W]` gradient of the tower's output.
    pub d_input: Buffer,
}

impl ResamplerActivations {
    /// Buffers for up to `images` images.
    pub(crate) fn new(config: &ModelConfig, images: usize, mut buffers: Buffers<'_>) -> Self {
        let visual = &config.visual;
        let (p, q, d) = (visual.patches(), visual.n_queries, visual.output_dim);
        let (t, n, heads) = (images * p, images * q, visual.resampler_heads());
        ResamplerActivations {
            input: buffers.values("input", t, visual.width),
            kv_raw: buffers.values("kv_raw", t, d),
            ln_kv: Stats::new(t, buffers.of("ln_kv")),
            kv: buffers.values("kv", t, d),
            pos_kv: buffers.values("pos_kv", p, d),
            k_in: buffers.values("k_in", t, d),
            kv_heads: buffers.values("kv_heads", t, 2 * d),
            ln_q: Stats::new(q, buffers.of("ln_q")),
            q_in: buffers.values("q_in", q, d),
            q: buffers.values("q", q, d),
            q_all: buffers.values("q_all", n, d),
            o: buffers.values("o", n, d),
            lse: buffers.f32("lse", heads, n),
            attended: buffers.values("attended", n, d),
            ln_post: Stats::new(n, buffers.of("ln_post")),
            post: buffers.values("post", n, d),
            segments: (0..images).map(|i| Segment::all(i * q, q, i * p, p)).collect(),
        }
    }

    /// Intermediate values by the names that goldens use: `ln_kv`, `pos_kv`, `attended`.
    pub fn inspect(&self, images: usize) -> [Tensor<'_>; 3] {
        let (t, n) = (images * self.pos_kv.rows(), images * self.q.rows());
        [self.kv.head(t), self.pos_kv.view(), self.attended.head(n)]
    }
}

impl ResamplerScratch {
    /// Buffers for up to `images` images.
    pub(crate) fn new(config: &ModelConfig, images: usize, mut buffers: Buffers<'_>) -> Self {
        let visual = &config.visual;
        let (p, q, d) = (visual.patches(), visual.n_queries, visual.output_dim);
        let (t, n) = (images * p, images * q);
        ResamplerScratch {
            d_post: buffers.values("d_post", n, d),
            d_attended: buffers.values("d_attended", n, d),
            d_o: buffers.values("d_o", n, d),
            d_q_all: buffers.values("d_q_all", n, d),
            d_kv_heads: buffers.values("d_kv_heads", t, 2 * d),
            delta: buffers.f32("delta", visual.resampler_heads(), n),
            d_q: buffers.values("d_q", q, d),
            d_q_in: buffers.values("d_q_in", q, d),
            d_query: buffers.values("d_query", q, d),
            d_k_in: buffers.values("d_k_in", t, d),
            d_pos_kv: buffers.values("d_pos_kv", p, d),
            d_kv_raw: buffers.values("d_kv_raw", t, d),
            d_input: buffers.values("d_input", t, visual.width),
        }
    }
}

impl Resampler {
    /// Loads `attn_pool`, `ln_post` and `proj`.
    pub fn load(loader: &mut Loader, config: &ModelConfig) -> Self {
        let pool = |part: &str| format!("transformer.visual.attn_pool.{part}");
        Resampler {
            query: loader.vector(&pool("query")),
            pos_embed: loader.vector(&pool("pos_embed")),
            ln_q: Norm::load(loader, &pool("ln_q")),
            kv_proj: Linear::load(loader, &pool("kv_proj"), Bias::Absent),
            ln_kv: Norm::load(loader, &pool("ln_kv")),
            in_proj_weight: loader.matrix(&pool("attn.in_proj_weight")),
            in_proj_bias: loader.vector(&pool("attn.in_proj_bias")),
            out_proj: Linear::load(loader, &pool("attn.out_proj"), Bias::Present),
            ln_post: Norm::load(loader, "transformer.visual.ln_post"),
            proj: loader.matrix("transformer.visual.proj"),
            head_dim: config.visual.resampler_head_dim(),
            patches: config.visual.patches(),
        }
    }

    /// `keep.input` `[images · P, W]` to `features` `[images · Q, D]`.
    pub fn forward(
        &self,
        values: &[f32],
        images: usize,
        keep: &mut ResamplerActivations,
        features: TensorMut,
    ) -> Result<()> {
        let (t, n) = (images * self.patches, images * self.query.rows());
        let d = self.query.cols();
        let [(wq, bq), (wk, bk), (wv, bv)] = self.in_proj(values);
        let overwrite = Write::Overwrite;

        // kv = ln_kv(kv_proj x);  k from kv + position, v from kv alone
        self.kv_proj.forward(values, keep.input.head(t), keep.kv_raw.head_mut(t), overwrite)?;
        let (kv_raw, kv) = (keep.kv_raw.head(t), keep.kv.head_mut(t));
        self.ln_kv.forward(values, kv_raw, kv, &mut keep.ln_kv)?;
        interpolate::forward(self.pos_embed.view(values), keep.pos_kv.view_mut())?;
        rows::copy(keep.kv.head(t), keep.k_in.head_mut(t))?;
        rows::add_cycled(keep.pos_kv.view(), keep.k_in.head_mut(t))?;
        let (k, v) = keep.kv_heads.head_mut(t).split_cols(d);
        matmul::nt(keep.k_in.head(t), wk, Some(bk), k, 1.0, overwrite)?;
        matmul::nt(keep.kv.head(t), wv, Some(bv), v, 1.0, overwrite)?;

        // q is the same for every image
        let query = self.query.view(values);
        self.ln_q.forward(values, query, keep.q_in.view_mut(), &mut keep.ln_q)?;
        rows::add(self.pos_embed.view(values), keep.q_in.view_mut())?;
        matmul::nt(keep.q_in.view(), wq, Some(bq), keep.q.view_mut(), 1.0, overwrite)?;
        let mut q_all = keep.q_all.head_mut(n);
        q_all.fill(0.0f32);
        rows::add_cycled(keep.q.view(), q_all)?;

        let heads = keep.kv_heads.head(t);
        let (q, k, v) = (keep.q_all.head(n), heads.slice_cols(0..d), heads.slice_cols(d..2 * d));
        let [q, k, v] = [q, k, v].map(|x| Heads::dense(x, self.head_dim));
        let o = HeadsMut::dense(keep.o.head_mut(n), self.head_dim);
        let lse = keep.lse.view_mut().slice_cols(0..n);
        let mask = Mask::of(&keep.segments[..images]);
        attention::forward(q, k, v, mask, o, lse, self.scale())?;

        // y = ln_post(out_proj(o)) · proj
        self.out_proj.forward(values, keep.o.head(n), keep.attended.head_mut(n), overwrite)?;
        let (attended, post) = (keep.attended.head(n), keep.post.head_mut(n));
        self.ln_post.forward(values, attended, post, &mut keep.ln_post)?;
        matmul::nn(keep.post.head(n), self.proj.view(values), features, 1.0, overwrite)
    }

    /// Parameter gradients from `d_features` `[images · Q, D]`, and the gradient of the tower's
    /// output in `scratch.d_input`.
    pub fn backward(
        &self,
        values: &[f32],
        gradients: &mut Gradients,
        images: usize,
        keep: &ResamplerActivations,
        scratch: &mut ResamplerScratch,
        d_features: Tensor,
    ) -> Result<()> {
        let (t, n) = (images * self.patches, images * self.query.rows());
        let d = self.query.cols();
        let [(wq, _), (wk, _), (wv, _)] = self.in_proj(values);
        let (overwrite, accumulate) = (Write::Overwrite, Write::Accumulate);

        // y = ln_post(out_proj(o)) · proj
        if let Some(d_proj) = gradients.of(&self.proj) {
            matmul::tn(keep.post.head(n), d_features, d_proj, 1.0, accumulate)?;
        }
        let mut d_post = scratch.d_post.head_mut(n);
        matmul::nt(d_features, self.proj.view(values), None, d_post.reborrow(), 1.0, overwrite)?;
        let (x, d_post) = (keep.attended.head(n), d_post.as_ref());
        let mut d_attended = scratch.d_attended.head_mut(n);
        let dx = d_attended.reborrow();
        self.ln_post.backward(values, gradients, x, &keep.ln_post, d_post, dx, overwrite)?;
        let (x, dy) = (keep.o.head(n), d_attended.as_ref());
        let mut d_o = scratch.d_o.head_mut(n);
        let dx = Some((d_o.reborrow(), overwrite));
        self.out_proj.backward(values, gradients, x, dy, dx, empty(n), Lora::Off)?;

        let heads = keep.kv_heads.head(t);
        let (q, k, v) = (keep.q_all.head(n), heads.slice_cols(0..d), heads.slice_cols(d..2 * d));
        let hd = self.head_dim;
        let [q, k, v] = [q, k, v].map(|x| Heads::dense(x, hd));
        let [o, d_o] = [keep.o.head(n), d_o.as_ref()].map(|x| Heads::dense(x, hd));
        let mut d_q_all = scratch.d_q_all.head_mut(n);
        let (mut d_k, mut d_v) = scratch.d_kv_heads.head_mut(t).split_cols(d);
        let [dq, dk, dv] =
            [d_q_all.reborrow(), d_k.reborrow(), d_v.reborrow()].map(|x| HeadsMut::dense(x, hd));
        let lse = keep.lse.view().slice_cols(0..n);
        let delta = scratch.delta.view_mut().slice_cols(0..n);
        let (mask, scale) = (Mask::of(&keep.segments[..images]), self.scale());
        attention::backward(q, k, v, o, lse, d_o, mask, dq, dk, dv, delta, scale)?;

        // q = (ln_q(query) + pos_embed) Wqᵀ + bq
        let mut d_q = scratch.d_q.view_mut();
        d_q.fill(0.0f32);
        rows::add_cycled_backward(d_q_all.as_ref(), d_q.reborrow())?;
        self.in_proj_gradients(gradients, 0, keep.q_in.view(), d_q.as_ref())?;
        let mut d_q_in = scratch.d_q_in.view_mut();
        matmul::nn(d_q.as_ref(), wq, d_q_in.reborrow(), 1.0, overwrite)?;
        let mut d_query = scratch.d_query.view_mut();
        let (x, dy, dx) = (self.query.view(values), d_q_in.as_ref(), d_query.reborrow());
        self.ln_q.backward(values, gradients, x, &keep.ln_q, dy, dx, overwrite)?;
        if let Some(gradient) = gradients.of(&self.query) {
            rows::add(d_query.as_ref(), gradient)?;
        }

        // k = (kv + position) Wkᵀ + bk,  v = kv Wvᵀ + bv
        self.in_proj_gradients(gradients, 1, keep.k_in.head(t), d_k.as_ref())?;
        self.in_proj_gradients(gradients, 2, keep.kv.head(t), d_v.as_ref())?;
        let mut d_kv = scratch.d_k_in.head_mut(t);
        matmul::nn(d_k.as_ref(), wk, d_kv.reborrow(), 1.0, overwrite)?;
        let mut d_pos_kv = scratch.d_pos_kv.view_mut();
        d_pos_kv.fill(0.0f32);
        rows::add_cycled_backward(d_kv.as_ref(), d_pos_kv.reborrow())?;
        if let Some(mut gradient) = gradients.of(&self.pos_embed) {
            rows::add(d_q_in.as_ref(), gradient.reborrow())?;
            interpolate::backward(d_pos_kv.as_ref(), gradient)?;
        }
        matmul::nn(d_v.as_ref(), wv, d_kv.reborrow(), 1.0, accumulate)?;

        // kv = ln_kv(kv_proj x)
        let mut d_kv_raw = scratch.d_kv_raw.head_mut(t);
        let (x, dy, dx) = (keep.kv_raw.head(t), d_kv.as_ref(), d_kv_raw.reborrow());
        self.ln_kv.backward(values, gradients, x, &keep.ln_kv, dy, dx, overwrite)?;
        let (x, dy) = (keep.input.head(t), d_kv_raw.as_ref());
        let dx = Some((scratch.d_input.head_mut(t), overwrite));
        self.kv_proj.backward(values, gradients, x, dy, dx, empty(t), Lora::Off)
    }

    /// (weight, bias) of the q, k and v parts of `in_proj`, which stacks them.
    fn in_proj<'a>(&'a self, values: &'a [f32]) -> [(Tensor<'a>, Tensor<'a>); 3] {
        let d = self.query.cols();
        let (weight, bias) = (self.in_proj_weight.view(values), self.in_proj_bias.view(values));
        [0, 1, 2].map(|i| {
            let part = i * d..(i + 1) * d;
            (weight.slice_rows(part.clone()), bias.slice_cols(part))
        })
    }

    fn in_proj_gradients(
        &self,
        gradients: &mut Gradients,
        part: usize,
        x: Tensor,
        dy: Tensor,
    ) -> Result<()> {
        let d = self.query.cols();
        let part = part * d..(part + 1) * d;
        if let Some(dw) = gradients.of(&self.in_proj_weight) {
            matmul::tn(dy, x, dw.slice_rows(part.clone()), 1.0, Write::Accumulate)?;
        }
        match gradients.of_sum(&self.in_proj_bias) {
            (Some(db), partials) => column_sums::add(dy, db.slice_cols(part), partials),
            (None, _) => Ok(()),
        }
    }

    fn scale(&self) -> f32 {
        (self.head_dim as f32).sqrt().recip()
    }
}

/// The scratch of a map without an adapter.
fn empty<'a>(rows: usize) -> TensorMut<'a> {
    TensorMut::new::<f32>(&mut [], rows, 0)
}
