//! LoRA adapters as PEFT writes them.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use silkie::model::adapter::{Adapter, LoraConfig};
use silkie::model::config::ModelConfig;
use silkie::model::names::TensorSpec;

use super::config::tiny;
use super::torch::write_bf16;
use crate::support;

fn model() -> ModelConfig {
    ModelConfig::parse("config.json", &tiny().to_string()).expect("valid")
}

fn lora(r: usize, targets: &[&str]) -> LoraConfig {
    let target_modules = targets.iter().map(|t| t.to_string()).collect();
    LoraConfig { r, alpha: 16.0, target_modules }
}

/// An adapter whose A and B are all different numbers.
fn filled(r: usize) -> Adapter {
    let mut adapter = Adapter::init(&lora(r, &["c_attn", "w2"]), &model(), 3).expect("made");
    let mut next = 0.0;
    for value in adapter.pairs.iter_mut().flat_map(|p| p.a.iter_mut().chain(&mut p.b)) {
        (*value, next) = (next, next + 0.25);
    }
    adapter
}

#[test]
fn targets_match_the_ends_of_names() {
    let modules = |targets: &[&str]| -> Vec<String> {
        let targets = lora(4, targets).targets(&model()).expect("found");
        targets.into_iter().map(|t| t.module).collect()
    };
    assert_eq!(
        modules(&["attn.c_proj", "c_attn"]),
        [
            "transformer.h.0.attn.c_attn",
            "transformer.h.0.attn.c_proj",
            "transformer.h.1.attn.c_attn",
            "transformer.h.1.attn.c_proj"
        ]
    );
    assert_eq!(modules(&["transformer.h.1.mlp.w1"]), ["transformer.h.1.mlp.w1"]);
    assert_eq!(modules(&["h.0.mlp.c_proj"]), ["transformer.h.0.mlp.c_proj"]);
    assert_eq!(LoraConfig::default().targets(&model()).expect("found").len(), 8);
    let target = &lora(4, &["w1"]).targets(&model()).expect("found")[0];
    assert_eq!((target.rows, target.cols), (88, 64));
}

#[test]
fn impossible_targets_are_named() {
    let error = |config: LoraConfig| config.targets(&model()).expect_err("refused").to_string();
    assert!(error(lora(4, &["c_attn", "c_atn"])).contains("\"c_atn\" matches no module"));
    assert!(error(lora(4, &["c_proj"])).contains("matches transformer.visual.transformer"));
    assert!(error(lora(4, &["lm_head"])).contains("matches lm_head"));
    assert!(error(lora(4, &["_attn"])).contains("matches no module"));
    assert!(error(lora(4, &[])).contains("at least one target"));
    assert!(error(lora(4, &[""])).contains("matches no module"));
    assert!(error(lora(0, &["c_attn"])).contains("got r 0"));
    assert!(error(LoraConfig { alpha: f64::NAN, ..lora(4, &["w1"]) }).contains("alpha NaN"));
}

#[test]
fn a_fresh_adapter_changes_nothing_and_is_spread_as_peft_does() {
    let adapter = Adapter::init(&lora(16, &["c_attn", "w1"]), &model(), 7).expect("made");
    assert!(adapter.pairs.iter().all(|p| p.b.iter().all(|&b| b == 0.0)));
    let a = &adapter.pairs[0].a;
    let bound = 1.0 / 8.0;
    assert!(a.iter().all(|x| x.abs() <= bound));
    // The mean square of a uniform variable in ±bound is bound²/3; 1024 draws, 5 sigma = 14 %.
    let mean_square = a.iter().map(|x| (x * x) as f64).sum::<f64>() / a.len() as f64;
    assert!((mean_square * 3.0 / (bound * bound) as f64 - 1.0).abs() < 0.14, "{mean_square}");
    assert_eq!(adapter, Adapter::init(&adapter.config, &model(), 7).expect("made"));
    assert_ne!(adapter, Adapter::init(&adapter.config, &model(), 8).expect("made"));
    assert_ne!(adapter.pairs[0].a[..64], adapter.pairs[1].a[..64]);
}

#[test]
fn the_config_has_peft_values() {
    let dir = tempfile::tempdir().expect("a folder");
    filled(4).write(dir.path().join("adapter"), Path::new("/models/base")).expect("written");
    let text = std::fs::read_to_string(dir.path().join("adapter/adapter_config.json"));
    let config: Value = serde_json::from_str(&text.expect("read")).expect("JSON");
    assert_eq!(config["base_model_name_or_path"], "/models/base");
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(4), &json!(16)));
    assert_eq!(config["target_modules"], json!(["c_attn", "w2"]));
    assert!(config["lora_alpha"].is_i64());
}

#[test]
fn another_models_adapter_is_refused_with_both_shapes() {
    let dir = tempfile::tempdir().expect("a folder");
    filled(4).write(dir.path(), Path::new("")).expect("written");
    let open = |field: &str, to: Value| {
        let mut config = tiny();
        config[field] = to;
        let model = ModelConfig::parse("config.json", &config.to_string()).expect("valid");
        Adapter::open(dir.path(), &model).expect_err("refused").to_string()
    };
    let error = open("intermediate_size", json!(200));
    assert!(error.contains("transformer.h.0.mlp.w2.lora_B.weight: shape: expected [100, 4]"));
    assert!(error.contains("got [88, 4]"), "{error}");
    let error = open("num_hidden_layers", json!(3));
    assert!(error.contains("transformer.h.2.attn.c_attn.lora_A.weight: missing"), "{error}");
    let error = open("num_hidden_layers", json!(1));
    assert!(error.contains("transformer.h.1.attn.c_attn.lora_A.weight: no target"), "{error}");
}

#[test]
fn variants_of_lora_that_are_not_ours_are_refused() {
    let good = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": ["w1"]});
    let parse = |change: (&str, Value)| {
        let mut config: Map<String, Value> = good.as_object().expect("an object").clone();
        config.insert(change.0.into(), change.1);
        LoraConfig::parse(Path::new("adapter_config.json"), &Value::Object(config).to_string())
    };
    for change in [
        ("bias", json!("none")),
        ("lora_dropout", json!(0.05)),
        ("modules_to_save", Value::Null),
        ("modules_to_save", json!([])),
        ("use_rslora", json!(false)),
        ("rank_pattern", json!({})),
    ] {
        assert_eq!(parse(change).expect("fine"), lora(4, &["w1"]));
    }
    for (field, value) in [
        ("peft_type", json!("IA3")),
        ("bias", json!("all")),
        ("fan_in_fan_out", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("layers_to_transform", json!([0])),
        ("use_rslora", json!(true)),
        ("use_dora", json!(true)),
        ("rank_pattern", json!({"w1": 8})),
        ("r", json!(0)),
        ("r", json!("4")),
        ("lora_alpha", Value::Null),
        ("target_modules", json!("w1|w2")),
        ("target_modules", json!([1])),
    ] {
        let error = parse((field, value)).expect_err(field).to_string();
        assert!(error.starts_with(&format!("adapter_config.json: field {field}: ")), "{error}");
    }
}

#[test]
fn the_bin_files_of_older_peft_are_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let adapter = filled(4);
    adapter.write(dir.path(), Path::new("")).expect("written");
    std::fs::remove_file(dir.path().join("adapter_model.safetensors")).expect("removed");
    let spec =
        |name: String, rows: usize, cols: usize| TensorSpec { name, shape: vec![rows, cols] };
    let targets = adapter.pairs.iter().map(|p| &p.target);
    let specs: Vec<TensorSpec> =
        targets.flat_map(|t| [spec(t.name_b(), t.rows, 4), spec(t.name_a(), 4, t.cols)]).collect();
    write_bf16(&dir.path().join("adapter_model.bin"), &specs);
    let read = Adapter::open(dir.path(), &model()).expect("opened");
    assert_eq!((read.config, read.pairs.len()), (adapter.config, adapter.pairs.len()));
    assert!(read.pairs.iter().all(|p| p.a.iter().chain(&p.b).all(|&x| x == 1.5)));
}

#[test]
fn a_failed_write_leaves_the_old_adapter() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("file");
    std::fs::write(&file, "x").expect("written");
    assert!(filled(4).write(file.join("adapter"), Path::new("")).is_err());
    assert!(Adapter::open(dir.path(), &model()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn written_adapters_read_back_bit_for_bit(r in 1usize..20, scale in -1e30f32..1e30) {
        let dir = tempfile::tempdir().expect("a folder");
        let mut adapter = filled(r);
        adapter.pairs.iter_mut().flat_map(|p| p.b.iter_mut()).for_each(|x| *x *= scale);
        adapter.write(dir.path(), Path::new("base")).expect("written");
        prop_assert_eq!(Adapter::open(dir.path(), &model()).expect("opened"), adapter);
    }
}

#[test]
fn golden_adapter_reads_and_rewrites() {
    let Some(goldens) = support::goldens() else { return };
    let from = goldens.join("adapter");
    let model = ModelConfig::read(goldens.join("tiny-qwen-vl")).expect("valid");
    let adapter = Adapter::open(&from, &model).expect("opened");
    let dir = tempfile::tempdir().expect("a folder");
    adapter.write(dir.path(), Path::new("")).expect("written");
    let read = |dir: &Path, name: &str| std::fs::read(dir.join(name)).expect("read");
    let config =
        |dir| -> Value { serde_json::from_slice(&read(dir, "adapter_config.json")).expect("JSON") };
    let (ours, theirs) = (config(dir.path()), config(&from));
    // peft versions differ in how many keys they write: none of a recorded file may be missing
    for key in theirs.as_object().expect("an object").keys() {
        assert!(ours.get(key).is_some(), "adapter_config.json lacks {key}");
    }
    for key in ["r", "lora_alpha", "target_modules", "peft_type", "task_type", "bias"] {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
    let (ours, theirs) =
        (read(dir.path(), "adapter_model.safetensors"), read(&from, "adapter_model.safetensors"));
    let (ours, theirs) = (
        safetensors::SafeTensors::deserialize(&ours).expect("valid"),
        safetensors::SafeTensors::deserialize(&theirs).expect("valid"),
    );
    assert_eq!(ours.len(), theirs.len());
    for (name, theirs) in theirs.iter() {
        let ours = ours.tensor(name).expect("same names");
        assert_eq!(ours.shape(), theirs.shape(), "{name}");
        if theirs.dtype() == safetensors::Dtype::F32 {
            assert_eq!(ours.data(), theirs.data(), "{name}");
        }
    }
}
