//! RMS normalisation against its equation in f64, on the CPU and on CUDA.

use proptest::prelude::*;
use silkie::device::Device;
use silkie::ops::Write;
use silkie::ops::rms_norm::{self, Residual};
use silkie::tensor::DType;

use crate::support::*;

const EPS: f32 = 1e-6;

/// f32 sums in at least 32 lanes: a few roundings per element.
const BOUND: f64 = 1e-6;

/// `[h, y, rstd]`; `round` where a kernel stores activations.
fn naive(
    x: &[f64],
    residual: Option<&[f64]>,
    w: &[f64],
    eps: f64,
    round: impl Fn(f64) -> f64,
) -> [Vec<f64>; 3] {
    let n = w.len();
    let h: Vec<f64> = match residual {
        Some(residual) => x.iter().zip(residual).map(|(x, add)| round(x + add)).collect(),
        None => x.to_vec(),
    };
    let rstd = |h: &[f64]| 1.0 / (h.iter().map(|h| h * h).sum::<f64>() / n as f64 + eps).sqrt();
    let rstds: Vec<f64> = h.chunks(n).map(rstd).collect();
    let y = h.iter().enumerate().map(|(i, h)| round(h * rstds[i / n] * w[i % n])).collect();
    [h, y, rstds]
}

/// `[dh, dw]`
fn naive_backward(h: &[f64], w: &[f64], dy: &[f64], eps: f64) -> [Vec<f64>; 2] {
    let [_, _, rstd] = naive(h, None, w, eps, |x| x);
    let n = w.len();
    let mut dw = vec![0.0; n];
    let mut dh = Vec::new();
    for (i, (h, dy)) in h.chunks(n).zip(dy.chunks(n)).enumerate() {
        let r = rstd[i];
        let mean = (0..n).map(|j| dy[j] * w[j] * h[j]).sum::<f64>() / n as f64;
        for j in 0..n {
            dw[j] += dy[j] * h[j] * r;
            dh.push(r * (dy[j] * w[j] - h[j] * r * r * mean));
        }
    }
    [dh, dw]
}

#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    cols: usize,
    lay: Lay,
    scale: f32,
    residual: bool,
}

struct Inputs {
    x: Matrix,
    residual: Matrix,
    w: Matrix,
    dy: Matrix,
}

struct Outputs {
    h: Matrix,
    y: Matrix,
    rstd: Matrix,
    dh: Matrix,
    dw: Matrix,
    partials: Matrix,
}

impl Case {
    fn inputs(&self, place: Place) -> Inputs {
        let Case { rows, cols, lay, scale, .. } = *self;
        let scaled =
            |seed| -> Vec<f32> { random(rows * cols, seed).iter().map(|x| x * scale).collect() };
        Inputs {
            x: place.matrix(&scaled(1), rows, cols, lay),
            residual: place.matrix(&scaled(4), rows, cols, lay),
            w: place.random(1, cols, Lay::Dense, 2),
            dy: place.random(rows, cols, lay, 3),
        }
    }

    fn forward(&self, place: Place, inputs: &Inputs) -> silkie::Result<Outputs> {
        let Case { rows, cols, lay, .. } = *self;
        let mut h = place.poisoned(rows, cols, lay);
        let mut y = place.poisoned(rows, cols, lay);
        let mut rstd = place.of(DType::F32).poisoned(rows, 1, lay);
        let residual =
            self.residual.then(|| Residual { add: inputs.residual.view(), h: h.view_mut() });
        let (x, w) = (inputs.x.view(), inputs.w.view());
        rms_norm::forward(x, residual, w, y.view_mut(), rstd.view_mut(), EPS)?;
        let dh = place.poisoned(rows, cols, lay);
        let dw = place.of(DType::F32).matrix(&vec![0.5; cols], 1, cols, Lay::Dense);
        let partials = place.scratch(rms_norm::partials([rows, cols]));
        Ok(Outputs { h, y, rstd, dh, dw, partials })
    }

    /// The gradient of the weight is wanted where that of `h` overwrites, with a residual where it is
    /// added.
    fn backward(&self, inputs: &Inputs, o: &mut Outputs, write: Write) {
        let h = if self.residual { &o.h } else { &inputs.x };
        let (w, dy, dw) = (inputs.w.view(), inputs.dy.view(), Some(o.dw.view_mut()));
        let dw = dw.filter(|_| self.residual == (write == Write::Accumulate));
        let (rstd, dh, partials) = (o.rstd.view(), o.dh.view_mut(), o.partials.view_mut());
        rms_norm::backward(h.view(), w, rstd, dy, dh, dw, partials, write).unwrap();
        o.partials.values(); // nothing around it was written
    }

    fn judge(&self, place: Place) {
        let what = |part: &str| format!("rms_norm {part} {self:?} {place:?}");
        let inputs = self.inputs(place);
        let mut o = self.forward(place, &inputs).unwrap();
        let [x, residual, w, dy] =
            [&inputs.x, &inputs.residual, &inputs.w, &inputs.dy].map(Matrix::f64);
        let residual = self.residual.then_some(&residual[..]);
        let eps = f64::from(EPS);
        let exact = naive(&x, residual, &w, eps, |x| x);
        let rounded = naive(&x, residual, &w, eps, |x| place.round(x));
        let h = if self.residual { &o.h } else { &inputs.x };
        for (i, (part, got)) in [("h", h), ("y", &o.y), ("rstd", &o.rstd)].iter().enumerate() {
            assert_rounded(what(part), &got.values(), &exact[i], &rounded[i], BOUND);
        }

        // backward goes on from h as it was stored
        let [dh, dw] = naive_backward(&h.f64(), &w, &dy, eps);
        self.backward(&inputs, &mut o, Write::Overwrite);
        // a single column: dh is a difference of equals
        let bound = if self.cols == 1 { f64::INFINITY } else { 4.0 * BOUND };
        let rounded = |dh: &[f64]| dh.iter().map(|&d| place.round(d)).collect::<Vec<_>>();
        assert_rounded(what("dh"), &o.dh.values(), &dh, &rounded(&dh), bound);
        let before = o.dh.f64();
        let sums: Vec<f64> = before.iter().zip(&dh).map(|(before, dh)| before + dh).collect();
        self.backward(&inputs, &mut o, Write::Accumulate);
        assert_rounded(what("dh added"), &o.dh.values(), &sums, &rounded(&sums), bound);
        let dw: Vec<f64> = dw.iter().map(|d| d + 0.5).collect();
        assert_close(what("dw"), &o.dw.values(), &dw, 2.0 * BOUND);
    }

    /// Whether kernels take rows of so many elements.
    fn fits(&self, place: Place) -> bool {
        place.device == Device::Cpu || self.cols.is_multiple_of(place.pack())
    }
}

/// Odd ones; a row, a column; around the rows of a block, without and with the weight's gradient, and
/// the packs of a warp, in bf16 and f32; around the width of Qwen-VL, which is what a block holds of a
/// row, and beyond it with more rows than a block's.
const SHAPES: [[usize; 2]; 21] = [
    [0, 8],
    [1, 1],
    [1, 8],
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
    [3, 4088],
    [5, 4096],
    [2, 4100],
    [67, 4104],
    [17, 8200],
    [2, 11008],
];

#[test]
fn agrees_with_the_equation() {
    for place in places() {
        for [rows, cols] in SHAPES {
            for lay in LAYS {
                for residual in [false, true] {
                    let case = Case { rows, cols, lay, scale: 1.0, residual };
                    if case.fits(place) {
                        case.judge(place);
                        continue;
                    }
                    let message = refusal(case.forward(place, &case.inputs(place)));
                    let expected = format!(
                        "rms_norm::forward: x has {cols} columns, expected a multiple of {}: \
                         kernels read 16 bytes at a time",
                        place.pack()
                    );
                    assert_eq!(message, expected);
                }
            }
        }
    }
}

#[test]
fn huge_and_tiny_values_normalise() {
    // below 1e-3 eps dominates and the gradient is that of a scaling
    for (place, scale) in
        places().into_iter().flat_map(|p| [1e17, 1e8, 1e-3, 1e-12].map(|s| (p, s)))
    {
        for residual in [false, true] {
            Case { rows: 3, cols: 40, lay: Lay::Dense, scale, residual }.judge(place);
        }
    }
}

#[test]
fn the_gradient_is_the_derivative() {
    let (x, w, dy) = (random(3 * 5, 1), random(5, 2), random(3 * 5, 3));
    let [x, w, dy] = [x, w, dy].map(|v| v.into_iter().map(f64::from).collect::<Vec<_>>());
    let eps = 1e-2;
    let y = |x: &[f64], w: &[f64]| inner(&naive(x, None, w, eps, |x| x)[1], &dy);
    let [dh, dw] = naive_backward(&x, &w, &dy, eps);
    let by_x = central_differences(&x, 1e-5, |x| y(x, &w));
    let by_w = central_differences(&w, 1e-5, |w| y(&x, w));
    assert_derivative(&[dh, dw].concat(), &[by_x, by_w].concat(), 1e-8);
}

#[test]
fn neither_threads_nor_another_run_change_a_bit() {
    let case = Case { rows: 301, cols: 520, lay: Lay::Strided, scale: 1.0, residual: true };
    for place in places() {
        let inputs = case.inputs(place);
        same_on_any_threads(format!("rms_norm {place:?}"), || {
            let mut o = case.forward(place, &inputs).unwrap();
            case.backward(&inputs, &mut o, Write::Overwrite);
            case.backward(&inputs, &mut o, Write::Accumulate);
            [o.h, o.y, o.rstd, o.dh, o.dw].map(|part| part.values()).concat()
        });
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let case = Case { rows: 2, cols: 3, lay: Lay::Dense, scale: 1.0, residual: false };
    let c = case.inputs(Place::CPU);
    let (x, w) = (c.x.view(), c.w.view());
    let mut y = Matrix::poisoned(2, 4, Lay::Dense);
    let mut rstd = Matrix::poisoned(2, 1, Lay::Dense);
    let error = rms_norm::forward(x, None, w, y.view_mut(), rstd.view_mut(), EPS);
    assert_eq!(
        refusal(error),
        "rms_norm::forward: y has shape [2, 4], expected [2, 3] (rows, cols)"
    );
    let ids = silkie::tensor::Tensor::vector(&[1u32, 2, 3]);
    let mut y = Matrix::poisoned(2, 3, Lay::Dense);
    let error = rms_norm::forward(x, None, ids, y.view_mut(), rstd.view_mut(), EPS);
    assert_eq!(refusal(error), "rms_norm::forward: weight has type U32, expected F32");
    let residual = Some(Residual { add: w, h: y.view_mut() });
    let mut y = Matrix::poisoned(2, 3, Lay::Dense);
    let error = rms_norm::forward(x, residual, w, y.view_mut(), rstd.view_mut(), EPS);
    assert_eq!(
        refusal(error),
        "rms_norm::forward: residual has shape [1, 3], expected [2, 3] (rows, cols)"
    );
}

#[test]
fn sums_of_rows_need_their_scratch() {
    let Some(cuda) = cuda() else { return };
    let place = Place { device: Device::Cuda(cuda), dtype: DType::Bf16 };
    let case = Case { rows: 65, cols: 16, lay: Lay::Dense, scale: 1.0, residual: false };
    let c = case.inputs(place);
    let Outputs { rstd, mut dh, mut dw, .. } = case.forward(place, &c).unwrap();
    let mut partials = place.scratch(31);
    let (x, w, r, dy) = (c.x.view(), c.w.view(), rstd.view(), c.dy.view());
    let (dx, dw) = (dh.view_mut(), Some(dw.view_mut()));
    let write = Write::Overwrite;
    assert_eq!(
        refusal(rms_norm::backward(x, w, r, dy, dx, dw, partials.view_mut(), write)),
        "rms_norm::backward: partials has 31 elements, expected 32 or more"
    );
    // a frozen weight has no use for it
    rms_norm::backward(x, w, r, dy, dh.view_mut(), None, partials.view_mut(), write).unwrap();
    assert!(partials.values().iter().all(|x| x.is_nan()));
}

#[test]
fn a_gpu_refuses_what_its_kernels_cannot_read() {
    let Some(cuda) = cuda() else { return };
    let place = Place { device: Device::Cuda(cuda), dtype: DType::Bf16 };
    let case = Case { rows: 2, cols: 16, lay: Lay::Dense, scale: 1.0, residual: false };
    let (c, host) = (case.inputs(place), case.inputs(Place::CPU));
    let mut y = place.poisoned(2, 16, Lay::Dense);
    let mut rstd = place.of(DType::F32).poisoned(2, 1, Lay::Dense);
    let mut forward =
        |x, w| refusal(rms_norm::forward(x, None, w, y.view_mut(), rstd.view_mut(), EPS));
    assert_eq!(
        forward(c.x.view(), host.w.view()),
        format!(
            "rms_norm::forward: weight is on cpu, expected cuda:{} like the others",
            cuda.ordinal()
        )
    );
    let shifted = place.random(2, 24, Lay::Dense, 1);
    assert_eq!(
        forward(shifted.view().slice_cols(4..20), c.w.view()),
        "rms_norm::forward: x has rows that do not start at multiples of 16 bytes"
    );
    let f32 = place.of(DType::F32).random(1, 16, Lay::Dense, 1);
    assert_eq!(
        forward(c.x.view(), f32.view()),
        "rms_norm::forward: weight has type F32, expected Bf16"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape_agrees(rows in 0usize..40, cols in 2usize..200, strided: bool, residual: bool) {
        let lay = if strided { Lay::Strided } else { Lay::Dense };
        Case { rows, cols, lay, scale: 1.0, residual }.judge(Place::CPU);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]
    #[test]
    fn any_shape_agrees_on_cuda(rows in 0usize..140, packs in 1usize..80, strided: bool, residual: bool) {
        let lay = if strided { Lay::Strided } else { Lay::Dense };
        for place in places().into_iter().filter(|place| *place != Place::CPU) {
            Case { rows, cols: packs * place.pack(), lay, scale: 1.0, residual }.judge(place);
        }
    }
}
