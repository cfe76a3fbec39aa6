//! Preparing: JSONL records and pictures → shards, on all cores, in bounded memory.
//!
//! Lines go through in batches. Every line of a batch is parsed, paired, tokenised and given its
//! pictures (read, hashed, decoded, resized) on some core, while the batch before is written in
//! order; so the bytes do not depend on the number of threads. What cannot be used is named in
//! `rejects.jsonl`. A shard is renamed into place when it is full, then `dataset.json` says so: an
//! interrupted run leaves whole shards, and the same command goes on after the last of them.

mod line;
mod output;
mod summary;

use std::path::{Path, PathBuf};

use serde::Serialize;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::data::image::MAX_PIXELS;
use crate::data::pictures::Pictures;
use crate::data::records::{Line, Lines};
use crate::data::shard::Target;
use crate::data::template::{self, Limits, Scored, Truncation};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};

pub use summary::{Lengths, Reason, Reject, Spread, Summary};

/// Lines that are worked on together. Enough to keep many cores busy, few enough that their
/// decoded pictures (0.6 MB each at 448 pixels) stay small beside a model.
const BATCH: usize = 128;

/// What decides the content of the shards, besides the input files and the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Longest path and trunk in tokens, and what is cut beyond.
    pub limits: Limits,
    /// Which tokens of a response count.
    pub scored: Scored,
    /// Keep records whose prompt or responses contain the text of special tokens.
    pub keep_special_text: bool,
    /// Largest picture that is decoded.
    pub max_pixels: u64,
    /// A shard is closed at this many records …
    pub shard_records: usize,
    /// … or bytes.
    pub shard_bytes: u64,
}

impl Options {
    /// The published run's lengths, images never cut, shards of at most 1,024 records or 1 GiB.
    pub const DEFAULT: Options = Options {
        limits: Limits {
            max_length: 2048,
            max_prompt_length: 1024,
            truncation: Truncation::KeepImage,
        },
        scored: Scored::Template,
        keep_special_text: false,
        max_pixels: MAX_PIXELS,
        shard_records: 1024,
        shard_bytes: 1 << 30,
    };
}

/// What to prepare, for which model, and where to put it.
pub struct Job<'a> {
    /// JSONL files, read in this order.
    pub records: &'a [PathBuf],
    /// Where their pictures are; records that show one are rejected without it.
    pub pictures: Option<&'a Pictures>,
    /// The model's tokenizer; knows the number of slots of an image.
    pub tokenizer: &'a Tokenizer,
    /// The model's folder; only noted, for `silkie inspect`.
    pub model: &'a Path,
    /// The model's `visual.image_size`.
    pub image_size: usize,
    /// The model's `vocab_size`.
    pub vocab_size: usize,
    /// The folder of the shards.
    pub out: &'a Path,
    /// What decides the content.
    pub options: Options,
    /// The first record that cannot be used is an error.
    pub strict: bool,
    /// Start over whatever is in the folder.
    pub force: bool,
}

/// How far a preparation is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Bytes of the record files behind us.
    pub bytes: u64,
    /// Bytes of the record files.
    pub total_bytes: u64,
    /// Records written.
    pub records: u64,
    /// Records rejected.
    pub rejected: u64,
}

/// Runs `job`; `progress` hears of every batch. `stop` is asked between batches: once it says yes,
/// the run ends with [`Error::Interrupted`].
pub fn run(
    job: &Job<'_>,
    stop: &dyn Fn() -> bool,
    mut progress: impl FnMut(Progress),
) -> Result<Summary> {
    let target = target(job)?;
    let inputs: Vec<Input> =
        job.records.iter().map(|path| Input::read(path)).collect::<Result<_>>()?;
    let mut output = output::Output::open(job, target, settings(job, &inputs))?;
    if output.is_complete() {
        return Ok(output.summary());
    }
    let total_bytes = inputs.iter().map(|input| input.bytes).sum();
    let maker = line::Maker::new(job, output.known_images());
    let mut lines = SourceLines::new(job.records);
    let mut bytes = lines.skip_lines(output.lines_done())?;
    let mut made = Vec::new();
    loop {
        if stop() {
            return Err(output.interrupted());
        }
        let batch: Vec<SourceLine> = lines.by_ref().take(BATCH).collect::<Result<_>>()?;
        let done = batch.is_empty();
        bytes += batch.iter().map(|line| line.bytes).sum::<u64>();
        let written = || output.write(std::mem::take(&mut made), &maker);
        let (written, next) = rayon::join(written, || maker.make(batch));
        written?;
        made = next;
        let (records, rejected) = output.counts();
        progress(Progress { bytes, total_bytes, records, rejected });
        if done {
            return output.finish();
        }
    }
}

/// What the shards of `job` are made for.
fn target(job: &Job<'_>) -> Result<Target> {
    let tokenizer = job.tokenizer;
    if tokenizer.vocab_size() > job.vocab_size {
        return Err(Error::Usage(format!(
            "the tokenizer has token ids up to {}, the model's vocab_size is {}: expected ids below \
             it; take the tokenizer that belongs to the model",
            tokenizer.vocab_size() - 1,
            job.vocab_size
        )));
    }
    let small = |n: usize, what: &str| {
        u32::try_from(n).map_err(|_| Error::Usage(format!("{what} {n} is beyond any model")))
    };
    let Options { limits, scored, .. } = job.options;
    let of_template = format!("version {} {scored:?}", template::VERSION);
    Ok(Target {
        image_size: small(job.image_size, "image_size")?,
        n_image_slots: small(tokenizer.n_image_slots(), "n_queries")?,
        vocab_size: small(job.vocab_size, "vocab_size")?,
        reserved: 0,
        tokenizer: tokenizer.fingerprint(),
        template: xxh3_64(of_template.as_bytes()),
        truncation: xxh3_64(format!("{limits:?}").as_bytes()),
    })
}

/// The setting that may change between runs: the shards know the tokenizer by its content.
const MODEL: &str = "model";

/// Everything that must be equal for a run to go on where another stopped, in readable form.
fn settings(job: &Job<'_>, inputs: &[Input]) -> serde_json::Value {
    let Options { limits, scored, keep_special_text, max_pixels, shard_records, shard_bytes } =
        job.options;
    serde_json::json!({
        "records": inputs,
        "images": job.pictures.map(|p| p.root().to_string_lossy()),
        MODEL: job.model.canonicalize().unwrap_or(job.model.into()).to_string_lossy(),
        "truncation": format!("{:?}", limits.truncation),
        "max_length": limits.max_length,
        "max_prompt_length": limits.max_prompt_length,
        "scored": format!("{scored:?}"),
        "keep_special_text": keep_special_text,
        "max_pixels": max_pixels,
        "shard_records": shard_records,
        "shard_bytes": shard_bytes,
    })
}

/// A record file, as the manifest knows it.
#[derive(Serialize)]
struct Input {
    file: String,
    bytes: u64,
    xxh3: String,
}

impl Input {
    fn read(path: &Path) -> Result<Input> {
        use std::io::Read;
        let io = |e| Error::io(path, "read the records", e);
        let mut file = std::fs::File::open(path).map_err(io)?;
        let (mut hash, mut bytes, mut buffer) = (Xxh3::new(), 0, vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer).map_err(io)? {
                0 => break,
                n => {
                    hash.update(&buffer[..n]);
                    bytes += n as u64;
                }
            }
        }
        Ok(Input { file: file_name(path), bytes, xxh3: format!("{:016x}", hash.digest()) })
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// A line on its way: which file, and what was read.
struct SourceLine {
    /// Index in [`Job::records`].
    file: usize,
    /// The line, or why it cannot be read as one.
    line: std::result::Result<Line, Error>,
    /// Its share of the file, for the progress bar.
    bytes: u64,
}

/// The lines of all files, one after another.
struct SourceLines<'a> {
    paths: &'a [PathBuf],
    file: usize,
    open: Option<Lines>,
}

impl<'a> SourceLines<'a> {
    fn new(paths: &'a [PathBuf]) -> Self {
        SourceLines { paths, file: 0, open: None }
    }

    /// Passes over the first `n` lines; returns their bytes.
    fn skip_lines(&mut self, n: u64) -> Result<u64> {
        let mut bytes = 0;
        for line in self.by_ref().take(n as usize) {
            bytes += line?.bytes;
        }
        Ok(bytes)
    }
}

impl Iterator for SourceLines<'_> {
    type Item = Result<SourceLine>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let path = self.paths.get(self.file)?;
            if self.open.is_none() {
                match Lines::open(path) {
                    Ok(lines) => self.open = Some(lines),
                    Err(error) => return Some(Err(error)),
                }
            }
            let file = self.file;
            match self.open.as_mut().and_then(Iterator::next) {
                Some(Err(error @ Error::Io { .. })) => return Some(Err(error)),
                Some(line) => {
                    let bytes = line.as_ref().map_or(0, |line| line.bytes.len() as u64 + 1);
                    return Some(Ok(SourceLine { file, line, bytes }));
                }
                None => (self.open, self.file) = (None, file + 1),
            }
        }
    }
}
