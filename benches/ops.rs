//! Ops at the shapes of preset `small` and of Qwen-VL: `cargo bench --bench ops [filter]`.
//!
//! One row per op and shape: median time, rate, and the share of the floor, which is the measured
//! fused multiply-add rate of all cores for matrix products. Every op's result is checked.

#[path = "ops/memory.rs"]
mod memory;

use std::hint::black_box;
use std::time::Instant;

use half::bf16;
use silkie::ops::Write::Overwrite;
use silkie::ops::attention::{self, Heads, HeadsMut, Mask, Segment};
use silkie::ops::{log_ratio, matmul};
use silkie::tensor::{Tensor, TensorMut};

/// Samples a median is taken of.
const SAMPLES: usize = 9;

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let bench = Bench { filter, peak: peak() };
    println!("{} threads, {:.0} GFLOP/s f32 peak", rayon::current_num_threads(), bench.peak);
    memory::run(&bench.filter);
    matmuls(&bench);
    attentions(&bench);
    log_ratios(&bench);
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

/// Queries `start..start + len`, the keys every one sees, the keys of its own.
fn segment(q: [u32; 2], prefix: [u32; 2], own: [u32; 2], causal: u32) -> Segment {
    let ([q_start, q_len], [prefix_start, prefix_len], [own_start, own_len]) = (q, prefix, own);
    Segment { q_start, q_len, prefix_start, prefix_len, own_start, own_len, causal }
}

/// `count` trees of a trunk and four branches.
fn trees(count: u32, trunk: u32, branch: u32) -> Vec<Segment> {
    let tree = |t: u32| {
        let start = t * (trunk + 4 * branch);
        let own = [start, trunk];
        let branches = (0..4).map(move |b| {
            let own = [start + trunk + b * branch, branch];
            segment(own, [start, trunk], own, 1)
        });
        std::iter::once(segment(own, [0, 0], own, 1)).chain(branches)
    };
    (0..count).flat_map(tree).collect()
}

/// (query, key) pairs that are visible.
fn pairs(segments: &[Segment]) -> f64 {
    let seen = |s: &Segment| {
        let (q, own) = (f64::from(s.q_len), f64::from(s.own_len));
        let own = if s.causal == 1 { q * (q + 1.0) / 2.0 } else { q * own };
        q * f64::from(s.prefix_len) + own
    };
    segments.iter().map(seen).sum()
}

fn attentions(bench: &Bench) {
    let whole = |q: u32, k: u32| vec![segment([0, q], [0, 0], [0, k], 0)];
    let cases = [
        ("vit 1024x1024", whole(1024, 1024), 4, 104),
        ("resampler 256x1024", whole(256, 1024), 4, 128),
        ("tree 340+4x100", trees(1, 340, 100), 4, 128),
        ("32 trees 40+4x8", trees(32, 40, 8), 4, 32),
        ("decode 1x740", whole(1, 740), 4, 128),
    ];
    for (name, segments, heads, hd) in cases {
        let rows = |end: fn(&Segment) -> u32| segments.iter().map(end).max().unwrap_or(0) as usize;
        let (tq, tk) = (rows(|s| s.q_start + s.q_len), rows(|s| s.own_start + s.own_len));
        let (width, scale) = (heads * hd, 1.0 / (hd as f32).sqrt());
        let (q, kv, d_o) = (values(tq * width), values(tk * 2 * width), values(tq * width));
        let (q, d_o) = (Tensor::new(&q, tq, width), Tensor::new(&d_o, tq, width));
        let kv = Tensor::new(&kv, tk, 2 * width);
        let (k, v) = (kv.slice_cols(0..width), kv.slice_cols(width..2 * width));
        let (mut o, mut lse) = (vec![0.0f32; tq * width], vec![0.0f32; tq * heads]);
        let flop = pairs(&segments) * width as f64;
        let mask = Mask::of(&segments);
        let heads_of = |x| Heads::dense(x, hd);
        bench.row(&format!("attention forward {name} {heads}x{hd}"), 4.0 * flop, || {
            let (o, lse) = (TensorMut::new(&mut o, tq, width), TensorMut::new(&mut lse, heads, tq));
            let ([q, k, v], o) = ([q, k, v].map(heads_of), HeadsMut::dense(o, hd));
            attention::forward(q, k, v, mask, o, lse, scale).expect("shapes that fit");
        });
        let (mut dq, mut dkv) = (vec![0.0f32; tq * width], vec![0.0f32; tk * 2 * width]);
        let mut delta = vec![0.0f32; tq * heads];
        let (o, lse) = (Tensor::new(&o, tq, width), Tensor::new(&lse, heads, tq));
        bench.row(&format!("attention backward {name} {heads}x{hd}"), 10.0 * flop, || {
            let (dk, dv) = TensorMut::new(&mut dkv, tk, 2 * width).split_cols(width);
            let dq = TensorMut::new(&mut dq, tq, width);
            let delta = TensorMut::new(&mut delta, heads, tq);
            let [dq, dk, dv] = [dq, dk, dv].map(|x| HeadsMut::dense(x, hd));
            let [q, k, v, o, d_o] = [q, k, v, o, d_o].map(heads_of);
            attention::backward(q, k, v, o, lse, d_o, mask, dq, dk, dv, delta, scale)
                .expect("shapes that fit");
        });
        // Σ_j dS_ij = 0 for every i: what the keys receive along any fixed direction of q is 0.
        let total: f64 =
            dkv.chunks(width).skip(1).step_by(2).flatten().map(|&x| f64::from(x)).sum();
        let given: f64 = (0..tq).flat_map(|i| d_o.row::<f32>(i)).map(|&x| f64::from(x)).sum();
        if "attention backward".contains(&bench.filter) {
            close(name, total as f32, given, (tq * width) as f64);
        }
    }
}

fn log_ratios(bench: &Bench) {
    let (rows, width, vocabulary, chunk) = (400, 512, 151_936, 128);
    if !"log_ratio".contains(&bench.filter) {
        return;
    }
    let (h, head) = (values(rows * width), values(vocabulary * width));
    let half: Vec<bf16> = head.iter().map(|&x| bf16::from_f32(x)).collect();
    let targets: Vec<u32> = (0..rows as u32).map(|r| r * 379).collect();
    let (mut p, mut dh) = (vec![0.0f32; rows], vec![0.0f32; rows * width]);
    let mut logits = vec![0.0f32; chunk * vocabulary];
    let (h, targets) = (Tensor::new(&h, rows, width), Tensor::column(&targets));
    let half = Tensor::new(&half, vocabulary, width);
    for head in [Tensor::new(&head, vocabulary, width), half] {
        for gradient in [false, true] {
            let flop = if gradient { 4.0 } else { 2.0 } * (rows * vocabulary * width) as f64;
            let kind = if gradient { "with gradient" } else { "forward" };
            let name = format!("log_ratio {kind} {rows}x{vocabulary}x{width} {:?}", head.dtype());
            bench.row(&name, flop, || {
                let p = TensorMut::column(&mut p);
                let dh = gradient.then(|| TensorMut::new(&mut dh, rows, width));
                let z = TensorMut::new(&mut logits, chunk, vocabulary);
                log_ratio::forward(h, head, targets, p, dh, z).expect("shapes that fit");
            });
        }
    }
    let z = |v: usize| -> f64 {
        let terms = h.row::<f32>(0).iter().zip(half.row::<bf16>(v));
        terms.map(|(x, w)| f64::from(*x) * f64::from(w.to_f32())).sum()
    };
    let total: f64 = (0..vocabulary).map(|v| z(v).exp()).sum();
    close("log_ratio", p[0], z(0) - total.ln(), 10.0);
}
