//! The reference's log-probabilities, beside the shards: constants of every run on the same data
//! and base, computed once.
//!
//! ```text
//! DATA/reference-BASE.sidecar     one line of JSON (Header), then f64 per branch of every record,
//!                                 in order; NaN where nobody has asked yet
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::data::atomic;
use crate::data::pack::{BranchId, Pack};
use crate::data::shard::Dataset;
use crate::error::{Error, Result};

/// What the numbers depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Fingerprint of the shards.
    pub data: String,
    /// Fingerprint of the base model.
    pub base: String,
    /// Kind of device that computed them.
    pub device: String,
    /// Precision they were computed in.
    pub dtype: String,
    /// Fingerprint of the chat template.
    pub template: String,
    /// Fingerprint of the truncation rule.
    pub truncation: String,
}

impl Key {
    /// For the CPU device.
    pub fn new(data: &Dataset, base: &str) -> Key {
        let target = data.target();
        Key {
            data: format!("{:016x}", data.fingerprint()),
            base: base.to_string(),
            device: "cpu".into(),
            dtype: "f32".into(),
            template: format!("{:016x}", target.template),
            truncation: format!("{:016x}", target.truncation),
        }
    }

    /// Errors with the first part in which `self`, found in `path`, is not `expected`.
    fn check(&self, path: &Path, expected: &Key) -> Result<()> {
        let parts = |key: &Key| {
            [
                ("another base model", key.base.clone()),
                ("another chat template", key.template.clone()),
                ("another truncation", key.truncation.clone()),
                ("other shards", key.data.clone()),
                ("another device", key.device.clone()),
                ("another precision", key.dtype.clone()),
            ]
        };
        for ((what, got), (_, expected)) in parts(self).into_iter().zip(parts(expected)) {
            if got != expected {
                let message = format!(
                    "the reference belongs to {what}: expected {expected}, got {got}; remove the \
                     file to compute it again, or pass --reference online"
                );
                return Err(Error::file(path, "", message));
            }
        }
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    silkie_reference: u32,
    key: Key,
    branches: usize,
    checksum: String,
}

const VERSION: u32 = 1;

/// Log-probabilities of every branch of a data set, as far as they are known.
pub struct Sidecar {
    path: PathBuf,
    key: Key,
    /// Branches of the records before each record.
    first: Vec<usize>,
    values: Vec<f64>,
}

impl Sidecar {
    /// Opens the sidecar of `data` for `key`; where there is none, nothing is known yet.
    ///
    /// Errors: one that belongs to other shards, another template or device; a damaged one.
    pub fn open(data: &Dataset, key: Key) -> Result<Sidecar> {
        let path = data.folder().join(format!("reference-{}.sidecar", key.base));
        let mut first = vec![0];
        for record in data.records() {
            first.push(first[first.len() - 1] + record.branches.len());
        }
        let branches = first[first.len() - 1];
        let values = match std::fs::read(&path) {
            Ok(bytes) => {
                let (found, values) = parse(&path, &bytes)?;
                found.check(&path, &key)?;
                values
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => vec![f64::NAN; branches],
            Err(e) => return Err(Error::io(&path, "read", e)),
        };
        if values.len() != branches {
            let got = values.len();
            let message = format!("expected {branches} branches, got {got}; remove the file");
            return Err(Error::file(&path, "", message));
        }
        Ok(Sidecar { path, key, first, values })
    }

    /// log π of a branch under the reference; NaN when nobody has asked yet.
    pub fn get(&self, id: BranchId) -> f64 {
        self.values[self.first[id.record as usize] + id.branch as usize]
    }

    /// `[branches]` of a pack.
    pub fn of(&self, pack: &Pack) -> Vec<f64> {
        pack.branches.iter().map(|&id| self.get(id)).collect()
    }

    /// Takes in what a pack gave; [`save`](Self::save) makes it last.
    pub fn set(&mut self, pack: &Pack, log_probs: &[f64]) {
        for (id, &value) in pack.branches.iter().zip(log_probs) {
            self.values[self.first[id.record as usize] + id.branch as usize] = value;
        }
    }

    /// Writes the file, replacing it whole.
    pub fn save(&self) -> Result<()> {
        let data: &[u8] = bytemuck::cast_slice(&self.values);
        let header = Header {
            silkie_reference: VERSION,
            key: self.key.clone(),
            branches: self.values.len(),
            checksum: format!("{:016x}", xxh3_64(data)),
        };
        let header = serde_json::to_string(&header);
        let header = header.map_err(|e| Error::io(&self.path, "write", e.into()))? + "\n";
        atomic::write_bytes(&self.path, &[header.as_bytes(), data].concat())
    }
}

/// Key and values of a sidecar's bytes; `path` is only named in errors.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<(Key, Vec<f64>)> {
    let fail =
        |m: String| Error::file(path, "", format!("{m}; remove the file to compute it again"));
    let end = bytes.iter().position(|&b| b == b'\n');
    let end = end.ok_or_else(|| fail("no reference sidecar: its first line has no end".into()))?;
    let header: Header = serde_json::from_slice(&bytes[..end])
        .map_err(|e| fail(format!("no reference sidecar: {e}")))?;
    let (data, got) = (&bytes[end + 1..], header.silkie_reference);
    if got != VERSION {
        return Err(fail(format!("expected version {VERSION}, got {got}")));
    }
    if header.branches.checked_mul(size_of::<f64>()) != Some(data.len()) {
        let (n, bytes) = (header.branches, data.len());
        return Err(fail(format!("truncated: {n} branches do not fit {bytes} bytes")));
    }
    if format!("{:016x}", xxh3_64(data)) != header.checksum {
        return Err(fail("altered or damaged".into()));
    }
    let values = data.as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
    Ok((header.key, values))
}
