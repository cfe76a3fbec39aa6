//! `silkie train`: settings from flags and TOML, a progress bar, a summary.

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::cli::{interrupt, print_json};
use crate::error::{Error, Result};
use crate::train::config::{Config, Settings};
use crate::train::metrics::{EvaluationRow, StepRow};
use crate::train::{self, Progress, Summary, memory};

/// Train an adapter (or a whole model) on preferences
///
/// Defaults are the published recipe. Every flag can stand in a TOML file, as in
/// examples/silkie-recipe.toml; flags win. Writes to --out: config.toml, metrics.jsonl, a TensorBoard
/// event file, checkpoints/, and in the end adapter/ (--trainable lora) or model/ (full, all).
///
/// Ctrl-C saves a checkpoint and exits with 130; `silkie train --resume --out RUN` goes on bit for
/// bit.
///
/// Keys of --json: steps, resumed_at, records, held_out_records, parameters, pairs, tokens,
/// seconds, skipped, last (a line of metrics.jsonl), before and after (the held-out records), output.
/// With --memory-plan: bytes, spans [{name, offset, bytes, shape}].
#[derive(clap::Args)]
pub struct Train {
    /// TOML file with any of the settings below; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Go on with the run in --out
    #[arg(long)]
    resume: bool,
    /// Print what a GPU would hold for this run, and end; needs none, and no --out
    #[arg(long)]
    memory_plan: bool,
    /// Print a JSON object as the last line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

impl Train {
    /// Resolves the settings, prints them, trains.
    pub fn run(self) -> Result<()> {
        let (resume, json, memory_plan) = (self.resume, self.json, self.memory_plan);
        let config = self.resolve()?;
        if memory_plan {
            return show_memory(&config, json);
        }
        println!("{}", config.to_toml().trim_end());
        interrupt::install();
        let mut show = Show::new(&config);
        let summary =
            train::run(&config, resume, &interrupt::requested, &mut |p| show.progress(p))?;
        show.bar.finish_and_clear();
        print_summary(&summary);
        print_json(json, &summary);
        Ok(())
    }

    fn resolve(self) -> Result<Config> {
        let file = self.config.as_deref().map(Settings::read).transpose()?.unwrap_or_default();
        let mut settings = self.settings.or(file);
        if self.resume {
            let Some(out) = &settings.out else {
                return Err(Error::Usage("--resume: needs --out, the folder of the run".into()));
            };
            let saved = out.join("config.toml");
            if !saved.exists() {
                let message = format!("--resume: {} holds no run; leave it out", out.display());
                return Err(Error::Usage(message));
            }
            settings = settings.or(Settings::read(&saved)?);
        }
        if self.memory_plan {
            settings.out.get_or_insert_default();
        }
        settings.resolve()
    }
}

fn show_memory(config: &Config, json: bool) -> Result<()> {
    let plan = memory::plan(config)?;
    print!("{plan}");
    let spans = plan.spans().iter().map(|span| {
        json!({ "name": span.name, "offset": span.offset, "bytes": span.bytes, "shape": span.shape })
    });
    let spans: Vec<Value> = if json { spans.collect() } else { Vec::new() };
    print_json(json, &json!({ "bytes": plan.total(), "spans": spans }));
    Ok(())
}

/// One bar on stderr; lines where stderr is no terminal.
struct Show {
    bar: ProgressBar,
}

impl Show {
    fn new(config: &Config) -> Show {
        let bar = ProgressBar::new(0);
        let template = "{elapsed_precise} {wide_bar} {pos}/{len} {msg} ETA {eta}";
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(500));
        bar.set_message(format!("opening {}", config.model.display()));
        Show { bar }
    }

    fn progress(&mut self, progress: Progress<'_>) {
        match progress {
            Progress::Note(text) => self.line(text),
            Progress::Work { what, total, done } => {
                self.bar.set_length(total);
                self.bar.set_position(done);
                self.bar.set_message(what);
            }
            Progress::Begin { done, total } => {
                self.bar.reset();
                self.bar.set_length(total);
                self.bar.set_position(done);
                self.bar.reset_eta();
                self.bar.set_message("");
            }
            Progress::Step(row) => {
                self.bar.set_position(row.step);
                let text = step_line(row);
                match self.bar.is_hidden() {
                    true => {
                        let left = indicatif::HumanDuration(self.bar.eta());
                        eprintln!("step {}: {text} ETA {left:#}", row.step);
                    }
                    false => self.bar.set_message(text),
                }
            }
            Progress::Evaluation(row) => self.line(&evaluation_line(row)),
            Progress::Saved(path) => self.line(&format!("saved {}", path.display())),
        }
    }

    fn line(&self, text: &str) {
        match self.bar.is_hidden() {
            true => eprintln!("{text}"),
            false => self.bar.println(text),
        }
    }
}

fn step_line(row: &StepRow) -> String {
    let speed = |n: u64| n as f64 / row.seconds.max(f64::MIN_POSITIVE);
    format!(
        "loss {:.4} rewards {:+.3} {:+.3} margin {:+.3} accuracy {:.3} |g| {:.3} lr {:.2e} \
         {:.1} pairs/s {:.0} tokens/s",
        row.loss,
        row.chosen_reward,
        row.rejected_reward,
        row.margin,
        row.accuracy,
        row.grad_norm,
        row.lr,
        speed(row.pairs),
        speed(row.tokens)
    )
}

fn evaluation_line(row: &EvaluationRow) -> String {
    format!(
        "held out, step {}: loss {:.4} accuracy {:.3} ranking {:.3} margin {:+.3} ({} pairs)",
        row.step, row.loss, row.accuracy, row.ranking_accuracy, row.margin, row.pairs
    )
}

fn print_summary(summary: &Summary) {
    println!();
    println!("steps         {} (from {})", summary.steps, summary.resumed_at);
    println!("pairs         {}", summary.pairs);
    println!("tokens        {}", summary.tokens);
    println!("seconds       {:.1}", summary.seconds);
    for (name, row) in [("before", &summary.before), ("after", &summary.after)] {
        if let Some(row) = row {
            println!("{name:<13} {}", evaluation_line(row));
        }
    }
    println!("output        {}", summary.output.display());
}
