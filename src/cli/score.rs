//! `silkie score`: log-probabilities, rewards and pair accuracy of a data set.

use std::io::Write;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::{interrupt, only_cpu, print_json};
use crate::data::atomic;
use crate::error::{Error, Result};
use crate::train::score::{self, Options, RecordScore, Summary};

/// Score every response of a data set
///
/// Prints how often the preferred answer of a pair has the higher log-probability (ranking accuracy)
/// and, with --adapter, the higher reward beta (log pi - log pi_ref), the reference being the model
/// without the adapter. Ties count one half. --out gets one JSON object per record: record, file,
/// line, id, responses [{model, score, tokens, log_prob, reference_log_prob, reward}], pairs
/// [{chosen, rejected, ranked, right, margin}].
///
/// Keys of --json: records, responses, pairs, log_prob, ranking_accuracy, reward_accuracy, margin,
/// tokens, seconds.
#[derive(clap::Args)]
pub struct Score {
    /// HF directory of the model
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Adapter of it
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Shards that `silkie prepare` wrote for this model
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// JSONL with one record per line
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Factor of rewards [0.1]
    #[arg(long, value_name = "X", default_value_t = 0.1, hide_default_value = true)]
    beta: f64,
    /// Tokens that go through the model at once, at most [4096]
    #[arg(long, value_name = "N", default_value_t = 4096, hide_default_value = true)]
    token_budget: usize,
    /// auto or cpu [auto]
    #[arg(long, value_name = "DEVICE", default_value = "auto", hide_default_value = true)]
    device: String,
    /// Print a JSON object as the last line
    #[arg(long)]
    json: bool,
}

impl Score {
    /// Scores, writes, prints.
    pub fn run(self) -> Result<()> {
        only_cpu("score", &self.device)?;
        interrupt::install();
        let json = self.json;
        let options = Options {
            model: self.model,
            adapter: self.adapter,
            data: self.data,
            beta: self.beta,
            token_budget: self.token_budget,
        };
        let bar = bar();
        let stop = &interrupt::requested;
        let show = |total: usize| {
            bar.set_length(total as u64);
            bar.inc(1);
        };
        let summary = match &self.out {
            None => score::run(&options, stop, |_, total| {
                show(total);
                Ok(())
            })?,
            Some(path) => {
                let mut summary = Summary::default();
                atomic::write(path, |file| {
                    summary = score::run(&options, stop, |record: RecordScore, total| {
                        show(total);
                        let io = |e| Error::io(path, "write", e);
                        let line = serde_json::to_string(&record).map_err(|e| io(e.into()))?;
                        writeln!(file, "{line}").map_err(io)
                    })?;
                    Ok(())
                })?;
                summary
            }
        };
        bar.finish_and_clear();
        print_summary(&summary);
        print_json(json, &summary);
        Ok(())
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} records {per_sec} ETA {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn print_summary(summary: &Summary) {
    println!("records           {}", summary.records);
    println!("responses         {}", summary.responses);
    println!("pairs             {}", summary.pairs);
    println!("mean log-prob     {:.3}", summary.log_prob);
    println!("ranking accuracy  {:.4}", summary.ranking_accuracy);
    if let (Some(accuracy), Some(margin)) = (summary.reward_accuracy, summary.margin) {
        println!("reward accuracy   {accuracy:.4}");
        println!("reward margin     {margin:+.4}");
    }
    println!("seconds           {:.1}", summary.seconds);
}
