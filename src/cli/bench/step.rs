//! `silkie bench step`: how long a DPO step takes, and how much memory.

use std::path::{Path, PathBuf};
use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::json;

use crate::cli::{only_cpu, print_json};
use crate::data::atomic;
use crate::data::pack::{BranchView, ImageRef, Layout, Pack, TreeView};
use crate::device::{Buffer, Device, memory};
use crate::error::{Error, Result};
use crate::model::adapter::{Adapter, LoraConfig};
use crate::model::config::ModelConfig;
use crate::model::init::{Changes, Init, Preset};
use crate::model::params::Trainable;
use crate::model::weights::write::{self, Output};
use crate::model::{Budget, Images, Lora, Model, Purpose, RopeMode, Workspace, flop};
use crate::ops::adamw::AdamW;
use crate::ops::grad_norm;
use crate::ops::{Write, matmul};
use crate::tensor::{DType, Tensor};
use crate::train::loss::{Kind, Loss};
use crate::train::optimizer::{self, Optimizer};

/// Tokens of the prompt around the picture, and of the answers, header and end included.
const PROMPT: usize = 80;
const ANSWERS: [usize; 4] = [104, 96, 112, 100];
/// Side of the square product that measures the machine.
const GEMM_SIDE: usize = 1536;
const SEED: u64 = 7;
const BETA: f64 = 0.1;

/// Time DPO optimizer steps on one made-up record
///
/// The record: one picture, about 80 prompt tokens, four answers of about 100 tokens and their six
/// pairs (or two answers and one pair). The step: vision tower, decoder with a rank-64 adapter, loss
/// against cached reference log-probs, backward, AdamW.
///
/// Keys of --json: ms_per_step (median), pairs_per_s, tokens, tokens_per_s, gflop, gflop_per_s,
/// gemm_gflop_per_s (measured on a square f32 product), percent_of_gemm, peak_bytes (VmHWM, mapped
/// weights included), threads, pairs, steps, layout, loss (before the first step).
#[derive(clap::Args)]
pub struct Step {
    /// HF directory to time instead of preset `small` with random weights
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// record: four answers, six pairs; lone: two answers, one pair
    #[arg(long, value_name = "WHICH", default_value = "record")]
    pairs: Pairs,
    /// tree: the prompt once; pairs: again for every answer of every pair
    #[arg(long, value_name = "HOW", default_value = "tree")]
    layout: Layout,
    /// Steps that are timed
    #[arg(long, value_name = "N", default_value_t = 5)]
    steps: u64,
    /// Steps before them
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: u64,
    /// Where to compute: auto or cpu
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Time nothing; write model, adapter, record, loss and gradients there, for tools/peers/torch_dpo.py
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
    /// Print one JSON object as the last line of stdout
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Pairs {
    Record,
    Lone,
}

/// What was measured.
#[derive(Serialize)]
struct Report {
    ms_per_step: f64,
    pairs_per_s: f64,
    tokens: usize,
    tokens_per_s: f64,
    gflop: f64,
    gflop_per_s: f64,
    gemm_gflop_per_s: f64,
    percent_of_gemm: f64,
    peak_bytes: Option<u64>,
    threads: usize,
    pairs: usize,
    steps: u64,
    layout: Layout,
    loss: f64,
}

impl Step {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        only_cpu("bench step", &self.device)?;
        if let Some(export) = &self.export {
            return self.write_export(export);
        }
        let scratch = Scratch::new();
        let dir = self.model.clone().unwrap_or_else(|| scratch.0.join("model"));
        if self.model.is_none() {
            write_small(&dir)?;
        }
        let mut bench = Bench::open(&dir, self.pairs, self.layout)?;
        let loss = bench.gradients()?;
        let mut times = Vec::new();
        for n in 0..self.warmup + self.steps.max(1) {
            let start = Instant::now();
            bench.step()?;
            if n >= self.warmup {
                times.push(start.elapsed().as_secs_f64());
            }
        }
        times.sort_by(f64::total_cmp);
        let seconds = times[times.len() / 2];
        let gflop = flop::lora_step(&bench.model.config, &bench.pack, bench.rank) / 1e9;
        let (peak_bytes, gemm) = (memory::peak_bytes(), gemm_gflop_per_s()?);
        let report = Report {
            ms_per_step: seconds * 1e3,
            pairs_per_s: bench.pack.pairs.len() as f64 / seconds,
            tokens: bench.pack.len(),
            tokens_per_s: bench.pack.len() as f64 / seconds,
            gflop,
            gflop_per_s: gflop / seconds,
            gemm_gflop_per_s: gemm,
            percent_of_gemm: 100.0 * gflop / seconds / gemm,
            peak_bytes,
            threads: rayon::current_num_threads(),
            pairs: bench.pack.pairs.len(),
            steps: self.steps.max(1),
            layout: self.layout,
            loss,
        };
        report.print();
        print_json(self.json, &report);
        Ok(())
    }

    /// Everything another program needs to do the same step and to check that it is the same.
    fn write_export(&self, out: &Path) -> Result<()> {
        std::fs::create_dir_all(out).map_err(|e| Error::io(out, "create the folder", e))?;
        let dir = self.model.clone().unwrap_or_else(|| out.join("model"));
        if self.model.is_none() {
            write_small(&dir)?;
        }
        let mut bench = Bench::open(&dir, self.pairs, self.layout)?;
        let loss = bench.gradients()?;
        bench.adapter.write(out.join("adapter"), &dir)?;
        bench.record.write(&out.join("batch.safetensors"))?;
        let scale = 1.0 / bench.pack.pairs.len() as f32;
        let mut gradients = bench.optimizer.gradients();
        let gradients = gradients.elements::<f32>();
        gradients.iter_mut().for_each(|g| *g *= scale);
        let tensors = &bench.model.layout().tensors;
        let outputs = tensors.iter().map(|t| Output {
            name: t.name.clone(),
            shape: vec![t.rows, t.cols],
            dtype: DType::F32,
        });
        let mut each = tensors.iter();
        write::file(out.join("grads.safetensors"), &outputs.collect::<Vec<_>>(), |_, sink| {
            each.next().map_or(Ok(()), |t| sink.floats(&gradients[t.range()]))
        })?;
        let facts = json!({ "loss": loss, "beta": BETA, "model": dir });
        atomic::write_bytes(out.join("step.json"), format!("{facts:#}\n").as_bytes())?;
        print_json(self.json, &facts);
        Ok(())
    }
}

impl Report {
    fn print(&self) {
        println!(
            "{:.0} ms/step   {:.2} pairs/s   {} tokens, {:.0}/s   {:.1} GFLOP, {:.0} GFLOP/s, \
             {:.0} % of GEMM ({:.0} GFLOP/s, {} threads)   {} MiB peak",
            self.ms_per_step,
            self.pairs_per_s,
            self.tokens,
            self.tokens_per_s,
            self.gflop,
            self.gflop_per_s,
            self.percent_of_gemm,
            self.gemm_gflop_per_s,
            self.threads,
            self.peak_bytes.unwrap_or(0) >> 20,
        );
    }
}

/// One step's worth of everything.
struct Bench {
    model: Model,
    adapter: Adapter,
    rank: usize,
    record: Record,
    pack: Pack,
    workspace: Workspace,
    reference: Vec<f64>,
    optimizer: Optimizer,
    loss: Loss,
    coefficients: Vec<f64>,
}

impl Bench {
    fn open(dir: &Path, pairs: Pairs, layout: Layout) -> Result<Bench> {
        let config = ModelConfig::read(dir)?;
        let lora = LoraConfig::default();
        let mut adapter = Adapter::init(&lora, &config, SEED)?;
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        for b in adapter.pairs.iter_mut().flat_map(|pair| &mut pair.b) {
            *b = rng.random_range(-0.02..0.02f32); // with B = 0, A would have no gradient
        }
        let model = Model::open(dir, Trainable::Lora, Some(&adapter))?;
        let record = Record::new(&config, pairs);
        let pack = record.pack(config.visual.n_queries, layout)?;
        let mut workspace = Workspace::new(&model, Budget::of(&pack, Purpose::Train));
        let pixels = record.pixels();
        let images = vec![pixels; pack.images.len()];
        let images = Images::Pixels(&images);
        model.forward(&mut workspace, &pack, images, Lora::Off, RopeMode::TRAIN)?;
        let reference = workspace.log_probs().to_vec();
        let layout = model.layout();
        let adamw = AdamW { beta1: 0.9, beta2: 0.98, eps: 1e-8 };
        let settings = optimizer::Settings { adamw, max_grad_norm: 0.0 };
        let parts = optimizer::parts(layout, |_| 1.0, 0.05);
        Ok(Bench {
            rank: lora.r,
            optimizer: Optimizer::new(Device::Cpu, layout.len(), &parts, settings)?,
            loss: Loss {
                kind: Kind::Sigmoid,
                beta: BETA,
                label_smoothing: 0.0,
                gamma: 0.0,
                reference_free: false,
                length_normalised: false,
                rpo_alpha: 0.0,
            },
            coefficients: Vec::new(),
            model,
            adapter,
            record,
            pack,
            workspace,
            reference,
        })
    }

    /// Overwrites the gradients with those of the sum of the pairs' losses; their mean loss.
    fn gradients(&mut self) -> Result<f64> {
        let Bench { model, pack, workspace, reference, optimizer, coefficients, .. } = self;
        let images = vec![self.record.pixels(); pack.images.len()];
        let images = Images::Pixels(&images);
        model.forward(workspace, pack, images, Lora::On, RopeMode::TRAIN)?;
        let policy = workspace.log_probs().to_vec();
        let totals = self.loss.pack(pack, &policy, reference, coefficients);
        let coefficients: Vec<f32> = coefficients.iter().map(|&c| c as f32).collect();
        let mut gradients = optimizer.gradients();
        gradients.fill(0.0f32);
        model.backward(workspace, pack, Lora::On, &coefficients, gradients.elements())?;
        Ok(totals.mean().loss)
    }

    fn step(&mut self) -> Result<()> {
        let loss = self.gradients()?;
        let scale = 1.0 / self.pack.pairs.len() as f64;
        let step = grad_norm::Step { lr: 1e-5, scale, loss };
        self.optimizer.step(self.model.params_mut(), step)?;
        Ok(())
    }
}

/// A made-up record: random tokens and a noisy picture.
struct Record {
    trunk: Vec<u32>,
    slots: u32,
    answers: Vec<(Vec<u32>, Vec<u8>)>,
    pairs: Vec<[u32; 2]>,
    picture: Buffer,
    side: usize,
}

impl Record {
    fn new(config: &ModelConfig, pairs: Pairs) -> Record {
        let visual = &config.visual;
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let mut words = |n: usize| -> Vec<u32> {
            (0..n).map(|_| rng.random_range(256..visual.image_start_id)).collect()
        };
        let mut trunk = words(PROMPT / 2);
        trunk.push(visual.image_start_id);
        let slots = trunk.len() as u32;
        trunk.extend(vec![visual.image_start_id + 2; visual.n_queries]);
        trunk.push(visual.image_start_id + 1);
        trunk.extend(words(PROMPT / 2));
        let count = match pairs {
            Pairs::Record => ANSWERS.len(),
            Pairs::Lone => 2,
        };
        // im_start is scored, "assistant" and the newline are not, the rest is
        let mask = |n: usize| (0..n).map(|i| u8::from(i != 1 && i != 2)).collect();
        let answers = ANSWERS[..count].iter().map(|&n| (words(n), mask(n))).collect();
        let pairs = (0..count as u32).flat_map(|c| (c + 1..count as u32).map(move |r| [c, r]));
        let side = visual.image_size;
        let mut picture = Buffer::host(DType::U8, 1, side * side * 3);
        rng.fill(picture.view_mut().elements::<u8>());
        Record { trunk, slots, answers, pairs: pairs.collect(), picture, side }
    }

    fn pixels(&self) -> Tensor<'_> {
        self.picture.view()
    }

    fn pack(&self, n_slots: usize, layout: Layout) -> Result<Pack> {
        let branches = self.answers.iter().zip(0..).map(|((tokens, scored), branch)| BranchView {
            branch,
            tokens,
            scored,
        });
        let tree = TreeView {
            record: 0,
            trunk: &self.trunk,
            images: vec![(self.slots, ImageRef(0))],
            branches: branches.collect(),
            pairs: self.pairs.clone(),
        };
        Pack::build(&[tree], n_slots, layout)
    }

    /// trunk, branchN.ids, branchN.labels (-100: not scored), pairs and images [1, S, S, 3], all in f32:
    /// it holds every id and level exactly.
    fn write(&self, path: &Path) -> Result<()> {
        let floats = |ids: &[u32]| ids.iter().map(|&id| id as f32).collect::<Vec<f32>>();
        let mut parts = vec![("trunk".to_string(), vec![self.trunk.len()], floats(&self.trunk))];
        for (i, (ids, scored)) in self.answers.iter().enumerate() {
            let label = |(&id, &on): (&u32, &u8)| if on != 0 { id as f32 } else { -100.0 };
            parts.push((format!("branch{i}.ids"), vec![ids.len()], floats(ids)));
            let labels = ids.iter().zip(scored).map(label).collect();
            parts.push((format!("branch{i}.labels"), vec![ids.len()], labels));
        }
        let pairs = floats(self.pairs.as_flattened());
        parts.push(("pairs".to_string(), vec![self.pairs.len(), 2], pairs));
        let pixels = self.pixels().elements::<u8>().iter().map(|&x| f32::from(x)).collect();
        parts.push(("images".to_string(), vec![1, self.side, self.side, 3], pixels));
        let output = |(name, shape, _): &(String, Vec<usize>, Vec<f32>)| Output {
            name: name.clone(),
            shape: shape.clone(),
            dtype: DType::F32,
        };
        let mut each = parts.iter();
        write::file(path, &parts.iter().map(output).collect::<Vec<_>>(), |_, sink| {
            each.next().map_or(Ok(()), |(_, _, data)| sink.floats(data))
        })
    }
}

/// Preset `small` with random f32 weights, the same every time.
fn write_small(dir: &Path) -> Result<()> {
    let changes = Changes {
        vocab_size: None,
        image_start_id: None,
        layers: None,
        vision_layers: None,
        dtype: DType::F32,
    };
    let config = Preset::Small.config(&changes)?;
    let text = config.to_json();
    let init = Init::new(&config, Preset::Small.scales(&config), SEED);
    let companions =
        |folder: &Path| atomic::write_bytes(folder.join("config.json"), text.as_bytes());
    init.write(dir, DType::F32, write::SHARD_BYTES, companions, |_| Ok(()))
}

/// Rate of a square f32 product on all cores, the best of five.
fn gemm_gflop_per_s() -> Result<f64> {
    let n = GEMM_SIDE;
    let (mut a, mut b, mut c) = (Buffer::f32(n, n), Buffer::f32(n, n), Buffer::f32(n, n));
    a.view_mut().fill(1.0f32);
    b.view_mut().fill(0.5f32);
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        matmul::nt(a.view(), b.view(), None, c.view_mut(), 1.0, Write::Overwrite)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * (n as f64).powi(3) / best / 1e9)
}

/// A folder in the system's place for such, gone in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        Scratch(std::env::temp_dir().join(format!("silkie-bench-{}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody else knows the folder; when it cannot be removed, nothing that matters is lost.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
