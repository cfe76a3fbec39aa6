//! Lane-instructions per second and core on an attention kernel, plain and checked. Exits with 1 below the
//! floor.

#[path = "../tests/device.rs"]
mod device;
#[path = "../tests/nvcc.rs"]
mod nvcc;

use std::path::Path;
use std::process::ExitCode;

use device::{CHECKED, Device, Params, Shape, compile};
use emucuda::exec::Options;

const HEADS: usize = 4;
/// No multiple of a tile.
const TOKENS: usize = 500;
const DIM: usize = 64;
const TILE: usize = 64;
const THREADS: u32 = 128;
/// Of which the best counts.
const RUNS: usize = 15;

/// Name, checked, and the least lane-instructions per second and core.
const FLOORS: [(&str, bool, f64); 2] = [("plain", false, 500e6), ("checked", true, 250e6)];

fn main() -> ExitCode {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/attention.cu");
    let Some(ptx) = compile("throughput", &source) else {
        println!("throughput: not measured, there is no nvcc; tools/get-cuda fetches it");
        return ExitCode::SUCCESS;
    };
    let device = Device::new(&ptx);
    let inputs: [Vec<u16>; 3] = [1, 2, 3].map(|seed| numbers(HEADS * TOKENS * DIM, seed));
    let [q, k, v] = inputs.each_ref().map(|values| device.upload(values));
    let o = device.allocate(HEADS * TOKENS * DIM * 2);
    let params = Params::new().with(q).with(k).with(v).with(o).with(TOKENS as i32);
    let shape = Shape {
        grid: [TOKENS.div_ceil(TILE) as u32, HEADS as u32, 1],
        block: THREADS,
        dynamic_shared: 0,
    };
    println!(
        "attention forward, {HEADS} heads x {TOKENS} tokens x {DIM}, bf16, CPU time of one thread, best of {RUNS}"
    );
    println!("| mode | time | M lane-instr/s | M warp-instr/s | floor |\n|---|---|---|---|---|");
    let mut is_fast = true;
    for (mode, checked, floor) in FLOORS {
        let options = Options { checked, ..CHECKED };
        let mut best = f64::INFINITY;
        let mut counters = None;
        for _ in 0..RUNS {
            let start = cpu_seconds();
            match device.launch("attention", shape, &params, &options) {
                Ok(counted) => counters = Some(counted),
                Err(fault) => {
                    println!("throughput: {fault}");
                    return ExitCode::FAILURE;
                }
            }
            best = best.min(cpu_seconds() - start);
        }
        let Some(counters) = counters else { return ExitCode::FAILURE };
        let lanes = counters.lane_instructions as f64 / best;
        let warps = counters.warp_instructions as f64 / best;
        println!(
            "| {mode} | {:.1} ms | {:.0} | {:.1} | {:.0} |",
            best * 1e3,
            lanes / 1e6,
            warps / 1e6,
            floor / 1e6
        );
        is_fast &= lanes >= floor;
    }
    let worst = worst_error(&device.download(o, HEADS * TOKENS * DIM), &inputs);
    println!("largest error against f64: {worst:.1e}");
    // P is rounded to bf16, and so is O; |v| <= 1 bounds both errors by 2^-9.
    let is_right = worst <= 2f64.powi(-8);
    if !is_right {
        println!("throughput: the result is wrong");
    }
    if !is_fast {
        println!("throughput: below the floor");
    }
    if is_right && is_fast { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Of this thread: others who share the machine do not count.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on every Linux, and `time` is there to be written.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Numbers of bf16 between -1 and 1 that look random.
fn numbers(count: usize, seed: u32) -> Vec<u16> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (((state >> 8) as f32 / (1 << 23) as f32 - 1.0).to_bits() >> 16) as u16
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Against softmax(Q Kᵀ / 8) V in f64.
fn worst_error(o: &[u16], [q, k, v]: &[Vec<u16>; 3]) -> f64 {
    let wide = |x: u16| f32::from_bits((x as u32) << 16) as f64;
    let row = |of: &[u16], head: usize, token: usize| -> Vec<f64> {
        let start = (head * TOKENS + token) * DIM;
        of[start..start + DIM].iter().map(|&x| wide(x)).collect()
    };
    let mut worst = 0f64;
    for head in 0..HEADS {
        let keys: Vec<_> = (0..TOKENS).map(|token| row(k, head, token)).collect();
        let values: Vec<_> = (0..TOKENS).map(|token| row(v, head, token)).collect();
        for token in 0..TOKENS {
            let query = row(q, head, token);
            let score =
                |key: &Vec<f64>| query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() / 8.0;
            let weights: Vec<f64> = keys.iter().map(|key| score(key).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (i, got) in row(o, head, token).into_iter().enumerate() {
                let exact: f64 = weights.iter().zip(&values).map(|(w, v)| w * v[i]).sum();
                worst = worst.max((got - exact / total).abs());
            }
        }
    }
    worst
}
