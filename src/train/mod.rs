//! Training, top to bottom: [`run`] is the loop, `Trainer::step` the algorithm.
//!
//! ```text
//! step    cut the step's records into packs; for each pack
//!             log π(y|x) of every branch                          model forward
//!             loss of every pair, d loss / d log π of every branch  loss
//!             add to the gradients                                model backward
//!         g ← g / pairs, clip, AdamW
//! ```

pub mod checkpoint;
pub mod choices;
pub mod config;
pub mod engine;
pub mod events;
pub mod features;
pub mod fingerprint;
pub mod loss;
pub mod memory;
pub mod metrics;
pub mod optimizer;
pub mod output;
mod progress;
pub mod reference;
pub mod schedule;
pub mod score;
mod setup;

use std::path::PathBuf;
use std::time::Instant;

use crate::data::lock::Lock;
use crate::data::pack::Pack;
use crate::data::plan::{Plan, Tree};
use crate::error::{Error, Result};
use crate::model::adapter::Adapter;
use crate::model::params::Layout;
use crate::model::{Lora, RopeMode};
use crate::ops::grad_norm::{self, Step};
use crate::train::checkpoint::{Moments, State};
use crate::train::config::Config;
use crate::train::engine::Engine;
use crate::train::loss::{Loss, Totals};
use crate::train::metrics::{EvaluationRow, Metrics, StepRow};
use crate::train::optimizer::Optimizer;
pub use crate::train::progress::{Progress, Sink, Summary};
use crate::train::reference::Sidecar;
use crate::train::schedule::Schedule;

/// Skipped steps in a row that end a run.
const MOST_SKIPPED: u32 = 3;

/// Largest mean |x| of untrained pairs, in nats: f32 forward passes of the same branch in two packs
/// differ by up to 1e-3 nats each; a stale reference is off by whole nats.
const REFERENCE_NOISE: f64 = 1e-2;

/// Trains as `config` says, in its folder, until it is done or `stop` says so.
///
/// With `resume` it goes on from the folder's newest checkpoint, bit for bit. Errors: data, model and
/// configuration that do not fit; a folder in use; a reference that is not the starting policy; three
/// steps in a row that are not finite (after saving); [`Error::Interrupted`] (after saving) when
/// stopped.
pub fn run(
    config: &Config,
    resume: bool,
    stop: &dyn Fn() -> bool,
    progress: &mut Sink<'_>,
) -> Result<Summary> {
    let mut trainer = Trainer::open(config, resume, stop, progress)?;
    progress(Progress::Begin { done: trainer.state.step, total: trainer.total });
    let mut epoch = trainer.plan.epoch(trainer.state.epoch);
    loop {
        if trainer.evaluation_is_due() && trainer.evaluate(stop, progress)? == Outcome::Abandoned {
            return trainer.interrupted(progress);
        }
        if trainer.is_due(config.save_every) {
            trainer.save(progress)?;
        }
        if trainer.state.step >= trainer.total {
            return trainer.finish(progress);
        }
        if trainer.state.epoch_step as usize >= epoch.len() {
            (trainer.state.epoch, trainer.state.epoch_step) = (trainer.state.epoch + 1, 0);
            epoch = trainer.plan.epoch(trainer.state.epoch);
        }
        let trees = &epoch[trainer.state.epoch_step as usize];
        if trainer.step(trees, stop, progress)? == Outcome::Abandoned {
            return trainer.interrupted(progress);
        }
    }
}

/// A run in progress.
struct Trainer<'c> {
    config: &'c Config,
    engine: Engine,
    plan: Plan,
    loss: Loss,
    schedule: Schedule,
    /// Steps in all.
    total: u64,
    /// Records that are only evaluated.
    held_out: Vec<Tree>,
    /// Stored log-probs of the reference; none where it is computed with every pack or not needed.
    reference: Option<Sidecar>,
    /// The adapter that is trained, as it was at the start.
    adapter: Option<Adapter>,
    layout: Layout,
    optimizer: Optimizer,
    state: State,
    metrics: Metrics,
    summary: Summary,
    _lock: Lock,
}

/// How a step or an evaluation ended.
#[derive(PartialEq, Eq)]
enum Outcome {
    /// It counts, even if the step was skipped as not finite.
    Done,
    /// Somebody asked to stop; nothing has changed.
    Abandoned,
}

impl Trainer<'_> {
    /// One optimiser step on the pairs of `trees`.
    fn step(
        &mut self,
        trees: &[Tree],
        stop: &dyn Fn() -> bool,
        progress: &mut Sink<'_>,
    ) -> Result<Outcome> {
        let started = Instant::now();
        let packs = self.plan.packs(trees);
        let (mut totals, mut tokens, mut bad) = (Totals::default(), 0, None);
        let mut coefficients = Vec::new();
        self.optimizer.gradients().fill(0.0f32);
        for trees in &packs {
            if stop() {
                return Ok(Outcome::Abandoned);
            }
            let pack = self.engine.pack(trees)?;
            tokens += pack.len() as u64;

            // log π(y|x) of every branch, and of the reference
            let reference = self.reference_of(&pack)?;
            let policy = self.engine.forward(&pack, Lora::On, RopeMode::TRAIN)?;

            // the pairs' losses, and d loss / d log π of every branch
            let sums = self.loss.pack(&pack, &policy, &reference, &mut coefficients);
            totals.add(&sums);

            // d loss / d θ, summed over the step
            let mut gradients = self.optimizer.gradients();
            let gradients = gradients.elements();
            self.engine.backward(&pack, &coefficients, gradients)?;
            if !sums.loss.is_finite() || !grad_norm::all_finite(gradients) {
                bad = Some(self.engine.names(&pack));
                break;
            }
        }
        if bad.is_none() {
            self.check_reference(&totals, progress)?;
        }

        // the mean over the step's pairs; then clip, then AdamW
        let lr = self.schedule.lr(self.state.step);
        let step = Step { lr, scale: 1.0 / totals.count.max(1) as f64, loss: totals.loss };
        let verdict = self.optimizer.step(self.engine.model.params_mut(), step)?;
        self.state.updates = verdict.updates as u64;
        let skipped = verdict.finite == 0.0;
        if let Some(names) = &bad {
            let names = names.join(", ");
            progress(Progress::Note(&format!(
                "step {}: loss or gradient is not finite, the step is skipped; records {names}",
                self.state.step + 1
            )));
        }

        self.state.skipped_in_a_row = if skipped { self.state.skipped_in_a_row + 1 } else { 0 };
        self.state.step += 1;
        self.state.epoch_step += 1;
        let mean = totals.mean();
        let row = StepRow {
            step: self.state.step,
            epoch: self.state.epoch,
            loss: mean.loss,
            chosen_reward: mean.chosen,
            rejected_reward: mean.rejected,
            margin: mean.chosen - mean.rejected,
            accuracy: mean.right,
            grad_norm: verdict.norm,
            lr,
            pairs: totals.count,
            tokens,
            packs: packs.len() as u64,
            seconds: started.elapsed().as_secs_f64(),
            skipped,
        };
        self.metrics.step(&row)?;
        progress(Progress::Step(&row));
        self.count(row);
        if self.state.skipped_in_a_row >= MOST_SKIPPED {
            let path = self.save(progress)?;
            return Err(Error::Run(format!(
                "{MOST_SKIPPED} steps in a row were not finite; saved {}; lower --lr or clip with \
                 --max-grad-norm, and look at the records named above",
                path.display()
            )));
        }
        Ok(Outcome::Done)
    }

    /// Reference log-probs of the pack's branches; empty where the loss knows no reference.
    fn reference_of(&mut self, pack: &Pack) -> Result<Vec<f64>> {
        match &self.reference {
            _ if !self.loss.needs_reference() => Ok(Vec::new()),
            Some(sidecar) => Ok(sidecar.of(pack)),
            None => self.engine.forward(pack, Lora::Off, RopeMode::TRAIN),
        }
    }

    /// Before the first update the policy is its reference: a margin beyond rounding betrays one
    /// that was computed with other weights or other data.
    fn check_reference(&self, totals: &Totals, progress: &mut Sink<'_>) -> Result<()> {
        let fresh = self.state.updates == 0 && self.config.init_adapter.is_none();
        if !fresh || !self.loss.needs_reference() {
            return Ok(());
        }
        let mean = totals.mean().absolute / self.loss.beta;
        if mean > REFERENCE_NOISE {
            return Err(Error::Run(format!(
                "the reference does not match the model: before the first update pairs differ by \
                 {mean:.3} nats on average, expected at most {REFERENCE_NOISE}; remove {}/*.sidecar",
                self.config.data.display()
            )));
        }
        progress(Progress::Note(&format!(
            "before the first update policy and reference differ by {mean:.1e} nats a pair (at \
             most {REFERENCE_NOISE} is rounding)"
        )));
        Ok(())
    }

    /// Loss and accuracy on the held-out records.
    fn evaluate(&mut self, stop: &dyn Fn() -> bool, progress: &mut Sink<'_>) -> Result<Outcome> {
        let (mut totals, mut coefficients) = (Totals::default(), Vec::new());
        let packs: Vec<Vec<Tree>> = self.plan.pass(&self.held_out).collect();
        for trees in packs {
            if stop() {
                return Ok(Outcome::Abandoned);
            }
            let pack = self.engine.pack(&trees)?;
            let reference = self.reference_of(&pack)?;
            let policy = self.engine.forward(&pack, Lora::On, RopeMode::TRAIN)?;
            totals.add(&self.loss.pack(&pack, &policy, &reference, &mut coefficients));
        }
        let row = EvaluationRow::new(self.state.step, &totals);
        self.metrics.evaluation(&row)?;
        progress(Progress::Evaluation(&row));
        self.state.evaluated = Some(row.step);
        let place = if row.step == 0 { &mut self.summary.before } else { &mut self.summary.after };
        *place = Some(row);
        Ok(Outcome::Done)
    }

    /// Before the first step, every so many steps, and after the last one; once each.
    fn evaluation_is_due(&self) -> bool {
        let due = self.state.step == 0 || self.is_due(self.config.eval_every);
        due && !self.held_out.is_empty() && self.state.evaluated != Some(self.state.step)
    }

    fn is_due(&self, every: u64) -> bool {
        let step = self.state.step;
        step >= self.total || (step > 0 && every > 0 && step.is_multiple_of(every))
    }

    fn save(&mut self, progress: &mut Sink<'_>) -> Result<PathBuf> {
        self.state.metrics = self.metrics.position()?;
        let [exp_avg, exp_avg_sq] = self.optimizer.moments()?;
        let params = self.engine.model.params();
        let moments = Moments { params, exp_avg: &*exp_avg, exp_avg_sq: &*exp_avg_sq };
        let Config { out, keep, .. } = self.config;
        let path = checkpoint::save(out, &self.state, &self.layout.tensors, &moments, *keep)?;
        progress(Progress::Saved(&path));
        Ok(path)
    }

    fn interrupted(mut self, progress: &mut Sink<'_>) -> Result<Summary> {
        self.save(progress)?;
        Err(Error::Interrupted(format!(
            "stopped after step {} of {}; go on with: silkie train --resume --out {}",
            self.state.step,
            self.total,
            self.config.out.display()
        )))
    }

    fn finish(mut self, progress: &mut Sink<'_>) -> Result<Summary> {
        let model = &self.engine.model;
        self.summary.output = output::write(self.config, model, self.adapter.as_ref())?;
        progress(Progress::Note(&format!("wrote {}", self.summary.output.display())));
        Ok(self.summary)
    }

    fn count(&mut self, row: StepRow) {
        self.summary.pairs += row.pairs;
        self.summary.tokens += row.tokens;
        self.summary.seconds += row.seconds;
        self.summary.skipped += u64::from(row.skipped);
        self.summary.last = Some(row);
    }
}
