//! The tensors of a Qwen-VL checkpoint: names and shapes, which a configuration fixes completely.
//!
//! The one place that knows how tensors are called. Linear weights are `[out, in]`.

use crate::model::config::{ModelConfig, VISION_POSITIONS};

/// Token embedding, `[vocab, hidden]`.
pub const WTE: &str = "transformer.wte.weight";
/// Last RMSNorm of the decoder, `[hidden]`.
pub const LN_F: &str = "transformer.ln_f.weight";
/// Language model head, `[vocab, hidden]`.
pub const LM_HEAD: &str = "lm_head.weight";
/// Prefix of everything that sees pictures: vision tower and resampler.
pub const VISUAL: &str = "transformer.visual.";
/// Prefix of the resampler.
pub const RESAMPLER: &str = "transformer.visual.attn_pool.";

/// A tensor that a checkpoint must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape in the checkpoint.
    pub shape: Vec<usize>,
}

/// Which part of the model a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `transformer.wte`.
    Embedding,
    /// Decoder blocks and `ln_f`.
    Decoder,
    /// `lm_head`.
    Head,
    /// `transformer.visual.attn_pool`, its position embedding included.
    Resampler,
    /// The rest of `transformer.visual`, with `ln_post` and `proj`.
    Vision,
}

/// Name of a tensor of decoder block `layer`, as in `block(3, "attn.c_attn.weight")`.
pub fn block(layer: usize, rest: &str) -> String {
    format!("transformer.h.{layer}.{rest}")
}

/// Name of a tensor of vision block `layer`, as in `vision_block(3, "mlp.c_fc.bias")`.
pub fn vision_block(layer: usize, rest: &str) -> String {
    format!("transformer.visual.transformer.resblocks.{layer}.{rest}")
}

/// All tensors of a checkpoint with this configuration, in the order of the original modules.
pub fn tensors(config: &ModelConfig) -> Vec<TensorSpec> {
    let mut list = List(Vec::new());
    let (hidden, mlp) = (config.hidden_size, config.mlp_width());
    list.add(WTE, &[config.vocab_size, hidden]);
    for i in 0..config.num_hidden_layers {
        let mut add = |rest: &str, shape: &[usize]| list.add(block(i, rest), shape);
        add("ln_1.weight", &[hidden]);
        add("attn.c_attn.weight", &[3 * hidden, hidden]);
        add("attn.c_attn.bias", &[3 * hidden]);
        add("attn.c_proj.weight", &[hidden, hidden]);
        add("ln_2.weight", &[hidden]);
        add("mlp.w1.weight", &[mlp, hidden]);
        add("mlp.w2.weight", &[mlp, hidden]);
        add("mlp.c_proj.weight", &[hidden, mlp]);
    }
    list.add(LN_F, &[hidden]);
    vision(config, &mut list);
    list.add(LM_HEAD, &[config.vocab_size, hidden]);
    list.0
}

fn vision(config: &ModelConfig, list: &mut List) {
    let (v, width) = (&config.visual, config.visual.width);
    list.add(format!("{VISUAL}positional_embedding"), &[VISION_POSITIONS, width]);
    list.add(format!("{VISUAL}proj"), &[v.output_dim, v.output_dim]);
    list.add(format!("{VISUAL}conv1.weight"), &[width, 3, v.patch_size, v.patch_size]);
    list.norm(format!("{VISUAL}ln_pre"), width);
    for i in 0..v.layers {
        list.norm(vision_block(i, "ln_1"), width);
        list.norm(vision_block(i, "ln_2"), width);
        list.linear(vision_block(i, "attn.in_proj"), 3 * width, width);
        list.linear(vision_block(i, "attn.out_proj"), width, width);
        list.linear(vision_block(i, "mlp.c_fc"), v.mlp_width(), width);
        list.linear(vision_block(i, "mlp.c_proj"), width, v.mlp_width());
    }
    let dim = v.output_dim;
    list.add(format!("{RESAMPLER}pos_embed"), &[v.n_queries, dim]);
    list.add(format!("{RESAMPLER}query"), &[v.n_queries, dim]);
    list.add(format!("{RESAMPLER}kv_proj.weight"), &[dim, width]);
    list.add(format!("{RESAMPLER}attn.in_proj_weight"), &[3 * dim, dim]);
    list.add(format!("{RESAMPLER}attn.in_proj_bias"), &[3 * dim]);
    list.linear(format!("{RESAMPLER}attn.out_proj"), dim, dim);
    list.norm(format!("{RESAMPLER}ln_q"), dim);
    list.norm(format!("{RESAMPLER}ln_kv"), dim);
    list.norm(format!("{VISUAL}ln_post"), dim);
}

struct List(Vec<TensorSpec>);

impl List {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push(TensorSpec { name: name.into(), shape: shape.to_vec() });
    }

    fn norm(&mut self, name: String, width: usize) {
        self.add(format!("{name}.weight"), &[width]);
        self.add(format!("{name}.bias"), &[width]);
    }

    fn linear(&mut self, name: String, out: usize, input: usize) {
        self.add(format!("{name}.weight"), &[out, input]);
        self.add(format!("{name}.bias"), &[out]);
    }
}

/// The part of the model that the tensor `name` of [`tensors`] belongs to.
pub fn part(name: &str) -> Part {
    match name {
        WTE => Part::Embedding,
        LM_HEAD => Part::Head,
        _ if name.starts_with(RESAMPLER) => Part::Resampler,
        _ if name.starts_with(VISUAL) => Part::Vision,
        _ => Part::Decoder,
    }
}

/// Whether weight decay acts on the tensor `name`: the HF Trainer's rule, which exempts names with
/// "bias" and the parameters of `nn.LayerNorm`. Those are all in the visual part: the decoder's
/// RMSNorm is another class, and its weights decay.
pub fn decays(name: &str) -> bool {
    let layer_norm =
        name.starts_with(VISUAL) && name.split('.').any(|component| component.starts_with("ln_"));
    !layer_norm && !name.contains("bias")
}

/// Rows and columns of the 2-D view of a tensor: a vector is one row, everything after the first
/// dimension of a larger tensor becomes its columns (`conv1`: `[width, 3 x patch²]`).
pub fn matrix_shape(shape: &[usize]) -> [usize; 2] {
    match shape {
        [] => [1, 1],
        [cols] => [1, *cols],
        [rows, rest @ ..] => [*rows, rest.iter().product()],
    }
}
