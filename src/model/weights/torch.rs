//! Reader of `pytorch_model.bin`: a zip of stored entries, `ROOT/data.pkl` (see `super::pickle`)
//! and one `ROOT/data/KEY` of raw elements per storage. Tensors are mapped where they lie.

use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use zip::{CompressionMethod, ZipArchive};

use crate::error::{Error, Result};
use crate::model::weights::mapped::{MappedTensor, copy, map};
use crate::model::weights::pickle::{self, TensorRef};

/// The real shards' pickles have 10 kB each.
const MAX_PICKLE: u64 = 1 << 26;

/// Opens every tensor of the file at `path`, in the order of its state dict.
///
/// Errors: not a zip as `torch.save` writes it, a pickle that asks for anything but tensors, or
/// storages that do not lie in the file.
pub fn open(path: impl AsRef<Path>) -> Result<Vec<MappedTensor>> {
    let path = path.as_ref();
    read(path, &map(path)?)
}

/// As [`open`], of a file's content in memory; `path` is only named in errors.
pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Vec<MappedTensor>> {
    read(path, &copy(bytes).map_err(|e| Error::io(path, "copy the weights", e))?)
}

fn read(path: &Path, map: &Arc<Mmap>) -> Result<Vec<MappedTensor>> {
    let mut archive = Archive::open(path, map)?;
    let text = archive.pickle()?;
    let refs = pickle::tensors(text)
        .map_err(|e| Error::file(path, format!("{}data.pkl", archive.root), e))?;
    let mut tensors = Vec::with_capacity(refs.len());
    for tensor in &refs {
        let start = archive.storage(tensor)?;
        tensors.push(place(path, map, start, tensor)?);
    }
    Ok(tensors)
}

struct Archive<'a> {
    path: &'a Path,
    whole: &'a [u8],
    zip: ZipArchive<Cursor<&'a [u8]>>,
    /// The folder everything lies in, with its slash.
    root: String,
}

impl<'a> Archive<'a> {
    fn open(path: &'a Path, map: &'a Arc<Mmap>) -> Result<Self> {
        let wrong = |message: String| Error::file(path, "", message);
        let zip = ZipArchive::new(Cursor::new(&map[..])).map_err(|e| {
            wrong(format!("expected a zip as torch.save writes it since 1.6, got: {e}"))
        })?;
        let root = zip.file_names_raw().find_map(|name| name.strip_suffix(b"data.pkl"));
        let root = root.filter(|root| root.is_empty() || root.ends_with(b"/"));
        let root = root.and_then(|root| String::from_utf8(root.to_vec()).ok());
        let root =
            root.ok_or_else(|| wrong("expected a data.pkl in it: no file of torch".into()))?;
        Ok(Archive { path, whole: map, root, zip })
    }

    fn pickle(&mut self) -> Result<&'a [u8]> {
        let (start, size) = self.entry("data.pkl")?;
        if size > MAX_PICKLE {
            return Err(self.wrong("data.pkl", format!("{size} bytes of pickle are no weights")));
        }
        let end = start.checked_add(size as usize);
        let bytes = end.and_then(|end| self.whole.get(start..end));
        let bytes = bytes.ok_or_else(|| self.wrong("data.pkl", "lies outside the file".into()))?;
        if self.zip.index_for_name(&format!("{}byteorder", self.root)).is_some() {
            let mut order = String::new();
            let file = self.zip.by_name(&format!("{}byteorder", self.root));
            let read = file.map(|file| file.take(16).read_to_string(&mut order));
            if !matches!(read, Ok(Ok(_))) || order != "little" {
                return Err(self.wrong("byteorder", format!("expected little, got {order:?}")));
            }
        }
        Ok(bytes)
    }

    /// Where an entry's data start, and its size; it must be stored, not compressed.
    fn entry(&mut self, name: &str) -> Result<(usize, u64)> {
        let full = format!("{}{name}", self.root);
        let found = match self.zip.index_for_name(&full).map(|i| self.zip.by_index_raw(i)) {
            None => Err("missing".to_string()),
            Some(Err(e)) => Err(e.to_string()),
            Some(Ok(file)) if file.compression() != CompressionMethod::Stored => {
                Err("expected it stored, as torch.save does, got it compressed".into())
            }
            Some(Ok(file)) if file.encrypted() => Err("encrypted".into()),
            Some(Ok(file)) => match file.data_start().map(usize::try_from) {
                Some(Ok(start)) => Ok((start, file.size())),
                _ => Err("has no place in the file".into()),
            },
        };
        found.map_err(|message| self.wrong(name, message))
    }

    /// Where the data of a tensor's storage start.
    fn storage(&mut self, tensor: &TensorRef) -> Result<usize> {
        let name = format!("data/{}", tensor.key);
        let (start, size) = self.entry(&name)?;
        let needed = (tensor.storage as u64).checked_mul(tensor.dtype.size() as u64);
        if needed.is_none_or(|needed| needed > size) {
            let message = format!(
                "{size} bytes for the {} elements of tensor {}",
                tensor.storage, tensor.name
            );
            return Err(self.wrong(&name, message));
        }
        Ok(start)
    }

    fn wrong(&self, name: &str, message: String) -> Error {
        Error::file(self.path, format!("{}{name}", self.root), message)
    }
}

/// The tensor in its storage, which starts at byte `start` of the file.
fn place(path: &Path, map: &Arc<Mmap>, start: usize, tensor: &TensorRef) -> Result<MappedTensor> {
    let TensorRef { name, dtype, storage, offset, shape, stride, .. } = tensor;
    let wrong = || {
        let message = format!(
            "{shape:?} with strides {stride:?} at {offset} does not fit its storage of {storage}"
        );
        Error::file(path, format!("tensor {name}"), message)
    };
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(wrong)?;
    let last = last_element(*offset, shape, stride).ok_or_else(wrong)?;
    // A view that repeats elements (stride 0) could ask for any amount of memory.
    if count > *storage || (count > 0 && last >= *storage) {
        return Err(wrong());
    }
    let size = dtype.size();
    // The storage lies in the file, hence these products are below its length; `in_file` checks
    // the sum.
    if count == 0 || is_row_major(shape, stride) {
        let begin = if count == 0 { 0 } else { offset * size };
        let begin = start.checked_add(begin).ok_or_else(wrong)?;
        return MappedTensor::in_file(path, map, begin, name, *dtype, shape);
    }
    let whole = MappedTensor::in_file(path, map, start, name, *dtype, &[*storage])?;
    let from = whole.bytes();
    let mut bytes = Vec::with_capacity(count * size);
    let mut index = vec![0; shape.len()];
    for _ in 0..count {
        let at: usize = index.iter().zip(stride).map(|(i, s)| i * s).sum();
        bytes.extend_from_slice(&from[(offset + at) * size..][..size]);
        for (i, &n) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < n {
                break;
            }
            *i = 0;
        }
    }
    Ok(MappedTensor::in_memory(name, *dtype, shape, &bytes))
}

/// Index of the last element in the storage, unless it overflows or the ranks differ.
fn last_element(offset: usize, shape: &[usize], stride: &[usize]) -> Option<usize> {
    if shape.len() != stride.len() {
        return None;
    }
    shape
        .iter()
        .zip(stride)
        .try_fold(offset, |at, (&n, &step)| at.checked_add(n.saturating_sub(1).checked_mul(step)?))
}

/// Whether elements follow each other in row-major order; strides of single steps do not matter.
fn is_row_major(shape: &[usize], stride: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(stride).rev().all(|(&n, &step)| {
        let fits = n == 1 || step == expected;
        expected *= n;
        fits
    })
}
