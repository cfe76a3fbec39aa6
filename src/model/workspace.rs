//! Every buffer of a step, allocated once from a [`Budget`]. A pack uses the first rows of each.

use crate::data::pack::Pack;
use crate::device::Buffer;
use crate::device::arena::Plan;
use crate::error::{Error, Result};
use crate::model::buffers::Buffers;
use crate::model::decoder::{self, Shared};
use crate::model::params::Trainable;
use crate::model::resampler::{ResamplerActivations, ResamplerScratch};
use crate::model::vision::{VisionActivations, VisionScratch};
use crate::model::{Lora, Model, RopeMode, Sizes};
use crate::ops::attention::{Mask, Segment};
use crate::ops::{column_sums, embedding, layer_norm, log_ratio, rms_norm, rope};
use crate::tensor::{Tensor, TensorMut};

/// The largest pack a workspace can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Rows of the token stream.
    pub tokens: usize,
    /// Images.
    pub images: usize,
    /// Scored rows.
    pub head_rows: usize,
    /// Whether forward keeps what backward needs.
    pub purpose: Purpose,
}

/// What a workspace is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Log-probs alone: one set of activations serves all blocks.
    Score,
    /// Forward and backward.
    Train,
}

impl Budget {
    /// The smallest budget that takes `pack`.
    pub fn of(pack: &Pack, purpose: Purpose) -> Self {
        let (tokens, head_rows) = (pack.tokens.len(), pack.head_rows.len());
        Budget { tokens, images: pack.images.len(), head_rows, purpose }
    }

    /// The smallest budget that takes both.
    pub fn union(self, other: Budget) -> Self {
        let train = self.purpose == Purpose::Train || other.purpose == Purpose::Train;
        Budget {
            tokens: self.tokens.max(other.tokens),
            images: self.images.max(other.images),
            head_rows: self.head_rows.max(other.head_rows),
            purpose: if train { Purpose::Train } else { Purpose::Score },
        }
    }
}

/// Elements of scratch for the largest of the sums over rows that are gradients of norms and biases.
fn partials(sizes: Sizes<'_>, budget: Budget) -> usize {
    let Sizes { config, trainable, .. } = sizes;
    let visual = &config.visual;
    let (d, w) = (config.hidden_size, visual.width);
    let (t, patches) = (budget.tokens, budget.images * visual.patches());
    let features = patches.max(budget.images * visual.n_queries);
    let decoder = [
        rms_norm::partials([t.max(budget.head_rows), d]),
        column_sums::partials([t, 3 * d]),
        layer_norm::partials([features, visual.output_dim]),
        column_sums::partials([features, visual.output_dim]),
    ];
    let tower = [
        layer_norm::partials([patches, w]),
        column_sums::partials([patches, 3 * w]), // c_fc's comes out of gelu's backward
    ];
    let parts: &[&[usize]] = match (budget.purpose, trainable) {
        (Purpose::Train, Trainable::Full) => &[&decoder],
        (Purpose::Train, Trainable::All) => &[&decoder, &tower],
        _ => &[],
    };
    parts.iter().copied().flatten().copied().max().unwrap_or(0)
}

/// A frozen tower or resampler runs at most this many patches at a time (one image at least).
const FROZEN_CHUNK_PATCHES: usize = 4096;
/// Logits of at most this many bytes exist at a time. A GPU reads the whole head for every chunk of rows: 512 rows of
/// Qwen-VL's vocabulary keep its products ahead of that. On a CPU 256 do.
const LOGITS_BYTES_GPU: usize = 320 << 20;
const LOGITS_BYTES_CPU: usize = 160 << 20;

/// All buffers of a step.
pub struct Workspace {
    pub(crate) budget: Budget,
    /// Residual stream before each block and after the last, `[tokens, hidden]`; two buffers that
    /// take turns when nothing is kept.
    pub(crate) residuals: Vec<Buffer>,
    pub(crate) blocks: Vec<decoder::Activations>,
    pub(crate) decoder: Option<DecoderScratch>,
    pub(crate) tables: Tables,
    pub(crate) head: Head,
    pub(crate) features: Buffer,
    /// Scratch for the gradients of norms and biases.
    pub(crate) partials: Buffer,
    /// Buffers of the vision tower and the resampler.
    pub vision: VisionWorkspace,
    log_probs: Vec<f64>,
    /// What each token of the pack at hand takes as its embedding.
    pub(crate) sources: Vec<u32>,
    /// Room for the inverse of an index.
    pub(crate) inverse: Vec<u32>,
}

/// Gradient of the residual stream, and what blocks need on the way.
pub(crate) struct DecoderScratch {
    pub d: Buffer, // [tokens, hidden]
    pub scratch: decoder::Scratch,
}

/// Rotary table, logn factors and segments of the pack at hand.
pub(crate) struct Tables {
    rope: Option<(RopeMode, rope::Table)>,
    positions: usize,
    logn: Vec<f32>,
    segments: Vec<Segment>,
}

/// The scored rows; `R` of them.
pub(crate) struct Head {
    pub x: Buffer,           // [R, hidden] input of ln_f
    pub rstd: Buffer,        // [R, 1]
    pub h: Buffer,           // [R, hidden] input of the head
    pub log_probs: Buffer,   // [R, 1]
    pub logits: Buffer,      // [chunk, vocab]
    pub d_h: Option<Buffer>, // [R, hidden] unit gradient, then gradient, of h
    pub d_x: Buffer,         // [R, hidden]
    pub factors: Buffer,     // [R, 1] d loss / d log π of the row's branch
}

/// Buffers of the vision tower and the resampler.
pub struct VisionWorkspace {
    /// Images the resampler takes at a time; all of a pack when it is trained.
    pub(crate) images: usize,
    /// Images the tower takes at a time; all of a pack when it is trained.
    pub(crate) tower_images: usize,
    /// What the tower kept of its last images.
    pub tower: VisionActivations,
    /// What the resampler kept of its last images.
    pub resampler: ResamplerActivations,
    pub(crate) trained: Option<TrainedVision>,
}

/// Buffers of backward through the resampler, and through the tower if that is trained too.
pub(crate) struct TrainedVision {
    pub d_features: Buffer, // [images · n_queries, hidden]
    pub resampler: ResamplerScratch,
    pub tower: Option<VisionScratch>,
}

impl Workspace {
    /// Buffers for packs of `model` within `budget`.
    pub fn new(model: &Model, budget: Budget) -> Self {
        Self::with(model.sizes(), budget, [Buffers::host(), Buffers::host()])
    }

    /// What a GPU would hold for packs within `budget`; with `pictures` going through the tower and
    /// the resampler, else their features come from outside.
    pub(crate) fn plan(sizes: Sizes<'_>, budget: Budget, pictures: bool, plan: &mut Plan) {
        let mut vision = Plan::default();
        Self::with(sizes, budget, [Buffers::planned(plan), Buffers::planned(&mut vision)]);
        if pictures {
            plan.append("", &vision);
        }
    }

    fn with(sizes: Sizes<'_>, budget: Budget, [mut buffers, vision]: [Buffers<'_>; 2]) -> Self {
        let Sizes { config, rank, .. } = sizes;
        let (t, r, d, v) = (budget.tokens, budget.head_rows, config.hidden_size, config.vocab_size);
        let train = budget.purpose == Purpose::Train;
        let kept = if train { config.num_hidden_layers } else { 1 };
        let bytes = if buffers.are_planned() { LOGITS_BYTES_GPU } else { LOGITS_BYTES_CPU };
        let chunk = log_ratio::rows_at_once(v, bytes).min(r.max(1));
        let residual = |n: usize| buffers.values(&format!("residual {n}"), t, d);
        let residuals = (0..kept + 1).map(residual).collect();
        let block =
            |n| decoder::Activations::new(config, t, rank, buffers.of(format_args!("block {n}")));
        let blocks = (0..kept).map(block).collect();
        let decoder = train.then(|| DecoderScratch {
            d: buffers.values("d", t, d),
            scratch: decoder::Scratch::new(config, t, rank, buffers.of("blocks")),
        });
        let mut head = buffers.of("head");
        let head = Head {
            x: head.values("x", r, d),
            rstd: head.f32("rstd", r, 1),
            h: head.values("h", r, d),
            log_probs: head.f32("log_probs", r, 1),
            logits: head.f32("logits", chunk, v),
            d_h: train.then(|| head.values("d_h", r, d)),
            d_x: head.values("d_x", if train { r } else { 0 }, d),
            factors: head.f32("factors", r, 1),
        };
        let features = buffers.values("features", budget.images * config.visual.n_queries, d);
        Workspace {
            budget,
            residuals,
            blocks,
            decoder,
            tables: Tables { rope: None, positions: t, logn: Vec::new(), segments: Vec::new() },
            head,
            features,
            partials: buffers.partials(partials(sizes, budget)),
            vision: VisionWorkspace::with(sizes, budget.images, budget.purpose, vision),
            log_probs: Vec::new(),
            sources: Vec::new(),
            inverse: Vec::new(),
        }
    }

    /// What it was made for.
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// log π of each branch of the pack that ran last.
    pub fn log_probs(&self) -> &[f64] {
        &self.log_probs
    }

    /// log-prob of each scored row of the pack that ran last, `[R, 1]`.
    pub fn row_log_probs(&self, rows: usize) -> Tensor<'_> {
        self.head.log_probs.head(rows)
    }

    /// The residual stream before block `n`, after the last one for `n = layers`.
    pub fn stream(&self, n: usize) -> &Buffer {
        &self.residuals[n % self.residuals.len()]
    }

    /// Takes in what a pack brings besides tensors. Errors: a pack over the budget, ids outside the
    /// vocabulary.
    pub(crate) fn load(
        &mut self,
        model: &Model,
        pack: &Pack,
        images: usize,
        rope: RopeMode,
    ) -> Result<()> {
        let Budget { tokens, images: most, head_rows, .. } = self.budget;
        for (what, got, limit) in [
            ("tokens", pack.tokens.len(), tokens),
            ("images", images, most),
            ("scored rows", pack.head_rows.len(), head_rows),
        ] {
            if got > limit {
                let message = format!("a pack of {got} {what} in a workspace for {limit}");
                return Err(Error::argument("model::forward", message));
            }
        }
        if images != pack.images.len() {
            let message = format!("{images} images for a pack of {}", pack.images.len());
            return Err(Error::argument("model::forward", message));
        }
        self.sources.resize(pack.tokens.len(), 0);
        let vocab = model.config.vocab_size;
        embedding::sources(&pack.tokens, &pack.image_rows, vocab, &mut self.sources)?;
        self.tables.load(model, rope);
        self.tables.attend(pack.segments.iter().map(|s| {
            let [start, len, prefix_start, prefix_len] =
                [s.start, s.len, s.prefix_start, s.prefix_len].map(|x| x as usize);
            Segment::causal(start, len, prefix_start, prefix_len)
        }));
        Ok(())
    }

    pub(crate) fn sum_branches(&mut self, offsets: &[u32]) -> Result<()> {
        let rows = offsets.last().map_or(0, |&r| r as usize);
        self.log_probs.resize(offsets.len().saturating_sub(1), 0.0);
        let (rows, sums) = (self.head.log_probs.head(rows), TensorMut::column(&mut self.log_probs));
        log_ratio::branch_sums(rows, Tensor::vector(offsets), sums)
    }

    pub(crate) fn check_backward(&self, pack: &Pack, coefficients: &[f32]) -> Result<()> {
        if self.decoder.is_none() {
            return Err(Error::argument("model::backward", "the workspace was made for scoring"));
        }
        if coefficients.len() != pack.branches.len() {
            let (got, expected) = (coefficients.len(), pack.branches.len());
            let message = format!("{got} coefficients, expected {expected}, one per branch");
            return Err(Error::argument("model::backward", message));
        }
        Ok(())
    }

    /// `factors[row]` = the coefficient of the row's branch.
    pub(crate) fn spread_coefficients(&mut self, offsets: &[u32], coefficients: &[f32]) {
        let rows = offsets.last().map_or(0, |&r| r as usize);
        let mut view = self.head.factors.head_mut(rows);
        let factors = view.elements::<f32>();
        for (range, &c) in offsets.windows(2).zip(coefficients) {
            factors[range[0] as usize..range[1] as usize].fill(c);
        }
    }
}

impl VisionWorkspace {
    /// Buffers for up to `images` images at a time, fewer where nothing is kept.
    pub fn new(model: &Model, images: usize, purpose: Purpose) -> Self {
        Self::with(model.sizes(), images, purpose, Buffers::host())
    }

    fn with(sizes: Sizes<'_>, images: usize, purpose: Purpose, mut buffers: Buffers<'_>) -> Self {
        let (config, visual) = (sizes.config, &sizes.config.visual);
        let train = |set: &[Trainable]| purpose == Purpose::Train && set.contains(&sizes.trainable);
        let (resampler, tower) =
            (train(&[Trainable::Full, Trainable::All]), train(&[Trainable::All]));
        let chunk = (FROZEN_CHUNK_PATCHES / visual.patches()).max(1).min(images.max(1));
        let of = |all: bool| if all { images.max(1) } else { chunk };
        let rows = images * visual.n_queries;
        VisionWorkspace {
            images: of(resampler),
            tower_images: of(tower),
            tower: VisionActivations::new(visual, of(tower), tower, buffers.of("tower")),
            resampler: ResamplerActivations::new(config, of(resampler), buffers.of("resampler")),
            trained: resampler.then(|| TrainedVision {
                d_features: buffers.values("d_features", rows, visual.output_dim),
                resampler: ResamplerScratch::new(config, images, buffers.of("resampler")),
                tower: tower.then(|| VisionScratch::new(visual, images, buffers.of("tower"))),
            }),
        }
    }
}

impl Tables {
    /// Rebuilds the rotary table when the mode changed.
    pub(crate) fn load(&mut self, model: &Model, mode: RopeMode) {
        if self.rope.as_ref().is_some_and(|(loaded, _)| *loaded == mode) {
            return;
        }
        let config = &model.config;
        let (positions, base) = (self.positions.max(1), config.rotary_emb_base);
        let table = rope::Table::new(config.head_dim, positions, base, mode.ntk_alpha);
        self.logn = if mode.logn { rope::logn(config.seq_length, positions) } else { Vec::new() };
        self.rope = Some((mode, table));
    }

    /// Makes the next table at least `positions` long.
    pub(crate) fn reserve(&mut self, positions: usize) {
        self.positions = self.positions.max(positions);
        self.rope = None;
    }

    /// Replaces who attends to whom.
    pub(crate) fn attend(&mut self, segments: impl IntoIterator<Item = Segment>) {
        self.segments.clear();
        self.segments.extend(segments);
    }

    /// What blocks share. Panics before the first `load`.
    pub(crate) fn shared<'a>(
        &'a self,
        values: &'a [f32],
        positions: &'a [u32],
        lora: Lora,
    ) -> Shared<'a> {
        let (mode, table) = self.rope.as_ref().expect("a forward pass loads the rotary table");
        Shared {
            values,
            positions: Tensor::column(positions),
            table: table.view(),
            logn: mode.logn.then(|| Tensor::column(&self.logn)),
            mask: Mask::of(&self.segments),
            lora,
        }
    }
}
