//! What a step of chunks is made of, from the emulated driver's log of a process that runs this very test; and what the
//! pass moves.

use std::process::Command;

use serde_json::Value;
use silkie::device::Device;
use silkie::tensor::DType;

use super::case;
use crate::support::*;

/// How the driver calls a product of cuBLASLt, and a kernel.
const PRODUCT: &str = "emucuda_run";
const KERNEL: &str = "cuLaunchKernelEx";

#[test]
fn a_chunk_is_two_products_and_a_kernel() {
    const NAME: &str = "ops::log_ratio::calls::a_chunk_is_two_products_and_a_kernel";
    const INSIDE: &str = "SILKIE_TEST_LOGGED";
    let Some(cuda) = cuda() else { return };
    if std::env::var_os(INSIDE).is_some() {
        // five rows, two at a time
        let place = Place { device: Device::Cuda(cuda), dtype: DType::Bf16 };
        let case = case(place, 5, 16, 64, 2);
        let inputs = case.inputs();
        case.forward(&inputs).unwrap();
        cuda.synchronize().unwrap();
        case.backward_head(&inputs, &mut case.dhead());
        return;
    }
    if !is_emulated() {
        return skip("this driver keeps no log");
    }
    let mut logged = Command::new(std::env::current_exe().unwrap());
    logged.args(["--exact", NAME, "--nocapture"]).env(INSIDE, "1").env("CUDA_EMULATOR_LOG", "1");
    let output = logged.output().unwrap();
    assert!(output.status.success());
    let log = String::from_utf8(output.stderr).unwrap();
    let calls =
        log.lines().filter_map(|line| line.strip_prefix("cuda-emulator: ")?.split_once('('));
    let calls: Vec<&str> = calls.map(|(name, _)| name).collect();
    // What stands together is one op, or two in a row: nothing is allocated or copied within.
    let is_work = |name: &str| [PRODUCT, KERNEL].contains(&name);
    let runs = calls.chunk_by(|a, b| is_work(a) == is_work(b));
    let runs: Vec<&[&str]> = runs.filter(|run| is_work(run[0])).collect();
    let with_gradient = [PRODUCT, KERNEL, PRODUCT].repeat(3);
    let alone = [PRODUCT, KERNEL].repeat(3);
    let forward = [&with_gradient[..], &alone].concat();
    assert_eq!(runs, [&forward[..], &with_gradient], "{calls:?}");
}

/// The row once, what shared memory does not hold of it again, its gradient; and the target's logit by every warp.
#[test]
fn the_pass_reads_once_and_again_what_it_does_not_hold() {
    let Some(cuda) = cuda() else { return };
    let mut bench = Command::new(env!("CARGO_BIN_EXE_silkie"));
    bench.args(["bench", "kernels", "log_ratio", "--json"]);
    let command = with_cuda(&mut bench).unwrap();
    if !is_emulated() {
        return skip("a GPU counts nothing; it is timed");
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let report: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let held = (cuda.gpu().shared as u64 - 1024) / 16 * 4;
    let warps = 512 / 32;
    for row in report["rows"].as_array().unwrap() {
        let [rows, v] = [0, 1].map(|i| row["shape"][i].as_u64().unwrap());
        let name = row["kernel"].as_str().unwrap();
        // target and its logit for every warp, factors as well; log p
        let expected = match name {
            "log_ratio log_probs" => rows * (4 * v + 8 * warps + 4),
            "log_ratio gradients" => rows * (4 * v + 4 * (v - held) + 2 * v + 2 + 8 * warps + 4),
            "log_ratio gradients, factors" => {
                rows * (4 * v + 4 * (v - held) + 2 * v + 2 + 12 * warps)
            }
            _ => continue,
        };
        assert_eq!(row["counters"]["bytes"].as_u64().unwrap(), expected, "{name}");
    }
}
