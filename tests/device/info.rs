//! `silkie info`, on this machine and with a GPU.

use std::process::Command;

use serde_json::Value;
use silkie::device::kernels;

use crate::support;

fn info(command: &mut Command) -> (String, Value) {
    let output = command.args(["info", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let json = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    (text, json)
}

fn silkie() -> Command {
    Command::new(env!("CARGO_BIN_EXE_silkie"))
}

#[test]
fn every_machine_is_described() {
    let (text, json) = info(&mut silkie());
    assert!(json["cpu"]["cores"].as_u64() > Some(0), "{json}");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    let all: usize = kernels::modules().iter().map(|module| module.kernels.len()).sum();
    assert_eq!(json["kernels"].as_array().map(Vec::len), Some(all));
    for kernel in json["kernels"].as_array().unwrap() {
        let (name, registers) = (kernel["kernel"].as_str().unwrap(), &kernel["registers"]);
        assert!(text.contains(name) && registers.as_u64() > Some(0), "{kernel}");
    }
    let heads = "heads of 32, 64, 104, 128; other multiples of 8 below run the next, padded";
    assert_eq!(text.contains(heads), all > 0, "{text}");
    assert_eq!(json["nvcc"].is_null(), kernels::toolkit().is_none());
}

#[test]
fn a_gpu_is_described() {
    let mut command = silkie();
    let Some(command) = support::with_cuda(&mut command) else { return };
    let Some(cuda) = support::cuda() else { return };
    let (text, json) = info(command);
    assert_eq!(json["device_cuda"], Value::Null, "{json}");
    let gpu = &json["gpus"][0];
    assert_eq!(gpu["name"], cuda.gpu().name.as_str());
    assert_eq!(gpu["multiprocessors"], cuda.multiprocessors());
    assert!(text.contains(&format!("cuda:0         {}", cuda.gpu().name)), "{text}");
    assert!(json["cublas_lt"]["version"].is_string(), "{json}");
}
