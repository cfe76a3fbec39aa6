//! Models with random weights, and models written.

use std::path::Path;

use half::bf16;
use proptest::prelude::*;
use silkie::Error;
use silkie::data::tokenizer::Tokenizer;
use silkie::model::adapter::{Adapter, LoraConfig};
use silkie::model::config::ModelConfig;
use silkie::model::create::{Recipe, Vocabulary};
use silkie::model::init::{Changes, Init, Preset, Scales, Spread};
use silkie::model::merge::merge;
use silkie::model::names;
use silkie::model::weights::Weights;
use silkie::tensor::DType;

use crate::support;

const UNCHANGED: Changes = Changes {
    vocab_size: None,
    image_start_id: None,
    layers: None,
    vision_layers: None,
    dtype: DType::F32,
};

fn small_changes(dtype: DType) -> Changes {
    Changes { vocab_size: Some(320), image_start_id: Some(300), dtype, ..UNCHANGED }
}

/// The preset tiny with a small vocabulary, in `dir`.
fn write_tiny(dir: &Path, dtype: DType, seed: u64, shard: usize) -> silkie::Result<ModelConfig> {
    let config = Preset::Tiny.config(&small_changes(dtype))?;
    let companions = |folder: &Path| {
        std::fs::write(folder.join("config.json"), config.to_json()).expect("written");
        std::fs::write(folder.join("tokenizer.json"), "{}").expect("written");
        Ok(())
    };
    let init = Init::new(&config, Preset::Tiny.scales(&config), seed);
    init.write(dir, dtype, shard, companions, |_| Ok(()))?;
    ModelConfig::read(dir)
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a folder");
    let name = |e: std::io::Result<std::fs::DirEntry>| e.expect("an entry").file_name();
    let mut names: Vec<String> = entries.map(|e| name(e).to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn presets_have_the_sizes_they_promise() {
    let elements = |config: &ModelConfig| -> usize {
        names::tensors(config).iter().map(|t| t.shape.iter().product::<usize>()).sum()
    };
    let real = Preset::QwenVlChat.config(&UNCHANGED).expect("valid");
    assert_eq!(elements(&real), 9_656_935_168);
    let small = Preset::Small.config(&UNCHANGED).expect("valid");
    assert_eq!((small.head_dim, small.visual.head_dim(), small.visual.patches()), (128, 104, 1024));
    assert_eq!((small.vocab_size, small.visual.n_queries, small.mlp_width()), (151_936, 256, 1408));
    let tiny = Preset::Tiny.config(&small_changes(DType::F32)).expect("valid");
    assert_eq!((tiny.mlp_width(), tiny.head_dim, tiny.visual.patches()), (176, 16, 16));
    assert_eq!(
        (tiny.vocab_size, tiny.visual.image_start_id, tiny.visual.n_queries),
        (320, 300, 16)
    );
    let cut = Changes { layers: Some(3), vision_layers: Some(1), ..UNCHANGED };
    let cut = Preset::QwenVlChat.config(&cut).expect("valid");
    assert_eq!((cut.num_hidden_layers, cut.visual.layers), (3, 1));
    let impossible = Changes { vocab_size: Some(100), ..UNCHANGED };
    let error = Preset::Tiny.config(&impossible).expect_err("no image tokens").to_string();
    assert!(error.contains("preset tiny: field vocab_size: expected more than 151859"), "{error}");
}

#[test]
fn golden_config_of_the_real_preset() {
    let Some(goldens) = support::goldens() else { return };
    let path = goldens.join("qwen-vl-chat-config.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        return support::skip(format_args!("no {}", path.display()));
    };
    let ours = Preset::QwenVlChat.config(&Changes { dtype: DType::Bf16, ..UNCHANGED });
    let (ours, theirs): (serde_json::Value, serde_json::Value) = (
        serde_json::from_str(&ours.expect("valid").to_json()).expect("JSON"),
        serde_json::from_str(&text).expect("JSON"),
    );
    assert_eq!(ours, theirs);
}

#[test]
fn a_written_model_opens_and_is_what_was_made() {
    let dir = tempfile::tempdir().expect("a folder");
    let (single, shards) = (dir.path().join("single"), dir.path().join("shards"));
    let config = write_tiny(&single, DType::F32, 5, usize::MAX).expect("written");
    assert_eq!(names_in(&single), ["config.json", "model.safetensors", "tokenizer.json"]);
    write_tiny(&shards, DType::F32, 5, 300_000).expect("written");
    let files = names_in(&shards);
    assert!(files.len() > 4 && files[1].starts_with("model-00001-of-0000"), "{files:?}");
    let (single, shards) = (Weights::open(&single, &config), Weights::open(&shards, &config));
    let (single, shards) = (single.expect("opened"), shards.expect("opened"));
    let init = Init::new(&config, Preset::Tiny.scales(&config), 5);
    for (i, (a, b)) in single.iter().zip(shards.iter()).enumerate() {
        let mut expected = vec![f32::NAN; a.len()];
        init.fill(i, 0, &mut expected);
        assert_eq!((a.to_f32(), b.bytes()), (expected, a.bytes()), "{}", a.name());
    }
    let bytes = std::fs::read(&single.files()[0]).expect("read");
    let theirs = safetensors::SafeTensors::deserialize(&bytes).expect("the library opens it");
    assert_eq!(theirs.len(), single.iter().len());
}

#[test]
fn weights_depend_on_the_seed_and_their_place_only() {
    let config = Preset::Small.config(&small_changes(DType::F32)).expect("valid");
    let scales = Preset::Small.scales(&config);
    let init = Init::new(&config, scales.clone(), 1);
    let index = init.specs().iter().position(|s| s.name.ends_with("mlp.w1.weight"));
    let index = index.expect("a matrix");
    let count: usize = init.specs()[index].shape.iter().product();
    let (mut whole, mut tail) = (vec![0.0; count], vec![0.0; count - 131_072]);
    init.fill(index, 0, &mut whole);
    init.fill(index, 131_072, &mut tail);
    assert_eq!(whole[131_072..], tail);
    for other in [Init::new(&config, scales.clone(), 2), Init::new(&config, scales, 1)] {
        let mut values = vec![0.0; count];
        other.fill(index + 1, 0, &mut values);
        assert!(values.iter().zip(&whole).filter(|(a, b)| a == b).count() < count / 1000);
    }
}

#[test]
fn weights_have_the_spread_asked_for() {
    let config = Preset::Small.config(&small_changes(DType::F32)).expect("valid");
    let init = Init::new(&config, Scales::published(&config), 9);
    let tensor = |name: &str| {
        let index = init.specs().iter().position(|s| s.name == name).expect(name);
        let mut values = vec![f32::NAN; init.specs()[index].shape.iter().product()];
        init.fill(index, 0, &mut values);
        values
    };
    let deviation = |name: &str| {
        let values = tensor(name);
        (values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    };
    // Of n draws the deviation is known to about 0.5/sqrt(n): 0.1 % for the smallest here.
    for (name, expected) in [
        ("transformer.wte.weight", 0.02),
        ("transformer.h.3.attn.c_attn.weight", 0.02),
        ("transformer.h.3.attn.c_proj.weight", 0.02 / 4.0),
        ("transformer.h.3.mlp.c_proj.weight", 0.02 / 4.0),
        ("transformer.visual.conv1.weight", 1.0 / (3.0f64 * 588.0).sqrt()),
        ("transformer.visual.attn_pool.attn.in_proj_weight", 0.02),
    ] {
        let got = deviation(name);
        assert!((got / expected - 1.0).abs() < 0.01, "{name}: {got}, expected {expected}");
    }
    assert!(tensor("transformer.h.0.ln_1.weight").iter().all(|&x| x == 1.0));
    assert!(tensor("transformer.visual.attn_pool.ln_q.weight").iter().all(|&x| x == 1.0));
    assert!(tensor("transformer.h.0.attn.c_attn.bias").iter().all(|&x| x == 0.0));
    assert!(tensor("transformer.visual.attn_pool.attn.in_proj_bias").iter().all(|&x| x == 0.0));
}

#[test]
fn positions_are_sines_and_cosines_of_both_coordinates() {
    let config = Preset::Tiny.config(&small_changes(DType::F32)).expect("valid");
    let init = Init::new(&config, Scales { resampler_sin_cos: 0.5, ..Scales::demo() }, 0);
    let name = "transformer.visual.attn_pool.pos_embed";
    let index = init.specs().iter().position(|s| s.name == name).expect(name);
    let mut got = vec![f32::NAN; 16 * 64];
    init.fill(index, 0, &mut got);
    for cell in 0..16 {
        for k in 0..16 {
            let omega = 1.0 / 10000f64.powf(k as f64 / 16.0);
            let (x, y) = ((cell % 4) as f64 * omega, (cell / 4) as f64 * omega);
            for (part, expected) in [x.sin(), x.cos(), y.sin(), y.cos()].into_iter().enumerate() {
                let got = f64::from(got[cell * 64 + part * 16 + k]);
                assert!((got - 0.5 * expected).abs() < 1e-6, "cell {cell}, {part}, {k}");
            }
        }
    }
}

#[test]
fn the_demo_resampler_starts_near_the_identity() {
    let config = Preset::Tiny.config(&small_changes(DType::F32)).expect("valid");
    let scales = Scales { resampler: Spread::Fixed(0.0), ..Scales::demo() };
    let init = Init::new(&config, scales, 0);
    let name = "transformer.visual.attn_pool.attn.in_proj_weight";
    let index = init.specs().iter().position(|s| s.name == name).expect(name);
    let mut got = vec![f32::NAN; 192 * 64];
    init.fill(index, 0, &mut got);
    for (i, x) in got.into_iter().enumerate() {
        let (row, col) = (i / 64, i % 64);
        assert_eq!(x, if row < 128 && row % 64 == col { 1.5 } else { 0.0 });
    }
}

#[test]
fn an_interrupted_write_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = Preset::Tiny.config(&small_changes(DType::F32)).expect("valid");
    let init = Init::new(&config, Preset::Tiny.scales(&config), 0);
    let mut pieces = 0;
    let result = init.write(
        &dir.path().join("model"),
        DType::F32,
        100_000,
        |_| Ok(()),
        |_| {
            pieces += 1;
            if pieces < 20 { Ok(()) } else { Err(Error::Interrupted("stopped".into())) }
        },
    );
    assert_eq!(result.expect_err("stopped").exit_code(), 130);
    assert_eq!(names_in(dir.path()), Vec::<String>::new());
}

#[test]
fn a_folder_in_use_is_not_overwritten() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("notes"), "mine").expect("written");
    let error = write_tiny(dir.path(), DType::F32, 0, usize::MAX).expect_err("in use").to_string();
    assert!(error.contains("exists and is not empty"), "{error}");
    assert_eq!(names_in(dir.path()), ["notes"]);
}

/// W + scale · B A in f64, and the largest sum of magnitudes of an element's terms.
fn merged_by_hand(
    w: &[f32],
    pair: &silkie::model::adapter::LoraPair,
    r: usize,
    scale: f64,
) -> Vec<[f64; 2]> {
    let (rows, cols) = (pair.target.rows, pair.target.cols);
    let mut out = Vec::with_capacity(w.len());
    for i in 0..rows {
        for j in 0..cols {
            let w = f64::from(w[i * cols + j]);
            let terms = (0..r)
                .map(|k| scale * f64::from(pair.b[i * r + k]) * f64::from(pair.a[k * cols + j]));
            let (mut sum, mut magnitude) = (w, w.abs());
            terms.for_each(|t| (sum, magnitude) = (sum + t, magnitude + t.abs()));
            out.push([sum, magnitude]);
        }
    }
    out
}

fn check_merge(base: &Path, adapter: &Path, dtype: Option<DType>) {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("merged");
    let merged = merge(base, adapter, &out, dtype, |_| Ok(())).expect("merged");
    let config = ModelConfig::read(&out).expect("valid");
    let (before, after) = (Weights::open(base, &config), Weights::open(&out, &config));
    let (before, after) = (before.expect("opened"), after.expect("opened"));
    let adapter = Adapter::open(adapter, &config).expect("opened");
    assert_eq!((merged.tensors, merged.merged), (before.iter().len(), adapter.pairs.len()));
    let scale = adapter.config.alpha / adapter.config.r as f64;
    for (w, got) in before.iter().zip(after.iter()) {
        assert_eq!(got.dtype(), dtype.unwrap_or(w.dtype()), "{}", w.name());
        let pair = adapter.pairs.iter().find(|p| w.name() == format!("{}.weight", p.target.module));
        let (w, got, same) = (w.to_f32(), got.to_f32(), got.bytes() == w.bytes());
        let Some(pair) = pair else {
            if dtype.is_none() {
                assert!(same);
            }
            continue;
        };
        // r + 1 f32 additions and as many products, then one rounding to the output.
        let rounding = if after.get(&format!("{}.weight", pair.target.module)).dtype() == DType::F32
        {
            0.0
        } else {
            2f64.powi(-8)
        };
        let bound = 2.0 * (adapter.config.r + 2) as f64 * 2f64.powi(-24) + rounding;
        let expected = merged_by_hand(&w, pair, adapter.config.r, scale);
        for (got, [sum, magnitude]) in got.into_iter().zip(expected) {
            assert!((f64::from(got) - sum).abs() <= bound * magnitude + 1e-30, "{got} {sum}");
        }
    }
}

#[test]
fn a_merged_model_is_the_base_with_its_adapter() {
    let dir = tempfile::tempdir().expect("a folder");
    let (base, lora) = (dir.path().join("base"), dir.path().join("lora"));
    let config = write_tiny(&base, DType::Bf16, 2, 200_000).expect("written");
    std::fs::create_dir_all(base.join("assets")).expect("made");
    std::fs::create_dir_all(base.join(".cache")).expect("made");
    for name in
        ["modeling_qwen.py", "assets/font.ttf", ".cache/blob", "pytorch_model.bin.index.json"]
    {
        std::fs::write(base.join(name), name).expect("written");
    }
    let mut adapter =
        Adapter::init(&LoraConfig { r: 3, ..LoraConfig::default() }, &config, 4).expect("made");
    for (i, b) in adapter.pairs.iter_mut().flat_map(|p| p.b.iter_mut()).enumerate() {
        *b = (i % 17) as f32 / 16.0 - 0.5;
    }
    adapter.write(&lora, &base).expect("written");
    check_merge(&base, &lora, None);
    check_merge(&base, &lora, Some(DType::F32));

    let out = dir.path().join("out");
    merge(&base, &lora, &out, Some(DType::F16), |_| Ok(())).expect("merged");
    let files =
        ["assets", "config.json", "model.safetensors", "modeling_qwen.py", "tokenizer.json"];
    assert_eq!(names_in(&out), files);
    assert_eq!(names_in(&out.join("assets")), ["font.ttf"]);
    let recorded = ModelConfig::read(&out).expect("valid");
    assert_eq!(recorded.raw("torch_dtype").and_then(|v| v.as_str()), Some("float16"));
    let stop = |_| Err(Error::Interrupted("stopped".into()));
    assert!(merge(&base, &lora, &dir.path().join("gone"), None, stop).is_err());
    assert_eq!(names_in(dir.path()), ["base", "lora", "out"]);
}

#[test]
fn golden_merge() {
    let Some(goldens) = support::goldens() else { return };
    check_merge(&goldens.join("tiny-qwen-vl"), &goldens.join("adapter"), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn shards_of_any_size_hold_the_same_weights(shard in 1usize..3_000_000, seed in any::<u64>()) {
        let dir = tempfile::tempdir().expect("a folder");
        let config = write_tiny(&dir.path().join("m"), DType::Bf16, seed, shard).expect("written");
        let weights = Weights::open(dir.path().join("m"), &config).expect("opened");
        let init = Init::new(&config, Preset::Tiny.scales(&config), seed);
        for (i, tensor) in weights.iter().enumerate().step_by(7) {
            let mut expected = vec![f32::NAN; tensor.len()];
            init.fill(i, 0, &mut expected);
            let rounded = expected.iter().map(|&x| bf16::from_f32(x).to_f32());
            prop_assert!(tensor.to_f32().into_iter().eq(rounded));
        }
    }
}

#[test]
fn a_recipe_makes_the_vocabulary_fit_the_tokenizer() {
    let dir = tempfile::tempdir().expect("a folder");
    let texts = ["a red disc and a blue square", "the red disc is top-left"].map(String::from);
    let mut recipe = Recipe::new(Preset::Tiny, 1);
    recipe.vocabulary = Vocabulary::Train(texts.to_vec());
    let out = dir.path().join("model");
    let made = recipe.create(&out, |_, _| Ok(())).expect("made");
    let (config, tokens) = (&made.config, made.tokens.expect("trained"));
    assert_eq!(config, &ModelConfig::read(&out).expect("valid"));
    assert_eq!(config.vocab_size, tokens.next_multiple_of(64));
    let tokenizer = Tokenizer::open(&out, config.visual.n_queries).expect("opened");
    assert_eq!(tokenizer.specials().img_start, config.visual.image_start_id);
    Weights::open(&out, config).expect("opened");

    recipe.vocabulary = Vocabulary::File(out.join("tokenizer.json"));
    recipe.vocab_size = Some(tokens - 1);
    let error = recipe.create(&dir.path().join("small"), |_, _| Ok(())).expect_err("too small");
    assert_eq!(error.exit_code(), 2);
    recipe.vocab_size = None;
    recipe.create(&dir.path().join("again"), |_, _| Ok(())).expect("made");
    for name in ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors"] {
        let read = |folder: &str| std::fs::read(dir.path().join(folder).join(name)).expect("read");
        assert!(read("model") == read("again"), "{name}");
    }
    assert_eq!(names_in(dir.path()), ["again", "model"]);
}

#[test]
fn the_commands_report_what_they_wrote() {
    let dir = tempfile::tempdir().expect("a folder");
    let silkie = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_silkie"));
        command.current_dir(dir.path()).args(arguments).output().expect("started")
    };
    let report = |arguments: &[&str]| -> serde_json::Value {
        let output = silkie(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
    };
    std::fs::write(dir.path().join("text"), "one two three\ntwo three four\n").expect("written");
    let init = ["init", "--preset", "tiny", "--text", "text", "--out", "base", "--json"];
    let made = report(&init);
    assert_eq!((&made["preset"], &made["tensors"]), (&"tiny".into(), &49.into()));
    assert_eq!(silkie(&init).status.code(), Some(1));
    let config = ModelConfig::read(dir.path().join("base")).expect("valid");
    let adapter = Adapter::init(&LoraConfig { r: 2, ..LoraConfig::default() }, &config, 0);
    adapter.expect("made").write(dir.path().join("lora"), Path::new("base")).expect("written");
    let merge = ["merge", "--model", "base", "--adapter", "lora", "--out", "out", "--json"];
    let merged = report(&merge);
    assert_eq!((&merged["tensors"], &merged["merged"]), (&49.into(), &8.into()));
    // B is zero: nothing changes.
    let read = |folder: &str| std::fs::read(dir.path().join(folder).join("model.safetensors"));
    assert!(read("base").expect("read") == read("out").expect("read"));
}
