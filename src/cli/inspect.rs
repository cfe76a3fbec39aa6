//! `silkie inspect`: what is in a folder of shards.

use std::path::PathBuf;

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::print_json;
use crate::data::image::{Rgb, write_png};
use crate::data::inspect::{
    NAMED_FLAGS, Statistics, branch_text, flag_names, record_json, trunk_text,
};
use crate::data::shard::{Dataset, ImageRef, VERSION};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// Show what is in a folder of shards
///
/// Without flags: the header and statistics. --record shows one record as text, scored parts
/// between ⟦ and ⟧; --image tells where a stored picture came from, and with --out writes it as
/// PNG; --verify reads every byte and compares every checksum.
///
///   silkie inspect shards --record 0
///   silkie inspect shards --image 0 --out picture.png
///
/// With --json the last line of stdout is one object: version, target {image_size, n_image_slots,
/// vocab_size, tokenizer, template, truncation}, fingerprint, settings, shards, records, images,
/// distinct_images, branches, rated, pairs, scored_tokens, flagged, tokens {trunk, branch: {mean,
/// median, p99, max}}, bytes, and on request verified, record, image.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Inspect {
    /// Folder made by `silkie prepare`
    #[arg(value_name = "SHARDS")]
    shards: PathBuf,
    /// Show this record, counted from 0
    #[arg(long, value_name = "N")]
    record: Option<usize>,
    /// Show this image, counted from 0
    #[arg(long, value_name = "N")]
    image: Option<usize>,
    /// Write that image to this PNG file
    #[arg(long, value_name = "PNG", requires = "image")]
    out: Option<PathBuf>,
    /// Compare every checksum
    #[arg(long)]
    verify: bool,
    /// Model folder with the tokenizer, where it was moved
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Print one JSON object as well
    #[arg(long)]
    json: bool,
}

impl Inspect {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let data = Dataset::open(&self.shards)?;
        let mut report = overview(&data);
        if self.verify {
            verify(&data)?;
            report.insert("verified".into(), true.into());
        }
        if let Some(n) = self.record {
            report.insert("record".into(), self.show_record(&data, n)?);
        }
        if let Some(n) = self.image {
            report.insert("image".into(), self.show_image(&data, n)?);
        }
        print_json(self.json, &report);
        Ok(())
    }

    fn show_record(&self, data: &Dataset, n: usize) -> Result<Value> {
        below("--record", n, data.len())?;
        let record = data.record(n);
        let tokenizer = self.tokenizer(data)?;
        println!("\nrecord {n}: {} line {}, id {:?}", record.file, record.line, record.id);
        for name in flag_names(&record) {
            println!("  {name}");
        }
        let text = trunk_text(data, &record, &tokenizer);
        println!("  trunk, {} tokens: {}", record.trunk.len(), one_line(&text));
        for (i, branch) in record.branches.iter().enumerate() {
            let scored = branch.scored.iter().filter(|&&s| s == 1).count();
            let text = one_line(&branch_text(branch, &tokenizer));
            let score = match branch.score {
                score if score.is_nan() => "no score".into(),
                score => format!("score {score:.3}"),
            };
            println!(
                "  branch {i}, {:?}, {score}, {} tokens, {scored} scored: {text}",
                branch.model,
                branch.tokens.len()
            );
        }
        for pair in record.pairs {
            println!("  pair: branch {} over branch {}", pair.chosen, pair.rejected);
        }
        Ok(record_json(data, &record, Some(&tokenizer)))
    }

    fn show_image(&self, data: &Dataset, n: usize) -> Result<Value> {
        below("--image", n, data.images())?;
        let image = ImageRef(n as u32);
        let entry = data.image_entry(image);
        println!(
            "\nimage {n}: from {} x {} pixels, a file of {}",
            entry.width,
            entry.height,
            HumanBytes(entry.file_bytes)
        );
        if let Some(out) = &self.out {
            let (width, height) = (data.image_size(), data.image_size());
            write_png(out, &Rgb { width, height, pixels: data.image(image).to_vec() })?;
            println!("  written to {}", out.display());
        }
        Ok(json!({
            "number": n,
            "width": entry.width,
            "height": entry.height,
            "file_bytes": entry.file_bytes,
        }))
    }

    /// The tokenizer the shards were made with, from where it was then or where it is now.
    fn tokenizer(&self, data: &Dataset) -> Result<Tokenizer> {
        let noted = data.settings()["model"].as_str().map(PathBuf::from);
        let model = self.model.clone().or(noted).unwrap_or_default();
        let tokenizer = Tokenizer::open(&model, data.n_image_slots()).map_err(|error| {
            Error::Usage(format!("{error}; pass --model with the folder of the tokenizer"))
        })?;
        let (expected, got) = (data.target().tokenizer, tokenizer.fingerprint());
        if got != expected {
            let message = format!(
                "tokenizer: expected {expected:016x}, got {got:016x}; pass --model with the one \
                 the shards were made with"
            );
            return Err(Error::file(model, "", message));
        }
        Ok(tokenizer)
    }
}

fn below(flag: &str, n: usize, count: usize) -> Result<()> {
    if n < count {
        return Ok(());
    }
    Err(Error::Usage(format!("{flag} {n}: expected less than {count}, the number of them")))
}

/// Control characters as escapes, so that a text stays on its line.
fn one_line(text: &str) -> String {
    let escaped = |c: char| match c.is_control() {
        true => c.escape_default().collect(),
        false => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// Prints header and statistics, and returns them.
fn overview(data: &Dataset) -> Map<String, Value> {
    let (target, all) = (data.target(), Statistics::of(data));
    let line = |name: &str, value: String| println!("{name:<18} {value}");
    let count = |n: u64| HumanCount(n).to_string();
    line("format", format!("version {VERSION}, fingerprint {:016x}", data.fingerprint()));
    line(
        "made for",
        format!(
            "{0} x {0} pixels, {1} image slots, {2} token ids",
            target.image_size,
            target.n_image_slots,
            count(target.vocab_size.into())
        ),
    );
    line(
        "fingerprints",
        format!(
            "tokenizer {:016x}, template {:016x}, truncation {:016x}",
            target.tokenizer, target.template, target.truncation
        ),
    );
    line("settings", data.settings().to_string());
    line("shards", format!("{}, {}", count(data.shards().len() as u64), HumanBytes(data.bytes())));
    line("records", count(data.len() as u64));
    line("images", format!("{}, distinct {}", count(all.images), count(data.images() as u64)));
    line("branches", format!("{}, rated {}", count(all.branches), count(all.rated)));
    line("pairs", count(all.pairs));
    let flagged = NAMED_FLAGS.iter().zip(all.flagged).map(|((_, name), n)| (*name, n));
    for (name, n) in flagged.clone().filter(|&(_, n)| n > 0) {
        line(name, format!("{} records", count(n)));
    }
    for (name, lengths) in [("tokens per trunk", &all.trunk), ("tokens per branch", &all.branch)] {
        let s = lengths.spread();
        let text = format!("mean {:.1}, median {}, p99 {}, max {}", s.mean, s.median, s.p99, s.max);
        line(name, text);
    }
    line("scored tokens", count(all.scored_tokens));
    let report = json!({
        "version": VERSION,
        "target": target,
        "fingerprint": data.fingerprint(),
        "settings": data.settings(),
        "shards": data.shards().len(),
        "records": data.len(),
        "images": all.images,
        "distinct_images": data.images(),
        "branches": all.branches,
        "rated": all.rated,
        "pairs": all.pairs,
        "scored_tokens": all.scored_tokens,
        "flagged": flagged.collect::<std::collections::BTreeMap<_, _>>(),
        "tokens": { "trunk": all.trunk.spread(), "branch": all.branch.spread() },
        "bytes": data.bytes(),
    });
    report.as_object().cloned().unwrap_or_default()
}

fn verify(data: &Dataset) -> Result<()> {
    let style = ProgressStyle::with_template("{bar:30} {bytes} of {total_bytes}, ETA {eta}");
    let style = style.unwrap_or(ProgressStyle::default_bar());
    let bar = ProgressBar::new(data.bytes()).with_style(style);
    let checked = data.verify(|shard| bar.inc(shard.bytes));
    bar.finish_and_clear();
    checked?;
    println!("{:<18} every checksum agrees", "verified");
    Ok(())
}
