//! How the demo makes its world, its model and its three training runs.
//!
//! The training runs are TOML, as a user would write it for `silkie train --config`.

use serde::Serialize;

use super::files::Sizes;
use crate::error::Result;
use crate::train::config::{Config, Settings};

/// Everything but the seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    /// Pictures, captions, records.
    pub sizes: Sizes,
    /// Steps of each phase; fewer than the settings say shorten the run.
    pub steps: Steps,
    /// Held-out records whose questions are answered greedily.
    pub answered: usize,
}

/// Optimizer steps of each phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Steps {
    /// Captions: the model learns to see and to speak.
    pub captions: u64,
    /// Answers drawn at random: it learns what an answer looks like, not which is true.
    pub answers: u64,
    /// Preference distillation.
    pub align: u64,
}

impl Recipe {
    /// What `silkie demo` runs.
    pub const DEFAULT: Recipe = Recipe {
        sizes: Sizes { pictures: 4000, questions: 3, held_out: 1000 },
        steps: Steps { captions: 700, answers: 700, align: 700 },
        answered: 200,
    };

    /// Everything small: seconds, to check the path.
    pub const SHORT: Recipe = Recipe {
        sizes: Sizes { pictures: 40, questions: 2, held_out: 8 },
        steps: Steps { captions: 4, answers: 2, align: 3 },
        answered: 4,
    };
}

/// A training run of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// The folder of the run and of its TOML file.
    pub name: &'static str,
    /// What it is for, in a few words.
    pub purpose: &'static str,
    /// The settings, without paths, steps and seed.
    toml: &'static str,
}

/// All parameters, on captions.
pub const CAPTIONS: Phase = Phase {
    name: "captions",
    purpose: "learns to see and to speak",
    toml: r#"trainable = "all"
loss = "sft"
sft-target = "all"
batch-records = 16
lr = 1e-3
warmup-steps = 30
min-lr-ratio = 0.2
weight-decay = 0.0
max-grad-norm = 1.0
held-out = 0.0
eval-every = 0
save-every = 0
"#,
};

/// All parameters, on one of a record's four answers, drawn at random. Such answers reward looking
/// away, so what sees learns slowly.
pub const ANSWERS: Phase = Phase {
    name: "answers",
    purpose: "learns to answer, true or false",
    toml: r#"trainable = "all"
loss = "sft"
sft-target = "random"
batch-records = 16
lr-scale = ["visual=0.03"]
lr = 2e-3
warmup-steps = 10
min-lr-ratio = 0.2
weight-decay = 0.0
max-grad-norm = 1.0
held-out = 0.0
eval-every = 0
save-every = 0
"#,
};

/// A LoRA adapter, by preferences.
pub const ALIGN: Phase = Phase {
    name: "align",
    purpose: "learns to prefer the true answer",
    toml: r#"trainable = "lora"
lora-r = 32
lora-alpha = 64.0
loss = "sigmoid"
beta = 0.1
rpo-alpha = 1.0
batch-records = 16
lr = 3e-3
warmup-steps = 10
min-lr-ratio = 0.2
weight-decay = 0.0
max-grad-norm = 1.0
held-out = 0.0
vision = "cached"
eval-every = 0
save-every = 0
"#,
};

/// Control: [`ALIGN`] without its NLL term.
pub const WITHOUT_NLL: Phase =
    Phase { name: "without-nll", purpose: "control: preferences alone", toml: ALIGN.toml };

/// Control: the NLL of the best answer alone, no preferences.
pub const NLL_ALONE: Phase =
    Phase { name: "nll-alone", purpose: "control: imitates the best answer", toml: ALIGN.toml };

impl Phase {
    /// The whole file, for `silkie train --config`: `paths` are model, data and out.
    ///
    /// Errors only on a path that TOML cannot hold.
    pub fn file(&self, paths: [&std::path::Path; 3], steps: u64, seed: u64) -> Result<String> {
        let mut text = format!("# silkie demo: {}\n", self.purpose);
        for (key, path) in ["model", "data", "out"].into_iter().zip(paths) {
            text += &format!("{key} = {}\n", toml::Value::from(path.to_string_lossy().as_ref()));
        }
        text += &format!("steps = {steps}\nseed = {seed}\n");
        let changes: &[(&str, &str)] = match *self {
            WITHOUT_NLL => &[("rpo-alpha = 1.0", "rpo-alpha = 0.0")],
            NLL_ALONE => &[
                ("loss = \"sigmoid\"", "loss = \"sft\"\nsft-target = \"best\""),
                ("rpo-alpha = 1.0", "rpo-alpha = 0.0"),
            ],
            _ => &[],
        };
        let settings = self.toml.to_string();
        Ok(text + &changes.iter().fold(settings, |text, (from, to)| text.replace(from, to)))
    }

    /// The file's settings, resolved.
    pub fn config(path: &std::path::Path) -> Result<Config> {
        Settings::read(path)?.resolve()
    }
}
