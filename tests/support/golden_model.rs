//! A golden folder's tiny model, tensors and sequences, as the model tests need them.

use std::path::{Path, PathBuf};

use serde_json::Value;
use silkie::data::pack::{BranchView, ImageRef, Layout, Pack, TreeView};
use silkie::model::config::ModelConfig;
use silkie::model::{Images, Model};
use silkie::tensor::Tensor;

use super::Golden;

/// Everything read from one golden folder.
pub struct GoldenModel {
    pub dir: PathBuf,
    pub forward: Value,
    pub config: ModelConfig,
    files: Vec<Golden>,
    names: Vec<String>,
}

impl GoldenModel {
    /// The folder of `support::goldens()`, with the tensors of forward.safetensors and of `more`.
    pub fn open(more: &[&str]) -> Option<GoldenModel> {
        let dir = super::goldens()?;
        let forward = json(&dir.join("forward.json"));
        let config = ModelConfig::read(dir.join("tiny-qwen-vl")).unwrap();
        let files = ["forward.safetensors"].iter().chain(more).map(|f| Golden::open(dir.join(f)));
        let files = files.collect();
        let names = forward["images"].as_object().unwrap().keys().cloned().collect();
        Some(GoldenModel { dir, forward, config, files, names })
    }

    pub fn model_dir(&self) -> PathBuf {
        self.dir.join("tiny-qwen-vl")
    }

    pub fn json(&self, file: &str) -> Value {
        json(&self.dir.join(file))
    }

    pub fn has(&self, name: &str) -> bool {
        self.names().iter().any(|n| n == name)
    }

    pub fn names(&self) -> Vec<String> {
        self.files.iter().flat_map(Golden::names).collect()
    }

    fn file(&self, name: &str) -> &Golden {
        let file = self.files.iter().find(|file| file.names().iter().any(|n| n == name));
        file.unwrap_or_else(|| panic!("no golden tensor {name}"))
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.file(name).f32(name).1
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.file(name).f32(name).0
    }

    pub fn ids(&self, name: &str) -> Vec<i64> {
        self.file(name).i64(name)
    }

    pub fn tokens(&self, name: &str) -> Vec<u32> {
        self.ids(name).into_iter().map(|id| id as u32).collect()
    }

    /// Offset of the first slot and image number of every image span in `ids`.
    pub fn images_in(&self, ids: &[u32]) -> Vec<(u32, ImageRef)> {
        let (start, slots) = (self.config.visual.image_start_id, self.config.visual.n_queries);
        let at = (0..ids.len()).filter(|&i| ids[i] == start);
        at.map(|i| {
            assert_eq!(ids[i + 1 + slots], start + 1, "an image span of another length");
            let name: Vec<u8> =
                ids[i + 1..].iter().take_while(|&&id| id < 256).map(|&id| id as u8).collect();
            let name = String::from_utf8(name).unwrap();
            let image = self.names.iter().position(|n| *n == name);
            let image = image.unwrap_or_else(|| panic!("no golden image {name:?}"));
            (i as u32 + 1, ImageRef(image as u32))
        })
        .collect()
    }

    /// Normalised pixels `[3·S·S]` of every image of `pack`, in its order.
    pub fn pixels(&self, pack: &Pack) -> Vec<Vec<f32>> {
        let tensor = |image: &ImageRef| {
            self.forward["images"][&self.names[image.0 as usize]].as_str().unwrap().to_string()
        };
        pack.images.iter().map(|image| self.f32(&tensor(image))).collect()
    }

    /// A pack of one sequence without branches.
    pub fn sequence(&self, ids: &[u32]) -> Pack {
        let images = self.images_in(ids);
        let tree = TreeView { record: 0, trunk: ids, images, branches: vec![], pairs: vec![] };
        Pack::build(&[tree], self.config.visual.n_queries, Layout::Tree).unwrap()
    }
}

/// One tree of a golden record: prompt ids, (ids, labels) of the answers, pairs.
pub struct GoldenTree {
    pub trunk: Vec<u32>,
    pub answers: Vec<(Vec<u32>, Vec<u8>)>,
    pub pairs: Vec<[u32; 2]>,
}

impl GoldenTree {
    pub fn view<'a>(&'a self, golden: &GoldenModel, record: u32) -> TreeView<'a> {
        let branch = |(i, (tokens, scored)): (usize, &'a (Vec<u32>, Vec<u8>))| BranchView {
            branch: i as u32,
            tokens,
            scored,
        };
        TreeView {
            record,
            trunk: &self.trunk,
            images: golden.images_in(&self.trunk),
            branches: self.answers.iter().enumerate().map(branch).collect(),
            pairs: self.pairs.clone(),
        }
    }
}

pub fn pack_of(golden: &GoldenModel, trees: &[GoldenTree], layout: Layout) -> Pack {
    let views: Vec<_> = (0..).zip(trees).map(|(i, tree)| tree.view(golden, i)).collect();
    Pack::build(&views, golden.config.visual.n_queries, layout).unwrap()
}

/// The pairs of dpo.safetensors, one tree each.
pub fn dpo_trees(golden: &GoldenModel) -> Vec<GoldenTree> {
    let count = golden.json("dpo.json")["pairs"].as_array().unwrap().len();
    let tree = |i: usize| {
        let trunk = golden.tokens(&format!("pair{i}.prompt_input_ids"));
        let answer = |side: &str| {
            let ids = golden.tokens(&format!("pair{i}.{side}_input_ids"));
            let labels = golden.ids(&format!("pair{i}.{side}_labels"));
            assert_eq!(ids[..trunk.len()], trunk[..]);
            let scored = labels[trunk.len()..].iter().map(|&l| u8::from(l != -100)).collect();
            (ids[trunk.len()..].to_vec(), scored)
        };
        let answers = vec![answer("chosen"), answer("rejected")];
        GoldenTree { trunk, answers, pairs: vec![[0, 1]] }
    };
    (0..count).map(tree).collect()
}

/// The records of records.safetensors.
pub fn record_trees(golden: &GoldenModel) -> Vec<GoldenTree> {
    let json = golden.json("records.json");
    let scores = json["mean_scores"].as_array().unwrap();
    let pairs: Vec<Vec<u32>> =
        serde_json::from_value(json["pairs_record_chosen_rejected"].clone()).unwrap();
    let tree = |(i, scores): (usize, &Value)| {
        let answer = |k: usize| {
            let labels = golden.ids(&format!("rec{i}.response{k}_labels"));
            let ids = golden.tokens(&format!("rec{i}.response{k}_input_ids"));
            (ids, labels.iter().map(|&l| u8::from(l != -100)).collect())
        };
        let own = pairs.iter().filter(|p| p[0] as usize == i);
        GoldenTree {
            trunk: golden.tokens(&format!("rec{i}.prompt_input_ids")),
            answers: (0..scores.as_array().unwrap().len()).map(answer).collect(),
            pairs: own.map(|p| [p[1], p[2]]).collect(),
        }
    };
    scores.iter().enumerate().map(tree).collect()
}

/// Runs `body` with the pixels of `pack` as views.
pub fn with_pixels<R>(golden: &GoldenModel, pack: &Pack, body: impl FnOnce(Images) -> R) -> R {
    let pixels = golden.pixels(pack);
    let views: Vec<_> = pixels.iter().map(|p| Tensor::vector(p)).collect();
    body(Images::Pixels(&views))
}

pub fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// max |got - want|, with where it is.
#[track_caller]
pub fn assert_within(what: &str, got: &[f32], want: &[f32], bound: f32) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let differences = got.iter().zip(want).map(|(g, w)| (g - w).abs());
    let (at, worst) = differences
        .enumerate()
        .fold((0, 0.0f32), |worst, (i, d)| if d > worst.1 || d.is_nan() { (i, d) } else { worst });
    let (g, w) = (got.get(at), want.get(at));
    assert!(
        worst <= bound,
        "{what}: differs by {worst} > {bound} at {at}: got {g:?}, expected {w:?}"
    );
}

/// `assert_within` with a bound relative to the largest element expected.
#[track_caller]
pub fn assert_close_to_max(what: &str, got: &[f32], want: &[f32], factor: f32) {
    let max = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    assert_within(what, got, want, factor * max);
}

/// The gradient or value called `name` in a flat buffer of `model`.
pub fn part<'a>(model: &Model, flat: &'a [f32], name: &str) -> &'a [f32] {
    let info = model.layout().tensors.iter().find(|t| t.name == name);
    &flat[info.unwrap_or_else(|| panic!("{name} is not trained")).range()]
}
