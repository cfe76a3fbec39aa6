//! RMS normalisation against its equation in f64.

use proptest::prelude::*;
use silkie::ops::{Write, rms_norm};
use silkie::tensor::TensorMut;

use crate::support::*;

const EPS: f32 = 1e-6;

/// f32 sums in 32 lanes: a few roundings per element.
const BOUND: f64 = 1e-6;

/// `(y, rstd)`
fn naive(x: &[f64], w: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let n = w.len();
    let rstd = |x: &[f64]| 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / n as f64 + eps).sqrt();
    let rstds: Vec<f64> = x.chunks(n).map(rstd).collect();
    let y = x.iter().enumerate().map(|(i, x)| x * rstds[i / n] * w[i % n]).collect();
    (y, rstds)
}

/// `(dx, dw)`
fn naive_backward(x: &[f64], w: &[f64], dy: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let (n, rstd) = (w.len(), naive(x, w, eps).1);
    let mut dw = vec![0.0; n];
    let mut dx = Vec::new();
    for (i, (x, dy)) in x.chunks(n).zip(dy.chunks(n)).enumerate() {
        let r = rstd[i];
        let mean = (0..n).map(|j| dy[j] * w[j] * x[j]).sum::<f64>() / n as f64;
        for j in 0..n {
            dw[j] += dy[j] * x[j] * r;
            dx.push(r * (dy[j] * w[j] - x[j] * r * r * mean));
        }
    }
    (dx, dw)
}

struct Case {
    x: Matrix,
    w: Matrix,
    dy: Matrix,
}

fn case(rows: usize, cols: usize, lay: Lay, scale: f32) -> Case {
    let x: Vec<f32> = random(rows * cols, 1).iter().map(|x| x * scale).collect();
    Case {
        x: Matrix::of(&x, rows, cols, lay),
        w: Matrix::random(1, cols, Lay::Dense, 2),
        dy: Matrix::random(rows, cols, lay, 3),
    }
}

fn run_forward(c: &Case, rows: usize, cols: usize, lay: Lay) -> (Matrix, Matrix) {
    let mut y = Matrix::poisoned(rows, cols, lay);
    let mut rstd = Matrix::poisoned(rows, 1, lay);
    rms_norm::forward(c.x.view(), c.w.view(), y.view_mut(), rstd.view_mut(), EPS).unwrap();
    (y, rstd)
}

fn judge(rows: usize, cols: usize, lay: Lay, scale: f32) {
    let c = case(rows, cols, lay, scale);
    let what = |part: &str| format!("rms_norm {part} [{rows}, {cols}] {lay:?} x {scale:e}");
    let (x, w, dy) = (c.x.f64(), c.w.f64(), c.dy.f64());
    let (y, rstd) = run_forward(&c, rows, cols, lay);
    let (want_y, want_rstd) = naive(&x, &w, EPS.into());
    assert_close(what("y"), &y.values(), &want_y, BOUND);
    assert_close(what("rstd"), &rstd.values(), &want_rstd, BOUND);

    let (want_dx, want_dw) = naive_backward(&x, &w, &dy, EPS.into());
    let mut dx = Matrix::poisoned(rows, cols, lay);
    let mut dw = vec![0.5f32; cols];
    let (r, dw_view) = (rstd.view(), Some(TensorMut::vector(&mut dw)));
    let (x, w, dy) = (c.x.view(), c.w.view(), c.dy.view());
    rms_norm::backward(x, w, r, dy, dx.view_mut(), dw_view, Write::Overwrite).unwrap();
    // one row of one column: dx is a difference of equals
    let bound = if cols == 1 { f64::INFINITY } else { 4.0 * BOUND };
    assert_close(what("dx"), &dx.values(), &want_dx, bound);
    let want_dw: Vec<f64> = want_dw.iter().map(|d| d + 0.5).collect();
    assert_close(what("dweight"), &dw, &want_dw, 2.0 * BOUND);

    rms_norm::backward(x, w, r, dy, dx.view_mut(), None, Write::Accumulate).unwrap();
    let twice: Vec<f64> = want_dx.iter().map(|d| 2.0 * d).collect();
    assert_close(what("dx accumulated"), &dx.values(), &twice, bound);
}

#[test]
fn agrees_with_the_equation() {
    for (rows, cols) in [(0, 7), (1, 1), (1, 64), (5, 123), (67, 33), (129, 256), (3, 4096)] {
        for lay in LAYS {
            judge(rows, cols, lay, 1.0);
        }
    }
}

#[test]
fn huge_and_tiny_values_normalise() {
    // below 1e-3 eps dominates and the gradient is that of a scaling
    for scale in [1e17, 1e8, 1e-3, 1e-12] {
        judge(3, 37, Lay::Dense, scale);
    }
}

#[test]
fn the_gradient_is_the_derivative() {
    let (x, w, dy) = (random(3 * 5, 1), random(5, 2), random(3 * 5, 3));
    let [x, w, dy] = [x, w, dy].map(|v| v.into_iter().map(f64::from).collect::<Vec<_>>());
    let eps = 1e-2;
    let (dx, dw) = naive_backward(&x, &w, &dy, eps);
    let by_x = central_differences(&x, 1e-5, |x| inner(&naive(x, &w, eps).0, &dy));
    let by_w = central_differences(&w, 1e-5, |w| inner(&naive(&x, w, eps).0, &dy));
    assert_derivative(&[dx, dw].concat(), &[by_x, by_w].concat(), 1e-8);
}

#[test]
fn threads_do_not_change_a_bit() {
    let (rows, cols) = (301, 517);
    let c = case(rows, cols, Lay::Strided, 1.0);
    same_on_any_threads("rms_norm", || {
        let (y, rstd) = run_forward(&c, rows, cols, Lay::Dense);
        let mut dx = Matrix::poisoned(rows, cols, Lay::Dense);
        let mut dw = Matrix::of(&vec![0.0; cols], 1, cols, Lay::Dense);
        let (x, w, r) = (c.x.view(), c.w.view(), rstd.view());
        let dw_view = Some(dw.view_mut());
        rms_norm::backward(x, w, r, c.dy.view(), dx.view_mut(), dw_view, Write::Overwrite).unwrap();
        [y.values(), dx.values(), dw.values()].concat()
    });
}

#[test]
fn refuses_what_does_not_fit() {
    let c = case(2, 3, Lay::Dense, 1.0);
    let mut y = Matrix::poisoned(2, 4, Lay::Dense);
    let mut rstd = Matrix::poisoned(2, 1, Lay::Dense);
    let error = rms_norm::forward(c.x.view(), c.w.view(), y.view_mut(), rstd.view_mut(), EPS);
    assert_eq!(
        refusal(error),
        "rms_norm::forward: y has shape [2, 4], expected [2, 3] (rows, cols)"
    );
    let ids = silkie::tensor::Tensor::vector(&[1u32, 2, 3]);
    let mut y = Matrix::poisoned(2, 3, Lay::Dense);
    let error = rms_norm::forward(c.x.view(), ids, y.view_mut(), rstd.view_mut(), EPS);
    assert_eq!(refusal(error), "rms_norm::forward: weight has type U32, expected F32");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape_agrees(rows in 0usize..40, cols in 2usize..200, strided: bool) {
        judge(rows, cols, if strided { Lay::Strided } else { Lay::Dense }, 1.0);
    }
}
