//! What several streams do, on the emulated driver that defers it: in any order that their waits allow.

use std::process::Command;

use crate::support;

/// Tests whose work lies in more than one stream, or in a graph, or is fetched by the host.
const TESTS: [&str; 7] = [
    "device::graph::a_graph_does_nothing_when_recorded_and_everything_when_launched",
    "device::staging::a_full_and_an_empty_ring_say_so",
    "device::staging::turns_arrive_in_order_and_slots_are_used_again",
    "device::staging::turns_that_overlap_arrive_whole",
    "train::cuda::a_model_has_the_bytes_of_the_cpu",
    "train::cuda::a_step_that_is_not_finite_is_skipped_there_too",
    "train::cuda::an_adapter_has_the_bytes_of_the_cpu_stopped_and_resumed_on_either_device",
];

const SEEDS: u32 = 4;

#[test]
fn any_order_that_waits_allow_gives_the_same() {
    if support::cuda().is_none() {
        return;
    }
    if !support::is_emulated() {
        return support::skip("this driver has one order");
    }
    for seed in 0..SEEDS {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--exact").args(TESTS);
        let streams = format!("deferred:{seed}");
        let output = command.env("CUDA_EMULATOR_STREAMS", &streams).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let all = format!("{} passed", TESTS.len());
        assert!(output.status.success() && said.contains(&all), "{streams}: {said}");
    }
}
