//! CUDA's mathematical functions, as nvcc compiles them, against the C library's in f64: whole programs of
//! instructions that the micro-kernels test one by one.

use std::path::Path;

use crate::device::{CHECKED, Device, Params, Shape, compile};

// SAFETY: these are of the C library that the standard library links anyway, and pure.
unsafe extern "C" {
    safe fn erf(x: f64) -> f64;
    safe fn erfc(x: f64) -> f64;
    safe fn tgamma(x: f64) -> f64;
    safe fn remainder(x: f64, y: f64) -> f64;
}

const COUNT: usize = 1024;

/// In units of the last place. The CUDA programming guide grants 0 to 4 to all but tgamma, which has 10 (and
/// the C library's is off by up to 5).
fn bound(name: &str) -> f64 {
    if name == "tgamma" { 15.0 } else { 4.0 }
}

type Reference = fn(f64, f64) -> f64;

const FUNCTIONS: [(&str, Reference); 34] = [
    ("sin", |x, _| x.sin()),
    ("cos", |x, _| x.cos()),
    ("tan", |x, _| x.tan()),
    ("asin", |x, _| x.asin()),
    ("acos", |x, _| x.acos()),
    ("atan", |x, _| x.atan()),
    ("sinh", |x, _| x.sinh()),
    ("cosh", |x, _| x.cosh()),
    ("tanh", |x, _| x.tanh()),
    ("asinh", |x, _| x.asinh()),
    ("acosh", |x, _| x.acosh()),
    ("atanh", |x, _| x.atanh()),
    ("exp", |x, _| x.exp()),
    ("exp2", |x, _| x.exp2()),
    ("expm1", |x, _| x.exp_m1()),
    ("log", |x, _| x.ln()),
    ("log2", |x, _| x.log2()),
    ("log10", |x, _| x.log10()),
    ("log1p", |x, _| x.ln_1p()),
    ("sqrt", |x, _| x.sqrt()),
    ("cbrt", |x, _| x.cbrt()),
    ("erf", |x, _| erf(x)),
    ("erfc", |x, _| erfc(x)),
    ("tgamma", |x, _| tgamma(x)),
    ("floor", |x, _| x.floor()),
    ("rint", |x, _| x.round_ties_even()),
    ("trunc", |x, _| x.trunc()),
    ("pow", f64::powf),
    ("atan2", f64::atan2),
    ("hypot", f64::hypot),
    ("fmod", |x, y| x % y),
    ("remainder", |x, y| remainder(x, y)),
    ("fmax", f64::max),
    ("fmin", f64::min),
];

#[test]
fn functions_are_the_c_librarys() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mathematics.cu");
    let Some(ptx) = compile("functions_are_the_c_librarys", &source) else { return };
    let device = Device::new(&ptx);
    // Neighbouring lanes have arguments of different sizes and signs, and go different ways.
    let xs: Vec<f64> = (0..COUNT)
        .map(|i| {
            let part = i as f64 / COUNT as f64;
            match i % 4 {
                0 => (part - 0.5) * 4.0,
                1 => (part - 0.5) * 60.0,
                2 => part * 1e-3 + 1e-7,
                _ => (i * 7919 % 1000) as f64 * 37.123 - 18_000.0,
            }
        })
        .collect();
    let ys: Vec<f64> = (0..COUNT).map(|i| (i * 31 % 97) as f64 * 0.137 - 5.4).collect();
    let single = |values: &[f64]| values.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let (xs32, ys32) = (single(&xs), single(&ys));
    let shape = Shape { grid: [COUNT as u32 / 128, 1, 1], block: 128, dynamic_shared: 0 };
    let to = device.allocate(COUNT * 8);
    let [at32, at64] = [
        Params::new().with(device.upload(&xs32)).with(device.upload(&ys32)).with(to),
        Params::new().with(device.upload(&xs)).with(device.upload(&ys)).with(to),
    ];
    for (name, reference) in FUNCTIONS {
        let launch = |kernel: String, params: &Params| {
            let launched = device.launch(&kernel, shape, params, &CHECKED);
            launched.unwrap_or_else(|fault| panic!("{fault}"));
        };
        launch(format!("{name}_float"), &at32);
        for (i, got) in device.download::<f32>(to, COUNT).into_iter().enumerate() {
            let (x, y) = (xs32[i] as f64, ys32[i] as f64);
            let wanted = reference(x, y);
            let rounded = wanted as f32;
            let unit = (rounded.abs().next_up() - rounded.abs()) as f64;
            let call = format!("{name}f({x:e}, {y:e})");
            check(&call, got as f64, wanted, rounded as f64, unit * bound(name));
        }
        launch(format!("{name}_double"), &at64);
        for (i, got) in device.download::<f64>(to, COUNT).into_iter().enumerate() {
            let wanted = reference(xs[i], ys[i]);
            let unit = wanted.abs().next_up() - wanted.abs();
            let call = format!("{name}({:e}, {:e})", xs[i], ys[i]);
            check(&call, got, wanted, wanted, unit * bound(name));
        }
    }
}

/// `rounded` is what is wanted in the type of the result.
fn check(call: &str, got: f64, wanted: f64, rounded: f64, bound: f64) {
    let is_right = match rounded.is_finite() {
        true => (got - wanted).abs() <= bound,
        false => got == rounded || got.is_nan() && rounded.is_nan(),
    };
    assert!(is_right, "{call} is {got:e}, expected {wanted:e}");
}
