//! Rows of embedding: tokens of which every fourth is an image feature.

use super::movements::{inverse, scattered};
use super::{BF16, F32, On, Row, Run, prepared};
use crate::error::Result;
use crate::ops::{embedding, rows};
use crate::tensor::DType;

/// One in so many tokens is a feature.
const SLOTS: usize = 4;

/// Sources of `rows` tokens: features in order, and ids below `ids`.
fn sources(rows: usize, ids: fn(u32) -> u32) -> Vec<u32> {
    let slots = (0..rows).step_by(SLOTS).count();
    let mut ids = scattered(rows - slots).map(ids);
    let source = |t: usize| match t % SLOTS {
        0 => (rows + t / SLOTS) as u32,
        _ => ids.next().unwrap_or_default(),
    };
    (0..rows).map(source).collect()
}

/// Two ids for three tokens.
fn common(i: u32) -> u32 {
    i * 2 / 3
}

/// Features, and distinct ids, in the sources of `rows` tokens.
fn named(rows: usize) -> [usize; 2] {
    let slots = rows.div_ceil(SLOTS);
    [slots, (rows - slots - 1) * 2 / 3 + 1]
}

/// The splice of features into rows of a table of another type, or of the same.
fn forward(on: On, table: DType, [rows, cols]: [usize; 2]) -> Result<Box<dyn Run>> {
    let source = on.indices(&sources(rows, |i| i))?;
    let table = On { dtype: table, ..on }.input(rows, cols, 1)?;
    let features = on.input(rows.div_ceil(SLOTS), cols, 2)?;
    let buffers = [source, table, features, on.output(rows, cols)?];
    prepared(buffers, 1, |[source, table, features, x]| {
        embedding::forward(source.view(), table.view(), features.view(), x.view_mut())
    })
}

pub fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "embedding forward",
            bytes: |[rows, cols], t| 2 * rows * cols * t.size() + 4 * rows,
            bound: |_| 0.0,
            new: |on, shape| forward(on, on.dtype, shape),
            ..Row::USUAL
        },
        Row {
            name: "embedding forward from f32",
            dtypes: BF16,
            bytes: |[rows, cols], t| {
                let slots = rows.div_ceil(SLOTS);
                ((rows + slots) * t.size() + (rows - slots) * DType::F32.size()) * cols + 4 * rows
            },
            new: |on, shape| forward(on, DType::F32, shape),
            ..Row::USUAL
        },
        Row {
            name: "embedding forward from bf16",
            dtypes: F32,
            bytes: |[rows, cols], t| {
                let slots = rows.div_ceil(SLOTS);
                ((rows + slots) * t.size() + (rows - slots) * DType::Bf16.size()) * cols + 4 * rows
            },
            bound: |_| 0.0,
            new: |on, shape| forward(on, DType::Bf16, shape),
            ..Row::USUAL
        },
        Row {
            name: "embedding backward",
            bytes: |[rows, cols], t| {
                let [features, ids] = named(rows);
                ((rows + features) * t.size() + 8 * ids) * cols + 4 * rows::inverse_len(rows)
            },
            flop: |[rows, cols]| rows * cols,
            new: |on, [rows, cols]| {
                let inverse = inverse(on, &sources(rows, common))?;
                let (dx, dtable) = (on.input(rows, cols, 1)?, on.f32_input(rows, cols, 2)?);
                let buffers = [inverse, dx, dtable, on.output(rows.div_ceil(SLOTS), cols)?];
                prepared(buffers, 2, |[inverse, dx, dtable, dfeatures]| {
                    let vocab = dtable.rows();
                    let (dtable, dfeatures) = (Some(dtable.view_mut()), dfeatures.view_mut());
                    embedding::backward(inverse.view(), dx.view(), dtable, dfeatures, vocab)
                })
            },
            ..Row::USUAL
        },
    ]
}
