//! The ops behind the rows, with the same inputs on every device.

use half::bf16;

use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::ops::Write;
use crate::ops::adamw::{self, AdamW, Part, Table};
use crate::ops::grad_norm::{self, Step, Verdict};
use crate::ops::rms_norm::{self, Residual};
use crate::tensor::{DType, Tensor};

/// What a row runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    RmsNorm,
    RmsNormResidual,
    RmsNormBackward,
    RmsNormBackwardWeight,
    GradNorm,
    AdamW,
    AdamWCopy,
}

use Kernel::*;

impl Kernel {
    pub const NORMS: [Kernel; 4] =
        [RmsNorm, RmsNormResidual, RmsNormBackward, RmsNormBackwardWeight];
    pub const FLATS: [Kernel; 3] = [GradNorm, AdamW, AdamWCopy];

    pub fn name(self) -> &'static str {
        match self {
            RmsNorm => "rms_norm forward",
            RmsNormResidual => "rms_norm forward + residual",
            RmsNormBackward => "rms_norm backward",
            RmsNormBackwardWeight => "rms_norm backward + weight",
            GradNorm => "grad_norm",
            AdamW => "adamw",
            AdamWCopy => "adamw + bf16 copy",
        }
    }

    pub fn is_norm(self) -> bool {
        Kernel::NORMS.contains(&self)
    }

    /// Bytes that an element moves, as the kernel's file tells.
    pub fn bytes(self, dtype: DType) -> usize {
        match self {
            RmsNorm => 2 * dtype.size(),
            RmsNormResidual => 4 * dtype.size(),
            RmsNormBackward => 3 * dtype.size(),
            RmsNormBackwardWeight => 5 * dtype.size(),
            GradNorm => 4,
            AdamW => 28,
            AdamWCopy => 30,
        }
    }

    /// Operations of an element.
    pub fn flop(self) -> usize {
        match self {
            RmsNorm => 4,
            RmsNormResidual => 5,
            RmsNormBackward => 9,
            RmsNormBackwardWeight => 12,
            GradNorm => 2,
            AdamW | AdamWCopy => 14,
        }
    }

    /// How far a GPU may be off the CPU, of the result's size: by the rounding of what it stores, or,
    /// with one order of operations, not at all.
    pub fn bound(self, dtype: DType) -> f64 {
        match (self.is_norm(), dtype) {
            (true, DType::Bf16) => 4e-3,
            (true, _) => 1e-5,
            (false, _) => 0.0,
        }
    }
}

/// Inputs and outputs on one device.
pub trait Run {
    fn run(&mut self, kernel: Kernel) -> Result<()>;
    fn outputs(&self) -> Vec<&Buffer>;
}

/// What rms_norm reads and writes.
pub struct Norms {
    x: Buffer,
    add: Buffer,
    weight: Buffer,
    dy: Buffer,
    h: Buffer,
    y: Buffer,
    rstd: Buffer,
    dh: Buffer,
    dweight: Buffer,
    partials: Buffer,
}

impl Norms {
    /// Activations and weights are `dtype`, on the CPU f32 of the same values.
    pub fn new(device: Device, dtype: DType, shape: [usize; 2]) -> Result<Norms> {
        let [rows, cols] = shape;
        let held = if device == Device::Cpu { DType::F32 } else { dtype };
        let input = |[rows, cols]: [usize; 2], seed| {
            let round = |x: f32| match dtype {
                DType::Bf16 => bf16::from_f32(x).to_f32(),
                _ => x,
            };
            let values: Vec<f32> = (0..rows * cols).map(|i| round(value(i + seed))).collect();
            let mut buffer = Buffer::on(device, held, rows, cols)?;
            match held {
                DType::Bf16 => {
                    let narrow: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
                    buffer.upload(Tensor::new(&narrow, rows, cols))?;
                }
                _ => buffer.upload(Tensor::new(&values, rows, cols))?,
            }
            Ok(buffer)
        };
        let output = |dtype, [rows, cols]: [usize; 2]| Buffer::on(device, dtype, rows, cols);
        let mut norms = Norms {
            x: input(shape, 1)?,
            add: input(shape, 2)?,
            weight: input([1, cols], 3)?,
            dy: input(shape, 4)?,
            h: output(held, shape)?,
            y: output(held, shape)?,
            rstd: output(DType::F32, [rows, 1])?,
            dh: output(held, shape)?,
            dweight: output(DType::F32, [1, cols])?,
            partials: output(DType::F32, [1, rms_norm::partials(shape)])?,
        };
        norms.forward(false)?; // backward reads what it keeps
        Ok(norms)
    }

    fn forward(&mut self, adds: bool) -> Result<()> {
        let (add, h) = (self.add.view(), self.h.view_mut());
        let residual = adds.then_some(Residual { add, h });
        let (y, rstd) = (self.y.view_mut(), self.rstd.view_mut());
        rms_norm::forward(self.x.view(), residual, self.weight.view(), y, rstd, 1e-6)
    }
}

impl Run for Norms {
    fn run(&mut self, kernel: Kernel) -> Result<()> {
        if matches!(kernel, RmsNorm | RmsNormResidual) {
            return self.forward(kernel == RmsNormResidual);
        }
        let (x, weight, rstd) = (self.x.view(), self.weight.view(), self.rstd.view());
        let dweight = (kernel == RmsNormBackwardWeight).then(|| self.dweight.view_mut());
        let (dy, dh) = (self.dy.view(), self.dh.view_mut());
        let partials = self.partials.view_mut();
        rms_norm::backward(x, weight, rstd, dy, dh, dweight, partials, Write::Overwrite)
    }

    fn outputs(&self) -> Vec<&Buffer> {
        vec![&self.h, &self.y, &self.rstd, &self.dh, &self.dweight]
    }
}

/// A flat gradient and what is found of it.
pub struct Gradient {
    g: Buffer,
    step: Buffer,
    partials: Buffer,
    verdict: Buffer,
}

impl Gradient {
    pub fn new(device: Device, n: usize) -> Result<Gradient> {
        let mut step = Buffer::on(device, DType::F64, 1, Step::COLS)?;
        step.upload(Step { lr: 1e-5, scale: 0.5, loss: 1.0 }.view())?;
        Ok(Gradient {
            g: flat(device, n, 1)?,
            step,
            partials: Buffer::on(device, DType::F64, 1, grad_norm::partials(n))?,
            verdict: Buffer::on(device, DType::F64, 1, Verdict::COLS)?,
        })
    }

    pub fn judge(&mut self) -> Result<()> {
        let (partials, verdict) = (self.partials.view_mut(), self.verdict.view_mut());
        grad_norm::forward(self.g.view(), self.step.view(), partials, verdict, 1.0)
    }
}

/// What the optimizer reads and writes.
pub struct Flats {
    gradient: Gradient,
    table: Table,
    p: Buffer,
    m: Buffer,
    v: Buffer,
    copy: Buffer,
}

impl Flats {
    pub fn new(device: Device, n: usize) -> Result<Flats> {
        let mut gradient = Gradient::new(device, n)?;
        gradient.judge()?; // AdamW reads what is found
        Ok(Flats {
            gradient,
            table: Table::new(device, &[Part { range: 0..n, lr_scale: 1.0, weight_decay: 0.05 }])?,
            p: flat(device, n, 2)?,
            m: flat(device, n, 3)?,
            v: Buffer::on(device, DType::F32, 1, n)?,
            copy: Buffer::on(device, DType::Bf16, 1, n)?,
        })
    }
}

impl Run for Flats {
    fn run(&mut self, kernel: Kernel) -> Result<()> {
        if kernel == GradNorm {
            return self.gradient.judge();
        }
        let Gradient { g, step, verdict, .. } = &self.gradient;
        let (g, step, verdict) = (g.view(), step.view(), verdict.view());
        let [p, m, v] = [&mut self.p, &mut self.m, &mut self.v].map(Buffer::view_mut);
        let copy = (kernel == AdamWCopy).then(|| self.copy.view_mut());
        let config = AdamW { beta1: 0.9, beta2: 0.98, eps: 1e-8 };
        adamw::step(g, step, verdict, &self.table, p, m, v, copy, &config)
    }

    fn outputs(&self) -> Vec<&Buffer> {
        vec![&self.gradient.verdict, &self.p, &self.m, &self.v, &self.copy]
    }
}

/// In -1..1, without a pattern that a sum would hide.
fn value(i: usize) -> f32 {
    ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0
}

fn flat(device: Device, n: usize, seed: usize) -> Result<Buffer> {
    let values: Vec<f32> = (0..n).map(|i| value(i + seed)).collect();
    let mut buffer = Buffer::on(device, DType::F32, 1, n)?;
    buffer.upload(Tensor::vector(&values))?;
    Ok(buffer)
}

/// `‖got − expected‖ / ‖expected‖`
pub fn difference(got: &Buffer, expected: &Buffer) -> Result<f64> {
    let (got, expected) = (on_host(got)?, on_host(expected)?);
    let (mut error, mut size) = (0.0, 0.0);
    for (got, expected) in values(got.view()).zip(values(expected.view())) {
        error += (got - expected).powi(2);
        size += expected.powi(2);
    }
    Ok(if error == 0.0 { 0.0 } else { (error / size).sqrt() })
}

fn on_host(buffer: &Buffer) -> Result<Buffer> {
    let mut host = Buffer::host(buffer.view().dtype(), buffer.rows(), buffer.cols());
    buffer.download(host.view_mut())?;
    Ok(host)
}

fn values<'a>(view: Tensor<'a>) -> Box<dyn Iterator<Item = f64> + 'a> {
    match view.dtype() {
        DType::Bf16 => Box::new(view.elements::<bf16>().iter().map(|x| x.to_f64())),
        DType::F64 => Box::new(view.elements::<f64>().iter().copied()),
        _ => Box::new(view.elements::<f32>().iter().map(|&x| x.into())),
    }
}
