//! `silkie prepare`: records and pictures → shards.

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

use super::{interrupt, print_json};
use crate::data::pictures::Pictures;
use crate::data::prepare::{self, Job, Options, Progress, Spread, Summary};
use crate::data::template::{Limits, Scored, Truncation};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;

/// Turn records and pictures into shards that `train` maps
///
/// Reads JSONL: VLFeedback records (completions as a list of objects or an object of lists), pairs
/// {"prompt","image"|"images","chosen","rejected"} or instructions {"prompt","image"|"images",
/// "response"}. Every two responses whose mean ratings differ are a pair. What cannot be used is
/// named, with line and reason, in OUT/rejects.jsonl. Interrupted, run the same command again:
/// finished shards are kept.
///
///   silkie prepare --records vlfeedback_80k.jsonl --images merged_images.zip \
///       --model Qwen-VL-Chat --out shards
///
/// With --json the last line of stdout is one object: read (records in the files), records (written),
/// rejected, reject_reasons {one key per reason}, images (shown), distinct_images, responses,
/// branches (distinct responses), pairs, ties, unrated, dropped_responses {one key per reason},
/// truncated {prompts, responses, lost_images}, tokens {trunk, branch: {mean, median, p99, max}},
/// shards, bytes, resumed_records, seconds.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Prepare {
    /// JSONL files of records
    #[arg(long, required = true, num_args = 1.., value_name = "JSONL", help_heading = "Data")]
    records: Vec<PathBuf>,
    /// Folder or zip of their pictures
    #[arg(long, value_name = "DIR|ZIP", help_heading = "Data")]
    images: Option<PathBuf>,
    /// Folder to fill
    #[arg(long, value_name = "SHARDS", help_heading = "Data")]
    out: PathBuf,
    /// Model folder: config.json and qwen.tiktoken or tokenizer.json
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    model: PathBuf,
    /// Longest prompt + response, tokens
    #[arg(long, default_value_t = 2048, value_name = "N", help_heading = "Lengths")]
    max_length: usize,
    /// Longest prompt where something must be cut, tokens
    #[arg(long, default_value_t = 1024, value_name = "N", help_heading = "Lengths")]
    max_prompt_length: usize,
    /// Where to cut: never into an image, or as the published script did
    #[arg(long, value_enum, default_value = "keep-image", help_heading = "Lengths")]
    truncation: Cut,
    /// Trim records that are too long, or drop them
    #[arg(long, value_enum, default_value = "trim", help_heading = "Lengths")]
    too_long: TooLong,
    /// Score im_start, im_end, newline and endoftext, as published
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL",
          help_heading = "Content")]
    score_template: bool,
    /// Records with text of special tokens
    #[arg(long, value_enum, default_value = "drop", help_heading = "Content")]
    special_text: SpecialText,
    /// Largest picture, pixels
    #[arg(long, default_value_t = Options::DEFAULT.max_pixels, value_name = "N",
          help_heading = "Content")]
    max_pixels: u64,
    /// Most records in a shard
    #[arg(long, default_value_t = Options::DEFAULT.shard_records, value_name = "N",
          value_parser = at_least_one, help_heading = "Output")]
    shard_records: usize,
    /// A shard is closed beyond this size, MiB
    #[arg(long, default_value_t = Options::DEFAULT.shard_bytes >> 20, value_name = "MIB",
          help_heading = "Output")]
    shard_mib: u64,
    /// Stop at the first record that cannot be used
    #[arg(long, help_heading = "Output")]
    strict: bool,
    /// Start over whatever SHARDS holds
    #[arg(long, help_heading = "Output")]
    force: bool,
    /// Print the summary as JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Cut {
    KeepImage,
    Published,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum TooLong {
    Trim,
    Drop,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum SpecialText {
    Drop,
    Keep,
}

fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a number of at least 1".into())
}

impl Prepare {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        interrupt::install();
        let options = self.options()?;
        let config = ModelConfig::read(&self.model)?;
        let tokenizer = Tokenizer::open(&self.model, config.visual.n_queries)?;
        let pictures = self.images.as_ref().map(Pictures::open).transpose()?;
        let job = Job {
            records: &self.records,
            pictures: pictures.as_ref(),
            tokenizer: &tokenizer,
            model: &self.model,
            image_size: config.visual.image_size,
            vocab_size: config.vocab_size,
            out: &self.out,
            options,
            strict: self.strict,
            force: self.force,
        };
        let bar = progress_bar();
        let result = prepare::run(&job, &interrupt::requested, |progress| show(&bar, progress));
        bar.finish_and_clear();
        let summary = result?;
        print_table(&summary, &self.out.to_string_lossy());
        print_json(self.json, &summary.to_json());
        Ok(())
    }

    fn options(&self) -> Result<Options> {
        let truncation = match (self.truncation, self.too_long) {
            (Cut::KeepImage, TooLong::Trim) => Truncation::KeepImage,
            (Cut::KeepImage, TooLong::Drop) => Truncation::Drop,
            (Cut::Published, TooLong::Trim) => Truncation::Published,
            (Cut::Published, TooLong::Drop) => {
                let message = "--truncation published always trims: expected --too-long trim";
                return Err(Error::Usage(message.into()));
            }
        };
        let (max_length, max_prompt_length) = (self.max_length, self.max_prompt_length);
        if max_prompt_length >= max_length {
            return Err(Error::Usage(format!(
                "--max-prompt-length {max_prompt_length}: expected less than --max-length {max_length}"
            )));
        }
        Ok(Options {
            limits: Limits { max_length, max_prompt_length, truncation },
            scored: if self.score_template { Scored::Template } else { Scored::Answer },
            keep_special_text: self.special_text == SpecialText::Keep,
            max_pixels: self.max_pixels,
            shard_records: self.shard_records,
            shard_bytes: self.shard_mib.saturating_mul(1 << 20),
        })
    }
}

/// On stderr; the length is that of the record files in bytes.
fn progress_bar() -> ProgressBar {
    let template = "{bar:30} {percent:>3} %  {msg}  ETA {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_length(progress.total_bytes);
    bar.set_position(progress.bytes);
    let rate = progress.records as f64 / bar.elapsed().as_secs_f64().max(1e-3);
    let (records, rejected) = (HumanCount(progress.records), HumanCount(progress.rejected));
    bar.set_message(format!("{records} records, {rejected} rejected, {rate:.0} records/s"));
}

fn print_table(summary: &Summary, out: &str) {
    let line = |name: &str, value: String| println!("{name:<18} {value}");
    let count = |n: u64| HumanCount(n).to_string();
    let reasons = |map: &std::collections::BTreeMap<prepare::Reason, u64>| {
        let each = map.iter().map(|(reason, n)| format!("{} {reason}", count(*n)));
        each.collect::<Vec<_>>().join(", ")
    };
    let spread = |s: Spread| {
        format!("mean {:.1}, median {}, p99 {}, max {}", s.mean, s.median, s.p99, s.max)
    };
    line("records", format!("{}, of {} read", count(summary.records), count(summary.read())));
    if summary.resumed_records > 0 {
        line("  of them earlier", count(summary.resumed_records));
    }
    line(
        "images",
        format!("{}, distinct {}", count(summary.images), count(summary.distinct_images)),
    );
    line(
        "responses",
        format!("{}, distinct {}", count(summary.responses), count(summary.branches)),
    );
    line("pairs", count(summary.pairs));
    line("ties", count(summary.ties));
    line("unrated pairs", count(summary.unrated));
    line("rejected", count(summary.rejected_records()));
    if !summary.rejected.is_empty() {
        line("  by reason", reasons(&summary.rejected));
    }
    if !summary.dropped_responses.is_empty() {
        line("dropped responses", reasons(&summary.dropped_responses));
    }
    line(
        "cut",
        format!(
            "{} prompts, {} responses; {} images lost",
            count(summary.truncated_prompts),
            count(summary.truncated_responses),
            count(summary.lost_images)
        ),
    );
    line("tokens per trunk", spread(summary.trunk.spread()));
    line("tokens per branch", spread(summary.branch.spread()));
    line("written", format!("{} in {} shards, {out}", HumanBytes(summary.bytes), summary.shards));
    line("seconds", format!("{:.1}", summary.seconds));
}
