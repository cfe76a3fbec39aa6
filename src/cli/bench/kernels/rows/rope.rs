//! Rows of rope: q and k in the fused product of q, k and v, each token at a position of its own.

use super::{On, Row, Run};
use crate::device::Buffer;
use crate::error::Result;
use crate::ops::rope::{self, Table};
use crate::tensor::{DType, Tensor, TensorMut};

const HEAD_DIM: usize = 128;

pub fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "rope forward",
            new: |on, shape| Ok(Box::new(Turn::new(on, shape, rope::forward, false)?)),
            ..USUAL
        },
        Row {
            name: "rope forward + logn",
            bytes: |shape, t| (USUAL.bytes)(shape, t) + 4 * shape[0],
            new: |on, shape| Ok(Box::new(Turn::new(on, shape, rope::forward, true)?)),
            ..USUAL
        },
        Row {
            name: "rope backward",
            new: |on, shape| Ok(Box::new(Turn::new(on, shape, rope::backward, false)?)),
            ..USUAL
        },
    ]
}

/// q and k are read and written; a position and its row of the table are read.
const USUAL: Row = Row {
    bytes: |[rows, cols], t| 2 * rows * 2 * cols * t.size() + rows * 4 * (HEAD_DIM + 1),
    flop: |[rows, cols]| 3 * rows * 2 * cols,
    ..Row::USUAL
};

type Op = fn(TensorMut<'_>, Tensor<'_>, Tensor<'_>, Option<Tensor<'_>>, usize) -> Result<()>;

struct Turn {
    qkv: Buffer,
    positions: Buffer,
    table: Buffer,
    logn: Option<Buffer>,
    op: Op,
}

impl Turn {
    fn new(on: On, [rows, cols]: [usize; 2], op: Op, with_logn: bool) -> Result<Turn> {
        let f32 = |view: Tensor<'_>| -> Result<Buffer> {
            let mut buffer = Buffer::on(on.device, DType::F32, view.rows(), view.cols())?;
            buffer.upload(view)?;
            Ok(buffer)
        };
        let positions: Vec<u32> = (0..rows as u32).collect();
        let factors = rope::logn(rows / 2, rows);
        Ok(Turn {
            qkv: on.input(rows, 3 * cols, 1)?,
            positions: on.indices(&positions)?,
            table: f32(Table::new(HEAD_DIM, rows, 10_000.0, 1.0).view())?,
            logn: with_logn.then(|| f32(Tensor::column(&factors))).transpose()?,
            op,
        })
    }
}

impl Run for Turn {
    fn run(&mut self) -> Result<()> {
        let logn = self.logn.as_ref().map(Buffer::view);
        let width = self.qkv.cols() / 3;
        let qk = self.qkv.view_mut().slice_cols(0..2 * width);
        (self.op)(qk, self.positions.view(), self.table.view(), logn, HEAD_DIM)
    }

    fn outputs(&self) -> Vec<&Buffer> {
        vec![&self.qkv]
    }
}
