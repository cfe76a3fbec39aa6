//! A model, its data and one workspace: packs in, log-probabilities and gradients out.

use std::path::Path;

use crate::data::pack::{Layout, Pack};
use crate::data::plan::Tree;
use crate::data::shard::Dataset;
use crate::data::tokenizer::Tokenizer;
use crate::data::trees;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::{Budget, Images, Lora, Model, RopeMode, Workspace};
use crate::tensor::Tensor;
use crate::train::features::Features;

/// What runs packs.
pub struct Engine {
    /// Where records and pictures come from.
    pub data: Dataset,
    /// What is trained or scored.
    pub model: Model,
    layout: Layout,
    workspace: Workspace,
    features: Option<Features>,
}

impl Engine {
    /// Buffers for packs within `budget`, laid out as `layout`. Pictures go through the vision
    /// tower with every pack unless `features` holds its output.
    pub fn new(
        data: Dataset,
        model: Model,
        budget: Budget,
        layout: Layout,
        features: Option<Features>,
    ) -> Engine {
        let workspace = Workspace::new(&model, budget);
        Engine { data, model, layout, workspace, features }
    }

    /// Lays out trees of the data.
    pub fn pack(&self, trees: &[Tree]) -> Result<Pack> {
        trees::pack(&self.data, trees, self.layout)
    }

    /// log π of every branch of `pack`: of the policy, or with [`Lora::Off`] of the base.
    pub fn forward(&mut self, pack: &Pack, lora: Lora, rope: RopeMode) -> Result<Vec<f64>> {
        let (data, features) = (&self.data, &self.features);
        let tensors: Vec<Tensor<'_>> = pack
            .images
            .iter()
            .map(|&image| match features {
                Some(features) => features.of(image),
                None => Tensor::vector(data.image(image)),
            })
            .collect();
        let images = match features {
            Some(_) => Images::Features(&tensors),
            None => Images::Pixels(&tensors),
        };
        let (model, workspace) = (&self.model, &mut self.workspace);
        in_pool(|| model.forward(workspace, pack, images, lora, rope))?;
        Ok(self.workspace.log_probs().to_vec())
    }

    /// Adds to `gradients` what follows from `coefficients`, d loss / d log π of each branch of the
    /// pack that [`forward`](Self::forward) ran last with [`Lora::On`].
    pub fn backward(
        &mut self,
        pack: &Pack,
        coefficients: &[f64],
        gradients: &mut [f32],
    ) -> Result<()> {
        let coefficients: Vec<f32> = coefficients.iter().map(|&c| c as f32).collect();
        let (model, workspace) = (&self.model, &mut self.workspace);
        in_pool(|| model.backward(workspace, pack, Lora::On, &coefficients, gradients))
    }

    /// Where the records of `pack` come from: "file:line (id)".
    pub fn names(&self, pack: &Pack) -> Vec<String> {
        let mut records: Vec<u32> = pack.branches.iter().map(|b| b.record).collect();
        records.dedup();
        let name = |&i: &u32| {
            let record = self.data.record(i as usize);
            format!("{}:{} ({})", record.file, record.line, record.id)
        };
        records.iter().map(name).collect()
    }
}

/// Runs `body` on a thread of the pool: an op that is called from one hands out its rows without
/// waking another and waiting for it, which small models do thousands of times a second.
fn in_pool<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| body())
}

/// Errors when the shards were made for another model or tokenizer than those in `dir`. A folder
/// without a tokenizer is taken at its word.
pub fn check_fits(data: &Dataset, config: &ModelConfig, dir: &Path) -> Result<()> {
    let target = data.target();
    let has_tokenizer = ["qwen.tiktoken", "tokenizer.json"].iter().any(|f| dir.join(f).exists());
    let tokenizer = match has_tokenizer {
        true => Tokenizer::open(dir, config.visual.n_queries)?.fingerprint(),
        false => target.tokenizer,
    };
    let number = |n: u32| u64::from(n);
    let parts = [
        ("pictures of side", number(target.image_size), config.visual.image_size as u64),
        ("image slots", number(target.n_image_slots), config.visual.n_queries as u64),
        ("token ids", number(target.vocab_size), config.vocab_size as u64),
        ("tokenizer", target.tokenizer, tokenizer),
    ];
    match parts.iter().find(|(_, shards, model)| shards != model) {
        Some((what, shards, model)) => Err(Error::Run(format!(
            "{}: made for another model: {what}: expected {model} as in {}, got {shards}; run \
             `silkie prepare` with this model",
            data.folder().display(),
            dir.display()
        ))),
        None => Ok(()),
    }
}
