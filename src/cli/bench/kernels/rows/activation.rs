//! Rows of activation, at the MLPs' widths: GELU in the vision tower, SwiGLU in the decoder, whose gates
//! lie side by side, with slack columns behind their product.

use super::{Row, prepared};
use crate::ops::activation;

/// Patches of 1 and 8 images.
const TOWER: &[[usize; 2]] = &[[1024, 8192], [8192, 8192]];
const TOWER_COUNTED: &[[usize; 2]] = &[[256, 8192]];

const GATES: &[[usize; 2]] = &[[736, 1408], [2048, 11_008], [8192, 11_008]];
const GATES_COUNTED: &[[usize; 2]] = &[[256, 11_008]];
/// Columns behind s: the adapter's.
const SLACK: usize = 64;

pub fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "activation gelu",
            bytes: |[rows, cols], t| 2 * rows * cols * t.size(),
            flop: |[rows, cols]| 45 * rows * cols,
            new: |on, [rows, cols]| {
                prepared([on.input(rows, cols, 1)?, on.output(rows, cols)?], 1, |[x, y]| {
                    activation::gelu(x.view(), y.view_mut())
                })
            },
            ..TOWER_USUAL
        },
        Row {
            name: "activation gelu_backward",
            bytes: |[rows, cols], t| 3 * rows * cols * t.size(),
            flop: |[rows, cols]| 65 * rows * cols,
            new: |on, [rows, cols]| {
                let [x, dy] = [on.input(rows, cols, 1)?, on.input(rows, cols, 2)?];
                prepared([x, dy, on.output(rows, cols)?], 1, |[x, dy, dx]| {
                    activation::gelu_backward(x.view(), dy.view(), dx.view_mut(), None)
                })
            },
            ..TOWER_USUAL
        },
        Row {
            name: "activation gelu_backward + bias",
            // the bias's gradient is added to
            bytes: |[rows, cols], t| 3 * rows * cols * t.size() + 8 * cols,
            flop: |[rows, cols]| 66 * rows * cols,
            new: |on, [rows, cols]| {
                let [x, dy] = [on.input(rows, cols, 1)?, on.input(rows, cols, 2)?];
                let (dx, dbias) = (on.output(rows, cols)?, on.f32_output(1, cols)?);
                prepared([x, dy, dx, dbias], 2, |[x, dy, dx, dbias]| {
                    let dbias = Some(dbias.view_mut());
                    activation::gelu_backward(x.view(), dy.view(), dx.view_mut(), dbias)
                })
            },
            ..TOWER_USUAL
        },
        Row {
            name: "activation swiglu",
            bytes: |[rows, cols], t| 3 * rows * cols * t.size(),
            flop: |[rows, cols]| 20 * rows * cols,
            new: |on, [rows, cols]| {
                let buffers = [on.input(rows, 2 * cols, 1)?, on.output(rows, cols + SLACK)?];
                prepared(buffers, 1, |[gate, s]| {
                    let cols = gate.cols() / 2;
                    let gate = gate.view();
                    let (a, b) = (gate.slice_cols(0..cols), gate.slice_cols(cols..2 * cols));
                    activation::swiglu(a, b, s.view_mut().slice_cols(0..cols))
                })
            },
            ..GATES_USUAL
        },
        Row {
            name: "activation swiglu_backward",
            bytes: |[rows, cols], t| 5 * rows * cols * t.size(),
            flop: |[rows, cols]| 25 * rows * cols,
            new: |on, [rows, cols]| {
                let [gate, ds] = [on.input(rows, 2 * cols, 1)?, on.input(rows, cols, 2)?];
                prepared([gate, ds, on.output(rows, 2 * cols)?], 1, |[gate, ds, d_gate]| {
                    let cols = ds.cols();
                    let gate = gate.view();
                    let (a, b) = (gate.slice_cols(0..cols), gate.slice_cols(cols..2 * cols));
                    let (da, db) = d_gate.view_mut().split_cols(cols);
                    activation::swiglu_backward(a, b, ds.view(), da, db, None)
                })
            },
            ..GATES_USUAL
        },
        Row {
            name: "activation swiglu_backward + s",
            bytes: |[rows, cols], t| 6 * rows * cols * t.size(),
            flop: |[rows, cols]| 26 * rows * cols,
            new: |on, [rows, cols]| {
                let [gate, ds] = [on.input(rows, 2 * cols, 1)?, on.input(rows, cols, 2)?];
                let [d_gate, s] = [on.output(rows, 2 * cols)?, on.output(rows, cols + SLACK)?];
                prepared([gate, ds, d_gate, s], 2, |[gate, ds, d_gate, s]| {
                    let cols = ds.cols();
                    let gate = gate.view();
                    let (a, b) = (gate.slice_cols(0..cols), gate.slice_cols(cols..2 * cols));
                    let (da, db) = d_gate.view_mut().split_cols(cols);
                    let s = Some(s.view_mut().slice_cols(0..cols));
                    activation::swiglu_backward(a, b, ds.view(), da, db, s)
                })
            },
            ..GATES_USUAL
        },
    ]
}

const TOWER_USUAL: Row = Row { shapes: TOWER, counted: TOWER_COUNTED, ..Row::USUAL };
const GATES_USUAL: Row = Row { shapes: GATES, counted: GATES_COUNTED, ..Row::USUAL };
