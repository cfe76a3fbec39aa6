//! A linear map of the network, `y = x Wᵀ + b`, with an optional LoRA pair beside it:
//! `y += scale · (x Aᵀ) Bᵀ` (arXiv 2106.09685).
//!
//! The input of an adapted map is stored with slack columns behind it, `[x | u]`, and `u = x Aᵀ` is
//! written there: backward needs it, and a device whose weight holds `[W | scale·B]` turns both
//! products into one GEMM of `in + r` columns. Here W stays mapped, so the product with B is a
//! second one.

use std::ops::Range;

use crate::error::Result;
use crate::model::adapter::Adapter;
use crate::model::params::{Gradients, Loader, Weight};
use crate::ops::{Write, column_sums, matmul};
use crate::tensor::{Tensor, TensorMut};

/// Whether the adapter takes part: the policy is `On`, the reference model is `Off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lora {
    /// Base and adapter.
    On,
    /// The base alone.
    Off,
}

/// W `[out, in]`, b `[1, out]`, and the adapter's pair.
pub struct Linear {
    weight: Weight,
    bias: Option<Weight>,
    lora: Option<Pair>,
}

/// A `[r, in]`, B `[out, r]`; u lies in columns `slack` of the input's buffer.
struct Pair {
    a: Weight,
    b: Weight,
    scale: f32,
    slack: Range<usize>,
}

/// Where a linear map's tensors are found.
pub enum Bias {
    /// `name.weight` alone.
    Absent,
    /// `name.weight` and `name.bias`.
    Present,
}

impl Linear {
    /// Loads `name.weight` and, if present, `name.bias`.
    pub fn load(loader: &mut Loader, name: &str, bias: Bias) -> Self {
        let weight = loader.matrix(&format!("{name}.weight"));
        let bias = match bias {
            Bias::Absent => None,
            Bias::Present => Some(loader.vector(&format!("{name}.bias"))),
        };
        Linear { weight, bias, lora: None }
    }

    /// Attaches the adapter's pair for `name`, if it has one; u goes to the `slot`-th group of r
    /// slack columns.
    pub fn adapt(
        mut self,
        loader: &mut Loader,
        adapter: Option<&Adapter>,
        name: &str,
        slot: usize,
    ) -> Self {
        let Some(adapter) = adapter else { return self };
        let Some(pair) = adapter.pairs.iter().find(|pair| pair.target.module == name) else {
            return self;
        };
        let (r, inputs, outputs) = (adapter.config.r, self.weight.cols(), self.weight.rows());
        let a = loader.adapter(&pair.target.name_a(), [r, inputs], &pair.a);
        let b = loader.adapter(&pair.target.name_b(), [outputs, r], &pair.b);
        let start = inputs + slot * r;
        self.lora = Some(Pair { a, b, scale: adapter.config.scale(), slack: start..start + r });
        self
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.weight.cols()
    }

    /// `y (+)= x Wᵀ + b`; x `[rows, in]`, y `[rows, out]`.
    pub fn forward(&self, values: &[f32], x: Tensor, y: TensorMut, write: Write) -> Result<()> {
        let bias = self.bias.as_ref().map(|b| b.view(values));
        matmul::nt(x, self.weight.view(values), bias, y, 1.0, write)
    }

    /// [`forward`](Self::forward) plus, with the adapter on, `scale · u Bᵀ`; x `[rows, in + slack]`
    /// gets `u = x Aᵀ` in its slack.
    pub fn forward_adapted(
        &self,
        values: &[f32],
        x: TensorMut,
        mut y: TensorMut,
        write: Write,
        lora: Lora,
    ) -> Result<()> {
        let inputs = self.inputs();
        self.forward(values, x.as_ref().slice_cols(0..inputs), y.reborrow(), write)?;
        let (Some(pair), Lora::On) = (&self.lora, lora) else { return Ok(()) };
        let (x, slack) = x.split_cols(inputs);
        let mut u = slack.slice_cols(pair.slack.start - inputs..pair.slack.end - inputs);
        matmul::nt(x.as_ref(), pair.a.view(values), None, u.reborrow(), 1.0, Write::Overwrite)?;
        matmul::nt(u.as_ref(), pair.b.view(values), None, y, pair.scale, Write::Accumulate)
    }

    /// Gradients of weight, bias, A and B as far as they are trained, and `dx (+)=` the gradient of
    /// the input if wanted. x `[rows, in + slack]` as forward left it; `du` is scratch, `[rows, r]`
    /// or wider.
    pub fn backward(
        &self,
        values: &[f32],
        gradients: &mut Gradients,
        x: Tensor,
        dy: Tensor,
        dx: Option<(TensorMut, Write)>,
        du: TensorMut,
        lora: Lora,
    ) -> Result<()> {
        if let Some((Some(db), partials)) = self.bias.as_ref().map(|bias| gradients.of_sum(bias)) {
            column_sums::add(dy, db, partials)?;
        }
        self.backward_products(values, gradients, x, dy, dx, du, lora)
    }

    /// The gradient of the bias where it is trained, to be added to.
    pub fn bias_gradient<'g>(&self, gradients: &'g mut Gradients) -> Option<TensorMut<'g>> {
        self.bias.as_ref().and_then(|bias| gradients.of(bias))
    }

    /// [`backward`](Self::backward) without the bias, whose gradient came out of the pass that gave dy.
    pub fn backward_products(
        &self,
        values: &[f32],
        gradients: &mut Gradients,
        x: Tensor,
        dy: Tensor,
        dx: Option<(TensorMut, Write)>,
        du: TensorMut,
        lora: Lora,
    ) -> Result<()> {
        let inputs = self.inputs();
        let columns = x.slice_cols(0..inputs);
        if let Some(dw) = gradients.of(&self.weight) {
            matmul::tn(dy, columns, dw, 1.0, Write::Accumulate)?;
        }
        let adapted = self.lora.as_ref().filter(|_| lora == Lora::On);
        let mut du = du.slice_cols(0..adapted.map_or(0, |pair| pair.a.rows()));
        if let Some(pair) = adapted {
            matmul::nn(dy, pair.b.view(values), du.reborrow(), pair.scale, Write::Overwrite)?;
            if let Some(da) = gradients.of(&pair.a) {
                matmul::tn(du.as_ref(), columns, da, 1.0, Write::Accumulate)?;
            }
            if let Some(db) = gradients.of(&pair.b) {
                let u = x.slice_cols(pair.slack.clone());
                matmul::tn(dy, u, db, pair.scale, Write::Accumulate)?;
            }
        }
        let Some((mut dx, write)) = dx else { return Ok(()) };
        matmul::nn(dy, self.weight.view(values), dx.reborrow(), 1.0, write)?;
        let Some(pair) = adapted else { return Ok(()) };
        matmul::nn(du.as_ref(), pair.a.view(values), dx, 1.0, Write::Accumulate)
    }
}
