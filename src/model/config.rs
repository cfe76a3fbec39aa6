//! `config.json` of a Qwen-VL model: the sizes and switches the network is built from.
//!
//! Every value is checked before anything is allocated: after [`ModelConfig::parse`] all divisions
//! are exact and no product of sizes that a tensor can have overflows. Keys that silkie does not
//! use are kept, so that writing the configuration back loses nothing.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::tensor::DType;

/// Mean of the image normalisation, per channel (red, green, blue), on the scale 0..1.
pub const IMAGE_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of the image normalisation, per channel, on the scale 0..1.
pub const IMAGE_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
/// LayerNorm epsilon everywhere in the vision tower and the resampler (not in config.json).
pub const VISION_EPSILON: f32 = 1e-6;
/// Rows of `visual.positional_embedding`: a 16 x 16 grid whatever the image size; it is resized to
/// the patch grid when the model runs.
pub const VISION_POSITIONS: usize = 256;

/// Limits that no Qwen-VL comes near. A tensor has at most 2^44 elements below them and a model
/// 2^13 tensors, so that sizes in bytes, and their sums, fit 64 bits.
const MAX_WIDTH: usize = 1 << 20;
const MAX_ROWS: usize = 1 << 24;
const MAX_LAYERS: usize = 1 << 9;
const MAX_IMAGE: usize = 1 << 14;
const MAX_QUERIES: usize = 1 << 16;

/// A checked `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Width of the decoder's residual stream.
    pub hidden_size: usize,
    /// Attention heads of the decoder.
    pub num_attention_heads: usize,
    /// Width of a decoder head (`kv_channels`); heads x head_dim = hidden_size.
    pub head_dim: usize,
    /// Twice the width of `w1` and `w2`; see [`ModelConfig::mlp_width`].
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Rows of the embedding and of the head; may exceed the tokenizer's vocabulary.
    pub vocab_size: usize,
    /// Training length: beyond it logn and dynamic NTK act in eval mode.
    pub seq_length: usize,
    /// RMSNorm epsilon of the decoder.
    pub layer_norm_epsilon: f32,
    /// RoPE base.
    pub rotary_emb_base: f64,
    /// Share of a head that rotates; always 1.
    pub rotary_pct: f64,
    /// Whether the RoPE base grows for sequences longer than `seq_length`.
    pub use_dynamic_ntk: bool,
    /// Whether queries beyond `seq_length` are scaled by log(position) / log(seq_length).
    pub use_logn_attn: bool,
    /// Whether the head shares the embedding; always false.
    pub tie_word_embeddings: bool,
    /// Whether the decoder's projections have no bias (`c_attn` always has one); always true.
    pub no_bias: bool,
    /// The vision tower and the resampler.
    pub visual: VisualConfig,
    raw: Map<String, Value>,
}

/// `config.json`'s `visual`.
#[derive(Clone, Debug, PartialEq)]
pub struct VisualConfig {
    /// Pixels along each side of the square input.
    pub image_size: usize,
    /// Pixels along each side of a patch; divides `image_size`.
    pub patch_size: usize,
    /// Width of the vision tower.
    pub width: usize,
    /// Blocks of the vision tower.
    pub layers: usize,
    /// Attention heads of the vision tower; divides `width`.
    pub heads: usize,
    /// MLP width / width, before truncation; see [`VisualConfig::mlp_width`].
    pub mlp_ratio: f64,
    /// Width of the resampler and of its output; the decoder's hidden size.
    pub output_dim: usize,
    /// Id of `<img>`; `</img>` and `<imgpad>` are the two ids after it.
    pub image_start_id: u32,
    /// Image slots: queries of the resampler, a square number; 256 when absent.
    pub n_queries: usize,
}

impl ModelConfig {
    /// Reads and checks `dir/config.json`.
    ///
    /// Errors name the file, the field, its value and what was expected.
    pub fn read(dir: impl AsRef<Path>) -> Result<Self> {
        let path = dir.as_ref().join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|e| Error::io(&path, "read the model's configuration", e))?;
        Self::parse(&path, &text)
    }

    /// Checks the text of a `config.json`; `path` is only named in errors.
    pub fn parse(path: impl AsRef<Path>, text: &str) -> Result<Self> {
        let path = path.as_ref();
        let raw: Map<String, Value> = serde_json::from_str(text)
            .map_err(|e| Error::file(path, "", format!("expected one JSON object: {e}")))?;
        let fields = Fields { path, section: "", map: &raw };
        let visual = VisualConfig::from_fields(&fields.section("visual")?)?;
        let decoder = Decoder::from_fields(&fields)?;
        fields.require("visual.output_dim", visual.output_dim == decoder.hidden_size, || {
            format!("hidden_size = {}", decoder.hidden_size)
        })?;
        let last_image_id = visual.image_start_id as usize + 2;
        fields.require("vocab_size", decoder.vocab_size > last_image_id, || {
            format!("more than {last_image_id}: visual.image_start_id + 2, the id of <imgpad>")
        })?;
        Ok(ModelConfig {
            hidden_size: decoder.hidden_size,
            num_attention_heads: decoder.num_attention_heads,
            head_dim: decoder.head_dim,
            intermediate_size: decoder.intermediate_size,
            num_hidden_layers: fields.size("num_hidden_layers", MAX_LAYERS)?,
            vocab_size: decoder.vocab_size,
            seq_length: decoder.seq_length,
            layer_norm_epsilon: fields.real("layer_norm_epsilon", 1e-12, 0.1)? as f32,
            rotary_emb_base: fields.real("rotary_emb_base", 1.0, 1e12)?,
            rotary_pct: fields.real("rotary_pct", 1.0, 1.0)?,
            use_dynamic_ntk: fields.flag("use_dynamic_ntk")?,
            use_logn_attn: fields.flag("use_logn_attn")?,
            tie_word_embeddings: fields.only("tie_word_embeddings", false)?,
            no_bias: fields.only("no_bias", true)?,
            visual,
            raw,
        })
    }

    /// Width of `w1` and `w2`: half of `intermediate_size`.
    pub fn mlp_width(&self) -> usize {
        self.intermediate_size / 2
    }

    /// The member `key` of the file, also one that silkie does not use.
    pub fn raw(&self, key: &str) -> Option<&Value> {
        self.raw.get(key)
    }

    /// Sets `torch_dtype`, which says how the weights beside the file are stored.
    pub fn record_dtype(&mut self, dtype: DType) {
        let name = match dtype {
            DType::Bf16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        };
        self.raw.insert("torch_dtype".into(), name.into());
    }

    /// The file's content, every key kept, laid out as HF libraries do.
    pub fn to_json(&self) -> String {
        format!("{:#}\n", Value::Object(self.raw.clone()))
    }
}

/// The decoder's sizes, checked against each other.
struct Decoder {
    hidden_size: usize,
    num_attention_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
    vocab_size: usize,
    seq_length: usize,
}

impl Decoder {
    fn from_fields(fields: &Fields<'_>) -> Result<Self> {
        let decoder = Decoder {
            hidden_size: fields.size("hidden_size", MAX_WIDTH)?,
            num_attention_heads: fields.size("num_attention_heads", MAX_WIDTH)?,
            head_dim: fields.size("kv_channels", MAX_WIDTH)?,
            intermediate_size: fields.size("intermediate_size", MAX_WIDTH)?,
            vocab_size: fields.size("vocab_size", MAX_ROWS)?,
            seq_length: fields.size("seq_length", MAX_ROWS)?,
        };
        let Decoder { hidden_size, num_attention_heads: heads, head_dim, .. } = decoder;
        fields.require("kv_channels", heads * head_dim == hidden_size, || {
            format!("hidden_size / num_attention_heads = {hidden_size} / {heads}")
        })?;
        fields.require("kv_channels", head_dim.is_multiple_of(2), || {
            "an even number, for RoPE".into()
        })?;
        fields.require("intermediate_size", decoder.intermediate_size.is_multiple_of(2), || {
            "an even number: w1 and w2 have half of it each".into()
        })?;
        fields.require("seq_length", decoder.seq_length > 1, || "at least 2".into())?;
        fields.only("scale_attn_weights", true)?;
        Ok(decoder)
    }
}

impl VisualConfig {
    fn from_fields(fields: &Fields<'_>) -> Result<Self> {
        let n_queries = match fields.map.contains_key("n_queries") {
            true => fields.size("n_queries", MAX_QUERIES)?,
            false => 256,
        };
        let visual = VisualConfig {
            image_size: fields.size("image_size", MAX_IMAGE)?,
            patch_size: fields.size("patch_size", MAX_IMAGE)?,
            width: fields.size("width", MAX_WIDTH)?,
            layers: fields.size("layers", MAX_LAYERS)?,
            heads: fields.size("heads", MAX_WIDTH)?,
            mlp_ratio: fields.real("mlp_ratio", 0.0, 64.0)?,
            output_dim: fields.size("output_dim", MAX_WIDTH)?,
            image_start_id: fields.size("image_start_id", MAX_ROWS)? as u32,
            n_queries,
        };
        let VisualConfig { patch_size, width, heads, .. } = visual;
        fields.require("image_size", visual.image_size.is_multiple_of(patch_size), || {
            format!("a multiple of patch_size = {patch_size}")
        })?;
        fields.require("width", width.is_multiple_of(heads), || {
            format!("a multiple of heads = {heads}")
        })?;
        fields.require("mlp_ratio", (1..=MAX_WIDTH).contains(&visual.mlp_width()), || {
            format!("width x mlp_ratio from 1 to {MAX_WIDTH}, with width = {width}")
        })?;
        fields.require("n_queries", n_queries.isqrt().pow(2) == n_queries, || {
            "a square number: the queries lie on a grid".into()
        })?;
        let heads = visual.resampler_heads();
        fields.require("output_dim", visual.output_dim.is_multiple_of(heads), || {
            format!("a multiple of the resampler's {heads} heads (output_dim / 128)")
        })?;
        Ok(visual)
    }

    /// Patches along each side of the image.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches of an image.
    pub fn patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Elements of a patch: 3 x patch_size².
    pub fn patch_elements(&self) -> usize {
        3 * self.patch_size * self.patch_size
    }

    /// Width of a vision head.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }

    /// Width of the vision MLP: width x mlp_ratio, truncated as Python's `int`.
    pub fn mlp_width(&self) -> usize {
        (self.width as f64 * self.mlp_ratio) as usize
    }

    /// Heads of the resampler: output_dim / 128, but at least one. The original divides without
    /// the minimum and therefore cannot build a resampler narrower than 128.
    pub fn resampler_heads(&self) -> usize {
        (self.output_dim / 128).max(1)
    }

    /// Width of a resampler head.
    pub fn resampler_head_dim(&self) -> usize {
        self.output_dim / self.resampler_heads()
    }
}

/// The members of one JSON object, read with errors that say which one is wrong.
struct Fields<'a> {
    path: &'a Path,
    section: &'static str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn section(&self, name: &'static str) -> Result<Fields<'a>> {
        match self.map.get(name) {
            Some(Value::Object(map)) => Ok(Fields { path: self.path, section: name, map }),
            other => Err(self.wrong(name, other, "an object (a Qwen-VL model has one)".into())),
        }
    }

    fn size(&self, name: &str, max: usize) -> Result<usize> {
        let value = self.map.get(name);
        let size = value.and_then(Value::as_u64).filter(|n| (1..=max as u64).contains(n));
        size.map(|n| n as usize)
            .ok_or_else(|| self.wrong(name, value, format!("a whole number from 1 to {max}")))
    }

    fn real(&self, name: &str, min: f64, max: f64) -> Result<f64> {
        let value = self.map.get(name);
        let real = value.and_then(Value::as_f64).filter(|x| (min..=max).contains(x));
        real.ok_or_else(|| {
            let expected = if min == max {
                format!("{min}, the only value supported")
            } else {
                format!("a number from {min} to {max}")
            };
            self.wrong(name, value, expected)
        })
    }

    fn flag(&self, name: &str) -> Result<bool> {
        let value = self.map.get(name);
        value
            .and_then(Value::as_bool)
            .ok_or_else(|| self.wrong(name, value, "true or false".into()))
    }

    /// A switch of which silkie has one position; absent, it stands there.
    fn only(&self, name: &str, supported: bool) -> Result<bool> {
        let value = self.map.get(name);
        match value.map_or(Some(supported), Value::as_bool) {
            Some(got) if got == supported => Ok(supported),
            _ => Err(self.wrong(name, value, format!("{supported}, the only value supported"))),
        }
    }

    fn require(&self, name: &str, holds: bool, expected: impl Fn() -> String) -> Result<()> {
        let value = match name.split_once('.') {
            Some((section, name)) => self.map.get(section).and_then(|s| s.get(name)),
            None => self.map.get(name),
        };
        if holds { Ok(()) } else { Err(self.wrong(name, value, expected())) }
    }

    fn wrong(&self, name: &str, value: Option<&Value>, expected: String) -> Error {
        let dot = if self.section.is_empty() { "" } else { "." };
        let got = value.map_or("nothing".into(), |value| match value {
            Value::Object(_) => "an object".into(),
            Value::Array(_) => "a list".into(),
            value => value.to_string().chars().take(60).collect::<String>(),
        });
        let at = format!("field {}{dot}{name}", self.section);
        Error::file(self.path, at, format!("expected {expected}, got {got}"))
    }
}
