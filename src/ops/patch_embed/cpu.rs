//! Cutting pictures on the CPU: a task is some patches, a patch some runs of `patch_size` pixels.

use super::Patches;
use crate::device::cpu::par_rows;
use crate::ops::rows_per_chunk;
use crate::tensor::{DType, Tensor, TensorMut};

pub(super) fn cut(pixels: Tensor<'_>, patches: TensorMut<'_>, spec: &Patches) {
    let normalised = std::array::from_fn(|c| {
        std::array::from_fn(|v| (v as f32 / 255.0 - spec.mean[c]) / spec.std[c])
    });
    par_rows([patches], rows_per_chunk(spec.values()), |first, [mut patches]| {
        for i in 0..patches.rows() {
            let (image, patch) = ((first + i) / spec.count(), (first + i) % spec.count());
            let out = patches.row::<f32>(i);
            match pixels.dtype() {
                DType::U8 => from_bytes(pixels.row::<u8>(image), out, patch, spec, &normalised),
                _ => from_floats(pixels.row::<f32>(image), out, patch, spec),
            }
        }
    });
}

/// Bytes, channels innermost; `normalised[channel][byte]` is the value of a byte.
fn from_bytes(
    image: &[u8],
    out: &mut [f32],
    patch: usize,
    spec: &Patches,
    normalised: &[[f32; 256]; 3],
) {
    for_each_run(out, patch, spec, |channel, at, run| {
        let table = &normalised[channel];
        let bytes = image[3 * at..][..3 * run.len()].as_chunks::<3>().0;
        for (value, pixel) in run.iter_mut().zip(bytes) {
            *value = table[usize::from(pixel[channel])];
        }
    });
}

/// Normalised floats, one plane per channel.
fn from_floats(image: &[f32], out: &mut [f32], patch: usize, spec: &Patches) {
    let plane = spec.image_size * spec.image_size;
    for_each_run(out, patch, spec, |channel, at, run| {
        run.copy_from_slice(&image[channel * plane + at..][..run.len()]);
    });
}

/// Calls `fill(channel, pixel, run)` for every run of a patch: `pixel` is where it starts in
/// the picture, `run` where it goes.
fn for_each_run(
    out: &mut [f32],
    patch: usize,
    spec: &Patches,
    mut fill: impl FnMut(usize, usize, &mut [f32]),
) {
    let (p, grid) = (spec.patch_size, spec.grid());
    let corner = patch / grid * p * spec.image_size + patch % grid * p;
    for (k, run) in out.chunks_exact_mut(p).enumerate() {
        fill(k / p, corner + k % p * spec.image_size, run);
    }
}
