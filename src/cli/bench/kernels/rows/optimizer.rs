//! Rows of the optimizer: grad_norm and adamw over one flat buffer.

use super::{F32, On, Row, Run};
use crate::device::Buffer;
use crate::error::Result;
use crate::ops::adamw::{self, AdamW, Part, Table};
use crate::ops::grad_norm::{self, Step, Verdict};
use crate::tensor::DType;

/// Trained parameters: a power of two, and those of rank 64 on Qwen-VL-Chat.
const SHAPES: &[[usize; 2]] = &[[1, 1 << 24], [1, 112_197_632]];
/// Large enough that the records of a step count for nothing.
const COUNTED: &[[usize; 2]] = &[[1, 1 << 20]];

pub fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "grad_norm",
            bytes: |[_, n], _| 4 * n,
            flop: |[_, n]| 2 * n,
            new: |on, [_, n]| Ok(Box::new(Gradient::new(on, n)?)),
            ..USUAL
        },
        Row {
            name: "adamw",
            bytes: |[_, n], _| 28 * n,
            new: |on, [_, n]| Ok(Box::new(Update::new(on, n, false)?)),
            ..USUAL
        },
        Row {
            name: "adamw + bf16 copy",
            bytes: |[_, n], _| 30 * n,
            new: |on, [_, n]| Ok(Box::new(Update::new(on, n, true)?)),
            ..USUAL
        },
    ]
}

/// One order of operations on both devices: the same bits.
const USUAL: Row = Row {
    dtypes: F32,
    shapes: SHAPES,
    counted: COUNTED,
    flop: |[_, n]| 14 * n,
    bound: |_| 0.0,
    ..Row::USUAL
};

/// A flat gradient and what is found of it.
pub struct Gradient {
    g: Buffer,
    step: Buffer,
    partials: Buffer,
    verdict: Buffer,
}

impl Gradient {
    pub fn new(on: On, n: usize) -> Result<Gradient> {
        let f64 = |cols| Buffer::on(on.device, DType::F64, 1, cols);
        let mut step = f64(Step::COLS)?;
        step.upload(Step { lr: 1e-5, scale: 0.5, loss: 1.0 }.view())?;
        Ok(Gradient {
            g: on.f32_input(1, n, 1)?,
            step,
            partials: f64(grad_norm::partials(n))?,
            verdict: f64(Verdict::COLS)?,
        })
    }
}

impl Run for Gradient {
    fn run(&mut self) -> Result<()> {
        let (partials, verdict) = (self.partials.view_mut(), self.verdict.view_mut());
        grad_norm::forward(self.g.view(), self.step.view(), partials, verdict, 1.0)
    }

    fn outputs(&self) -> Vec<&Buffer> {
        vec![&self.verdict]
    }
}

/// What AdamW reads and writes.
struct Update {
    gradient: Gradient,
    table: Table,
    p: Buffer,
    m: Buffer,
    v: Buffer,
    copy: Option<Buffer>,
}

impl Update {
    fn new(on: On, n: usize, copies: bool) -> Result<Update> {
        let mut gradient = Gradient::new(on, n)?;
        gradient.run()?; // AdamW reads what is found
        let part = Part { range: 0..n, lr_scale: 1.0, weight_decay: 0.05 };
        let copy = copies.then(|| Buffer::on(on.device, DType::Bf16, 1, n));
        Ok(Update {
            gradient,
            table: Table::new(on.device, &[part])?,
            p: on.f32_input(1, n, 2)?,
            m: on.f32_input(1, n, 3)?,
            v: on.f32_output(1, n)?,
            copy: copy.transpose()?,
        })
    }
}

impl Run for Update {
    fn run(&mut self) -> Result<()> {
        let Gradient { g, step, verdict, .. } = &self.gradient;
        let (g, step, verdict) = (g.view(), step.view(), verdict.view());
        let [p, m, v] = [&mut self.p, &mut self.m, &mut self.v].map(Buffer::view_mut);
        let copy = self.copy.as_mut().map(Buffer::view_mut);
        let config = AdamW { beta1: 0.9, beta2: 0.98, eps: 1e-8 };
        adamw::step(g, step, verdict, &self.table, p, m, v, copy, &config)
    }

    fn outputs(&self) -> Vec<&Buffer> {
        [&self.p, &self.m, &self.v].into_iter().chain(&self.copy).collect()
    }
}
