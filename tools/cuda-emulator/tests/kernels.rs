//! Kernels of the project, through parser and interpreter, against the equation in f64.

use crate::device::{CHECKED, Device, Params, Shape, compile};
use crate::nvcc;

/// Numbers between -1 and 1 that look random.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn to_bf16(x: f32) -> u16 {
    ((x.to_bits() + 0x7fff + (x.to_bits() >> 16 & 1)) >> 16) as u16
}

fn from_bf16(x: u16) -> f32 {
    f32::from_bits((x as u32) << 16)
}

/// `y = h r w`, `h = x + residual`, `r = 1 / sqrt(mean(h²) + eps)`
#[test]
fn rms_norm_forward() {
    let source = nvcc::root().join("kernels/rms_norm.cu");
    let Some(ptx) = compile("rms_norm_forward", &source) else { return };
    let device = Device::new(&ptx);
    for (rows, cols) in [(1, 8), (3, 1000), (5, 2048), (2, 10_000)] {
        let (x, residual) = (numbers(rows * cols, 1), numbers(rows * cols, 2));
        let weight = numbers(cols, 3);
        let eps = 1e-6f32;
        let shape = Shape { grid: [rows as u32, 1, 1], block: 256, dynamic_shared: 0 };
        let params = |pointers: [u64; 6]| {
            let params = pointers.into_iter().fold(Params::new(), |params, p| params.with(p));
            let params = (0..4).fold(params, |params, _| params.with(cols as i64));
            params.with(cols as i32).with(eps)
        };
        let rstd = device.allocate(rows * 4);
        // f32, the residual added
        let inputs = [&x, &residual, &weight].map(|values| device.upload(values));
        let (h, y) = (device.allocate(rows * cols * 4), device.allocate(rows * cols * 4));
        let [x_at, residual_at, weight_at] = inputs;
        let of_f32 = params([x_at, residual_at, weight_at, h, y, rstd]);
        let counters = device.launch("rms_norm_forward_f32", shape, &of_f32, &CHECKED);
        assert!(counters.unwrap_or_else(|e| panic!("{e}")).lane_instructions > 0);
        let (got_h, got_y) =
            (device.download::<f32>(h, rows * cols), device.download::<f32>(y, rows * cols));
        let sums: Vec<f32> = x.iter().zip(&residual).map(|(x, residual)| x + residual).collect();
        assert_eq!(got_h, sums);
        check(&got_y, &sums, &weight, cols, 1e-6);
        // bf16, no residual
        let [x16, weight16] =
            [&x, &weight].map(|of| of.iter().map(|&x| to_bf16(x)).collect::<Vec<_>>());
        let (x_at, weight_at) = (device.upload(&x16), device.upload(&weight16));
        let y = device.allocate(rows * cols * 2);
        let of_bf16 = params([x_at, 0, weight_at, 0, y, rstd]);
        device
            .launch("rms_norm_forward_bf16", shape, &of_bf16, &CHECKED)
            .unwrap_or_else(|e| panic!("{e}"));
        let got = device.download::<u16>(y, rows * cols);
        let wide = |of: &[u16]| of.iter().map(|&x| from_bf16(x)).collect::<Vec<_>>();
        check(&wide(&got), &wide(&x16), &wide(&weight16), cols, 0.004);
    }
}

/// Within a relative error of the equation in f64.
fn check(got: &[f32], h: &[f32], weight: &[f32], cols: usize, bound: f64) {
    for (got, h) in got.chunks(cols).zip(h.chunks(cols)) {
        let square: f64 = h.iter().map(|&h| h as f64 * h as f64).sum();
        let r = 1.0 / (square / cols as f64 + 1e-6f32 as f64).sqrt();
        for ((&got, &h), &weight) in got.iter().zip(h).zip(weight) {
            let exact = h as f64 * r * weight as f64;
            assert!((got as f64 - exact).abs() <= bound * exact.abs(), "{got} for {exact}");
        }
    }
}

/// What is compiled for any machine gives the same bits as what is compiled for AVX2: the micro-kernels
/// know what is right.
#[test]
fn portable_operations_give_the_same() {
    for test in ["micro::results_are_the_manuals", "kernels::rms_norm_forward"] {
        let program = std::env::current_exe().expect("the path of this program");
        let output = std::process::Command::new(program)
            .args(["--exact", test])
            .env("CUDA_EMULATOR_PORTABLE", "1")
            .output()
            .expect("this program runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{test}: {said}");
    }
}
