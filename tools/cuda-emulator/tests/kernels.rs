//! A whole kernel through parser and interpreter, against its equation; and the two ways operations are compiled.

use emucuda::exec::Options;

use crate::attention::{Attention, BOUND, source};
use crate::device::{Device, compile};

/// Copies, fragments, shuffles and exponentials together; tails of a tile; the same bytes on one thread and on
/// two, checked and not.
#[test]
fn attention_is_its_equation() {
    let Some(ptx) = compile("attention_is_its_equation", &source()) else { return };
    let device = Device::new(&ptx);
    for tokens in [1, 64, 65, 200] {
        let attention = Attention::new(&device, 2, tokens);
        let outputs = [(true, 1), (true, 2), (false, 1), (false, 2)].map(|(checked, threads)| {
            let launched = attention.launch(&device, &Options { checked, threads });
            launched.unwrap_or_else(|fault| panic!("{fault}"));
            attention.output(&device)
        });
        let error = attention.error(&outputs[0]);
        assert!(error <= BOUND, "{tokens} tokens: {error}");
        assert!(outputs.iter().all(|output| *output == outputs[0]), "{tokens} tokens");
    }
}

/// What is compiled for any machine gives the same bits as what is compiled for AVX2: the micro-kernels
/// know what is right.
#[test]
fn portable_operations_give_the_same() {
    for test in ["micro::results_are_the_manuals", "kernels::attention_is_its_equation"] {
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
