//! Matrix products against their sums in f64.

use half::{bf16, f16};
use proptest::prelude::*;
use silkie::device::cuda::{Algorithms, Cuda};
use silkie::device::{Buffer, Device};
use silkie::ops::Write::{self, Accumulate, Overwrite};
use silkie::ops::matmul;
use silkie::tensor::{DType, Tensor, TensorMut};

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

/// A matrix on the GPU: some columns of a wider one, guards on both sides.
struct There {
    buffer: Buffer,
    rows: usize,
    left: usize,
    cols: usize,
    /// What lies there, guards as NaN, in f64.
    values: Vec<f64>,
}

impl There {
    /// `values(i, j)`, rounded to `dtype`; `left` and `right` guards in each row.
    fn new(
        cuda: Cuda,
        dtype: DType,
        [rows, cols]: [usize; 2],
        [left, right]: [usize; 2],
        value: impl Fn(usize, usize) -> f32,
    ) -> There {
        let stride = left + cols + right;
        let at = |i: usize| match (i / stride, i % stride) {
            (row, col) if (left..left + cols).contains(&col) => value(row, col - left),
            _ => f32::NAN,
        };
        let values: Vec<f32> = (0..rows * stride).map(at).collect();
        let mut buffer = Buffer::on(Device::Cuda(cuda), dtype, rows, stride).unwrap();
        match dtype {
            DType::F32 => buffer.upload(Tensor::new(&values, rows, stride)).unwrap(),
            _ => {
                let values: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
                buffer.upload(Tensor::new(&values, rows, stride)).unwrap();
            }
        }
        let mut there = There { buffer, rows, left, cols, values: Vec::new() };
        there.values = there.read();
        there
    }

    fn view(&self) -> Tensor<'_> {
        self.buffer.view().slice_cols(self.left..self.left + self.cols)
    }

    fn view_mut(&mut self) -> TensorMut<'_> {
        self.buffer.view_mut().slice_cols(self.left..self.left + self.cols)
    }

    /// Fails when something was written around the columns.
    fn read(&self) -> Vec<f64> {
        let (rows, stride) = (self.rows, self.buffer.cols());
        let all: Vec<f64> = match self.buffer.view().dtype() {
            DType::F32 => {
                let mut all = vec![0.0f32; rows * stride];
                self.buffer.download(TensorMut::new(&mut all, rows, stride)).unwrap();
                all.into_iter().map(f64::from).collect()
            }
            _ => {
                let mut all = vec![bf16::ZERO; rows * stride];
                self.buffer.download(TensorMut::new(&mut all, rows, stride)).unwrap();
                all.into_iter().map(f64::from).collect()
            }
        };
        let inside = |i: &usize| (self.left..self.left + self.cols).contains(&(i % stride.max(1)));
        let (inside, outside): (Vec<_>, Vec<_>) = (0..all.len()).partition(inside);
        assert!(outside.iter().all(|&i| all[i].is_nan()), "written outside its columns");
        inside.into_iter().map(|i| all[i]).collect()
    }
}

/// One product on CUDA, of the kind `name`, into `dtype`: within f32's error of the sum, and twice
/// the rounding into bf16 where that is what `c` is.
fn check_cuda(
    cuda: Cuda,
    name: &str,
    [m, n, k]: [usize; 3],
    dtype: DType,
    write: Write,
    biased: bool,
    guards: [usize; 2],
) {
    let case = (name, [m, n, k], dtype, write, biased, guards);
    let numbers = |seed: u64, count: usize| random(count, seed);
    let place = |dtype, [rows, cols]: [usize; 2], seed| {
        let values = numbers(seed, rows * cols);
        There::new(cuda, dtype, [rows, cols], guards, |i, j| values[i * cols + j])
    };
    let (a_shape, b_shape) = match name {
        "nt" => ([m, k], [n, k]),
        "nn" => ([m, k], [k, n]),
        _ => ([k, m], [k, n]),
    };
    let (a, b) = (place(DType::Bf16, a_shape, 1), place(DType::Bf16, b_shape, 2));
    let bias = place(dtype, [1, n], 3);
    let mut c = match write {
        Overwrite => There::new(cuda, dtype, [m, n], guards, |_, _| f32::NAN),
        Accumulate => place(dtype, [m, n], 4),
    };
    let before = c.values.clone();
    let alpha = 0.75f32;
    match name {
        "nt" => {
            let bias = biased.then(|| bias.view());
            matmul::nt(a.view(), b.view(), bias, c.view_mut(), alpha, write)
        }
        "nn" => matmul::nn(a.view(), b.view(), c.view_mut(), alpha, write),
        _ => matmul::tn(a.view(), b.view(), c.view_mut(), alpha, write),
    }
    .unwrap();
    let of_a = |i: usize, p: usize| a.values[if name == "tn" { p * m + i } else { i * k + p }];
    let of_b = |p: usize, j: usize| b.values[if name == "nt" { j * k + p } else { p * n + j }];
    let start = |i: usize, j: usize| {
        let before = if write == Accumulate { before[i * n + j] } else { 0.0 };
        before + if biased { bias.values[j] } else { 0.0 }
    };
    let expected = naive([m, n, k], of_a, of_b, f64::from(alpha), start);
    let (abs_a, abs_b) = (|i, p| of_a(i, p).abs(), |p, j| of_b(p, j).abs());
    let sizes = naive([m, n, k], abs_a, abs_b, f64::from(alpha), |i, j| start(i, j).abs());
    let rounding = if dtype == DType::Bf16 { 2.0 * 2f64.powi(-9) } else { 0.0 };
    for (i, (got, expected)) in c.read().iter().zip(&expected).enumerate() {
        let most = bound(k) * sizes[i] + rounding * expected.abs();
        let error = (got - expected).abs();
        assert!(error <= most, "{case:?}: element {i} is {got}, expected {expected} within {most}");
    }
}

#[test]
fn products_on_cuda_match_their_sums() {
    let Some(cuda) = cuda() else { return };
    let shapes = [[1, 1, 1], [3, 5, 7], [16, 8, 32], [17, 9, 33], [1, 130, 64], [65, 40, 129]];
    for shape in shapes {
        for dtype in [DType::F32, DType::Bf16] {
            for guards in [[0, 0], [8, 16], [3, 2]] {
                for (name, biased) in [("nt", false), ("nt", true), ("nn", false), ("tn", false)] {
                    check_cuda(cuda, name, shape, dtype, Overwrite, biased, guards);
                    check_cuda(cuda, name, shape, dtype, Accumulate, biased, guards);
                }
            }
        }
    }
}

/// What was planned for the first product serves the second, whose operands lie elsewhere.
#[test]
fn a_product_on_cuda_can_be_asked_for_again() {
    let Some(cuda) = cuda() else { return };
    for _ in 0..3 {
        check_cuda(cuda, "nt", [21, 13, 40], DType::Bf16, Overwrite, true, [8, 8]);
    }
}

#[test]
fn nothing_times_something_on_cuda_is_nothing() {
    let Some(cuda) = cuda() else { return };
    for name in ["nt", "nn", "tn"] {
        for shape in [[0, 5, 3], [5, 0, 3], [3, 40, 0]] {
            for dtype in [DType::F32, DType::Bf16] {
                check_cuda(cuda, name, shape, dtype, Overwrite, false, [3, 2]);
                check_cuda(cuda, name, shape, dtype, Accumulate, false, [3, 2]);
            }
        }
    }
}

#[test]
fn arguments_that_cuda_cannot_take_are_named() {
    let Some(cuda) = cuda() else { return };
    let there = |dtype| Buffer::on(Device::Cuda(cuda), dtype, 4, 4).unwrap();
    let (wide, narrow) = (there(DType::F32), there(DType::Bf16));
    let here = Buffer::f32(4, 4);
    let mut c = there(DType::F32);
    let error = refusal(matmul::nn(wide.view(), narrow.view(), c.view_mut(), 1.0, Overwrite));
    assert_eq!(error, "matmul::nn: a has type F32, expected Bf16");
    let error = refusal(matmul::tn(narrow.view(), here.view(), c.view_mut(), 1.0, Overwrite));
    assert_eq!(error, "matmul::tn: b is on cpu, expected cuda:0 like the others");
    let bias = narrow.view().slice_rows(0..1);
    let (a, b) = (narrow.view(), narrow.view());
    let error = refusal(matmul::nt(a, b, Some(bias), c.view_mut(), 1.0, Overwrite));
    assert_eq!(error, "matmul::nt: bias has type Bf16, expected F32");
    let mut here = here;
    let error = refusal(matmul::nt(a, b, None, here.view_mut(), 1.0, Overwrite));
    assert_eq!(error, "matmul::nt: a is on cuda:0, expected cpu like the others");
}

/// A resumed run asks for the algorithms of the run before.
#[test]
fn algorithms_travel_through_a_checkpoint() {
    let Some(cuda) = cuda() else { return };
    check_cuda(cuda, "nt", [33, 47, 65], DType::F32, Overwrite, false, [0, 0]);
    let chosen = cuda.algorithms();
    let text = serde_json::to_string(&chosen).unwrap();
    assert!(text.contains(r#""rows":33,"columns":47,"depth":65"#), "{text}");
    let read: Algorithms = serde_json::from_str(&text).unwrap();
    assert_eq!(read, chosen);
    cuda.restore_algorithms(&read).unwrap();
    let elsewhere = text.replace(&cuda.gpu().name, "NVIDIA Other");
    let error = cuda.restore_algorithms(&serde_json::from_str(&elsewhere).unwrap()).unwrap_err();
    assert!(error.to_string().contains("expected NVIDIA Other with"), "{error}");
}
