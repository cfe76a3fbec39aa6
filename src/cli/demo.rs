//! `silkie demo`: watch preference distillation work.

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{interrupt, print_json};
use crate::demo::measure::Scores;
use crate::demo::recipe::Recipe;
use crate::demo::{self, Options, Outcome, Progress};
use crate::error::Result;

/// Watch preference distillation work, in about two minutes on two cores
///
/// Makes a small world (pictures of coloured objects, captions, questions with four rated answers of
/// which one is true), writes it as a user's files would be, and runs what users run: prepare, init,
/// supervised warm-up on captions and on answers drawn at random, then preference distillation of a
/// LoRA adapter. Measures before and after on pictures whose arrangements of colours were never seen
/// in training, and writes OUT/report.html.
///
/// Stopped, the same command goes on where it was.
///
///   silkie demo
///   silkie demo --seed 1 --out demo-1 --controls
///
/// With --json the last line of stdout is one object: seed, before and after (each ranking_accuracy,
/// reward_accuracy, reward_margin, faithful, blank_accuracy), controls (the same by name), seconds,
/// stages [[name, seconds]], report.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Demo {
    /// Folder for everything the demo makes
    #[arg(long, value_name = "DIR", default_value = "silkie-demo")]
    out: PathBuf,
    /// Seed of world, weights and order
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Also train without the NLL term, and with the NLL alone
    #[arg(long)]
    controls: bool,
    /// Only show that everything runs: a small world and a few steps, which teach nothing
    #[arg(long)]
    short: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Demo {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        interrupt::install();
        let recipe = if self.short { Recipe::SHORT } else { Recipe::DEFAULT };
        let options = Options { out: self.out, seed: self.seed, controls: self.controls, recipe };
        let mut show = Show::default();
        let outcome = demo::run(&options, &interrupt::requested, &mut |p| show.progress(p))?;
        print_table(&outcome);
        print_json(self.json, &outcome);
        Ok(())
    }
}

/// One line per stage on stderr, with a bar while it goes on.
#[derive(Default)]
struct Show {
    name: String,
    bar: Option<ProgressBar>,
}

impl Show {
    fn progress(&mut self, progress: Progress<'_>) {
        match progress {
            Progress::Stage(name, command) => {
                if !command.is_empty() {
                    eprintln!("$ {command}");
                }
                self.name = name.to_string();
                let template = "{msg} {bar:30} {percent:>3} %  ETA {eta}";
                let style =
                    ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar());
                let bar = ProgressBar::new(0).with_style(style).with_message(self.name.clone());
                bar.enable_steady_tick(Duration::from_millis(500));
                self.bar = Some(bar);
            }
            Progress::Work(done, total) => {
                if let Some(bar) = &self.bar {
                    bar.set_length(total);
                    bar.set_position(done);
                }
            }
            Progress::Done(what) => {
                let seconds = self.bar.take().map_or(0.0, |bar| {
                    bar.finish_and_clear();
                    bar.elapsed().as_secs_f64()
                });
                eprintln!("{}: {what} ({seconds:.1} s)", self.name);
            }
        }
    }
}

fn print_table(outcome: &Outcome) {
    let mut columns = vec![("before", outcome.before), ("after", outcome.after)];
    columns.extend(outcome.controls.iter().map(|(name, scores)| (name.as_str(), *scores)));
    let width = |name: &str| name.len().max(8) + 2;
    let mut head = format!("{:<20}", "held-out records");
    columns.iter().for_each(|(name, _)| head += &format!("{name:>0$}", width(name)));
    println!("\n{head}");
    for row in Scores::ROWS {
        let mut line = format!("{:<20}", row.name);
        columns.iter().for_each(|(name, s)| line += &format!("{:>1$}", row.text(s), width(name)));
        println!("{line}");
    }
    println!("\n{:.0} seconds; {}", outcome.seconds, outcome.report.display());
}
