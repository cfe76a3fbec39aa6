//! Everything before the first step: what fits what, how large buffers must be, where to go on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::data::lock::Lock;
use crate::data::plan::{Extent, Plan, Tree};
use crate::data::shard::Dataset;
use crate::data::{atomic, trees};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::adapter::{Adapter, LoraConfig};
use crate::model::config::ModelConfig;
use crate::model::params::Layout;
use crate::model::{Budget, Lora, Model, Purpose, RopeMode};
use crate::ops::adamw::AdamW;
use crate::train::checkpoint::{self, Moments, State};
use crate::train::choices::{Reference, Train, Vision};
use crate::train::config::{Config, Settings};
use crate::train::engine::{self, Engine};
use crate::train::features::{self, Features};
use crate::train::fingerprint::Base;
use crate::train::metrics::Metrics;
use crate::train::optimizer::{self, Optimizer};
use crate::train::reference::{Key, Sidecar};
use crate::train::{Progress, Sink, Summary, Trainer};

/// Reference log-probs are written this often while they are computed.
const SAVE_EVERY: Duration = Duration::from_secs(60);

impl<'c> Trainer<'c> {
    /// Opens data and model, computes what is constant, and takes up the newest checkpoint.
    pub(super) fn open(
        config: &'c Config,
        resume: bool,
        stop: &dyn Fn() -> bool,
        progress: &mut Sink<'_>,
    ) -> Result<Self> {
        let device = Device::parse(&config.device)?;
        if let Device::Cuda(cuda) = device {
            let gpu = &cuda.gpu().name;
            progress(Progress::Note(&format!(
                "{device} ({gpu}) clips and updates; forward and backward run on the CPU"
            )));
        }
        let data = Dataset::open(&config.data)?;
        let model_config = ModelConfig::read(&config.model)?;
        engine::check_fits(&data, &model_config, &config.model)?;
        let plan = Plan::new(trees::sizes(&data), config.plan())?;
        let lock = Lock::acquire(&config.out)?;
        let found = take_folder(config, resume)?;

        let adapter = open_adapter(config, &model_config)?;
        let base = Base::of(&config.model, &model_config, &config.data)?;
        let model = Model::open(&config.model, config.trainable(), adapter.as_ref())?;
        let features = open_features(config, &data, &model, &base, stop, progress)?;

        let passes = Passes::of(&plan, config);
        note_plan(&plan, &passes.steps, &model, progress);
        let (loss, total) = (config.loss(), passes.steps.steps);
        let budget = passes.budget(&plan);
        let Passes { held_out, constant, .. } = passes;
        let sidecar = stores_reference(config)
            .then(|| Sidecar::open(&data, Key::new(&data, &base.model)))
            .transpose()?;

        let mut summary = Summary {
            steps: total,
            resumed_at: 0,
            records: plan.train().len(),
            held_out_records: held_out.len(),
            parameters: model.layout().parameters(),
            pairs: 0,
            tokens: 0,
            seconds: 0.0,
            skipped: 0,
            last: None,
            before: None,
            after: None,
            output: PathBuf::new(),
        };
        let layout = model.layout().clone();
        let mut optimizer = open_optimizer(config, device, &layout)?;
        let mut engine = Engine::new(data, model, budget, config.layout, features);
        let reference = match sidecar {
            // The base is still what it was: a checkpoint's values come after this.
            Some(sidecar) => Some(fill(sidecar, &mut engine, &plan, &constant, stop, progress)?),
            None => None,
        };
        let mut state = State::start(format!("{:016x}", engine.data.fingerprint()), base.model);
        if let Some(path) = found {
            state = optimizer.resume(|exp_avg, exp_avg_sq| {
                let params = engine.model.params_mut();
                take_up(&path, &layout, Moments { params, exp_avg, exp_avg_sq }, &state)
            })?;
            summary.resumed_at = state.step;
        }
        let metrics = Metrics::open(&config.out, state.metrics)?;
        Ok(Trainer {
            config,
            engine,
            plan,
            loss,
            schedule: config.schedule(total),
            total,
            held_out,
            reference,
            adapter,
            layout,
            optimizer,
            state,
            metrics,
            summary,
            _lock: lock,
        })
    }
}

/// Reads the checkpoint at `path`, which must be of the same data and base as `start`.
fn take_up(
    path: &Path,
    layout: &Layout,
    mut moments: Moments<&mut [f32]>,
    start: &State,
) -> Result<State> {
    let state = checkpoint::load(path, &layout.tensors, &mut moments)?;
    for (what, got, expected) in
        [("shards", &state.data, &start.data), ("base model", &state.base, &start.base)]
    {
        if got != expected {
            let message = format!("made with another {what}: expected {expected}, got {got}");
            return Err(Error::file(path, "state.json", message));
        }
    }
    Ok(state)
}

/// Makes the run folder ours: writes the configuration, or compares it with the one that is
/// resumed. Gives the newest checkpoint.
fn take_folder(config: &Config, resume: bool) -> Result<Option<PathBuf>> {
    for folder in [config.out.clone(), config.out.join("checkpoints")] {
        if folder.exists() {
            atomic::remove_stale(folder)?;
        }
    }
    let path = config.out.join("config.toml");
    if resume && path.exists() {
        config.check_resumed(&Settings::read(&path)?.resolve()?)?;
    } else if path.exists() {
        return Err(Error::Usage(format!(
            "--out {}: holds a run already; pass --resume to go on with it, or another --out",
            config.out.display()
        )));
    }
    atomic::write_bytes(&path, config.to_toml().as_bytes())?;
    if resume { checkpoint::latest(&config.out) } else { Ok(None) }
}

fn open_adapter(config: &Config, model: &ModelConfig) -> Result<Option<Adapter>> {
    if config.trainable != Train::Lora {
        return Ok(None);
    }
    let adapter = match &config.init_adapter {
        Some(dir) => Adapter::open(dir, model)?,
        None => {
            let (r, alpha) = (config.lora_r, config.lora_alpha);
            let target_modules = config.lora_targets.clone();
            Adapter::init(&LoraConfig { r, alpha, target_modules }, model, config.seed)?
        }
    };
    Ok(Some(adapter))
}

fn open_optimizer(config: &Config, device: Device, layout: &Layout) -> Result<Optimizer> {
    let Config { beta1, beta2, eps, weight_decay, max_grad_norm, .. } = *config;
    let settings = optimizer::Settings { adamw: AdamW { beta1, beta2, eps }, max_grad_norm };
    let parts = optimizer::parts(layout, |name| config.lr_factor(name), weight_decay);
    Optimizer::new(device, layout.len(), &parts, settings)
}

fn open_features(
    config: &Config,
    data: &Dataset,
    model: &Model,
    base: &Base,
    stop: &dyn Fn() -> bool,
    progress: &mut Sink<'_>,
) -> Result<Option<Features>> {
    if config.vision == Vision::Online {
        return Ok(None);
    }
    let megabytes = features::disk_bytes(data, model) as f64 / 1e6;
    progress(Progress::Note(&format!(
        "vision features of {} images take {megabytes:.1} MB in {}",
        data.images(),
        data.folder().display()
    )));
    let (what, total) = ("vision features", data.images() as u64);
    let mut done = 0;
    let encoded = |n: usize| {
        done += n as u64;
        progress(Progress::Work { what, total, done });
    };
    Features::open(data, model, &base.visual, stop, encoded).map(Some)
}

/// The records this run will see, whole and in file order: those whose reference it needs.
fn seen(plan: &Plan, config: &Config) -> Vec<Tree> {
    let epoch = plan.epoch(0);
    let steps = config.steps.map_or(epoch.len(), |steps| (steps as usize).min(epoch.len()));
    let trained = epoch[..steps].iter().flatten().map(|tree| tree.record);
    let records: BTreeSet<u32> = trained.chain(plan.held_out().iter().copied()).collect();
    plan.whole(records)
}

/// Computes what the sidecar does not know yet of `trees`, pack by pack, and saves it.
fn fill(
    mut sidecar: Sidecar,
    engine: &mut Engine,
    plan: &Plan,
    trees: &[Tree],
    stop: &dyn Fn() -> bool,
    progress: &mut Sink<'_>,
) -> Result<Sidecar> {
    let (what, total) = ("reference log-probabilities", trees.len() as u64);
    let (mut done, mut saved, mut dirty) = (0, Instant::now(), false);
    for trees in plan.pass(trees) {
        let pack = engine.pack(&trees)?;
        done += trees.len() as u64;
        if sidecar.of(&pack).iter().any(|value| value.is_nan()) {
            if stop() {
                sidecar.save()?;
                let message = "stopped while computing the reference, which is kept; run again";
                return Err(Error::Interrupted(message.into()));
            }
            let log_probs = engine.forward(&pack, Lora::Off, RopeMode::TRAIN)?;
            sidecar.set(&pack, &log_probs);
            dirty = true;
            progress(Progress::Work { what, total, done });
        }
        if dirty && saved.elapsed() > SAVE_EVERY {
            sidecar.save()?;
            (saved, dirty) = (Instant::now(), false);
        }
    }
    if dirty {
        sidecar.save()?;
    }
    Ok(sidecar)
}

/// What a run goes through: its steps, and the trees of its other passes.
pub(super) struct Passes {
    steps: Extent,
    held_out: Vec<Tree>,
    /// Those whose reference is computed before the first step.
    constant: Vec<Tree>,
}

impl Passes {
    pub fn of(plan: &Plan, config: &Config) -> Self {
        let stored = stores_reference(config);
        Passes {
            steps: plan.extent(config.epochs, config.steps),
            held_out: plan.held_out_trees(),
            constant: if stored { seen(plan, config) } else { Vec::new() },
        }
    }

    /// Buffers that take every pack of every pass.
    pub fn budget(&self, plan: &Plan) -> Budget {
        let others = [&self.held_out, &self.constant].map(|trees| plan.pass_extent(trees));
        let passes = [&self.steps, &others[0], &others[1]];
        let most = |of: fn(&Extent) -> u64| passes.map(of).into_iter().max().unwrap_or(0) as usize;
        Budget {
            tokens: most(|e| e.max_tokens),
            images: most(|e| e.max_images),
            head_rows: most(|e| e.max_head_rows),
            purpose: Purpose::Train,
        }
    }
}

fn stores_reference(config: &Config) -> bool {
    config.loss().needs_reference() && config.reference == Reference::Sidecar
}

fn note_plan(plan: &Plan, extent: &Extent, model: &Model, progress: &mut Sink<'_>) {
    let useful = 100.0 * extent.tokens as f64 / extent.padded_tokens.max(1) as f64;
    progress(Progress::Note(&format!(
        "{} records, {} held out; {} trained parameters; {} steps of {:.1} packs, {useful:.1} % \
         useful tokens, {} trees split",
        plan.train().len(),
        plan.held_out().len(),
        model.layout().parameters(),
        extent.steps,
        extent.packs as f64 / extent.steps.max(1) as f64,
        extent.split_trees
    )));
}
