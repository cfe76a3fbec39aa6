//! A driver that is missing, old, or without a GPU is one sentence that says what to do.

use std::process::{Command, Output};

use serde_json::Value;
use silkie::device::kernels::{self, Version};
use tempfile::TempDir;

use crate::support;

/// A driver that knows CUDA `version` and answers cuInit with `init`, loaded into `silkie`.
fn with_driver(version: u32, init: u32, words: &str) -> Output {
    const SOURCE: &str = "
        int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
        int cuInit(unsigned flags) { return INIT; }
        int cuDeviceGetCount(int *count) { *count = 0; return INIT; }
        int cuGetErrorString(int error, const char **text) { *text = \"as it is\"; return 0; }
    ";
    let folder = TempDir::new().unwrap();
    let (source, library) = (folder.path().join("driver.c"), folder.path().join("driver.so"));
    std::fs::write(&source, SOURCE).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so"])
        .args([format!("-DVERSION={version}"), format!("-DINIT={init}")])
        .arg("-o")
        .args([&library, &source])
        .status();
    assert!(compiled.unwrap().success());
    silkie(words).env("LD_PRELOAD", library).output().unwrap()
}

fn silkie(words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_silkie"));
    command.args(words.split_whitespace());
    command
}

/// The last line of `info --json`, which always succeeds.
fn told(output: Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

/// nvcc's release; says so when there was none.
fn toolkit() -> Option<Version> {
    let toolkit = kernels::toolkit().filter(|_| !kernels::modules().is_empty());
    if toolkit.is_none() {
        support::skip_cuda("no nvcc when this was built; tools/get-cuda fetches it");
    }
    toolkit.map(|toolkit| toolkit.release)
}

#[test]
fn a_binary_without_kernels_says_how_to_get_them() {
    if !kernels::modules().is_empty() {
        return;
    }
    let told = told(silkie("info --json").output().unwrap());
    let expected = "cuda: this binary has no kernels (nvcc was not found when it was built); run \
                    tools/get-cuda and build again, or pass --device cpu";
    assert_eq!(told["device_cuda"], expected);
}

#[test]
fn without_a_driver_everything_but_cuda_works() {
    let Some(Version { major, .. }) = toolkit() else { return };
    if support::has_real_gpu() {
        return support::skip("this machine has a driver");
    }
    let told = told(silkie("info --json").output().unwrap());
    let driver = if major >= 13 { 580 } else { 525 };
    let expected = format!(
        "cuda: no NVIDIA driver on this machine (no libcuda.so.1); install driver {driver} or \
         newer, or pass --device cpu"
    );
    assert_eq!(told["device_cuda"], expected);
    assert_eq!((&told["driver"], &told["gpus"]), (&Value::Null, &Value::Array(vec![])));
}

#[test]
fn an_old_driver_is_told_both_versions() {
    let Some(Version { major, minor }) = toolkit() else { return };
    let told = told(with_driver((major - 1) * 1000 + 40, 0, "info --json"));
    let sentence = told["device_cuda"].as_str().unwrap();
    let start = format!(
        "cuda: the driver knows CUDA {}.4, and this binary's kernels, compiled by nvcc \
         {major}.{minor}, need CUDA {major}.0 (driver ",
        major - 1
    );
    assert!(sentence.starts_with(&start), "{sentence}");
    assert!(sentence.contains(" or newer); update the driver, "), "{sentence}");
    assert!(sentence.ends_with("or pass --device cpu"), "{sentence}");
    assert_eq!(told["driver"], format!("{}.4", major - 1));
}

#[test]
fn a_driver_without_a_gpu_says_where_to_look() {
    let Some(Version { major, .. }) = toolkit() else { return };
    // CUDA_ERROR_NO_DEVICE; and a driver that counts none.
    for init in [100, 0] {
        let told = told(with_driver(major * 1000, init, "info --json"));
        let expected = format!(
            "cuda: the driver (CUDA {major}.0) finds no GPU; look at nvidia-smi and \
             CUDA_VISIBLE_DEVICES, or pass --device cpu"
        );
        assert_eq!(told["device_cuda"], expected, "cuInit {init}");
    }
}

#[test]
fn a_driver_that_does_not_start_says_why() {
    let Some(Version { major, .. }) = toolkit() else { return };
    // CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
    let told = told(with_driver(major * 1000, 803, "info --json"));
    let expected = format!(
        "cuda: the driver (CUDA {major}.0) does not start: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (as \
         it is); look at nvidia-smi, or pass --device cpu"
    );
    assert_eq!(told["device_cuda"], expected);
}
