//! Reader of safetensors files: a length (u64), a JSON header of names, dtypes, shapes and byte
//! ranges, then the data, which the ranges must cover without gap or overlap.
//!
//! Format: <https://github.com/huggingface/safetensors>. Our own reader, because errors must name
//! the tensor and a name that occurs twice must not go unnoticed.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::model::weights::mapped::{MappedTensor, byte_length, copy, map};
use crate::tensor::DType;

/// Headers beyond this are refused, as by the original library; the real one has 0.1 MB.
const MAX_HEADER: u64 = 100_000_000;

/// Opens every tensor of the file at `path`, in the order of their data.
///
/// Errors: no safetensors file, header and data that contradict each other, a dtype other than
/// F32, BF16, F16, a name given twice.
pub fn open(path: impl AsRef<Path>) -> Result<Vec<MappedTensor>> {
    let path = path.as_ref();
    read(path, &map(path)?)
}

/// As [`open`], of a file's content in memory; `path` is only named in errors.
pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Vec<MappedTensor>> {
    read(path, &copy(bytes).map_err(|e| Error::io(path, "copy the weights", e))?)
}

fn read(path: &Path, map: &Arc<Mmap>) -> Result<Vec<MappedTensor>> {
    let (entries, data) = header(path, map)?;
    let mut at = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for Entry { name, dtype, shape, begin, end } in entries {
        let wrong = |message: String| Err(Error::file(path, format!("tensor {name}"), message));
        if begin != at {
            return wrong(format!(
                "its data start at byte {begin}, expected {at}, where the tensor before it ends"
            ));
        }
        if byte_length(dtype, &shape) != end.checked_sub(begin) {
            return wrong(format!("bytes {begin}..{end} do not fit {shape:?} {dtype:?}"));
        }
        // begin <= end here; whether `end` lies in the file is checked by `in_file`.
        let Some(start) = data.checked_add(begin) else {
            return wrong(format!("its data start at byte {begin}, beyond any file"));
        };
        tensors.push(MappedTensor::in_file(path, map, start, &name, dtype, &shape)?);
        at = end;
    }
    if data + at != map.len() {
        let message = format!(
            "the tensors end at byte {}, the file has {}; the copy is altered, copy it again",
            data + at,
            map.len()
        );
        return Err(Error::file(path, "", message));
    }
    Ok(tensors)
}

struct Entry {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    begin: usize,
    end: usize,
}

/// The header's entries, ordered by their data, and where the data start.
fn header(path: &Path, bytes: &[u8]) -> Result<(Vec<Entry>, usize)> {
    let wrong = |message: String| Error::file(path, "header", message);
    let length = bytes.first_chunk().map(|&b| u64::from_le_bytes(b));
    let length = length.ok_or_else(|| wrong("not a safetensors file: under 8 bytes".into()))?;
    let rest = &bytes[8..];
    if length > MAX_HEADER || length as usize > rest.len() {
        return Err(wrong(format!(
            "its length reads {length}, the file has {} bytes; not a safetensors file, or truncated",
            bytes.len()
        )));
    }
    let members: Members = serde_json::from_slice(&rest[..length as usize])
        .map_err(|e| wrong(format!("not a safetensors file: {e}")))?;
    let mut entries = Vec::new();
    for (name, value) in members.0.into_iter().filter(|(name, _)| name != "__metadata__") {
        entries.push(entry(path, name, value)?);
    }
    let mut names: Vec<&str> = entries.iter().map(|e| e.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::file(path, format!("tensor {}", pair[0]), "given twice"));
    }
    entries.sort_by_key(|e| (e.begin, e.end));
    Ok((entries, 8 + length as usize))
}

fn entry(path: &Path, name: String, value: Value) -> Result<Entry> {
    #[derive(Deserialize)]
    struct Raw {
        dtype: String,
        shape: Vec<usize>,
        data_offsets: [usize; 2],
    }
    let wrong = |message: String| Error::file(path, format!("tensor {name}"), message);
    let raw: Raw = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
    let dtype = match raw.dtype.as_str() {
        "F32" => DType::F32,
        "BF16" => DType::Bf16,
        "F16" => DType::F16,
        other => return Err(wrong(format!("dtype: expected F32, BF16 or F16, got {other}"))),
    };
    let [begin, end] = raw.data_offsets;
    Ok(Entry { name, dtype, shape: raw.shape, begin, end })
}

/// A JSON object with all its members, repeated ones too.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}
