//! What a run leaves behind: a PEFT adapter in `OUT/adapter`, or an HF directory in `OUT/model`.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::adapter::Adapter;
use crate::model::weights::write::{self, Output, SHARD_BYTES};
use crate::model::weights::{MappedTensor, Weights};
use crate::train::config::Config;

/// Writes what `model` has learned; `adapter` is the one it was opened with, if it trains one.
/// Trained tensors of a full model are rounded to the base's dtype. Gives the folder.
pub fn write(config: &Config, model: &Model, adapter: Option<&Adapter>) -> Result<PathBuf> {
    match adapter {
        Some(adapter) => write_adapter(config, model, adapter.clone()),
        None => write_model(config, model),
    }
}

/// The adapter with the model's present values.
pub fn trained(model: &Model, mut adapter: Adapter) -> Result<Adapter> {
    for pair in &mut adapter.pairs {
        let (a, b) = (pair.target.name_a(), pair.target.name_b());
        for (name, values) in [(a, &mut pair.a), (b, &mut pair.b)] {
            let Some(info) = model.layout().tensors.iter().find(|info| info.name == name) else {
                return Err(Error::argument("output::trained", format!("{name} is not trained")));
            };
            values.copy_from_slice(&model.params()[info.range()]);
        }
    }
    Ok(adapter)
}

fn write_adapter(config: &Config, model: &Model, adapter: Adapter) -> Result<PathBuf> {
    let out = config.out.join("adapter");
    trained(model, adapter)?.write(&out, &config.model)?;
    Ok(out)
}

fn write_model(config: &Config, model: &Model) -> Result<PathBuf> {
    let out = config.out.join("model");
    if out.exists() {
        // Written whole by an earlier process of this run, after its last step.
        return Ok(out);
    }
    let base = Weights::open(&config.model, &model.config)?;
    let output = |t: &MappedTensor| Output {
        name: t.name().to_string(),
        shape: t.shape().to_vec(),
        dtype: t.dtype(),
    };
    let outputs: Vec<Output> = base.iter().map(output).collect();
    let companions = |folder: &std::path::Path| write::copy_companions(&config.model, folder);
    write::model(&out, &outputs, SHARD_BYTES, companions, |output, sink| {
        match model.layout().tensors.iter().find(|info| info.name == output.name) {
            Some(info) => sink.floats(&model.params()[info.range()]),
            None => sink.bytes(base.get(&output.name).bytes()),
        }
    })?;
    Ok(out)
}
