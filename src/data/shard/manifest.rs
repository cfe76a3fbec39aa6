//! `dataset.json`: what binds the shards of a folder.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Target, VERSION};
use crate::data::atomic;
use crate::error::{Error, Result};

/// First words of the file.
const FORMAT: &str = "silkie data set";

/// The content of `dataset.json`. Rewritten after every finished shard, so that an interrupted
/// preparation goes on where it stopped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Says what this file is.
    pub format: String,
    /// Version of the shard format.
    pub version: u32,
    /// Whether all records are in.
    pub complete: bool,
    /// What the shards were made for.
    pub target: Target,
    /// Everything else that decides the content: options and input files.
    pub settings: Value,
    /// Where the preparation stands and its counts so far; its own business.
    pub progress: Value,
    /// The finished shards, in order.
    pub shards: Vec<ShardLine>,
}

/// One finished shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardLine {
    /// Checksum of its header, 16 hexadecimal digits; it stands for the whole content.
    pub checksum: String,
    /// Records in it.
    pub records: u64,
    /// Images in it.
    pub images: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// `00017.shard`.
pub fn shard_name(number: usize) -> String {
    format!("{number:05}.shard")
}

impl Manifest {
    /// One without shards.
    pub fn new(target: Target, settings: Value) -> Self {
        let (format, version) = (FORMAT.into(), VERSION);
        let (progress, shards) = (Value::Null, Vec::new());
        Manifest { format, version, complete: false, target, settings, progress, shards }
    }

    /// The file's place in `folder`.
    pub fn path(folder: &Path) -> PathBuf {
        folder.join("dataset.json")
    }

    /// Reads the manifest of `folder`; `None` when there is no such file.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = Self::path(folder);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(path, "read the manifest", e)),
        };
        let error = |message: String| Error::file(&path, "", message);
        let again = "prepare the data into another folder or with --force";
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|e| error(format!("is no JSON object: {e}; {again}")))?;
        if value["format"] != FORMAT {
            return Err(error(format!(
                "format: expected \"{FORMAT}\", got {}; {again}",
                value["format"]
            )));
        }
        if value["version"] != VERSION {
            let got = &value["version"];
            return Err(error(format!("version: expected {VERSION}, got {got}; {again}")));
        }
        serde_json::from_value(value).map(Some).map_err(|e| error(format!("{e}; {again}")))
    }

    /// Writes the manifest into `folder`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut json = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::file(Self::path(folder), "", format!("cannot be told: {e}")))?;
        json.push(b'\n');
        atomic::write_bytes(Self::path(folder), &json)
    }
}
