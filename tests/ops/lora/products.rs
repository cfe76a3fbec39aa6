//! An adapted map is one product: its algebra on CUDA, with tails, slack and cuBLASLt, against the
//! equations in f64.

use std::ops::Range;

use silkie::device::{Buffer, Device};
use silkie::ops::adamw::{self, AdamW, Part};
use silkie::ops::grad_norm::{Step, Verdict};
use silkie::ops::lora::{self, Pair, Table};
use silkie::ops::{Write, matmul};
use silkie::tensor::{DType, Tensor};

use super::narrow;
use crate::support::*;

/// Maps of one input and their adapters: f64 values of what the device holds, and what it should give.
struct Maps {
    tokens: usize,
    inputs: usize,
    outputs: usize,
    rank: usize,
    scale: f64,
    x: Vec<f64>,
    /// Of each map.
    w: Vec<Vec<f64>>,
    a: Vec<Vec<f64>>,
    b: Vec<Vec<f64>>,
    dy: Vec<Vec<f64>>,
}

/// y of all maps side by side, dx, and dA and dB of each.
struct Results {
    y: Vec<f64>,
    dx: Vec<f64>,
    da: Vec<Vec<f64>>,
    db: Vec<Vec<f64>>,
}

/// `a bᵀ` with `a [m, k]`, `b [n, k]`.
fn nt(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    a.chunks(k).flat_map(|a| b.chunks(k).map(move |b| inner(a, b))).collect()
}

fn transposed(a: &[f64], cols: usize) -> Vec<f64> {
    (0..cols).flat_map(|j| a.iter().skip(j).step_by(cols).copied()).collect()
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

impl Maps {
    /// The equations; `round` where the device stores bf16: A, s·B, u, du, y, and dx after every sum.
    fn judge(&self, round: impl Fn(f64) -> f64 + Copy) -> Results {
        let Maps { tokens, inputs, outputs, rank, scale, .. } = *self;
        let rounded = |x: Vec<f64>| -> Vec<f64> { x.into_iter().map(round).collect() };
        let (mut y, mut da, mut db) = (vec![], vec![], vec![]);
        let (mut dx, mut pairs) = (vec![0.0; tokens * inputs], vec![]);
        for i in 0..self.w.len() {
            let (w, dy) = (&self.w[i], &self.dy[i]);
            let a = rounded(self.a[i].clone());
            let b = rounded(self.b[i].iter().map(|b| scale * b).collect());
            let u = rounded(nt(&self.x, &a, inputs));
            y.push(rounded(sum(&nt(&self.x, w, inputs), &nt(&u, &b, rank))));
            let du = rounded(nt(dy, &transposed(&b, rank), outputs));
            da.push(nt(&transposed(&du, rank), &transposed(&self.x, inputs), tokens));
            let outer = nt(&transposed(dy, outputs), &transposed(&u, rank), tokens);
            db.push(outer.iter().map(|db| scale * db).collect());
            dx = sum(&dx, &nt(dy, &transposed(w, inputs), outputs));
            pairs.push((du, a));
        }
        dx = rounded(dx);
        for (du, a) in &pairs {
            dx = rounded(sum(&dx, &nt(du, &transposed(a, inputs), rank)));
        }
        Results { y: self.beside(&y), dx, da, db }
    }

    /// A token's outputs of all maps, one map after another.
    fn beside(&self, parts: &[Vec<f64>]) -> Vec<f64> {
        let n = self.outputs;
        let row = |t| parts.iter().flat_map(move |part| &part[t * n..][..n]);
        (0..self.tokens).flat_map(row).copied().collect()
    }
}

/// The same on CUDA, by as few products as there can be.
struct Adapted<'m> {
    maps: &'m Maps,
    place: Place,
    /// A and B of each map, each at a multiple of 16 elements.
    masters: Buffer,
    /// AdamW's copy of them in bf16.
    copy: Buffer,
    /// `[W₁ | s·B₁ | 0]` over `[W₂ | 0 | s·B₂]`
    weight: Matrix,
    /// `x | u₁ | u₂`
    x: Matrix,
}

impl<'m> Adapted<'m> {
    fn new(place: Place, maps: &'m Maps) -> Self {
        let Maps { tokens, inputs, outputs, rank, .. } = *maps;
        let n = maps.w.len();
        let mut masters = Vec::new();
        for part in maps.a.iter().zip(&maps.b).flat_map(|(a, b)| [a, b]) {
            masters.extend(floats(part));
            masters.resize(masters.len().next_multiple_of(16), 0.0);
        }
        let mut masters = place.buffer(&masters, 1, masters.len());
        let copy = rounded_copy(place, &mut masters);
        // what the slack and the tails hold before would show in every product
        let poisoned = |values: &[f64]| -> Vec<f32> {
            let row = |row| [floats(row), vec![f32::NAN; n * rank]].concat();
            values.chunks(inputs).flat_map(row).collect()
        };
        let cols = inputs + n * rank;
        let weight = place.matrix(&poisoned(&maps.w.concat()), n * outputs, cols, Lay::Dense);
        let x = place.matrix(&poisoned(&maps.x), tokens, cols, Lay::Dense);
        Adapted { maps, place, masters, copy, weight, x }
    }

    /// First elements of A and B of map `i`.
    fn starts(&self, i: usize) -> [usize; 2] {
        let Maps { inputs, outputs, rank, .. } = *self.maps;
        let [a, b] = [rank * inputs, outputs * rank].map(|len| len.next_multiple_of(16));
        [i * (a + b), i * (a + b) + a]
    }

    fn a(&self, i: usize) -> Tensor<'_> {
        let Maps { inputs, rank, .. } = *self.maps;
        let first = self.starts(i)[0];
        self.copy.view().slice_cols(first..first + rank * inputs).reshape(rank, inputs)
    }

    /// Columns of u of map `i`.
    fn slack(&self, i: usize) -> Range<usize> {
        let Maps { inputs, rank, .. } = *self.maps;
        inputs + i * rank..inputs + (i + 1) * rank
    }

    fn write_tails(&mut self) {
        let Maps { inputs, outputs, rank, scale, .. } = *self.maps;
        let pair = |i| Pair { first: self.starts(i)[1], rank, group: i, scale: scale as f32 };
        let pairs: Vec<Pair> = (0..self.maps.w.len()).map(pair).collect();
        let (_, mut rest) = self.weight.view_mut().split_cols(inputs);
        let mut tails = Vec::new();
        for _ in &pairs {
            let (tail, below) = rest.split_rows(outputs);
            tails.push(tail);
            rest = below;
        }
        let table = Table::new(self.place.device, &pairs, &mut tails).unwrap();
        lora::write_tails(self.masters.view(), &table, &mut tails).unwrap();
    }

    fn write_slack(&mut self) {
        let inputs = self.maps.inputs;
        let mut all = self.x.clone();
        for i in 0..self.maps.w.len() {
            let (x, u) =
                (self.x.view().slice_cols(0..inputs), all.view_mut().slice_cols(self.slack(i)));
            matmul::nt(x, self.a(i), None, u, 1.0, Write::Overwrite).unwrap();
        }
        self.x = all;
    }

    /// y of all maps, by the first `columns` of weight and input.
    fn y(&self, columns: usize) -> Vec<f32> {
        let rows = self.maps.w.len() * self.maps.outputs;
        let mut y = self.place.poisoned(self.maps.tokens, rows, Lay::Dense);
        let [x, weight] = [&self.x, &self.weight].map(|part| part.view().slice_cols(0..columns));
        matmul::nt(x, weight, None, y.view_mut(), 1.0, Write::Overwrite).unwrap();
        y.values()
    }

    /// dx, and dA and dB of each map.
    fn gradients(&self) -> (Vec<f32>, Vec<[Vec<f32>; 2]>) {
        let Maps { tokens, inputs, outputs, rank, scale, .. } = *self.maps;
        let (n, wide) = (self.maps.w.len(), self.place.of(DType::F32));
        let dy = floats(&self.maps.beside(&self.maps.dy));
        let dy = self.place.matrix(&dy, tokens, n * outputs, Lay::Dense);
        let mut d = self.place.poisoned(tokens, inputs + n * rank, Lay::Dense);
        matmul::nn(dy.view(), self.weight.view(), d.view_mut(), 1.0, Write::Overwrite).unwrap();
        let add = Write::Accumulate;
        let pair = |i: usize| {
            let (dx, du) = d.view_mut().split_cols(inputs);
            let du = du.slice_cols(i * rank..(i + 1) * rank);
            matmul::nn(du.as_ref(), self.a(i), dx, 1.0, add).unwrap();
            let mut da = wide.matrix(&vec![0.0; rank * inputs], rank, inputs, Lay::Dense);
            let x = self.x.view().slice_cols(0..inputs);
            matmul::tn(du.as_ref(), x, da.view_mut(), 1.0, add).unwrap();
            let mut db = wide.matrix(&vec![0.0; outputs * rank], outputs, rank, Lay::Dense);
            let dy = dy.view().slice_cols(i * outputs..(i + 1) * outputs);
            let u = self.x.view().slice_cols(self.slack(i));
            matmul::tn(dy, u, db.view_mut(), scale as f32, add).unwrap();
            [da.values(), db.values()]
        };
        let pairs = (0..n).map(pair).collect();
        let row = |row: &[f32]| row[..inputs].to_vec();
        (d.values().chunks(inputs + n * rank).flat_map(row).collect(), pairs)
    }
}

fn floats(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

/// What a step of AdamW at rate 0 leaves beside the masters.
fn rounded_copy(place: Place, masters: &mut Buffer) -> Buffer {
    let (device, n) = (place.device, masters.cols());
    let zeros = |dtype| Buffer::on(device, dtype, 1, n).unwrap();
    let [g, mut m, mut v] = [DType::F32; 3].map(zeros);
    let mut copy = zeros(DType::Bf16);
    let whole = Part { range: 0..n, lr_scale: 1.0, weight_decay: 0.0 };
    let table = adamw::Table::new(device, &[whole]).unwrap();
    let record = |row: Tensor<'_>| place.buffer(row.row::<f64>(0), 1, row.cols());
    let step = record(Step { lr: 0.0, scale: 1.0, loss: 0.0 }.view());
    let verdict = Verdict { scale: 1.0, finite: 1.0, updates: 1.0, ..Verdict::default() };
    let verdict = record(verdict.view());
    let config = AdamW { beta1: 0.9, beta2: 0.98, eps: 1e-8 };
    let [p, m, v] = [masters, &mut m, &mut v].map(Buffer::view_mut);
    let (step, verdict, into) = (step.view(), verdict.view(), Some(copy.view_mut()));
    adamw::step(g.view(), step, verdict, &table, p, m, v, into, &config).unwrap();
    copy
}

/// One map, and two that share an input; and the base alone, by fewer columns of the same rows.
#[test]
fn one_product_is_the_map_and_its_adapter() {
    let Some(cuda) = cuda() else { return };
    let place = Place { device: Device::Cuda(cuda), dtype: DType::Bf16 };
    for (n, tokens, inputs, outputs, rank) in
        [(1, 33, 40, 56, 8), (1, 64, 128, 384, 64), (2, 33, 40, 56, 24), (2, 17, 64, 176, 8)]
    {
        let held = |len: usize, seed: u64| -> Vec<f64> {
            random(len, seed).iter().map(|&x| f64::from(narrow(x))).collect()
        };
        let masters = |len, seed| random(len, seed).iter().map(|&x| x.into()).collect();
        let of = |values: &dyn Fn(u64) -> Vec<f64>| (0..n as u64).map(values).collect::<Vec<_>>();
        let maps = Maps {
            tokens,
            inputs,
            outputs,
            rank,
            scale: 0.25,
            x: held(tokens * inputs, 1),
            w: of(&|i| held(outputs * inputs, 10 + i)),
            a: of(&|i| masters(rank * inputs, 20 + i)),
            b: of(&|i| masters(outputs * rank, 30 + i)),
            dy: of(&|i| held(tokens * outputs, 40 + i)),
        };
        let mut adapted = Adapted::new(place, &maps);
        adapted.write_tails();
        adapted.write_slack();
        let (exact, rounded) = (maps.judge(|x| x), maps.judge(|x| place.round(x)));
        let what = |part: &str| format!("{part}, {n} maps of [{outputs}, {inputs}], rank {rank}");
        // f32 sums of up to 400 terms beside roundings to 8 bits
        let bound = 1e-5;
        let y = adapted.y(inputs + n * rank);
        assert_rounded(what("y"), &y, &exact.y, &rounded.y, bound);
        let plain: Vec<_> = maps.w.iter().map(|w| nt(&maps.x, w, inputs)).collect();
        let plain = maps.beside(&plain);
        let once: Vec<f64> = plain.iter().map(|&y| place.round(y)).collect();
        let y = adapted.y(inputs);
        assert_rounded(what("y without the adapter"), &y, &plain, &once, bound);
        let (dx, pairs) = adapted.gradients();
        assert_rounded(what("dx"), &dx, &exact.dx, &rounded.dx, bound);
        for (i, [da, db]) in pairs.iter().enumerate() {
            assert_rounded(what("dA"), da, &exact.da[i], &rounded.da[i], bound);
            assert_rounded(what("dB"), db, &exact.db[i], &rounded.db[i], bound);
        }
    }
}

/// The naive gradients are the derivatives of the naive forward.
#[test]
fn the_gradients_are_the_derivatives() {
    let (tokens, inputs, outputs, rank) = (3, 4, 5, 2);
    let values = |len, seed| -> Vec<f64> { random(len, seed).iter().map(|&x| x.into()).collect() };
    let maps = |x: &[f64], a: &[f64], b: &[f64]| Maps {
        tokens,
        inputs,
        outputs,
        rank,
        scale: 0.25,
        x: x.to_vec(),
        w: vec![values(outputs * inputs, 1), values(outputs * inputs, 2)],
        a: vec![a.to_vec(), values(rank * inputs, 3)],
        b: vec![b.to_vec(), values(outputs * rank, 4)],
        dy: vec![values(tokens * outputs, 5), values(tokens * outputs, 6)],
    };
    let (x, a) = (values(tokens * inputs, 7), values(rank * inputs, 8));
    let b = values(outputs * rank, 9);
    let y = |x: &[f64], a: &[f64], b: &[f64]| {
        let maps = maps(x, a, b);
        inner(&maps.judge(|x| x).y, &maps.beside(&maps.dy))
    };
    let Results { da, db, dx, .. } = maps(&x, &a, &b).judge(|x| x);
    let by_x = central_differences(&x, 1e-5, |x| y(x, &a, &b));
    let by_a = central_differences(&a, 1e-5, |a| y(&x, a, &b));
    let by_b = central_differences(&b, 1e-5, |b| y(&x, &a, b));
    assert_derivative(
        &[&dx, &da[0], &db[0]].map(|d| d.clone()).concat(),
        &[by_x, by_a, by_b].concat(),
        1e-8,
    );
}
