//! `silkie bench step`: the same step whatever the layout, its arithmetic counted right, and an export
//! that another program can read. `bench kernels` is in bars.rs.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use silkie::data::pack::{Pack, Segment};
use silkie::model::config::ModelConfig;
use silkie::model::flop;
use silkie::model::init::{Changes, Init, Preset};
use silkie::model::weights::safetensors;
use silkie::model::weights::write::SHARD_BYTES;
use silkie::tensor::DType;

fn tiny() -> (ModelConfig, Init) {
    let changes = Changes {
        vocab_size: Some(600),
        image_start_id: Some(500),
        layers: None,
        vision_layers: None,
        dtype: DType::F32,
    };
    let config = Preset::Tiny.config(&changes).unwrap();
    let init = Init::new(&config, Preset::Tiny.scales(&config), 3);
    (config, init)
}

fn write_tiny(dir: &Path) {
    let (config, init) = tiny();
    let text = config.to_json();
    let companions = |folder: &Path| {
        std::fs::write(folder.join("config.json"), &text).unwrap();
        Ok(())
    };
    init.write(dir, DType::F32, SHARD_BYTES, companions, |_| Ok(())).unwrap();
}

fn bench(model: &Path, more: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_silkie"))
        .args(["bench", "step", "--json", "--steps", "1", "--warmup", "0", "--model"])
        .arg(model)
        .args(more)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[test]
fn a_tree_and_its_pairs_are_the_same_step() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny");
    write_tiny(&model);
    let (tree, pairs) = (bench(&model, &[]), bench(&model, &["--layout", "pairs"]));
    let number = |report: &Value, key: &str| report[key].as_f64().unwrap_or(f64::NAN);
    assert!((number(&tree, "loss") - number(&pairs, "loss")).abs() < 1e-5, "{tree} {pairs}");
    assert_eq!((number(&tree, "pairs"), number(&pairs, "pairs")), (6.0, 6.0));
    // one trunk of 98 and 412 answer tokens, against twelve trunks and every answer three times
    assert_eq!(number(&tree, "tokens"), 98.0 + 412.0);
    assert_eq!(number(&pairs, "tokens"), 12.0 * 98.0 + 3.0 * 412.0);
    for key in ["ms_per_step", "pairs_per_s", "tokens_per_s", "gflop", "gflop_per_s"] {
        assert!(number(&tree, key) > 0.0, "{key} in {tree}");
    }
    assert!(number(&tree, "gflop") < 0.5 * number(&pairs, "gflop"));
    let lone = bench(&model, &["--pairs", "lone"]);
    assert_eq!((number(&lone, "pairs"), number(&lone, "tokens")), (1.0, 98.0 + 200.0));
}

#[test]
fn an_export_holds_what_another_program_needs() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (folder.path().join("tiny"), folder.path().join("export"));
    write_tiny(&model);
    let facts = bench(&model, &["--pairs", "lone", "--export", out.to_str().unwrap()]);
    assert!(facts["loss"].as_f64().is_some_and(f64::is_finite));
    let gradients = safetensors::open(out.join("grads.safetensors")).unwrap();
    let adapter = safetensors::open(out.join("adapter/adapter_model.safetensors")).unwrap();
    let shapes = |tensors: &[silkie::model::weights::MappedTensor]| {
        let mut all: Vec<_> =
            tensors.iter().map(|t| (t.name().to_string(), t.shape().to_vec())).collect();
        all.sort();
        all
    };
    assert_eq!(shapes(&gradients), shapes(&adapter));
    assert!(gradients.iter().all(|t| t.to_f32().iter().any(|&g| g != 0.0)));
    assert!(out.join("batch.safetensors").is_file() && out.join("step.json").is_file());
}

#[test]
fn arithmetic_is_counted_as_by_hand() {
    let (config, _) = tiny();
    let segment = |start, len, prefix_len| Segment { start, len, prefix_start: 0, prefix_len };
    let pack = Pack {
        tokens: vec![0; 5],
        segments: vec![segment(0, 3, 0), segment(3, 2, 3)],
        head_rows: vec![2, 3, 4],
        ..Pack::default()
    };
    // hidden 64, mlp 176, 2 layers; the trunk sees 1 + 2 + 3 keys, the branch 4 + 5
    let linear = 4 * 5 * (4 * 64 * 64 + 3 * 64 * 176);
    let adapters = 6 * 5 * 8 * ((64 + 192) + (64 + 64) + 2 * (64 + 176));
    let attention = 14 * 64 * (6 + 9);
    let head = 4 * 3 * 64 * 600;
    let expected = 2 * (linear + adapters + attention) + head;
    assert_eq!(flop::lora_step(&config, &pack, 8), f64::from(expected));
}
