//! Layer normalisation against its equation in f64, on the CPU and on CUDA.

use proptest::prelude::*;
use silkie::device::Device;
use silkie::ops::{Write, layer_norm};
use silkie::tensor::DType;

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
    place: Place,
    rows: usize,
    cols: usize,
    lay: Lay,
    x: Matrix,
    w: Matrix,
    b: Matrix,
    dy: Matrix,
}

/// `x` is `offset + scale · random`.
fn case(place: Place, rows: usize, cols: usize, lay: Lay, scale: f32, offset: f32) -> Case {
    let x: Vec<f32> = random(rows * cols, 1).iter().map(|x| offset + x * scale).collect();
    Case {
        place,
        rows,
        cols,
        lay,
        x: place.matrix(&x, rows, cols, lay),
        w: place.random(1, cols, Lay::Dense, 2),
        b: place.random(1, cols, Lay::Dense, 3),
        dy: place.random(rows, cols, lay, 4),
    }
}

impl Case {
    /// `[y, mean, rstd]`
    fn forward(&self) -> silkie::Result<[Matrix; 3]> {
        let mut y = self.place.poisoned(self.rows, self.cols, self.lay);
        let stats = || self.place.of(DType::F32).poisoned(self.rows, 1, self.lay);
        let (mut mean, mut rstd) = (stats(), stats());
        let outputs = (y.view_mut(), mean.view_mut(), rstd.view_mut());
        let (x, w, b) = (self.x.view(), self.w.view(), self.b.view());
        layer_norm::forward(x, w, b, outputs.0, outputs.1, outputs.2, EPS)?;
        Ok([y, mean, rstd])
    }

    /// `dx` follows `write` from what it held, `dw` and `db` (if any) are added to.
    fn backward(&self, dx: &mut Matrix, [dw, db]: [Option<&mut Matrix>; 2], write: Write) {
        let [_, mean, rstd] = self.forward().unwrap();
        let (x, w, dy) = (self.x.view(), self.w.view(), self.dy.view());
        let (m, r, dx) = (mean.view(), rstd.view(), dx.view_mut());
        let (dw, db) = (dw.map(Matrix::view_mut), db.map(Matrix::view_mut));
        let mut partials = self.place.scratch(layer_norm::partials([self.rows, self.cols]));
        let scratch = partials.view_mut();
        layer_norm::backward(x, w, m, r, dy, dx, dw, db, scratch, write).unwrap();
        partials.values(); // nothing around it was written
    }

    /// What gradients of parameters are added to.
    fn parameters(&self) -> [Matrix; 2] {
        let place = self.place.of(DType::F32);
        [0.5, -0.5].map(|v| place.matrix(&vec![v; self.cols], 1, self.cols, Lay::Dense))
    }

    fn judge(&self, bound: f64) {
        let &Case { place, rows, cols, lay, .. } = self;
        let what = |part: &str| format!("layer_norm {part} [{rows}, {cols}] {lay:?} {place:?}");
        let rounded = |x: &[f64]| x.iter().map(|&x| place.round(x)).collect::<Vec<_>>();
        let (x, w, dy) = (self.x.f64(), self.w.f64(), self.dy.f64());
        let want = naive(&x, &w, &self.b.f64(), EPS.into());
        let [y, mean, rstd] = self.forward().unwrap();
        assert_rounded(what("y"), &y.values(), &want.y, &rounded(&want.y), bound);
        // a mean is as exact as the elements it averages are large: it may cancel to almost nothing
        for ((got, want), rstd) in mean.values().iter().zip(&want.mean).zip(&want.rstd) {
            let (error, size) = ((f64::from(*got) - want).abs(), want.abs() + 1.0 / rstd);
            assert!(error <= bound * size, "{}: {got} instead of {want}", what("mean"));
        }
        assert_close(what("rstd"), &rstd.values(), &want.rstd, bound);

        let [want_dx, want_dw, want_db] = naive_backward(&x, &w, &dy, EPS.into());
        let mut dx = place.poisoned(rows, cols, lay);
        let [mut dw, mut db] = self.parameters();
        self.backward(&mut dx, [Some(&mut dw), Some(&mut db)], Write::Overwrite);
        let got = dx.values();
        assert_rounded(what("dx"), &got, &want_dx, &rounded(&want_dx), 4.0 * bound);
        let plus = |x: &[f64], y: f64| x.iter().map(|x| x + y).collect::<Vec<_>>();
        assert_close(what("dweight"), &dw.values(), &plus(&want_dw, 0.5), 2.0 * bound);
        assert_close(what("dbias"), &db.values(), &plus(&want_db, -0.5), 2.0 * bound);

        let sums: Vec<f64> = dx.f64().iter().zip(&want_dx).map(|(dx, d)| dx + d).collect();
        self.backward(&mut dx, [None, None], Write::Accumulate);
        let got = dx.values();
        assert_rounded(what("dx added"), &got, &sums, &rounded(&sums), 4.0 * bound);
    }

    /// Whether kernels take rows of so many elements.
    fn fits(&self) -> bool {
        self.place.device == Device::Cpu || self.cols.is_multiple_of(self.place.pack())
    }
}

/// Odd ones; around the rows of a block, of forward, of backward and with the parameters' gradients,
/// and the packs of a warp, in bf16 and f32; the widths of Qwen-VL; around what a block holds of a row,
/// and beyond it with more rows than a block's.
const SHAPES: [[usize; 2]; 22] = [
    [0, 8],
    [1, 64],
    [5, 123],
    [67, 33],
    [15, 248],
    [16, 256],
    [17, 264],
    [31, 124],
    [32, 128],
    [33, 132],
    [63, 24],
    [64, 16],
    [65, 40],
    [129, 64],
    [3, 1664],
    [3, 4088],
    [5, 4096],
    [2, 4100],
    [67, 4104],
    [35, 4104],
    [17, 8200],
    [2, 11008],
];

#[test]
fn agrees_with_the_equation() {
    for place in places() {
        for [rows, cols] in SHAPES {
            for lay in LAYS {
                let case = case(place, rows, cols, lay, 1.0, 0.0);
                if case.fits() {
                    case.judge(BOUND);
                    continue;
                }
                let expected = format!(
                    "layer_norm::forward: x has {cols} columns, expected a multiple of {}: kernels read \
                     16 bytes at a time",
                    place.pack()
                );
                assert_eq!(refusal(case.forward()), expected);
            }
        }
    }
}

#[test]
fn one_column_is_its_bias() {
    let c = case(Place::CPU, 4, 1, Lay::Dense, 1.0, 3.0);
    let y = c.forward().unwrap()[0].values();
    assert!(y.iter().all(|&y| y == c.b.values()[0]), "{y:?}");
}

#[test]
fn huge_tiny_and_shifted_rows_normalise() {
    for place in places() {
        for scale in [1e17, 1e8, 1e-3, 1e-12] {
            case(place, 3, 40, Lay::Dense, scale, 0.0).judge(BOUND);
        }
        // the mean is one f32: half an ulp of 1000 is 3e-5 of a unit spread; bf16 has no spread there
        let offset = if place.dtype == DType::Bf16 { 100.0 } else { 1000.0 };
        case(place, 3, 704, Lay::Dense, 1.0, offset).judge(1e-4);
    }
}

#[test]
fn either_parameter_may_be_frozen() {
    for place in places() {
        let c = case(place, 70, 264, Lay::Dense, 1.0, 0.0);
        let mut dx = place.poisoned(70, 264, Lay::Dense);
        let [mut dw, mut db] = c.parameters();
        c.backward(&mut dx, [Some(&mut dw), Some(&mut db)], Write::Overwrite);
        let [mut dw_alone, mut db_alone] = c.parameters();
        c.backward(&mut dx, [Some(&mut dw_alone), None], Write::Overwrite);
        c.backward(&mut dx, [None, Some(&mut db_alone)], Write::Overwrite);
        assert_same_bits("dweight", &dw_alone.values(), &dw.values());
        assert_same_bits("dbias", &db_alone.values(), &db.values());
    }
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
fn neither_threads_nor_another_run_change_a_bit() {
    for place in places() {
        let c = case(place, 301, 520, Lay::Strided, 1.0, 0.5);
        same_on_any_threads(format!("layer_norm {place:?}"), || {
            let mut dx = place.poisoned(301, 520, Lay::Dense);
            let [mut dw, mut db] = c.parameters();
            c.backward(&mut dx, [Some(&mut dw), Some(&mut db)], Write::Overwrite);
            c.backward(&mut dx, [None, None], Write::Accumulate);
            let [y, mean, rstd] = c.forward().unwrap();
            [y, mean, rstd, dx, dw, db].map(|part| part.values()).concat()
        });
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let c = case(Place::CPU, 2, 3, Lay::Dense, 1.0, 0.0);
    let [mut y, mut mean, mut rstd] = [3, 1, 2].map(|cols| Matrix::poisoned(2, cols, Lay::Dense));
    let (x, w, b) = (c.x.view(), c.w.view(), c.b.view());
    let outputs = (y.view_mut(), mean.view_mut(), rstd.view_mut());
    let error = layer_norm::forward(x, w, b, outputs.0, outputs.1, outputs.2, EPS);
    let expected = "layer_norm::forward: rstd has shape [2, 2], expected [2, 1] (rows, 1)";
    assert_eq!(refusal(error), expected);
}

#[test]
fn a_gpu_refuses_what_its_kernels_cannot_read() {
    let Some(cuda) = cuda() else { return };
    let place = Place { device: Device::Cuda(cuda), dtype: DType::Bf16 };
    let f32 = place.of(DType::F32);
    let mut c = case(place, 65, 16, Lay::Dense, 1.0, 0.0);
    let [_, mean, rstd] = c.forward().unwrap();
    let (mut dx, [mut dw, _]) = (place.poisoned(65, 16, Lay::Dense), c.parameters());
    let mut partials = place.scratch(63);
    let (x, w, dy, m, r) = (c.x.view(), c.w.view(), c.dy.view(), mean.view(), rstd.view());
    let (dx, dw) = (dx.view_mut(), Some(dw.view_mut()));
    let (scratch, write) = (partials.view_mut(), Write::Overwrite);
    assert_eq!(
        refusal(layer_norm::backward(x, w, m, r, dy, dx, dw, None, scratch, write)),
        "layer_norm::backward: partials has 63 elements, expected 64 or more"
    );
    c.b = f32.random(1, 16, Lay::Dense, 1);
    assert_eq!(refusal(c.forward()), "layer_norm::forward: bias has type F32, expected Bf16");
}

fn any_case(place: Place, [rows, cols]: [usize; 2], strided: bool) {
    let lay = if strided { Lay::Strided } else { Lay::Dense };
    case(place, rows, cols, lay, 1.0, 0.0).judge(BOUND);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape_agrees(rows in 0usize..40, cols in 3usize..200, strided: bool) {
        any_case(Place::CPU, [rows, cols], strided);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]
    #[test]
    fn any_shape_agrees_on_cuda(rows in 0usize..140, packs in 1usize..80, strided: bool) {
        for place in places().into_iter().filter(|place| *place != Place::CPU) {
            any_case(place, [rows, packs * place.pack()], strided);
        }
    }
}
