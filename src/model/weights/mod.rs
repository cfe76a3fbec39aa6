//! The weights of a model folder, mapped: nothing is read before it is used.
//!
//! [`Weights::open`] finds the files, opens every tensor and holds names and shapes against the
//! configuration, so that whoever asks for a tensor later gets what the configuration says.

mod files;
mod fingerprint;
mod mapped;
mod pickle;
pub mod safetensors;
pub mod torch;
pub mod write;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub use fingerprint::Fingerprint;
pub use mapped::MappedTensor;

use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::names;
use files::Format;

/// Every tensor of a checkpoint, by name.
#[derive(Debug)]
pub struct Weights {
    files: Vec<PathBuf>,
    tensors: Vec<MappedTensor>,
    index: HashMap<String, usize>,
}

impl Weights {
    /// Opens the weights in `dir`, which must be exactly those of `config`.
    ///
    /// Errors name the file and the tensor: missing, unknown, given twice, of another shape, or
    /// with data that do not lie in the file.
    pub fn open(dir: impl AsRef<Path>, config: &ModelConfig) -> Result<Self> {
        let dir = dir.as_ref();
        let files = files::find(dir)?;
        let mut found: HashMap<String, (&Path, MappedTensor)> = HashMap::new();
        for path in &files.paths {
            let tensors = match files.format {
                Format::Safetensors => safetensors::open(path)?,
                Format::Pickle => torch::open(path)?,
            };
            for tensor in tensors {
                let name = tensor.name().to_string();
                if let Some((other, _)) = found.insert(name.clone(), (path, tensor)) {
                    let message = format!("also in {}; keep one of them", other.display());
                    return Err(Error::file(path, format!("tensor {name}"), message));
                }
            }
        }
        for (name, path) in &files.promised {
            if found.get(name).is_none_or(|(place, _)| place != path) {
                let message = "missing, although the index says it is here; download the file";
                return Err(Error::file(path, format!("tensor {name}"), message));
            }
        }
        let tensors = matching(dir, &names::tensors(config), found)?;
        let index = tensors.iter().enumerate().map(|(i, t)| (t.name().to_string(), i)).collect();
        Ok(Weights { files: files.paths, tensors, index })
    }

    /// The tensor `name`.
    ///
    /// Panics when [`names::tensors`] of the configuration has no such name.
    pub fn get(&self, name: &str) -> &MappedTensor {
        match self.index.get(name) {
            Some(&i) => &self.tensors[i],
            None => panic!("{name} is no tensor of this configuration"),
        }
    }

    /// All tensors, in the order of [`names::tensors`].
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &MappedTensor> {
        self.tensors.iter()
    }

    /// The files the tensors lie in.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

/// The tensors of `found` in the order of `specs`, which they must match one to one.
fn matching(
    dir: &Path,
    specs: &[names::TensorSpec],
    mut found: HashMap<String, (&Path, MappedTensor)>,
) -> Result<Vec<MappedTensor>> {
    let missing: Vec<_> = specs.iter().filter(|spec| !found.contains_key(&spec.name)).collect();
    if let [first, rest @ ..] = missing.as_slice() {
        let message = format!(
            "missing, and {} more: expected the {} tensors of config.json; is a shard missing, or \
             is this config.json another model's?",
            rest.len(),
            specs.len()
        );
        return Err(Error::file(dir, format!("tensor {}", first.name), message));
    }
    let mut tensors = Vec::with_capacity(specs.len());
    for spec in specs {
        let Some((path, tensor)) = found.remove(&spec.name) else {
            unreachable!("{} was found above", spec.name)
        };
        if tensor.shape() != spec.shape {
            let (got, expected) = (tensor.shape(), &spec.shape);
            let message = format!("shape: expected {expected:?} by config.json, got {got:?}");
            return Err(Error::file(path, format!("tensor {}", spec.name), message));
        }
        tensors.push(tensor);
    }
    match found.iter().min_by_key(|(name, _)| name.as_str()) {
        None => Ok(tensors),
        Some((name, (path, _))) => {
            let message = "not a tensor of this config.json; is it another model's?";
            Err(Error::file(path, format!("tensor {name}"), message))
        }
    }
}
