//! Rows of lora: the tails of two maps of one input.

use super::{BF16, On, Row, Run};
use crate::device::Buffer;
use crate::error::Result;
use crate::ops::lora::{self, Pair, Table};
use crate::tensor::{DType, TensorMut};

/// Columns before the tail.
const INPUTS: usize = 256;

/// `[outputs of each, r]`.
pub fn rows() -> Vec<Row> {
    vec![Row {
        name: "lora write_tails",
        dtypes: BF16,
        shapes: &[[1408, 64], [11008, 64]],
        counted: &[[1408, 64]],
        bytes: |[rows, r], t| 2 * rows * r * (DType::F32.size() + 2 * t.size()),
        flop: |[rows, r]| 2 * rows * r,
        bound: |_| 0.0,
        new: |on, [rows, r]| Ok(Box::new(Tails::new(on, rows, r)?)),
        ..Row::USUAL
    }]
}

struct Tails {
    masters: Buffer,
    table: Table,
    weight: Buffer,
}

impl Tails {
    fn new(on: On, rows: usize, rank: usize) -> Result<Tails> {
        let mut weight = Buffer::on(on.device, DType::Bf16, 2 * rows, INPUTS + 2 * rank)?;
        let pair = |group| Pair { first: group * rows * rank, rank, group, scale: 0.25 };
        let table = Table::new(on.device, &[0, 1].map(pair), &mut tails(&mut weight))?;
        Ok(Tails { masters: on.f32_input(1, 2 * rows * rank, 1)?, table, weight })
    }
}

fn tails(weight: &mut Buffer) -> [TensorMut<'_>; 2] {
    let [rows, cols] = [weight.rows(), weight.cols()];
    let (one, other) = weight.view_mut().slice_cols(INPUTS..cols).split_rows(rows / 2);
    [one, other]
}

impl Run for Tails {
    fn run(&mut self) -> Result<()> {
        lora::write_tails(self.masters.view(), &self.table, &mut tails(&mut self.weight))
    }

    fn outputs(&self) -> Vec<&Buffer> {
        vec![&self.weight]
    }
}
