//! Rows of patch_embed: patches of Qwen-VL-Chat's pictures, to the width of its tower.

use half::bf16;

use super::{BF16, On, Row, Run, prepared, value};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::ops::patch_embed::{self, Patches, padded};
use crate::tensor::{DType, Tensor, TensorMut};

const EPS: f32 = 1e-6;
const PATCH: usize = 14;
const VALUES: usize = 3 * PATCH * PATCH;

pub fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "patch_embed forward",
            bytes: forward_bytes,
            new: |on, shape| forward(on, shape, false),
            ..USUAL
        },
        Row {
            name: "patch_embed forward + x",
            bytes: |[rows, width], t| forward_bytes([rows, width], t) + rows * width * t.size(),
            new: |on, shape| forward(on, shape, true),
            ..USUAL
        },
        Row {
            name: "patch_embed backward weight",
            // the gradient is added to
            bytes: |[rows, width], t| rows * VALUES + rows * width * t.size() + 8 * width * VALUES,
            flop: |[rows, width]| 2 * rows * width * VALUES,
            new: backward,
            ..USUAL
        },
    ]
}

/// Patches of a picture and of eight; counted is a picture of half the side.
const USUAL: Row = Row {
    dtypes: BF16,
    shapes: &[[1024, 1664], [8192, 1664]],
    counted: &[[256, 1664]],
    flop: |[rows, width]| 2 * rows * width * VALUES + 8 * rows * width,
    macs: |[rows, width]| rows * width * VALUES,
    ..Row::USUAL
};

/// Pixels, weight, a position for each patch of a picture, two rows of the norm, y, mean and rstd.
fn forward_bytes([rows, width]: [usize; 2], t: DType) -> usize {
    let spec = spec_of(rows);
    rows * VALUES + (padded(VALUES) + spec.count() + 2 + rows) * width * t.size() + 8 * rows
}

fn spec_of(rows: usize) -> Patches {
    let grid = if rows.is_multiple_of(1024) { 32 } else { 16 };
    let (mean, std) = ([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]);
    Patches { image_size: grid * PATCH, patch_size: PATCH, mean, std }
}

fn pixels(on: On, rows: usize) -> Result<Buffer> {
    let spec = spec_of(rows);
    let (images, size) = (rows / spec.count(), spec.count() * VALUES);
    let bytes: Vec<u8> = (0..images * size).map(|i| (127.5 * (value(i, 1) + 1.0)) as u8).collect();
    let mut buffer = Buffer::on(on.device, DType::U8, images, size)?;
    buffer.upload(Tensor::new(&bytes, images, size))?;
    Ok(buffer)
}

/// In -1..1; on a GPU with some columns behind.
fn weight(on: On, width: usize) -> Result<Buffer> {
    let values = (0..width * VALUES).map(|i| bf16::from_f32(value(i, 2))).collect::<Vec<_>>();
    let cols = if on.device == Device::Cpu { VALUES } else { padded(VALUES) };
    let mut weight = vec![bf16::ZERO; width * cols];
    for (to, from) in weight.chunks_mut(cols).zip(values.chunks(VALUES)) {
        to[..VALUES].copy_from_slice(from);
    }
    let mut buffer = Buffer::on(on.device, DType::Bf16, width, cols)?;
    buffer.upload(Tensor::new(&weight, width, cols))?;
    Ok(buffer)
}

fn forward(on: On, [rows, width]: [usize; 2], keep: bool) -> Result<Box<dyn Run>> {
    let (spec, is_cpu) = (spec_of(rows), on.device == Device::Cpu);
    let patches = on.f32_output(if is_cpu { rows } else { 0 }, VALUES)?;
    let x = on.output(if is_cpu || keep { rows } else { 0 }, width)?;
    let y = on.output(rows, width)?;
    let buffers = [
        pixels(on, rows)?,
        weight(on, width)?,
        on.input(spec.count(), width, 3)?,
        on.input(1, width, 4)?,
        on.input(1, width, 5)?,
        patches,
        on.f32_output(rows, 1)?,
        on.f32_output(rows, 1)?,
        x,
        y,
    ];
    let outputs = if keep { 4 } else { 3 };
    prepared(buffers, outputs, |buffers| {
        let [pixels, weight, position, norm_weight, norm_bias, patches, mean, rstd, x, y] = buffers;
        let (spec, has_x) = (spec_of(y.rows()), x.rows() > 0);
        patch_embed::forward(
            pixels.view(),
            weight.view(),
            position.view(),
            norm_weight.view(),
            norm_bias.view(),
            patches.view_mut(),
            has_x.then(|| x.view_mut()),
            y.view_mut(),
            mean.view_mut(),
            rstd.view_mut(),
            &spec,
            EPS,
        )
    })
}

fn backward(on: On, [rows, width]: [usize; 2]) -> Result<Box<dyn Run>> {
    let source = match on.device {
        Device::Cpu => patches(on, rows)?,
        Device::Cuda(_) => pixels(on, rows)?,
    };
    let buffers = [source, on.input(rows, width, 4)?, on.f32_output(width, VALUES)?];
    prepared(buffers, 1, |[source, dx, dweight]| {
        let (spec, dweight) = (spec_of(dx.rows()), Some(dweight.view_mut()));
        patch_embed::backward(source.view(), dx.view(), dweight, None, &spec)
    })
}

/// As forward leaves them on the CPU, here of a tower one column wide.
fn patches(on: On, rows: usize) -> Result<Buffer> {
    let spec = spec_of(rows);
    let mut patches = on.f32_output(rows, VALUES)?;
    let (weight, position) = (vec![0.0f32; VALUES], vec![0.0f32; spec.count()]);
    let [mut x, mut y, mut mean, mut rstd] = [(); 4].map(|()| vec![0.0f32; rows]);
    let one = [0.0f32];
    patch_embed::forward(
        pixels(on, rows)?.view(),
        Tensor::vector(&weight),
        Tensor::column(&position),
        Tensor::vector(&one),
        Tensor::vector(&one),
        patches.view_mut(),
        Some(TensorMut::column(&mut x)),
        TensorMut::column(&mut y),
        TensorMut::column(&mut mean),
        TensorMut::column(&mut rstd),
        &spec,
        EPS,
    )?;
    Ok(patches)
}
