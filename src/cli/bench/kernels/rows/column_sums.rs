//! Rows of column_sums.

use super::{Row, prepared};
use crate::ops::column_sums;

/// The biases of the vision tower's MLP, and of the decoder's q, k and v.
const BIASES: &[[usize; 2]] = &[[8192, 8192], [8192, 12288]];

pub fn rows() -> Vec<Row> {
    vec![Row {
        name: "column_sums",
        shapes: BIASES,
        counted: &[[512, 12288]],
        // the sums are added to
        bytes: |[rows, cols], t| rows * cols * t.size() + 8 * cols,
        flop: |[rows, cols]| rows * cols,
        new: |on, [rows, cols]| {
            let a = on.input(rows, cols, 1)?;
            let partials = on.f32_output(1, column_sums::partials([rows, cols]).max(1))?;
            let c = on.f32_output(1, cols)?;
            prepared([a, partials, c], 1, |[a, partials, c]| {
                column_sums::add(a.view(), c.view_mut(), partials.view_mut())
            })
        },
        ..Row::USUAL
    }]
}
