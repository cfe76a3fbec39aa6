//! The GPU of the tests: a real one where there is one, else the emulated driver of
//! tools/cuda-emulator, which cargo builds as a dev-dependency.
//!
//! The emulator's library carries the name libcuda.so inside; loaded by its path before anything
//! asks for the driver, it is what cudarc finds. `SILKIE_CUDA=emulator` takes it also where there is
//! a GPU; `SILKIE_REQUIRE_CUDA=1` makes a test that finds neither a failure.

use std::ffi::{OsString, c_int};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use silkie::device::cuda::Cuda;
use silkie::device::kernels;

use super::skip;

/// The driver and, on top of it, cuBLASLt, as cargo names the files.
const EMULATOR: [&str; 2] = ["libemucuda.so", "libemucublaslt.so"];

/// The GPU, opened once. Says so when there is none: no kernels in this build.
pub fn cuda() -> Option<Cuda> {
    static CUDA: OnceLock<Result<Cuda, String>> = OnceLock::new();
    match CUDA.get_or_init(open) {
        Ok(cuda) => Some(*cuda),
        Err(why) => {
            skip_cuda(why);
            None
        }
    }
}

/// `command`, which will use the GPU that [`cuda`] gives, in a process of its own.
pub fn with_cuda(command: &mut Command) -> Option<&mut Command> {
    cuda()?;
    if !is_emulated() {
        return Some(command);
    }
    let mut preloaded = OsString::new();
    for path in emulator() {
        preloaded.push(path);
        preloaded.push(":");
    }
    Some(command.env("LD_PRELOAD", preloaded))
}

/// Says that the running test is skipped for want of a GPU; with `SILKIE_REQUIRE_CUDA=1` it fails.
pub fn skip_cuda(why: &str) {
    let required = std::env::var_os("SILKIE_REQUIRE_CUDA").is_some_and(|value| value == "1");
    assert!(!required, "SILKIE_REQUIRE_CUDA=1, but {why}");
    skip(why);
}

/// Whether there is a driver with a GPU, asked before the emulator could answer.
pub fn has_real_gpu() -> bool {
    static REAL: OnceLock<bool> = OnceLock::new();
    *REAL.get_or_init(|| {
        // SAFETY: functions of the driver, as its header declares them.
        unsafe {
            let Ok(driver) = Library::new("libcuda.so.1") else { return false };
            let mut count = 0;
            let init = driver.get::<unsafe extern "C" fn(u32) -> c_int>(b"cuInit");
            let get = driver.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDeviceGetCount");
            let (Ok(init), Ok(get)) = (init, get) else { return false };
            let found = init(0) == 0 && get(&raw mut count) == 0 && count > 0;
            std::mem::forget(driver);
            found
        }
    })
}

/// Whether the tests run on the emulated driver.
pub fn is_emulated() -> bool {
    let forced = std::env::var_os("SILKIE_CUDA").is_some_and(|value| value == "emulator");
    forced || !has_real_gpu()
}

fn open() -> Result<Cuda, String> {
    if kernels::modules().is_empty() {
        return Err("no nvcc when this was built; tools/get-cuda fetches it".into());
    }
    if is_emulated() {
        for path in emulator() {
            // SAFETY: our own libraries; they stay loaded.
            let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
            std::mem::forget(library.map_err(|e| format!("{}: {e}", path.display()))?);
        }
    }
    let cuda = Cuda::open(0).map_err(|error| error.to_string())?;
    let driver = if is_emulated() { "the emulated driver" } else { "the real driver" };
    super::say(format_args!("CUDA tests run on {driver}: {}", cuda.gpu().name));
    Ok(cuda)
}

/// Beside this very program: target/<profile>/deps.
fn emulator() -> [PathBuf; 2] {
    let program = std::env::current_exe().unwrap();
    EMULATOR.map(|name| program.with_file_name(name))
}
