//! GELU and SwiGLU against their equations in f64.

use proptest::prelude::*;
use silkie::ops::activation;

use crate::support::*;

/// erf and exp of `ops::math` are within 1.5e-7.
const BOUND: f64 = 5e-7;

/// The error function by its series, all terms of one sign.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    if x.abs() > 6.0 {
        x.signum()
    } else {
        2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
    }
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x / 2f64.sqrt()))
}

fn gelu_slope(x: f64) -> f64 {
    let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    0.5 * (1.0 + erf(x / 2f64.sqrt())) + x * density
}

fn silu(b: f64) -> f64 {
    b / (1.0 + (-b).exp())
}

fn silu_slope(b: f64) -> f64 {
    let s = 1.0 / (1.0 + (-b).exp());
    s * (1.0 + b * (1.0 - s))
}

/// Both activations and their gradients on `[rows, cols]` values of size `scale`.
fn judge(rows: usize, cols: usize, lay: Lay, scale: f32) {
    let what = |part: &str| format!("{part} [{rows}, {cols}] {lay:?} x {scale:e}");
    let scaled =
        |seed| -> Vec<f32> { random(rows * cols, seed).iter().map(|x| x * scale).collect() };
    let [a, b] = [1, 2].map(|seed| Matrix::of(&scaled(seed), rows, cols, lay));
    let dy = Matrix::random(rows, cols, lay, 3);
    let [mut y, mut da, mut db] = [(); 3].map(|()| Matrix::poisoned(rows, cols, lay));
    let (a64, b64, dy64) = (a.f64(), b.f64(), dy.f64());
    let each = |f: &dyn Fn(usize) -> f64| (0..rows * cols).map(f).collect::<Vec<_>>();

    activation::gelu(a.view(), y.view_mut()).unwrap();
    assert_close(what("gelu"), &y.values(), &each(&|i| gelu(a64[i])), BOUND);
    activation::gelu_backward(a.view(), dy.view(), da.view_mut()).unwrap();
    let want = each(&|i| dy64[i] * gelu_slope(a64[i]));
    assert_close(what("gelu_backward"), &da.values(), &want, BOUND);

    activation::swiglu(a.view(), b.view(), y.view_mut()).unwrap();
    let want = each(&|i| a64[i] * silu(b64[i]));
    assert_close(what("swiglu"), &y.values(), &want, BOUND);
    let (a, b, dy) = (a.view(), b.view(), dy.view());
    activation::swiglu_backward(a, b, dy, da.view_mut(), db.view_mut()).unwrap();
    let want_a = each(&|i| dy64[i] * silu(b64[i]));
    let want_b = each(&|i| dy64[i] * a64[i] * silu_slope(b64[i]));
    assert_close(what("swiglu_backward da"), &da.values(), &want_a, BOUND);
    assert_close(what("swiglu_backward db"), &db.values(), &want_b, BOUND);
}

#[test]
fn agree_with_the_equations() {
    for (rows, cols) in [(0, 7), (1, 1), (1, 64), (5, 123), (67, 33), (300, 513)] {
        for lay in LAYS {
            judge(rows, cols, lay, 4.0);
        }
    }
}

#[test]
fn huge_and_tiny_values_stay_finite_and_right() {
    for scale in [1e15, 1e4, 80.0, 1e-4, 1e-15] {
        judge(3, 101, Lay::Dense, scale);
    }
}

#[test]
fn the_slopes_are_derivatives() {
    let x: Vec<f64> = (-30..=30).map(|i| f64::from(i) * 0.2).collect();
    let ones = vec![1.0; x.len()];
    for (f, slope) in [(gelu as fn(f64) -> f64, gelu_slope as fn(f64) -> f64), (silu, silu_slope)] {
        let map = |x: &[f64], f: fn(f64) -> f64| x.iter().map(|&x| f(x)).collect::<Vec<_>>();
        let by_differences = central_differences(&x, 1e-5, |x| inner(&map(x, f), &ones));
        assert_derivative(&map(&x, slope), &by_differences, 1e-8);
    }
}

#[test]
fn not_a_number_stays_one() {
    let x = Matrix::of(&[f32::NAN], 1, 1, Lay::Dense);
    let mut y = Matrix::of(&[0.0], 1, 1, Lay::Dense);
    activation::gelu(x.view(), y.view_mut()).unwrap();
    assert!(y.values()[0].is_nan());
    activation::swiglu(x.view(), x.view(), y.view_mut()).unwrap();
    assert!(y.values()[0].is_nan());
}

#[test]
fn refuse_what_does_not_fit() {
    let (x, mut y) = (Matrix::random(2, 3, Lay::Dense, 1), Matrix::poisoned(3, 2, Lay::Dense));
    let error = refusal(activation::gelu(x.view(), y.view_mut()));
    assert_eq!(error, "activation::gelu: y has shape [3, 2], expected [2, 3] (rows, cols)");
    let b = Matrix::random(2, 4, Lay::Dense, 1);
    let error = refusal(activation::swiglu(x.view(), b.view(), y.view_mut()));
    assert_eq!(error, "activation::swiglu: b has shape [2, 4], expected [2, 3] (rows, cols)");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape_agrees(rows in 0usize..40, cols in 1usize..200, strided: bool) {
        judge(rows, cols, if strided { Lay::Strided } else { Lay::Dense }, 4.0);
    }
}
