//! `silkie info`: what this program can use on this machine.

use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::print_json;
use crate::device::cuda::{self, Found, Gpu};
use crate::device::kernels::{self, Kernel};
use crate::device::{cpu, memory};
use crate::error::Result;
use crate::ops::attention::HEAD_DIMS_CUDA;

/// Show what this program can use on this machine
///
/// The processor; the driver and its GPUs; the CUDA kernels that this program holds, with what they
/// take of a multiprocessor; cuBLASLt and NCCL, and where they were found. What is missing is no
/// error: it is said, with the way to get it.
///
/// With --json the last line of stdout is one object: version, cpu {name, cores, vectors, memory},
/// driver (of CUDA), gpus [{device, name, capability, memory, multiprocessors}], device_cuda (null if
/// `--device cuda` would work, else why not), nvcc, kernels [{file, kernel, arch, registers, shared,
/// stack, spills}], cublas_lt and nccl {version, path}; null for what is not there.
#[derive(clap::Args)]
pub struct Info {
    /// Print one JSON object as well
    #[arg(long)]
    json: bool,
}

impl Info {
    /// Looks and prints.
    pub fn run(self) -> Result<()> {
        let driver = cuda::version();
        let gpus = cuda::gpus().unwrap_or_default();
        let usable = cuda::usable(0).err().map(|error| error.to_string());
        let toolkit = kernels::toolkit();
        let cublas_lt = cuda::cublas_lt(driver.as_ref().ok().copied());
        let nccl = cuda::nccl();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let name = cpu::name();

        line("silkie", env!("CARGO_PKG_VERSION"));
        let named = name.as_deref().unwrap_or("a processor");
        line("cpu", &format!("{named}, {cores} cores, {}", cpu::vectors()));
        if let Some(bytes) = memory::total_bytes() {
            line("memory", &HumanBytes(bytes).to_string());
        }
        match &driver {
            Ok(version) => line("driver", &format!("knows CUDA {version}")),
            Err(error) if Some(error.to_string()) == usable => {
                line("driver", "none that can be used")
            }
            Err(error) => line("driver", &error.to_string()),
        }
        for Gpu { ordinal, name, capability: [major, minor], memory, multiprocessors, .. } in &gpus
        {
            let memory = HumanBytes(*memory);
            line(
                &format!("cuda:{ordinal}"),
                &format!(
                    "{name}, compute capability {major}.{minor}, {memory}, {multiprocessors} \
                     multiprocessors"
                ),
            );
        }
        line("--device cuda", usable.as_deref().unwrap_or("works"));
        show_found("cuBLASLt", &cublas_lt);
        show_found("NCCL", &nccl);
        match toolkit {
            Some(toolkit) => line("kernels", &format!("compiled by nvcc {}", toolkit.release)),
            None => line("kernels", "none: no nvcc when this program was built"),
        }
        show_kernels();
        print_json(
            self.json,
            &json!({
                "version": env!("CARGO_PKG_VERSION"),
                "cpu": {
                    "name": name,
                    "cores": cores,
                    "vectors": cpu::vectors(),
                    "memory": memory::total_bytes(),
                },
                "driver": driver.ok().map(|version| version.to_string()),
                "gpus": gpus.iter().map(gpu_json).collect::<Vec<_>>(),
                "device_cuda": usable,
                "nvcc": toolkit.map(|toolkit| toolkit.release.to_string()),
                "kernels": kernels_json(),
                "cublas_lt": cublas_lt.map(found_json),
                "nccl": nccl.map(found_json),
            }),
        );
        Ok(())
    }
}

fn line(name: &str, value: &str) {
    println!("{name:<14} {value}");
}

fn show_found(name: &str, found: &Option<Found>) {
    match found {
        Some(found) => line(name, &format!("{} in {}", found.version, found.path.display())),
        None => {
            line(name, "none: run tools/get-cuda --runtime, or name its folder in SILKIE_CUDA_LIB")
        }
    }
}

fn show_kernels() {
    if kernels::modules().is_empty() {
        return;
    }
    let dims = HEAD_DIMS_CUDA.map(|dim| dim.to_string()).join(", ");
    line("attention", &format!("heads of {dims}; other multiples of 8 below run the next, padded"));
    let head = ["arch", "registers", "shared", "stack", "spills"];
    let [arch, registers, shared, stack, spills] = head;
    println!("  {:<40} {arch:<7} {registers:>9} {shared:>7} {stack:>6} {spills:>6}", "kernel");
    let mut all: Vec<&Kernel> = all_kernels().map(|(_, kernel)| kernel).collect();
    all.sort_by_key(|kernel| (kernel.symbol, kernel.arch));
    for Kernel { symbol, arch, registers, shared, stack, spills } in all {
        println!("  {symbol:<40} {arch:<7} {registers:>9} {shared:>7} {stack:>6} {spills:>6}");
    }
}

fn all_kernels() -> impl Iterator<Item = (&'static str, &'static Kernel)> {
    let of = |module: &'static kernels::Module| module.kernels.iter().map(|k| (module.name, k));
    kernels::modules().iter().flat_map(of)
}

fn kernels_json() -> Vec<Value> {
    all_kernels()
        .map(|(file, Kernel { symbol, arch, registers, shared, stack, spills })| {
            json!({
                "file": format!("kernels/{file}.cu"),
                "kernel": symbol,
                "arch": arch,
                "registers": registers,
                "shared": shared,
                "stack": stack,
                "spills": spills,
            })
        })
        .collect()
}

fn gpu_json(gpu: &Gpu) -> Value {
    let [major, minor] = gpu.capability;
    json!({
        "device": format!("cuda:{}", gpu.ordinal),
        "name": gpu.name,
        "capability": format!("{major}.{minor}"),
        "memory": gpu.memory,
        "multiprocessors": gpu.multiprocessors,
    })
}

fn found_json(found: Found) -> Value {
    json!({ "version": found.version, "path": found.path })
}
