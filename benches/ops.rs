//! Ops at the shapes of preset `small` and of Qwen-VL: `cargo bench --bench ops [filter]`.
//!
//! One row per op and shape: median time, rate, and the share of the floor, which is the measured
//! fused multiply-add rate of all cores for matrix products. Every op's result is checked.

use std::hint::black_box;
use std::time::Instant;

use half::bf16;
use silkie::ops::Write::Overwrite;
use silkie::ops::matmul;
use silkie::tensor::{Tensor, TensorMut};

/// Samples a median is taken of.
const SAMPLES: usize = 9;

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let bench = Bench { filter, peak: peak() };
    println!("{} threads, {:.0} GFLOP/s f32 peak", rayon::current_num_threads(), bench.peak);
    matmuls(&bench);
}

struct Bench {
    filter: String,
    /// GFLOP/s.
    peak: f64,
}

impl Bench {
    /// One row: `flop` is what one `run` computes.
    fn row(&self, name: &str, flop: f64, mut run: impl FnMut()) {
        if !name.contains(&self.filter) {
            return;
        }
        let seconds = median(&mut run);
        let rate = flop / seconds / 1e9;
        println!(
            "{name:<48} {:>9.3} ms {rate:>8.1} GFLOP/s {:>4.0} % of floor",
            seconds * 1e3,
            100.0 * rate / self.peak
        );
    }
}

fn median(run: &mut dyn FnMut()) -> f64 {
    run();
    let mut samples: Vec<f64> = (0..SAMPLES)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .collect();
    samples.sort_by(f64::total_cmp);
    samples[SAMPLES / 2]
}

/// GFLOP/s of independent fused multiply-adds on all cores: the floor of every product.
fn peak() -> f64 {
    struct Chains(usize);
    impl pulp::WithSimd for Chains {
        type Output = f64;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, simd: S) -> f64 {
            let mut sums: [S::f32s; 12] =
                std::array::from_fn(|i| simd.splat_f32s(black_box(i as f32)));
            let (x, y) = (simd.splat_f32s(black_box(0.999)), simd.splat_f32s(black_box(0.001)));
            for _ in 0..self.0 {
                for sum in &mut sums {
                    *sum = simd.mul_add_e_f32s(*sum, x, y);
                }
            }
            black_box(sums);
            (2 * self.0 * sums.len() * S::F32_LANES) as f64
        }
    }
    let run = || {
        let start = Instant::now();
        let flops = rayon::broadcast(|_| pulp::Arch::new().dispatch(Chains(3_000_000)));
        flops.iter().sum::<f64>() / start.elapsed().as_secs_f64() / 1e9
    };
    (0..SAMPLES).map(|_| run()).fold(0.0, f64::max)
}

/// Values in -1..1 without a pattern a sum would hide.
fn values(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn close(name: &str, got: f32, expected: f64, scale: f64) {
    let error = (f64::from(got) - expected).abs();
    assert!(error <= 1e-5 * scale, "{name}: got {got}, expected {expected}");
}

fn matmuls(bench: &Bench) {
    let shapes = [
        (1, 512, 2048),
        (40, 128, 128),
        (128, 128, 128),
        (512, 512, 2048),
        (740, 512, 512),
        (740, 2048, 512),
        (740, 64, 512),
        (1024, 1664, 416),
        (400, 32_000, 512),
    ];
    for (m, n, k) in shapes {
        let flop = (2 * m * n * k) as f64;
        let (a, b, at, bt) = (values(m * k), values(n * k), values(k * m), values(k * n));
        let half: Vec<bf16> = b.iter().map(|&x| bf16::from_f32(x)).collect();
        let mut c = vec![0.0f32; m * n];
        let (a, at) = (Tensor::new(&a, m, k), Tensor::new(&at, k, m));
        let mut run = |kind: &str, b: Tensor<'_>, x: &dyn Fn(usize) -> f64| {
            let name = format!("matmul {kind} {m}x{n}x{k} {:?}", b.dtype()).to_lowercase();
            bench.row(&name, flop, || {
                let c = TensorMut::new(&mut c, m, n);
                let done = match kind {
                    "nt" => matmul::nt(a, b, None, c, 1.0, Overwrite),
                    "nn" => matmul::nn(a, b, c, 1.0, Overwrite),
                    _ => matmul::tn(at, b, c, 1.0, Overwrite),
                };
                done.expect("shapes that fit");
            });
            if name.contains(&bench.filter) {
                close(&name, c[m * n - 1], (0..k).map(x).sum(), k as f64);
            }
        };
        let last = |t: Tensor<'_>, p: usize| f64::from(t.row::<f32>(m - 1)[p]);
        let b = Tensor::new(&b, n, k);
        run("nt", b, &|p| last(a, p) * f64::from(b.row::<f32>(n - 1)[p]));
        let half = Tensor::new(&half, n, k);
        run("nt", half, &|p| last(a, p) * f64::from(half.row::<bf16>(n - 1)[p].to_f32()));
        let b = Tensor::new(&bt, k, n);
        run("nn", b, &|p| last(a, p) * f64::from(b.row::<f32>(p)[n - 1]));
        run("tn", b, &|p| f64::from(at.row::<f32>(p)[m - 1]) * f64::from(b.row::<f32>(p)[n - 1]));
    }
}
