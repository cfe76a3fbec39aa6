//! LoRA adapters in PEFT's form: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! An adapted module computes `W x + scale · B A x`, `A [r, in]`, `B [out, r]`, scale = alpha / r.
//! A module is adapted when its name is, or ends with a dot and, one of `target_modules`
//! (PEFT's rule): `attn.c_proj` therefore leaves `mlp.c_proj` alone.

use std::collections::HashMap;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

use crate::data::atomic;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::names;
use crate::model::weights::write::{self, Output};
use crate::model::weights::{MappedTensor, safetensors, torch};
use crate::tensor::DType;

/// What PEFT puts before a module's name.
const PREFIX: &str = "base_model.model.";
/// The largest rank; beyond the width of any weight there is nothing to adapt.
const MAX_RANK: usize = 1 << 16;
/// The projections of a decoder block, all of which can be adapted.
const PROJECTIONS: [&str; 5] = ["attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj"];

/// Rank, scale and place of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank: rows of A.
    pub r: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Which modules are adapted, by name or the end of it.
    pub target_modules: Vec<String>,
}

impl Default for LoraConfig {
    /// The published recipe.
    fn default() -> Self {
        let target_modules = ["c_attn", "attn.c_proj", "w1", "w2"].map(String::from).to_vec();
        LoraConfig { r: 64, alpha: 16.0, target_modules }
    }
}

/// A module that an adapter acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name without `.weight`, as in `transformer.h.0.attn.c_attn`.
    pub module: String,
    /// Outputs: rows of W and B.
    pub rows: usize,
    /// Inputs: columns of W and A.
    pub cols: usize,
}

impl Target {
    /// Name of A in the file, `[r, cols]`.
    pub fn name_a(&self) -> String {
        format!("{PREFIX}{}.lora_A.weight", self.module)
    }

    /// Name of B in the file, `[rows, r]`.
    pub fn name_b(&self) -> String {
        format!("{PREFIX}{}.lora_B.weight", self.module)
    }
}

impl LoraConfig {
    /// alpha / r.
    pub fn scale(&self) -> f32 {
        (self.alpha / self.r as f64) as f32
    }

    /// The adapted modules of a model, in the order of its tensors.
    ///
    /// Errors when r or alpha is impossible, or a target matches nothing, or something other than
    /// a projection of the decoder.
    pub fn targets(&self, model: &ModelConfig) -> Result<Vec<Target>> {
        if !(1..=MAX_RANK).contains(&self.r) || !self.alpha.is_finite() {
            return Err(Error::Usage(format!(
                "lora: expected r from 1 to {MAX_RANK} and a finite alpha, got r {} and alpha {}",
                self.r, self.alpha
            )));
        }
        let specs = names::tensors(model);
        let modules = specs.iter().filter_map(|spec| match spec.shape[..] {
            [rows, cols] => spec.name.strip_suffix(".weight").map(|module| (module, rows, cols)),
            _ => None,
        });
        let (mut targets, mut used) = (Vec::new(), vec![false; self.target_modules.len()]);
        for (module, rows, cols) in modules {
            let Some(i) = self.target_modules.iter().position(|t| matches(module, t)) else {
                continue;
            };
            if !is_decoder_projection(module) {
                return Err(Error::Usage(format!(
                    "lora: target {:?} matches {module}: expected projections of the decoder ({}) \
                     only; write the target longer",
                    self.target_modules[i],
                    PROJECTIONS.join(", ")
                )));
            }
            let hit = |(used, target): (&mut bool, &String)| *used |= matches(module, target);
            used.iter_mut().zip(&self.target_modules).for_each(hit);
            targets.push(Target { module: module.to_string(), rows, cols });
        }
        match used.iter().position(|used| !used) {
            Some(i) => Err(Error::Usage(format!(
                "lora: target {:?} matches no module: expected ends of names like {}",
                self.target_modules[i],
                PROJECTIONS.join(", ")
            ))),
            None if targets.is_empty() => {
                Err(Error::Usage("lora: expected at least one target module, got none".into()))
            }
            None => Ok(targets),
        }
    }

    fn to_json(&self, base: &str) -> Value {
        let whole = self.alpha.fract() == 0.0 && self.alpha.abs() < 1e15;
        let alpha = if whole { json!(self.alpha as i64) } else { json!(self.alpha) };
        json!({
            "auto_mapping": null,
            "base_model_name_or_path": base,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.r,
            "revision": null,
            "target_modules": self.target_modules,
            "task_type": "CAUSAL_LM"
        })
    }

    /// Reads an `adapter_config.json`; `path` is only named in errors.
    ///
    /// Errors name the field: missing, of the wrong kind, or a variant of LoRA that is not ours.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let map: Map<String, Value> = serde_json::from_str(text)
            .map_err(|e| Error::file(path, "", format!("expected one JSON object: {e}")))?;
        let wrong = |name: &str, expected: &str| {
            let got: String = map.get(name).unwrap_or(&Value::Null).to_string();
            let got: String = got.chars().take(60).collect();
            Error::file(path, format!("field {name}"), format!("expected {expected}, got {got}"))
        };
        // What would change the arithmetic, with the one value (besides absent) that does not.
        let fixed = [
            ("peft_type", json!("LORA")),
            ("bias", json!("none")),
            ("fan_in_fan_out", json!(false)),
            ("modules_to_save", json!([])),
            ("layers_to_transform", json!([])),
            ("use_rslora", json!(false)),
            ("use_dora", json!(false)),
            ("lora_bias", json!(false)),
            ("rank_pattern", json!({})),
            ("alpha_pattern", json!({})),
            ("exclude_modules", json!([])),
        ];
        for (name, only) in fixed {
            if map.get(name).is_some_and(|v| !v.is_null() && *v != only) {
                return Err(wrong(name, &format!("{only}, the only value supported")));
            }
        }
        let r = map.get("r").and_then(Value::as_u64).filter(|r| (1..=MAX_RANK as u64).contains(r));
        let alpha = map.get("lora_alpha").and_then(Value::as_f64);
        let targets = map.get("target_modules").and_then(Value::as_array);
        let targets = targets.and_then(|list| {
            list.iter().map(|t| t.as_str().map(String::from)).collect::<Option<Vec<_>>>()
        });
        Ok(LoraConfig {
            r: r.ok_or_else(|| wrong("r", &format!("a whole number from 1 to {MAX_RANK}")))?
                as usize,
            alpha: alpha.ok_or_else(|| wrong("lora_alpha", "a number"))?,
            target_modules: targets.ok_or_else(|| wrong("target_modules", "a list of names"))?,
        })
    }
}

/// An adapter in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// Rank, scale, place.
    pub config: LoraConfig,
    /// One per adapted module, in the order of [`LoraConfig::targets`].
    pub pairs: Vec<LoraPair>,
}

/// A and B of one module.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraPair {
    /// The module.
    pub target: Target,
    /// `[r, cols]`.
    pub a: Vec<f32>,
    /// `[rows, r]`.
    pub b: Vec<f32>,
}

impl Adapter {
    /// A fresh adapter: A uniform in ±1/√cols (PEFT's kaiming_uniform with a = √5), B zero.
    /// The numbers of a module depend on the seed and its place in the list alone.
    pub fn init(config: &LoraConfig, model: &ModelConfig, seed: u64) -> Result<Self> {
        let pair = |(stream, target): (usize, Target)| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(stream as u64);
            let bound = (target.cols as f32).sqrt().recip();
            let a = (0..config.r * target.cols).map(|_| rng.random_range(-bound..bound)).collect();
            let b = vec![0.0; target.rows * config.r];
            LoraPair { target, a, b }
        };
        let pairs = config.targets(model)?.into_iter().enumerate().map(pair).collect();
        Ok(Adapter { config: config.clone(), pairs })
    }

    /// Reads the adapter in `dir`, made for `model`: `adapter_model.safetensors`, or the `.bin` of
    /// older PEFT.
    ///
    /// Errors name the file and the tensor: missing, unknown, or of a shape that this model's
    /// module and r do not give.
    pub fn open(dir: impl AsRef<Path>, model: &ModelConfig) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join("adapter_config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|e| Error::io(&path, "read the adapter's configuration", e))?;
        let config = LoraConfig::parse(&path, &text)?;
        let targets = config.targets(model).map_err(|e| Error::file(&path, "", e.to_string()))?;
        let (path, pickled) =
            (dir.join("adapter_model.safetensors"), dir.join("adapter_model.bin"));
        let (path, tensors) = match !path.exists() && pickled.exists() {
            true => (&pickled, torch::open(&pickled)?),
            false => (&path, safetensors::open(&path)?),
        };
        let mut found: HashMap<&str, &MappedTensor> =
            tensors.iter().map(|t| (t.name(), t)).collect();
        let mut take = |name: String, shape: [usize; 2]| match found.remove(name.as_str()) {
            None => Err(Error::file(
                path,
                format!("tensor {name}"),
                "missing; is this adapter another model's?",
            )),
            Some(tensor) if tensor.shape() != shape => Err(Error::file(
                path,
                format!("tensor {name}"),
                format!(
                    "shape: expected {shape:?} by the model and r {}, got {:?}; is this adapter \
                     another model's?",
                    config.r,
                    tensor.shape()
                ),
            )),
            Some(tensor) => Ok(tensor.to_f32()),
        };
        let mut pairs = Vec::with_capacity(targets.len());
        for target in targets {
            let a = take(target.name_a(), [config.r, target.cols])?;
            let b = take(target.name_b(), [target.rows, config.r])?;
            pairs.push(LoraPair { target, a, b });
        }
        match found.keys().min() {
            None => Ok(Adapter { config, pairs }),
            Some(name) => Err(Error::file(
                path,
                format!("tensor {name}"),
                "no target module of this model; is this adapter another model's?",
            )),
        }
    }

    /// Writes the adapter into the folder `dir` (made if absent) so that PEFT opens it; `base` is
    /// the path it records as the base model's. Each file is replaced whole.
    pub fn write(&self, dir: impl AsRef<Path>, base: &Path) -> Result<()> {
        let dir = dir.as_ref();
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create the folder", e))?;
        let mut parts: Vec<(Output, &[f32])> = Vec::with_capacity(2 * self.pairs.len());
        let output =
            |name, shape: [usize; 2]| Output { name, shape: shape.to_vec(), dtype: DType::F32 };
        for LoraPair { target, a, b } in &self.pairs {
            parts.push((output(target.name_a(), [self.config.r, target.cols]), a));
            parts.push((output(target.name_b(), [target.rows, self.config.r]), b));
        }
        parts.sort_by(|(x, _), (y, _)| x.name.cmp(&y.name));
        let (outputs, data): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let mut data = data.into_iter();
        write::file(dir.join("adapter_model.safetensors"), &outputs, |_, sink| {
            data.next().map_or(Ok(()), |values| sink.floats(values))
        })?;
        let text = format!("{:#}\n", self.config.to_json(&base.to_string_lossy()));
        atomic::write_bytes(dir.join("adapter_config.json"), text.as_bytes())
    }
}

fn matches(module: &str, target: &str) -> bool {
    let before = module.strip_suffix(target);
    !target.is_empty() && before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn is_decoder_projection(module: &str) -> bool {
    module.starts_with("transformer.h.") && PROJECTIONS.iter().any(|p| matches(module, p))
}
