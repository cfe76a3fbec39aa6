//! Tails against the scaled B of their pairs, rounded once, on the CPU and on CUDA; and, with matrix
//! products on CUDA, the algebra that they are for against its equations in f64.

use half::bf16;
use proptest::prelude::*;
use silkie::device::{Buffer, Device};
use silkie::ops::adamw::{self, AdamW, Part};
use silkie::ops::grad_norm::{Step, Verdict};
use silkie::ops::lora::{self, Pair, Table};
use silkie::ops::{Write, matmul};
use silkie::tensor::{DType, Tensor, TensorMut};

use crate::support::*;

fn devices() -> Vec<Device> {
    [Device::Cpu].into_iter().chain(cuda().map(Device::Cuda)).collect()
}

fn narrow(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

/// A weight with a tail of `groups` groups of `rank` columns behind `base`, and the pair of its `group`.
#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    base: usize,
    rank: usize,
    groups: usize,
    group: usize,
    lay: Lay,
}

impl Case {
    fn cols(&self) -> usize {
        self.base + self.groups * self.rank
    }

    fn weight(&self, device: Device) -> Matrix {
        let place = Place { device, dtype: DType::Bf16 };
        place.random(self.rows, self.cols(), self.lay, 1)
    }
}

/// Writes the tails of all `cases` at once; every weight afterwards.
fn write(device: Device, cases: &[Case], masters: &[f32], scale: f32) -> Vec<Vec<f32>> {
    let mut weights: Vec<Matrix> = cases.iter().map(|case| case.weight(device)).collect();
    let place = Place { device, dtype: DType::F32 };
    let masters = place.buffer(masters, 1, masters.len());
    let tail =
        |(weight, case): (_, &Case)| Matrix::view_mut(weight).slice_cols(case.base..case.cols());
    let mut tails: Vec<_> = weights.iter_mut().zip(cases).map(tail).collect();
    let mut first = 0;
    let pair = |case: &Case| {
        let pair = Pair { first, rank: case.rank, group: case.group, scale };
        first += (case.rows * case.rank).next_multiple_of(16);
        pair
    };
    let pairs: Vec<Pair> = cases.iter().map(pair).collect();
    let table = Table::new(device, &pairs, &mut tails).unwrap();
    lora::write_tails(masters.view(), &table, &mut tails).unwrap();
    weights.iter().map(Matrix::values).collect()
}

fn judge(device: Device, cases: &[Case]) {
    let scale = 0.3;
    let count = |case: &Case| (case.rows * case.rank).next_multiple_of(16);
    let masters = random(cases.iter().map(count).sum(), 2);
    let got = write(device, cases, &masters, scale);
    let mut first = 0;
    for (case, got) in cases.iter().zip(got) {
        let mut want = case.weight(Device::Cpu).values();
        for (i, row) in want.chunks_mut(case.cols()).enumerate() {
            let (tail, r) = (&mut row[case.base..], case.rank);
            tail.fill(0.0);
            let b = &masters[first + i * r..][..r];
            let own = tail[case.group * r..].iter_mut().zip(b);
            own.for_each(|(tail, b)| *tail = narrow(b * scale));
        }
        first += count(case);
        assert_same_bits(format!("{case:?} on {device}"), &got, &want);
    }
}

/// Around the rows that a block takes, 16384 / columns of the tail, and the elements that its 256
/// threads do, 4 each; one pair, two of one input, any group.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rank, groups, group) in [(8, 1, 0), (8, 3, 1), (24, 2, 1), (64, 1, 0), (64, 2, 0)] {
        let block = 16 * 1024 / (rank * groups);
        for rows in [0, 1, 3, 15, 16, 17, block - 1, block, block + 1, 2 * block + 1] {
            for lay in LAYS {
                cases.push(Case { rows, base: 16, rank, groups, group, lay });
            }
        }
    }
    cases
}

#[test]
fn tails_are_the_scaled_b_rounded_once() {
    for device in devices() {
        judge(device, &[]);
        judge(device, &cases());
        cases().iter().filter(|case| case.rows < 20).for_each(|case| judge(device, &[*case]));
    }
}

#[test]
fn neither_threads_nor_another_run_change_a_bit() {
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.lay == Lay::Strided).collect();
    let masters = random(2_000_000, 2);
    for device in devices() {
        same_on_any_threads(device, || write(device, &cases, &masters, 0.3).concat());
    }
}

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

/// y, dA and dB of each map, and dx.
struct Results {
    y: Vec<Vec<f64>>,
    da: Vec<Vec<f64>>,
    db: Vec<Vec<f64>>,
    dx: Vec<f64>,
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
        let mut results = Results { y: vec![], da: vec![], db: vec![], dx: vec![] };
        let (mut dx, mut pairs) = (vec![0.0; tokens * inputs], vec![]);
        for i in 0..self.w.len() {
            let (w, dy) = (&self.w[i], &self.dy[i]);
            let a = rounded(self.a[i].clone());
            let b = rounded(self.b[i].iter().map(|b| scale * b).collect());
            let u = rounded(nt(&self.x, &a, inputs));
            results.y.push(rounded(sum(&nt(&self.x, w, inputs), &nt(&u, &b, rank))));
            let du = rounded(nt(dy, &transposed(&b, rank), outputs));
            results.da.push(nt(&transposed(&du, rank), &transposed(&self.x, inputs), tokens));
            let db = nt(&transposed(dy, outputs), &transposed(&u, rank), tokens);
            results.db.push(db.iter().map(|db| scale * db).collect());
            dx = sum(&dx, &nt(dy, &transposed(w, inputs), outputs));
            pairs.push((du, a));
        }
        dx = rounded(dx);
        for (du, a) in &pairs {
            dx = rounded(sum(&dx, &nt(du, &transposed(a, inputs), rank)));
        }
        results.dx = dx;
        results
    }
}

/// The products of an adapted input on CUDA: one forward, one for [dx | du], and the small ones.
fn run(place: Place, maps: &Maps) -> (Vec<f32>, Vec<f32>, Results) {
    let Maps { tokens, inputs, outputs, rank, scale, .. } = *maps;
    let n = maps.w.len();
    let (slack, narrow, wide) = (n * rank, place, place.of(DType::F32));
    let floats = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();

    // masters A | B of each map in one flat buffer, A's copy by AdamW, which at rate 0 only copies
    let (a_len, b_len) = (rank * inputs, (outputs * rank).next_multiple_of(16));
    assert_eq!(a_len % 16, 0);
    let mut flat = Vec::new();
    for i in 0..n {
        flat.extend(floats(&maps.a[i]));
        flat.extend(floats(&maps.b[i]));
        flat.resize((i + 1) * (a_len + b_len), 0.0);
    }
    let len = flat.len();
    let zeros = || Buffer::on(place.device, DType::F32, 1, len).unwrap();
    let (mut p, mut m, mut v, g) = (wide.buffer(&flat, 1, len), zeros(), zeros(), zeros());
    let mut copy = Buffer::on(place.device, DType::Bf16, 1, len).unwrap();
    let whole = Part { range: 0..len, lr_scale: 1.0, weight_decay: 0.0 };
    let table = adamw::Table::new(place.device, &[whole]).unwrap();
    let record = |row: Tensor<'_>| place.buffer(row.row::<f64>(0), 1, row.cols());
    let step = record(Step { lr: 0.0, scale: 1.0, loss: 0.0 }.view());
    let verdict = Verdict { scale: 1.0, finite: 1.0, updates: 1.0, ..Verdict::default() };
    let verdict = record(verdict.view());
    let config = AdamW { beta1: 0.9, beta2: 0.98, eps: 1e-8 };
    let (p_view, into) = (p.view_mut(), Some(copy.view_mut()));
    let [m, v] = [&mut m, &mut v].map(Buffer::view_mut);
    let (step, verdict) = (step.view(), verdict.view());
    adamw::step(g.view(), step, verdict, &table, p_view, m, v, into, &config).unwrap();
    let a_of = |i: usize| {
        let first = i * (a_len + b_len);
        copy.view().slice_cols(first..first + a_len).reshape(rank, inputs)
    };

    // [W₁ | s·B₁ | 0] over [W₂ | 0 | s·B₂], x | u₁ | u₂
    let poisoned = |values: &[f64]| {
        let row = |row: &[f64]| [floats(row), vec![f32::NAN; slack]].concat();
        values.chunks(inputs).flat_map(row).collect::<Vec<f32>>()
    };
    let cols = inputs + slack;
    let mut weight = narrow.matrix(&poisoned(&maps.w.concat()), n * outputs, cols, Lay::Dense);
    let pair =
        |i: usize| Pair { first: i * (a_len + b_len) + a_len, rank, group: i, scale: scale as f32 };
    let pairs: Vec<Pair> = (0..n).map(pair).collect();
    {
        let mut rest = weight.view_mut().slice_cols(inputs..cols);
        let mut tails = Vec::new();
        for _ in 0..n {
            let (tail, below) = rest.split_rows(outputs);
            tails.push(tail);
            rest = below;
        }
        let table = Table::new(place.device, &pairs, &mut tails).unwrap();
        lora::write_tails(p.view(), &table, &mut tails).unwrap();
    }
    let mut x = narrow.matrix(&poisoned(&maps.x), tokens, cols, Lay::Dense);
    let group = |i: usize| inputs + i * rank..inputs + (i + 1) * rank;
    for i in 0..n {
        let (x, slack) = x.view_mut().split_cols(inputs);
        let u = slack.slice_cols(i * rank..(i + 1) * rank);
        matmul::nt(x.as_ref(), a_of(i), None, u, 1.0, Write::Overwrite).unwrap();
    }
    let product = |columns: usize| {
        let mut y = narrow.poisoned(tokens, n * outputs, Lay::Dense);
        let (x, weight) = (x.view().slice_cols(0..columns), weight.view().slice_cols(0..columns));
        matmul::nt(x, weight, None, y.view_mut(), 1.0, Write::Overwrite).unwrap();
        y.values()
    };
    let (y, off) = (product(cols), product(inputs));

    let beside = |parts: &[Vec<f64>]| -> Vec<f32> {
        let row = |t| parts.iter().flat_map(move |part| floats(&part[t * outputs..][..outputs]));
        (0..tokens).flat_map(row).collect()
    };
    let dy = narrow.matrix(&beside(&maps.dy), tokens, n * outputs, Lay::Dense);
    let mut d = narrow.poisoned(tokens, cols, Lay::Dense);
    matmul::nn(dy.view(), weight.view(), d.view_mut(), 1.0, Write::Overwrite).unwrap();
    let (mut da, mut db) = (vec![], vec![]);
    for i in 0..n {
        let (dx, slack) = d.view_mut().split_cols(inputs);
        let du = slack.slice_cols(i * rank..(i + 1) * rank);
        matmul::nn(du.as_ref(), a_of(i), dx, 1.0, Write::Accumulate).unwrap();
        let mut a = wide.matrix(&vec![0.0; a_len], rank, inputs, Lay::Dense);
        let inputs = x.view().slice_cols(0..inputs);
        matmul::tn(du.as_ref(), inputs, a.view_mut(), 1.0, Write::Accumulate).unwrap();
        let mut b = wide.matrix(&vec![0.0; outputs * rank], outputs, rank, Lay::Dense);
        let (own, u) = (i * outputs..(i + 1) * outputs, x.view().slice_cols(group(i)));
        let dy = dy.view().slice_cols(own);
        matmul::tn(dy, u, b.view_mut(), scale as f32, Write::Accumulate).unwrap();
        da.push(a.f64());
        db.push(b.f64());
    }
    let dx = d.f64().chunks(cols).flat_map(|row| row[..inputs].to_vec()).collect();
    (y, off, Results { y: vec![], da, db, dx })
}

/// One map, and two that share an input, at the size of a test and with the adapter off.
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
        let (y, off, got) = run(place, &maps);
        let (exact, rounded) = (maps.judge(|x| x), maps.judge(|x| place.round(x)));
        let what = |part: &str| format!("{part}, {n} maps of [{outputs}, {inputs}], rank {rank}");
        let beside = |parts: &[Vec<f64>]| -> Vec<f64> {
            let row = |t| parts.iter().flat_map(move |part| &part[t * outputs..][..outputs]);
            (0..tokens).flat_map(row).copied().collect()
        };
        // f32 sums of up to 400 terms beside roundings to 8 bits
        let bound = 1e-5;
        assert_rounded(what("y"), &y, &beside(&exact.y), &beside(&rounded.y), bound);
        let plain: Vec<_> = maps.w.iter().map(|w| nt(&maps.x, w, inputs)).collect();
        let plain = beside(&plain);
        let once: Vec<f64> = plain.iter().map(|&y| place.round(y)).collect();
        assert_rounded(what("y without the adapter"), &off, &plain, &once, bound);
        let single = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
        assert_rounded(what("dx"), &single(&got.dx), &exact.dx, &rounded.dx, bound);
        for i in 0..n {
            let (da, db) = (single(&got.da[i]), single(&got.db[i]));
            assert_rounded(what("dA"), &da, &exact.da[i], &rounded.da[i], bound);
            assert_rounded(what("dB"), &db, &exact.db[i], &rounded.db[i], bound);
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
        inner(&maps.judge(|x| x).y.concat(), &maps.dy.concat())
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

#[test]
fn refuses_what_does_not_fit() {
    let pair = Pair { first: 0, rank: 8, group: 0, scale: 1.0 };
    let place = Place { device: Device::Cpu, dtype: DType::Bf16 };
    let table = |pair: Pair, cols: usize| {
        let mut tail = place.random(3, cols, Lay::Dense, 1);
        refusal(Table::new(Device::Cpu, &[pair], &mut [tail.view_mut()]))
    };
    for rank in [0, 4, 12] {
        assert_eq!(
            table(Pair { rank, ..pair }, 16),
            format!(
                "lora::Table::new: pairs[0] has rank {rank}, expected a multiple of 8: products \
                 read 16 bytes at a time; choose another lora-r"
            )
        );
    }
    assert_eq!(
        table(Pair { first: 6, ..pair }, 16),
        "lora::Table::new: pairs[0] starts at 6, expected a multiple of 4"
    );
    for (group, cols) in [(0, 12), (2, 16), (0, 0)] {
        assert_eq!(
            table(Pair { group, ..pair }, cols),
            format!(
                "lora::Table::new: tails[0] has {cols} columns, expected a multiple of 8 beyond \
                 group {group}"
            )
        );
    }
    assert_eq!(
        refusal(Table::new(Device::Cpu, &[pair], &mut [])),
        "lora::Table::new: tails has 0 elements, expected 1, one per pair"
    );
    let mut wide = Matrix::random(3, 8, Lay::Dense, 1);
    assert_eq!(
        refusal(Table::new(Device::Cpu, &[pair], &mut [wide.view_mut()])),
        "lora::Table::new: tails[0] has type F32, expected Bf16"
    );

    let [mut tail, mut other] = [1, 2].map(|seed| place.random(3, 8, Lay::Dense, seed));
    let table = Table::new(Device::Cpu, &[pair], &mut [tail.view_mut()]).unwrap();
    let write = |masters: &[f32], tails: &mut [TensorMut<'_>]| {
        refusal(lora::write_tails(Tensor::vector(masters), &table, tails))
    };
    assert_eq!(
        write(&[0.0; 23], &mut [tail.view_mut()]),
        "lora::write_tails: table reaches to element 24 of masters, expected at most 23"
    );
    assert_eq!(
        write(&[0.0; 24], &mut [other.view_mut()]),
        "lora::write_tails: tails[0] is not where the table says; make a new table when weights move"
    );
    assert_eq!(
        write(&[0.0; 24], &mut [tail.view_mut().slice_rows(0..2)]),
        "lora::write_tails: tails[0] has shape [2, 8], expected [3, 8] (rows, columns)"
    );
    assert_eq!(
        write(&[0.0; 24], &mut []),
        "lora::write_tails: tails has 0 elements, expected 1, one per pair"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn any_shape_agrees(
        shapes in proptest::collection::vec((0usize..50, 0usize..4, 1usize..5, 1usize..4), 0..4),
        strided: bool,
    ) {
        let lay = if strided { Lay::Strided } else { Lay::Dense };
        let case = |(rows, base, rank, groups)| {
            Case { rows, base: 8 * base, rank: 8 * rank, groups, group: rows % groups, lay }
        };
        let cases: Vec<Case> = shapes.into_iter().map(case).collect();
        devices().into_iter().for_each(|device| judge(device, &cases));
    }
}
