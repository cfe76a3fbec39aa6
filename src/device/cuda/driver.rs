//! The driver: found or not, old or new, and what GPUs it knows. Whatever is missing is one
//! sentence with the ways out.

use std::ffi::{CStr, c_int};
use std::fmt::Display;
use std::sync::OnceLock;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};

use crate::device::kernels::{self, Version};
use crate::error::{Error, Result};

/// What a GPU says of itself.
#[derive(Clone, Debug)]
pub struct Gpu {
    /// N of `cuda:N`.
    pub ordinal: usize,
    /// As the maker calls it.
    pub name: String,
    /// `[9, 0]` is Hopper.
    pub capability: [u32; 2],
    /// Bytes.
    pub memory: u64,
    /// Bytes per second between memory and chip at most: two transfers a clock, as wide as the bus.
    pub bandwidth: f64,
    /// Multiply-adds of bf16 per second on its tensor cores at most: those of a multiprocessor in a clock.
    pub products: f64,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block can have, if it asks.
    pub shared: u32,
}

/// Least compute capability that the kernels are compiled for.
const CAPABILITY: [u32; 2] = [8, 0];

/// The newest CUDA that the driver of this machine knows. Errors: no driver, or one that is too old to
/// be asked anything else, or that does not start.
pub fn version() -> Result<Version> {
    Ok(started()?.version)
}

/// The GPUs of this machine; none is no error. Errors: as [`version`].
pub fn gpus() -> Result<Vec<Gpu>> {
    if !started()?.has_gpu {
        return Ok(Vec::new());
    }
    let count = result::device::get_count().told("cuda", "cannot count the GPUs")?;
    (0..count as usize).map(gpu).collect()
}

/// The GPU `ordinal`, if this program's kernels can use it; opens nothing. Errors: none such, and
/// every reason why it cannot be used.
pub fn usable(ordinal: usize) -> Result<Gpu> {
    let toolkit = kernels::toolkit().filter(|_| !kernels::modules().is_empty());
    let Some(toolkit) = toolkit else {
        return Err(Error::Device(
            "cuda: this binary has no kernels (nvcc was not found when it was built); run \
             tools/get-cuda and build again, or pass --device cpu"
                .into(),
        ));
    };
    let driver = version()?;
    if let Some(message) = too_old(driver, toolkit.release) {
        return Err(Error::Device(message));
    }
    let gpus = gpus()?;
    let Some(gpu) = gpus.get(ordinal) else {
        let message = match gpus.len() {
            0 => format!(
                "cuda: the driver (CUDA {driver}) finds no GPU; look at nvidia-smi and \
                 CUDA_VISIBLE_DEVICES, or pass --device cpu"
            ),
            count => format!(
                "cuda:{ordinal}: this machine's GPUs are cuda:0 to cuda:{}; pass one of them, or \
                 --device cpu",
                count - 1
            ),
        };
        return Err(Error::Device(message));
    };
    if gpu.capability < CAPABILITY {
        let ([major, minor], [least, _]) = (gpu.capability, CAPABILITY);
        return Err(Error::Device(format!(
            "cuda:{ordinal}: {} has compute capability {major}.{minor}, the kernels need {least}.0 \
             or newer; pass --device cpu",
            gpu.name
        )));
    }
    Ok(gpu.clone())
}

/// Why a driver that knows CUDA up to `driver` cannot run kernels compiled by nvcc `toolkit`. Machine
/// code runs on any driver of its major version.
fn too_old(driver: Version, toolkit: Version) -> Option<String> {
    if driver.major >= toolkit.major {
        return None;
    }
    let release = if toolkit.major >= 13 { "580" } else { "525" };
    let rebuild = match driver.major {
        12 => "rebuild with nvcc 12.x named by SILKIE_NVCC, ",
        _ => "",
    };
    Some(format!(
        "cuda: the driver knows CUDA {driver}, and this binary's kernels, compiled by nvcc {toolkit}, \
         need CUDA {}.0 (driver {release} or newer); update the driver, {rebuild}or pass --device cpu",
        toolkit.major
    ))
}

/// The driver, as it started.
#[derive(Clone, Copy)]
struct Driver {
    version: Version,
    has_gpu: bool,
}

fn started() -> Result<Driver> {
    static DRIVER: OnceLock<std::result::Result<Driver, String>> = OnceLock::new();
    DRIVER.get_or_init(start).clone().map_err(Error::Device)
}

fn start() -> std::result::Result<Driver, String> {
    // SAFETY: tries to open the library, which runs its initialisers and nothing else.
    if !unsafe { sys::is_culib_present() } {
        let release = match kernels::toolkit().map(|toolkit| toolkit.release.major) {
            Some(..13) => "525",
            _ => "580",
        };
        return Err(format!(
            "cuda: no NVIDIA driver on this machine (no libcuda.so.1); install driver {release} or \
             newer, or pass --device cpu"
        ));
    }
    let mut version: c_int = 0;
    // SAFETY: writes the one integer; may be called before anything else.
    let told = unsafe { sys::cuDriverGetVersion(&raw mut version) }.result();
    told.map_err(|e| format!("cuda: the driver tells no version: {}", name(e)))?;
    let number = u32::try_from(version).unwrap_or(0);
    let version = Version { major: number / 1000, minor: number % 1000 / 10 };
    match result::init() {
        Ok(()) => Ok(Driver { version, has_gpu: true }),
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(Driver { version, has_gpu: false }),
        Err(e) => Err(format!(
            "cuda: the driver (CUDA {version}) does not start: {}; look at nvidia-smi, or pass \
             --device cpu",
            name(e)
        )),
    }
}

fn gpu(ordinal: usize) -> Result<Gpu> {
    let at = format!("cuda:{ordinal}");
    let device = result::device::get(ordinal as c_int).told(&at, "cannot open the GPU")?;
    let attribute = |attribute: CUdevice_attribute| -> Result<u32> {
        // SAFETY: the driver gave this device.
        let value = unsafe { result::device::get_attribute(device, attribute) };
        value.told(&at, "cannot ask an attribute").map(|value| value as u32)
    };
    let capability = [
        attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    ];
    let kilohertz = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
    let clock = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?;
    let multiprocessors = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let bits = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
    // SAFETY: the driver gave this device.
    let memory = unsafe { result::device::total_mem(device) };
    Ok(Gpu {
        ordinal,
        name: result::device::get_name(device).told(&at, "cannot ask the name")?,
        capability,
        memory: memory.told(&at, "cannot ask the memory")? as u64,
        bandwidth: 2.0 * f64::from(kilohertz) * 1e3 * f64::from(bits / 8),
        products: products(capability) * f64::from(multiprocessors) * f64::from(clock) * 1e3,
        multiprocessors,
        shared: attribute(
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?,
    })
}

/// Dense multiply-adds of bf16, summed in f32, of a multiprocessor in a clock: the rates of NVIDIA's whitepapers over
/// their clocks, for A100, H100 and B200; of chips for graphics about so.
fn products(capability: [u32; 2]) -> f64 {
    match capability {
        [8, 0] => 1024.0,
        [9, _] => 2048.0,
        [10, _] => 4096.0,
        _ => 512.0,
    }
}

/// The driver's answers as errors of ours.
pub(super) trait Told<T> {
    /// "`at`: `what`: CUDA_ERROR_…", as in "cuda:0: cannot make a stream: …".
    fn told(self, at: impl Display, what: impl Display) -> Result<T>;
}

impl<T> Told<T> for std::result::Result<T, DriverError> {
    fn told(self, at: impl Display, what: impl Display) -> Result<T> {
        self.map_err(|e| Error::Device(format!("{at}: {what}: {}", name(e))))
    }
}

/// `CUDA_ERROR_NOT_FOUND (named symbol not found)`, and what to do where that is not plain.
fn name(DriverError(code): DriverError) -> String {
    use CUresult as C;
    let mut text = std::ptr::null();
    // SAFETY: writes the address of a string that lives as long as the driver, or null.
    let told = unsafe { sys::cuGetErrorString(code, &raw mut text) };
    let mut name = format!("{code:?}");
    if told == C::CUDA_SUCCESS && !text.is_null() {
        // SAFETY: a C string, as above.
        let text = unsafe { CStr::from_ptr(text) };
        name += &format!(" ({})", text.to_string_lossy());
    }
    match code {
        C::CUDA_ERROR_ILLEGAL_ADDRESS
        | C::CUDA_ERROR_MISALIGNED_ADDRESS
        | C::CUDA_ERROR_LAUNCH_FAILED => {
            name += "; this kernel or one before it is at fault, compute-sanitizer tells which";
        }
        C::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            let known = version().map_or_else(|_| "less".into(), |version| version.to_string());
            let nvcc = kernels::toolkit().map_or("?".into(), |toolkit| toolkit.release.to_string());
            name += &format!(
                "; this GPU needs the driver to compile what nvcc {nvcc} wrote, and it knows CUDA \
                 {known}; update the driver, rebuild with an nvcc no newer than it (SILKIE_NVCC), \
                 or pass --device cpu"
            );
        }
        _ => {}
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_driver_is_told_both_versions_and_the_ways_out() {
        let version = |major, minor| Version { major, minor };
        assert_eq!(too_old(version(13, 0), version(13, 0)), None);
        assert_eq!(too_old(version(13, 1), version(12, 9)), None);
        // Machine code of a newer minor release runs.
        assert_eq!(too_old(version(12, 0), version(12, 8)), None);
        assert_eq!(
            too_old(version(12, 4), version(13, 0)).unwrap(),
            "cuda: the driver knows CUDA 12.4, and this binary's kernels, compiled by nvcc 13.0, \
             need CUDA 13.0 (driver 580 or newer); update the driver, rebuild with nvcc 12.x named \
             by SILKIE_NVCC, or pass --device cpu"
        );
        let old = too_old(version(11, 4), version(12, 9)).unwrap();
        assert!(old.contains("need CUDA 12.0 (driver 525 or newer); update the driver, or pass"));
        assert!(!too_old(version(11, 8), version(13, 0)).unwrap().contains("rebuild"));
    }
}
