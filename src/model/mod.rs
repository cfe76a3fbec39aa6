//! Qwen-VL as a sequence of ops, forward and hand-written backward.
//!
//! ```text
//! pixels → vision tower → resampler → image slots ┐
//! token ids → embedding ──────────────────────────┴→ decoder blocks → rows that predict a scored
//! token → rms_norm → head → log-prob per branch
//! ```
//! The mathematics is told in [`vision`], [`resampler`] and [`decoder`]; [`Workspace`] holds every
//! buffer of a step, planned once from a [`Budget`], so that steps allocate nothing.

pub mod adapter;
mod buffers;
pub mod config;
pub mod create;
pub mod decoder;
pub mod flop;
pub mod generate;
pub mod init;
pub mod linear;
pub mod merge;
pub mod names;
mod norm;
pub mod params;
pub mod resampler;
pub mod vision;
pub mod weights;
mod workspace;

use std::path::Path;

use crate::data::pack::Pack;
use crate::error::{Error, Result};
use crate::model::adapter::Adapter;
use crate::model::config::ModelConfig;
use crate::model::decoder::{Below, Block};
use crate::model::generate::LayerCache;
pub use crate::model::linear::Lora;
use crate::model::params::{Gradients, Layout, Loader, Trainable, Weight};
use crate::model::resampler::Resampler;
use crate::model::vision::VisionTower;
use crate::model::weights::Weights;
pub use crate::model::workspace::{Budget, Purpose, VisionWorkspace, Workspace};
use crate::ops::{Write, embedding, log_ratio, matmul, rms_norm, rope, rows};
use crate::tensor::{Tensor, TensorMut};

/// A network, its adapter if it has one, and the values of what is trained.
pub struct Model {
    /// The sizes it was built from.
    pub config: ModelConfig,
    trainable: Trainable,
    rank: usize,
    tower: VisionTower,
    resampler: Resampler,
    wte: Weight,
    blocks: Vec<Block>,
    ln_f: Weight,
    lm_head: Weight,
    layout: Layout,
    values: Vec<f32>,
}

/// What the sizes of all buffers follow from.
#[derive(Clone, Copy, Debug)]
pub struct Sizes<'a> {
    /// The sizes of the network.
    pub config: &'a ModelConfig,
    /// Rank of the adapter, 0 without one.
    pub rank: usize,
    /// What is trained.
    pub trainable: Trainable,
}

/// Rotary settings of a forward pass. Explicit, because the original keeps them as hidden state: in
/// train mode it uses whatever alpha the last eval-mode call left behind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeMode {
    /// Dynamic-NTK factor: base' = base · alpha^(d/(d-2)).
    pub ntk_alpha: f64,
    /// Whether queries beyond `seq_length` are scaled by log(position + 1) / log(seq_length).
    pub logn: bool,
}

impl RopeMode {
    /// Train mode of a fresh model: no logn, alpha 1. What trees use.
    pub const TRAIN: RopeMode = RopeMode { ntk_alpha: 1.0, logn: false };

    /// Eval mode for one sequence whose prompt has `tokens` tokens, as far as `config` switches it on.
    pub fn eval(config: &ModelConfig, tokens: usize) -> RopeMode {
        let alpha = rope::ntk_alpha(tokens, config.seq_length);
        RopeMode {
            ntk_alpha: if config.use_dynamic_ntk { alpha } else { 1.0 },
            logn: config.use_logn_attn,
        }
    }
}

/// The pictures of a pack, in its order.
#[derive(Clone, Copy)]
pub enum Images<'a> {
    /// One view per image: u8 `[1, S·S·3]` RGB, or f32 `[1, 3·S·S]` already normalised.
    Pixels(&'a [Tensor<'a>]),
    /// One view per image: `[n_queries, hidden]` f32, what [`Model::encode_images`] gave.
    Features(&'a [Tensor<'a>]),
}

impl Images<'_> {
    fn count(&self) -> usize {
        match self {
            Images::Pixels(images) | Images::Features(images) => images.len(),
        }
    }
}

impl Model {
    /// Opens an HF directory; weights stay mapped unless they are trained.
    ///
    /// `adapter` is what `Trainable::Lora` trains, and takes part frozen otherwise. Errors: a folder
    /// that is no Qwen-VL, tensors missing or mis-shaped, an adapter of another model.
    pub fn open(dir: &Path, trainable: Trainable, adapter: Option<&Adapter>) -> Result<Model> {
        let config = ModelConfig::read(dir)?;
        Self::with_config(dir, config, trainable, adapter)
    }

    /// [`open`](Self::open) with a configuration that is not the folder's `config.json`.
    pub fn with_config(
        dir: &Path,
        config: ModelConfig,
        trainable: Trainable,
        adapter: Option<&Adapter>,
    ) -> Result<Model> {
        let weights = Weights::open(dir, &config)?;
        if adapter.is_none() && trainable == Trainable::Lora {
            return Err(Error::argument("model::open", "trainable set lora without an adapter"));
        }
        let mut loader = Loader::new(&weights, trainable);
        let tower = VisionTower::load(&mut loader, &config);
        let resampler = Resampler::load(&mut loader, &config);
        let wte = loader.matrix("transformer.wte.weight");
        let blocks = (0..config.num_hidden_layers)
            .map(|n| Block::load(&mut loader, &config, adapter, n))
            .collect();
        let ln_f = loader.vector("transformer.ln_f.weight");
        let lm_head = loader.matrix("lm_head.weight");
        let (layout, values) = loader.finish();
        let rank = adapter.map_or(0, |a| a.config.r);
        Ok(Model {
            config,
            trainable,
            rank,
            tower,
            resampler,
            wte,
            blocks,
            ln_f,
            lm_head,
            layout,
            values,
        })
    }

    /// What the sizes of a workspace follow from.
    pub fn sizes(&self) -> Sizes<'_> {
        Sizes { config: &self.config, rank: self.rank, trainable: self.trainable }
    }

    /// What is trained.
    pub fn trainable(&self) -> Trainable {
        self.trainable
    }

    /// Where each trained tensor lies in [`params`](Self::params) and in gradients.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The flat buffer of trained values.
    pub fn params(&self) -> &[f32] {
        &self.values
    }

    /// The flat buffer of trained values, for the optimizer.
    pub fn params_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Log-probabilities of the pack's branches: [`Workspace::log_probs`] afterwards.
    ///
    /// With a workspace for backward, everything that [`backward`](Self::backward) needs is kept.
    /// Errors: a pack over the budget, ids outside the vocabulary, images that do not fit.
    pub fn forward(
        &self,
        ws: &mut Workspace,
        pack: &Pack,
        images: Images,
        lora: Lora,
        rope: RopeMode,
    ) -> Result<()> {
        ws.load(self, pack, images.count(), rope)?;
        self.decode(ws, pack, images, lora, None)?;
        // only rows whose next token is scored reach ln_f and the head
        self.final_norm(ws, &pack.head_rows)?;
        let r = pack.head_rows.len();
        let d_h = ws.head.d_h.as_mut().map(|buffer| buffer.head_mut(r));
        let (h, head) = (ws.head.h.head(r), self.lm_head.view(&self.values));
        let (log_probs, logits) = (ws.head.log_probs.head_mut(r), ws.head.logits.view_mut());
        log_ratio::forward(h, head, Tensor::column(&pack.targets), log_probs, d_h, logits)?;
        ws.sum_branches(&pack.branch_offsets)
    }

    /// Logits `[rows, vocab]` at the given rows of the pack that ran last.
    pub fn logits(&self, ws: &mut Workspace, at: &[u32], out: TensorMut) -> Result<()> {
        self.final_norm(ws, at)?;
        let (h, head) = (ws.head.h.head(at.len()), self.lm_head.view(&self.values));
        matmul::nt(h, head, None, out, 1.0, Write::Overwrite)
    }

    /// `ws.head.h` = ln_f of the rows `at` of the last block's output.
    fn final_norm(&self, ws: &mut Workspace, at: &[u32]) -> Result<()> {
        let (r, buffers) = (at.len(), ws.residuals.len());
        let Workspace { head, residuals, .. } = ws;
        let x = residuals[self.blocks.len() % buffers].view();
        rows::gather(x, Tensor::column(at), head.x.head_mut(r))?;
        let (x, ln_f) = (head.x.head(r), self.ln_f.view(&self.values));
        rms_norm::forward(x, None, ln_f, head.h.head_mut(r), head.rstd.head_mut(r), self.eps())
    }

    /// Adds to `gradients` (layout [`layout`](Self::layout)) what follows from `coefficients`, d loss /
    /// d log π of each branch, for the pack that [`forward`](Self::forward) has just run, with the
    /// same arguments.
    pub fn backward(
        &self,
        ws: &mut Workspace,
        pack: &Pack,
        lora: Lora,
        coefficients: &[f32],
        gradients: &mut [f32],
    ) -> Result<()> {
        ws.check_backward(pack, coefficients)?;
        let (t, r, layers) = (pack.tokens.len(), pack.head_rows.len(), self.blocks.len());

        // d h = c · unit gradient, row by row; then ln_f, back to where the rows came from
        ws.spread_coefficients(&pack.branch_offsets, coefficients);
        let Workspace { head, residuals, tables, blocks, decoder, partials, .. } = ws;
        let Workspace { vision, sources, inverse, .. } = ws;
        let mut gradients = Gradients::new(&self.layout, gradients, partials.view_mut())?;
        let decoder = decoder.as_mut().expect("check_backward saw a workspace for backward");
        let d_h = head.d_h.as_mut().expect("a workspace for backward has d_h");
        let (factors, values) = (head.factors.head(r), &self.values[..]);
        if let Some(d_head) = gradients.of(&self.lm_head) {
            let (targets, logits) = (Tensor::column(&pack.targets), head.logits.view_mut());
            let (h, weight) = (head.h.head(r), self.lm_head.view(values));
            log_ratio::backward_head(h, weight, targets, factors, d_head, logits)?;
        }
        rows::scale(d_h.head_mut(r), factors)?;
        let (x, weight, rstd) = (head.x.head(r), self.ln_f.view(values), head.rstd.head(r));
        let mut d_rows = head.d_x.head_mut(r);
        let (d_ln, partials) = gradients.of_sum(&self.ln_f);
        rms_norm::backward(
            x,
            weight,
            rstd,
            d_h.head(r),
            d_rows.reborrow(),
            d_ln,
            partials,
            Write::Overwrite,
        )?;
        let mut d = decoder.d.head_mut(t);
        d.fill(0.0f32);
        let head_rows = inverse_of(&pack.head_rows, inverse)?;
        rows::scatter_add(d_rows.as_ref(), head_rows, d.reborrow())?;

        let shared = tables.shared(values, &pack.positions, lora);
        for (n, block) in self.blocks.iter().enumerate().rev() {
            let below = if n == 0 && matches!(self.trainable, Trainable::Lora | Trainable::None) {
                Below::Frozen
            } else {
                Below::Trained
            };
            let (x, keep, scratch) = (residuals[n].head(t), &blocks[n], &mut decoder.scratch);
            block.backward(&shared, &mut gradients, x, keep, scratch, d.reborrow(), below)?;
        }
        debug_assert_eq!(residuals.len(), layers + 1);
        if !matches!(self.trainable, Trainable::Full | Trainable::All) {
            return Ok(());
        }
        let sources = inverse_of(sources, inverse)?;
        self.backward_inputs(vision, pack, sources, d.as_ref(), &mut gradients)
    }

    /// Embedding, resampler and vision tower, from the gradient `d` of the decoder's input, whose rows
    /// came from where the inverse index `sources` says.
    fn backward_inputs(
        &self,
        vision: &mut VisionWorkspace,
        pack: &Pack,
        sources: Tensor,
        d: Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let (n, values) = (pack.images.len(), &self.values[..]);
        let trained = vision.trained.as_mut().expect("a workspace that trains the resampler");
        let d_features = trained.d_features.head_mut(pack.image_rows.len());
        let d_wte = gradients.of(&self.wte);
        embedding::backward(sources, d, d_wte, d_features, self.wte.rows())?;
        if n == 0 {
            return Ok(());
        }
        let d_features = trained.d_features.head(pack.image_rows.len());
        let (keep, scratch) = (&vision.resampler, &mut trained.resampler);
        self.resampler.backward(values, gradients, n, keep, scratch, d_features)?;
        let Some(tower_scratch) = &mut trained.tower else { return Ok(()) };
        let d_input = scratch.d_input.head_mut(n * self.config.visual.patches());
        self.tower.backward(values, gradients, n, &vision.tower, tower_scratch, d_input)
    }

    /// Vision features of `images`, `[images · n_queries, hidden]`, chunk by chunk.
    pub fn encode_images(
        &self,
        ws: &mut VisionWorkspace,
        images: &[Tensor],
        mut features: TensorMut,
    ) -> Result<()> {
        let (p, q) = (self.config.visual.patches(), self.config.visual.n_queries);
        let values = &self.values[..];
        for (first, chunk) in (0..).step_by(ws.images).zip(images.chunks(ws.images)) {
            for (start, part) in (0..).step_by(ws.tower_images).zip(chunk.chunks(ws.tower_images)) {
                let rows = start * p..(start + part.len()) * p;
                let out = ws.resampler.input.view_mut().slice_rows(rows);
                self.tower.forward(values, part, &mut ws.tower, out)?;
            }
            let out = features.reborrow().slice_rows(first * q..(first + chunk.len()) * q);
            self.resampler.forward(values, chunk.len(), &mut ws.resampler, out)?;
        }
        Ok(())
    }

    /// Embeddings with images in their slots, then all blocks.
    fn decode(
        &self,
        ws: &mut Workspace,
        pack: &Pack,
        images: Images,
        lora: Lora,
        mut caches: Option<&mut [LayerCache]>,
    ) -> Result<()> {
        let (t, values) = (pack.tokens.len(), &self.values[..]);
        self.gather_features(ws, images)?;
        let Workspace { residuals, tables, blocks, features, sources, .. } = ws;
        let (sources, features) = (Tensor::column(sources), features.head(pack.image_rows.len()));
        embedding::forward(sources, self.wte.view(values), features, residuals[0].head_mut(t))?;
        let (buffers, kept) = (residuals.len(), blocks.len());
        let shared = tables.shared(values, &pack.positions, lora);
        for (n, block) in self.blocks.iter().enumerate() {
            let (x, out) = vision::two(residuals, n % buffers, (n + 1) % buffers);
            let cache = caches.as_mut().map(|caches| &mut caches[n]);
            block.forward(&shared, x.head(t), &mut blocks[n % kept], out.head_mut(t), cache)?;
        }
        Ok(())
    }

    /// `ws.features` = those of `images`, one image after another.
    fn gather_features(&self, ws: &mut Workspace, images: Images) -> Result<()> {
        let q = self.config.visual.n_queries;
        match images {
            Images::Pixels(pixels) => {
                let features = ws.features.head_mut(pixels.len() * q);
                self.encode_images(&mut ws.vision, pixels, features)
            }
            Images::Features(features) => {
                for (i, image) in features.iter().enumerate() {
                    let own = i * q..(i + 1) * q;
                    rows::copy(*image, ws.features.view_mut().slice_rows(own))?;
                }
                Ok(())
            }
        }
    }

    fn eps(&self) -> f32 {
        self.config.layer_norm_epsilon
    }
}

/// The inverse of `index`, made in `scratch`.
fn inverse_of<'a>(index: &[u32], scratch: &'a mut Vec<u32>) -> Result<Tensor<'a>> {
    scratch.resize(rows::inverse_len(index.len()), 0);
    rows::invert(index, scratch)?;
    Ok(Tensor::vector(scratch))
}
