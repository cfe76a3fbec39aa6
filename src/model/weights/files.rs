//! Which files of a model folder hold its weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};

/// How tensors are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Safetensors,
    Pickle,
}

/// The weight files of a folder.
pub(super) struct Files {
    pub(super) format: Format,
    pub(super) paths: Vec<PathBuf>,
    /// What an index promises: tensor name -> file.
    pub(super) promised: BTreeMap<String, PathBuf>,
}

const KINDS: [(&str, &str, Format); 2] =
    [("model", "safetensors", Format::Safetensors), ("pytorch_model", "bin", Format::Pickle)];

/// Finds the weights of `dir`: one file, an index with its shards, or shards without an index;
/// safetensors before `.bin`.
pub(super) fn find(dir: &Path) -> Result<Files> {
    for (stem, extension, format) in KINDS {
        let single = dir.join(format!("{stem}.{extension}"));
        if single.is_file() {
            return Ok(Files { format, paths: vec![single], promised: BTreeMap::new() });
        }
        let index = dir.join(format!("{stem}.{extension}.index.json"));
        if index.is_file() {
            return indexed(dir, &index, format);
        }
        let paths = shards(dir, &format!("{stem}-"), &format!(".{extension}"))?;
        if !paths.is_empty() {
            return Ok(Files { format, paths, promised: BTreeMap::new() });
        }
    }
    let message = "no weights: expected model.safetensors, model.safetensors.index.json, \
                   pytorch_model.bin or pytorch_model-*.bin; download the model's files";
    Err(Error::file(dir, "", message))
}

/// Endings of files that hold weights, in any library's format, or an index of them.
const WEIGHT_ENDINGS: [&str; 12] = [
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".gguf",
    ".ggml",
    ".onnx",
    ".npz",
    ".index.json",
];

/// Whether a file of this name holds weights or an index of them, which a model written anew must
/// not inherit.
pub(super) fn is_weight_file(name: &str) -> bool {
    WEIGHT_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

fn indexed(dir: &Path, index: &Path, format: Format) -> Result<Files> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index).map_err(|e| Error::io(index, "read the index", e))?;
    let parsed: Index = serde_json::from_str(&text)
        .map_err(|e| Error::file(index, "", format!("expected an object with weight_map: {e}")))?;
    let mut promised = BTreeMap::new();
    for (name, file) in parsed.weight_map {
        // A shard lies beside its index: a path that leads elsewhere is not followed.
        if Path::new(&file).file_name() != Some(file.as_ref()) {
            let message = format!("expected the name of a file beside the index, got {file:?}");
            return Err(Error::file(index, format!("tensor {name}"), message));
        }
        promised.insert(name, dir.join(file));
    }
    let mut paths: Vec<PathBuf> = promised.values().cloned().collect();
    paths.sort();
    paths.dedup();
    if let Some(missing) = paths.iter().find(|path| !path.is_file()) {
        let message = format!("missing, although {} names it; download it", index.display());
        return Err(Error::file(missing, "", message));
    }
    Ok(Files { format, paths, promised })
}

fn shards(dir: &Path, prefix: &str, suffix: &str) -> Result<Vec<PathBuf>> {
    let io = |e| Error::io(dir, "list the model's folder", e);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(prefix) && name.ends_with(suffix) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}
