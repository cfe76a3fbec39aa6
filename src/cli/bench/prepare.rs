//! `silkie bench prepare`: records and pictures per second of one core.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use crate::cli::print_json;
use crate::data::pictures::Pictures;
use crate::data::prepare::{self, Job, Options};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;

/// Records per second of `prepare`, per core
///
/// Prepares the records again and again into a folder that is removed afterwards, all of it:
/// reading, pairing, tokenising, decoding, resizing, checksums, writing. Per core means by processor
/// time, so that other programs on the machine matter little. Loading the tokenizer is not counted.
/// tools/peers/prepare_peer.py does the same with PIL and tiktoken and prints the ratio.
///
/// With --json the last line of stdout is one object: threads, rounds, and of the median round
/// seconds, cpu_seconds, records (read), kept, pairs, images, trunk_tokens, branch_tokens,
/// records_per_core_second, images_per_core_second, tokens_per_core_second.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Prepare {
    /// JSONL file of records
    #[arg(long, value_name = "JSONL")]
    records: PathBuf,
    /// Folder or zip of their pictures
    #[arg(long, value_name = "DIR|ZIP")]
    images: PathBuf,
    /// Model folder: config.json and tokenizer
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Folder for the shards, which are removed, by default where the system puts temporary files
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Threads
    #[arg(long, default_value_t = 1, value_name = "N")]
    threads: usize,
    /// Rounds, of which the median counts
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: usize,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Prepare {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let config = ModelConfig::read(&self.model)?;
        let tokenizer = Tokenizer::open(&self.model, config.visual.n_queries)?;
        let pictures = Pictures::open(&self.images)?;
        let records = [self.records];
        let scratch = self.scratch.unwrap_or_else(std::env::temp_dir);
        let out = scratch.join(format!("silkie-bench-prepare-{}", std::process::id()));
        let job = Job {
            records: &records,
            pictures: Some(&pictures),
            tokenizer: &tokenizer,
            model: &self.model,
            image_size: config.visual.image_size,
            vocab_size: config.vocab_size,
            out: &out,
            options: Options::DEFAULT,
            strict: false,
            force: true,
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads.max(1)).build();
        let pool = pool.map_err(|e| Error::Run(format!("cannot start threads: {e}")))?;
        let round = || {
            let (wall, cpu) = (Instant::now(), cpu_seconds()?);
            let summary = prepare::run(&job, &|| false, |_| ())?;
            Ok((cpu_seconds()? - cpu, wall.elapsed().as_secs_f64(), summary))
        };
        let rounds: Result<Vec<_>> =
            pool.install(|| (0..self.rounds.max(1)).map(|_| round()).collect());
        // Removed whatever came of it; what went wrong is in `rounds`.
        let _ = std::fs::remove_dir_all(&out);
        let mut rounds: Vec<(f64, f64, prepare::Summary)> = rounds?;
        rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (cpu, wall, summary) = &rounds[rounds.len() / 2];
        let read = summary.read();
        let tokens = [summary.trunk.sum(), summary.branch.sum()];
        let per_core = |n: u64| n as f64 / cpu.max(1e-9);
        println!(
            "prepare  {read} records, {} kept  {wall:.3} s, {cpu:.3} s of processor time on {} threads",
            summary.records, self.threads
        );
        println!(
            "         per core and second: {:.1} records read, {:.1} pictures, {:.0} tokens",
            per_core(read),
            per_core(summary.distinct_images),
            per_core(tokens[0] + tokens[1])
        );
        let report = json!({
            "threads": self.threads,
            "rounds": self.rounds,
            "seconds": wall,
            "cpu_seconds": cpu,
            "records": read,
            "kept": summary.records,
            "pairs": summary.pairs,
            "images": summary.distinct_images,
            "trunk_tokens": tokens[0],
            "branch_tokens": tokens[1],
            "records_per_core_second": per_core(read),
            "images_per_core_second": per_core(summary.distinct_images),
            "tokens_per_core_second": per_core(tokens[0] + tokens[1]),
        });
        print_json(self.json, &report);
        Ok(())
    }
}

/// Processor time of this process so far, all threads, user and system.
fn cpu_seconds() -> Result<f64> {
    const PATH: &str = "/proc/self/stat";
    /// `USER_HZ`, which is 100 on every Linux that Rust's standard library runs on.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(PATH).map_err(|e| Error::io(PATH, "read", e))?;
    // The name in parentheses may hold spaces; user and system ticks are the 12th and 13th after it.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok());
    Ok(ticks.sum::<f64>() / TICKS_PER_SECOND)
}
