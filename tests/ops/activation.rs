//! GELU and SwiGLU against their equations in f64, on the CPU and on CUDA.

use proptest::prelude::*;
use silkie::device::Device;
use silkie::ops::activation;
use silkie::tensor::DType;

use crate::support::*;

/// erf and exp of `ops::math`, and what the kernels have in their place, are within 2.6e-7.
const BOUND: f64 = 5e-7;

/// The error function by its series, all terms of one sign.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// `Φ(x)`: in the tail `φ(x) / (z + 1 / (z + 2 / (z + …)))`, z = -x, which cancels nothing.
fn normal(x: f64) -> f64 {
    if x > 2.0 {
        return 1.0 - normal(-x);
    }
    if x >= -2.0 {
        return 0.5 * (1.0 + erf(x / 2f64.sqrt()));
    }
    density(x) / (1..=200).rev().fold(-x, |below, k| -x + f64::from(k) / below)
}

fn gelu(x: f64) -> f64 {
    x * normal(x)
}

fn gelu_slope(x: f64) -> f64 {
    normal(x) + x * density(x)
}

fn silu(b: f64) -> f64 {
    b / (1.0 + (-b).exp())
}

fn silu_slope(b: f64) -> f64 {
    let s = 1.0 / (1.0 + (-b).exp());
    s * (1.0 + b * (1.0 - s))
}

#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    cols: usize,
    lay: Lay,
    scale: f32,
}

struct Inputs {
    a: Matrix,
    b: Matrix,
    dy: Matrix,
}

/// gelu of `a`, and swiglu of `a` and `b`, which gives `s` twice.
struct Outputs {
    gelu: Matrix,
    dx: Matrix,
    dx_alone: Matrix,
    dbias: Matrix,
    s: Matrix,
    da: Matrix,
    db: Matrix,
    s_again: Matrix,
}

impl Case {
    fn inputs(&self, place: Place) -> Inputs {
        let Case { rows, cols, lay, scale } = *self;
        let scaled =
            |seed| -> Vec<f32> { random(rows * cols, seed).iter().map(|x| x * scale).collect() };
        let [a, b] = [1, 2].map(|seed| place.matrix(&scaled(seed), rows, cols, lay));
        Inputs { a, b, dy: place.random(rows, cols, lay, 3) }
    }

    fn run(&self, place: Place, inputs: &Inputs) -> silkie::Result<Outputs> {
        let Case { rows, cols, lay, .. } = *self;
        let output = || place.poisoned(rows, cols, lay);
        let dbias = place.of(DType::F32).matrix(&vec![0.5; cols], 1, cols, lay);
        let [gelu, dx, dx_alone, s, da, db, s_again] = std::array::from_fn(|_| output());
        let mut o = Outputs { gelu, dx, dx_alone, dbias, s, da, db, s_again };
        let (a, b, dy) = (inputs.a.view(), inputs.b.view(), inputs.dy.view());
        activation::gelu(a, o.gelu.view_mut())?;
        activation::gelu_backward(a, dy, o.dx.view_mut(), Some(o.dbias.view_mut()))?;
        activation::gelu_backward(a, dy, o.dx_alone.view_mut(), None)?;
        activation::swiglu(a, b, o.s.view_mut())?;
        let (da, db, s) = (o.da.view_mut(), o.db.view_mut(), o.s_again.view_mut());
        activation::swiglu_backward(a, b, dy, da, db, Some(s))?;
        Ok(o)
    }

    fn judge(&self, place: Place) {
        let what = |part: &str| format!("{part} {self:?} {place:?}");
        let inputs = self.inputs(place);
        let o = self.run(place, &inputs).unwrap();
        let [a, b, dy] = [&inputs.a, &inputs.b, &inputs.dy].map(Matrix::f64);
        let each = |f: &dyn Fn(usize) -> f64| (0..a.len()).map(f).collect::<Vec<_>>();
        let dx = each(&|i| dy[i] * gelu_slope(a[i]));
        let parts = [
            ("gelu", &o.gelu, each(&|i| gelu(a[i]))),
            ("gelu_backward", &o.dx, dx.clone()),
            ("swiglu", &o.s, each(&|i| a[i] * silu(b[i]))),
            ("swiglu_backward da", &o.da, each(&|i| dy[i] * silu(b[i]))),
            ("swiglu_backward db", &o.db, each(&|i| dy[i] * a[i] * silu_slope(b[i]))),
        ];
        for (part, got, exact) in parts {
            let rounded: Vec<f64> = exact.iter().map(|&x| place.round(x)).collect();
            assert_rounded(what(part), &got.values(), &exact, &rounded, BOUND);
        }
        assert_same_bits(what("dx with and without dbias"), &o.dx.values(), &o.dx_alone.values());
        assert_same_bits(what("s again"), &o.s_again.values(), &o.s.values());
        // summed of dx before it is rounded
        let column =
            |j: usize, f: fn(f64) -> f64| dx.iter().skip(j).step_by(self.cols).map(move |&x| f(x));
        let sum = |f| (0..self.cols).map(|j| 0.5 + column(j, f).sum::<f64>()).collect::<Vec<_>>();
        let (sums, sizes) = (sum(|x| x), sum(f64::abs));
        assert_sums_close(what("dbias"), &o.dbias.values(), &sums, &sizes, 2.0 * BOUND);
    }

    /// Whether kernels take rows of so many elements.
    fn fits(&self, place: Place) -> bool {
        place.device == Device::Cpu || self.cols.is_multiple_of(place.pack())
    }
}

/// Odd ones; a row, a column; around a pack of 16 bytes; around the two rows and 128 packs of a block;
/// around the 4 packs, 64 rows and 4 times 64 rows of one that sums columns.
const SHAPES: [[usize; 2]; 23] = [
    [0, 8],
    [1, 1],
    [1, 64],
    [5, 123],
    [67, 33],
    [1, 8],
    [2, 16],
    [3, 24],
    [4, 4],
    [63, 12],
    [64, 32],
    [65, 40],
    [191, 20],
    [255, 8],
    [256, 16],
    [257, 24],
    [3, 508],
    [2, 512],
    [3, 516],
    [2, 1016],
    [3, 1024],
    [3, 1032],
    [300, 513],
];

#[test]
fn agree_with_the_equations() {
    for place in places() {
        for [rows, cols] in SHAPES {
            for lay in LAYS {
                let case = Case { rows, cols, lay, scale: 4.0 };
                if case.fits(place) {
                    case.judge(place);
                    continue;
                }
                let message = refusal(case.run(place, &case.inputs(place)));
                let expected = format!(
                    "activation::gelu: x has {cols} columns, expected a multiple of {}: kernels \
                     read 16 bytes at a time",
                    place.pack()
                );
                assert_eq!(message, expected);
            }
        }
    }
}

#[test]
fn huge_and_tiny_values_stay_finite_and_right() {
    for place in places() {
        for scale in [1e30, 1e15, 1e4, 80.0, 1e-4, 1e-15] {
            Case { rows: 3, cols: 104, lay: Lay::Dense, scale }.judge(place);
        }
    }
}

/// Each value by itself: the rounding of x² / 2 is an absolute error of the exponent.
#[test]
fn the_tail_of_gelu_keeps_its_digits_on_a_gpu() {
    let Some(cuda) = cuda() else { return };
    for dtype in [DType::F32, DType::Bf16] {
        let place = Place { device: Device::Cuda(cuda), dtype };
        let cols = 2064;
        let x: Vec<f32> = (0..cols).map(|i| i as f32 * -12.9 / cols as f32).collect();
        let x = place.matrix(&x, 1, cols, Lay::Dense);
        let ones = place.matrix(&vec![1.0; cols], 1, cols, Lay::Dense);
        let mut y = place.poisoned(1, cols, Lay::Dense);
        activation::gelu(x.view(), y.view_mut()).unwrap();
        let mut dx = place.poisoned(1, cols, Lay::Dense);
        activation::gelu_backward(x.view(), ones.view(), dx.view_mut(), None).unwrap();
        let stored = if dtype == DType::Bf16 { 2f64.powi(-8) } else { 2f64.powi(-23) };
        for ((x, y), dx) in x.f64().into_iter().zip(y.f64()).zip(dx.f64()) {
            let bound = 1e-6 + 1.5e-7 * x * x;
            let (exact, slope, size) = (gelu(x), gelu_slope(x), normal(x) + x.abs() * density(x));
            let allowed = (bound + stored) * exact.abs();
            assert!((y - exact).abs() <= allowed, "gelu({x}): got {y:e}, expected {exact:e}");
            let allowed = bound * size + stored * slope.abs();
            assert!((dx - slope).abs() <= allowed, "slope at {x}: got {dx:e}, expected {slope:e}");
        }
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
    for place in places() {
        let nan = || place.matrix(&[f32::NAN; 8], 1, 8, Lay::Dense);
        let (x, mut y, mut db) = (nan(), place.matrix(&[0.0; 8], 1, 8, Lay::Dense), nan());
        let ones = place.matrix(&[1.0; 8], 1, 8, Lay::Dense);
        activation::gelu(x.view(), y.view_mut()).unwrap();
        assert!(y.values()[0].is_nan());
        activation::gelu_backward(x.view(), ones.view(), y.view_mut(), None).unwrap();
        assert!(y.values()[0].is_nan());
        activation::swiglu(x.view(), ones.view(), y.view_mut()).unwrap();
        assert!(y.values()[0].is_nan());
        let (x, dy, db) = (x.view(), ones.view(), db.view_mut());
        activation::swiglu_backward(dy, x, dy, y.view_mut(), db, None).unwrap();
        assert!(y.values()[0].is_nan());
    }
}

#[test]
fn neither_threads_nor_another_run_change_a_bit() {
    let case = Case { rows: 301, cols: 520, lay: Lay::Strided, scale: 4.0 };
    for place in places() {
        let inputs = case.inputs(place);
        same_on_any_threads(format!("activation {place:?}"), || {
            let o = case.run(place, &inputs).unwrap();
            [o.gelu, o.dx, o.dbias, o.s, o.da, o.db].map(|part| part.values()).concat()
        });
    }
}

#[test]
fn refuse_what_does_not_fit() {
    let (x, mut y) = (Matrix::random(2, 3, Lay::Dense, 1), Matrix::poisoned(3, 2, Lay::Dense));
    let error = refusal(activation::gelu(x.view(), y.view_mut()));
    assert_eq!(error, "activation::gelu: y has shape [3, 2], expected [2, 3] (rows, cols)");
    let b = Matrix::random(2, 4, Lay::Dense, 1);
    let error = refusal(activation::swiglu(x.view(), b.view(), y.view_mut()));
    assert_eq!(error, "activation::swiglu: b has shape [2, 4], expected [2, 3] (rows, cols)");
    let (x, mut dx) = (x.view(), Matrix::poisoned(2, 3, Lay::Dense));
    let error = refusal(activation::gelu_backward(x, x, dx.view_mut(), Some(y.view_mut())));
    assert_eq!(
        error,
        "activation::gelu_backward: dbias has shape [3, 2], expected [1, 3] (1, cols)"
    );
    let mut db = dx.clone();
    let (da, db, s) = (dx.view_mut(), db.view_mut(), Some(y.view_mut()));
    let error = refusal(activation::swiglu_backward(x, x, x, da, db, s));
    assert_eq!(
        error,
        "activation::swiglu_backward: s has shape [3, 2], expected [2, 3] (rows, cols)"
    );
}

#[test]
fn a_gpu_refuses_what_its_kernels_cannot_read() {
    let Some(cuda) = cuda() else { return };
    let place = Place { device: Device::Cuda(cuda), dtype: DType::Bf16 };
    let (x, mut y) = (place.random(2, 16, Lay::Dense, 1), place.poisoned(2, 16, Lay::Dense));
    let wide = place.random(2, 24, Lay::Dense, 1);
    assert_eq!(
        refusal(activation::gelu(wide.view().slice_cols(4..20), y.view_mut())),
        "activation::gelu: x has rows that do not start at multiples of 16 bytes"
    );
    let f32 = place.of(DType::F32).random(2, 16, Lay::Dense, 1);
    assert_eq!(
        refusal(activation::swiglu(x.view(), f32.view(), y.view_mut())),
        "activation::swiglu: b has type F32, expected Bf16"
    );
    let host = Matrix::random(2, 16, Lay::Dense, 1);
    assert_eq!(
        refusal(activation::gelu(host.view(), y.view_mut())),
        "activation::gelu: y is on cuda:0, expected cpu like the others"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape_agrees(rows in 0usize..40, cols in 1usize..200, strided: bool) {
        let lay = if strided { Lay::Strided } else { Lay::Dense };
        Case { rows, cols, lay, scale: 4.0 }.judge(Place::CPU);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn any_shape_agrees_on_a_gpu(rows in 0usize..300, packs in 1usize..40, strided: bool) {
        let lay = if strided { Lay::Strided } else { Lay::Dense };
        for place in places().into_iter().filter(|place| place.device != Device::Cpu) {
            Case { rows, cols: packs * place.pack(), lay, scale: 4.0 }.judge(place);
        }
    }
}
