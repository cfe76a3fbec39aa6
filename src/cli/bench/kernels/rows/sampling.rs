//! Rows of sampling over Qwen's vocabulary.

use super::{F32, On, Row, prepared};
use crate::device::Buffer;
use crate::error::Result;
use crate::ops::sampling::{self, Nucleus};
use crate::tensor::{DType, Tensor};

/// One text being written, and many.
const SHAPES: &[[usize; 2]] = &[[1, 151_936], [64, 151_936]];
const COUNTED: &[[usize; 2]] = &[[2, 151_936]];

pub fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "sampling greedy",
            bytes: |[rows, vocab], _| 4 * rows * (vocab + 1),
            flop: |[rows, vocab]| rows * vocab,
            new: |on, [rows, vocab]| {
                let buffers = [on.input(rows, vocab, 1)?, tokens(on, rows)?];
                prepared(buffers, 1, |[logits, token]| {
                    sampling::greedy(logits.view(), token.view_mut())
                })
            },
            ..USUAL
        },
        Row {
            name: "sampling nucleus",
            // the passes after the first find the row in L2
            bytes: |[rows, vocab], _| 4 * rows * (vocab + 1) + 8 * rows + 8,
            flop: |[rows, vocab]| 20 * rows * vocab,
            new: |on, [rows, vocab]| {
                let mut nucleus = on.f32_output(1, Nucleus::COLS)?;
                nucleus.upload(Nucleus { temperature: 0.1, top_p: 0.9 }.view())?;
                let mut uniform = Buffer::on(on.device, DType::F64, rows, 1)?;
                let shares: Vec<f64> = (0..rows).map(|i| (i as f64 + 0.5) / rows as f64).collect();
                uniform.upload(Tensor::column(&shares))?;
                let (logits, weights) = (on.input(rows, vocab, 1)?, on.output(rows, vocab)?);
                let buffers = [logits, nucleus, uniform, weights, tokens(on, rows)?];
                prepared(buffers, 1, |[logits, nucleus, uniform, weights, token]| {
                    let (weights, token) = (weights.view_mut(), token.view_mut());
                    sampling::nucleus(logits.view(), nucleus.view(), uniform.view(), weights, token)
                })
            },
            ..USUAL
        },
    ]
}

/// The same token on both devices.
const USUAL: Row =
    Row { dtypes: F32, shapes: SHAPES, counted: COUNTED, bound: |_| 0.0, ..Row::USUAL };

fn tokens(on: On, rows: usize) -> Result<Buffer> {
    Buffer::on(on.device, DType::U32, rows, 1)
}
