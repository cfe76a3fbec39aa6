//! Log-probabilities and unit gradients against f64.

use half::bf16;
use proptest::prelude::*;
use silkie::ops::log_ratio;
use silkie::tensor::Tensor;

use crate::support::*;

struct Case {
    rows: usize,
    width: usize,
    vocabulary: usize,
    /// Rows of the scratch.
    chunk: usize,
    lay: Lay,
    /// Size of the hidden states: spreads the logits.
    size: f32,
}

struct Naive {
    log_probs: Vec<f64>,
    dh: Vec<f64>,
    dhead: Vec<f64>,
}

impl Case {
    fn inputs(&self) -> (Matrix, Matrix, Vec<u32>) {
        let h = random(self.rows * self.width, 1);
        let h: Vec<f32> = h.iter().map(|x| x * self.size).collect();
        (
            Matrix::of(&h, self.rows, self.width, self.lay),
            Matrix::random(self.vocabulary, self.width, self.lay, 2),
            random_indices(self.rows, self.vocabulary, 3),
        )
    }

    fn naive(&self, h: &[f64], head: &[f64], targets: &[u32], factors: &[f64]) -> Naive {
        let d = self.width;
        let mut n =
            Naive { log_probs: vec![], dh: vec![0.0; h.len()], dhead: vec![0.0; head.len()] };
        for (r, h) in h.chunks(d).enumerate() {
            let y = targets[r] as usize;
            let z: Vec<f64> = head.chunks(d).map(|w| inner(h, w)).collect();
            let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weight = |v: usize| (z[v] - max).exp();
            let others: f64 = (0..z.len()).filter(|&v| v != y).map(weight).sum();
            let total = others + weight(y);
            n.log_probs.push(z[y] - max - total.ln());
            for (v, z) in z.iter().enumerate() {
                let g = if v == y { others / total } else { -(z - max).exp() / total };
                for j in 0..d {
                    n.dh[r * d + j] += g * head[v * d + j];
                    n.dhead[v * d + j] += factors[r] * g * h[j];
                }
            }
        }
        n
    }

    fn forward(&self, h: &Matrix, head: Tensor<'_>, targets: &[u32]) -> (Vec<f32>, Vec<f32>) {
        let (mut log_probs, mut dh) =
            (Matrix::poisoned(self.rows, 1, self.lay), self.poisoned(self.rows, self.width));
        let mut logits = self.poisoned(self.chunk, self.vocabulary);
        let targets = Tensor::column(targets);
        let (p, g, z) = (log_probs.view_mut(), Some(dh.view_mut()), logits.view_mut());
        log_ratio::forward(h.view(), head, targets, p, g, z).unwrap();

        // Without the gradient: the same log-probabilities.
        let mut alone = self.poisoned(self.rows, 1);
        let z = logits.view_mut();
        log_ratio::forward(h.view(), head, targets, alone.view_mut(), None, z).unwrap();
        assert_same_bits("without dh", &alone.values(), &log_probs.values());
        logits.values();
        (log_probs.values(), dh.values())
    }

    fn poisoned(&self, rows: usize, cols: usize) -> Matrix {
        Matrix::poisoned(rows, cols, self.lay)
    }

    fn check(&self) {
        let (h, head, targets) = self.inputs();
        let factors = Matrix::random(self.rows, 1, self.lay, 4);
        let naive = self.naive(&h.f64(), &head.f64(), &targets, &factors.f64());
        let case = (self.rows, self.width, self.vocabulary, self.chunk, self.lay, self.size);
        let (log_probs, dh) = self.forward(&h, head.view(), &targets);
        let bound = 1e-6 * f64::from(self.size).max(1.0);
        assert_within(("log_probs", case), &log_probs, &naive.log_probs, 4.0 * bound);
        assert_close(("dh", case), &dh, &naive.dh, bound);

        let mut dhead = Matrix::random(self.vocabulary, self.width, self.lay, 5);
        let expected: Vec<f64> = dhead.f64().iter().zip(&naive.dhead).map(|(a, b)| a + b).collect();
        let mut logits = self.poisoned(self.chunk, self.vocabulary);
        let (out, z) = (dhead.view_mut(), logits.view_mut());
        let targets = Tensor::column(&targets);
        log_ratio::backward_head(h.view(), head.view(), targets, factors.view(), out, z).unwrap();
        assert_close(("dhead", case), &dhead.values(), &expected, bound);
    }
}

fn case(rows: usize, width: usize, vocabulary: usize, chunk: usize) -> Case {
    Case { rows, width, vocabulary, chunk, lay: Lay::Strided, size: 1.0 }
}

#[test]
fn log_probs_and_gradients_match_f64() {
    case(1, 1, 1, 1).check();
    case(7, 5, 11, 3).check();
    case(9, 33, 300, 9).check();
    case(30, 64, 9001, 8).check();
    case(5, 16, 70, 64).check();
    Case { lay: Lay::Dense, ..case(12, 48, 5000, 5) }.check();
    Case { size: 30.0, ..case(6, 40, 4097, 4) }.check();
}

#[test]
fn no_row_is_no_work() {
    case(0, 4, 9, 3).check();
    case(0, 4, 9, 0).check();
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
        case(rows, width, vocabulary, chunk).check();
    }
}

#[test]
fn naive_gradients_are_derivatives() {
    let case = case(3, 4, 6, 2);
    let (h, head, targets) = case.inputs();
    let (h, head, factors) = (h.f64(), head.f64(), vec![0.5, -1.0, 2.0]);
    let naive = case.naive(&h, &head, &targets, &factors);
    let loss = |h: &[f64], head: &[f64], factors: &[f64]| {
        inner(&case.naive(h, head, &targets, factors).log_probs, factors)
    };
    let f32s = |x: Vec<f64>| x.into_iter().map(|x| x as f32).collect::<Vec<f32>>();
    let numeric = central_differences(&h, 1e-5, |h| loss(h, &head, &[1.0; 3]));
    assert_close("dh", &f32s(numeric), &naive.dh, 1e-6);
    let numeric = central_differences(&head, 1e-5, |head| loss(&h, head, &factors));
    assert_close("dhead", &f32s(numeric), &naive.dhead, 1e-6);
}

#[test]
fn a_half_precision_head_is_widened() {
    let case = case(9, 32, 700, 4);
    let (h, head, targets) = case.inputs();
    let half: Vec<bf16> = head.values().iter().map(|&x| bf16::from_f32(x)).collect();
    let wide: Vec<f32> = half.iter().map(|x| x.to_f32()).collect();
    let got = case.forward(&h, Tensor::new(&half, 700, 32), &targets);
    let expected = case.forward(&h, Tensor::new(&wide, 700, 32), &targets);
    assert_same_bits("log_probs", &got.0, &expected.0);
    assert_same_bits("dh", &got.1, &expected.1);
}

/// One logit of 40 above the rest: p_y rounds to 1, the gradient is what the others leave.
#[test]
fn a_certain_target_keeps_its_gradient() {
    let case = Case { lay: Lay::Dense, ..case(1, 2, 3, 1) };
    let head = Matrix::of(&[1.0, 0.0, 0.0, 1.0, 0.0, -1.0], 3, 2, Lay::Dense);
    let h = Matrix::of(&[40.0, 1.0], 1, 2, Lay::Dense);
    let naive = case.naive(&h.f64(), &head.f64(), &[0], &[1.0]);
    let (log_probs, dh) = case.forward(&h, head.view(), &[0]);
    assert!(naive.dh[0] > 0.0 && naive.dh[0] < 1e-16);
    assert_close("dh", &dh, &naive.dh, 1e-6);
    assert_within("log_probs", &log_probs, &naive.log_probs, 1e-7);
}

/// Logits of ±3e38 and -inf neither overflow nor make NaN.
#[test]
fn huge_logits_stay_finite() {
    let case = Case { lay: Lay::Dense, ..case(1, 1, 4, 1) };
    let h = Matrix::of(&[1.0], 1, 1, Lay::Dense);
    let head = [3e38f32, -3e38, f32::NEG_INFINITY, 3e38];
    let logits = |target: u32| {
        let mut z = case.poisoned(1, 4);
        let mut p = case.poisoned(1, 1);
        let head = Tensor::new(&head, 4, 1);
        let (targets, out) = ([target], p.view_mut());
        log_ratio::forward(h.view(), head, Tensor::column(&targets), out, None, z.view_mut())
            .unwrap();
        p.values()[0]
    };
    assert_within("tie of the largest", &[logits(0)], &[-(2.0f64.ln())], 1e-6);
    assert_eq!(logits(1), f32::NEG_INFINITY); // -6e38 is beyond f32
    assert_eq!(logits(2), f32::NEG_INFINITY);
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let case = case(20, 64, 6000, 7);
    let (h, head, targets) = case.inputs();
    same_on_any_threads("log_ratio", || {
        let (log_probs, dh) = case.forward(&h, head.view(), &targets);
        [log_probs, dh].concat()
    });
}

#[test]
fn branches_are_summed_in_f64() {
    let rows = [-1e8f32, -1.0, -1.0, -0.5];
    let sums = log_ratio::branch_sums(Tensor::column(&rows), &[0, 3, 3, 4]);
    assert_eq!(sums, [-100_000_002.0, 0.0, -0.5]);
    assert!(log_ratio::branch_sums(Tensor::column(&rows), &[0]).is_empty());
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
