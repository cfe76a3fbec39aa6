//! The norm of a flat gradient, and the verdict on the step.
//!
//! ```text
//! sum = Σ g²     norm = sqrt(sum) · scale     clip = min(most / (norm + 1e-6), 1), most 0: 1
//! finite = sum and loss are finite            updates or skipped += 1
//! ```
//!
//! Squares of f32 are exact in f64 and no sum of them overflows it, so `sum` is finite if and only
//! if every element is. The order of the sum is told in `kernels/grad_norm.cu`: any number of
//! threads, and the CPU and CUDA, give the same bits. Clipping is PyTorch's.

mod cpu;
mod cuda;

use bytemuck::{Pod, Zeroable};

use crate::device::Device;
use crate::error::Result;
use crate::ops::check::Check;
use crate::tensor::{DType, Tensor, TensorMut};

/// What the host says of a step before it: one row of f64 on the device.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Step {
    /// Learning rate.
    pub lr: f64,
    /// Factor on the gradient: 1 / pairs.
    pub scale: f64,
    /// Of the step's pairs; not finite: the step is skipped.
    pub loss: f64,
}

/// What [`forward`] found, and how many steps it has seen: one row of f64 on the device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Verdict {
    /// Norm of the scaled gradient, before it is clipped.
    pub norm: f64,
    /// Factor on the gradient, clipping included; 0 where it is not finite.
    pub scale: f64,
    /// 1: the step counts; 0: it changes nothing.
    pub finite: f64,
    /// Steps that counted, this one included: AdamW's `t`.
    pub updates: f64,
    /// Steps that did not.
    pub skipped: f64,
}

/// Elements that are summed before their sum joins the total: one block's work.
const CHUNK: usize = 8 * PIECE;

/// Elements that are summed in lanes of one order: one warp's work.
const PIECE: usize = 8 * 1024;

/// Elements of the record `T`, one row of f64.
pub(crate) const fn doubles<T>() -> usize {
    size_of::<T>() / size_of::<f64>()
}

impl Step {
    /// Elements of a row.
    pub const COLS: usize = doubles::<Step>();

    /// As a row.
    pub fn view(&self) -> Tensor<'_> {
        Tensor::vector::<f64>(bytemuck::cast_slice(std::slice::from_ref(self)))
    }
}

impl Verdict {
    /// Elements of a row.
    pub const COLS: usize = doubles::<Verdict>();

    /// As a row.
    pub fn view(&self) -> Tensor<'_> {
        Tensor::vector::<f64>(bytemuck::cast_slice(std::slice::from_ref(self)))
    }

    /// As a row, to be overwritten.
    pub fn view_mut(&mut self) -> TensorMut<'_> {
        TensorMut::vector::<f64>(bytemuck::cast_slice_mut(std::slice::from_mut(self)))
    }
}

/// Elements of `partials` for a gradient of `n` elements.
pub fn partials(n: usize) -> usize {
    n.div_ceil(CHUNK)
}

/// Judges the gradient `g` `[1, n]` f32 of a step, `step` `[1, 3]` f64 (a [`Step`]).
///
/// Overwrites `partials` `[1, partials(n)]` f64; rewrites `verdict` `[1, 5]` f64 (a [`Verdict`]),
/// whose counts go on from what it held. `most` is the norm to clip to, 0 for never. 2 FLOP per
/// element, one read. Errors: a shape or dtype that differs from these.
pub fn forward(
    g: Tensor<'_>,
    step: Tensor<'_>,
    partials: TensorMut<'_>,
    verdict: TensorMut<'_>,
    most: f64,
) -> Result<()> {
    let check = Check::on(g.device(), "grad_norm::forward");
    let n = g.cols();
    check.flat("g", g, DType::F32, n)?;
    check.f64("step", step, [1, Step::COLS], "1, fields of Step")?;
    check.f64("partials", partials.as_ref(), [1, self::partials(n)], "1, partials(elements)")?;
    check.f64("verdict", verdict.as_ref(), [1, Verdict::COLS], "1, fields of Verdict")?;
    match g.device() {
        Device::Cpu => cpu::forward(g, step, partials, verdict, most),
        Device::Cuda(cuda) => cuda::forward(cuda, g, step, partials, verdict, most)?,
    }
    Ok(())
}

/// Whether no element is infinite or NaN. One read.
pub fn all_finite(g: &[f32]) -> bool {
    first_non_finite(g).is_none()
}

/// The first element that is infinite or NaN: its index names the parameter. One read.
pub fn first_non_finite(g: &[f32]) -> Option<usize> {
    cpu::first_non_finite(g)
}
