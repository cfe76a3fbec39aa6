//! A named tensor whose bytes lie in a mapped file, or in memory where the file's do not fit.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::{Mmap, MmapMut};
use rayon::prelude::*;

use crate::device::Buffer;
use crate::error::{Error, Result};
use crate::model::names::matrix_shape;
use crate::tensor::{DType, Tensor};

/// Elements widened by one task.
const CHUNK: usize = 1 << 16;

/// A tensor as a file holds it: f32, bf16 or f16, row-major, little-endian. A clone shares the data.
#[derive(Clone)]
pub struct MappedTensor {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    bytes: Bytes,
}

#[derive(Clone)]
enum Bytes {
    /// `start..end` of a mapped file, aligned for the dtype.
    File { map: Arc<Mmap>, start: usize, end: usize },
    /// A copy, where the file's data are misaligned or not row-major.
    Memory(Arc<Buffer>),
}

impl MappedTensor {
    /// The tensor whose data start at byte `start` of the file at `path`, mapped as `map`.
    /// Misaligned data are copied.
    ///
    /// Errors when size or place overflow or do not lie in the file.
    pub(crate) fn in_file(
        path: &Path,
        map: &Arc<Mmap>,
        start: usize,
        name: &str,
        dtype: DType,
        shape: &[usize],
    ) -> Result<Self> {
        let end = byte_length(dtype, shape).and_then(|n| start.checked_add(n));
        let Some(end) = end.filter(|&end| end <= map.len()) else {
            let message = format!(
                "{shape:?} from byte {start} does not fit: the file has {} bytes; the copy is \
                 truncated or altered, copy it again",
                map.len()
            );
            return Err(Error::file(path, format!("tensor {name}"), message));
        };
        let aligned = (map[start..end].as_ptr() as usize).is_multiple_of(dtype.size());
        let bytes = match aligned {
            true => Bytes::File { map: map.clone(), start, end },
            false => Bytes::Memory(Arc::new(copied(&map[start..end]))),
        };
        Ok(MappedTensor { name: name.to_string(), dtype, shape: shape.to_vec(), bytes })
    }

    /// A tensor in memory. `bytes` must hold exactly what `dtype` and `shape` need.
    pub(crate) fn in_memory(name: &str, dtype: DType, shape: &[usize], bytes: &[u8]) -> Self {
        assert!(byte_length(dtype, shape) == Some(bytes.len()), "{name}: {shape:?} {dtype:?}");
        let (name, shape) = (name.to_string(), shape.to_vec());
        MappedTensor { name, dtype, shape, bytes: Bytes::Memory(Arc::new(copied(bytes))) }
    }

    /// Name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Element type in the file.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Shape in the file.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes().len() / self.dtype.size()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The data, aligned for the dtype.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::File { map, start, end } => &map[*start..*end],
            Bytes::Memory(buffer) => buffer.view().elements(),
        }
    }

    /// The data as a matrix of [`matrix_shape`]: a vector is one row, `conv1` `[width, 3 x patch²]`.
    pub fn tensor(&self) -> Tensor<'_> {
        let ([rows, cols], bytes) = (matrix_shape(&self.shape), self.bytes());
        match self.dtype {
            DType::F32 => Tensor::new::<f32>(bytemuck::cast_slice(bytes), rows, cols),
            DType::Bf16 => Tensor::new::<bf16>(bytemuck::cast_slice(bytes), rows, cols),
            DType::F16 => Tensor::new::<f16>(bytemuck::cast_slice(bytes), rows, cols),
            DType::F64 => Tensor::new::<f64>(bytemuck::cast_slice(bytes), rows, cols),
            DType::U32 => Tensor::new::<u32>(bytemuck::cast_slice(bytes), rows, cols),
            DType::U8 => Tensor::new::<u8>(bytes, rows, cols),
        }
    }

    /// The elements widened to f32 (exact).
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.widen_into(&mut out);
        out
    }

    /// The elements widened to f32, into `out` of the same length.
    pub fn widen_into(&self, out: &mut [f32]) {
        assert!(out.len() == self.len(), "{}: widened into {} elements", self.name, out.len());
        let step = CHUNK * self.dtype.size();
        out.par_chunks_mut(CHUNK).zip(self.bytes().par_chunks(step)).for_each(|(out, bytes)| {
            match self.dtype {
                DType::F32 => out.copy_from_slice(bytemuck::cast_slice(bytes)),
                DType::Bf16 => widen(out, bytemuck::cast_slice::<u8, bf16>(bytes)),
                DType::F16 => widen(out, bytemuck::cast_slice::<u8, f16>(bytes)),
                DType::F64 | DType::U32 | DType::U8 => unreachable!("weights are floats"),
            }
        });
    }
}

impl std::fmt::Debug for MappedTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {:?}", self.name, self.dtype, self.shape)
    }
}

fn widen<T: Copy + Into<f32>>(out: &mut [f32], from: &[T]) {
    out.iter_mut().zip(from).for_each(|(out, &x)| *out = x.into());
}

fn copied(bytes: &[u8]) -> Buffer {
    let mut buffer = Buffer::host(DType::U8, 1, bytes.len());
    buffer.view_mut().elements::<u8>().copy_from_slice(bytes);
    buffer
}

/// Bytes of a tensor, unless the product of any of its dimensions overflows.
pub(crate) fn byte_length(dtype: DType, shape: &[usize]) -> Option<usize> {
    let full = shape.iter().try_fold(dtype.size(), |product, &n| product.checked_mul(n.max(1)))?;
    Some(if shape.contains(&0) { 0 } else { full })
}

/// A copy of `bytes` that can stand for a mapped file.
pub(crate) fn copy(bytes: &[u8]) -> std::io::Result<Arc<Mmap>> {
    let mut map = MmapMut::map_anon(bytes.len())?;
    map.copy_from_slice(bytes);
    map.make_read_only().map(Arc::new)
}

/// Maps a whole file for reading.
pub(crate) fn map(path: &Path) -> Result<Arc<Mmap>> {
    let file = File::open(path).map_err(|e| Error::io(path, "open the weights", e))?;
    // SAFETY: the map is read-only and the file is not written by us; that nobody else shortens a
    // model's file while it is in use is the promise every mapped reader has to rely on.
    let map = unsafe { Mmap::map(&file) };
    map.map(Arc::new).map_err(|e| Error::io(path, "map the weights", e))
}
