//! Attention against softmax over explicitly listed keys, in f64.

use proptest::prelude::*;
use silkie::device::{Buffer, Device};
use silkie::ops::attention::{self, Heads, HeadsMut, Mask, Segment};
use silkie::tensor::{DType, Tensor, TensorMut};

use crate::support::*;

mod backward;
mod forward;
mod plan;

/// f32 scores of size ~1 with a rounding each, twice exponentiated and summed.
const BOUND: f64 = 3e-6;

/// Queries `q`, the keys every one sees, the keys of its own.
fn segment(q: [u32; 2], prefix: [u32; 2], own: [u32; 2], causal: bool) -> Segment {
    Segment {
        q_start: q[0],
        q_len: q[1],
        prefix_start: prefix[0],
        prefix_len: prefix[1],
        own_start: own[0],
        own_len: own[1],
        causal: u32::from(causal),
    }
}

/// Trees one after another, each a trunk and its branches.
fn trees(trees: &[(u32, &[u32])]) -> Vec<Segment> {
    let (mut segments, mut at) = (Vec::new(), 0);
    for &(trunk, branches) in trees {
        let start = at;
        segments.push(segment([at, trunk], [0, 0], [at, trunk], true));
        at += trunk;
        for &len in branches {
            segments.push(segment([at, len], [start, trunk], [at, len], true));
            at += len;
        }
    }
    segments
}

/// The keys query `i` sees, straight from the definition.
fn keys(segments: &[Segment], i: usize) -> Vec<usize> {
    let mut keys = Vec::new();
    for s in segments {
        let first = s.q_start as usize;
        if (first..first + s.q_len as usize).contains(&i) {
            keys.extend((0..s.prefix_len).map(|j| (s.prefix_start + j) as usize));
            let own = if s.causal == 1 { i - first + 1 } else { s.own_len as usize };
            keys.extend((0..own).map(|j| s.own_start as usize + j));
        }
    }
    keys
}

#[derive(Clone)]
struct Case {
    place: Place,
    segments: Vec<Segment>,
    queries: usize,
    keys: usize,
    heads: usize,
    hd: usize,
    lay: Lay,
}

#[derive(Default)]
struct Naive {
    o: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

/// Where attention runs: f32 on the CPU, bf16 on a GPU.
fn attention_places() -> impl Iterator<Item = Place> {
    places().into_iter().filter(|place| *place == Place::CPU || place.dtype == DType::Bf16)
}

impl Case {
    /// There; on a GPU with whole chunks of columns.
    fn on(&self, place: Place) -> Case {
        let on_gpu = place != Place::CPU;
        let hd = if on_gpu { self.hd.next_multiple_of(8) } else { self.hd };
        Case { place, hd, ..self.clone() }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.hd as f32).sqrt()
    }

    /// q, k, v and the gradient of o.
    fn inputs(&self) -> [Matrix; 4] {
        let width = self.heads * self.hd;
        let rows = [self.queries, self.keys, self.keys, self.queries];
        std::array::from_fn(|i| self.place.random(rows[i], width, self.lay, i as u64 + 1))
    }

    /// By the definition. Probabilities and their gradients go through `round`, as on their way to a
    /// tensor core, and so do outputs.
    fn naive(
        &self,
        q: &[f64],
        k: &[f64],
        v: &[f64],
        d_o: &[f64],
        round: impl Fn(f64) -> f64,
    ) -> Naive {
        let (hd, width) = (self.hd, self.heads * self.hd);
        let scale = f64::from(self.scale());
        let mut n = Naive {
            o: vec![0.0; q.len()],
            lse: vec![f64::NEG_INFINITY; self.queries * self.heads],
            dq: vec![0.0; q.len()],
            dk: vec![0.0; k.len()],
            dv: vec![0.0; v.len()],
        };
        for i in 0..self.queries {
            let seen = keys(&self.segments, i);
            for head in 0..self.heads {
                let at = |row: usize| row * width + head * hd..row * width + (head + 1) * hd;
                let s: Vec<f64> =
                    seen.iter().map(|&j| scale * inner(&q[at(i)], &k[at(j)])).collect();
                let max = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = s.iter().map(|s| (s - max).exp()).sum();
                n.lse[head * self.queries + i] = max + total.ln();
                let p: Vec<f64> = s.iter().map(|s| (s - max).exp() / total).collect();
                let dp: Vec<f64> = seen.iter().map(|&j| inner(&d_o[at(i)], &v[at(j)])).collect();
                for (t, &j) in seen.iter().enumerate() {
                    at(i).zip(at(j)).for_each(|(x, y)| n.o[x] += round(p[t]) * v[y]);
                }
                n.o[at(i)].iter_mut().for_each(|o| *o = round(*o));
                let delta = inner(&n.o[at(i)], &d_o[at(i)]);
                for (t, &j) in seen.iter().enumerate() {
                    let ds = scale * round(p[t] * (dp[t] - delta));
                    for (x, y) in at(i).zip(at(j)) {
                        n.dq[x] += ds * k[y];
                        n.dk[y] += ds * q[x];
                        n.dv[y] += round(p[t]) * d_o[x];
                    }
                }
            }
        }
        for x in [&mut n.dq, &mut n.dk, &mut n.dv] {
            x.iter_mut().for_each(|x| *x = round(*x));
        }
        n
    }

    /// The plan where one is read: on a GPU.
    fn plan(&self) -> Option<Buffer> {
        let Device::Cuda(_) = self.place.device else { return None };
        let mut plan = vec![u32::MAX; attention::plan_len(self.queries, self.keys)];
        attention::plan(&self.segments, self.queries, self.keys, &mut plan).unwrap();
        Some(self.place.buffer(&plan, 1, plan.len()))
    }

    fn mask<'a>(&'a self, plan: &'a Option<Buffer>) -> Mask<'a> {
        plan.as_ref().map_or(Mask::of(&self.segments), |plan| Mask::planned(plan.view()))
    }

    fn statistics(&self) -> Matrix {
        self.place.of(DType::F32).poisoned(self.heads, self.queries, self.lay)
    }

    /// `[o, lse]`
    fn forward(&self, [q, k, v, _]: &[Matrix; 4]) -> silkie::Result<[Matrix; 2]> {
        let width = self.heads * self.hd;
        let mut o = self.place.poisoned(self.queries, width, self.lay);
        let (mut lse, plan) = (self.statistics(), self.plan());
        let [q, k, v] = [q, k, v].map(|x| Heads::dense(x.view(), self.hd));
        let out = HeadsMut::dense(o.view_mut(), self.hd);
        attention::forward(q, k, v, self.mask(&plan), out, lse.view_mut(), self.scale())?;
        Ok([o, lse])
    }

    /// `[dq, dk, dv]`, of `[o, lse]`.
    fn backward(
        &self,
        [q, k, v, d_o]: &[Matrix; 4],
        [o, lse]: &[Matrix; 2],
    ) -> silkie::Result<[Matrix; 3]> {
        let width = self.heads * self.hd;
        let rows = [self.queries, self.keys, self.keys];
        let mut out = rows.map(|rows| self.place.poisoned(rows, width, self.lay));
        let (mut delta, plan) = (self.statistics(), self.plan());
        let [q, k, v, o, d_o] = [q, k, v, o, d_o].map(|x| Heads::dense(x.view(), self.hd));
        let [dq, dk, dv] = out.each_mut().map(|x| HeadsMut::dense(x.view_mut(), self.hd));
        let (lse, delta_out, mask) = (lse.view(), delta.view_mut(), self.mask(&plan));
        attention::backward(q, k, v, o, lse, d_o, mask, dq, dk, dv, delta_out, self.scale())?;
        delta.values(); // nothing around it was written
        Ok(out)
    }

    fn check(&self, name: &str) {
        self.judge(name, &self.inputs(), BOUND);
    }

    fn judge(&self, name: &str, inputs: &[Matrix; 4], bound: f64) {
        let outputs = self.judge_outputs(name, inputs, bound);
        self.judge_gradients(name, inputs, &outputs, bound);
    }

    /// Of backward alone, from these outputs of forward.
    fn judge_gradients(&self, name: &str, inputs: &[Matrix; 4], outputs: &[Matrix; 2], bound: f64) {
        let [q, k, v, d_o] = inputs.each_ref().map(Matrix::f64);
        let want = self.naive(&q, &k, &v, &d_o, |x| x);
        let rounded = self.naive(&q, &k, &v, &d_o, |x| self.place.round(x));
        let got = self.backward(inputs, outputs).unwrap().map(|m| m.values());
        let want =
            [("dq", want.dq, rounded.dq), ("dk", want.dk, rounded.dk), ("dv", want.dv, rounded.dv)];
        for (got, (name_of, want, rounded)) in got.iter().zip(want) {
            assert_rounded((name_of, self.told(name)), got, &want, &rounded, bound);
        }
    }

    /// Of forward alone, which are returned.
    fn judge_outputs(&self, name: &str, inputs: &[Matrix; 4], bound: f64) -> [Matrix; 2] {
        let [q, k, v, d_o] = inputs.each_ref().map(Matrix::f64);
        let want = self.naive(&q, &k, &v, &d_o, |x| x);
        let rounded = self.naive(&q, &k, &v, &d_o, |x| self.place.round(x));
        let outputs = self.forward(inputs).unwrap();
        let [o, lse] = outputs.each_ref().map(Matrix::values);
        assert_rounded(("o", self.told(name)), &o, &want.o, &rounded.o, bound);
        for (i, (&got, &expected)) in lse.iter().zip(&want.lse).enumerate() {
            let close = (f64::from(got) - expected).abs() < 1e-5 * expected.abs().max(1.0);
            assert!(
                close || f64::from(got) == expected,
                "{:?}: lse {i}: got {got}, expected {expected}",
                self.told(name)
            );
        }
        outputs
    }

    fn told<'a>(&self, name: &'a str) -> impl std::fmt::Debug + use<'a> {
        (name, self.queries, self.keys, self.heads, self.hd, self.lay, self.place)
    }
}

fn tree_case(shape: &[(u32, &[u32])], heads: usize, hd: usize, lay: Lay) -> Case {
    let segments = trees(shape);
    let tokens = segments.iter().map(|s| s.q_len as usize).sum();
    Case { place: Place::CPU, segments, queries: tokens, keys: tokens, heads, hd, lay }
}

/// What the model has of trees, images, resamplers and caches, and what only a test has.
fn cases() -> Vec<(&'static str, Case)> {
    let case = |segments: &[Segment], [queries, keys]: [usize; 2], heads, hd| Case {
        place: Place::CPU,
        segments: segments.to_vec(),
        queries,
        keys,
        heads,
        hd,
        lay: Lay::Dense,
    };
    let dense = [
        ("one token", tree_case(&[(1, &[])], 1, 1, Lay::Dense)),
        ("small tree", tree_case(&[(5, &[3, 1, 4])], 2, 7, Lay::Dense)),
        ("pack", tree_case(&[(40, &[9, 12]), (33, &[8, 8, 8, 8]), (1, &[1])], 4, 16, Lay::Dense)),
        ("several tiles", tree_case(&[(300, &[129, 128, 127])], 2, 128, Lay::Dense)),
        // Two images, every patch sees every patch of its own.
        (
            "vit",
            case(
                &[Segment::all(0, 150, 0, 150), Segment::all(150, 150, 150, 150)],
                [300, 300],
                3,
                104,
            ),
        ),
        // Two images, a few queries each over keys of another length.
        (
            "resampler",
            case(&[Segment::all(0, 17, 0, 260), Segment::all(17, 17, 260, 260)], [34, 520], 2, 24),
        ),
        // The next token of two sequences whose past lies in a cache of 200 rows each.
        (
            "decode",
            case(&[Segment::all(0, 1, 0, 131), Segment::all(1, 1, 200, 77)], [2, 400], 2, 32),
        ),
        // A branch that continues a cache: prefix elsewhere, own keys at its end.
        ("continued", case(&[segment([0, 9], [3, 140], [150, 9], true)], [9, 160], 2, 8)),
        // Queries without keys, and rows of no segment.
        (
            "gaps",
            case(
                &[
                    segment([2, 3], [0, 0], [4, 3], true),
                    segment([5, 2], [0, 0], [0, 0], false),
                    segment([9, 0], [0, 0], [9, 0], true),
                ],
                [12, 9],
                2,
                5,
            ),
        ),
        // What the plan holds behind a tile without entries would name keys that there are not.
        ("one amid many", case(&[segment([200, 1], [0, 0], [0, 1], false)], [300, 1], 1, 8)),
        ("no segment", case(&[], [4, 5], 2, 3)),
        ("nothing", case(&[], [0, 0], 2, 3)),
        // An order that no tree has.
        (
            "shared",
            case(
                &[
                    segment([0, 4], [10, 5], [0, 4], true),
                    segment([4, 4], [0, 4], [4, 6], false),
                    segment([8, 3], [12, 3], [0, 2], false),
                ],
                [11, 15],
                3,
                4,
            ),
        ),
    ];
    let strided = dense.clone().map(|(name, case)| (name, Case { lay: Lay::Strided, ..case }));
    dense.into_iter().chain(strided).collect()
}

#[test]
fn every_case_matches_the_definition() {
    for place in attention_places() {
        for (name, case) in cases() {
            case.on(place).check(name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_pack_of_trees(
        shape in prop::collection::vec((1u32..150, prop::collection::vec(1u32..40, 0..4)), 1..4),
        heads in 1usize..4,
        hd in 1usize..40,
    ) {
        let shape: Vec<(u32, &[u32])> = shape.iter().map(|(t, b)| (*t, b.as_slice())).collect();
        tree_case(&shape, heads, hd, Lay::Strided).check("any");
    }
}

/// The naive gradients are the derivative of the naive output.
#[test]
fn naive_gradients_are_derivatives() {
    let case = tree_case(&[(4, &[2, 3]), (2, &[1])], 2, 3, Lay::Dense);
    let [q, k, v, d_o] = case.inputs().each_ref().map(Matrix::f64);
    let naive = case.naive(&q, &k, &v, &d_o, |x| x);
    let loss = |q: &[f64], k: &[f64], v: &[f64]| inner(&case.naive(q, k, v, &d_o, |x| x).o, &d_o);
    let f32s = |x: Vec<f64>| x.into_iter().map(|x| x as f32).collect::<Vec<f32>>();
    let step = 1e-5;
    let numeric = central_differences(&q, step, |q| loss(q, &k, &v));
    assert_close("dq", &f32s(numeric), &naive.dq, 1e-6);
    let numeric = central_differences(&k, step, |k| loss(&q, k, &v));
    assert_close("dk", &f32s(numeric), &naive.dk, 1e-6);
    let numeric = central_differences(&v, step, |v| loss(&q, &k, v));
    assert_close("dv", &f32s(numeric), &naive.dv, 1e-6);
}

/// Scores in the hundreds: nothing overflows, the largest wins.
#[test]
fn huge_scores_stay_finite() {
    for place in attention_places() {
        let case = tree_case(&[(150, &[20])], 1, 16, Lay::Dense).on(place);
        let mut inputs = case.inputs();
        let big: Vec<f32> = inputs[0].values().iter().map(|x| x * 400.0).collect();
        inputs[0] = place.matrix(&big, case.queries, 16, Lay::Dense);
        // Scores of some 500 carry 3e-5 of rounding into the exponent, gradients cancel on top.
        case.judge("huge", &inputs, 1e-3);
    }
}

#[test]
fn bytes_do_not_depend_on_threads() {
    for case in [
        tree_case(&[(200, &[60, 50]), (30, &[9])], 3, 32, Lay::Strided),
        tree_case(&[(300, &[])], 1, 64, Lay::Dense),
    ] {
        let inputs = case.inputs();
        same_on_any_threads(("attention", case.queries), || {
            let outputs = case.forward(&inputs).unwrap();
            let gradients = case.backward(&inputs, &outputs).unwrap();
            outputs.iter().chain(&gradients).flat_map(Matrix::values).collect()
        });
    }
}

#[test]
fn arguments_that_do_not_fit_are_named() {
    let (x, mut o, mut l) = (vec![0.0f32; 48], vec![0.0f32; 48], vec![0.0f32; 8]);
    let mut refused = |segments: &[Segment], head_dim: usize| {
        let x = Heads::dense(Tensor::new(&x, 4, 12), head_dim);
        let o = HeadsMut::dense(TensorMut::new(&mut o, 4, 12), head_dim);
        let lse = TensorMut::new(&mut l, 2, 4);
        refusal(attention::forward(x, x, x, Mask::of(segments), o, lse, 1.0))
    };
    assert_eq!(
        refused(&[], 5),
        "attention::forward: q has 12 columns, expected a multiple of head_dim 5"
    );
    assert_eq!(
        refused(&[], 4),
        "attention::forward: lse has shape [2, 4], expected [3, 4] (heads, queries)"
    );
    let say = |message: String| message.split(", got").next().unwrap_or_default().to_string();
    for (segments, expected) in [
        (vec![segment([0, 5], [0, 0], [0, 5], true)], "segment 0: expected queries within 0..4"),
        (vec![segment([0, 4], [2, 3], [0, 1], false)], "segment 0: expected keys within 0..4"),
        (
            vec![segment([0, 2], [1, 2], [2, 2], true)],
            "segment 0: expected prefix and own keys that do not overlap",
        ),
        (
            vec![segment([0, 3], [0, 0], [0, 2], true)],
            "segment 0: expected causal 0, or 1 and as many own keys as queries",
        ),
        (
            vec![segment([0, 3], [0, 0], [0, 3], true), segment([2, 1], [0, 0], [0, 1], true)],
            "segment 1: expected queries within 3..4",
        ),
        (
            vec![segment([u32::MAX, u32::MAX], [0, 0], [0, u32::MAX], true)],
            "segment 0: expected queries within 0..4",
        ),
    ] {
        let message = say(refused(&segments, 6));
        assert!(message.contains(expected), "{message}");
    }
}
