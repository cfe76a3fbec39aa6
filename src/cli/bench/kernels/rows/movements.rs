//! Rows of the op `rows`.

use super::{BF16, On, Row, prepared};
use crate::device::Buffer;
use crate::error::Result;
use crate::ops::rows;
use crate::tensor::DType;

/// Images whose position embeddings are added.
const IMAGES: usize = 8;

/// A permutation of `0..rows`: whole rows in no order that caches could guess.
pub fn scattered(rows: usize) -> impl Iterator<Item = u32> {
    (0..rows).map(move |i| (i * 7919 % rows) as u32)
}

/// The inverse of `index`.
pub fn inverse(on: On, index: &[u32]) -> Result<Buffer> {
    let mut inverse = vec![0; rows::inverse_len(index.len())];
    rows::invert(index, &mut inverse)?;
    on.table(&inverse)
}

/// Rows that a sum goes to: three for four sources.
fn sums(rows: usize) -> impl Iterator<Item = u32> {
    scattered(rows).map(|i| i * 3 / 4)
}

/// Rows that [`sums`] names.
fn named(rows: usize) -> usize {
    (rows - 1) * 3 / 4 + 1
}

pub fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "rows gather",
            bytes: |[rows, cols], t| 2 * rows * cols * t.size() + 4 * rows,
            bound: |_| 0.0,
            new: |on, [rows, cols]| {
                let index = on.indices(&scattered(rows).collect::<Vec<_>>())?;
                let buffers = [on.input(rows, cols, 1)?, index, on.output(rows, cols)?];
                prepared(buffers, 1, |[src, index, dst]| {
                    rows::gather(src.view(), index.view(), dst.view_mut())
                })
            },
            ..Row::USUAL
        },
        Row {
            name: "rows scatter",
            bytes: |[rows, cols], t| 2 * rows * cols * t.size() + 4 * rows::inverse_len(rows),
            bound: |_| 0.0,
            new: |on, [rows, cols]| {
                let inverse = inverse(on, &scattered(rows).collect::<Vec<_>>())?;
                let buffers = [on.input(rows, cols, 1)?, inverse, on.output(rows, cols)?];
                prepared(buffers, 1, |[src, inverse, dst]| {
                    rows::scatter(src.view(), inverse.view(), dst.view_mut())
                })
            },
            ..Row::USUAL
        },
        Row {
            name: "rows scatter_add",
            bytes: |[rows, cols], t| {
                (rows + 2 * named(rows)) * cols * t.size() + 4 * rows::inverse_len(rows)
            },
            flop: |[rows, cols]| rows * cols,
            new: |on, [rows, cols]| {
                let inverse = inverse(on, &sums(rows).collect::<Vec<_>>())?;
                let buffers = [on.input(rows, cols, 1)?, inverse, on.input(rows, cols, 2)?];
                prepared(buffers, 1, |[src, inverse, dst]| {
                    rows::scatter_add(src.view(), inverse.view(), dst.view_mut())
                })
            },
            ..Row::USUAL
        },
        Row {
            name: "rows scale",
            bytes: |[rows, cols], t| 2 * rows * cols * t.size() + 4 * rows,
            flop: |[rows, cols]| rows * cols,
            new: |on, [rows, cols]| {
                let buffers = [on.f32_input(rows, 1, 1)?, on.input(rows, cols, 2)?];
                prepared(buffers, 1, |[factors, x]| rows::scale(x.view_mut(), factors.view()))
            },
            ..Row::USUAL
        },
        Row {
            name: "rows copy",
            bytes: |[rows, cols], t| 2 * rows * cols * t.size(),
            bound: |_| 0.0,
            new: |on, [rows, cols]| {
                let buffers = [on.input(rows, cols, 1)?, on.output(rows, cols)?];
                prepared(buffers, 1, |[x, y]| rows::copy(x.view(), y.view_mut()))
            },
            ..Row::USUAL
        },
        Row {
            name: "rows copy to f32",
            dtypes: BF16,
            bytes: |[rows, cols], t| rows * cols * (t.size() + DType::F32.size()),
            bound: |_| 0.0,
            new: |on, [rows, cols]| {
                let buffers = [on.input(rows, cols, 1)?, on.f32_output(rows, cols)?];
                prepared(buffers, 1, |[x, y]| rows::copy(x.view(), y.view_mut()))
            },
            ..Row::USUAL
        },
        Row {
            name: "rows copy from f32",
            dtypes: BF16,
            bytes: |[rows, cols], t| rows * cols * (t.size() + DType::F32.size()),
            new: |on, [rows, cols]| {
                let buffers = [on.f32_input(rows, cols, 1)?, on.output(rows, cols)?];
                prepared(buffers, 1, |[x, y]| rows::copy(x.view(), y.view_mut()))
            },
            ..Row::USUAL
        },
        Row {
            name: "rows add",
            bytes: |[rows, cols], t| 3 * rows * cols * t.size(),
            flop: |[rows, cols]| rows * cols,
            new: |on, [rows, cols]| {
                let buffers = [on.input(rows, cols, 1)?, on.input(rows, cols, 2)?];
                prepared(buffers, 1, |[x, y]| rows::add(x.view(), y.view_mut()))
            },
            ..Row::USUAL
        },
        Row {
            name: "rows add to f32",
            dtypes: BF16,
            bytes: |[rows, cols], t| rows * cols * (t.size() + 2 * DType::F32.size()),
            flop: |[rows, cols]| rows * cols,
            bound: |_| 0.0,
            new: |on, [rows, cols]| {
                let buffers = [on.input(rows, cols, 1)?, on.f32_input(rows, cols, 2)?];
                prepared(buffers, 1, |[x, y]| rows::add(x.view(), y.view_mut()))
            },
            ..Row::USUAL
        },
        Row {
            name: "rows add_cycled",
            bytes: |[rows, cols], t| (2 * rows + rows / IMAGES) * cols * t.size(),
            flop: |[rows, cols]| rows * cols,
            new: |on, [rows, cols]| {
                let buffers = [on.input(rows / IMAGES, cols, 1)?, on.input(rows, cols, 2)?];
                prepared(buffers, 1, |[x, y]| rows::add_cycled(x.view(), y.view_mut()))
            },
            ..Row::USUAL
        },
        Row {
            name: "rows add_cycled_backward",
            bytes: |[rows, cols], t| (rows + 2 * (rows / IMAGES)) * cols * t.size(),
            flop: |[rows, cols]| rows * cols,
            new: |on, [rows, cols]| {
                let buffers = [on.input(rows, cols, 1)?, on.input(rows / IMAGES, cols, 2)?];
                prepared(buffers, 1, |[dy, dx]| rows::add_cycled_backward(dy.view(), dx.view_mut()))
            },
            ..Row::USUAL
        },
        Row {
            name: "rows add_cycled_backward to f32",
            dtypes: BF16,
            bytes: |[rows, cols], t| (rows * t.size() + 8 * (rows / IMAGES)) * cols,
            flop: |[rows, cols]| rows * cols,
            bound: |_| 0.0,
            new: |on, [rows, cols]| {
                let buffers = [on.input(rows, cols, 1)?, on.f32_input(rows / IMAGES, cols, 2)?];
                prepared(buffers, 1, |[dy, dx]| rows::add_cycled_backward(dy.view(), dx.view_mut()))
            },
            ..Row::USUAL
        },
    ]
}
