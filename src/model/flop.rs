//! How much arithmetic a step of training is: counted from the sizes, to compare times with.
//!
//! A multiply and an add are two FLOP. Counted are matrix products and attention (without what the
//! mask leaves out); norms, activations and the optimizer are below one percent.

use crate::data::pack::Pack;
use crate::model::config::ModelConfig;

/// FLOP of one LoRA step on `pack`: frozen vision tower forward, decoder forward and backward to
/// its activations, rank-`r` adapters on `c_attn`, `attn.c_proj`, `w1` and `w2`, head on scored rows.
pub fn lora_step(config: &ModelConfig, pack: &Pack, r: usize) -> f64 {
    let size = |n: usize| n as f64;
    let (d, m, v) = (size(config.hidden_size), size(config.mlp_width()), size(config.vocab_size));
    let (tokens, scored, r) = (size(pack.tokens.len()), size(pack.head_rows.len()), size(r));
    // c_attn, c_proj, w1, w2, mlp.c_proj: forward, and dx backward
    let linear = 2.0 * 2.0 * tokens * (4.0 * d * d + 3.0 * d * m);
    // A and B of four modules: forward, dx, and their own gradients
    let adapters = 3.0 * 2.0 * tokens * r * (4.0 * d + 2.0 * d + 2.0 * (d + m));
    // q kᵀ and p v forward; backward again q kᵀ, then dp, dv, dq, dk
    let attention = 2.0 * d * (2.0 + 5.0) * seen(pack);
    let head = 2.0 * 2.0 * scored * d * v;
    let decoder = size(config.num_hidden_layers) * (linear + adapters + attention);
    decoder + head + size(pack.images.len()) * encode_image(config)
}

/// FLOP of one picture through vision tower and resampler.
pub fn encode_image(config: &ModelConfig) -> f64 {
    let size = |n: usize| n as f64;
    let visual = &config.visual;
    let (p, q, w) = (size(visual.patches()), size(visual.n_queries), size(visual.width));
    let (d, m) = (size(visual.output_dim), size(visual.mlp_width()));
    let patches = 2.0 * p * w * 3.0 * size(visual.patch_size * visual.patch_size);
    let block = 2.0 * p * (4.0 * w * w + 2.0 * w * m) + 4.0 * p * p * w;
    let resampler =
        2.0 * p * w * d + 2.0 * p * 2.0 * d * d + 2.0 * q * 3.0 * d * d + 4.0 * p * q * d;
    patches + size(visual.layers) * block + resampler
}

/// Pairs of (query, key) that attention looks at.
fn seen(pack: &Pack) -> f64 {
    let pairs =
        |len: u32, prefix: u32| f64::from(len) * (f64::from(prefix) + f64::from(len + 1) / 2.0);
    pack.segments.iter().map(|s| pairs(s.len, s.prefix_len)).sum()
}
