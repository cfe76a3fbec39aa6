//! Backward through the whole network, vision tower included, against central differences of forward,
//! and the two layouts against each other: without golden files.

use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use silkie::data::pack::{BranchView, ImageRef, Layout, Pack, TreeView};
use silkie::model::adapter::{Adapter, LoraConfig};
use silkie::model::init::{Changes, Init, Preset};
use silkie::model::params::Trainable;
use silkie::model::{Budget, Images, Lora, Model, Purpose, RopeMode, Workspace};
use silkie::tensor::{DType, Tensor};

const VOCAB: u32 = 320;

/// The preset tiny with a small vocabulary, every trained value moved off its initial one: biases
/// and norms that start at 0 and 1 must matter.
fn model(dir: &Path, trainable: Trainable, seed: u64) -> Model {
    let changes = Changes {
        vocab_size: Some(VOCAB as usize),
        image_start_id: Some(300),
        layers: None,
        vision_layers: Some(2),
        dtype: DType::F32,
    };
    let config = Preset::Tiny.config(&changes).unwrap();
    let init = Init::new(&config, Preset::Tiny.scales(&config), seed);
    let companions = |folder: &Path| {
        std::fs::write(folder.join("config.json"), config.to_json()).unwrap();
        Ok(())
    };
    if !dir.join("config.json").exists() {
        init.write(dir, DType::F32, 1 << 30, companions, |_| Ok(())).unwrap();
    }
    let lora = LoraConfig { r: 4, alpha: 8.0, ..LoraConfig::default() };
    let adapter = (trainable == Trainable::Lora).then(|| Adapter::init(&lora, &config, 5).unwrap());
    let mut model = Model::open(dir, trainable, adapter.as_ref()).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    model.params_mut().iter_mut().for_each(|p| *p += 0.05 * (rng.random::<f32>() - 0.5));
    model
}

/// A tree's own data: prompt, image slots, answers.
struct Tree {
    trunk: Vec<u32>,
    images: Vec<(u32, ImageRef)>,
    answers: Vec<(Vec<u32>, Vec<u8>)>,
    pairs: Vec<[u32; 2]>,
}

fn tree(rng: &mut ChaCha8Rng, slots: usize, images: &[u32], answers: usize) -> Tree {
    let mut text = |n: usize| -> Vec<u32> { (0..n).map(|_| rng.random_range(0..300)).collect() };
    let mut trunk = text(3);
    let mut spans = Vec::new();
    for &image in images {
        trunk.push(300);
        spans.push((trunk.len() as u32, ImageRef(image)));
        trunk.extend(std::iter::repeat_n(302, slots));
        trunk.push(301);
        trunk.extend(text(2));
    }
    let answer = |i: usize| {
        let tokens = text(3 + 2 * i);
        let scored = (0..tokens.len()).map(|t| u8::from(t != 1)).collect();
        (tokens, scored)
    };
    let answers: Vec<_> = (0..answers).map(answer).collect();
    let count = answers.len() as u32;
    let pairs = (0..count).flat_map(|a| (a + 1..count).map(move |b| [a, b])).collect();
    Tree { trunk, images: spans, answers, pairs }
}

fn pack(trees: &[Tree], slots: usize, layout: Layout) -> Pack {
    let views: Vec<_> = (0..)
        .zip(trees)
        .map(|(record, tree)| TreeView {
            record,
            trunk: &tree.trunk,
            images: tree.images.clone(),
            branches: (0..)
                .zip(&tree.answers)
                .map(|(branch, (tokens, scored))| BranchView { branch, tokens, scored })
                .collect(),
            pairs: tree.pairs.clone(),
        })
        .collect();
    Pack::build(&views, slots, layout).unwrap()
}

fn trees(slots: usize) -> Vec<Tree> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    vec![
        tree(&mut rng, slots, &[0], 3),
        tree(&mut rng, slots, &[], 2),
        tree(&mut rng, slots, &[1, 0], 2),
    ]
}

/// u8 pictures, some of them shown twice.
struct Pictures(Vec<Vec<u8>>);

impl Pictures {
    fn new(model: &Model) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let bytes = 3 * model.config.visual.image_size.pow(2);
        Pictures((0..2).map(|_| (0..bytes).map(|_| rng.random()).collect()).collect())
    }

    fn of<'a>(&'a self, pack: &Pack) -> Vec<Tensor<'a>> {
        pack.images.iter().map(|image| Tensor::vector(&self.0[image.0 as usize])).collect()
    }
}

/// Σ_b c_b · log π_b.
fn weighted(model: &Model, ws: &mut Workspace, pack: &Pack, pictures: &Pictures, c: &[f32]) -> f64 {
    let views = pictures.of(pack);
    model.forward(ws, pack, Images::Pixels(&views), Lora::On, RopeMode::TRAIN).unwrap();
    ws.log_probs().iter().zip(c).map(|(l, &c)| l * f64::from(c)).sum()
}

fn gradients(
    model: &Model,
    ws: &mut Workspace,
    pack: &Pack,
    pictures: &Pictures,
    c: &[f32],
) -> Vec<f32> {
    let mut gradients = vec![0.0; model.layout().len()];
    weighted(model, ws, pack, pictures, c);
    model.backward(ws, pack, Lora::On, c, &mut gradients).unwrap();
    gradients
}

fn check_against_differences(trainable: Trainable) {
    let dir = tempfile::tempdir().unwrap();
    let mut model = model(&dir.path().join("model"), trainable, 3);
    let slots = model.config.visual.n_queries;
    let pack = pack(&trees(slots), slots, Layout::Tree);
    let pictures = Pictures::new(&model);
    let mut ws = Workspace::new(&model, Budget::of(&pack, Purpose::Train));
    let c: Vec<f32> = (0..pack.branches.len()).map(|b| [0.7, -0.4, 0.9][b % 3]).collect();
    let g = gradients(&model, &mut ws, &pack, &pictures, &c);

    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for info in model.layout().tensors.clone() {
        let own = &g[info.range()];
        let norm = own.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        assert!(norm > 1e-6, "{}: no gradient", info.name);
        // along the gradient, half turned towards a random direction: a wrong length and a wrong
        // direction both show
        let mut d: Vec<f64> = own.iter().map(|&x| f64::from(x) / norm).collect();
        let random: Vec<f64> = d.iter().map(|_| rng.random::<f64>() - 0.5).collect();
        let length = random.iter().map(|x| x * x).sum::<f64>().sqrt();
        d.iter_mut().zip(&random).for_each(|(d, r)| *d += 0.5 * r / length);
        let slope: f64 = d.iter().zip(own).map(|(d, &g)| d * f64::from(g)).sum();

        // a step that changes the sum by some 0.02: its rounding is near 1e-5
        let step = (0.02 / norm).min(0.02);
        let saved = model.params()[info.range()].to_vec();
        let mut at = |sign: f64| {
            let values = &mut model.params_mut()[info.range()];
            for ((value, &x), d) in values.iter_mut().zip(&saved).zip(&d) {
                *value = x + (sign * step * d) as f32;
            }
            weighted(&model, &mut ws, &pack, &pictures, &c)
        };
        let difference = (at(1.0) - at(-1.0)) / (2.0 * step);
        model.params_mut()[info.range()].copy_from_slice(&saved);
        let bound = 0.01 * norm + 2e-5 / step;
        assert!(
            (difference - slope).abs() <= bound,
            "{}: backward says {slope}, central difference {difference}, bound {bound}",
            info.name
        );
    }
}

#[test]
fn backward_of_everything_matches_central_differences() {
    check_against_differences(Trainable::All);
}

#[test]
fn backward_of_an_adapter_matches_central_differences() {
    check_against_differences(Trainable::Lora);
}

#[test]
fn the_vision_tower_and_all_share_the_gradients_of_full() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("model");
    let [full, all] = [Trainable::Full, Trainable::All].map(|trainable| {
        let model = model(&dir, trainable, 3);
        let slots = model.config.visual.n_queries;
        let pack = pack(&trees(slots), slots, Layout::Tree);
        // the same values in both: those of the file
        let model = Model::open(&dir, model.trainable(), None).unwrap();
        let mut ws = Workspace::new(&model, Budget::of(&pack, Purpose::Train));
        let c = vec![0.5; pack.branches.len()];
        let g = gradients(&model, &mut ws, &pack, &Pictures::new(&model), &c);
        (model, g)
    });
    for info in &full.0.layout().tensors {
        let same = all.0.layout().tensors.iter().find(|t| t.name == info.name).unwrap();
        assert_eq!(full.1[info.range()], all.1[same.range()], "{}", info.name);
    }
}

#[test]
fn trees_and_pairs_have_the_same_loss_and_gradients() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&dir.path().join("model"), Trainable::All, 4);
    let slots = model.config.visual.n_queries;
    let (trees, pictures) = (trees(slots), Pictures::new(&model));
    let [tree, pairs] = [Layout::Tree, Layout::Pairs].map(|layout| {
        let pack = pack(&trees, slots, layout);
        let mut ws = Workspace::new(&model, Budget::of(&pack, Purpose::Train));
        // every pair pulls its chosen answer up and its rejected one down by its own weight
        let mut c = vec![0.0f32; pack.branches.len()];
        for (i, &[chosen, rejected]) in pack.pairs.iter().enumerate() {
            c[chosen as usize] += 0.3 + 0.1 * i as f32;
            c[rejected as usize] -= 0.3 + 0.1 * i as f32;
        }
        let loss = weighted(&model, &mut ws, &pack, &pictures, &c);
        (loss, gradients(&model, &mut ws, &pack, &pictures, &c), pack)
    });
    assert!(pairs.2.tokens.len() > 2 * tree.2.tokens.len());
    assert!((tree.0 - pairs.0).abs() <= 1e-4, "loss: {} and {}", tree.0, pairs.0);
    for info in &model.layout().tensors {
        let (a, b) = (&tree.1[info.range()], &pairs.1[info.range()]);
        let norm = |x: &[f32]| x.iter().map(|v| v * v).sum::<f32>().sqrt();
        let error: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        assert!(norm(&error) <= 2e-5 * norm(a) + 1e-7, "{}: {}", info.name, norm(&error) / norm(a));
    }
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&dir.path().join("model"), Trainable::All, 6);
    let slots = model.config.visual.n_queries;
    let (pack, pictures) = (pack(&trees(slots), slots, Layout::Tree), Pictures::new(&model));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut ws = Workspace::new(&model, Budget::of(&pack, Purpose::Train));
            let c = vec![0.5; pack.branches.len()];
            let g = gradients(&model, &mut ws, &pack, &pictures, &c);
            (ws.log_probs().to_vec(), g)
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3), "1, 2 and 3 threads disagree");
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&dir.path().join("model"), Trainable::Lora, 4);
    let slots = model.config.visual.n_queries;
    let (pack, pictures) = (pack(&trees(slots), slots, Layout::Tree), Pictures::new(&model));
    let budget = Budget::of(&pack, Purpose::Score);
    let mut ws = Workspace::new(&model, budget);
    let views = pictures.of(&pack);
    let images = Images::Pixels(&views);
    model.forward(&mut ws, &pack, images, Lora::On, RopeMode::TRAIN).unwrap();
    let error = model.backward(&mut ws, &pack, Lora::On, &[0.0; 7], &mut []).unwrap_err();
    assert!(error.to_string().contains("made for scoring"), "{error}");

    let mut small = Workspace::new(&model, Budget { tokens: budget.tokens - 1, ..budget });
    let error = model.forward(&mut small, &pack, images, Lora::On, RopeMode::TRAIN).unwrap_err();
    assert!(error.to_string().contains("tokens in a workspace for"), "{error}");
    let fewer = Images::Pixels(&views[1..]);
    let error = model.forward(&mut ws, &pack, fewer, Lora::On, RopeMode::TRAIN).unwrap_err();
    assert!(error.to_string().contains("images for a pack of"), "{error}");
}
