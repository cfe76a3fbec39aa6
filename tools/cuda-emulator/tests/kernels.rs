//! A whole kernel through parser and interpreter, against its equation; and the two ways operations are compiled.

use std::path::Path;

use emucuda::exec::Options;

use crate::attention::{Attention, BOUND, source};
use crate::device::{CHECKED, Device, Params, Shape, compile};
use crate::process::run_test;

/// Copies, fragments, shuffles and exponentials together; tails of a tile; the same bytes on one thread and on
/// two, checked and not.
#[test]
fn attention_is_its_equation() {
    let Some(ptx) = compile("attention_is_its_equation", &source()) else { return };
    let device = Device::new(&ptx);
    for tokens in [1, 64, 65, 200] {
        let attention = Attention::new(&device, 2, tokens);
        let outputs = [(true, 1), (true, 2), (false, 1), (false, 2)].map(|(checked, threads)| {
            let launched = attention.launch(&device, &Options { checked, threads, ..CHECKED });
            launched.unwrap_or_else(|fault| panic!("{fault}"));
            attention.output(&device)
        });
        let error = attention.error(&outputs[0]);
        assert!(error <= BOUND, "{tokens} tokens: {error}");
        assert!(outputs.iter().all(|output| *output == outputs[0]), "{tokens} tokens");
    }
}

/// Lane after lane, in the program's own output.
#[test]
fn printf_prints() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/printf.cu");
    let Some(ptx) = compile("printf_prints", &source) else { return };
    let device = Device::new(&ptx);
    let params = Params::new().with(device.upload(b"four\0"));
    let shape = Shape { grid: [1, 1, 1], block: 4, dynamic_shared: 0 };
    device.launch("say", shape, &params, &CHECKED).unwrap_or_else(|fault| panic!("{fault}"));
}

#[test]
fn printf_is_seen() {
    let said = run_test("kernels::printf_prints", &[("CUDA_EMULATOR_PORTABLE", "0")]);
    let lines = "thread 1 of four: 0.125, 10000000000\nthread 3 of four: 0.375, 10000000000\n";
    let is_skipped = said.stderr.contains("skipped");
    assert!(said.stdout.contains(lines) || is_skipped, "{}", said.stdout);
}

/// What is compiled for any machine gives the same bits as what is compiled for AVX2: the micro-kernels
/// know what is right.
#[test]
fn portable_operations_give_the_same() {
    for test in ["micro::results_are_the_manuals", "kernels::attention_is_its_equation"] {
        run_test(test, &[("CUDA_EMULATOR_PORTABLE", "1")]);
    }
}
