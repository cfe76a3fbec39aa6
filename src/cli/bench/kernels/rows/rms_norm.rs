//! Rows of rms_norm.

use super::{Row, prepared};
use crate::ops::Write;
use crate::ops::rms_norm::{self, Residual};
use crate::tensor::TensorMut;

const EPS: f32 = 1e-6;

pub fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "rms_norm forward",
            bytes: |[rows, cols], t| (2 * rows + 1) * cols * t.size() + 4 * rows,
            flop: |[rows, cols]| 4 * rows * cols,
            new: |on, [rows, cols]| {
                let x = on.input(rows, cols, 1)?;
                let weight = on.input(1, cols, 2)?;
                let outputs = [on.output(rows, cols)?, on.f32_output(rows, 1)?];
                let [y, rstd] = outputs;
                prepared([x, weight, y, rstd], 2, |[x, weight, y, rstd]| {
                    let (x, weight) = (x.view(), weight.view());
                    rms_norm::forward(x, None, weight, y.view_mut(), rstd.view_mut(), EPS)
                })
            },
            ..Row::USUAL
        },
        Row {
            name: "rms_norm forward + residual",
            bytes: |[rows, cols], t| (4 * rows + 1) * cols * t.size() + 4 * rows,
            flop: |[rows, cols]| 5 * rows * cols,
            new: |on, [rows, cols]| {
                let [x, add] = [on.input(rows, cols, 1)?, on.input(rows, cols, 3)?];
                let weight = on.input(1, cols, 2)?;
                let [h, y] = [on.output(rows, cols)?, on.output(rows, cols)?];
                let rstd = on.f32_output(rows, 1)?;
                prepared([x, add, weight, h, y, rstd], 3, |[x, add, weight, h, y, rstd]| {
                    let residual = Some(Residual { add: add.view(), h: h.view_mut() });
                    let (x, weight) = (x.view(), weight.view());
                    rms_norm::forward(x, residual, weight, y.view_mut(), rstd.view_mut(), EPS)
                })
            },
            ..Row::USUAL
        },
        Row {
            name: "rms_norm backward",
            bytes: |[rows, cols], t| (3 * rows + 1) * cols * t.size() + 4 * rows,
            flop: |[rows, cols]| 9 * rows * cols,
            new: |on, [rows, cols]| {
                let [h, dy] = [on.input(rows, cols, 1)?, on.input(rows, cols, 4)?];
                let weight = on.input(1, cols, 2)?;
                let (rstd, dh) = (on.f32_input(rows, 1, 5)?, on.output(rows, cols)?);
                prepared([h, weight, rstd, dy, dh], 1, |[h, weight, rstd, dy, dh]| {
                    let (h, weight, rstd, dy) = (h.view(), weight.view(), rstd.view(), dy.view());
                    let (partials, write) = (TensorMut::vector::<f32>(&mut []), Write::Overwrite);
                    rms_norm::backward(h, weight, rstd, dy, dh.view_mut(), None, partials, write)
                })
            },
            ..Row::USUAL
        },
        Row {
            name: "rms_norm backward + weight",
            // the weight's gradient is added to
            bytes: |[rows, cols], t| (3 * rows + 1) * cols * t.size() + 8 * cols + 4 * rows,
            flop: |[rows, cols]| 12 * rows * cols,
            new: |on, [rows, cols]| {
                let [h, dy] = [on.input(rows, cols, 1)?, on.input(rows, cols, 4)?];
                let weight = on.input(1, cols, 2)?;
                let (rstd, dh) = (on.f32_input(rows, 1, 5)?, on.output(rows, cols)?);
                let partials = on.f32_output(1, rms_norm::partials([rows, cols]))?;
                let dweight = on.f32_output(1, cols)?;
                let buffers = [h, weight, rstd, dy, partials, dh, dweight];
                prepared(buffers, 2, |[h, weight, rstd, dy, partials, dh, dweight]| {
                    let (h, weight, rstd, dy) = (h.view(), weight.view(), rstd.view(), dy.view());
                    let (dh, dweight) = (dh.view_mut(), Some(dweight.view_mut()));
                    let (partials, write) = (partials.view_mut(), Write::Overwrite);
                    rms_norm::backward(h, weight, rstd, dy, dh, dweight, partials, write)
                })
            },
            ..Row::USUAL
        },
    ]
}
