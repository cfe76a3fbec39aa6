//! A number that tells one set of weights from another, by their content.
//!
//! Stored log-probs and vision features are constants of the base model: they carry its
//! fingerprint, and another model's are refused. Hashing the real 19.3 GB takes as long as reading
//! them, hence the cache, keyed by the path, size and modification time of every file.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::data::atomic;
use crate::error::{Error, Result};
use crate::model::names;
use crate::model::weights::{MappedTensor, Weights};

/// Bytes hashed by one task; part of the definition of a fingerprint.
const CHUNK: usize = 1 << 24;

/// What the weights of a model hash to: names, dtypes, shapes and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Of every tensor.
    pub base: u64,
    /// Of vision tower and resampler.
    pub visual: u64,
}

/// What the cache file holds.
#[derive(PartialEq, Serialize, Deserialize)]
struct Cached {
    files: Vec<State>,
    fingerprint: Fingerprint,
}

/// A file as it was when it was hashed.
#[derive(PartialEq, Serialize, Deserialize)]
struct State {
    path: PathBuf,
    size: u64,
    /// Nanoseconds since 1970.
    modified: u128,
}

impl Weights {
    /// The fingerprint, from the file `cache` if it was made of these very files, else computed
    /// and written there. A cache that cannot be read or written only costs time.
    ///
    /// Errors when a file of the weights has gone.
    pub fn fingerprint(&self, cache: Option<&Path>) -> Result<Fingerprint> {
        let files = self.files().iter().map(|p| State::of(p)).collect::<Result<Vec<_>>>()?;
        let stored = cache.and_then(|path| std::fs::read(path).ok());
        let stored = stored.and_then(|text| serde_json::from_slice::<Cached>(&text).ok());
        if let Some(stored) = stored.filter(|stored| stored.files == files) {
            return Ok(stored.fingerprint);
        }
        let fingerprint = self.hash();
        if let Some(path) = cache {
            let text = serde_json::to_vec_pretty(&Cached { files, fingerprint });
            // See above: without the file the next call hashes again.
            let _ = text.map(|text| atomic::write_bytes(path, &text));
        }
        Ok(fingerprint)
    }

    fn hash(&self) -> Fingerprint {
        let tensors: Vec<(&MappedTensor, u64)> = self.iter().map(|t| (t, hash(t))).collect();
        let over = |prefix: &str| {
            let mut total = Xxh3::new();
            let chosen = tensors.iter().filter(|(tensor, _)| tensor.name().starts_with(prefix));
            chosen.for_each(|(_, hash)| total.update(&hash.to_le_bytes()));
            total.digest()
        };
        Fingerprint { base: over(""), visual: over(names::VISUAL) }
    }
}

/// Of a tensor: its name, dtype and shape, and the hashes of its chunks.
fn hash(tensor: &MappedTensor) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(format!("{tensor:?}").as_bytes());
    let chunks: Vec<u64> = tensor.bytes().par_chunks(CHUNK).map(xxh3_64).collect();
    chunks.iter().for_each(|chunk| hash.update(&chunk.to_le_bytes()));
    hash.digest()
}

impl State {
    fn of(path: &Path) -> Result<Self> {
        let io = |e| Error::io(path, "look at the weights", e);
        let path = std::fs::canonicalize(path).map_err(io)?;
        let metadata = std::fs::metadata(&path).map_err(io)?;
        let modified = metadata.modified().map_err(io)?.duration_since(UNIX_EPOCH);
        let modified = modified.map_or(0, |since| since.as_nanos());
        Ok(State { path, size: metadata.len(), modified })
    }
}
