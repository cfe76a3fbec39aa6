//! A LayerNorm of the vision part: weight and bias, eps 1e-6.

use std::ops::Range;

use crate::device::Buffer;
use crate::error::Result;
use crate::model::buffers::Buffers;
use crate::model::config::VISION_EPSILON;
use crate::model::params::{Gradients, Loader, Weight};
use crate::ops::{Write, layer_norm};
use crate::tensor::{Tensor, TensorMut};

/// Weight and bias, `[1, width]` each.
pub struct Norm {
    weight: Weight,
    bias: Weight,
}

/// Mean and 1/σ of each row, `[rows, 1]`, kept for backward.
pub struct Stats {
    mean: Buffer,
    rstd: Buffer,
}

impl Stats {
    /// Room for `rows` rows.
    pub(crate) fn new(rows: usize, mut buffers: Buffers<'_>) -> Self {
        Stats { mean: buffers.f32("mean", rows, 1), rstd: buffers.f32("rstd", rows, 1) }
    }

    /// Mean and 1/σ of some rows.
    pub(crate) fn slice_rows(&mut self, range: Range<usize>) -> [TensorMut<'_>; 2] {
        [&mut self.mean, &mut self.rstd].map(|stat| stat.view_mut().slice_rows(range.clone()))
    }
}

impl Norm {
    /// Loads `name.weight` and `name.bias`.
    pub fn load(loader: &mut Loader, name: &str) -> Self {
        let weight = loader.vector(&format!("{name}.weight"));
        Norm { weight, bias: loader.vector(&format!("{name}.bias")) }
    }

    /// Weight and bias, for an op that normalises on its way.
    pub(crate) fn parameters<'a>(&'a self, values: &'a [f32]) -> [Tensor<'a>; 2] {
        [self.weight.view(values), self.bias.view(values)]
    }

    /// `y = layer_norm(x)`; x, y `[rows, width]`.
    pub fn forward(
        &self,
        values: &[f32],
        x: Tensor,
        y: TensorMut,
        stats: &mut Stats,
    ) -> Result<()> {
        let (mean, rstd) = (stats.mean.head_mut(x.rows()), stats.rstd.head_mut(x.rows()));
        layer_norm::forward(
            x,
            self.weight.view(values),
            self.bias.view(values),
            y,
            mean,
            rstd,
            VISION_EPSILON,
        )
    }

    /// `dx (+)=` the gradient of x, and those of weight and bias if trained.
    pub fn backward(
        &self,
        values: &[f32],
        gradients: &mut Gradients,
        x: Tensor,
        stats: &Stats,
        dy: Tensor,
        dx: TensorMut,
        write: Write,
    ) -> Result<()> {
        let (mean, rstd) = (stats.mean.head(x.rows()), stats.rstd.head(x.rows()));
        let (dw, db, partials) = gradients.of_norm(&self.weight, &self.bias);
        let weight = self.weight.view(values);
        layer_norm::backward(x, weight, mean, rstd, dy, dx, dw, db, partials, write)
    }
}
