//! Patch embedding: pictures cut into square patches, each patch one row of the vision tower. The tower's
//! first layer normalisation, `ln_pre`, comes with it.
//!
//! ```text
//! forward    patches = (pixels / 255 − mean) / std, cut        x = patches · wᵀ + position
//!            y = layer_norm(x)
//! backward   dw += dxᵀ · patches     dposition += Σ_images dx
//! ```
//!
//! `S` is `image_size`, `p` is `patch_size`, `P = (S/p)²` patches of an image, row by row; the
//! columns of a patch are ordered (channel, y, x) as in `conv1.weight`. All f32 on the CPU; on CUDA bf16,
//! the values of the patches too, with f32 sums. Source: Dosovitskiy et al., arXiv 2010.11929; a
//! convolution whose stride is its size, as OpenCLIP's.

mod cpu;
mod cuda;

use crate::device::Device;
use crate::error::Result;
use crate::ops::check::Check;
use crate::ops::{Write, layer_norm, matmul, rows};
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

    fn check(&self, check: Check) -> Result<()> {
        let (size, patch) = (self.image_size, self.patch_size);
        if patch == 0 || size % patch != 0 {
            let message = format!("patch_size is {patch}, expected a divisor of image_size {size}");
            return Err(check.error(message));
        }
        Ok(())
    }
}

/// Columns that tensor cores take at a time.
const TILE: usize = 16;

/// The columns of the weight on CUDA, for patches of so many values.
pub fn padded(values: usize) -> usize {
    values.next_multiple_of(TILE)
}

/// `pixels`: u8 `[n, S·S·3]` (rows, columns, channels), on the CPU also f32 `[n, 3·S·S]` (channels, rows,
/// columns) already normalised; `weight`: `[width, 3·p·p]` f32, bf16 or f16, on CUDA `[width, K]` bf16,
/// `K =` [`padded`]`(3·p·p)`, with anything finite behind the `3·p·p`; `position`: `[P, width]` T; `norm_weight`, `norm_bias`: `[1, width]` T;
/// `patches`: on the CPU `[n·P, 3·p·p]` f32, kept for [`backward`], on CUDA not looked at; `x`: `[n·P, width]`
/// T, kept for the backward of `layer_norm`, on CUDA only where that is wanted; `y`: `[n·P, width]` T;
/// `mean`, `rstd`: `[n·P, 1]` f32, of `x`. T is f32 on the CPU, bf16 on CUDA.
///
/// Overwrites `patches`, `x`, `y`, `mean` and `rstd`. `2·n·P·width·3·p·p` FLOP in one matrix product and 8 per
/// element of `y`; the CPU passes twice over `patches` and three times over `x`, CUDA reads pixels and writes
/// `y` once. Errors: a shape or dtype that differs, a patch size that does not divide the image size; on
/// CUDA, a width that is not a multiple of 16, patches too large for a block.
pub fn forward(
    pixels: Tensor<'_>,
    weight: Tensor<'_>,
    position: Tensor<'_>,
    norm_weight: Tensor<'_>,
    norm_bias: Tensor<'_>,
    mut patches: TensorMut<'_>,
    x: Option<TensorMut<'_>>,
    y: TensorMut<'_>,
    mean: TensorMut<'_>,
    rstd: TensorMut<'_>,
    spec: &Patches,
    eps: f32,
) -> Result<()> {
    let device = pixels.device();
    let check = Check::on(device, "patch_embed::forward");
    spec.check(check)?;
    let (images, width) = (pixels.rows(), weight.rows());
    let (count, values) = (spec.count(), spec.values());
    let (rows, t) = (images * count, of(device));
    pictures(check, pixels, spec)?;
    match device {
        Device::Cpu => check.weight("weight", weight, [width, values], "width, 3 · p · p")?,
        Device::Cuda(_) => {
            check.packed("weight", weight, t, [width, padded(spec.values())], "width, K")?;
            tiled(check, "weight", "rows", width)?;
        }
    }
    check.packed("position", position, t, [count, width], "patches, width")?;
    check.packed("norm_weight", norm_weight, t, [1, width], "1, width")?;
    check.packed("norm_bias", norm_bias, t, [1, width], "1, width")?;
    if let Some(x) = &x {
        check.packed("x", x.as_ref(), t, [rows, width], "n · P, width")?;
    }
    check.packed("y", y.as_ref(), t, [rows, width], "n · P, width")?;
    check.f32("mean", mean.as_ref(), [rows, 1], "n · P, 1")?;
    check.f32("rstd", rstd.as_ref(), [rows, 1], "n · P, 1")?;
    match device {
        Device::Cpu => {
            check.f32("patches", patches.as_ref(), [rows, values], "n · P, 3 · p · p")?;
            let Some(mut x) = x else {
                return Err(check.error("x is missing, expected [n · P, width] on the CPU".into()));
            };
            cpu::cut(pixels, patches.reborrow(), spec);
            matmul::nt(patches.as_ref(), weight, None, x.reborrow(), 1.0, Write::Overwrite)?;
            rows::add_cycled(position, x.reborrow())?;
            layer_norm::forward(x.as_ref(), norm_weight, norm_bias, y, mean, rstd, eps)
        }
        Device::Cuda(cuda) => {
            let (needed, room) = (cuda::shared(spec), cuda.gpu().shared as usize);
            if needed > room {
                return Err(check.error(format!(
                    "patch_size is {}: {needed} bytes of shared memory for 32 patches, and {device} \
                     has {room}; pass --device cpu",
                    spec.patch_size
                )));
            }
            cuda::forward(
                cuda,
                pixels,
                weight,
                position,
                norm_weight,
                norm_bias,
                x,
                y,
                mean,
                rstd,
                spec,
                eps,
            )
        }
    }
}

/// `source`: what the patches come from, on the CPU `patches` as [`forward`] left them, on CUDA its
/// `pixels`; `dx`: `[n·P, width]` T, what `layer_norm::backward` makes of the gradient of `y`; `dweight`:
/// `[width, 3·p·p]` f32; `dposition`: `[P, width]` f32 or T. Adds to those that are there.
///
/// `2·n·P·width·3·p·p` FLOP for `dweight`, `n·P·width` for `dposition`. Errors: a shape or dtype
/// that differs; on CUDA, a width that is not a multiple of 16.
pub fn backward(
    source: Tensor<'_>,
    dx: Tensor<'_>,
    dweight: Option<TensorMut<'_>>,
    dposition: Option<TensorMut<'_>>,
    spec: &Patches,
) -> Result<()> {
    let device = source.device();
    let check = Check::on(device, "patch_embed::backward");
    spec.check(check)?;
    let (values, width) = (spec.values(), dx.cols());
    let rows = match device {
        Device::Cpu => {
            let rows = source.rows();
            check.f32("source", source, [rows, values], "n · P, 3 · p · p")?;
            rows
        }
        Device::Cuda(_) => {
            pictures(check, source, spec)?;
            tiled(check, "dx", "columns", width)?;
            source.rows() * spec.count()
        }
    };
    check.packed("dx", dx, of(device), [rows, width], "n · P, width")?;
    if let Some(dweight) = dweight {
        check.f32("dweight", dweight.as_ref(), [width, values], "width, 3 · p · p")?;
        match device {
            Device::Cpu => matmul::tn(dx, source, dweight, 1.0, Write::Accumulate)?,
            Device::Cuda(cuda) => cuda::backward_weight(cuda, source, dx, dweight, spec)?,
        }
    }
    if let Some(dposition) = dposition {
        rows::add_cycled_backward(dx, dposition)?;
    }
    Ok(())
}

/// T.
fn of(device: Device) -> &'static [DType] {
    match device {
        Device::Cpu => &[DType::F32],
        Device::Cuda(_) => &[DType::Bf16],
    }
}

fn pictures(check: Check, pixels: Tensor<'_>, spec: &Patches) -> Result<()> {
    let types: &[DType] = match pixels.device() {
        Device::Cpu => &[DType::U8, DType::F32],
        Device::Cuda(_) => &[DType::U8],
    };
    let shape = [pixels.rows(), 3 * spec.image_size * spec.image_size];
    check.typed("pixels", pixels, types, shape, "images, 3 · S · S")
}

/// Tensor cores take whole tiles of the width.
fn tiled(check: Check, name: &str, what: &str, width: usize) -> Result<()> {
    if width.is_multiple_of(TILE) {
        return Ok(());
    }
    Err(check.error(format!("{name} has {width} {what}, expected a multiple of {TILE}")))
}
