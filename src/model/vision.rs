//! The vision tower: a ViT over 14 × 14 patches, pre-norm, no class token, no final norm.
//!
//! ```text
//! y   = ln_pre(patches · conv1ᵀ + resize(positional_embedding))
//! x2  = x  + out_proj(attention(in_proj(ln_1 x)))
//! out = x2 + c_proj(gelu(c_fc(ln_2 x2)))
//! ```
//! `in_proj` is interleaved by head: heads × (q, k, v) × head_dim. `P` patches per image, `T` patches
//! of all images at hand, `W` width, `M` MLP width.

use crate::device::Buffer;
use crate::error::Result;
use crate::model::buffers::Buffers;
use crate::model::config::{IMAGE_MEAN, IMAGE_STD, ModelConfig, VISION_EPSILON, VisualConfig};
use crate::model::linear::{Bias, Linear, Lora};
use crate::model::names;
use crate::model::norm::{Norm, Stats};
use crate::model::params::{Gradients, Loader, Weight};
use crate::ops::attention::{Heads, HeadsMut, Mask, Segment};
use crate::ops::patch_embed::Patches;
use crate::ops::{Write, activation, attention, interpolate, patch_embed, rows};
use crate::tensor::{Tensor, TensorMut};

/// The tower's weights.
pub struct VisionTower {
    conv1: Weight,
    position: Weight,
    ln_pre: Norm,
    blocks: Vec<Block>,
    spec: Patches,
    patches: usize,
}

struct Block {
    ln_1: Norm,
    in_proj: Linear,
    out_proj: Linear,
    ln_2: Norm,
    c_fc: Linear,
    c_proj: Linear,
    heads: usize,
}

/// What forward keeps for backward, for up to a number of images.
pub struct VisionActivations {
    position: Buffer,    // [P, W]       positional_embedding resized to the patch grid
    patches: Buffer,     // [T, 3·14·14] normalised pixels; on the CPU
    embedded: Buffer,    // [T, W]       input of ln_pre; on the CPU, or kept
    pre: Stats,          // of ln_pre
    stream: Vec<Buffer>, // [T, W]       input of each block
    blocks: Vec<BlockActivations>,
    segments: Vec<Segment>,
}

struct BlockActivations {
    ln_1: Stats,
    h_1: Buffer, // [T, W]  ln_1 output
    qkv: Buffer, // [T, 3W] interleaved by head
    o: Buffer,   // [T, W]
    lse: Buffer, // [heads, T]
    x_2: Buffer, // [T, W]
    ln_2: Stats,
    h_2: Buffer,  // [T, W]  ln_2 output
    fc: Buffer,   // [T, M]  c_fc output
    gelu: Buffer, // [T, M]
}

/// Buffers that backward of every block uses in turn.
pub struct VisionScratch {
    d_fc: Buffer,       // [T, M]
    d_gelu: Buffer,     // [T, M]
    d_h: Buffer,        // [T, W]
    d_o: Buffer,        // [T, W]
    d_qkv: Buffer,      // [T, 3W]
    delta: Buffer,      // [heads, T]
    d_embed: Buffer,    // [T, W]
    d_position: Buffer, // [P, W]
}

impl VisionActivations {
    /// Buffers for up to `images` images; with `keep`, every block's own.
    pub(crate) fn new(
        visual: &VisualConfig,
        images: usize,
        keep: bool,
        mut buffers: Buffers<'_>,
    ) -> Self {
        let (p, w, m) = (visual.patches(), visual.width, visual.mlp_width());
        let (t, kept) = (images * p, if keep { visual.layers } else { visual.layers.min(1) });
        let block = |mut buffers: Buffers<'_>| BlockActivations {
            ln_1: Stats::new(t, buffers.of("ln_1")),
            h_1: buffers.values("h_1", t, w),
            qkv: buffers.values("qkv", t, 3 * w),
            o: buffers.values("o", t, w),
            lse: buffers.f32("lse", visual.heads, t),
            x_2: buffers.values("x_2", t, w),
            ln_2: Stats::new(t, buffers.of("ln_2")),
            h_2: buffers.values("h_2", t, w),
            fc: buffers.values("fc", t, m),
            gelu: buffers.values("gelu", t, m),
        };
        VisionActivations {
            position: buffers.values("position", p, w),
            patches: buffers.on_cpu(t, visual.patch_elements()),
            embedded: match keep {
                true => buffers.values("embedded", t, w),
                false => buffers.on_cpu(t, w),
            },
            pre: Stats::new(t, buffers.of("pre")),
            stream: (0..kept + 1).map(|n| buffers.values(&format!("stream {n}"), t, w)).collect(),
            blocks: (0..kept).map(|n| block(buffers.of(format_args!("block {n}")))).collect(),
            segments: (0..images).map(|i| Segment::all(i * p, p, i * p, p)).collect(),
        }
    }

    /// The positional embedding resized to the patch grid, `[P, W]`.
    pub fn position(&self) -> Tensor<'_> {
        self.position.view()
    }

    /// The residual stream before block `n` (after the last one for `n = layers`), `[T, W]`.
    /// Only with `keep` do all of them survive the forward pass.
    pub fn stream(&self, n: usize, tokens: usize) -> Tensor<'_> {
        self.stream[n % self.stream.len()].head(tokens)
    }
}

impl VisionScratch {
    /// Buffers for up to `images` images.
    pub(crate) fn new(visual: &VisualConfig, images: usize, mut buffers: Buffers<'_>) -> Self {
        let (p, w, m) = (visual.patches(), visual.width, visual.mlp_width());
        let t = images * p;
        VisionScratch {
            d_fc: buffers.values("d_fc", t, m),
            d_gelu: buffers.values("d_gelu", t, m),
            d_h: buffers.values("d_h", t, w),
            d_o: buffers.values("d_o", t, w),
            d_qkv: buffers.values("d_qkv", t, 3 * w),
            delta: buffers.f32("delta", visual.heads, t),
            d_embed: buffers.values("d_embed", t, w),
            d_position: buffers.values("d_position", p, w),
        }
    }
}

impl VisionTower {
    /// Loads the tower.
    pub fn load(loader: &mut Loader, config: &ModelConfig) -> Self {
        let (visual, prefix) = (&config.visual, "transformer.visual");
        let conv1 = loader.matrix(&format!("{prefix}.conv1.weight"));
        let position = loader.vector(&format!("{prefix}.positional_embedding"));
        let ln_pre = Norm::load(loader, &format!("{prefix}.ln_pre"));
        let blocks = (0..visual.layers).map(|n| Block::load(loader, visual, n));
        VisionTower {
            conv1,
            position,
            ln_pre,
            blocks: blocks.collect(),
            spec: Patches {
                image_size: visual.image_size,
                patch_size: visual.patch_size,
                mean: IMAGE_MEAN,
                std: IMAGE_STD,
            },
            patches: visual.patches(),
        }
    }

    /// Images to patch features. Each image is u8 `[1, S·S·3]` (RGB, HWC) or f32 `[1, 3·S·S]` (already
    /// normalised, CHW); `out` `[images · P, W]`.
    pub fn forward(
        &self,
        values: &[f32],
        images: &[Tensor],
        keep: &mut VisionActivations,
        mut out: TensorMut,
    ) -> Result<()> {
        let (p, t) = (self.patches, images.len() * self.patches);
        interpolate::forward(self.position.view(values), keep.position.view_mut())?;
        let [norm_weight, norm_bias] = self.ln_pre.parameters(values);
        for (i, image) in images.iter().enumerate() {
            let range = i * p..(i + 1) * p;
            let patches = keep.patches.view_mut().slice_rows(range.clone());
            let x = keep.embedded.view_mut().slice_rows(range.clone());
            let y = keep.stream[0].view_mut().slice_rows(range.clone());
            let [mean, rstd] = keep.pre.slice_rows(range);
            patch_embed::forward(
                *image,
                self.conv1.view(values),
                keep.position.view(),
                norm_weight,
                norm_bias,
                patches,
                Some(x),
                y,
                mean,
                rstd,
                &self.spec,
                VISION_EPSILON,
            )?;
        }

        let (buffers, kept, segments) = (keep.stream.len(), keep.blocks.len(), images.len());
        for (n, block) in self.blocks.iter().enumerate() {
            let (x, y) = two(&mut keep.stream, n % buffers, (n + 1) % buffers);
            let segments = &keep.segments[..segments];
            block.forward(
                values,
                segments,
                x.head(t),
                &mut keep.blocks[n % kept],
                y.head_mut(t),
            )?;
        }
        rows::copy(keep.stream(self.blocks.len(), t), out.reborrow())
    }

    /// Parameter gradients of the tower from `d` `[images · P, W]`, the gradient of its output, which
    /// is overwritten on the way.
    pub fn backward(
        &self,
        values: &[f32],
        gradients: &mut Gradients,
        images: usize,
        keep: &VisionActivations,
        scratch: &mut VisionScratch,
        mut d: TensorMut,
    ) -> Result<()> {
        let t = images * self.patches;
        for (n, block) in self.blocks.iter().enumerate().rev() {
            let (x, segments) = (keep.stream(n, t), &keep.segments[..images]);
            let kept = &keep.blocks[n];
            block.backward(values, gradients, segments, x, kept, scratch, d.reborrow())?;
        }
        let mut d_embed = scratch.d_embed.head_mut(t);
        let (x, stats, write) = (keep.embedded.head(t), &keep.pre, Write::Overwrite);
        self.ln_pre.backward(values, gradients, x, stats, d.as_ref(), d_embed.reborrow(), write)?;
        let (patches, d_embed) = (keep.patches.head(t), d_embed.as_ref());
        let mut d_position = scratch.d_position.view_mut();
        d_position.fill(0.0f32);
        let d_conv1 = gradients.of(&self.conv1);
        let position = Some(d_position.reborrow());
        patch_embed::backward(patches, d_embed, d_conv1, position, &self.spec)?;
        match gradients.of(&self.position) {
            Some(gradient) => interpolate::backward(d_position.as_ref(), gradient),
            None => Ok(()),
        }
    }
}

impl Block {
    fn load(loader: &mut Loader, visual: &VisualConfig, n: usize) -> Self {
        let name = |part: &str| names::vision_block(n, part);
        Block {
            ln_1: Norm::load(loader, &name("ln_1")),
            in_proj: Linear::load(loader, &name("attn.in_proj"), Bias::Present),
            out_proj: Linear::load(loader, &name("attn.out_proj"), Bias::Present),
            ln_2: Norm::load(loader, &name("ln_2")),
            c_fc: Linear::load(loader, &name("mlp.c_fc"), Bias::Present),
            c_proj: Linear::load(loader, &name("mlp.c_proj"), Bias::Present),
            heads: visual.heads,
        }
    }

    fn forward(
        &self,
        values: &[f32],
        segments: &[Segment],
        x: Tensor,
        keep: &mut BlockActivations,
        mut out: TensorMut,
    ) -> Result<()> {
        let t = x.rows();
        let head_dim = x.cols() / self.heads;
        let scale = (head_dim as f32).sqrt().recip();

        // o = attention(in_proj(ln_1 x)); q, k and v of a head lie side by side
        let mut h = keep.h_1.head_mut(t);
        self.ln_1.forward(values, x, h.reborrow(), &mut keep.ln_1)?;
        self.in_proj.forward(values, h.as_ref(), keep.qkv.head_mut(t), Write::Overwrite)?;
        let [q, k, v] = Heads::interleaved(keep.qkv.head(t), head_dim);
        let o = HeadsMut::dense(keep.o.head_mut(t), head_dim);
        let (lse, mask) = (keep.lse.view_mut().slice_cols(0..t), Mask::of(segments));
        attention::forward(q, k, v, mask, o, lse, scale)?;

        // x2 = x + out_proj(o)
        let mut x_2 = keep.x_2.head_mut(t);
        rows::copy(x, x_2.reborrow())?;
        self.out_proj.forward(values, keep.o.head(t), x_2.reborrow(), Write::Accumulate)?;

        // out = x2 + c_proj(gelu(c_fc(ln_2 x2)))
        let mut h = keep.h_2.head_mut(t);
        self.ln_2.forward(values, x_2.as_ref(), h.reborrow(), &mut keep.ln_2)?;
        self.c_fc.forward(values, h.as_ref(), keep.fc.head_mut(t), Write::Overwrite)?;
        activation::gelu(keep.fc.head(t), keep.gelu.head_mut(t))?;
        rows::copy(x_2.as_ref(), out.reborrow())?;
        self.c_proj.forward(values, keep.gelu.head(t), out, Write::Accumulate)
    }

    fn backward(
        &self,
        values: &[f32],
        gradients: &mut Gradients,
        segments: &[Segment],
        x: Tensor,
        keep: &BlockActivations,
        scratch: &mut VisionScratch,
        mut d: TensorMut,
    ) -> Result<()> {
        let t = x.rows();
        let head_dim = x.cols() / self.heads;
        let scale = (head_dim as f32).sqrt().recip();

        // out = x2 + c_proj(gelu(c_fc(ln_2 x2)))
        let (mut d_gelu, mut d_fc) = (scratch.d_gelu.head_mut(t), scratch.d_fc.head_mut(t));
        linear_backward(
            &self.c_proj,
            values,
            gradients,
            keep.gelu.head(t),
            d.as_ref(),
            d_gelu.reborrow(),
        )?;
        let (fc, d_bias) = (keep.fc.head(t), self.c_fc.bias_gradient(gradients));
        activation::gelu_backward(fc, d_gelu.as_ref(), d_fc.reborrow(), d_bias)?;
        let mut d_h = scratch.d_h.head_mut(t);
        let dx = Some((d_h.reborrow(), Write::Overwrite));
        let (h_2, d_fc, none) = (keep.h_2.head(t), d_fc.as_ref(), no_scratch(t));
        self.c_fc.backward_products(values, gradients, h_2, d_fc, dx, none, Lora::Off)?;
        let (x_2, dy, write) = (keep.x_2.head(t), d_h.as_ref(), Write::Accumulate);
        self.ln_2.backward(values, gradients, x_2, &keep.ln_2, dy, d.reborrow(), write)?;

        // x2 = x + out_proj(attention(in_proj(ln_1 x)))
        let (mut d_o, mut d_qkv) = (scratch.d_o.head_mut(t), scratch.d_qkv.head_mut(t));
        linear_backward(
            &self.out_proj,
            values,
            gradients,
            keep.o.head(t),
            d.as_ref(),
            d_o.reborrow(),
        )?;
        let [q, k, v] = Heads::interleaved(keep.qkv.head(t), head_dim);
        let [o, d_o] = [keep.o.head(t), d_o.as_ref()].map(|x| Heads::dense(x, head_dim));
        let [d_q, d_k, d_v] = HeadsMut::interleaved(d_qkv.reborrow(), head_dim);
        let lse = keep.lse.view().slice_cols(0..t);
        let delta = scratch.delta.view_mut().slice_cols(0..t);
        let mask = Mask::of(segments);
        attention::backward(q, k, v, o, lse, d_o, mask, d_q, d_k, d_v, delta, scale)?;
        let mut d_h = scratch.d_h.head_mut(t);
        linear_backward(
            &self.in_proj,
            values,
            gradients,
            keep.h_1.head(t),
            d_qkv.as_ref(),
            d_h.reborrow(),
        )?;
        self.ln_1.backward(values, gradients, x, &keep.ln_1, d_h.as_ref(), d, Write::Accumulate)
    }
}

/// Backward of a map that no adapter touches.
fn linear_backward(
    linear: &Linear,
    values: &[f32],
    gradients: &mut Gradients,
    x: Tensor,
    dy: Tensor,
    dx: TensorMut,
) -> Result<()> {
    let dx = Some((dx, Write::Overwrite));
    linear.backward(values, gradients, x, dy, dx, no_scratch(x.rows()), Lora::Off)
}

/// Where an adapter would keep the gradient of u.
fn no_scratch(rows: usize) -> TensorMut<'static> {
    TensorMut::new::<f32>(&mut [], rows, 0)
}

/// Element `a` to read, element `b` to write.
pub(crate) fn two(buffers: &mut [Buffer], a: usize, b: usize) -> (&Buffer, &mut Buffer) {
    let [a, b] = buffers.get_disjoint_mut([a, b]).expect("two different residual buffers");
    (a, b)
}
