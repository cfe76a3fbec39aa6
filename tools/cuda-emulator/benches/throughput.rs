//! Lane-instructions per second and core on an attention kernel, plain and checked. Exits with 1 below the
//! floor.

#[path = "../tests/attention.rs"]
mod attention;
#[path = "../tests/device.rs"]
mod device;
#[path = "../tests/nvcc.rs"]
mod nvcc;

use std::process::ExitCode;

use attention::{Attention, BOUND, source};
use device::{CHECKED, Device, compile};
use emucuda::exec::Options;

const HEADS: usize = 4;
/// No multiple of a tile.
const TOKENS: usize = 500;
/// Of which the best counts.
const RUNS: usize = 15;

/// Name, checked, and the least lane-instructions per second and core.
const FLOORS: [(&str, bool, f64); 2] = [("plain", false, 500e6), ("checked", true, 250e6)];

fn main() -> ExitCode {
    let Some(ptx) = compile("throughput", &source()) else {
        println!("throughput: not measured, there is no nvcc; tools/get-cuda fetches it");
        return ExitCode::SUCCESS;
    };
    let device = Device::new(&ptx);
    let attention = Attention::new(&device, HEADS, TOKENS);
    println!(
        "attention forward, {HEADS} heads x {TOKENS} tokens x 64, bf16, CPU time of one thread, best of {RUNS}"
    );
    println!("| mode | time | M lane-instr/s | M warp-instr/s | floor |\n|---|---|---|---|---|");
    let mut is_fast = true;
    for (mode, checked, floor) in FLOORS {
        let options = Options { checked, ..CHECKED };
        let (mut lanes, mut warps, mut best) = (0.0, 0.0, f64::INFINITY);
        for _ in 0..RUNS {
            let start = cpu_seconds();
            match attention.launch(&device, &options) {
                Ok(counters) => {
                    lanes = counters.lane_instructions as f64;
                    warps = counters.warp_instructions as f64;
                }
                Err(fault) => {
                    println!("throughput: {fault}");
                    return ExitCode::FAILURE;
                }
            }
            best = best.min(cpu_seconds() - start);
        }
        let (milliseconds, floor) = (best * 1e3, floor / 1e6);
        let [lanes, warps] = [lanes, warps].map(|count| count / best / 1e6);
        println!("| {mode} | {milliseconds:.1} ms | {lanes:.0} | {warps:.1} | {floor:.0} |");
        is_fast &= lanes >= floor;
    }
    let error = attention.error(&attention.output(&device));
    println!("largest error against f64: {error:.1e}");
    if error > BOUND {
        println!("throughput: the result is wrong, the error is more than {BOUND:.1e}");
    }
    if !is_fast {
        println!("throughput: below the floor");
    }
    if error <= BOUND && is_fast { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Of this thread: others who share the machine do not count.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on every Linux, and `time` is there to be written.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
