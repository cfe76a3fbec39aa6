//! The plan of a GPU's memory against the model it is for.

use std::collections::HashSet;

use silkie::device::arena::{ALIGNMENT, Plan, Span};
use silkie::model::Model;
use silkie::model::adapter::{Adapter, LoraConfig};
use silkie::model::config::ModelConfig;
use silkie::model::names;
use silkie::model::params::Trainable;
use silkie::ops::{column_sums, layer_norm, patch_embed, rms_norm};
use silkie::tensor::DType;
use silkie::train::memory;

use super::fixture::Fixture;

const BUDGET: usize = 200;

fn plan(fixture: &Fixture, toml: &str) -> Plan {
    let toml = format!("lora-r = 4\ntoken-budget = {BUDGET}\nbatch-pairs = 12\n{toml}");
    memory::plan(&fixture.settings("run", &toml).resolve().unwrap()).unwrap()
}

fn span<'p>(plan: &'p Plan, name: &str) -> &'p Span {
    let span = plan.spans().iter().find(|span| span.name == name);
    span.unwrap_or_else(|| panic!("no span {name:?} in\n{plan}"))
}

#[test]
fn everything_a_run_holds_is_planned_once() {
    let fixture = Fixture::new(8);
    let plan = plan(&fixture, "");
    let mut names = HashSet::new();
    let mut end = 0;
    for span in plan.spans() {
        assert!(names.insert(span.name.as_str()), "{} twice", span.name);
        assert_eq!((span.offset % ALIGNMENT, span.offset >= end), (0, true), "{span:?}");
        end = span.offset + span.bytes;
    }
    assert!((end..end + ALIGNMENT).contains(&plan.total()));
    assert!(!fixture.path("run").exists());

    let config = ModelConfig::read(fixture.path("model")).unwrap();
    let d = config.hidden_size;
    let tokens = span(&plan, "residual 0").shape[0];
    assert!((1..=BUDGET).contains(&tokens), "{tokens}");
    let last = config.num_hidden_layers - 1;
    let qkv = span(&plan, &format!("block {last} qkv"));
    assert_eq!((qkv.dtype, qkv.shape, qkv.bytes), (DType::Bf16, [tokens, 3 * d], tokens * 6 * d));
    assert_eq!(span(&plan, &format!("block {last} h_2")).shape, [tokens, d + 2 * 4]);
    assert_eq!(span(&plan, "head logits").dtype, DType::F32);
    assert_eq!(span(&plan, "slot 1 sources").shape, [tokens, 1]);
    assert!(plan.spans().iter().all(|span| !span.name.contains("partials")), "no sums over rows");
    let lora_b = span(&plan, "weights transformer.h.0.attn.c_attn.weight");
    assert_eq!((lora_b.dtype, lora_b.shape), (DType::Bf16, [3 * d, d + 4]));
}

#[test]
fn what_is_trained_is_as_long_as_in_the_model() {
    let fixture = Fixture::new(8);
    let dir = fixture.path("model");
    let config = ModelConfig::read(&dir).unwrap();
    let lora = LoraConfig { r: 4, ..LoraConfig::default() };
    let adapter = Adapter::init(&lora, &config, 1).unwrap();
    for (name, trainable) in
        [("lora", Trainable::Lora), ("full", Trainable::Full), ("all", Trainable::All)]
    {
        let plan = plan(&fixture, &format!("trainable = '{name}'\nheld-out = 0.0\n"));
        let adapter = (trainable == Trainable::Lora).then_some(&adapter);
        let model = Model::open(&dir, trainable, adapter).unwrap();
        for part in ["values", "gradients", "exp_avg", "exp_avg_sq"] {
            let span = span(&plan, &format!("trained {part}"));
            assert_eq!((span.dtype, span.shape), (DType::F32, [1, model.layout().len()]), "{name}");
        }
        if trainable != Trainable::Lora {
            let rows = |name| span(&plan, name).shape[0];
            let (d, visual) = (config.hidden_size, &config.visual);
            let [tokens, patches] = ["residual 0", "resampler input"].map(rows);
            let mut sums = vec![
                rms_norm::partials([tokens, d]),
                column_sums::partials([tokens, 3 * d]),
                layer_norm::partials([patches, d]),
            ];
            if trainable == Trainable::All {
                sums.push(layer_norm::partials([patches, visual.width]));
                sums.push(column_sums::partials([patches, visual.mlp_width()]));
                sums.push(column_sums::partials([patches, 3 * visual.width]));
            }
            let partials = span(&plan, "partials");
            let largest = *sums.iter().max().unwrap();
            assert_eq!((partials.dtype, partials.shape), (DType::F32, [1, largest]), "{name}");
        }
        let weights =
            plan.spans().iter().filter(|span| span.name.starts_with("weights transformer"));
        let elements: usize = weights.map(|span| span.shape[0] * span.shape[1]).sum();
        let base = names::tensors(&config);
        let head = config.vocab_size * config.hidden_size;
        let base: usize = base.iter().map(|spec| spec.shape.iter().product::<usize>()).sum();
        let targets = if adapter.is_some() { lora.targets(&config).unwrap() } else { Vec::new() };
        let slack: usize = targets.iter().map(|target| target.rows * 4).sum();
        // kernels take the values of a patch in whole tiles
        let (values, width) = (config.visual.patch_elements(), config.visual.width);
        let tiles = width * (patch_embed::padded(values) - values);
        assert_eq!(elements, base - head + slack + tiles, "{name}");
    }
}

#[test]
fn cached_pictures_take_no_tower() {
    let fixture = Fixture::new(8);
    let online = plan(&fixture, "");
    let cached = plan(&fixture, "vision = 'cached'\n");
    let has = |plan: &Plan, text: &str| plan.spans().iter().any(|span| span.name.contains(text));
    for text in ["transformer.visual.", "tower block 0 qkv", "slot 0 pixels"] {
        assert_eq!((has(&online, text), has(&cached, text)), (true, false), "{text}");
    }
    assert!(has(&cached, "slot 0 features"));
    assert!(cached.total() < online.total());
}
