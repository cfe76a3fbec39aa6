//! Every setting of a run, in one table: flags of `silkie train`, keys of `silkie.toml` and the
//! resolved configuration are generated from it. Defaults are the published recipe.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data::pack::Layout;
use crate::data::plan::{Batch, Objective, Shuffle, Spec};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::params::Trainable;
use crate::train::choices::{Reference, SftTarget, Train, Vision};
use crate::train::loss::{Kind, Loss};
use crate::train::schedule::{Schedule, Shape, warmup_steps};

/// The type of a setting in the resolved configuration: required and defaulted ones are there.
macro_rules! resolved_type {
    ($type:ty, optional) => { Option<$type> };
    ($type:ty, $($default:tt)+) => { $type };
}

macro_rules! resolved_value {
    ($self:ident, $name:ident, optional) => {
        $self.$name
    };
    ($self:ident, $name:ident, required) => {
        $self.$name.ok_or_else(|| missing(stringify!($name)))?
    };
    ($self:ident, $name:ident, default $default:expr) => {
        $self.$name.unwrap_or($default)
    };
}

macro_rules! settings {
    ($($(#[$attribute:meta])* $name:ident: $type:ty => [$($default:tt)+];)+) => {
        /// Settings as given: by flags or by a TOML file, where a key is a flag's name.
        // In a flag's help "[64]" is its default, no link.
        #[allow(rustdoc::broken_intra_doc_links)]
        #[derive(Clone, Debug, Default, clap::Args, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub struct Settings {
            $($(#[$attribute])* #[arg(long)] pub $name: Option<$type>,)+
        }

        /// Settings as they act: printed and saved before anything happens.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct Config {
            $(#[doc = concat!("`--", stringify!($name), "` with underscores as dashes.")]
            pub $name: resolved_type!($type, $($default)+),)+
        }

        impl Settings {
            /// These settings, and `other`'s where these say nothing.
            pub fn or(self, other: Settings) -> Settings {
                Settings { $($name: self.$name.or(other.$name),)+ }
            }

            fn defaulted(self) -> Result<Config> {
                Ok(Config { $($name: resolved_value!(self, $name, $($default)+),)+ })
            }
        }
    };
}

settings! {
    /// HF directory of the base model
    #[arg(value_name = "DIR", help_heading = "Data and model")]
    model: PathBuf => [required];
    /// Shards that `silkie prepare` wrote for this model
    #[arg(value_name = "DIR", help_heading = "Data and model")]
    data: PathBuf => [required];
    /// Folder of the run: checkpoints, metrics, result
    #[arg(value_name = "DIR", help_heading = "Data and model")]
    out: PathBuf => [required];
    /// What is trained [lora]
    #[arg(value_name = "SET", help_heading = "Data and model")]
    trainable: Train => [default Train::Lora];
    /// Start from this adapter instead of a fresh one
    #[arg(value_name = "DIR", help_heading = "Data and model")]
    init_adapter: PathBuf => [optional];
    /// Rank of a fresh adapter [64]
    #[arg(value_name = "N", help_heading = "Data and model")]
    lora_r: usize => [default 64];
    /// Its scale is alpha / r [16.0]
    #[arg(value_name = "X", help_heading = "Data and model")]
    lora_alpha: f64 => [default 16.0];
    /// Modules it acts on, by the end of their names [c_attn,attn.c_proj,w1,w2]
    #[arg(value_name = "NAMES", value_delimiter = ',', help_heading = "Data and model")]
    lora_targets: Vec<String> => [default ["c_attn", "attn.c_proj", "w1", "w2"].map(String::from).into()];
    /// Share of the records that is only evaluated; 0: none [0.005]
    #[arg(value_name = "X", help_heading = "Data and model")]
    held_out: f64 => [default 0.005];
    /// Vision features: online or cached beside the shards [online]
    #[arg(value_name = "HOW", help_heading = "Data and model")]
    vision: Vision => [default Vision::Online];

    /// What is minimised [sigmoid]
    #[arg(value_name = "NAME", help_heading = "Loss")]
    loss: Kind => [default Kind::Sigmoid];
    /// Strength of the pull to the reference [0.1]
    #[arg(value_name = "X", help_heading = "Loss")]
    beta: f64 => [default 0.1];
    /// Share of pairs that `robust` takes for mislabelled [0.1]
    #[arg(value_name = "X", help_heading = "Loss")]
    label_smoothing: f64 => [default 0.1];
    /// Target margin of `simpo` [1.0]
    #[arg(value_name = "X", help_heading = "Loss")]
    simpo_gamma: f64 => [default 1.0];
    /// Leave the reference out of the loss [false]
    #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", help_heading = "Loss")]
    reference_free: bool => [default false];
    /// Divide log-probabilities by their number of tokens [false]
    #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", help_heading = "Loss")]
    length_normalised: bool => [default false];
    /// Weight of the chosen answer's mean negative log-likelihood [0.0]
    #[arg(value_name = "X", help_heading = "Loss")]
    rpo_alpha: f64 => [default 0.0];
    /// Answers that `sft` learns [best]
    #[arg(value_name = "WHICH", help_heading = "Loss")]
    sft_target: SftTarget => [default SftTarget::Best];
    /// Reference log-probabilities: a sidecar of the shards, or online [sidecar]
    #[arg(value_name = "HOW", help_heading = "Loss")]
    reference: Reference => [default Reference::Sidecar];

    /// Passes over the training records [3]
    #[arg(value_name = "N", help_heading = "Batches")]
    epochs: u64 => [default 3];
    /// Steps instead of epochs
    #[arg(value_name = "N", help_heading = "Batches")]
    steps: u64 => [optional];
    /// Pairs (answers for `sft`) of a step, at least [256]
    #[arg(value_name = "N", help_heading = "Batches")]
    batch_pairs: usize => [default 256];
    /// Records of a step, instead of pairs
    #[arg(value_name = "N", help_heading = "Batches")]
    batch_records: usize => [optional];
    /// Tokens that go through the model at once, at most [4096]
    #[arg(value_name = "N", help_heading = "Batches")]
    token_budget: usize => [default 4096];
    /// tree: prompts once; pairs: again for every answer [tree]
    #[arg(value_name = "HOW", help_heading = "Batches")]
    layout: Layout => [default Layout::Tree];
    /// What is drawn in random order [records]
    #[arg(value_name = "WHAT", help_heading = "Batches")]
    shuffle: Shuffle => [default Shuffle::Records];
    /// Seed of order, adapter and random answers [42]
    #[arg(value_name = "N", help_heading = "Batches")]
    seed: u64 => [default 42];

    /// Highest learning rate [1e-5]
    #[arg(value_name = "X", help_heading = "Optimizer")]
    lr: f64 => [default 1e-5];
    /// Learning rate after the warm-up [cosine]
    #[arg(value_name = "SHAPE", help_heading = "Optimizer")]
    schedule: Shape => [default Shape::Cosine];
    /// Share of the steps that warm up [0.1]
    #[arg(value_name = "X", help_heading = "Optimizer")]
    warmup_ratio: f64 => [default 0.1];
    /// Steps that warm up, instead of a share
    #[arg(value_name = "N", help_heading = "Optimizer")]
    warmup_steps: u64 => [optional];
    /// Where the cosine ends, as a share of the highest rate [0.0]
    #[arg(value_name = "X", help_heading = "Optimizer")]
    min_lr_ratio: f64 => [default 0.0];
    /// Factors on the rate of tensors whose names contain a text
    #[arg(value_name = "TEXT=X", value_delimiter = ',', help_heading = "Optimizer")]
    lr_scale: Vec<String> => [default Vec::new()];
    /// AdamW's decay of the first moment [0.9]
    #[arg(value_name = "X", help_heading = "Optimizer")]
    beta1: f64 => [default 0.9];
    /// AdamW's decay of the second moment [0.98]
    #[arg(value_name = "X", help_heading = "Optimizer")]
    beta2: f64 => [default 0.98];
    /// AdamW's epsilon [1e-8]
    #[arg(value_name = "X", help_heading = "Optimizer")]
    eps: f64 => [default 1e-8];
    /// Weight decay of everything but biases and LayerNorms [0.05]
    #[arg(value_name = "X", help_heading = "Optimizer")]
    weight_decay: f64 => [default 0.05];
    /// Clip the gradient to this norm; 0: never, as the published run [0.0]
    #[arg(value_name = "X", help_heading = "Optimizer")]
    max_grad_norm: f64 => [default 0.0];

    /// Evaluate the held-out records every N steps; 0: only at the end [100]
    #[arg(value_name = "N", help_heading = "Run")]
    eval_every: u64 => [default 100];
    /// Save a checkpoint every N steps; 0: only when stopped [100]
    #[arg(value_name = "N", help_heading = "Run")]
    save_every: u64 => [default 100];
    /// Checkpoints that stay [2]
    #[arg(value_name = "N", help_heading = "Run")]
    keep: usize => [default 2];
    /// auto, cpu, cuda or cuda:N; auto is cpu until whole steps run on CUDA [auto]
    #[arg(value_name = "DEVICE", help_heading = "Run")]
    device: String => [default "auto".to_string()];
}

/// Settings that leave every number of the run as it is: a resumed run may change them.
const FREE: [&str; 4] = ["eval-every", "save-every", "keep", "device"];

impl Settings {
    /// Reads a TOML file. Errors name the line and the key.
    pub fn read(path: &Path) -> Result<Settings> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        Self::parse(path, &text)
    }

    /// Parses TOML; `path` is only named in errors.
    pub fn parse(path: &Path, text: &str) -> Result<Settings> {
        toml::from_str(text).map_err(|e| {
            let before = |end: usize| text.bytes().take(end).filter(|&byte| byte == b'\n').count();
            let at = e.span().map_or(String::new(), |s| format!("line {}", before(s.start) + 1));
            Error::file(path, at, e.message())
        })
    }

    /// Fills in the defaults and checks every value. Errors name the flag.
    pub fn resolve(self) -> Result<Config> {
        let config = self.defaulted()?;
        config.check()?;
        Ok(config)
    }
}

impl Config {
    /// The configuration as TOML, readable by [`Settings::parse`].
    pub fn to_toml(&self) -> String {
        // `check` has seen that it can be.
        toml::to_string(self).unwrap_or_else(|e| unreachable!("a configuration as TOML: {e}"))
    }

    /// Errors with the first setting whose change would make a resumed run another run.
    pub fn check_resumed(&self, saved: &Config) -> Result<()> {
        let table = |config: &Config| toml::Table::try_from(config).unwrap_or_default();
        let (now, then) = (table(self), table(saved));
        let keys = now.keys().chain(then.keys()).filter(|key| !FREE.contains(&key.as_str()));
        for key in keys {
            if now.get(key) != then.get(key) && key != "out" {
                let show =
                    |t: &toml::Table| t.get(key).map_or("nothing".into(), toml::Value::to_string);
                return Err(Error::Usage(format!(
                    "--{key} {}: the run in {} was started with {}; leave it out to resume",
                    show(&now),
                    self.out.display(),
                    show(&then)
                )));
            }
        }
        Ok(())
    }

    /// The loss.
    pub fn loss(&self) -> Loss {
        Loss {
            kind: self.loss,
            beta: self.beta,
            label_smoothing: self.label_smoothing,
            gamma: self.simpo_gamma,
            reference_free: self.reference_free,
            length_normalised: self.length_normalised,
            rpo_alpha: self.rpo_alpha,
        }
    }

    /// The learning rates of a run of `total` steps.
    pub fn schedule(&self, total: u64) -> Schedule {
        let warmup = self.warmup_steps.unwrap_or_else(|| warmup_steps(self.warmup_ratio, total));
        let (shape, peak, min_ratio) = (self.schedule, self.lr, self.min_lr_ratio);
        Schedule { shape, peak, warmup, total, min_ratio }
    }

    /// What a record contributes.
    fn objective(&self) -> Objective {
        match (self.loss, self.sft_target) {
            (Kind::Sft, SftTarget::Random) => Objective::Random,
            (Kind::Sft, SftTarget::Best) => Objective::Best,
            (Kind::Sft, SftTarget::All) => Objective::All,
            _ => Objective::Pairs,
        }
    }

    /// The set of trained tensors.
    pub fn trainable(&self) -> Trainable {
        match self.trainable {
            Train::Lora => Trainable::Lora,
            Train::Full => Trainable::Full,
            Train::All => Trainable::All,
        }
    }

    /// The division of the data and the cutting into packs.
    pub fn plan(&self) -> Spec {
        Spec {
            objective: self.objective(),
            batch: self.batch_records.map_or(Batch::Items(self.batch_pairs), Batch::Records),
            token_budget: self.token_budget,
            layout: self.layout,
            shuffle: self.shuffle,
            seed: self.seed,
            held_out: self.held_out,
            rank: 0,
            world: 1,
        }
    }

    /// Factor on the learning rate of the tensor `name`: that of the first text it contains.
    pub fn lr_factor(&self, name: &str) -> f64 {
        let mut scales = self.lr_scale.iter().filter_map(|scale| lr_scale(scale));
        scales.find(|(text, _)| name.contains(text)).map_or(1.0, |(_, factor)| factor)
    }

    fn check(&self) -> Result<()> {
        let share = |x: f64| (0.0..=1.0).contains(&x);
        let least = |x: f64| x >= 0.0 && x.is_finite();
        let checks = [
            ("lora-r", self.lora_r > 0, "at least 1"),
            ("lora-alpha", self.lora_alpha.is_finite(), "a finite number"),
            ("held-out", (0.0..1.0).contains(&self.held_out), "at least 0 and below 1"),
            ("beta", self.beta > 0.0 && self.beta.is_finite(), "more than 0"),
            ("label-smoothing", share(self.label_smoothing), "from 0 to 1"),
            ("simpo-gamma", self.simpo_gamma.is_finite(), "a finite number"),
            ("rpo-alpha", least(self.rpo_alpha), "at least 0"),
            ("epochs", self.epochs > 0, "at least 1"),
            ("steps", self.steps != Some(0), "at least 1"),
            ("batch-pairs", self.batch_pairs > 0, "at least 1"),
            ("batch-records", self.batch_records != Some(0), "at least 1"),
            ("token-budget", (1..1 << 31).contains(&self.token_budget), "from 1 to 2^31"),
            ("lr", least(self.lr), "at least 0"),
            ("warmup-ratio", share(self.warmup_ratio), "from 0 to 1"),
            ("min-lr-ratio", share(self.min_lr_ratio), "from 0 to 1"),
            ("lr-scale", self.lr_scale.iter().all(|s| lr_scale(s).is_some()), "TEXT=NUMBER"),
            ("beta1", (0.0..1.0).contains(&self.beta1), "at least 0 and below 1"),
            ("beta2", (0.0..1.0).contains(&self.beta2), "at least 0 and below 1"),
            ("eps", self.eps > 0.0 && self.eps.is_finite(), "more than 0"),
            ("weight-decay", least(self.weight_decay), "at least 0"),
            ("max-grad-norm", least(self.max_grad_norm), "at least 0"),
            ("keep", self.keep > 0, "at least 1"),
        ];
        // What TOML cannot hold could not be saved: paths that are no UTF-8, numbers beyond 2^63.
        let table = toml::Table::try_from(self);
        let table =
            table.map_err(|e| Error::Usage(format!("cannot save the configuration: {e}")))?;
        if let Some((flag, _, expected)) = checks.iter().find(|(_, holds, _)| !holds) {
            let got = table.get(*flag).map_or(String::new(), toml::Value::to_string);
            return Err(Error::Usage(format!("--{flag}: expected {expected}, got {got}")));
        }
        let lora = self.trainable == Train::Lora;
        if self.init_adapter.is_some() && !lora {
            let message =
                "--init-adapter: only --trainable lora continues an adapter; merge it first";
            return Err(Error::Usage(message.into()));
        }
        if self.vision == Vision::Cached && !lora {
            let message = "--vision cached: the resampler is trained, its output is no constant; \
                           pass --vision online";
            return Err(Error::Usage(message.into()));
        }
        if self.reference == Reference::Online && !lora && self.loss().needs_reference() {
            let message = "--reference online: the base itself is trained and gone after the first \
                           step; pass --reference sidecar";
            return Err(Error::Usage(message.into()));
        }
        Device::gpu_named(&self.device).map(|_| ())
    }
}

fn lr_scale(text: &str) -> Option<(&str, f64)> {
    let (name, factor) = text.rsplit_once('=')?;
    let factor: f64 = factor.trim().parse().ok()?;
    (!name.is_empty() && factor >= 0.0 && factor.is_finite()).then_some((name.trim(), factor))
}

fn missing(name: &str) -> Error {
    Error::Usage(format!("--{name} is missing: give it as a flag or in the file of --config"))
}
