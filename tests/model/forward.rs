//! Golden forward passes: every stage of the vision part, the decoder layer by layer, logits in eval
//! and train mode, greedy decoding.

use silkie::model::config::ModelConfig;
use silkie::model::generate::{Generator, Sampling};
use silkie::model::params::Trainable;
use silkie::model::{Budget, Lora, Model, Purpose, RopeMode, VisionWorkspace, Workspace};

use silkie::tensor::{Tensor, TensorMut};

use crate::support::golden_model::{GoldenModel, assert_within, with_pixels};

/// goldens/README: logits to 1e-4, at a standard deviation of about 2.
const LOGITS: f32 = 1e-4;
/// Intermediate values have the same magnitude as logits, some a few times that.
const HIDDEN: f32 = 1e-4;

fn logits_at(
    golden: &GoldenModel,
    model: &Model,
    ids: &[u32],
    at: &[u32],
    rope: RopeMode,
) -> Vec<f32> {
    let pack = golden.sequence(ids);
    let budget = Budget { head_rows: at.len(), ..Budget::of(&pack, Purpose::Score) };
    let mut ws = Workspace::new(model, budget);
    with_pixels(golden, &pack, |images| model.forward(&mut ws, &pack, images, Lora::Off, rope))
        .unwrap();
    let mut logits = vec![f32::NAN; at.len() * model.config.vocab_size];
    let out = TensorMut::new(&mut logits, at.len(), model.config.vocab_size);
    model.logits(&mut ws, at, out).unwrap();
    logits
}

#[test]
fn vision_stages_match_the_original() {
    let Some(golden) = GoldenModel::open(&[]) else { return };
    let model = Model::open(&golden.model_dir(), Trainable::All, None).unwrap();
    let images = golden.shape("vision.final")[0];
    let pixels: Vec<_> = (0..images).map(|i| golden.f32(&format!("pixels.{i}"))).collect();
    let views: Vec<_> = pixels.iter().map(|p| Tensor::vector(p)).collect();

    let visual = &model.config.visual;
    let mut ws = VisionWorkspace::new(&model, images, Purpose::Train);
    let (n, d) = (images * visual.n_queries, visual.output_dim);
    let mut features = vec![f32::NAN; n * d];
    model.encode_images(&mut ws, &views, TensorMut::new(&mut features, n, d)).unwrap();

    let check = |name: &str, got: Tensor| {
        assert_within(name, got.elements(), &golden.f32(&format!("vision.{name}")), HIDDEN);
    };
    let t = images * visual.patches();
    check("pos_interp", ws.tower.position());
    check("ln_pre", ws.tower.stream(0, t));
    for n in 0..visual.layers {
        check(&format!("block.{n}"), ws.tower.stream(n + 1, t));
    }
    let [ln_kv, pos_kv, attended] = ws.resampler.inspect(images);
    check("resampler_ln_kv", ln_kv);
    check("resampler_pos_kv", pos_kv);
    check("resampler_out", attended);
    check("final", Tensor::new(&features, n, d));
}

#[test]
fn decoder_layers_and_logits_match_the_original() {
    let Some(golden) = GoldenModel::open(&[]) else { return };
    let model = Model::open(&golden.model_dir(), Trainable::None, None).unwrap();
    for i in 0..golden.forward["sequences"].as_array().unwrap().len() {
        let ids = golden.tokens(&format!("seq{i}.input_ids"));
        let positions = format!("seq{i}.logit_positions");
        let all: Vec<u32> = (0..ids.len() as u32).collect();
        let at = if golden.has(&positions) { golden.tokens(&positions) } else { all };
        let rope = RopeMode::eval(&model.config, ids.len());
        let logits = logits_at(&golden, &model, &ids, &at, rope);
        assert_within(
            &format!("seq{i}.logits"),
            &logits,
            &golden.f32(&format!("seq{i}.logits")),
            LOGITS,
        );

        if !golden.has(&format!("seq{i}.embeddings")) {
            continue;
        }
        let pack = golden.sequence(&ids);
        let mut ws = Workspace::new(&model, Budget::of(&pack, Purpose::Train));
        with_pixels(&golden, &pack, |images| {
            model.forward(&mut ws, &pack, images, Lora::Off, rope)
        })
        .unwrap();
        let check = |name: String, layer: usize| {
            assert_within(&name, ws.stream(layer).view().elements(), &golden.f32(&name), HIDDEN);
        };
        check(format!("seq{i}.embeddings"), 0);
        for layer in 0..model.config.num_hidden_layers {
            check(format!("seq{i}.hidden.{layer}"), layer + 1);
        }
    }
}

/// `config_long.json`, or what the case switches off in it.
fn long_config(golden: &GoldenModel, off: &str) -> ModelConfig {
    let path = golden.model_dir().join("config_long.json");
    let mut config = ModelConfig::parse(&path, &std::fs::read_to_string(&path).unwrap()).unwrap();
    config.use_dynamic_ntk &= off != "eval_no_ntk";
    config.use_logn_attn &= off != "eval_no_logn";
    config
}

#[test]
fn long_sequences_match_the_original_in_eval_and_train_mode() {
    let Some(golden) = GoldenModel::open(&[]) else { return };
    let modes = ["eval", "train_fresh", "eval_no_ntk", "eval_no_logn", "train_after_eval"];
    let mut compared = 0;
    for (case, told) in golden.forward["long"]["cases"].as_object().unwrap() {
        let ids = golden.tokens(&format!("long.{case}.input_ids"));
        let at = golden.tokens(&format!("long.{case}.positions"));
        for mode in modes {
            let name = format!("long.{case}.{mode}");
            if !golden.has(&name) {
                continue;
            }
            let config = long_config(&golden, mode);
            let eval = RopeMode::eval(&config, ids.len());
            if mode == "eval" {
                assert_eq!(
                    eval.ntk_alpha,
                    told["ntk_alpha_eval"].as_f64().unwrap(),
                    "{case}: alpha"
                );
            }
            let rope = match mode {
                "train_fresh" => RopeMode::TRAIN,
                "train_after_eval" => RopeMode { logn: false, ..eval },
                _ => eval,
            };
            let model =
                Model::with_config(&golden.model_dir(), config, Trainable::None, None).unwrap();
            let logits = logits_at(&golden, &model, &ids, &at, rope);
            assert_within(&name, &logits, &golden.f32(&name), LOGITS);
            compared += 1;
        }
    }
    assert!(compared > 0, "no long case in {}", golden.dir.display());
}

#[test]
fn greedy_decoding_matches_the_original_token_by_token() {
    let Some(golden) = GoldenModel::open(&[]) else { return };
    for (case, told) in golden.forward["greedy"].as_object().unwrap() {
        let path = golden.model_dir().join(told["config"].as_str().unwrap());
        let config = ModelConfig::parse(&path, &std::fs::read_to_string(&path).unwrap()).unwrap();
        let model = Model::with_config(&golden.model_dir(), config, Trainable::None, None).unwrap();
        let prompt = golden.sequence(&golden.tokens(&format!("greedy.{case}.prompt_ids")));
        let want = golden.tokens(&format!("greedy.{case}.tokens"));
        let step_logits = golden.f32(&format!("greedy.{case}.step_logits"));

        let (length, vocab) = (prompt.tokens.len(), model.config.vocab_size);
        let capacity = length + want.len();
        let mut generator =
            Generator::new(&model, length, prompt.images.len(), capacity, Lora::Off);
        for (i, &token) in want.iter().enumerate() {
            let logits = if i == 0 {
                with_pixels(&golden, &prompt, |images| {
                    generator.start(&prompt, images).unwrap().to_vec()
                })
            } else {
                generator.step(want[i - 1]).unwrap().to_vec()
            };
            let name = format!("greedy.{case}.step_logits[{i}]");
            assert_within(&name, &logits, &step_logits[i * vocab..(i + 1) * vocab], LOGITS);
            let chosen = Sampling::Greedy.sampler().choose(&logits).unwrap();
            assert_eq!(chosen, token, "{case}: token {i}");
        }
        let written = with_pixels(&golden, &prompt, |images| {
            let mut sampler = Sampling::Greedy.sampler();
            generator.write(&prompt, images, &mut sampler, want.len(), &[], |_| true).unwrap()
        });
        assert_eq!(written, want, "{case}");
    }
}
