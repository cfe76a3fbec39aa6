//! AdamW: Adam with the weight decay on the parameter itself.
//!
//! ```text
//! g ← g · grad_scale     p ← p · (1 − lr · wd)
//! m ← m + (1 − β₁)(g − m)     v ← β₂ · v + (1 − β₂) · g²
//! p ← p − lr / (1 − β₁ᵗ) · m / (sqrt(v) / sqrt(1 − β₂ᵗ) + eps)
//! ```
//!
//! In PyTorch's order of operations, scalars in f64 and elements in f32, so that a run agrees
//! with one of torch to a few ulp. Source: Loshchilov and Hutter, arXiv 1711.05101.

mod cpu;

use crate::error::{Error, Result};

/// The scalars of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment, 0 ≤ β₁ < 1.
    pub beta1: f64,
    /// Decay of the second moment, 0 ≤ β₂ < 1.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, per unit of `lr`.
    pub weight_decay: f64,
    /// `t`, counted from 1.
    pub step: u64,
}

/// One step of `n` parameters: overwrites `p`, `m` and `v` (`[n]` each), reads `g` (`[n]`).
///
/// 14 FLOP per element; reads 16 and writes 12 bytes of it. The gradient norm's clip factor and
/// 1 / pairs come in as `grad_scale`. Errors: slices of unequal length, `step` 0.
pub fn step(
    p: &mut [f32],
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    grad_scale: f32,
    config: &AdamW,
) -> Result<()> {
    const OP: &str = "adamw::step";
    for (name, len) in [("g", g.len()), ("m", m.len()), ("v", v.len())] {
        if len != p.len() {
            let message = format!("{name} has {len} elements, expected {} like p", p.len());
            return Err(Error::argument(OP, message));
        }
    }
    if config.step == 0 {
        return Err(Error::argument(OP, "step is 0, expected 1 or more; steps count from 1"));
    }
    cpu::step(p, g, m, v, grad_scale, config);
    Ok(())
}
