//! A tiny model, a small data set in shards, and runs on them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use silkie::Result;
use silkie::data::shard::{
    Dataset, ImageEntry, ImageRef, ImageSlot, Manifest, NewBranch, NewRecord, Pair, ShardWriter,
    Target, shard_name,
};
use silkie::model::init::{Changes, Init, Preset};
use silkie::tensor::DType;
use silkie::train::config::Settings;
use silkie::train::{self, Summary};
use tempfile::TempDir;

const VOCAB: u32 = 64;
const IMAGE: u32 = 60;
const SLOTS: u32 = 16;
const SIDE: usize = 56;

/// `model/` and `data/` in a scratch folder.
pub struct Fixture {
    pub dir: TempDir,
}

impl Fixture {
    /// `records` records of one picture and three answers each, the first one best. Good answers
    /// start with token 7, bad ones with 8 or 9: learnable in a few steps.
    pub fn new(records: u32) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        write_model(&dir.path().join("model"));
        write_data(&dir.path().join("data"), records);
        Fixture { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn dataset(&self) -> Dataset {
        Dataset::open(self.path("data")).unwrap()
    }

    /// Settings of a run in folder `out`, with `toml` added.
    pub fn settings(&self, out: &str, toml: &str) -> Settings {
        let line = |key: &str, name: &str| format!("{key} = '{}'\n", self.path(name).display());
        let paths = line("model", "model") + &line("data", "data") + &line("out", out);
        Settings::parse(Path::new("test.toml"), &(paths + toml)).unwrap()
    }

    /// Runs to the end in this process.
    pub fn train(&self, out: &str, toml: &str) -> Result<Summary> {
        let config = self.settings(out, toml).resolve()?;
        train::run(&config, false, &|| false, &mut |_| ())
    }

    /// Lines of the run's metrics.jsonl of one kind.
    pub fn metrics(&self, out: &str, kind: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(out).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["kind"] == kind).collect()
    }

    /// The bytes of the adapter of a finished run.
    pub fn adapter(&self, out: &str) -> Vec<u8> {
        fs::read(self.path(out).join("adapter/adapter_model.safetensors")).unwrap()
    }
}

fn write_model(dir: &Path) {
    let changes = Changes {
        vocab_size: Some(VOCAB as usize),
        image_start_id: Some(IMAGE),
        layers: None,
        vision_layers: None,
        dtype: DType::F32,
    };
    let config = Preset::Tiny.config(&changes).unwrap();
    let init = Init::new(&config, Preset::Tiny.scales(&config), 1);
    let companions = |folder: &Path| {
        fs::write(folder.join("config.json"), config.to_json()).unwrap();
        fs::write(folder.join("README.txt"), "travels along").unwrap();
        Ok(())
    };
    init.write(dir, DType::F32, usize::MAX, companions, |_| Ok(())).unwrap();
}

fn write_data(dir: &Path, records: u32) {
    fs::create_dir(dir).unwrap();
    let target = Target {
        image_size: SIDE as u32,
        n_image_slots: SLOTS,
        vocab_size: VOCAB,
        reserved: 0,
        tokenizer: 1,
        template: 2,
        truncation: 3,
    };
    let mut manifest = Manifest::new(target, json!({}));
    let mut writer = ShardWriter::create(&dir.join(shard_name(0)), target, 0, 0, 0).unwrap();
    for i in 0..records {
        let pixels: Vec<u8> = (0..SIDE * SIDE * 3).map(|k| (k as u32 * (i + 3)) as u8).collect();
        let entry = ImageEntry { hash: [i.into(), 0], file_bytes: 1, width: 56, height: 56 };
        writer.push_image(entry, &pixels).unwrap();
        writer.push(&record(i)).unwrap();
    }
    manifest.shards.push(writer.finish().unwrap());
    manifest.complete = true;
    manifest.write(dir).unwrap();
}

fn record(i: u32) -> NewRecord {
    let slots = vec![IMAGE + 2; SLOTS as usize];
    let prompt: Vec<u32> = (0..3 + i % 4).map(|k| 20 + (i * 7 + k * 3) % 20).collect();
    let branch = |first: u32, len: u32, score: f32| NewBranch {
        tokens: [1, first].into_iter().chain((0..len).map(|k| 10 + (i + k) % 9)).collect(),
        scored: [true, true].into_iter().chain((0..len).map(|k| k != 1)).collect(),
        model: format!("m{first}"),
        score,
    };
    NewRecord {
        id: format!("id-{i}"),
        file: "records.jsonl".into(),
        line: u64::from(i) + 1,
        trunk: [vec![1, IMAGE], slots, vec![IMAGE + 1], prompt].concat(),
        slots: vec![ImageSlot { offset: 2, image: ImageRef(i) }],
        branches: vec![branch(8, 3 + i % 3, 2.0), branch(7, 2 + i % 5, 4.0), branch(9, 4, 2.5)],
        pairs: vec![
            Pair { chosen: 1, rejected: 0 },
            Pair { chosen: 2, rejected: 0 },
            Pair { chosen: 1, rejected: 2 },
        ],
        flags: 0,
    }
}
