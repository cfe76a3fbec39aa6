//! An adapter folded into the weights it was trained beside: `W' = W + scale · B A`.

use std::collections::HashMap;
use std::path::Path;

use crate::data::atomic;
use crate::error::Result;
use crate::model::adapter::{Adapter, LoraPair};
use crate::model::config::ModelConfig;
use crate::model::weights::write::{self, Output, SHARD_BYTES};
use crate::model::weights::{MappedTensor, Weights};
use crate::ops::{Write, matmul};
use crate::tensor::{DType, Tensor, TensorMut};

/// Elements copied between two reports of progress.
const PIECE: usize = 1 << 24;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Tensors of the model.
    pub tensors: usize,
    /// Tensors that the adapter changed.
    pub merged: usize,
    /// Bytes of weights.
    pub bytes: usize,
}

/// Writes the model folder `out`: the model in `base` with the adapter in `adapter` folded in,
/// and every other file of the base. The sum is made in f32, one tensor at a time, and rounded
/// once to `dtype` (`None`: each tensor to what it is in the base).
///
/// `progress` is told the elements written and may end it with an error; `out` then does not
/// appear.
pub fn merge(
    base: &Path,
    adapter: &Path,
    out: &Path,
    dtype: Option<DType>,
    mut progress: impl FnMut(usize) -> Result<()>,
) -> Result<Merged> {
    let mut config = ModelConfig::read(base)?;
    let adapter = Adapter::open(adapter, &config)?;
    let weights = Weights::open(base, &config)?;
    let pairs: HashMap<String, &LoraPair> =
        adapter.pairs.iter().map(|p| (format!("{}.weight", p.target.module), p)).collect();
    let output = |t: &MappedTensor| Output {
        name: t.name().to_string(),
        shape: t.shape().to_vec(),
        dtype: dtype.unwrap_or(t.dtype()),
    };
    let outputs: Vec<Output> = weights.iter().map(output).collect();
    let companions = |folder: &Path| {
        write::copy_companions(base, folder)?;
        match dtype {
            None => Ok(()),
            Some(dtype) => {
                config.record_dtype(dtype);
                atomic::write_bytes(folder.join("config.json"), config.to_json().as_bytes())
            }
        }
    };
    write::model(out, &outputs, SHARD_BYTES, companions, |output, sink| {
        let tensor = weights.get(&output.name);
        let pair = pairs.get(&output.name);
        if pair.is_none() && output.dtype == tensor.dtype() {
            for bytes in tensor.bytes().chunks(PIECE * output.dtype.size()) {
                sink.bytes(bytes)?;
                progress(bytes.len() / output.dtype.size())?;
            }
            return Ok(());
        }
        let mut values = tensor.to_f32();
        if let Some(pair) = pair {
            add(pair, adapter.config.r, adapter.config.scale(), &mut values)?;
        }
        for values in values.chunks(PIECE) {
            sink.floats(values)?;
            progress(values.len())?;
        }
        Ok(())
    })?;
    let bytes = outputs.iter().map(Output::bytes).sum();
    Ok(Merged { tensors: outputs.len(), merged: pairs.len(), bytes })
}

/// `w += scale · B A`, all f32.
pub fn add(pair: &LoraPair, r: usize, scale: f32, w: &mut [f32]) -> Result<()> {
    let (rows, cols) = (pair.target.rows, pair.target.cols);
    let (a, b) = (Tensor::new(&pair.a, r, cols), Tensor::new(&pair.b, rows, r));
    matmul::nn(b, a, TensorMut::new(w, rows, cols), scale, Write::Accumulate)
}
