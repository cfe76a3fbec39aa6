//! Log-probabilities and unit gradients against f64, on the CPU and on CUDA.

mod branches;
mod calls;
mod pass;

use half::bf16;
use proptest::prelude::*;
use silkie::device::{Buffer, Device};
use silkie::ops::log_ratio;
use silkie::tensor::{DType, Tensor};

use crate::support::*;

struct Case {
    /// On CUDA `h` and `head` are bf16, and `dh` is what the place says.
    place: Place,
    rows: usize,
    width: usize,
    vocabulary: usize,
    /// Rows of the scratch.
    chunk: usize,
    lay: Lay,
    /// Size of the hidden states: spreads the logits.
    size: f32,
}

struct Inputs {
    h: Matrix,
    head: Matrix,
    targets: Vec<u32>,
    factors: Matrix,
}

struct Naive {
    log_probs: Vec<f64>,
    dh: Vec<f64>,
    dhead: Vec<f64>,
}

/// `round` is what becomes of a gradient by the logits.
fn naive(
    width: usize,
    [h, head, factors]: [&[f64]; 3],
    targets: &[u32],
    round: impl Fn(f64) -> f64,
) -> Naive {
    let mut n = Naive { log_probs: vec![], dh: vec![0.0; h.len()], dhead: vec![0.0; head.len()] };
    for (r, h) in h.chunks(width).enumerate() {
        let y = targets[r] as usize;
        let z: Vec<f64> = head.chunks(width).map(|w| inner(h, w)).collect();
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weight = |v: usize| (z[v] - max).exp();
        let others: f64 = (0..z.len()).filter(|&v| v != y).map(weight).sum();
        let total = others + weight(y);
        n.log_probs.push(z[y] - max - total.ln());
        for (v, z) in z.iter().enumerate() {
            let g = if v == y { others / total } else { -(z - max).exp() / total };
            for j in 0..width {
                n.dh[r * width + j] += round(g) * head[v * width + j];
                n.dhead[v * width + j] += round(factors[r] * g) * h[j];
            }
        }
    }
    n
}

impl Case {
    fn what(&self, part: &str) -> String {
        let &Case { place, rows, width, vocabulary, chunk, lay, size } = self;
        format!("{part} [{rows}, {width}, {vocabulary}] by {chunk} {lay:?} {size} {place:?}")
    }

    fn is_on_cpu(&self) -> bool {
        self.place.device == Device::Cpu
    }

    /// What products read.
    fn operand(&self, values: &[f32], rows: usize) -> Matrix {
        let dtype = if self.is_on_cpu() { DType::F32 } else { DType::Bf16 };
        self.place.of(dtype).matrix(values, rows, self.width, self.lay)
    }

    fn inputs(&self) -> Inputs {
        let h = random(self.rows * self.width, 1);
        let h: Vec<f32> = h.iter().map(|x| x * self.size).collect();
        Inputs {
            h: self.operand(&h, self.rows),
            head: self.operand(&random(self.vocabulary * self.width, 2), self.vocabulary),
            targets: random_indices(self.rows, self.vocabulary, 3),
            factors: self.place.of(DType::F32).random(self.rows, 1, self.lay, 4),
        }
    }

    /// A gradient by the logits, as products read it.
    fn rounded(&self, gradient: f64) -> f64 {
        if self.is_on_cpu() { gradient } else { bf16::from_f64(gradient).to_f64() }
    }

    fn f32s(&self, rows: usize, cols: usize) -> Matrix {
        self.place.of(DType::F32).poisoned(rows, cols, self.lay)
    }

    fn forward(&self, inputs: &Inputs) -> silkie::Result<[Matrix; 2]> {
        let head = inputs.head.view();
        self.forward_with(inputs, head)
    }

    /// Log-probabilities and unit gradients.
    fn forward_with(&self, inputs: &Inputs, head: Tensor<'_>) -> silkie::Result<[Matrix; 2]> {
        let h = inputs.h.view();
        let targets = self.place.buffer(&inputs.targets, self.rows, 1);
        let mut dh = self.place.poisoned(self.rows, self.width, self.lay);
        let [mut log_probs, mut alone] = [(); 2].map(|()| self.f32s(self.rows, 1));
        let mut logits = self.f32s(self.chunk, self.vocabulary);
        let (p, g, z) = (log_probs.view_mut(), Some(dh.view_mut()), logits.view_mut());
        log_ratio::forward(h, head, targets.view(), p, g, z)?;
        log_ratio::forward(h, head, targets.view(), alone.view_mut(), None, logits.view_mut())?;
        assert_same_bits(self.what("without dh"), &alone.values(), &log_probs.values());
        logits.values();
        Ok([log_probs, dh])
    }

    /// Adds to `dhead`.
    fn backward_head(&self, inputs: &Inputs, dhead: &mut Matrix) {
        let Inputs { h, head, targets, factors } = inputs;
        let targets = self.place.buffer(targets, self.rows, 1);
        let mut logits = self.f32s(self.chunk, self.vocabulary);
        let (h, head, factors) = (h.view(), head.view(), factors.view());
        let (out, z) = (dhead.view_mut(), logits.view_mut());
        log_ratio::backward_head(h, head, targets.view(), factors, out, z).unwrap();
        logits.values();
    }

    fn dhead(&self) -> Matrix {
        self.place.of(DType::F32).random(self.vocabulary, self.width, self.lay, 5)
    }

    /// f32 arithmetic about numbers of this size.
    fn bound(&self) -> f64 {
        1e-6 * f64::from(self.size).max(1.0)
    }

    fn check(&self) {
        let inputs = self.inputs();
        let Inputs { h, head, targets, factors } = &inputs;
        let [h, head, factors] = [h, head, factors].map(Matrix::f64);
        let of =
            |round: &dyn Fn(f64) -> f64| naive(self.width, [&h, &head, &factors], targets, round);
        let (want, rounded) = (of(&|g| g), of(&|g| self.rounded(g)));
        let [log_probs, dh] = self.forward(&inputs).unwrap();
        let bound = self.bound();
        assert_within(self.what("log_probs"), &log_probs.values(), &want.log_probs, 4.0 * bound);
        let stored: Vec<f64> = rounded.dh.iter().map(|&x| self.place.round(x)).collect();
        assert_rounded(self.what("dh"), &dh.values(), &want.dh, &stored, bound);

        let mut dhead = self.dhead();
        let before = dhead.f64();
        let plus = |x: Vec<f64>| before.iter().zip(x).map(|(a, b)| a + b).collect::<Vec<_>>();
        let (want, rounded) = (plus(want.dhead), plus(rounded.dhead));
        self.backward_head(&inputs, &mut dhead);
        assert_rounded(self.what("dhead"), &dhead.values(), &want, &rounded, bound);
    }
}

fn case(place: Place, rows: usize, width: usize, vocabulary: usize, chunk: usize) -> Case {
    Case { place, rows, width, vocabulary, chunk, lay: Lay::Strided, size: 1.0 }
}

#[test]
fn log_probs_and_gradients_match_f64() {
    for [rows, width, vocabulary, chunk] in
        [[1, 1, 1, 1], [7, 5, 11, 3], [9, 33, 300, 9], [30, 64, 9001, 8], [5, 16, 70, 64]]
    {
        case(Place::CPU, rows, width, vocabulary, chunk).check();
    }
    for place in places() {
        for [rows, width, vocabulary, chunk] in
            [[1, 1, 4, 1], [7, 5, 12, 3], [9, 33, 300, 9], [30, 64, 9004, 8], [5, 16, 72, 64]]
        {
            case(place, rows, width, vocabulary, chunk).check();
        }
        Case { lay: Lay::Dense, ..case(place, 12, 48, 5000, 5) }.check();
        Case { size: 30.0, ..case(place, 6, 40, 4100, 4) }.check();
    }
}

#[test]
fn the_vocabulary_of_qwen_matches_f64() {
    for place in places() {
        Case { lay: Lay::Dense, ..case(place, 3, 8, 151_936, 2) }.check();
    }
}

#[test]
fn no_row_is_no_work() {
    for place in places() {
        case(place, 0, 4, 12, 3).check();
        case(place, 0, 4, 12, 0).check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape(
        rows in 0usize..20,
        width in 1usize..40,
        vocabulary in 1usize..200,
        chunk in 1usize..25,
    ) {
        case(Place::CPU, rows, width, vocabulary, chunk).check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn any_shape_on_cuda(
        rows in 0usize..20,
        width in 1usize..40,
        packs in 1usize..600,
        chunk in 1usize..25,
    ) {
        for place in places().into_iter().filter(|place| *place != Place::CPU) {
            case(place, rows, width, 4 * packs, chunk).check();
        }
    }
}

#[test]
fn naive_gradients_are_derivatives() {
    let case = case(Place::CPU, 3, 4, 6, 2);
    let Inputs { h, head, targets, .. } = case.inputs();
    let (h, head, factors) = (h.f64(), head.f64(), vec![0.5, -1.0, 2.0]);
    let of = |h: &[f64], head: &[f64]| naive(4, [h, head, &factors], &targets, |g| g);
    let want = of(&h, &head);
    let loss = |h: &[f64], head: &[f64], factors: &[f64]| inner(&of(h, head).log_probs, factors);
    let numeric = central_differences(&h, 1e-5, |h| loss(h, &head, &[1.0; 3]));
    assert_derivative(&want.dh, &numeric, 1e-8);
    let numeric = central_differences(&head, 1e-5, |head| loss(&h, head, &factors));
    assert_derivative(&want.dhead, &numeric, 1e-8);
}

#[test]
fn a_half_precision_head_is_widened() {
    let case = case(Place::CPU, 9, 32, 700, 4);
    let inputs = case.inputs();
    let half: Vec<bf16> = inputs.head.values().iter().map(|&x| bf16::from_f32(x)).collect();
    let wide: Vec<f32> = half.iter().map(|x| x.to_f32()).collect();
    let got = case.forward_with(&inputs, Tensor::new(&half, 700, 32)).unwrap();
    let expected = case.forward_with(&inputs, Tensor::new(&wide, 700, 32)).unwrap();
    for (what, got, expected) in
        [("log_probs", &got[0], &expected[0]), ("dh", &got[1], &expected[1])]
    {
        assert_same_bits(what, &got.values(), &expected.values());
    }
}

/// One logit of 40 above the rest: p_y rounds to 1, the gradient is what the others leave.
#[test]
fn a_certain_target_keeps_its_gradient() {
    for place in places() {
        let case = Case { lay: Lay::Dense, ..case(place, 1, 2, 4, 1) };
        let inputs = Inputs {
            h: case.operand(&[40.0, 1.0], 1),
            head: case.operand(&[1.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, 0.5], 4),
            targets: vec![0],
            ..case.inputs()
        };
        let (h, head) = (inputs.h.f64(), inputs.head.f64());
        let of = |round: &dyn Fn(f64) -> f64| naive(2, [&h, &head, &[1.0]], &[0], round);
        let want = of(&|g| g);
        assert!(want.dh[0] > 0.0 && want.dh[0] < 1e-16);
        let [log_probs, dh] = case.forward(&inputs).unwrap();
        let rounded = of(&|g| case.rounded(g)).dh;
        let stored: Vec<f64> = rounded.iter().map(|&x| place.round(x)).collect();
        assert_rounded("dh", &dh.values(), &want.dh, &stored, 1e-6);
        assert_within("log_probs", &log_probs.values(), &want.log_probs, 1e-7);
    }
}

#[test]
fn neither_threads_nor_another_run_change_a_bit() {
    for place in places() {
        let case = case(place, 20, 64, 6000, 7);
        let inputs = case.inputs();
        same_on_any_threads(format!("log_ratio {place:?}"), || {
            let [log_probs, dh] = case.forward(&inputs).unwrap();
            let mut dhead = case.dhead();
            case.backward_head(&inputs, &mut dhead);
            [log_probs, dh, dhead].map(|part| part.values()).concat()
        });
    }
}

/// A graph is recorded once, and computes from what its buffers hold then.
#[test]
fn a_graph_computes_what_calls_do() {
    let Some(cuda) = cuda() else { return };
    let place = Place { device: Device::Cuda(cuda), dtype: DType::Bf16 };
    let case = case(place, 5, 16, 6000, 2);
    let inputs = case.inputs();
    let expected = case.forward(&inputs).unwrap(); // also chooses the products' algorithms
    let targets = place.buffer(&inputs.targets, 5, 1);
    let (mut log_probs, mut logits) = (case.f32s(5, 1), case.f32s(2, 6000));
    let mut dh = place.poisoned(5, 16, case.lay);
    let graph = cuda.capture(|| {
        let (p, g, z) = (log_probs.view_mut(), Some(dh.view_mut()), logits.view_mut());
        log_ratio::forward(inputs.h.view(), inputs.head.view(), targets.view(), p, g, z)
    });
    let graph = graph.unwrap();
    assert!(log_probs.values().iter().all(|p| p.is_nan()), "recording computes nothing");
    graph.launch().unwrap();
    assert_same_bits("log_probs", &log_probs.values(), &expected[0].values());
    assert_same_bits("dh", &dh.values(), &expected[1].values());
}

#[test]
fn rows_at_once_fit_the_budget() {
    let row = 4 * 151_936;
    let rows = |bytes| log_ratio::rows_at_once(151_936, bytes);
    assert_eq!([0, 16 * row, 17 * row, 128 * row - 1].map(rows), [16, 16, 17, 127]);
    assert_eq!([128 * row, 256 * row - 1, 256 * row].map(rows), [128, 128, 256]);
    assert_eq!(rows(320 << 20), 512);
    assert_eq!(log_ratio::rows_at_once(0, 1024), 256);
}

#[test]
fn arguments_that_do_not_fit_are_named() {
    let (h, head) = (Matrix::random(2, 3, Lay::Dense, 1), Matrix::random(5, 3, Lay::Dense, 2));
    let refused = |targets: &[u32], chunk: usize| {
        let (mut p, mut z) =
            (Matrix::poisoned(2, 1, Lay::Dense), Matrix::poisoned(chunk, 5, Lay::Dense));
        let (targets, p, z) = (Tensor::column(targets), p.view_mut(), z.view_mut());
        refusal(log_ratio::forward(h.view(), head.view(), targets, p, None, z))
    };
    assert_eq!(
        refused(&[4, 5], 2),
        "log_ratio::forward: targets[1] is 5, expected less than 5 (the vocabulary)"
    );
    assert_eq!(
        refused(&[1], 2),
        "log_ratio::forward: targets has shape [1, 1], expected [2, 1] (rows, 1)"
    );
    assert_eq!(
        refused(&[1, 2], 0),
        "log_ratio::forward: logits has 0 rows, expected at least 1 for 2 rows"
    );
}

#[test]
fn a_gpu_refuses_what_its_kernels_cannot_read() {
    let Some(cuda) = cuda() else { return };
    let place = Place { device: Device::Cuda(cuda), dtype: DType::Bf16 };
    let f32 = place.of(DType::F32);
    let odd = case(place, 2, 3, 10, 2);
    assert_eq!(
        refusal(odd.forward(&odd.inputs())),
        "log_ratio::forward: logits has 10 columns, expected a multiple of 4: kernels read 16 bytes at a time"
    );
    let fits = case(place, 2, 3, 12, 2);
    let wide = Inputs { h: f32.random(2, 3, Lay::Dense, 1), ..fits.inputs() };
    let expected = "log_ratio::forward: h has type F32, expected Bf16";
    assert_eq!(refusal(fits.forward(&wide)), expected);
    let wide = f32.random(12, 3, Lay::Dense, 1);
    assert_eq!(
        refusal(fits.forward_with(&fits.inputs(), wide.view())),
        "log_ratio::forward: head has type F32, expected Bf16"
    );
    let (mut narrow, mut p) = (place.poisoned(2, 12, Lay::Dense), f32.poisoned(2, 1, Lay::Dense));
    let targets = Buffer::on(place.device, DType::U32, 2, 1).unwrap();
    let (z, p) = (narrow.view_mut(), p.view_mut());
    assert_eq!(
        refusal(log_ratio::log_probs(z, targets.view(), p)),
        "log_ratio::log_probs: logits has type Bf16, expected F32"
    );
    let host = Tensor::column(&[0u32, 0]);
    let mut logits = f32.poisoned(2, 12, Lay::Dense);
    assert_eq!(
        refusal(log_ratio::gradients(logits.view_mut(), host, None, None)),
        format!(
            "log_ratio::gradients: targets is on cpu, expected cuda:{} like the others",
            cuda.ordinal()
        )
    );
}
