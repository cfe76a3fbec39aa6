//! The optimizer of a run: norm of the gradient, clipping and AdamW, on flat buffers.

use std::borrow::Cow;

use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::params::Layout;
use crate::ops::adamw::{self, AdamW, Part, Table};
use crate::ops::grad_norm::{self, Step, Verdict};
use crate::tensor::{DType, Tensor, TensorMut};
use crate::train::checkpoint::State;

/// How a run's parameters are updated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Constants of AdamW.
    pub adamw: AdamW,
    /// Gradients are clipped to this norm; 0: never.
    pub max_grad_norm: f64,
}

/// Gradients, moments, and how many steps there were.
pub struct Optimizer {
    /// `[1, n]` on the host, as the parameters are.
    gradients: Buffer,
    update: Update,
}

/// What the update reads and writes besides gradients and parameters.
struct Update {
    settings: Settings,
    table: Table,
    exp_avg: Buffer,    // [1, n]
    exp_avg_sq: Buffer, // [1, n]
    partials: Buffer,
    step: Buffer,
    verdict: Buffer,
}

impl Optimizer {
    /// An optimizer of the tensors `parts` in flat buffers of `n` elements, before its first step.
    /// Errors: parts that overlap or reach beyond `n`; no memory.
    pub fn new(device: Device, n: usize, parts: &[Part], settings: Settings) -> Result<Self> {
        let row = |dtype, cols| Buffer::on(device, dtype, 1, cols);
        let update = Update {
            settings,
            table: Table::new(device, parts)?,
            exp_avg: row(DType::F32, n)?,
            exp_avg_sq: row(DType::F32, n)?,
            partials: row(DType::F64, grad_norm::partials(n))?,
            step: row(DType::F64, Step::COLS)?,
            verdict: row(DType::F64, Verdict::COLS)?,
        };
        Ok(Optimizer { gradients: Buffer::f32(1, n), update })
    }

    /// What backward adds to, `[1, n]` f32 on the host.
    pub fn gradients(&mut self) -> TensorMut<'_> {
        self.gradients.view_mut()
    }

    /// Updates `params` by the gradients unless they, or the step's loss, are not finite.
    pub fn step(&mut self, params: &mut [f32], step: Step) -> Result<Verdict> {
        self.update.step.upload(step.view())?;
        self.update.run(self.gradients.view(), TensorMut::vector(params))?;
        let mut verdict = Verdict::default();
        self.update.verdict.download(verdict.view_mut())?;
        Ok(verdict)
    }

    /// Both moments, for a checkpoint.
    pub fn moments(&self) -> Result<[Cow<'_, [f32]>; 2]> {
        let Update { exp_avg, exp_avg_sq, .. } = &self.update;
        Ok([exp_avg, exp_avg_sq].map(|buffer| Cow::Borrowed(buffer.view().elements())))
    }

    /// Goes on from a checkpoint: `read` overwrites both moments and tells the state.
    pub fn resume(
        &mut self,
        read: impl FnOnce(&mut [f32], &mut [f32]) -> Result<State>,
    ) -> Result<State> {
        let Update { exp_avg, exp_avg_sq, verdict, .. } = &mut self.update;
        let state = read(exp_avg.view_mut().elements(), exp_avg_sq.view_mut().elements())?;
        let counts = Verdict { updates: state.updates as f64, ..Verdict::default() };
        verdict.upload(counts.view())?;
        Ok(state)
    }
}

impl Update {
    fn run(&mut self, g: Tensor<'_>, p: TensorMut<'_>) -> Result<()> {
        let Update { settings, table, exp_avg, exp_avg_sq, partials, step, verdict } = self;
        let Settings { adamw, max_grad_norm } = settings;
        let (m, v) = (exp_avg.view_mut(), exp_avg_sq.view_mut());
        let (partials, found) = (partials.view_mut(), verdict.view_mut());
        grad_norm::forward(g, step.view(), partials, found, *max_grad_norm)?;
        adamw::step(g, step.view(), verdict.view(), table, p, m, v, None, adamw)
    }
}

/// The tensors of `layout`; `lr_scale` tells the factor on the rate of the tensor of a name.
pub fn parts(layout: &Layout, lr_scale: impl Fn(&str) -> f64, weight_decay: f64) -> Vec<Part> {
    let part = |info: &crate::model::params::ParamInfo| Part {
        range: info.range(),
        lr_scale: lr_scale(&info.name),
        weight_decay: if info.decay { weight_decay } else { 0.0 },
    };
    layout.tensors.iter().map(part).collect()
}
