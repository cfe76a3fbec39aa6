//! What a person types: one file per command, no mathematics.
//!
//! A command is a struct of flags ([`clap::Args`]) with `run(self)`. Results go to stdout, progress
//! and warnings to stderr; with `--json` the last line of stdout is one JSON object.

pub mod bench;
mod demo;
mod generate;
mod info;
mod init;
mod inspect;
pub mod interrupt;
mod merge;
mod prepare;
mod score;
mod train;
mod writing;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::device::Device;
use crate::error::{Error, Result};

#[derive(Parser)]
#[command(
    name = "silkie",
    version,
    about = "Preference distillation for Qwen-VL",
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bench(bench::Bench),
    Demo(demo::Demo),
    Generate(generate::Generate),
    Info(info::Info),
    Init(init::Init),
    Merge(merge::Merge),
    Prepare(prepare::Prepare),
    Inspect(inspect::Inspect),
    Score(score::Score),
    Train(Box<train::Train>),
}

/// Parses the command line, runs the command, prints the error if there is one.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("silkie: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Bench(bench) => bench.run(),
        Command::Demo(demo) => demo.run(),
        Command::Generate(generate) => generate.run(),
        Command::Info(info) => info.run(),
        Command::Init(init) => init.run(),
        Command::Merge(merge) => merge.run(),
        Command::Prepare(prepare) => prepare.run(),
        Command::Inspect(inspect) => inspect.run(),
        Command::Score(score) => score.run(),
        Command::Train(train) => train.run(),
    }
}

/// An error unless `device` is the CPU, where alone `command` runs so far.
fn only_cpu(command: &str, device: &str) -> Result<()> {
    match Device::gpu_named(device)? {
        None => Ok(()),
        Some(_) => Err(Error::Usage(format!(
            "--device {device}: `silkie {command}` runs on the CPU so far; pass --device cpu"
        ))),
    }
}

/// With `--json`: prints `report` as the one JSON object on the last line of stdout.
pub fn print_json(json: bool, report: &impl Serialize) {
    if json {
        println!(
            "{}",
            serde_json::to_string(report).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"))
        );
    }
}
