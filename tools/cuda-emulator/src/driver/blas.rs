//! What the stand-in for cuBLASLt asks of the driver: checked host pointers, and a place in a
//! stream.

use std::ffi::{c_char, c_void};

use super::api::{CUdeviceptr, CUstream, Out, call, is_logging, log_line, put, report, text};
use super::error::{CUresult, Done};
use super::work::Work;
use super::{DRIVER, Driver};
use crate::memory::{BASE, INITIALISED};
use crate::report::Kind;

/// Work of another library.
pub struct Foreign {
    run: extern "C" fn(*mut c_void) -> CUresult,
    data: *mut c_void,
    drop: extern "C" fn(*mut c_void),
}

// SAFETY: emucuda_run's contract: the functions may be called with `data` on any thread, one call
// at a time.
unsafe impl Send for Foreign {}
// SAFETY: as above; the caller of `run` holds the driver's `execution`.
unsafe impl Sync for Foreign {}

impl Foreign {
    pub fn run(&self) -> Done {
        match (self.run)(self.data) {
            CUresult::SUCCESS => Ok(()),
            code => Err(code),
        }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        (self.drop)(self.data);
    }
}

/// How a range is used.
const READ: u32 = 0;
const WRITE: u32 = 1;

fn range(address: CUdeviceptr, bytes: usize, access: u32, what: &str) -> Result<*mut u8, CUresult> {
    let driver = DRIVER.get().ok_or(CUresult::NOT_INITIALIZED)?;
    let fault = |kind: Kind, address: u64, bytes: usize| {
        let (near, is_freed) = driver.memory.describe(address, bytes as u64);
        let kind = if is_freed { Kind::UseAfterFree } else { kind };
        report(format!("{kind} in {what}, {bytes} bytes of global memory at {address:#x}. {near}"));
        CUresult::ILLEGAL_ADDRESS
    };
    if !driver.memory.holds(address, bytes) {
        return Err(fault(Kind::OutOfBounds, address, bytes));
    }
    let region = driver.memory.region();
    let offset = address - BASE;
    match access {
        READ if driver.settings.checked && region.uninitialised(offset, bytes) > 0 => {
            let first = region.readable(offset, bytes).err().map_or(offset, |(first, _)| first);
            return Err(fault(Kind::Uninitialised, BASE + first, 1));
        }
        READ => {}
        WRITE => region.mark(offset, bytes, INITIALISED, 0),
        _ => return Err(CUresult::INVALID_VALUE),
    }
    Ok(region.data().wrapping_add(offset as usize))
}

/// The host address of a range of device memory that work running now reads (`access` 0; all of it
/// must hold values) or overwrites (1). `what` names the operand in the report of a fault.
///
/// # Safety
/// `what` is a C string. The range is used by work that runs now, inside [`emucuda_run`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn emucuda_range(
    address: CUdeviceptr,
    bytes: usize,
    access: u32,
    what: *const c_char,
    host: Out<*mut u8>,
) -> CUresult {
    call(None, || {
        // SAFETY: the caller's promise.
        let what = unsafe { text(what) }?.to_string_lossy();
        put(host, range(address, bytes, access, &what)?)
    })
}

/// Runs work of another library in a stream: now, or, when the stream is captured, at every launch
/// of the graph. Calls `drop` once `run` will not be called again, also when this fails.
///
/// # Safety
/// `run` and `drop` may be called with `data` on any thread, one call at a time. They do not call
/// the driver, but for [`emucuda_range`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn emucuda_run(
    stream: CUstream,
    run: extern "C" fn(*mut c_void) -> CUresult,
    data: *mut c_void,
    drop: extern "C" fn(*mut c_void),
) -> CUresult {
    let log_line =
        is_logging().then(|| log_line("emucuda_run", &[("stream", format!("{stream:x?}"))]));
    call(log_line, || {
        let work = Work::Foreign(Foreign { run, data, drop });
        Driver::current()?.submit(stream, work)
    })
}
