//! Layer normalisation against its equation in f64.

use proptest::prelude::*;
use silkie::ops::{Write, layer_norm};

use crate::support::*;

const EPS: f32 = 1e-6;

/// f32 sums in 32 lanes: a few roundings per element.
const BOUND: f64 = 1e-6;

struct Naive {
    y: Vec<f64>,
    mean: Vec<f64>,
    rstd: Vec<f64>,
}

fn naive(x: &[f64], w: &[f64], b: &[f64], eps: f64) -> Naive {
    let n = w.len();
    let mut out = Naive { y: vec![], mean: vec![], rstd: vec![] };
    for x in x.chunks(n) {
        let mean = x.iter().sum::<f64>() / n as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        let rstd = 1.0 / (variance + eps).sqrt();
        out.y.extend((0..n).map(|j| (x[j] - mean) * rstd * w[j] + b[j]));
        out.mean.push(mean);
        out.rstd.push(rstd);
    }
    out
}

/// `[dx, dw, db]`
fn naive_backward(x: &[f64], w: &[f64], dy: &[f64], eps: f64) -> [Vec<f64>; 3] {
    let n = w.len();
    let Naive { y: normal, rstd, .. } = naive(x, &vec![1.0; n], &vec![0.0; n], eps);
    let (mut dx, mut dw, mut db) = (vec![], vec![0.0; n], vec![0.0; n]);
    for (i, (h, dy)) in normal.chunks(n).zip(dy.chunks(n)).enumerate() {
        let mean_g = (0..n).map(|j| dy[j] * w[j]).sum::<f64>() / n as f64;
        let along = (0..n).map(|j| dy[j] * w[j] * h[j]).sum::<f64>() / n as f64;
        for j in 0..n {
            dx.push(rstd[i] * (dy[j] * w[j] - mean_g - h[j] * along));
            dw[j] += dy[j] * h[j];
            db[j] += dy[j];
        }
    }
    [dx, dw, db]
}

struct Case {
    rows: usize,
    cols: usize,
    lay: Lay,
    x: Matrix,
    w: Matrix,
    b: Matrix,
    dy: Matrix,
}

/// `x` is `offset + scale · random`.
fn case(rows: usize, cols: usize, lay: Lay, scale: f32, offset: f32) -> Case {
    let x: Vec<f32> = random(rows * cols, 1).iter().map(|x| offset + x * scale).collect();
    Case {
        rows,
        cols,
        lay,
        x: Matrix::of(&x, rows, cols, lay),
        w: Matrix::random(1, cols, Lay::Dense, 2),
        b: Matrix::random(1, cols, Lay::Dense, 3),
        dy: Matrix::random(rows, cols, lay, 4),
    }
}

impl Case {
    /// `[y, mean, rstd]`
    fn forward(&self) -> [Matrix; 3] {
        let [mut y, mut mean, mut rstd] =
            [self.cols, 1, 1].map(|cols| Matrix::poisoned(self.rows, cols, self.lay));
        let outputs = (y.view_mut(), mean.view_mut(), rstd.view_mut());
        let (x, w, b) = (self.x.view(), self.w.view(), self.b.view());
        layer_norm::forward(x, w, b, outputs.0, outputs.1, outputs.2, EPS).unwrap();
        [y, mean, rstd]
    }

    /// `dx` follows `write` from what it held, `dw` and `db` (if any) are added to.
    fn backward(&self, dx: &mut Matrix, parameters: Option<&mut [Matrix; 2]>, write: Write) {
        let [_, mean, rstd] = self.forward();
        let (x, w, dy) = (self.x.view(), self.w.view(), self.dy.view());
        let [dw, db] = match parameters {
            Some([dw, db]) => [Some(dw.view_mut()), Some(db.view_mut())],
            None => [None, None],
        };
        let (m, r) = (mean.view(), rstd.view());
        layer_norm::backward(x, w, m, r, dy, dx.view_mut(), dw, db, write).unwrap();
    }

    fn judge(&self, bound: f64) {
        let &Case { rows, cols, lay, .. } = self;
        let what = |part: &str| format!("layer_norm {part} [{rows}, {cols}] {lay:?}");
        let (x, w, dy) = (self.x.f64(), self.w.f64(), self.dy.f64());
        let want = naive(&x, &w, &self.b.f64(), EPS.into());
        let [y, mean, rstd] = self.forward();
        assert_close(what("y"), &y.values(), &want.y, bound);
        // a mean is as exact as the elements it averages are large: it may cancel to almost nothing
        for ((got, want), rstd) in mean.values().iter().zip(&want.mean).zip(&want.rstd) {
            let (error, size) = ((f64::from(*got) - want).abs(), want.abs() + 1.0 / rstd);
            assert!(error <= bound * size, "{}: {got} instead of {want}", what("mean"));
        }
        assert_close(what("rstd"), &rstd.values(), &want.rstd, bound);

        let [want_dx, want_dw, want_db] = naive_backward(&x, &w, &dy, EPS.into());
        let mut dx = Matrix::poisoned(rows, cols, lay);
        let mut parameters = [0.5, -0.5].map(|v| Matrix::of(&vec![v; cols], 1, cols, Lay::Dense));
        self.backward(&mut dx, Some(&mut parameters), Write::Overwrite);
        assert_close(what("dx"), &dx.values(), &want_dx, 4.0 * bound);
        let plus = |x: &[f64], y: f64| x.iter().map(|x| x + y).collect::<Vec<_>>();
        assert_close(what("dweight"), &parameters[0].values(), &plus(&want_dw, 0.5), 2.0 * bound);
        assert_close(what("dbias"), &parameters[1].values(), &plus(&want_db, -0.5), 2.0 * bound);

        self.backward(&mut dx, None, Write::Accumulate);
        let twice: Vec<f64> = want_dx.iter().map(|d| 2.0 * d).collect();
        assert_close(what("dx accumulated"), &dx.values(), &twice, 4.0 * bound);
    }
}

#[test]
fn agrees_with_the_equation() {
    for (rows, cols) in [(0, 7), (1, 64), (5, 123), (67, 33), (129, 256), (3, 1664)] {
        for lay in LAYS {
            case(rows, cols, lay, 1.0, 0.0).judge(BOUND);
        }
    }
}

#[test]
fn one_column_is_its_bias() {
    let c = case(4, 1, Lay::Dense, 1.0, 3.0);
    let y = c.forward()[0].values();
    assert!(y.iter().all(|&y| y == c.b.values()[0]), "{y:?}");
}

#[test]
fn huge_tiny_and_shifted_rows_normalise() {
    for scale in [1e17, 1e8, 1e-3, 1e-12] {
        case(3, 37, Lay::Dense, scale, 0.0).judge(BOUND);
    }
    // the mean is one f32: half an ulp of 1000 is 3e-5 of a unit spread
    case(3, 700, Lay::Dense, 1.0, 1000.0).judge(1e-4);
}

#[test]
fn the_gradient_is_the_derivative() {
    let [x, w, b, dy] = [(15, 1), (5, 2), (5, 3), (15, 4)]
        .map(|(n, seed)| random(n, seed).into_iter().map(f64::from).collect::<Vec<_>>());
    let eps = 1e-2;
    let [dx, dw, db] = naive_backward(&x, &w, &dy, eps);
    let by_x = central_differences(&x, 1e-5, |x| inner(&naive(x, &w, &b, eps).y, &dy));
    let by_w = central_differences(&w, 1e-5, |w| inner(&naive(&x, w, &b, eps).y, &dy));
    let by_b = central_differences(&b, 1e-5, |b| inner(&naive(&x, &w, b, eps).y, &dy));
    assert_derivative(&[dx, dw, db].concat(), &[by_x, by_w, by_b].concat(), 1e-8);
}

#[test]
fn threads_do_not_change_a_bit() {
    let c = case(301, 517, Lay::Strided, 1.0, 0.5);
    same_on_any_threads("layer_norm", || {
        let mut dx = Matrix::poisoned(301, 517, Lay::Dense);
        let mut parameters = [(); 2].map(|()| Matrix::of(&[0.0; 517], 1, 517, Lay::Dense));
        c.backward(&mut dx, Some(&mut parameters), Write::Overwrite);
        let [dw, db] = parameters;
        [c.forward()[0].values(), dx.values(), dw.values(), db.values()].concat()
    });
}

#[test]
fn refuses_what_does_not_fit() {
    let c = case(2, 3, Lay::Dense, 1.0, 0.0);
    let [mut y, mut mean, mut rstd] = [3, 1, 2].map(|cols| Matrix::poisoned(2, cols, Lay::Dense));
    let (x, w, b) = (c.x.view(), c.w.view(), c.b.view());
    let outputs = (y.view_mut(), mean.view_mut(), rstd.view_mut());
    let error = layer_norm::forward(x, w, b, outputs.0, outputs.1, outputs.2, EPS);
    let expected = "layer_norm::forward: rstd has shape [2, 2], expected [2, 1] (rows, 1)";
    assert_eq!(refusal(error), expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape_agrees(rows in 0usize..40, cols in 3usize..200, strided: bool) {
        case(rows, cols, if strided { Lay::Strided } else { Lay::Dense }, 1.0, 0.0).judge(BOUND);
    }
}
