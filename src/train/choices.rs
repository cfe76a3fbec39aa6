//! Settings that are one of a few words.

use serde::{Deserialize, Serialize};

/// Which answers of a record `sft` learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SftTarget {
    /// One, drawn anew each epoch.
    Random,
    /// The one with the highest score.
    Best,
    /// Every one.
    All,
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Train {
    /// A LoRA adapter on the decoder.
    Lora,
    /// Decoder, embeddings, head and resampler.
    Full,
    /// The vision tower as well.
    All,
}

/// Where reference log-probabilities come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Reference {
    /// Computed once, stored beside the shards, read by every later run.
    Sidecar,
    /// Computed with every pack.
    Online,
}

/// Where the vision tower's output comes from while the tower is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Vision {
    /// Computed with every pack.
    Online,
    /// Computed once per image, stored beside the shards.
    Cached,
}
