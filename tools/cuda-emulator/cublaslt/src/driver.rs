//! The emulated driver, found among the libraries that are loaded.

use std::ffi::{CStr, c_char, c_void};
use std::mem::transmute;
use std::sync::OnceLock;

use crate::status::{Status, refuse};

/// CUDA_SUCCESS and CUDA_ERROR_INVALID_VALUE of the driver's codes.
pub const CUDA_SUCCESS: u32 = 0;
pub const CUDA_INVALID_VALUE: u32 = 1;

type Range = unsafe extern "C" fn(u64, usize, u32, *const c_char, Option<&mut *mut u8>) -> u32;
type Run = unsafe extern "C" fn(
    u64,
    extern "C" fn(*mut c_void) -> u32,
    *mut c_void,
    extern "C" fn(*mut c_void),
) -> u32;

/// What libemucuda exports for this library.
pub struct Driver {
    range: Range,
    run: Run,
}

/// How a range of device memory is used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read = 0,
    Write = 1,
}

/// The driver of this process, if it is the emulated one.
pub fn driver() -> Result<&'static Driver, Status> {
    static DRIVER: OnceLock<Option<Driver>> = OnceLock::new();
    match DRIVER.get_or_init(find) {
        Some(driver) => Ok(driver),
        None => refuse(
            Status::NOT_INITIALIZED,
            "the driver of this process is not the emulated one; load libemucuda.so before",
        ),
    }
}

fn find() -> Option<Driver> {
    // SAFETY: C strings; a library that is loaded is not loaded again. A symbol found in it has the
    // type that src/driver/blas.rs of the emulator gives it.
    unsafe {
        let library = libc::dlopen(c"libcuda.so".as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_NOW);
        if library.is_null() {
            return None;
        }
        let range = libc::dlsym(library, c"emucuda_range".as_ptr());
        let run = libc::dlsym(library, c"emucuda_run".as_ptr());
        if range.is_null() || run.is_null() {
            return None;
        }
        Some(Driver {
            range: transmute::<*mut c_void, Range>(range),
            run: transmute::<*mut c_void, Run>(run),
        })
    }
}

impl Driver {
    /// The host address of a range that work uses. Error: the driver's code; it told why.
    pub fn range(
        &self,
        address: u64,
        bytes: usize,
        access: Access,
        what: &CStr,
    ) -> Result<*mut u8, u32> {
        let mut host = std::ptr::null_mut();
        // SAFETY: called by work that runs now: see `run`.
        let code =
            unsafe { (self.range)(address, bytes, access as u32, what.as_ptr(), Some(&mut host)) };
        if code == CUDA_SUCCESS { Ok(host) } else { Err(code) }
    }

    /// Runs `work` in a stream, or makes it a node of the graph the stream is captured into.
    pub fn run<W: Work>(&self, stream: u64, work: W) -> Result<(), Status> {
        extern "C" fn run<W: Work>(work: *mut c_void) -> u32 {
            // SAFETY: the box below, alive until `end`.
            let work = unsafe { &*work.cast::<W>() };
            work.run().err().unwrap_or(CUDA_SUCCESS)
        }
        extern "C" fn end<W: Work>(work: *mut c_void) {
            // SAFETY: the box below, ended once.
            drop(unsafe { Box::from_raw(work.cast::<W>()) });
        }
        let data = Box::into_raw(Box::new(work)).cast();
        // SAFETY: W may be used and dropped on any thread; the driver calls `end` once, after every
        // `run`.
        match unsafe { (self.run)(stream, run::<W>, data, end::<W>) } {
            CUDA_SUCCESS => Ok(()),
            _ => Err(Status::EXECUTION_FAILED),
        }
    }
}

/// Work for a stream. It does not call the driver but for [`Driver::range`], and does not panic.
pub trait Work: Send + Sync + 'static {
    /// Error: a code of the driver.
    fn run(&self) -> Result<(), u32>;
}
