//! Which records make which step, and how a step is cut into packs. A pure function of the sizes
//! of the records and of (seed, epoch): nothing to save but a position.
//!
//! ```text
//! epoch   shuffle records          (or pairs, or nothing)
//! step    take records until there are at least `batch` pairs; the last, partial batch is kept
//! packs   the step's trees in as few packs as the budget allows, nearly equal in length
//! ```
//!
//! A record's pairs stay together, so that its trunk is computed once; a tree longer than the
//! budget is split by pairs and its trunk repeated. Records are held out whole: no pair of a
//! training record is ever evaluated.

use rand::RngExt as _;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::data::pack::Layout;
use crate::data::partition::{load, partition};
pub use crate::data::tree::{RecordSize, Tree};
use crate::error::{Error, Result};

/// What is drawn in random order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Shuffle {
    /// Records, each with all its pairs.
    Records,
    /// Single pairs, as the original trainer does.
    Pairs,
    /// Nothing: file order.
    None,
}

/// What a record contributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// All its pairs.
    Pairs,
    /// One answer, drawn anew each epoch.
    Random,
    /// The answer with the highest score.
    Best,
    /// Every answer.
    All,
}

/// How much one optimiser step sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// At least so many pairs (answers, where there are no pairs).
    Items(usize),
    /// So many records.
    Records(usize),
}

/// What the plan depends on beside the records.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// What a record contributes.
    pub objective: Objective,
    /// Step size.
    pub batch: Batch,
    /// Rows of a pack at most.
    pub token_budget: usize,
    /// Trees, or trunks repeated for every answer.
    pub layout: Layout,
    /// Order.
    pub shuffle: Shuffle,
    /// Seed of the order, of the held-out records and of random answers.
    pub seed: u64,
    /// Share of the records that is held out; at least one record unless 0.
    pub held_out: f64,
    /// This process among `world`.
    pub rank: usize,
    /// Processes that share each step; packs are dealt to them in turn.
    pub world: usize,
}

/// The records of a run, divided and ready to be ordered.
pub struct Plan {
    spec: Spec,
    records: Vec<RecordSize>,
    train: Vec<u32>,
    held_out: Vec<u32>,
}

/// Sums and maxima over planned packs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Steps.
    pub steps: u64,
    /// Packs.
    pub packs: u64,
    /// Pairs; answers where there are no pairs.
    pub items: u64,
    /// Rows.
    pub tokens: u64,
    /// Rows if every pack of a step were as long as the step's longest.
    pub padded_tokens: u64,
    /// Trees cut because they exceed the budget.
    pub split_trees: u64,
    /// Most rows of a pack.
    pub max_tokens: u64,
    /// Most images of a pack.
    pub max_images: u64,
    /// Most scored rows of a pack.
    pub max_head_rows: u64,
}

/// Trees of a pass that are cut into packs together.
const PASS: usize = 256;

/// Random numbers of the held-out draw; epoch `e` uses stream `e + 1`.
const HELD_OUT_STREAM: u64 = 0;

impl Plan {
    /// Divides the records into training and held-out ones. Records that have nothing to
    /// contribute (no pairs, no answers) are in neither.
    ///
    /// Errors: no record left to train on; a pair (an answer) that alone exceeds the budget.
    pub fn new(records: Vec<RecordSize>, spec: Spec) -> Result<Plan> {
        let usable = |r: &RecordSize| match spec.objective {
            Objective::Pairs => !r.pairs.is_empty(),
            _ => !r.branches.is_empty(),
        };
        let mut train: Vec<u32> =
            (0..records.len() as u32).filter(|&i| usable(&records[i as usize])).collect();
        let mut held_out = Vec::new();
        if spec.held_out > 0.0 && train.len() > 1 {
            let n = ((train.len() as f64 * spec.held_out).round() as usize).max(1);
            train.shuffle(&mut random(spec.seed, HELD_OUT_STREAM));
            held_out = train.split_off(train.len() - n.min(train.len() - 1));
            train.sort_unstable();
            held_out.sort_unstable();
        }
        if train.is_empty() {
            return Err(Error::Run(format!(
                "nothing to train on: none of {} records has {}; look at the data with `silkie inspect`",
                records.len(),
                if spec.objective == Objective::Pairs { "a pair" } else { "an answer" },
            )));
        }
        let plan = Plan { spec, records, train, held_out };
        plan.check_budget()?;
        Ok(plan)
    }

    /// Records that are trained on, in file order.
    pub fn train(&self) -> &[u32] {
        &self.train
    }

    /// Records that are only evaluated, in file order.
    pub fn held_out(&self) -> &[u32] {
        &self.held_out
    }

    /// The steps of epoch `epoch` (from 0): the trees of each, in order.
    pub fn epoch(&self, epoch: u64) -> Vec<Vec<Tree>> {
        let mut rng = random(self.spec.seed, epoch + 1);
        let mut order: Vec<u32> = self.train.clone();
        match self.spec.shuffle {
            Shuffle::Pairs if self.spec.objective == Objective::Pairs => {
                return self.shuffled_pairs(rng);
            }
            Shuffle::Records | Shuffle::Pairs => order.shuffle(&mut rng),
            Shuffle::None => (),
        }
        let (mut steps, mut step, mut items) = (Vec::new(), Vec::new(), 0);
        for record in order {
            let tree = self.tree(record, &mut rng);
            items += tree.items();
            step.push(tree);
            let full = match self.spec.batch {
                Batch::Items(n) => items >= n,
                Batch::Records(n) => step.len() >= n,
            };
            if full {
                steps.push(std::mem::take(&mut step));
                items = 0;
            }
        }
        steps.extend((!step.is_empty()).then_some(step));
        steps
    }

    /// The held-out records as trees, in file order; random answers are the same ones every time.
    pub fn held_out_trees(&self) -> Vec<Tree> {
        let mut rng = random(self.spec.seed, HELD_OUT_STREAM);
        self.held_out.iter().map(|&record| self.tree(record, &mut rng)).collect()
    }

    /// These records with all their pairs (all their answers where there are no pairs).
    pub fn whole(&self, records: impl IntoIterator<Item = u32>) -> Vec<Tree> {
        let tree = |record: u32| {
            let size = &self.records[record as usize];
            match size.pairs.is_empty() {
                true => Tree::of_answers(record, size),
                false => Tree::of_pairs(record, size.pairs.clone()),
            }
        };
        records.into_iter().map(tree).collect()
    }

    /// Cuts the trees of one step into this rank's packs: nearly equal, none over the budget.
    pub fn packs(&self, trees: &[Tree]) -> Vec<Vec<Tree>> {
        let all = self.all_packs(trees);
        all.into_iter().skip(self.spec.rank).step_by(self.spec.world.max(1)).collect()
    }

    /// Plans `steps` steps (all epochs for `None`) without doing them. One pass over sizes only.
    pub fn extent(&self, epochs: u64, steps: Option<u64>) -> Extent {
        let mut extent = Extent::default();
        for epoch in 0..if steps.is_some() { u64::MAX } else { epochs } {
            for trees in self.epoch(epoch) {
                if steps.is_some_and(|n| extent.steps >= n) {
                    return extent;
                }
                extent.steps += 1;
                self.measure(&trees, &mut extent);
            }
        }
        extent
    }

    /// One pass over `trees` outside the steps, as packs of nearly equal length; a function of
    /// `trees` alone, so that an interrupted pass can go on where it was.
    pub fn pass<'a>(&'a self, trees: &'a [Tree]) -> impl Iterator<Item = Vec<Tree>> + 'a {
        trees.chunks(PASS).flat_map(|chunk| self.packs(chunk))
    }

    /// What such a pass needs.
    pub fn pass_extent(&self, trees: &[Tree]) -> Extent {
        let mut extent = Extent::default();
        trees.chunks(PASS).for_each(|chunk| self.measure(chunk, &mut extent));
        extent
    }

    fn measure(&self, trees: &[Tree], extent: &mut Extent) {
        extent.items += trees.iter().map(|t| t.items() as u64).sum::<u64>();
        extent.split_trees += trees.iter().filter(|t| self.is_split(t)).count() as u64;
        let (mut longest, layout) = (0, self.spec.layout);
        let packs = self.all_packs(trees);
        for pack in &packs {
            let sum = |f: &dyn Fn(&Tree) -> usize| pack.iter().map(f).sum::<usize>() as u64;
            let tokens = sum(&|t| self.tokens(t));
            longest = longest.max(tokens);
            extent.tokens += tokens;
            extent.max_tokens = extent.max_tokens.max(tokens);
            extent.max_images = extent.max_images.max(sum(&|t| t.images(self.size(t), layout)));
            extent.max_head_rows =
                extent.max_head_rows.max(sum(&|t| t.head_rows(self.size(t), layout)));
        }
        extent.packs += packs.len() as u64;
        extent.padded_tokens += longest * packs.len() as u64;
    }

    /// The step's trees (pieces of those over the budget) in `n` packs of nearly equal length, for
    /// the smallest multiple `n` of `world` that keeps the budget.
    fn all_packs(&self, trees: &[Tree]) -> Vec<Vec<Tree>> {
        let pieces: Vec<Tree> = trees.iter().flat_map(|t| self.pieces(t)).collect();
        let sizes: Vec<usize> = pieces.iter().map(|t| self.tokens(t)).collect();
        let (budget, world) = (self.spec.token_budget, self.spec.world.max(1));
        let mut n = sizes.iter().sum::<usize>().div_ceil(budget).max(1).next_multiple_of(world);
        let packs = loop {
            let packs = partition(&sizes, n);
            let longest = packs.iter().map(|pack| load(&sizes, pack)).max();
            // Every piece fits the budget, so one piece per pack ends the search.
            if n >= pieces.len() || longest.is_none_or(|longest| longest <= budget) {
                break packs;
            }
            n += world;
        };
        let filled = packs.iter().filter(|pack| !pack.is_empty());
        filled.map(|pack| pack.iter().map(|&i| pieces[i].clone()).collect()).collect()
    }

    fn tree(&self, record: u32, rng: &mut ChaCha8Rng) -> Tree {
        let size = &self.records[record as usize];
        let n = size.branches.len() as u32;
        let branches = match self.spec.objective {
            Objective::Pairs => return Tree::of_pairs(record, size.pairs.clone()),
            Objective::Random => vec![rng.random_range(0..n)],
            Objective::Best => vec![size.best],
            Objective::All => (0..n).collect(),
        };
        Tree { record, branches, pairs: Vec::new() }
    }

    fn shuffled_pairs(&self, mut rng: impl rand::Rng) -> Vec<Vec<Tree>> {
        let pairs_of = |&r: &u32| self.records[r as usize].pairs.iter().map(move |&p| (r, p));
        let mut pairs: Vec<(u32, [u32; 2])> = self.train.iter().flat_map(pairs_of).collect();
        pairs.shuffle(&mut rng);
        let (Batch::Items(n) | Batch::Records(n)) = self.spec.batch;
        let step = |chunk: &[(u32, [u32; 2])]| {
            let mut trees: Vec<Tree> = Vec::new();
            for &(record, pair) in chunk {
                match trees.iter_mut().find(|t| t.record == record) {
                    Some(tree) => tree.pairs.push(pair),
                    None => trees.push(Tree { record, branches: Vec::new(), pairs: vec![pair] }),
                }
            }
            trees.into_iter().map(|t| Tree::of_pairs(t.record, t.pairs)).collect()
        };
        pairs.chunks(n.max(1)).map(step).collect()
    }

    /// The tree as it is packed: whole if it fits, else by pairs (by answers), in order.
    fn pieces(&self, tree: &Tree) -> Vec<Tree> {
        if self.spec.layout == Layout::Pairs {
            return tree.singles();
        }
        if self.tokens(tree) <= self.spec.token_budget {
            return vec![tree.clone()];
        }
        let mut pieces: Vec<Tree> = Vec::new();
        for single in tree.singles() {
            let joined = pieces.last().map(|last| last.join(&single));
            match (joined, pieces.last_mut()) {
                (Some(joined), Some(last)) if self.tokens(&joined) <= self.spec.token_budget => {
                    *last = joined;
                }
                _ => pieces.push(single),
            }
        }
        pieces
    }

    fn is_split(&self, tree: &Tree) -> bool {
        self.spec.layout == Layout::Tree && self.tokens(tree) > self.spec.token_budget
    }

    fn check_budget(&self) -> Result<()> {
        let all = self.train.iter().chain(&self.held_out);
        let longest = all.flat_map(|&record| {
            let size = &self.records[record as usize];
            let tree = match self.spec.objective {
                Objective::Pairs => Tree::of_pairs(record, size.pairs.clone()),
                _ => Tree::of_answers(record, size),
            };
            tree.singles().into_iter().map(move |t| (self.tokens(&t), record))
        });
        match longest.max() {
            Some((tokens, record)) if tokens > self.spec.token_budget => {
                Err(Error::Usage(format!(
                    "--token-budget {}: record {record} needs {tokens} tokens in one pack; \
                     pass --token-budget {tokens} or more",
                    self.spec.token_budget
                )))
            }
            _ => Ok(()),
        }
    }

    fn size(&self, tree: &Tree) -> &RecordSize {
        &self.records[tree.record as usize]
    }

    fn tokens(&self, tree: &Tree) -> usize {
        tree.tokens(self.size(tree), self.spec.layout)
    }
}

fn random(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}
