//! Rows of layer_norm.

use super::{Row, prepared};
use crate::ops::{Write, layer_norm};
use crate::tensor::TensorMut;

const EPS: f32 = 1e-6;

/// Patches in the vision tower and in the resampler.
const PATCHES: &[[usize; 2]] = &[[8192, 1664], [8192, 4096]];

pub fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "layer_norm forward",
            shapes: PATCHES,
            bytes: |[rows, cols], t| (2 * rows + 2) * cols * t.size() + 8 * rows,
            flop: |[rows, cols]| 8 * rows * cols,
            new: |on, [rows, cols]| {
                let x = on.input(rows, cols, 1)?;
                let [weight, bias] = [on.input(1, cols, 2)?, on.input(1, cols, 3)?];
                let y = on.output(rows, cols)?;
                let [mean, rstd] = [on.f32_output(rows, 1)?, on.f32_output(rows, 1)?];
                let buffers = [x, weight, bias, y, mean, rstd];
                prepared(buffers, 3, |[x, weight, bias, y, mean, rstd]| {
                    let (x, weight, bias) = (x.view(), weight.view(), bias.view());
                    let (y, mean, rstd) = (y.view_mut(), mean.view_mut(), rstd.view_mut());
                    layer_norm::forward(x, weight, bias, y, mean, rstd, EPS)
                })
            },
            ..Row::USUAL
        },
        Row {
            name: "layer_norm backward",
            shapes: PATCHES,
            bytes: |[rows, cols], t| (3 * rows + 1) * cols * t.size() + 8 * rows,
            flop: |[rows, cols]| 14 * rows * cols,
            new: |on, [rows, cols]| {
                let [x, dy] = [on.input(rows, cols, 1)?, on.input(rows, cols, 4)?];
                let weight = on.input(1, cols, 2)?;
                let [mean, rstd] = [on.f32_input(rows, 1, 5)?, on.f32_input(rows, 1, 6)?];
                let dx = on.output(rows, cols)?;
                let buffers = [x, weight, mean, rstd, dy, dx];
                prepared(buffers, 1, |[x, weight, mean, rstd, dy, dx]| {
                    let (x, weight, dy) = (x.view(), weight.view(), dy.view());
                    let (mean, rstd, dx) = (mean.view(), rstd.view(), dx.view_mut());
                    let (none, write) = (TensorMut::vector::<f32>(&mut []), Write::Overwrite);
                    layer_norm::backward(x, weight, mean, rstd, dy, dx, None, None, none, write)
                })
            },
            ..Row::USUAL
        },
        Row {
            name: "layer_norm backward + weight, bias",
            shapes: PATCHES,
            // the gradients of weight and bias are added to
            bytes: |[rows, cols], t| (3 * rows + 1) * cols * t.size() + 16 * cols + 8 * rows,
            flop: |[rows, cols]| 19 * rows * cols,
            new: |on, [rows, cols]| {
                let [x, dy] = [on.input(rows, cols, 1)?, on.input(rows, cols, 4)?];
                let weight = on.input(1, cols, 2)?;
                let [mean, rstd] = [on.f32_input(rows, 1, 5)?, on.f32_input(rows, 1, 6)?];
                let dx = on.output(rows, cols)?;
                let partials = on.f32_output(1, layer_norm::partials([rows, cols]))?;
                let [dweight, dbias] = [on.f32_output(1, cols)?, on.f32_output(1, cols)?];
                let buffers = [x, weight, mean, rstd, dy, partials, dx, dweight, dbias];
                prepared(buffers, 3, |[x, weight, mean, rstd, dy, partials, dx, dweight, dbias]| {
                    let (x, weight, dy) = (x.view(), weight.view(), dy.view());
                    let (mean, rstd, dx) = (mean.view(), rstd.view(), dx.view_mut());
                    let (dw, db) = (Some(dweight.view_mut()), Some(dbias.view_mut()));
                    let (partials, write) = (partials.view_mut(), Write::Overwrite);
                    layer_norm::backward(x, weight, mean, rstd, dy, dx, dw, db, partials, write)
                })
            },
            ..Row::USUAL
        },
    ]
}
