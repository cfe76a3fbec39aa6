//! config.json and the tensor names it implies.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use silkie::model::config::ModelConfig;
use silkie::model::names::{self, Part};

use crate::support;

/// A small valid configuration.
pub fn tiny() -> Value {
    json!({
        "hidden_size": 64, "num_attention_heads": 2, "kv_channels": 32, "intermediate_size": 176,
        "num_hidden_layers": 2, "vocab_size": 300, "seq_length": 128, "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000, "rotary_pct": 1.0, "use_dynamic_ntk": true,
        "use_logn_attn": true, "tie_word_embeddings": false, "no_bias": true, "kept": {"a": [1]},
        "visual": {
            "image_size": 56, "patch_size": 14, "width": 32, "layers": 1, "heads": 4,
            "mlp_ratio": 2.5, "output_dim": 64, "image_start_id": 290, "n_queries": 16
        }
    })
}

fn parse(value: &Value) -> silkie::Result<ModelConfig> {
    ModelConfig::parse("config.json", &value.to_string())
}

fn set(field: &str, to: Value) -> Value {
    let mut config = tiny();
    let place = match field.split_once('.') {
        Some((section, field)) => &mut config[section][field],
        None => &mut config[field],
    };
    *place = to;
    config
}

#[test]
fn sizes_derive_from_the_file() {
    let config = parse(&tiny()).expect("valid");
    let v = &config.visual;
    assert_eq!((config.mlp_width(), config.head_dim), (88, 32));
    assert_eq!((v.grid(), v.patches(), v.patch_elements()), (4, 16, 588));
    assert_eq!((v.head_dim(), v.mlp_width()), (8, 80));
    assert_eq!((v.resampler_heads(), v.resampler_head_dim()), (1, 64));
}

#[test]
fn unused_keys_survive() {
    let config = parse(&tiny()).expect("valid");
    let written: Value = serde_json::from_str(&config.to_json()).expect("JSON");
    assert_eq!(written, tiny());
    assert_eq!(parse(&written).expect("valid again"), config);
    assert_eq!(config.raw("kept"), Some(&json!({"a": [1]})));
}

#[test]
fn impossible_values_are_named() {
    let cases = [
        ("hidden_size", json!(0), "field hidden_size: expected a whole number from 1 to"),
        ("hidden_size", json!("64"), "got \"64\""),
        ("hidden_size", json!(-64), "got -64"),
        ("hidden_size", json!(1u64 << 63), "got 9223372036854775808"),
        ("kv_channels", json!(16), "expected hidden_size / num_attention_heads = 64 / 2, got 16"),
        ("intermediate_size", json!(177), "expected an even number"),
        ("num_hidden_layers", json!(1_000_000), "got 1000000"),
        ("vocab_size", json!(292), "more than 292"),
        ("seq_length", json!(1), "field seq_length: expected at least 2, got 1"),
        ("layer_norm_epsilon", json!(0.0), "field layer_norm_epsilon"),
        ("rotary_emb_base", json!([1]), "got a list"),
        ("rotary_pct", json!(0.25), "expected 1, the only value supported, got 0.25"),
        ("use_logn_attn", Value::Null, "expected true or false, got null"),
        ("tie_word_embeddings", json!(true), "expected false, the only value supported, got true"),
        ("no_bias", json!(false), "expected true, the only value supported, got false"),
        ("scale_attn_weights", json!(false), "field scale_attn_weights"),
        ("visual", Value::Null, "field visual: expected an object"),
        ("visual.image_size", json!(57), "field visual.image_size: expected a multiple of"),
        ("visual.patch_size", json!(0), "field visual.patch_size"),
        ("visual.width", json!(33), "field visual.width: expected a multiple of heads = 4"),
        ("visual.layers", json!(0), "field visual.layers"),
        ("visual.heads", json!(5), "field visual.width: expected a multiple of heads = 5"),
        ("visual.mlp_ratio", json!(-1.0), "field visual.mlp_ratio: expected a number from 0 to 64"),
        ("visual.mlp_ratio", json!(0.0), "field visual.mlp_ratio: expected width x mlp_ratio"),
        ("visual.output_dim", json!(128), "field visual.output_dim: expected hidden_size = 64"),
        ("visual.output_dim", json!(257), "a multiple of the resampler's 2 heads"),
        ("visual.n_queries", json!(15), "field visual.n_queries: expected a square number"),
        ("visual.image_start_id", json!(298), "field vocab_size"),
    ];
    for (field, value, expected) in cases {
        let error = parse(&set(field, value.clone())).expect_err(field).to_string();
        assert!(error.starts_with("config.json: field "), "{field} = {value}: {error}");
        assert!(error.contains(expected), "{field} = {value}: {error}");
    }
}

#[test]
fn missing_fields_are_named() {
    for field in tiny().as_object().expect("an object").keys().filter(|k| *k != "kept") {
        let mut config = tiny();
        config.as_object_mut().expect("an object").shift_remove(field);
        match field.as_str() {
            "tie_word_embeddings" | "no_bias" => assert!(parse(&config).is_ok(), "{field}"),
            _ => {
                let error = parse(&config).expect_err(field).to_string();
                assert!(error.contains(&format!("field {field}: expected")), "{error}");
                assert!(error.ends_with("got nothing"), "{error}");
            }
        }
    }
    assert!(parse(&json!([1])).is_err() && ModelConfig::parse("x", "{").is_err());
}

#[test]
fn a_missing_file_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let error = ModelConfig::read(dir.path()).expect_err("no file").to_string();
    assert!(error.contains("config.json: cannot read"), "{error}");
}

proptest! {
    #[test]
    fn any_numbers_are_an_error_or_a_consistent_model(
        hidden in 0usize..600, heads in 0usize..9, width in 0usize..200, vision_heads in 0usize..9,
        image in 0usize..200, patch in 0usize..30, queries in 0usize..50, ratio in -1.0f64..9.0,
    ) {
        let mut config = tiny();
        config["hidden_size"] = json!(hidden);
        config["num_attention_heads"] = json!(heads);
        config["kv_channels"] = json!(hidden.checked_div(heads).unwrap_or(0));
        config["visual"] = json!({
            "image_size": image, "patch_size": patch, "width": width, "layers": 1,
            "heads": vision_heads, "mlp_ratio": ratio, "output_dim": hidden, "image_start_id": 7,
            "n_queries": queries
        });
        if let Ok(config) = parse(&config) {
            let v = &config.visual;
            prop_assert_eq!(config.head_dim * config.num_attention_heads, config.hidden_size);
            prop_assert_eq!(v.grid() * v.patch_size, v.image_size);
            prop_assert_eq!(v.head_dim() * v.heads, v.width);
            prop_assert_eq!(v.resampler_head_dim() * v.resampler_heads(), config.hidden_size);
            prop_assert!(names::tensors(&config).iter().all(|t| !t.shape.contains(&0)));
        }
    }
}

fn implied(config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
    let specs = names::tensors(config);
    let count = specs.len();
    let map: BTreeMap<_, _> = specs.into_iter().map(|s| (s.name, s.shape)).collect();
    assert_eq!(map.len(), count, "a name occurs twice");
    map
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("a readable file");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn golden_names_and_shapes_of_the_real_checkpoint() {
    let Some(goldens) = support::goldens() else { return };
    let (list, config) =
        (goldens.join("qwen-vl-chat-tensors.json"), goldens.join("qwen-vl-chat-config.json"));
    if !list.is_file() {
        return support::skip(format_args!("no {}", list.display()));
    }
    let text = std::fs::read_to_string(&config).expect("a readable file");
    let config = ModelConfig::parse(&config, &text).expect("valid");
    let list = read_json(&list);
    let expected: BTreeMap<String, Vec<usize>> =
        serde_json::from_value(list["tensors"].clone()).expect("names and shapes");
    let got = implied(&config);
    assert_eq!(got, expected);
    let elements: usize = got.values().map(|shape| shape.iter().product::<usize>()).sum();
    assert_eq!(json!(elements), list["n_parameters"]);
    assert_eq!(json!(got.len()), list["n_tensors"]);
}

#[test]
fn golden_decay_groups_and_trained_tensors() {
    let Some(goldens) = support::goldens() else { return };
    let path = goldens.join("adamw.json");
    if !path.is_file() {
        return support::skip(format_args!("no {}", path.display()));
    }
    let full = &read_json(&path)["full"];
    let list = |key: &str| {
        let mut names: Vec<String> = serde_json::from_value(full[key].clone()).expect("names");
        names.sort();
        names
    };
    let config = ModelConfig::read(goldens.join("tiny-qwen-vl")).expect("valid");
    let trained = names::tensors(&config).into_iter().map(|spec| spec.name);
    let (mut decay, mut exempt): (Vec<_>, Vec<_>) = trained
        .filter(|name| names::part(name) != Part::Vision)
        .partition(|name| names::decays(name));
    decay.sort();
    exempt.sort();
    assert_eq!(decay, list("decay"));
    assert_eq!(exempt, list("no_decay"));
}

#[test]
fn parts_of_the_model() {
    let cases = [
        ("transformer.wte.weight", Part::Embedding, true),
        ("lm_head.weight", Part::Head, true),
        ("transformer.ln_f.weight", Part::Decoder, true),
        ("transformer.h.31.ln_1.weight", Part::Decoder, true),
        ("transformer.h.0.attn.c_attn.bias", Part::Decoder, false),
        ("transformer.visual.attn_pool.pos_embed", Part::Resampler, true),
        ("transformer.visual.attn_pool.ln_kv.weight", Part::Resampler, false),
        ("transformer.visual.attn_pool.attn.in_proj_bias", Part::Resampler, false),
        ("transformer.visual.transformer.resblocks.1.ln_2.weight", Part::Vision, false),
        ("transformer.visual.transformer.resblocks.1.mlp.c_fc.weight", Part::Vision, true),
        ("transformer.visual.ln_post.weight", Part::Vision, false),
        ("transformer.visual.proj", Part::Vision, true),
    ];
    for (name, part, decays) in cases {
        assert_eq!((names::part(name), names::decays(name)), (part, decays), "{name}");
    }
}
