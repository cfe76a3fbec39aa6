//! AdamW: Adam with the weight decay on the parameter itself, on all tensors of the flat buffers.
//!
//! ```text
//! g ← g · scale          p ← p · (1 − lr · wd)
//! m ← m + (1 − β₁)(g − m)     v ← β₂ · v + (1 − β₂) · g²
//! p ← p − lr / (1 − β₁ᵗ) · m / (sqrt(v) / sqrt(1 − β₂ᵗ) + eps)
//! ```
//!
//! In PyTorch's order of operations, scalars in f64 and elements in f32, so that a run agrees
//! with one of torch to a few ulp; the CPU and CUDA give the same bits. What changes from step to
//! step lies in the device's memory: the learning rate in a [`Step`], and `scale`, `t` and whether
//! anything happens at all in the [`Verdict`] of [`grad_norm`](super::grad_norm). Source:
//! Loshchilov and Hutter, arXiv 1711.05101.

mod cpu;
mod cuda;

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::ops::check::Check;
use crate::ops::grad_norm::{Step, Verdict};
use crate::tensor::{DType, Tensor, TensorMut};

/// The settings of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment, 0 ≤ β₁ < 1.
    pub beta1: f64,
    /// Decay of the second moment, 0 ≤ β₂ < 1.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

/// A tensor inside the flat buffers.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Its elements; they start at a multiple of 4.
    pub range: Range<usize>,
    /// Factor on the learning rate.
    pub lr_scale: f64,
    /// Decoupled weight decay, per unit of the learning rate.
    pub weight_decay: f64,
}

/// All tensors of a run, cut into the chunks that a step walks, on the device where it does.
pub struct Table {
    chunks: Buffer, // bytes, [chunks, size of a Chunk]
    /// Elements that the flat buffers have at least.
    end: usize,
}

/// Elements of one tensor that are updated with the same scalars.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Chunk {
    first: u64,
    count: u64,
    lr_scale: f64,
    weight_decay: f64,
}

/// Most elements of a [`Chunk`]: 50 us of a CPU core, and still several chunks for every
/// multiprocessor of a GPU.
const CHUNK: usize = 16 * 1024;

/// Tensors start at multiples of so many elements: 16 bytes.
const ALIGNMENT: usize = 4;

impl Table {
    /// The table of `parts`, for steps on `device`. Errors: parts that overlap or do not rise, one
    /// that starts at no multiple of 4; no memory.
    pub fn new(device: Device, parts: &[Part]) -> Result<Table> {
        let error = |i: usize, what: String| {
            Error::argument("adamw::Table::new", format!("parts[{i}] {what}"))
        };
        let (mut chunks, mut end) = (Vec::new(), 0);
        for (i, Part { range, lr_scale, weight_decay }) in parts.iter().enumerate() {
            if range.start < end || range.end < range.start {
                return Err(error(i, format!("is {range:?}, expected to rise from {end} on")));
            }
            if !range.start.is_multiple_of(ALIGNMENT) {
                let message = format!("starts at {}, expected a multiple of 4", range.start);
                return Err(error(i, message));
            }
            chunks.extend(range.clone().step_by(CHUNK).map(|first| Chunk {
                first: first as u64,
                count: CHUNK.min(range.end - first) as u64,
                lr_scale: *lr_scale,
                weight_decay: *weight_decay,
            }));
            end = range.end;
        }
        let bytes: &[u8] = bytemuck::cast_slice(&chunks);
        let mut table = Buffer::on(device, DType::U8, chunks.len(), size_of::<Chunk>())?;
        table.upload(Tensor::new(bytes, chunks.len(), size_of::<Chunk>()))?;
        Ok(Table { chunks: table, end })
    }
}

/// One step of the tensors in `table`: overwrites `p`, `m`, `v` and, where there is one, `copy`, all
/// `[1, n]`, f32 and bf16, and reads `g` `[1, n]` f32. What lies between the tensors stays. `step`
/// `[1, 3]` f64 is a [`Step`], `verdict` `[1, 5]` f64 a [`Verdict`]; nothing changes where that says
/// that the gradient is not finite.
///
/// `copy` becomes `p`, rounded to nearest even. 14 FLOP per element; reads 16 and writes 12 bytes of
/// it, 14 with a copy. Errors: a shape or dtype that differs from these, a table that reaches beyond
/// `n`.
pub fn step(
    g: Tensor<'_>,
    step: Tensor<'_>,
    verdict: Tensor<'_>,
    table: &Table,
    p: TensorMut<'_>,
    m: TensorMut<'_>,
    v: TensorMut<'_>,
    copy: Option<TensorMut<'_>>,
    config: &AdamW,
) -> Result<()> {
    let check = Check::on(g.device(), "adamw::step");
    let n = g.cols();
    check.flat("g", g, DType::F32, n)?;
    check.f64("step", step, [1, Step::COLS], "1, fields of Step")?;
    check.f64("verdict", verdict, [1, Verdict::COLS], "1, fields of Verdict")?;
    for (name, tensor) in [("p", &p), ("m", &m), ("v", &v)] {
        check.flat(name, tensor.as_ref(), DType::F32, n)?;
    }
    if let Some(copy) = &copy {
        check.flat("copy", copy.as_ref(), DType::Bf16, n)?;
    }
    let (chunks, end) = (table.chunks.view(), table.end);
    check.typed("table", chunks, &[DType::U8], chunks.shape(), "chunks, bytes")?;
    if end > n {
        return Err(check.error(format!("table reaches to element {end}, expected at most {n}")));
    }
    match g.device() {
        Device::Cpu => cpu::step(g, step, verdict, table, p, m, v, copy, config),
        Device::Cuda(cuda) => cuda::step(cuda, g, step, verdict, table, p, m, v, copy, config)?,
    }
    Ok(())
}
