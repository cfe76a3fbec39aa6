//! `silkie demo`: a small world in which preference distillation visibly works.
//!
//! [`run`] makes a world, writes it as a user's files would be ([`files`]), and sends it through
//! what users use: prepare, init, train, score, generate. Every stage leaves its result in the
//! demo's folder and is skipped when it is there already.
//!
//! ```text
//! world/      pictures.zip, captions.jsonl, preferences.jsonl, held-out.jsonl, blank.jsonl
//! model/      a tiny Qwen-VL with random weights, its tokenizer trained on the world's text
//! shards/     the record files, prepared
//! captions/   all parameters, captions
//! answers/    all parameters, answers drawn at random: sees, speaks, prefers nothing
//! align/      the adapter that preference distillation trains on it
//! *.toml      the settings of the training runs; settings.json, results.json, report.html
//! ```

pub mod files;
pub mod measure;
pub mod recipe;
pub mod report;
pub mod talk;
pub mod world;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::files::{Example, World, names};
use self::measure::{Scores, Subject};
use self::recipe::{ALIGN, ANSWERS, CAPTIONS, NLL_ALONE, Phase, Recipe, WITHOUT_NLL};
use self::report::{Plot, Report, Sample};
use crate::data::atomic;
use crate::data::lock::Lock;
use crate::data::pictures::Pictures;
use crate::data::prepare::{self, Job};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::create::{self, Vocabulary};
use crate::model::init::Preset;
use crate::train;

/// What to run.
pub struct Options {
    /// The demo's folder.
    pub out: PathBuf,
    /// Of world, weights and order.
    pub seed: u64,
    /// Whether the controls run too.
    pub controls: bool,
    /// Sizes and steps.
    pub recipe: Recipe,
}

/// What the demo tells while it goes on.
pub enum Progress<'a> {
    /// A stage begins: a name and the command that does the same, where there is one.
    Stage(&'a str, &'a str),
    /// So much of so much of it is done.
    Work(u64, u64),
    /// It is over: what came of it.
    Done(&'a str),
}

/// Who listens.
pub type Sink<'a> = dyn FnMut(Progress<'_>) + 'a;

/// What came of it. The keys of `silkie demo --json`.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// Of world, weights and order.
    pub seed: u64,
    /// The model before alignment.
    pub before: Scores,
    /// With the adapter.
    pub after: Scores,
    /// Scores of the controls by name; empty when they did not run.
    pub controls: BTreeMap<String, Scores>,
    /// Wall time of all stages, those of earlier calls included.
    pub seconds: f64,
    /// Wall time of each stage.
    pub stages: Vec<(String, f64)>,
    /// The page.
    pub report: PathBuf,
}

/// Pictures shown in the report.
const SHOWN: usize = 8;

/// Runs what is not there yet.
///
/// Errors: a folder made with other settings or in use, those of every stage,
/// [`Error::Interrupted`] when `stop` says so; the same call then goes on.
pub fn run(options: &Options, stop: &dyn Fn() -> bool, progress: &mut Sink<'_>) -> Result<Outcome> {
    let mut demo = Demo::open(options, stop, progress)?;
    let world = demo.world()?;
    let model = demo.model(&world)?;
    let captions = demo.shards("captions", names::CAPTIONS, &model)?;
    let preferences = demo.shards("preferences", names::TRAIN, &model)?;
    let test = HeldOut {
        records: demo.shards("held-out", names::HELD_OUT, &model)?,
        blank: demo.shards("blank", names::BLANK, &model)?,
        asked: &world.held_out[..options.recipe.answered.min(world.held_out.len())],
    };
    let seeing = demo.train(CAPTIONS, &captions, &model)?.join("model");
    let base = demo.train(ANSWERS, &preferences, &seeing)?.join("model");
    let before = demo.measure("before", &base, None, &test)?;
    let adapter = demo.train(ALIGN, &preferences, &base)?.join("adapter");
    let after = demo.measure("after", &base, Some(adapter), &test)?;
    let mut measured = vec![("before", before), ("after", after)];
    if options.controls {
        for (phase, name) in [(WITHOUT_NLL, "without the NLL term"), (NLL_ALONE, "NLL alone")] {
            let adapter = demo.train(phase, &preferences, &base)?.join("adapter");
            measured.push((name, demo.measure(phase.name, &base, Some(adapter), &test)?));
        }
    }
    demo.report(&world, &measured)
}

/// What models are measured on.
struct HeldOut<'a> {
    /// Shards of the held-out records.
    records: PathBuf,
    /// Shards of the same records with blank pictures.
    blank: PathBuf,
    /// The pictures and questions to answer greedily.
    asked: &'a [Example],
}

/// Scores and greedy answers of one model.
#[derive(Serialize, Deserialize)]
struct Measured {
    scores: Scores,
    answers: Vec<String>,
}

/// The run so far.
struct Demo<'a> {
    options: &'a Options,
    stop: &'a dyn Fn() -> bool,
    progress: &'a mut Sink<'a>,
    /// Seconds by stage, in order; kept in `times.json`.
    times: Vec<(String, f64)>,
    _lock: Lock,
}

impl<'a> Demo<'a> {
    fn open(
        options: &'a Options,
        stop: &'a dyn Fn() -> bool,
        progress: &'a mut Sink<'a>,
    ) -> Result<Demo<'a>> {
        let out = &options.out;
        fs::create_dir_all(out).map_err(|e| Error::io(out, "create the folder", e))?;
        let lock = Lock::acquire(out)?;
        let path = out.join("settings.json");
        let settings = serde_json::json!({"seed": options.seed, "recipe": options.recipe});
        if path.exists() {
            let text = read(&path)?;
            let found: Value = serde_json::from_str(&text)
                .map_err(|e| Error::file(&path, "", format!("{e}; give another --out")))?;
            if found != settings {
                return Err(Error::Usage(format!(
                    "{}: holds a demo of seed {} with other settings; give another --out, or \
                     remove it",
                    out.display(),
                    found["seed"]
                )));
            }
        } else if fs::read_dir(out).map_err(|e| Error::io(out, "read", e))?.count() > 1 {
            // The lock's own file is the one entry of a new folder.
            let message =
                format!("{}: is not empty and holds no demo; give another --out", out.display());
            return Err(Error::Usage(message));
        } else {
            atomic::write_bytes(&path, format!("{settings:#}\n").as_bytes())?;
        }
        let times = match read(&out.join("times.json")) {
            Ok(text) => serde_json::from_str(&text).unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        Ok(Demo { options, stop, progress, times, _lock: lock })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.options.out.join(name)
    }

    /// Runs `body` unless `path` exists, and keeps the time it took.
    fn stage(
        &mut self,
        name: &str,
        command: &str,
        path: &Path,
        body: impl FnOnce(&mut Self) -> Result<String>,
    ) -> Result<()> {
        if path.exists() {
            (self.progress)(Progress::Stage(name, ""));
            (self.progress)(Progress::Done("done before"));
            return Ok(());
        }
        if (self.stop)() {
            return Err(Error::Interrupted(format!(
                "stopped before `{name}`; run the same command again"
            )));
        }
        (self.progress)(Progress::Stage(name, command));
        let started = Instant::now();
        let what = body(self).map_err(|error| self.stopped(error))?;
        self.times.retain(|(stage, _)| stage != name);
        self.times.push((name.to_string(), started.elapsed().as_secs_f64()));
        self.save("times.json", &self.times)?;
        (self.progress)(Progress::Done(&what));
        Ok(())
    }

    /// A stage that stopped tells how to resume itself; the demo is resumed by the demo.
    fn stopped(&self, error: Error) -> Error {
        match error {
            Error::Interrupted(_) => Error::Interrupted(format!(
                "stopped; go on with: silkie demo --out {} --seed {}",
                self.options.out.display(),
                self.options.seed
            )),
            other => other,
        }
    }

    fn save(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let path = self.path(name);
        let text =
            serde_json::to_string_pretty(value).map_err(|e| Error::io(&path, "write", e.into()))?;
        atomic::write_bytes(&path, text.as_bytes())
    }

    /// The world is a function of the seed; only its files may be there already.
    fn world(&mut self) -> Result<World> {
        let (folder, sizes) = (self.path("world"), self.options.recipe.sizes);
        let world = World::make(self.options.seed, &sizes);
        self.stage("world", "", &folder, |_| {
            world.write(&folder)?;
            Ok(format!(
                "{} pictures, {} captions, {} records; {} records held out",
                sizes.pictures,
                sizes.pictures,
                sizes.pictures * sizes.questions,
                sizes.held_out
            ))
        })?;
        Ok(world)
    }

    fn model(&mut self, world: &World) -> Result<PathBuf> {
        let folder = self.path("model");
        let command = format!("silkie init --preset tiny --out {}", folder.display());
        self.stage("init", &command, &folder, |demo| {
            let mut recipe = create::Recipe::new(Preset::Tiny, demo.options.seed);
            recipe.vocabulary = Vocabulary::Train(world.text());
            let created = recipe.create(&folder, |_, _| Ok(()))?;
            Ok(format!("{} parameters, {} tokens", created.parameters, created.tokens.unwrap_or(0)))
        })?;
        Ok(folder)
    }

    /// Shards of one of the world's record files; their folder.
    fn shards(&mut self, name: &str, file: &str, model: &Path) -> Result<PathBuf> {
        let (world, out) = (self.path("world"), self.path("shards").join(name));
        let (records, zip) = (world.join(file), world.join(names::PICTURES));
        let command = format!(
            "silkie prepare --records {} --images {} --model {} --out {}",
            records.display(),
            zip.display(),
            model.display(),
            out.display()
        );
        let (stage, done) = (format!("prepare {name}"), out.join(DONE));
        self.stage(&stage, &command, &done, |demo| {
            let config = ModelConfig::read(model)?;
            let tokenizer = Tokenizer::open(model, config.visual.n_queries)?;
            let pictures = Pictures::open(&zip)?;
            let job = Job {
                records: std::slice::from_ref(&records),
                pictures: Some(&pictures),
                tokenizer: &tokenizer,
                model,
                image_size: config.visual.image_size,
                vocab_size: config.vocab_size,
                out: &out,
                options: prepare::Options::DEFAULT,
                strict: true,
                force: false,
            };
            let progress = &mut demo.progress;
            let summary = prepare::run(&job, demo.stop, |p| {
                progress(Progress::Work(p.bytes, p.total_bytes));
            })?;
            atomic::write_bytes(&done, b"")?;
            Ok(format!("{} records, {} pairs", summary.records, summary.pairs))
        })?;
        Ok(out)
    }

    /// A training run from `model` on the shards `data`; its folder.
    fn train(&mut self, phase: Phase, data: &Path, model: &Path) -> Result<PathBuf> {
        let out = self.path(phase.name);
        let file = self.path(&format!("{}.toml", phase.name));
        let command = format!("silkie train --config {}", file.display());
        let stage = format!("train {}: {}", phase.name, phase.purpose);
        let steps = match phase {
            CAPTIONS => self.options.recipe.steps.captions,
            ANSWERS => self.options.recipe.steps.answers,
            _ => self.options.recipe.steps.align,
        };
        let done = out.join(DONE);
        self.stage(&stage, &command, &done, |demo| {
            let toml = phase.file([model, data, &out], steps, demo.options.seed)?;
            atomic::write_bytes(&file, toml.as_bytes())?;
            let resume = out.join("config.toml").exists();
            let progress = &mut demo.progress;
            let summary = train::run(&Phase::config(&file)?, resume, demo.stop, &mut |p| {
                if let train::Progress::Step(row) = p {
                    progress(Progress::Work(row.step, steps));
                }
            })?;
            atomic::write_bytes(&done, b"")?;
            let last = summary.last.map_or(f64::NAN, |row| row.loss);
            Ok(format!("{} steps, last loss {last:.3}", summary.steps))
        })?;
        Ok(out)
    }

    fn measure(
        &mut self,
        name: &str,
        model: &Path,
        adapter: Option<PathBuf>,
        test: &HeldOut<'_>,
    ) -> Result<Measured> {
        let file = format!("measured-{name}.json");
        let with = adapter.as_ref().map(|dir| format!(" --adapter {}", dir.display()));
        let command = format!(
            "silkie score --model {}{} --data {}",
            model.display(),
            with.unwrap_or_default(),
            test.records.display()
        );
        let path = self.path(&file);
        self.stage(&format!("measure {name}"), &command, &path, |demo| {
            let subject = Subject { model, adapter, held_out: &test.records, blank: &test.blank };
            let mut done = 0;
            let total = 2 * demo.options.recipe.sizes.held_out + test.asked.len();
            let progress = &mut demo.progress;
            let (scores, answers) = subject.measure(test.asked, demo.stop, &mut || {
                done += 1;
                progress(Progress::Work(done, total as u64));
            })?;
            demo.save(&file, &Measured { scores, answers })?;
            Ok(format!(
                "ranking {:.1} %, faithful {:.1} %",
                100.0 * scores.ranking_accuracy,
                100.0 * scores.faithful
            ))
        })?;
        serde_json::from_str(&read(&path)?)
            .map_err(|e| Error::file(&path, "", format!("{e}; remove it")))
    }

    /// Writes `report.html` and `results.json`.
    fn report(&mut self, world: &World, measured: &[(&str, Measured)]) -> Result<Outcome> {
        let path = self.path("report.html");
        let samples = world.held_out.iter().take(SHOWN).enumerate().map(|(i, example)| {
            let said = |(name, m): &(&str, Measured)| {
                let text = m.answers.get(i).cloned().unwrap_or_default();
                let wrong = example.wrong_facts(&text);
                (name.to_string(), text, wrong)
            };
            Sample {
                pixels: example.pixels.clone(),
                question: example.question.text(),
                truth: example.question.truth(&example.arrangement).text(0),
                answers: measured.iter().map(said).collect(),
            }
        });
        let mut settings =
            vec![("sizes and steps".to_string(), read(&self.path("settings.json"))?)];
        let mut plots = Vec::new();
        let mut phases = vec![CAPTIONS, ANSWERS, ALIGN];
        if self.options.controls {
            phases.extend([WITHOUT_NLL, NLL_ALONE]);
        }
        for phase in phases {
            let run = self.path(phase.name);
            settings
                .push((format!("silkie train: {}", phase.name), read(&run.join("config.toml"))?));
            if !matches!(phase, WITHOUT_NLL | NLL_ALONE) {
                plots.extend(curves(phase, &run.join("metrics.jsonl"))?);
            }
        }
        let report = Report {
            seed: self.options.seed,
            stages: self.times.clone(),
            columns: measured.iter().map(|(name, m)| (name.to_string(), m.scores)).collect(),
            plots,
            samples: samples.collect(),
            settings,
        };
        atomic::write_bytes(&path, report.html()?.as_bytes())?;
        let controls = measured[2..].iter().map(|(name, m)| (name.to_string(), m.scores));
        let outcome = Outcome {
            seed: self.options.seed,
            before: measured[0].1.scores,
            after: measured[1].1.scores,
            controls: controls.collect(),
            seconds: self.times.iter().map(|(_, seconds)| seconds).sum(),
            stages: self.times.clone(),
            report: path,
        };
        self.save("results.json", &outcome)?;
        Ok(outcome)
    }
}

/// Written last into the folder of a finished stage.
const DONE: &str = "done";

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))
}

/// The plots of one training run.
fn curves(phase: Phase, metrics: &Path) -> Result<Vec<Plot>> {
    let mut rows: Vec<Value> = vec![];
    for (i, line) in read(metrics)?.lines().enumerate() {
        let row: Value = serde_json::from_str(line)
            .map_err(|e| Error::file(metrics, format!("line {}", i + 1), e.to_string()))?;
        if row["kind"] == "train" {
            rows.push(row);
        }
    }
    let line = |key: &str| -> (String, Vec<(f64, f64)>) {
        let value = |row: &Value, key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        (
            key.replace('_', " "),
            rows.iter().map(|row| (value(row, "step"), value(row, key))).collect(),
        )
    };
    let plot = |title: &str, keys: &[&str]| Plot {
        title: format!("{}: {title}", phase.name),
        lines: keys.iter().map(|key| line(key)).collect(),
    };
    let mut plots = vec![plot("loss", &["loss"])];
    if phase == ALIGN {
        plots.push(plot("rewards", &["chosen_reward", "rejected_reward"]));
        plots.push(plot("reward margin", &["margin"]));
        plots.push(plot("reward accuracy", &["accuracy"]));
    }
    Ok(plots)
}
