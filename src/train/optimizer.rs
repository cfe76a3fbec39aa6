//! The optimizer of a run: norm of the gradient, clipping and AdamW, on flat buffers.
//!
//! Forward and backward run on the CPU, so gradients and parameters are at home on the host. On a
//! GPU the moments are at home there; at a step the gradients go there and the parameters come back.
//! Its kernels are recorded once and replayed: what changes from step to step lies in memory.

use std::borrow::Cow;

use crate::device::cuda::{Cuda, Graph};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::params::{Layout, ParamInfo};
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
    /// On a GPU: the update, once recorded. It goes before what it touches.
    graph: Option<Graph>,
    /// `[1, n]` on the host.
    gradients: Buffer,
    gpu: Option<Gpu>,
    update: Update,
}

/// What is at home on the host, as the GPU sees it.
struct Gpu {
    cuda: Cuda,
    gradients: Buffer, // [1, n]
    params: Buffer,    // [1, n]
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
        let (gradients, gpu) = match device {
            Device::Cpu => (Buffer::f32(1, n), None),
            Device::Cuda(cuda) => {
                let (gradients, params) = (row(DType::F32, n)?, row(DType::F32, n)?);
                let host = Buffer::pinned(cuda, DType::F32, 1, n)?;
                (host, Some(Gpu { cuda, gradients, params }))
            }
        };
        Ok(Optimizer { graph: None, gradients, gpu, update })
    }

    /// What backward adds to, `[1, n]` f32 on the host.
    pub fn gradients(&mut self) -> TensorMut<'_> {
        self.gradients.view_mut()
    }

    /// Updates `params` by the gradients unless they, or the step's loss, are not finite.
    pub fn step(&mut self, params: &mut [f32], step: Step) -> Result<Verdict> {
        self.update.step.upload(step.view())?;
        match &mut self.gpu {
            None => self.update.run(self.gradients.view(), TensorMut::vector(params))?,
            Some(gpu) => {
                gpu.gradients.upload(self.gradients.view())?;
                let graph = match &mut self.graph {
                    Some(graph) => graph,
                    none => none.insert(gpu.record(&mut self.update, params)?),
                };
                graph.launch()?;
                gpu.params.download(TensorMut::vector(params))?;
            }
        }
        let mut verdict = Verdict::default();
        self.update.verdict.download(verdict.view_mut())?;
        Ok(verdict)
    }

    /// Both moments, for a checkpoint.
    pub fn moments(&self) -> Result<[Cow<'_, [f32]>; 2]> {
        let Update { exp_avg, exp_avg_sq, .. } = &self.update;
        Ok([on_host(exp_avg)?, on_host(exp_avg_sq)?])
    }

    /// Goes on from a checkpoint: `read` overwrites both moments and tells the state.
    pub fn resume(
        &mut self,
        read: impl FnOnce(&mut [f32], &mut [f32]) -> Result<State>,
    ) -> Result<State> {
        let Update { exp_avg, exp_avg_sq, verdict, .. } = &mut self.update;
        let state = match self.gpu {
            None => read(exp_avg.view_mut().elements(), exp_avg_sq.view_mut().elements())?,
            Some(_) => {
                let [mut m, mut v] = [(); 2].map(|()| vec![0.0; exp_avg.cols()]);
                let state = read(&mut m, &mut v)?;
                exp_avg.upload(Tensor::vector(&m))?;
                exp_avg_sq.upload(Tensor::vector(&v))?;
                state
            }
        };
        let counts = Verdict { updates: state.updates as f64, ..Verdict::default() };
        verdict.upload(counts.view())?;
        Ok(state)
    }
}

impl Gpu {
    /// Brings `params` here and records the update.
    fn record(&mut self, update: &mut Update, params: &[f32]) -> Result<Graph> {
        self.params.upload(Tensor::vector(params))?;
        self.cuda.capture(|| update.run(self.gradients.view(), self.params.view_mut()))
    }
}

/// The elements of a row, wherever it lies.
fn on_host(row: &Buffer) -> Result<Cow<'_, [f32]>> {
    if row.device() == Device::Cpu {
        return Ok(Cow::Borrowed(row.view().elements()));
    }
    let mut copy = vec![0.0; row.cols()];
    row.download(TensorMut::vector(&mut copy))?;
    Ok(Cow::Owned(copy))
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
    let part = |info: &ParamInfo| Part {
        range: info.range(),
        lr_scale: lr_scale(&info.name),
        weight_decay: if info.decay { weight_decay } else { 0.0 },
    };
    layout.tensors.iter().map(part).collect()
}
