//! cuBLASLt and NCCL: where they are found, and which versions.
//!
//! Not by cudarc: with the API of CUDA 12.2 it knows no `libcublasLt.so.13`, nor `libnccl.so.2` at
//! all, takes no path, and panics where nothing is found. Its types are used, the functions are
//! looked up here.
//!
//! Looked for in `$SILKIE_CUDA_LIB`, by the system (`LD_LIBRARY_PATH`, ld.so.cache), beside the
//! executable, in the toolkit that compiled the kernels, and in the project's own `.cuda/lib`
//! (`tools/get-cuda --runtime`).

use std::ffi::c_int;
use std::path::PathBuf;

use libloading::Library;

use crate::device::kernels::{self, Version};

/// A library found on this machine.
#[derive(Clone, Debug)]
pub struct Found {
    /// As the library tells it, "13.0.2".
    pub version: String,
    /// The file.
    pub path: PathBuf,
}

/// cuBLASLt, opened.
pub(super) struct Opened {
    pub library: Library,
    pub found: Found,
}

/// cuBLASLt on this machine: the first that a driver knowing CUDA `driver` can serve.
pub fn cublas_lt(driver: Option<Version>) -> Option<Found> {
    open_cublas_lt(driver).map(|opened| opened.found)
}

/// As [`cublas_lt`], to be used.
pub(super) fn open_cublas_lt(driver: Option<Version>) -> Option<Opened> {
    const NAMES: [&str; 3] = ["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12"];
    candidates(&NAMES).find_map(|library| {
        type Get = unsafe extern "C" fn() -> usize;
        // SAFETY: takes nothing, gives the version.
        let (get, number) = unsafe {
            let get = *library.get::<Get>(b"cublasLtGetVersion").ok()?;
            (get, get())
        };
        let major = number / 10_000;
        let served = driver.is_none_or(|driver| major <= driver.major as usize);
        let version = format!("{major}.{}.{}", number / 100 % 100, number % 100);
        let path = file_at(get as *const () as usize);
        (major >= 12 && served).then_some(Opened { library, found: Found { version, path } })
    })
}

/// NCCL on this machine.
pub fn nccl() -> Option<Found> {
    candidates(&["libnccl.so.2", "libnccl.so"]).find_map(|library| {
        type Get = unsafe extern "C" fn(*mut c_int) -> c_int;
        let mut number: c_int = 0;
        // SAFETY: writes the one integer.
        let (get, status) = unsafe {
            let get = *library.get::<Get>(b"ncclGetVersion").ok()?;
            (get, get(&raw mut number))
        };
        let version = format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100);
        let path = file_at(get as *const () as usize);
        (status == 0).then_some(Found { version, path })
    })
}

/// Every library of one of these names, opened when it is asked for.
fn candidates(names: &'static [&'static str]) -> impl Iterator<Item = Library> {
    let folder = |folder: Option<PathBuf>| {
        folder.into_iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)))
    };
    let executable = std::env::current_exe().ok();
    let toolkit = kernels::toolkit().map(|toolkit| PathBuf::from(toolkit.root).join("lib64"));
    let project = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.cuda/lib"));
    folder(std::env::var_os("SILKIE_CUDA_LIB").map(PathBuf::from))
        .chain(names.iter().map(PathBuf::from))
        .chain(folder(executable.and_then(|path| path.parent().map(PathBuf::from))))
        .chain(folder(toolkit))
        .chain(folder(Some(project)))
        // SAFETY: opening runs the initialisers of NVIDIA's libraries, which ask for nothing.
        .filter_map(|path| unsafe { Library::new(path) }.ok())
}

/// The file that is mapped at an address; empty where the system does not say.
fn file_at(address: usize) -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let file = |line: &str| {
        let (start, rest) = line.split_once('-')?;
        let (end, rest) = rest.split_once(' ')?;
        let [start, end] = [start, end].map(|hex| usize::from_str_radix(hex, 16));
        let path = &rest[rest.find('/')?..];
        (start.ok()?..end.ok()?).contains(&address).then(|| PathBuf::from(path))
    };
    maps.lines().find_map(file).unwrap_or_default()
}
