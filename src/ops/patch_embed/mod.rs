//! Patch embedding: pictures cut into square patches, each patch one row of the vision tower.
//!
//! ```text
//! forward    patches = (pixels / 255 − mean) / std, cut        y = patches · wᵀ + position
//! backward   dw += dyᵀ · patches     dposition += Σ_images dy
//! ```
//!
//! `S` is `image_size`, `p` is `patch_size`, `P = (S/p)²` patches of an image, row by row; the
//! columns of a patch are ordered (channel, y, x) as in `conv1.weight`. Source: Dosovitskiy et
//! al., arXiv 2010.11929; a convolution whose stride is its size, as OpenCLIP's.

mod cpu;

use crate::error::Result;
use crate::ops::check::Check;
use crate::ops::{Write, matmul, rows};
use crate::tensor::{DType, Tensor, TensorMut};

/// How pictures become patches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patches {
    /// `S`: side of a picture, in pixels.
    pub image_size: usize,
    /// `p`: side of a patch, in pixels; divides `image_size`.
    pub patch_size: usize,
    /// Mean of each channel, of values in 0..1.
    pub mean: [f32; 3],
    /// Standard deviation of each channel, of values in 0..1.
    pub std: [f32; 3],
}

impl Patches {
    /// `S / p`: patches along a side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// `P`: patches of a picture.
    pub fn count(&self) -> usize {
        self.grid() * self.grid()
    }

    /// `3·p·p`: values of a patch.
    pub fn values(&self) -> usize {
        3 * self.patch_size * self.patch_size
    }
}

/// `pixels`: u8 `[n, S·S·3]` (rows, columns, channels), or f32 `[n, 3·S·S]` (channels, rows,
/// columns) already normalised; `weight`: `[width, 3·p·p]` f32, bf16 or f16; `position`:
/// `[P, width]`; `patches`: `[n·P, 3·p·p]`, kept for [`backward`]; `y`: `[n·P, width]`.
///
/// Overwrites `patches` and `y`, f32 both. `2·n·P·width·3·p·p` FLOP in one matrix product, two
/// passes over `patches`. Errors: a shape or dtype that differs, a patch size that does not
/// divide the image size.
pub fn forward(
    pixels: Tensor<'_>,
    weight: Tensor<'_>,
    position: Tensor<'_>,
    mut patches: TensorMut<'_>,
    mut y: TensorMut<'_>,
    spec: &Patches,
) -> Result<()> {
    let check = Check::on_cpu("patch_embed::forward");
    let (size, patch) = (spec.image_size, spec.patch_size);
    if patch == 0 || size % patch != 0 {
        let message = format!("patch_size is {patch}, expected a divisor of image_size {size}");
        return Err(check.error(message));
    }
    let (images, width) = (pixels.rows(), weight.rows());
    let (count, values) = (spec.count(), spec.values());
    let types = [DType::U8, DType::F32];
    check.typed("pixels", pixels, &types, [images, 3 * size * size], "images, 3 · S · S")?;
    check.weight("weight", weight, [width, values], "width, 3 · p · p")?;
    check.f32("position", position, [count, width], "patches, width")?;
    check.f32("patches", patches.as_ref(), [images * count, values], "n · P, 3 · p · p")?;
    check.f32("y", y.as_ref(), [images * count, width], "n · P, width")?;
    cpu::cut(pixels, patches.reborrow(), spec);
    matmul::nt(patches.as_ref(), weight, None, y.reborrow(), 1.0, Write::Overwrite)?;
    rows::add_cycled(position, y)
}

/// `patches`: `[n·P, 3·p·p]` as [`forward`] left them; `dy`: `[n·P, width]`; `dweight`: `[width,
/// 3·p·p]`; `dposition`: `[P, width]`. All f32; adds to those that are there.
///
/// `2·n·P·width·3·p·p` FLOP for `dweight`, `n·P·width` for `dposition`. Errors: a shape or dtype
/// that differs.
pub fn backward(
    patches: Tensor<'_>,
    dy: Tensor<'_>,
    dweight: Option<TensorMut<'_>>,
    dposition: Option<TensorMut<'_>>,
) -> Result<()> {
    let check = Check::on_cpu("patch_embed::backward");
    let ([rows, values], width) = (patches.shape(), dy.cols());
    check.f32("patches", patches, [rows, values], "n · P, 3 · p · p")?;
    check.f32("dy", dy, [rows, width], "n · P, width")?;
    if let Some(dweight) = dweight {
        check.f32("dweight", dweight.as_ref(), [width, values], "width, 3 · p · p")?;
        matmul::tn(dy, patches, dweight, 1.0, Write::Accumulate)?;
    }
    if let Some(dposition) = dposition {
        rows::add_cycled_backward(dy, dposition)?;
    }
    Ok(())
}
