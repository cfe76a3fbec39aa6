//! A model folder from a preset: configuration, tokenizer, random weights.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::data::atomic;
use crate::data::tokenizer::{self, Specials, Tokenizer};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::init::{Changes, Init, Preset, Scales};
use crate::model::names;
use crate::model::weights::write::SHARD_BYTES;
use crate::tensor::DType;

/// Most tokens a trained vocabulary gets when nobody says how many.
const TRAINED_TOKENS: usize = 4096;
/// A tiny model's tables have a multiple of this many rows.
const ROWS_STEP: usize = 64;
/// `<|endoftext|>` of the published tokenizer, for folders made without one.
const PUBLISHED_EOS: u32 = 151_643;

/// What to make.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Sizes and scales.
    pub preset: Preset,
    /// Seed of the weights.
    pub seed: u64,
    /// Where the tokenizer comes from.
    pub vocabulary: Vocabulary,
    /// Rows of the embedding and the head; by default the preset's, but for `tiny` and where the
    /// tokenizer needs more: as many as the tokenizer needs.
    pub vocab_size: Option<usize>,
    /// Blocks of the decoder, by default the preset's.
    pub layers: Option<usize>,
    /// Blocks of the vision tower, by default the preset's.
    pub vision_layers: Option<usize>,
    /// Storage of the weights.
    pub dtype: DType,
    /// How the weights start, by default [`Preset::scales`].
    pub scales: Option<Scales>,
}

/// Where a tokenizer comes from.
#[derive(Clone, Debug)]
pub enum Vocabulary {
    /// Nowhere: the folder gets none.
    Absent,
    /// A copy of this `qwen.tiktoken` or `tokenizer.json`.
    File(PathBuf),
    /// A `tokenizer.json` trained on these texts.
    Train(Vec<String>),
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Created {
    /// The configuration as written.
    pub config: ModelConfig,
    /// Elements of all tensors.
    pub parameters: usize,
    /// Tokens of the tokenizer, if there is one.
    pub tokens: Option<usize>,
}

impl Recipe {
    /// A preset with nothing changed: bf16 for `qwen-vl-chat`, else f32; no tokenizer.
    pub fn new(preset: Preset, seed: u64) -> Self {
        let dtype = if preset == Preset::QwenVlChat { DType::Bf16 } else { DType::F32 };
        Recipe {
            preset,
            seed,
            vocabulary: Vocabulary::Absent,
            vocab_size: None,
            layers: None,
            vision_layers: None,
            dtype,
            scales: None,
        }
    }

    /// Writes the folder `out`, which must not exist, or be empty. `progress` is told, before
    /// anything is written, of 0 elements of the total, then of every piece and the total; it may
    /// end the work with an error, and `out` then does not appear.
    pub fn create(
        &self,
        out: &Path,
        mut progress: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Created> {
        let vocabulary = self.vocabulary()?;
        let tokenizer = vocabulary.as_ref().map(|(_, _, tokenizer)| tokenizer);
        let config = self.preset.config(&Changes {
            vocab_size: self.rows(tokenizer)?,
            image_start_id: tokenizer.map(|t| t.specials().img_start),
            layers: self.layers,
            vision_layers: self.vision_layers,
            dtype: self.dtype,
        })?;
        let eos = tokenizer.map_or(PUBLISHED_EOS, |t| t.specials().endoftext);
        let companions = |folder: &Path| {
            let put = |name: &str, bytes: &[u8]| atomic::write_bytes(folder.join(name), bytes);
            put("config.json", config.to_json().as_bytes())?;
            put("generation_config.json", generation_config(eos).as_bytes())?;
            vocabulary.as_ref().map_or(Ok(()), |(name, file, _)| put(name, file))
        };
        let specs = names::tensors(&config);
        let parameters = specs.iter().map(|t| t.shape.iter().product::<usize>()).sum();
        progress(0, parameters)?;
        let scales = self.scales.clone().unwrap_or_else(|| self.preset.scales(&config));
        let init = Init::new(&config, scales, self.seed);
        init.write(out, self.dtype, SHARD_BYTES, companions, |n| progress(n, parameters))?;
        Ok(Created { parameters, tokens: tokenizer.map(Tokenizer::vocab_size), config })
    }

    /// Name, content and meaning of the tokenizer's file.
    fn vocabulary(&self) -> Result<Option<(&'static str, Vec<u8>, Tokenizer)>> {
        let (name, file, source) = match &self.vocabulary {
            Vocabulary::Absent => return Ok(None),
            Vocabulary::File(path) => {
                let file = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
                let json = path.extension().is_some_and(|extension| extension == "json");
                let name = if json { "tokenizer.json" } else { "qwen.tiktoken" };
                (name, file, path.clone())
            }
            Vocabulary::Train(texts) => {
                let most = self.vocab_size.unwrap_or(TRAINED_TOKENS);
                let file = tokenizer::train(texts.iter().cloned(), most)?;
                ("tokenizer.json", file, PathBuf::from("trained tokenizer.json"))
            }
        };
        // The number of image slots matters to encoding only, which is not done here.
        let opened = match name {
            "tokenizer.json" => Tokenizer::from_json(&file, 1),
            _ => Tokenizer::from_tiktoken(&file, 1),
        };
        let opened = opened.map_err(|message| Error::file(&source, "", message))?;
        let Specials { img_start, img_end, img_pad, .. } = opened.specials();
        if [img_end, img_pad] != [img_start + 1, img_start + 2] {
            let message = format!(
                "<img>, </img>, <imgpad>: expected neighbouring ids, got {img_start}, {img_end}, \
                 {img_pad}"
            );
            return Err(Error::file(&source, "", message));
        }
        Ok(Some((name, file, opened)))
    }

    fn rows(&self, tokenizer: Option<&Tokenizer>) -> Result<Option<usize>> {
        let Some(tokens) = tokenizer.map(Tokenizer::vocab_size) else {
            return Ok(self.vocab_size);
        };
        match self.vocab_size {
            Some(rows) if rows < tokens => Err(Error::Usage(format!(
                "vocab size: expected at least {tokens} rows for the tokenizer's ids, got {rows}"
            ))),
            Some(rows) => Ok(Some(rows)),
            None if self.preset == Preset::Tiny => Ok(Some(tokens.next_multiple_of(ROWS_STEP))),
            None => Ok((tokens > Preset::ROWS).then(|| tokens.next_multiple_of(ROWS_STEP))),
        }
    }
}

/// The published generation_config.json, with this model's end of text.
fn generation_config(eos: u32) -> String {
    let config = json!({
        "chat_format": "chatml",
        "do_sample": true,
        "eos_token_id": eos,
        "max_new_tokens": 512,
        "max_window_size": 6144,
        "pad_token_id": eos,
        "top_k": 0,
        "top_p": 0.3,
        "transformers_version": "4.31.0"
    });
    format!("{config:#}\n")
}
