//! Rows of attention. Counted: one head, or two where they share more than the plan of their mask.

mod backward;

use super::{BF16, On, Row, Run};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::ops::attention::{self, Heads, HeadsMut, Mask, Segment};
use crate::tensor::DType;

/// Of Qwen-VL-Chat's decoder and resampler, and of its vision tower.
const HEAD_DIM: usize = 128;
const VISION_HEAD_DIM: usize = 104;

const COUNTED: &[[usize; 2]] = &[[512, HEAD_DIM], [1024, HEAD_DIM], [2048, HEAD_DIM]];
/// Two heads side by side show that a row of 208 bytes ends amid a sector.
const VISION_COUNTED: &[[usize; 2]] = &[
    [512, VISION_HEAD_DIM],
    [1024, VISION_HEAD_DIM],
    [2048, VISION_HEAD_DIM],
    [512, 2 * VISION_HEAD_DIM],
];
/// Eight records' trees.
const TREES: &[[usize; 2]] = &[[8 * TREE, 4096]];
/// Queries of eight images.
const QUERIES: &[[usize; 2]] = &[[8 * 256, 4096]];

/// Tokens of a tree: a trunk of 340 and four branches of 100.
const TREE: usize = 740;

pub fn rows() -> Vec<Row> {
    let mut rows = forward_rows();
    rows.extend(backward::rows());
    rows
}

fn forward_rows() -> Vec<Row> {
    vec![
        Row {
            name: "attention forward causal",
            shapes: &[[2048, 4096], [8192, 4096]],
            counted: COUNTED,
            bytes: |shape, t| forward_bytes(causal, shape, HEAD_DIM, t),
            flop: |shape| 4 * products(causal, shape),
            macs: |shape| 2 * products(causal, shape),
            new: |on, shape| Forward::prepared(on, causal, shape, HEAD_DIM),
            ..ATTENTION
        },
        Row {
            name: "attention forward bidirectional",
            shapes: &[[8192, 16 * VISION_HEAD_DIM]],
            counted: VISION_COUNTED,
            bytes: |shape, t| forward_bytes(images, shape, VISION_HEAD_DIM, t),
            flop: |shape| 4 * products(images, shape),
            macs: |shape| 2 * products(images, shape),
            new: |on, shape| Forward::prepared(on, images, shape, VISION_HEAD_DIM),
            ..ATTENTION
        },
        Row {
            name: "attention forward group mask",
            shapes: TREES,
            counted: &[[TREE, HEAD_DIM]],
            bytes: |shape, t| forward_bytes(trees, shape, HEAD_DIM, t),
            flop: |shape| 4 * products(trees, shape),
            macs: |shape| 2 * products(trees, shape),
            new: |on, shape| Forward::prepared(on, trees, shape, HEAD_DIM),
            ..ATTENTION
        },
        Row {
            name: "attention forward cross",
            shapes: QUERIES,
            counted: &[[256, HEAD_DIM]],
            bytes: |shape, t| forward_bytes(cross, shape, HEAD_DIM, t),
            flop: |shape| 4 * products(cross, shape),
            macs: |shape| 2 * products(cross, shape),
            new: |on, shape| Forward::prepared(on, cross, shape, HEAD_DIM),
            ..ATTENTION
        },
        Row {
            name: "attention forward causal, heads of 64",
            shapes: &[[736, 512]],
            counted: &[[512, 2 * 64]],
            bytes: |shape, t| forward_bytes(causal, shape, 64, t),
            flop: |shape| 4 * products(causal, shape),
            macs: |shape| 2 * products(causal, shape),
            new: |on, shape| Forward::prepared(on, causal, shape, 64),
            ..ATTENTION
        },
        Row {
            name: "attention forward causal, heads of 32",
            shapes: &[[736, 512]],
            counted: &[[512, 2 * 32]],
            bytes: |shape, t| forward_bytes(causal, shape, 32, t),
            flop: |shape| 4 * products(causal, shape),
            macs: |shape| 2 * products(causal, shape),
            new: |on, shape| Forward::prepared(on, causal, shape, 32),
            ..ATTENTION
        },
    ]
}

const ATTENTION: Row = Row { dtypes: BF16, ..Row::USUAL };

/// Who sees whom where there are so many queries, and the number of keys.
type Problem = fn(usize) -> (Vec<Segment>, usize);

/// Sequences of 2048 tokens.
fn causal(tokens: usize) -> (Vec<Segment>, usize) {
    (pieces(tokens, 2048).map(|(start, len)| Segment::causal(start, len, 0, 0)).collect(), tokens)
}

/// Images of 1024 patches; up to 2048 tokens are one image.
fn images(tokens: usize) -> (Vec<Segment>, usize) {
    let len = if tokens > 2048 { 1024 } else { tokens };
    (pieces(tokens, len).map(|(start, len)| Segment::all(start, len, start, len)).collect(), tokens)
}

fn trees(tokens: usize) -> (Vec<Segment>, usize) {
    let tree = |(start, _)| {
        let branches = (340..TREE).step_by(100);
        std::iter::once(Segment::causal(start, 340, 0, 0))
            .chain(branches.map(move |at| Segment::causal(start + at, 100, start, 340)))
    };
    (pieces(tokens, TREE).flat_map(tree).collect(), tokens)
}

/// 256 queries over the 1024 patches of each image.
fn cross(queries: usize) -> (Vec<Segment>, usize) {
    let all = |(start, len)| Segment::all(start, len, 4 * start, 4 * len);
    (pieces(queries, 256).map(all).collect(), 4 * queries)
}

fn pieces(all: usize, len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..all).step_by(len).map(move |start| (start, len.min(all - start)))
}

/// Multiply-adds of one product over the pairs that see each other.
fn products(problem: Problem, [queries, width]: [usize; 2]) -> usize {
    let pairs = |s: &Segment| {
        let [q, prefix, own] = [s.q_len, s.prefix_len, s.own_len].map(|x| x as usize);
        q * prefix + if s.causal == 1 { q * (q + 1) / 2 } else { q * own }
    };
    problem(queries).0.iter().map(pairs).sum::<usize>() * width
}

/// q and o, k and v, lse, and what of the plan tells which keys a query sees.
fn forward_bytes(problem: Problem, shape: [usize; 2], head_dim: usize, dtype: DType) -> usize {
    let ([queries, width], (_, keys)) = (shape, problem(shape[0]));
    2 * (queries + keys) * width * dtype.size() + 4 * queries * (width / head_dim) + 16 * queries
}

/// On a GPU with its plan.
struct Masked {
    segments: Vec<Segment>,
    plan: Option<Buffer>,
}

impl Masked {
    fn new(on: On, segments: Vec<Segment>, queries: usize, keys: usize) -> Result<Masked> {
        let plan = match on.device {
            Device::Cpu => None,
            Device::Cuda(_) => {
                let mut plan = vec![0; attention::plan_len(queries, keys)];
                attention::plan(&segments, queries, keys, &mut plan)?;
                Some(on.table(&plan)?)
            }
        };
        Ok(Masked { segments, plan })
    }

    fn mask(&self) -> Mask<'_> {
        self.plan.as_ref().map_or(Mask::of(&self.segments), |plan| Mask::planned(plan.view()))
    }
}

struct Forward {
    q: Buffer,
    k: Buffer,
    v: Buffer,
    mask: Masked,
    o: Buffer,
    lse: Buffer,
    head_dim: usize,
}

impl Forward {
    fn prepared(
        on: On,
        problem: Problem,
        [queries, width]: [usize; 2],
        head_dim: usize,
    ) -> Result<Box<dyn Run>> {
        let (segments, keys) = problem(queries);
        Ok(Box::new(Forward {
            q: on.input(queries, width, 1)?,
            k: on.input(keys, width, 2)?,
            v: on.input(keys, width, 3)?,
            mask: Masked::new(on, segments, queries, keys)?,
            o: on.output(queries, width)?,
            lse: on.f32_output(width / head_dim, queries)?,
            head_dim,
        }))
    }
}

impl Run for Forward {
    fn run(&mut self) -> Result<()> {
        let dim = self.head_dim;
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|x| Heads::dense(x.view(), dim));
        let o = HeadsMut::dense(self.o.view_mut(), dim);
        let (lse, scale) = (self.lse.view_mut(), 1.0 / (dim as f32).sqrt());
        attention::forward(q, k, v, self.mask.mask(), o, lse, scale)
    }

    fn outputs(&self) -> Vec<&Buffer> {
        vec![&self.o, &self.lse]
    }
}
