//! Scoring: log-probabilities and rewards of every response, and how often a pair is ranked right.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use crate::data::pack::Layout;
use crate::data::plan::{Batch, Objective, Plan, Shuffle, Spec, Tree};
use crate::data::shard::Dataset;
use crate::data::trees;
use crate::error::{Error, Result};
use crate::model::adapter::Adapter;
use crate::model::config::ModelConfig;
use crate::model::params::Trainable;
use crate::model::{Budget, Lora, Model, Purpose, RopeMode};
use crate::train::engine::{self, Engine};
use crate::train::loss::right;

/// What to score.
#[derive(Clone, Debug)]
pub struct Options {
    /// HF directory of the model.
    pub model: PathBuf,
    /// Its adapter; the policy then has a reference, the model without it.
    pub adapter: Option<PathBuf>,
    /// Shards made for the model.
    pub data: PathBuf,
    /// Factor of rewards.
    pub beta: f64,
    /// Tokens that go through the model at once, at most.
    pub token_budget: usize,
}

/// One record: a line of the JSONL that `silkie score --out` writes.
#[derive(Clone, Debug, Serialize)]
pub struct RecordScore {
    /// Number in the data set.
    pub record: u32,
    /// Source file.
    pub file: String,
    /// Line in it, from 1.
    pub line: u64,
    /// Id there.
    pub id: String,
    /// Its distinct responses.
    pub responses: Vec<ResponseScore>,
    /// Its pairs.
    pub pairs: Vec<PairScore>,
}

/// One response.
#[derive(Clone, Debug, Serialize)]
pub struct ResponseScore {
    /// Who wrote it.
    pub model: String,
    /// Mean rating; null when unrated.
    pub score: f32,
    /// Scored tokens.
    pub tokens: u32,
    /// log π(y|x) under the policy.
    pub log_prob: f64,
    /// log π(y|x) without the adapter; null without one.
    pub reference_log_prob: Option<f64>,
    /// β (log π − log π_ref); null without an adapter.
    pub reward: Option<f64>,
}

/// One pair.
#[derive(Clone, Debug, Serialize)]
pub struct PairScore {
    /// Index of the preferred response.
    pub chosen: u32,
    /// Index of the other.
    pub rejected: u32,
    /// 1 when the preferred response has the higher log-probability, one half for a tie.
    pub ranked: f64,
    /// 1 when it has the higher reward; null without an adapter.
    pub right: Option<f64>,
    /// Difference of rewards; null without an adapter.
    pub margin: Option<f64>,
}

/// The whole data set. The keys of `silkie score --json`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Records.
    pub records: u64,
    /// Responses.
    pub responses: u64,
    /// Pairs.
    pub pairs: u64,
    /// Mean log π of a response.
    pub log_prob: f64,
    /// Share of pairs with log π(chosen) > log π(rejected); ties count one half.
    pub ranking_accuracy: f64,
    /// Share of pairs with the higher reward for the chosen response; null without an adapter.
    pub reward_accuracy: Option<f64>,
    /// Mean difference of rewards; null without an adapter.
    pub margin: Option<f64>,
    /// Rows that went through the policy.
    pub tokens: u64,
    /// Wall time.
    pub seconds: f64,
}

/// Records whose packs are cut together.
const CHUNK: usize = 64;

/// Scores every record, in order; `each` gets it and how many there are.
///
/// A path longer than the model's `seq_length` is run by itself, in eval mode (dynamic NTK and
/// logn depend on its length). Errors: shards of another model, `each`'s, [`Error::Interrupted`].
pub fn run(
    options: &Options,
    stop: &dyn Fn() -> bool,
    mut each: impl FnMut(RecordScore, usize) -> Result<()>,
) -> Result<Summary> {
    let started = Instant::now();
    let data = Dataset::open(&options.data)?;
    let config = ModelConfig::read(&options.model)?;
    engine::check_fits(&data, &config, &options.model)?;
    let adapter = options.adapter.as_ref().map(|dir| Adapter::open(dir, &config)).transpose()?;
    let model = Model::open(&options.model, Trainable::None, adapter.as_ref())?;

    let plan = Plan::new(trees::sizes(&data), spec(options))?;
    let all = plan.epoch(0).concat();
    let mut scorer = Scorer {
        engine: Engine::new(data, model, budget(&plan, &all), Layout::Tree, None),
        with_reference: adapter.is_some(),
        beta: options.beta,
    };
    let mut summary = Summary::default();
    for chunk in all.chunks(CHUNK) {
        for (tree, scores) in chunk.iter().zip(scorer.chunk(&plan, chunk, stop, &mut summary)?) {
            let record = scorer.record(tree, &scores);
            summary.add(&record);
            each(record, all.len())?;
        }
    }
    summary.divide();
    summary.seconds = started.elapsed().as_secs_f64();
    Ok(summary)
}

fn spec(options: &Options) -> Spec {
    Spec {
        objective: Objective::All,
        batch: Batch::Records(CHUNK),
        token_budget: options.token_budget,
        layout: Layout::Tree,
        shuffle: Shuffle::None,
        seed: 0,
        held_out: 0.0,
        rank: 0,
        world: 1,
    }
}

fn budget(plan: &Plan, all: &[Tree]) -> Budget {
    let extents: Vec<_> = all.chunks(CHUNK).map(|chunk| plan.pass_extent(chunk)).collect();
    let most = |of: fn(&_) -> u64| extents.iter().map(of).max().unwrap_or(0) as usize;
    Budget {
        tokens: most(|e| e.max_tokens),
        images: most(|e| e.max_images),
        head_rows: most(|e| e.max_head_rows),
        purpose: Purpose::Score,
    }
}

/// log π under policy and reference, of one branch.
type Score = (f64, Option<f64>);

struct Scorer {
    engine: Engine,
    with_reference: bool,
    beta: f64,
}

impl Scorer {
    /// Scores of every branch of every tree of `chunk`.
    fn chunk(
        &mut self,
        plan: &Plan,
        chunk: &[Tree],
        stop: &dyn Fn() -> bool,
        summary: &mut Summary,
    ) -> Result<Vec<Vec<Score>>> {
        let (long, short): (Vec<Tree>, Vec<Tree>) =
            chunk.iter().cloned().partition(|tree| self.longest(tree) > self.seq_length());
        let mut packs: Vec<(Vec<Tree>, RopeMode)> =
            plan.packs(&short).into_iter().map(|trees| (trees, RopeMode::TRAIN)).collect();
        for tree in &long {
            for &branch in &tree.branches {
                let alone = Tree { branches: vec![branch], ..tree.clone() };
                let rope = RopeMode::eval(&self.engine.model.config, self.longest(&alone));
                packs.push((vec![alone], rope));
            }
        }
        let mut scores: Vec<Vec<Score>> =
            chunk.iter().map(|tree| vec![(f64::NAN, None); tree.branches.len()]).collect();
        for (trees, rope) in packs {
            if stop() {
                return Err(Error::Interrupted("stopped; run the same command again".into()));
            }
            let pack = self.engine.pack(&trees)?;
            summary.tokens += pack.len() as u64;
            let policy = self.engine.forward(&pack, Lora::On, rope)?;
            let reference = match self.with_reference {
                true => self.engine.forward(&pack, Lora::Off, rope)?,
                false => Vec::new(),
            };
            for (b, id) in pack.branches.iter().enumerate() {
                let place = chunk.partition_point(|tree| tree.record < id.record);
                scores[place][id.branch as usize] = (policy[b], reference.get(b).copied());
            }
        }
        Ok(scores)
    }

    fn record(&self, tree: &Tree, scores: &[Score]) -> RecordScore {
        let record = self.engine.data.record(tree.record as usize);
        let reward = |&(policy, reference): &Score| Some(self.beta * (policy - reference?));
        let responses = record.branches.iter().zip(scores).map(|(branch, score)| ResponseScore {
            model: branch.model.to_string(),
            score: branch.score,
            tokens: branch.scored.iter().filter(|&&mark| mark != 0).count() as u32,
            log_prob: score.0,
            reference_log_prob: score.1,
            reward: reward(score),
        });
        let pair = |chosen: u16, rejected: u16| {
            let (c, r) = (&scores[chosen as usize], &scores[rejected as usize]);
            let rewards = reward(c).zip(reward(r));
            PairScore {
                chosen: chosen.into(),
                rejected: rejected.into(),
                ranked: right(c.0, r.0),
                right: rewards.map(|(c, r)| right(c, r)),
                margin: rewards.map(|(c, r)| c - r),
            }
        };
        RecordScore {
            record: tree.record,
            file: record.file.to_string(),
            line: record.line,
            id: record.id.to_string(),
            responses: responses.collect(),
            pairs: record.pairs.iter().map(|p| pair(p.chosen, p.rejected)).collect(),
        }
    }

    fn longest(&self, tree: &Tree) -> usize {
        let record = self.engine.data.record(tree.record as usize);
        let branch = |&b: &u32| record.branches[b as usize].tokens.len();
        record.trunk.len() + tree.branches.iter().map(branch).max().unwrap_or(0)
    }

    fn seq_length(&self) -> usize {
        self.engine.model.config.seq_length
    }
}

impl Summary {
    fn add(&mut self, record: &RecordScore) {
        self.records += 1;
        self.responses += record.responses.len() as u64;
        self.pairs += record.pairs.len() as u64;
        self.log_prob += record.responses.iter().map(|r| r.log_prob).sum::<f64>();
        for pair in &record.pairs {
            self.ranking_accuracy += pair.ranked;
            let sum = |total: &mut Option<f64>, value: Option<f64>| {
                *total = value.map_or(*total, |value| Some(total.unwrap_or(0.0) + value));
            };
            sum(&mut self.reward_accuracy, pair.right);
            sum(&mut self.margin, pair.margin);
        }
    }

    /// From sums to means; of nothing, zeros.
    fn divide(&mut self) {
        self.log_prob /= self.responses.max(1) as f64;
        let pairs = self.pairs.max(1) as f64;
        self.ranking_accuracy /= pairs;
        self.reward_accuracy = self.reward_accuracy.map(|sum| sum / pairs);
        self.margin = self.margin.map(|sum| sum / pairs);
    }
}
