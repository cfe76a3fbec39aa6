//! Matrix products against their sums in f64.

use half::{bf16, f16};
use proptest::prelude::*;
use silkie::ops::Write::{self, Accumulate, Overwrite};
use silkie::ops::matmul;
use silkie::tensor::{Tensor, TensorMut};

use crate::support::*;

/// Of the sum of absolute products: f32 with K running roundings at worst.
fn bound(k: usize) -> f64 {
    6e-8 * (k as f64).sqrt().max(4.0)
}

/// `c0 + alpha · op(a) op(b) + bias`, `a(i, p)` and `b(p, j)` given as functions.
fn naive(
    [m, n, k]: [usize; 3],
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
    alpha: f64,
    start: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let element = |i, j| start(i, j) + alpha * (0..k).map(|p| a(i, p) * b(p, j)).sum::<f64>();
    (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| element(i, j)).collect()
}

/// Judges `c` by [`naive`] of the same arguments; the error is relative to the sums of the terms'
/// absolute values.
fn judge(
    case: impl std::fmt::Debug,
    c: &Matrix,
    shape: [usize; 3],
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
    alpha: f64,
    start: impl Fn(usize, usize) -> f64,
) {
    let expected = naive(shape, &a, &b, alpha, &start);
    let (a, b) = (|i, p| a(i, p).abs(), |p, j| b(p, j).abs());
    let sizes = naive(shape, a, b, alpha.abs(), |i, j| start(i, j).abs());
    assert_sums_close(case, &c.values(), &expected, &sizes, bound(shape[2]));
}

/// An output that is NaN when it is to be overwritten, numbers when added to.
fn output(m: usize, n: usize, lay: Lay, write: Write) -> Matrix {
    match write {
        Overwrite => Matrix::poisoned(m, n, lay),
        Accumulate => Matrix::random(m, n, lay, 9),
    }
}

fn before(c: &Matrix, write: Write) -> Vec<f64> {
    if write == Accumulate { c.f64() } else { vec![0.0; c.values().len()] }
}

/// All three products of one shape, one way of lying, one way of writing.
fn check([m, n, k]: [usize; 3], lay: Lay, write: Write, alpha: f32) {
    let case = ([m, n, k], lay, write, alpha);
    let a64 = f64::from(alpha);

    let (a, b) = (Matrix::random(m, k, lay, 1), Matrix::random(n, k, lay, 2));
    let bias = Matrix::random(1, n, Lay::Dense, 3);
    let (av, bv, biasv) = (a.f64(), b.f64(), bias.f64());
    for with_bias in [false, true] {
        let mut c = output(m, n, lay, write);
        let c0 = before(&c, write);
        let bias = with_bias.then(|| bias.view());
        matmul::nt(a.view(), b.view(), bias, c.view_mut(), alpha, write).unwrap();
        let shift = |j: usize| if with_bias { biasv[j] } else { 0.0 };
        let start = |i: usize, j: usize| c0[i * n + j] + shift(j);
        judge(
            ("nt", with_bias, case),
            &c,
            [m, n, k],
            |i, p| av[i * k + p],
            |p, j| bv[j * k + p],
            a64,
            start,
        );
    }

    let b = Matrix::random(k, n, lay, 4);
    let bv = b.f64();
    let mut c = output(m, n, lay, write);
    let c0 = before(&c, write);
    matmul::nn(a.view(), b.view(), c.view_mut(), alpha, write).unwrap();
    let start = |i: usize, j: usize| c0[i * n + j];
    judge(("nn", case), &c, [m, n, k], |i, p| av[i * k + p], |p, j| bv[p * n + j], a64, start);

    let a = Matrix::random(k, m, lay, 5);
    let av = a.f64();
    let mut c = output(m, n, lay, write);
    let c0 = before(&c, write);
    matmul::tn(a.view(), b.view(), c.view_mut(), alpha, write).unwrap();
    let start = |i: usize, j: usize| c0[i * n + j];
    judge(("tn", case), &c, [m, n, k], |i, p| av[p * m + i], |p, j| bv[p * n + j], a64, start);
}

#[test]
fn products_match_their_sums() {
    let shapes = [
        [1, 1, 1],
        [3, 5, 7],
        [4, 33, 64],
        [5, 31, 65],
        [12, 32, 512],
        [13, 33, 513],
        [25, 129, 1025],
        [130, 300, 40],
        [2050, 20, 9],
    ];
    for shape in shapes {
        for lay in LAYS {
            check(shape, lay, Overwrite, 1.0);
            check(shape, lay, Accumulate, -0.5);
        }
    }
}

#[test]
fn nothing_times_something_is_nothing() {
    check([0, 5, 3], Lay::Dense, Overwrite, 1.0);
    check([5, 0, 3], Lay::Dense, Overwrite, 1.0);
    // An empty sum still writes its zero, or leaves what was there.
    check([3, 40, 0], Lay::Dense, Overwrite, 1.0);
    check([30, 40, 0], Lay::Strided, Accumulate, 1.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn any_shape(m in 0usize..70, n in 0usize..150, k in 0usize..90, add: bool, dense: bool) {
        let lay = if dense { Lay::Dense } else { Lay::Strided };
        check([m, n, k], lay, if add { Accumulate } else { Overwrite }, 0.7);
    }
}

/// A half-precision weight gives exactly what its widened copy gives.
#[test]
fn half_precision_weights_are_widened() {
    for [m, n, k] in [[1, 40, 70], [3, 50, 129], [5, 33, 65], [40, 100, 600]] {
        let a = Matrix::random(m, k, Lay::Strided, 1);
        let values = random(n * k, 2);
        let brain: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
        let ieee: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
        let wide: Vec<f32> = brain.iter().map(|x| x.to_f32()).collect();
        let ieee_wide: Vec<f32> = ieee.iter().map(|x| x.to_f32()).collect();

        let nt = |b: Tensor<'_>| {
            let mut c = Matrix::poisoned(m, n, Lay::Strided);
            matmul::nt(a.view(), b, None, c.view_mut(), 1.0, Overwrite).unwrap();
            c.values()
        };
        let case = ("nt", m, n, k);
        assert_same_bits(case, &nt(Tensor::new(&brain, n, k)), &nt(Tensor::new(&wide, n, k)));
        assert_same_bits(case, &nt(Tensor::new(&ieee, n, k)), &nt(Tensor::new(&ieee_wide, n, k)));

        let nn = |b: Tensor<'_>| {
            let mut c = Matrix::poisoned(m, n, Lay::Dense);
            matmul::nn(a.view(), b, c.view_mut(), 1.0, Overwrite).unwrap();
            c.values()
        };
        assert_same_bits(case, &nn(Tensor::new(&brain, k, n)), &nn(Tensor::new(&wide, k, n)));
        assert_same_bits(case, &nn(Tensor::new(&ieee, k, n)), &nn(Tensor::new(&ieee_wide, k, n)));
    }
}

/// Subnormal, largest, infinite and NaN halves keep their value.
#[test]
fn every_half_is_widened_exactly() {
    let one = [1.0f32];
    let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let brains: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    let widened = |b: Tensor<'_>| {
        let mut c = vec![f32::NAN; b.rows()];
        let product = TensorMut::vector(&mut c);
        matmul::nt(Tensor::vector(&one), b, None, product, 1.0, Overwrite).unwrap();
        c
    };
    for (got, x) in widened(Tensor::column(&halves)).iter().zip(&halves) {
        assert!(*got == x.to_f32() || got.is_nan() && x.is_nan(), "{x}: {got}");
    }
    for (got, x) in widened(Tensor::column(&brains)).iter().zip(&brains) {
        assert!(*got == x.to_f32() || got.is_nan() && x.is_nan(), "{x}: {got}");
    }
}

#[test]
fn bytes_do_not_depend_on_threads() {
    for [m, n, k] in [[2, 700, 300], [300, 700, 600], [700, 64, 512]] {
        let (a, b) = (Matrix::random(m, k, Lay::Dense, 1), Matrix::random(n, k, Lay::Dense, 2));
        same_on_any_threads(("nt", m, n, k), || {
            let mut c = Matrix::poisoned(m, n, Lay::Dense);
            matmul::nt(a.view(), b.view(), None, c.view_mut(), 1.0, Overwrite).unwrap();
            c.values()
        });
        let (a, b) = (Matrix::random(k, m, Lay::Dense, 1), Matrix::random(k, n, Lay::Dense, 2));
        same_on_any_threads(("tn", m, n, k), || {
            let mut c = Matrix::poisoned(m, n, Lay::Dense);
            matmul::tn(a.view(), b.view(), c.view_mut(), 1.0, Overwrite).unwrap();
            c.values()
        });
    }
}

#[test]
fn column_sums_add_to_what_is_there() {
    for (rows, cols) in [(0, 3), (1, 1), (7, 65), (100, 300)] {
        for lay in LAYS {
            let a = Matrix::random(rows, cols, lay, 1);
            let mut c = Matrix::random(1, cols, Lay::Dense, 2);
            let (av, mut expected) = (a.f64(), c.f64());
            av.chunks(cols).for_each(|row| (0..cols).for_each(|j| expected[j] += row[j]));
            matmul::column_sums(a.view(), c.view_mut()).unwrap();
            assert_close((rows, cols, lay), &c.values(), &expected, bound(rows));
        }
    }
}

#[test]
fn arguments_that_do_not_fit_are_named() {
    let (x, ids) = (vec![0.0f32; 60], vec![0u32; 60]);
    let mut y = vec![0.0f32; 60];
    let m = |r, c| Tensor::new(&x[..r * c], r, c);
    let mut c = |r: usize, c: usize| refusal_of(&mut y[..r * c], r, c, m(3, 4), m(5, 4), None);
    assert_eq!(c(3, 6), "matmul::nt: c has shape [3, 6], expected [3, 5] (rows, outputs)");
    let mut z = [0.0f32; 15];
    assert_eq!(
        refusal_of(&mut z, 3, 5, m(3, 4), m(5, 4), Some(m(1, 4))),
        "matmul::nt: bias has shape [1, 4], expected [1, 5] (1, outputs)"
    );
    assert_eq!(
        refusal_of(&mut z, 3, 5, m(3, 4), Tensor::new(&ids[..20], 5, 4), None),
        "matmul::nt: b has type U32, expected F32 or Bf16 or F16"
    );
    let c = TensorMut::new(&mut z, 3, 5);
    let error = refusal(matmul::nn(m(3, 4), m(5, 4), c, 1.0, Overwrite));
    assert_eq!(error, "matmul::nn: b has shape [5, 4], expected [4, 4] (outputs, inputs)");
}

fn refusal_of(
    y: &mut [f32],
    rows: usize,
    cols: usize,
    a: Tensor<'_>,
    b: Tensor<'_>,
    bias: Option<Tensor<'_>>,
) -> String {
    refusal(matmul::nt(a, b, bias, TensorMut::new(y, rows, cols), 1.0, Overwrite))
}
