//! Writer of weights: one safetensors file, or an HF model folder with shards and their index.
//!
//! Tensors are produced one after another while the file is written, so that nothing larger than
//! the piece in hand is ever in memory; files and folders appear whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::data::atomic;
use crate::error::{Error, Result};
use crate::model::weights::files::is_weight_file;
use crate::model::weights::mapped::byte_length;
use crate::tensor::DType;

/// Shard size of written models: what HF libraries call 5GB.
pub const SHARD_BYTES: usize = 5_000_000_000;

/// Elements narrowed by one task.
const CHUNK: usize = 1 << 16;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Name in the file.
    pub name: String,
    /// Shape in the file.
    pub shape: Vec<usize>,
    /// f32, bf16 or f16.
    pub dtype: DType,
}

impl Output {
    /// Size of the data.
    pub fn bytes(&self) -> usize {
        byte_length(self.dtype, &self.shape)
            .unwrap_or_else(|| panic!("{}: {:?} overflows", self.name, self.shape))
    }
}

/// Takes one tensor's data, in pieces, in row-major order.
pub struct Sink<'a> {
    path: &'a Path,
    writer: &'a mut BufWriter<File>,
    dtype: DType,
    narrowed: &'a mut Vec<u8>,
    written: usize,
}

impl Sink<'_> {
    /// The next bytes of the tensor, in its dtype, little-endian.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len();
        self.writer.write_all(bytes).map_err(|e| Error::io(self.path, "write", e))
    }

    /// The next elements of the tensor, rounded to its dtype (to nearest, ties to even).
    pub fn floats(&mut self, values: &[f32]) -> Result<()> {
        match self.dtype {
            DType::Bf16 => self.narrow(values, bf16::from_f32),
            DType::F16 => self.narrow(values, f16::from_f32),
            _ => self.bytes(bytemuck::cast_slice(values)),
        }
    }

    fn narrow<T: bytemuck::Pod + Send>(
        &mut self,
        values: &[f32],
        round: fn(f32) -> T,
    ) -> Result<()> {
        let size = size_of::<T>();
        let mut narrowed = std::mem::take(self.narrowed);
        narrowed.resize(values.len() * size, 0);
        values.par_chunks(CHUNK).zip(narrowed.par_chunks_mut(CHUNK * size)).for_each(
            |(from, to)| {
                for (&x, to) in from.iter().zip(to.chunks_exact_mut(size)) {
                    to.copy_from_slice(bytemuck::bytes_of(&round(x)));
                }
            },
        );
        let result = self.bytes(&narrowed);
        *self.narrowed = narrowed;
        result
    }
}

/// Writes one safetensors file; `produce` is called once per tensor, in order.
///
/// Panics when `produce` gives a tensor more or fewer bytes than its shape says.
pub fn file(
    path: impl AsRef<Path>,
    tensors: &[Output],
    mut produce: impl FnMut(&Output, &mut Sink<'_>) -> Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    atomic::write(path, |writer| {
        let header = header(tensors);
        let length = (header.len() as u64).to_le_bytes();
        for part in [&length[..], header.as_bytes()] {
            writer.write_all(part).map_err(|e| Error::io(path, "write", e))?;
        }
        let narrowed = &mut Vec::new();
        for tensor in tensors {
            let mut sink = Sink { path, writer, dtype: tensor.dtype, narrowed, written: 0 };
            produce(tensor, &mut sink)?;
            let (written, expected) = (sink.written, tensor.bytes());
            assert!(written == expected, "{}: {written} bytes of {expected}", tensor.name);
        }
        Ok(())
    })
}

/// Writes a model folder: the weights as `model.safetensors`, or in shards of at most
/// `max_shard_bytes` of data (a larger tensor gets a shard of its own) with their index, and
/// whatever `companions` puts into the folder it is given. `out` must not exist, or be empty.
pub fn model(
    out: impl AsRef<Path>,
    tensors: &[Output],
    max_shard_bytes: usize,
    companions: impl FnOnce(&Path) -> Result<()>,
    mut produce: impl FnMut(&Output, &mut Sink<'_>) -> Result<()>,
) -> Result<()> {
    let out = out.as_ref();
    check_free(out)?;
    let folder = atomic::Folder::create(out)?;
    companions(folder.path())?;
    let shards = cut(tensors, max_shard_bytes);
    if let [all] = shards.as_slice() {
        file(folder.path().join("model.safetensors"), all, &mut produce)?;
        return folder.commit();
    }
    let mut places = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        file(folder.path().join(&name), shard, &mut produce)?;
        places.extend(shard.iter().map(|t| (t.name.clone(), json!(name))));
    }
    let total: usize = tensors.iter().map(Output::bytes).sum();
    let index = json!({ "metadata": { "total_size": total }, "weight_map": places });
    let text = format!("{index:#}\n");
    atomic::write_bytes(folder.path().join("model.safetensors.index.json"), text.as_bytes())?;
    folder.commit()
}

/// Copies every file of the model `base` that holds no weights into `folder`: configuration,
/// tokenizer, code. Folders in it are copied whole, except hidden ones (`.git`, download caches).
pub fn copy_companions(base: &Path, folder: &Path) -> Result<()> {
    let io = |e| Error::io(base, "list the model's folder", e);
    for entry in std::fs::read_dir(base).map_err(io)? {
        let entry = entry.map_err(io)?;
        let (from, name) = (entry.path(), entry.file_name());
        let (to, name) = (folder.join(&name), name.to_string_lossy());
        // Not `entry.file_type()`: download caches are full of links to the files meant.
        if from.is_dir() {
            if !name.starts_with('.') {
                std::fs::create_dir(&to).map_err(|e| Error::io(&to, "create the folder", e))?;
                copy_companions(&from, &to)?;
            }
        } else if !is_weight_file(&name) && !name.ends_with(".partial") {
            std::fs::copy(&from, &to).map_err(|e| Error::io(&from, "copy the file", e))?;
        }
    }
    Ok(())
}

/// Errors unless a folder can be put at `out`.
fn check_free(out: &Path) -> Result<()> {
    match std::fs::read_dir(out).map(|entries| entries.count()) {
        Ok(0) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(Error::file(out, "", "exists and is not empty; remove it or name another")),
        Err(e) => Err(Error::io(out, "use as a folder", e)),
    }
}

/// Consecutive tensors, as many per shard as fit.
fn cut(tensors: &[Output], max_bytes: usize) -> Vec<&[Output]> {
    let (mut shards, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (i, tensor) in tensors.iter().enumerate() {
        if bytes > 0 && bytes + tensor.bytes() > max_bytes {
            shards.push(&tensors[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += tensor.bytes();
    }
    shards.push(&tensors[start..]);
    shards
}

/// The JSON header, padded so that the data start at a multiple of 8 bytes.
fn header(tensors: &[Output]) -> String {
    let mut members = Map::from_iter([("__metadata__".to_string(), json!({ "format": "pt" }))]);
    let mut at = 0;
    for tensor in tensors {
        let dtype = match tensor.dtype {
            DType::F32 => "F32",
            DType::Bf16 => "BF16",
            DType::F16 => "F16",
            other => panic!("{}: weights are floats, not {other:?}", tensor.name),
        };
        let range = [at, at + tensor.bytes()];
        at = range[1];
        let entry = json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": range });
        members.insert(tensor.name.clone(), entry);
    }
    let mut text = Value::Object(members).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    text
}
