//! `silkie init`: a model folder with random weights.

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::cli::writing::{Storage, bar, unless_stopped};
use crate::cli::{interrupt, print_json};
use crate::error::{Error, Result};
use crate::model::create::{Recipe, Vocabulary};
use crate::model::init::Preset;
use crate::model::names;

/// Write a model folder with seeded random weights, for tests and benches
///
/// The folder is a valid Hugging Face model: config.json with every key of the published one,
/// generation_config.json, safetensors shards and, with --text or --tokenizer, a tokenizer. The
/// same arguments give the same bytes. With --json the last line of stdout is an object with the
/// keys out, preset, tensors, parameters, bytes (of weights), vocab_size (rows of the embedding),
/// tokens (of the tokenizer, or null), seconds.
#[derive(Args)]
pub struct Init {
    /// Which model
    #[arg(long)]
    preset: Name,
    /// Folder to write; must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seed of the weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Train a tokenizer.json on this text; may be repeated
    #[arg(long, value_name = "FILE", conflicts_with = "tokenizer")]
    text: Vec<PathBuf>,
    /// Copy this tokenizer: qwen.tiktoken or tokenizer.json
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Rows of embedding and head [default: the preset's; tiny: what the tokenizer needs]
    #[arg(long, value_name = "N")]
    vocab_size: Option<usize>,
    /// Blocks of the decoder [default: the preset's]
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Blocks of the vision tower [default: the preset's]
    #[arg(long, value_name = "N")]
    vision_layers: Option<usize>,
    /// Storage of the weights [default: bf16 for qwen-vl-chat, else f32]
    #[arg(long)]
    dtype: Option<Storage>,
    /// Print a JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// The presets as arguments.
#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// The demo's: a quarter of a million parameters, 56-pixel pictures
    Tiny,
    /// For benches: real head sizes, pictures and vocabulary, 0.2 billion parameters
    Small,
    /// Qwen-VL-Chat: 9.7 billion parameters, 19.3 GB in bf16
    QwenVlChat,
}

#[derive(Serialize)]
struct Report {
    out: PathBuf,
    preset: &'static str,
    tensors: usize,
    parameters: usize,
    bytes: usize,
    vocab_size: usize,
    tokens: Option<usize>,
    seconds: f64,
}

impl Init {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let start = Instant::now();
        interrupt::install();
        let preset = match self.preset {
            Name::Tiny => Preset::Tiny,
            Name::Small => Preset::Small,
            Name::QwenVlChat => Preset::QwenVlChat,
        };
        let mut recipe = Recipe::new(preset, self.seed);
        recipe.dtype = self.dtype.map_or(recipe.dtype, Into::into);
        recipe.vocab_size = self.vocab_size;
        recipe.layers = self.layers;
        recipe.vision_layers = self.vision_layers;
        recipe.vocabulary = match (self.tokenizer, self.text.as_slice()) {
            (Some(file), _) => Vocabulary::File(file),
            (None, []) => Vocabulary::Absent,
            (None, files) => Vocabulary::Train(lines(files)?),
        };
        let mut progress: Option<ProgressBar> = None;
        let made = recipe.create(&self.out, |elements, total| {
            progress.get_or_insert_with(|| bar(total)).inc(elements as u64);
            unless_stopped()
        })?;
        progress.inspect(ProgressBar::finish_and_clear);
        let report = Report {
            out: self.out,
            preset: preset.name(),
            tensors: names::tensors(&made.config).len(),
            parameters: made.parameters,
            bytes: made.parameters * recipe.dtype.size(),
            vocab_size: made.config.vocab_size,
            tokens: made.tokens,
            seconds: start.elapsed().as_secs_f64(),
        };
        println!(
            "{}: preset {}, {} parameters in {} tensors, {:.1} MB in {:.1} s",
            report.out.display(),
            report.preset,
            report.parameters,
            report.tensors,
            report.bytes as f64 / 1e6,
            report.seconds
        );
        match report.tokens {
            Some(tokens) => println!("tokenizer: {tokens} tokens, {} rows", report.vocab_size),
            None => println!("tokenizer: none; give --text or --tokenizer, or copy one there"),
        }
        print_json(self.json, &report);
        Ok(())
    }
}

/// The lines of all files.
fn lines(files: &[PathBuf]) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for path in files {
        let text =
            std::fs::read_to_string(path).map_err(|e| Error::io(path, "read the text", e))?;
        lines.extend(text.lines().map(String::from));
    }
    Ok(lines)
}
