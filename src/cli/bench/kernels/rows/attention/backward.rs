//! Rows of attention's backward: the products of the kernels are seven, five of them needed.

use super::{
    ATTENTION, COUNTED, HEAD_DIM, Masked, Problem, QUERIES, TREE, TREES, VISION_COUNTED,
    VISION_HEAD_DIM, causal, cross, images, products, trees,
};
use crate::cli::bench::kernels::rows::{On, Row, Run};
use crate::device::Buffer;
use crate::error::Result;
use crate::ops::attention::{self, Heads, HeadsMut};
use crate::tensor::DType;

pub fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "attention backward causal",
            shapes: &[[2048, 4096], [8192, 4096]],
            counted: COUNTED,
            bytes: |shape, t| bytes(causal, shape, HEAD_DIM, t),
            flop: |shape| 10 * products(causal, shape),
            macs: |shape| 7 * products(causal, shape),
            new: |on, shape| Backward::prepared(on, causal, shape, HEAD_DIM),
            ..ATTENTION
        },
        Row {
            name: "attention backward bidirectional",
            shapes: &[[8192, 16 * VISION_HEAD_DIM]],
            counted: VISION_COUNTED,
            bytes: |shape, t| bytes(images, shape, VISION_HEAD_DIM, t),
            flop: |shape| 10 * products(images, shape),
            macs: |shape| 7 * products(images, shape),
            new: |on, shape| Backward::prepared(on, images, shape, VISION_HEAD_DIM),
            ..ATTENTION
        },
        Row {
            name: "attention backward group mask",
            shapes: TREES,
            counted: &[[TREE, HEAD_DIM]],
            bytes: |shape, t| bytes(trees, shape, HEAD_DIM, t),
            flop: |shape| 10 * products(trees, shape),
            macs: |shape| 7 * products(trees, shape),
            new: |on, shape| Backward::prepared(on, trees, shape, HEAD_DIM),
            ..ATTENTION
        },
        Row {
            name: "attention backward cross",
            shapes: QUERIES,
            counted: &[[256, HEAD_DIM]],
            bytes: |shape, t| bytes(cross, shape, HEAD_DIM, t),
            flop: |shape| 10 * products(cross, shape),
            macs: |shape| 7 * products(cross, shape),
            new: |on, shape| Backward::prepared(on, cross, shape, HEAD_DIM),
            ..ATTENTION
        },
        Row {
            name: "attention backward causal, heads of 64",
            shapes: &[[736, 512]],
            counted: &[[512, 2 * 64]],
            bytes: |shape, t| bytes(causal, shape, 64, t),
            flop: |shape| 10 * products(causal, shape),
            macs: |shape| 7 * products(causal, shape),
            new: |on, shape| Backward::prepared(on, causal, shape, 64),
            ..ATTENTION
        },
        Row {
            name: "attention backward causal, heads of 32",
            shapes: &[[736, 512]],
            counted: &[[512, 2 * 32]],
            bytes: |shape, t| bytes(causal, shape, 32, t),
            flop: |shape| 10 * products(causal, shape),
            macs: |shape| 7 * products(causal, shape),
            new: |on, shape| Backward::prepared(on, causal, shape, 32),
            ..ATTENTION
        },
    ]
}

/// q, o and their gradients; k, v and theirs; lse.
fn bytes(problem: Problem, shape: [usize; 2], head_dim: usize, dtype: DType) -> usize {
    let ([queries, width], (_, keys)) = (shape, problem(shape[0]));
    4 * (queries + keys) * width * dtype.size() + 4 * queries * (width / head_dim)
}

struct Backward {
    q: Buffer,
    k: Buffer,
    v: Buffer,
    mask: Masked,
    o: Buffer,
    lse: Buffer,
    d_o: Buffer,
    dq: Buffer,
    dk: Buffer,
    dv: Buffer,
    delta: Buffer,
    head_dim: usize,
}

impl Backward {
    /// o and lse are not those of q, k and v, but as large: so none of the forward kernels is counted here.
    fn prepared(
        on: On,
        problem: Problem,
        [queries, width]: [usize; 2],
        head_dim: usize,
    ) -> Result<Box<dyn Run>> {
        let (segments, keys) = problem(queries);
        let heads = width / head_dim;
        Ok(Box::new(Backward {
            q: on.input(queries, width, 1)?,
            k: on.input(keys, width, 2)?,
            v: on.input(keys, width, 3)?,
            mask: Masked::new(on, segments, queries, keys)?,
            o: on.input(queries, width, 4)?,
            lse: on.f32_input(heads, queries, 5)?,
            d_o: on.input(queries, width, 6)?,
            dq: on.output(queries, width)?,
            dk: on.output(keys, width)?,
            dv: on.output(keys, width)?,
            delta: on.f32_output(heads, queries)?,
            head_dim,
        }))
    }
}

impl Run for Backward {
    fn run(&mut self) -> Result<()> {
        let dim = self.head_dim;
        let inputs = [&self.q, &self.k, &self.v, &self.o, &self.d_o];
        let [q, k, v, o, d_o] = inputs.map(|x| Heads::dense(x.view(), dim));
        let dq = HeadsMut::dense(self.dq.view_mut(), dim);
        let dk = HeadsMut::dense(self.dk.view_mut(), dim);
        let dv = HeadsMut::dense(self.dv.view_mut(), dim);
        let (lse, delta, mask) = (self.lse.view(), self.delta.view_mut(), self.mask.mask());
        let scale = 1.0 / (dim as f32).sqrt();
        attention::backward(q, k, v, o, lse, d_o, mask, dq, dk, dv, delta, scale)
    }

    fn outputs(&self) -> Vec<&Buffer> {
        vec![&self.dq, &self.dk, &self.dv]
    }
}
