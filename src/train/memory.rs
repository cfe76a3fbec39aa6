//! What a GPU holds during a run: one plan, made from the configuration, the data and the token
//! budget, without a GPU. `silkie train --memory-plan` prints it.
//!
//! | group | what |
//! |---|---|
//! | `weights` | every base tensor in bf16; an adapted one with the scaled B of its pair in r columns behind it, and A beside it |
//! | `trained` | masters, gradients and both moments of what is trained, flat, f32 |
//! | `slot` | what a pack brings, twice: one is copied while the other is computed |
//! | the rest | the buffers of `model::Workspace`, activations in bf16, statistics and logits in f32 |
//!
//! It is what the CUDA step will allocate as one arena; today whole steps run on the CPU, whose buffers
//! are the same ones in f32. Not in it: the driver's own context, the 32 MiB of scratch for cuBLASLt,
//! and tables of a few kilobytes that kernels will bring along (tile lists).

use crate::data::plan::Plan as Batches;
use crate::data::shard::Dataset;
use crate::data::trees;
use crate::device::arena::Plan;
use crate::error::Result;
use crate::model::adapter::{Adapter, LoraConfig, Target};
use crate::model::config::ModelConfig;
use crate::model::names::{self, Part};
use crate::model::params::{Layout, Trainable};
use crate::model::{Budget, Sizes, Workspace};
use crate::ops::{patch_embed, rows};
use crate::tensor::DType;
use crate::train::choices::Vision;
use crate::train::config::Config;
use crate::train::engine;
use crate::train::setup::Passes;

/// Slots of the loader's ring.
const SLOTS: usize = 2;
/// Numbers of a segment of attention.
const SEGMENT: usize = 7;

/// The plan of a run. Errors: data, model and configuration that do not fit.
pub fn plan(config: &Config) -> Result<Plan> {
    let data = Dataset::open(&config.data)?;
    let model = ModelConfig::read(&config.model)?;
    engine::check_fits(&data, &model, &config.model)?;
    let batches = Batches::new(trees::sizes(&data), config.plan())?;
    let budget = Passes::of(&batches, config).budget(&batches);
    let (r, targets) = adapter(config, &model)?;
    let (trainable, cached) = (config.trainable(), config.vision == Vision::Cached);
    let sizes = Sizes { config: &model, rank: r, trainable };

    let mut plan = Plan::default();
    weights(&mut plan, &model, &targets, r, !cached);
    let len = Layout::planned(&model, trainable, &targets, r).len();
    for name in ["values", "gradients", "exp_avg", "exp_avg_sq"] {
        plan.add(format!("trained {name}"), DType::F32, 1, len);
    }
    let pack = pack(&model, trainable, budget, cached);
    for slot in 0..SLOTS {
        plan.append(&format!("slot {slot} "), &pack);
    }
    plan.add("rope table", DType::F32, budget.tokens, model.head_dim);
    Workspace::plan(sizes, budget, !cached, &mut plan);
    Ok(plan)
}

/// Rank and adapted modules; none where no adapter is trained.
fn adapter(config: &Config, model: &ModelConfig) -> Result<(usize, Vec<Target>)> {
    if config.trainable() != Trainable::Lora {
        return Ok((0, Vec::new()));
    }
    let lora = match &config.init_adapter {
        Some(dir) => Adapter::open(dir, model)?.config,
        None => LoraConfig {
            r: config.lora_r,
            alpha: config.lora_alpha,
            target_modules: config.lora_targets.clone(),
        },
    };
    Ok((lora.r, lora.targets(model)?))
}

fn weights(plan: &mut Plan, model: &ModelConfig, targets: &[Target], r: usize, pictures: bool) {
    let is_picture = |name: &str| matches!(names::part(name), Part::Vision | Part::Resampler);
    for spec in names::tensors(model) {
        if is_picture(&spec.name) && !pictures {
            continue;
        }
        let [rows, cols] = names::matrix_shape(&spec.shape);
        let target = spec.name.strip_suffix(".weight");
        let target = targets.iter().find(|t| target == Some(&t.module));
        let is_convolution = spec.shape.len() > 2;
        let slack = match target {
            Some(_) => r,
            None if is_convolution => patch_embed::padded(cols) - cols,
            None => 0,
        };
        plan.add(format!("weights {}", spec.name), DType::Bf16, rows, cols + slack);
        if let Some(target) = target {
            plan.add(format!("weights {}", target.name_a()), DType::Bf16, r, target.cols);
        }
    }
}

/// What a pack within `budget` brings.
fn pack(model: &ModelConfig, trainable: Trainable, budget: Budget, cached: bool) -> Plan {
    let Budget { tokens: t, images, head_rows: r, .. } = budget;
    let (visual, mut plan) = (&model.visual, Plan::default());
    for (name, rows) in [("sources", t), ("positions", t), ("head_rows", r), ("targets", r)] {
        plan.add(name, DType::U32, rows, 1);
    }
    plan.add("head_rows inverse", DType::U32, 1, rows::inverse_len(r));
    if matches!(trainable, Trainable::Full | Trainable::All) {
        plan.add("sources inverse", DType::U32, 1, rows::inverse_len(t));
    }
    plan.add("segments", DType::U32, t, SEGMENT);
    match cached {
        true => plan.add("features", DType::F32, images * visual.n_queries, model.hidden_size),
        false => plan.add("pixels", DType::U8, images, 3 * visual.image_size * visual.image_size),
    };
    plan
}
