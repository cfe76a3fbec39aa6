//! Models with random weights: the presets `silkie init` writes for demos, tests and benches.
//!
//! Every element is a function of (seed, tensor, place in it) alone, so that a model of any size
//! is made in pieces, on all cores, and always the same. Random numbers are uniform with the
//! standard deviation asked for: it is the variance that matters, and a normal costs several times
//! as much for each of the real model's 9.7 billion weights.

use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::names::{self, Part, TensorSpec, matrix_shape};
use crate::model::weights::write::{self, Output};
use crate::tensor::DType;

/// Elements made by one task, from one stream of the generator.
const CHUNK: usize = 1 << 16;
/// Elements made before they are written.
const PIECE: usize = 1 << 24;

/// A model to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// The demo's: 224 thousand parameters and the embedding, 56-pixel pictures.
    Tiny,
    /// For benches: the real head sizes, picture size and vocabulary, 0.2 billion parameters.
    Small,
    /// Qwen-VL-Chat: 9.7 billion parameters, 19.3 GB in bf16.
    QwenVlChat,
}

/// What a user may change about a preset.
#[derive(Clone, Debug)]
pub struct Changes {
    /// Rows of the embedding and the head.
    pub vocab_size: Option<usize>,
    /// Id of `<img>`, followed by `</img>` and `<imgpad>`.
    pub image_start_id: Option<u32>,
    /// Blocks of the decoder.
    pub layers: Option<usize>,
    /// Blocks of the vision tower.
    pub vision_layers: Option<usize>,
    /// Dtype of the written weights, recorded as `torch_dtype`.
    pub dtype: DType,
}

impl Preset {
    /// Rows of the embedding and the head unless changed.
    pub const ROWS: usize = 151_936;

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Tiny => "tiny",
            Preset::Small => "small",
            Preset::QwenVlChat => "qwen-vl-chat",
        }
    }

    /// The configuration, with every key of the published one.
    ///
    /// Errors when the changes make it impossible.
    pub fn config(self, changes: &Changes) -> Result<ModelConfig> {
        let mut config = published();
        match self {
            Preset::QwenVlChat => {}
            Preset::Small => {
                set(&mut config, &[("hidden_size", 512), ("num_attention_heads", 4)]);
                set(&mut config, &[("num_hidden_layers", 8), ("intermediate_size", 2816)]);
                let sizes = [("width", 416), ("layers", 6), ("heads", 4), ("output_dim", 512)];
                set(&mut config["visual"], &sizes);
            }
            Preset::Tiny => {
                set(&mut config, &[("hidden_size", 64), ("num_attention_heads", 4)]);
                set(&mut config, &[("num_hidden_layers", 2), ("intermediate_size", 352)]);
                set(&mut config, &[("kv_channels", 16)]);
                let sizes = [("width", 64), ("layers", 1), ("heads", 4), ("output_dim", 64)];
                set(&mut config["visual"], &sizes);
                set(&mut config["visual"], &[("image_size", 56), ("n_queries", 16)]);
                config["visual"]["mlp_ratio"] = json!(4.0);
            }
        }
        let mut change = |place: &str, value: Option<usize>| {
            if let (Some(value), Some(old)) = (value, config.pointer_mut(place)) {
                *old = json!(value);
            }
        };
        change("/vocab_size", changes.vocab_size);
        change("/visual/image_start_id", changes.image_start_id.map(|id| id as usize));
        change("/num_hidden_layers", changes.layers);
        change("/visual/layers", changes.vision_layers);
        // Without it the original's code casts f32 weights to what the GPU likes best.
        config["fp32"] = json!(changes.dtype == DType::F32);
        let mut config =
            ModelConfig::parse(format!("preset {}", self.name()), &config.to_string())?;
        config.record_dtype(changes.dtype);
        Ok(config)
    }

    /// How its weights start.
    pub fn scales(self, config: &ModelConfig) -> Scales {
        match self {
            Preset::Tiny => Scales::demo(),
            Preset::Small | Preset::QwenVlChat => Scales::published(config),
        }
    }
}

fn set(section: &mut Value, sizes: &[(&str, usize)]) {
    sizes.iter().for_each(|(key, value)| section[*key] = json!(value));
}

/// Standard deviations that weights start with. Biases start at 0, norms at 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// Token embedding.
    pub embedding: f32,
    /// Language model head.
    pub head: f32,
    /// Matrices of the decoder.
    pub decoder: Spread,
    /// Factor on both `c_proj` of the decoder, whose outputs add up in the residual stream.
    pub residual: f32,
    /// Matrices of the vision tower, patch weights included.
    pub vision: Spread,
    /// Matrices of the resampler and `visual.proj`.
    pub resampler: Spread,
    /// This much of the identity is added to the resampler's q and k projections, so that from the
    /// start queries look at the patches near them.
    pub resampler_identity: f32,
    /// Queries of the resampler.
    pub query: f32,
    /// Amplitude of the 2D sine-cosine in `visual.positional_embedding`.
    pub vision_sin_cos: f32,
    /// Standard deviation added to it.
    pub vision_position: f32,
    /// Amplitude of the 2D sine-cosine in the resampler's `pos_embed`.
    pub resampler_sin_cos: f32,
}

/// The standard deviation of a matrix's elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spread {
    /// The same for every matrix.
    Fixed(f32),
    /// gain / √inputs: outputs as large as inputs for gain 1.
    FanIn(f32),
}

impl Spread {
    fn std(self, inputs: usize) -> f32 {
        match self {
            Spread::Fixed(std) => std,
            Spread::FanIn(gain) => gain / (inputs as f32).sqrt(),
        }
    }
}

impl Scales {
    /// As the published code initialises a new model.
    pub fn published(config: &ModelConfig) -> Self {
        Scales {
            embedding: 0.02,
            head: 0.02,
            decoder: Spread::Fixed(0.02),
            residual: (2.0 * config.num_hidden_layers as f32).sqrt().recip(),
            // torch's Linear: uniform in ±1/√inputs.
            vision: Spread::FanIn(3f32.sqrt().recip()),
            resampler: Spread::Fixed(0.02),
            resampler_identity: 0.0,
            query: 0.02,
            vision_sin_cos: 0.0,
            vision_position: (config.visual.width as f32).sqrt().recip(),
            resampler_sin_cos: 1.0,
        }
    }

    /// For a model this small to learn in a minute: a small embedding, which AdamW's steps of fixed
    /// size can turn soon; all other signals of size 1 from the first step; and positions that it
    /// need not find out.
    pub fn demo() -> Self {
        Scales {
            embedding: 0.02,
            head: 0.05,
            decoder: Spread::FanIn(1.0),
            residual: 0.5,
            vision: Spread::FanIn(1.0),
            resampler: Spread::FanIn(1.0),
            resampler_identity: 1.5,
            query: 0.02,
            vision_sin_cos: 1.0,
            vision_position: 0.0,
            resampler_sin_cos: 1.0,
        }
    }
}

/// A model with random weights, made on demand.
pub struct Init {
    scales: Scales,
    seed: u64,
    specs: Vec<TensorSpec>,
}

/// How the elements of one tensor come about: uniform with `std` plus a fixed part.
struct Rule {
    std: f32,
    fixed: Fixed,
}

enum Fixed {
    Constant(f32),
    /// This much of the 2D sine-cosine of a square grid, one row per cell.
    SinCos(f32),
    /// This much of the identity in each of the first two of three stacked square matrices.
    Identity(f32),
}

impl Init {
    /// The model of this configuration, scales and seed.
    pub fn new(config: &ModelConfig, scales: Scales, seed: u64) -> Self {
        Init { scales, seed, specs: names::tensors(config) }
    }

    /// Names and shapes, as [`names::tensors`].
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// Elements `first..first + out.len()` of tensor `index` of [`Init::specs`]. `first` must be a
    /// multiple of 65,536.
    pub fn fill(&self, index: usize, first: usize, out: &mut [f32]) {
        assert!(first.is_multiple_of(CHUNK), "a piece starts at element {first}");
        let spec = &self.specs[index];
        let (rule, [rows, cols]) = (self.rule(&spec.name, &spec.shape), matrix_shape(&spec.shape));
        // A uniform variable in ±b has standard deviation b/√3.
        let bound = rule.std * 3f32.sqrt();
        out.par_chunks_mut(CHUNK).enumerate().for_each(|(i, out)| {
            let first = first + i * CHUNK;
            let constant = if let Fixed::Constant(value) = rule.fixed { value } else { 0.0 };
            out.fill(constant);
            if bound > 0.0 {
                let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
                rng.set_stream(((index as u64) << 32) | (first / CHUNK) as u64);
                uniform(&mut rng, bound, out);
            }
            let fixed = |row: usize, col: usize| match rule.fixed {
                Fixed::Constant(_) => 0.0,
                Fixed::SinCos(scale) => scale * sin_cos(row, col, rows.isqrt(), cols),
                Fixed::Identity(scale) if row < 2 * cols && row % cols == col => scale,
                Fixed::Identity(_) => 0.0,
            };
            if !matches!(rule.fixed, Fixed::Constant(_)) {
                (first..).zip(out).for_each(|(at, x)| *x += fixed(at / cols, at % cols));
            }
        });
    }

    /// Writes the model folder `out`: weights in shards, and what `companions` puts beside them.
    /// `progress` is told of every piece written, in elements, and may end it with an error.
    pub fn write(
        &self,
        out: &Path,
        dtype: DType,
        max_shard_bytes: usize,
        companions: impl FnOnce(&Path) -> Result<()>,
        mut progress: impl FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let outputs: Vec<Output> = self
            .specs
            .iter()
            .map(|s| Output { name: s.name.clone(), shape: s.shape.clone(), dtype })
            .collect();
        let mut index = 0..;
        let mut piece = Vec::new();
        write::model(out, &outputs, max_shard_bytes, companions, |output, sink| {
            let Some(index) = index.next() else { unreachable!("an endless range") };
            let count: usize = output.shape.iter().product();
            for first in (0..count).step_by(PIECE) {
                piece.resize(PIECE.min(count - first), 0.0);
                self.fill(index, first, &mut piece);
                sink.floats(&piece)?;
                progress(piece.len())?;
            }
            Ok(())
        })
    }

    fn rule(&self, name: &str, shape: &[usize]) -> Rule {
        let s = &self.scales;
        let random = |std| Rule { std, fixed: Fixed::Constant(0.0) };
        let exactly = |value| Rule { std: 0.0, fixed: Fixed::Constant(value) };
        let [rows, cols] = matrix_shape(shape);
        let last = name.strip_prefix(names::VISUAL).unwrap_or(name);
        match (names::part(name), last) {
            _ if name.contains("bias") => exactly(0.0),
            _ if name.split('.').any(|component| component.starts_with("ln_")) => exactly(1.0),
            (Part::Embedding, _) => random(s.embedding),
            (Part::Head, _) => random(s.head),
            (Part::Decoder, _) if name.ends_with(".c_proj.weight") => {
                random(s.residual * s.decoder.std(cols))
            }
            (Part::Decoder, _) => random(s.decoder.std(cols)),
            (_, "positional_embedding") => {
                Rule { std: s.vision_position, fixed: Fixed::SinCos(s.vision_sin_cos) }
            }
            (_, "attn_pool.pos_embed") => {
                Rule { std: 0.0, fixed: Fixed::SinCos(s.resampler_sin_cos) }
            }
            (_, "attn_pool.query") => random(s.query),
            (_, "attn_pool.attn.in_proj_weight") => {
                Rule { std: s.resampler.std(cols), fixed: Fixed::Identity(s.resampler_identity) }
            }
            (_, "proj") => random(s.resampler.std(rows)),
            (Part::Resampler, _) => random(s.resampler.std(cols)),
            (Part::Vision, _) => random(s.vision.std(cols)),
        }
    }
}

/// Adds numbers uniform in [-bound, bound), of 24 random bits each.
fn uniform(rng: &mut ChaCha8Rng, bound: f32, out: &mut [f32]) {
    for x in out {
        *x += bound * ((rng.next_u32() >> 8) as f32 * (2.0 / (1u32 << 24) as f32) - 1.0);
    }
}

/// Element `col` of the sine-cosine embedding of cell `row` of a grid `side` cells wide: the first
/// half of the `width` columns tells the cell's x, the second its y, each as sines, then cosines,
/// of the coordinate times 10000^(-k / (width/4)).
fn sin_cos(row: usize, col: usize, side: usize, width: usize) -> f32 {
    let (half, quarter) = (width / 2, width / 4);
    let coordinate = if col < half { row % side } else { row / side };
    let k = col % half.max(1);
    let angle = |k: usize| coordinate as f64 / 10000f64.powf(k as f64 / quarter as f64);
    match k {
        k if k < quarter => angle(k).sin() as f32,
        k if k < 2 * quarter => angle(k - quarter).cos() as f32,
        // A width that is no multiple of 4 has columns left over.
        _ => 0.0,
    }
}

/// The published config.json of Qwen-VL-Chat.
fn published() -> Value {
    json!({
        "architectures": ["QWenLMHeadModel"],
        "attn_dropout_prob": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"
        },
        "bf16": false,
        "emb_dropout_prob": 0.0,
        "fp16": false,
        "fp32": false,
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 22016,
        "kv_channels": 128,
        "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 8192,
        "model_type": "qwen",
        "no_bias": true,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "onnx_safe": null,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "scale_attn_weights": true,
        "seq_length": 2048,
        "tie_word_embeddings": false,
        "tokenizer_type": "QWenTokenizer",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.31.0",
        "use_cache": true,
        "use_dynamic_ntk": true,
        "use_flash_attn": false,
        "use_logn_attn": true,
        "visual": {
            "heads": 16,
            "image_size": 448,
            "image_start_id": 151857,
            "layers": 48,
            "mlp_ratio": 4.9231,
            "output_dim": 4096,
            "patch_size": 14,
            "width": 1664
        },
        "vocab_size": Preset::ROWS
    })
}
