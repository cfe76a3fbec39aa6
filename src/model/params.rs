//! Weights as the network reads them, and the flat buffers of what is trained.
//!
//! A frozen matrix stays in its file, mapped, in the file's dtype. A frozen vector is widened to
//! f32 once. A trained tensor is a range of ONE flat f32 buffer; gradients and optimizer moments
//! are buffers of the same layout, so that clipping, AdamW, checkpoints and a later all-reduce each
//! see one vector.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::model::adapter::Target;
use crate::model::config::ModelConfig;
use crate::model::names::{self, Part};
use crate::model::weights::{MappedTensor, Weights};
use crate::tensor::{Tensor, TensorMut};

/// Which tensors a run trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trainable {
    /// Nothing: scoring and generation.
    None,
    /// The adapter's A and B.
    Lora,
    /// Decoder, embeddings, head and resampler; the vision tower stays (the original's `fix_vit`).
    Full,
    /// Everything, vision tower included.
    All,
}

impl Trainable {
    /// Whether this base tensor is trained.
    pub fn covers(self, name: &str) -> bool {
        match self {
            Trainable::None | Trainable::Lora => false,
            Trainable::Full => names::part(name) != Part::Vision,
            Trainable::All => true,
        }
    }
}

/// One trained tensor inside the flat buffers.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamInfo {
    /// Name in the checkpoint or adapter.
    pub name: String,
    /// Rows of the 2-D view.
    pub rows: usize,
    /// Columns of the 2-D view.
    pub cols: usize,
    /// First element in the flat buffers.
    pub offset: usize,
    /// Whether AdamW decays it: all but LayerNorm parameters and biases.
    pub decay: bool,
}

impl ParamInfo {
    /// Its elements in the flat buffers.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.rows * self.cols
    }
}

/// Where each trained tensor lies in the flat buffers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    /// The tensors, by rising offset.
    pub tensors: Vec<ParamInfo>,
    len: usize,
}

/// Tensors start at multiples of this many elements: one cache line.
const ALIGNMENT: usize = 16;

impl Layout {
    /// The layout of a model that is not opened: base tensors in the order of the checkpoint, or the
    /// pairs of `adapter`.
    pub fn planned(
        config: &ModelConfig,
        trainable: Trainable,
        adapter: &[Target],
        r: usize,
    ) -> Layout {
        let mut layout = Layout::default();
        for spec in names::tensors(config).iter().filter(|spec| trainable.covers(&spec.name)) {
            let [rows, cols] = names::matrix_shape(&spec.shape);
            layout.push(&spec.name, rows, cols);
        }
        if trainable == Trainable::Lora {
            for target in adapter {
                layout.push(&target.name_a(), r, target.cols);
                layout.push(&target.name_b(), target.rows, r);
            }
        }
        layout
    }

    /// Elements of a flat buffer, padding between tensors included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Number of trained parameters, without padding.
    pub fn parameters(&self) -> usize {
        self.tensors.iter().map(|t| t.rows * t.cols).sum()
    }

    fn push(&mut self, name: &str, rows: usize, cols: usize) -> usize {
        let offset = self.len;
        let decay = names::decays(name);
        self.tensors.push(ParamInfo { name: name.to_string(), rows, cols, offset, decay });
        self.len = (offset + rows * cols).next_multiple_of(ALIGNMENT);
        offset
    }
}

/// A tensor of the network, wherever it lives.
pub struct Weight {
    rows: usize,
    cols: usize,
    source: Source,
}

enum Source {
    Mapped(MappedTensor),
    Owned(Vec<f32>),
    Trained(usize),
}

impl Weight {
    /// The 2-D view; `values` is the flat buffer of trained values.
    pub fn view<'a>(&'a self, values: &'a [f32]) -> Tensor<'a> {
        match &self.source {
            Source::Mapped(tensor) => tensor.tensor(),
            Source::Owned(data) => Tensor::new(data, self.rows, self.cols),
            Source::Trained(offset) => {
                Tensor::new(&values[*offset..offset + self.rows * self.cols], self.rows, self.cols)
            }
        }
    }

    /// Rows of the view.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the view.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether gradients are wanted.
    pub fn is_trained(&self) -> bool {
        matches!(self.source, Source::Trained(_))
    }
}

/// Takes tensors out of a checkpoint or adapter and decides where each will live.
pub struct Loader<'a> {
    weights: &'a Weights,
    trainable: Trainable,
    layout: Layout,
    values: Vec<f32>,
}

impl<'a> Loader<'a> {
    /// A loader over `weights`.
    pub fn new(weights: &'a Weights, trainable: Trainable) -> Self {
        Loader { weights, trainable, layout: Layout::default(), values: Vec::new() }
    }

    /// A base matrix: mapped when frozen.
    pub fn matrix(&mut self, name: &str) -> Weight {
        let tensor = self.weights.get(name);
        let [rows, cols] = tensor.tensor().shape();
        if self.trainable.covers(name) {
            return self.train(name, [rows, cols], &tensor.to_f32());
        }
        Weight { rows, cols, source: Source::Mapped(tensor.clone()) }
    }

    /// A base vector or small table that element-wise ops read: f32 when frozen.
    pub fn vector(&mut self, name: &str) -> Weight {
        let tensor = self.weights.get(name);
        let [rows, cols] = tensor.tensor().shape();
        let values = tensor.to_f32();
        if self.trainable.covers(name) {
            return self.train(name, [rows, cols], &values);
        }
        Weight { rows, cols, source: Source::Owned(values) }
    }

    /// A tensor of the adapter.
    pub fn adapter(&mut self, name: &str, shape: [usize; 2], values: &[f32]) -> Weight {
        if self.trainable == Trainable::Lora {
            return self.train(name, shape, values);
        }
        let [rows, cols] = shape;
        Weight { rows, cols, source: Source::Owned(values.to_vec()) }
    }

    fn train(&mut self, name: &str, [rows, cols]: [usize; 2], values: &[f32]) -> Weight {
        let offset = self.layout.push(name, rows, cols);
        self.values.resize(self.layout.len(), 0.0);
        self.values[offset..offset + rows * cols].copy_from_slice(values);
        Weight { rows, cols, source: Source::Trained(offset) }
    }

    /// The flat layout and the initial values of what is trained.
    pub fn finish(self) -> (Layout, Vec<f32>) {
        (self.layout, self.values)
    }
}

/// The flat gradient buffer, seen tensor by tensor. Frozen tensors have none.
pub struct Gradients<'a> {
    flat: &'a mut [f32],
    partials: TensorMut<'a>,
}

impl<'a> Gradients<'a> {
    /// Views of `flat`, which has [`Layout::len`] elements; `partials` is scratch for what kernels sum
    /// over rows, on the CPU empty.
    pub fn new(layout: &Layout, flat: &'a mut [f32], partials: TensorMut<'a>) -> Result<Self> {
        if flat.len() != layout.len() {
            let message =
                format!("gradients has {} elements, expected {}", flat.len(), layout.len());
            return Err(Error::argument("model::backward", message));
        }
        Ok(Gradients { flat, partials })
    }

    /// The gradient of `weight`, if it is trained.
    pub fn of(&mut self, weight: &Weight) -> Option<TensorMut<'_>> {
        self.of_sum(weight).0
    }

    /// The gradient of a vector, if it is trained, and scratch for the rows that it is the sum of.
    pub fn of_sum(&mut self, weight: &Weight) -> (Option<TensorMut<'_>>, TensorMut<'_>) {
        let partials = self.partials.reborrow();
        let Source::Trained(offset) = weight.source else { return (None, partials) };
        let (rows, cols) = (weight.rows, weight.cols);
        let gradient = &mut self.flat[offset..offset + rows * cols];
        (Some(TensorMut::new(gradient, rows, cols)), partials)
    }

    /// The gradients of a norm's weight and of the bias that follows it in the layout, if they are
    /// trained, and scratch for the rows that they are sums of.
    pub fn of_norm(
        &mut self,
        weight: &Weight,
        bias: &Weight,
    ) -> (Option<TensorMut<'_>>, Option<TensorMut<'_>>, TensorMut<'_>) {
        let partials = self.partials.reborrow();
        let (Source::Trained(first), Source::Trained(second)) = (&weight.source, &bias.source)
        else {
            return (None, None, partials);
        };
        let (head, tail) = self.flat.split_at_mut(*second);
        let head = &mut head[*first..first + weight.rows * weight.cols];
        let tail = &mut tail[..bias.rows * bias.cols];
        (
            Some(TensorMut::new(head, weight.rows, weight.cols)),
            Some(TensorMut::new(tail, bias.rows, bias.cols)),
            partials,
        )
    }
}
