//! What a base model is, in 16 hex digits: sidecars and checkpoints carry it.

use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::weights::Weights;

/// A model that stored constants belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// All weights and the configuration.
    pub model: String,
    /// Vision tower and resampler, and their configuration.
    pub visual: String,
}

impl Base {
    /// The fingerprints of the model in `dir`; the folder `cache` remembers what its weights hash
    /// to, by size and time of their files.
    pub fn of(dir: &Path, config: &ModelConfig, cache: &Path) -> Result<Base> {
        let weights = Weights::open(dir, config)?;
        let weights = weights.fingerprint(Some(&cache.join("base-fingerprint.json")))?;
        let visual = format!("{:?}", config.visual);
        Ok(Base {
            model: join(weights.base, &config.to_json()),
            visual: join(weights.visual, &visual),
        })
    }
}

fn join(weights: u64, config: &str) -> String {
    let mut hash = Xxh3::new();
    hash.update(&weights.to_le_bytes());
    hash.update(config.as_bytes());
    format!("{:016x}", hash.digest())
}
