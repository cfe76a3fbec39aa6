//! Device memory and page-locked host memory of the program.

use std::ffi::c_void;

use super::api::{CUdeviceptr, CUstream, Out, api, put, put_if_asked, refuse};
use super::error::{CUresult, Done};
use super::work::Work;
use super::{Driver, State};
use crate::memory::{BASE, INITIALISED, Memory};

/// A page-locked range of host memory.
pub struct Pinned {
    pub bytes: usize,
    /// Where kernels see it: it then lies in device memory. `None` for a range of the program's
    /// own.
    pub device: Option<CUdeviceptr>,
}

impl State {
    /// The page-locked range that holds all of `bytes` bytes: where it starts, and the range.
    pub fn pinned(&self, host: u64, bytes: usize) -> Option<(u64, &Pinned)> {
        let (&start, pinned) = self.pinned.range(..=host).next_back()?;
        let offset = (host - start) as usize;
        let fits = offset < pinned.bytes && bytes <= pinned.bytes - offset;
        fits.then_some((start, pinned))
    }

    /// Bytes of device memory in use: what the program and its modules allocated.
    fn in_use(&self, memory: &Memory) -> usize {
        let lent: usize =
            self.pinned.values().filter(|p| p.device.is_some()).map(|p| p.bytes).sum();
        memory.live() - lent
    }
}

fn allocate(driver: &Driver, address: Out<CUdeviceptr>, bytes: usize) -> Done {
    let mut state = driver.state();
    if address.is_none() || bytes == 0 {
        return Err(CUresult::INVALID_VALUE);
    }
    let free = driver.settings.memory.saturating_sub(state.in_use(&driver.memory));
    let allocated = if bytes <= free { driver.memory.allocate(bytes, "allocation") } else { None };
    let Some(new) = allocated else {
        let sentence = format!(
            "no room for {bytes} bytes: {free} of {} are free; CUDA_EMULATOR_MEMORY sets the total \
             in MiB",
            driver.settings.memory
        );
        return refuse(CUresult::OUT_OF_MEMORY, sentence);
    };
    state.allocations.insert(new, bytes);
    put(address, new)
}

/// Takes an allocation from the program; its work may still use it.
fn give_up(driver: &Driver, address: CUdeviceptr) -> Done {
    if driver.state().allocations.remove(&address).is_none() {
        let near = driver.memory.describe(address, 1).0;
        let sentence = format!("free of {address:#x}, where no allocation in use starts. {near}");
        return refuse(CUresult::INVALID_VALUE, sentence);
    }
    Ok(())
}

fn free(driver: &Driver, address: CUdeviceptr) -> Done {
    give_up(driver, address)?;
    let drained = driver.drain();
    let _execution = driver.execution();
    driver.memory.free(address);
    drained
}

impl State {
    /// Allocations in a stream's order are no nodes of graphs here.
    fn forbid_in_capture(&mut self, stream: CUstream, what: &str) -> Done {
        if let Some(id) = self.capture_of(stream)? {
            self.invalidate_captures(|capture| capture.id == id);
            let sentence = format!("{what} in a stream that is captured: allocate before");
            return refuse(CUresult::NOT_SUPPORTED, sentence);
        }
        self.forbid_implicit_dependency(stream)
    }
}

/// CU_MEMHOSTALLOC_PORTABLE, _DEVICEMAP, _WRITECOMBINED
const HOST_FLAGS: u32 = 1 | 2 | 4;
/// CU_MEMHOSTREGISTER_PORTABLE, _DEVICEMAP, _READ_ONLY
const REGISTER_FLAGS: u32 = 1 | 2 | 8;

/// Host memory that kernels see too: a part of device memory, reached through the emulator's
/// mapping of it.
fn allocate_host(host: Out<*mut c_void>, bytes: usize, flags: u32) -> Done {
    let driver = Driver::current()?;
    let mut state = driver.state();
    state.forbid_unsafe_call("an allocation of host memory")?;
    if host.is_none() || bytes == 0 || flags & !HOST_FLAGS != 0 {
        return Err(CUresult::INVALID_VALUE);
    }
    let device = driver.memory.allocate(bytes, "host allocation").ok_or(CUresult::OUT_OF_MEMORY)?;
    let region = driver.memory.region();
    region.fill(device - BASE, bytes, 0);
    // The host writes without telling: all of it counts as written.
    region.mark(device - BASE, bytes, INITIALISED, 0);
    let start = region.data().wrapping_add((device - BASE) as usize);
    state.pinned.insert(start as u64, Pinned { bytes, device: Some(device) });
    put(host, start.cast())
}

api! {
    fn cuMemAlloc_v2(address: Out<CUdeviceptr>, bytes: usize) {
        let driver = Driver::current()?;
        driver.state().forbid_unsafe_call("cuMemAlloc")?;
        allocate(driver, address, bytes)
    }

    fn cuMemFree_v2(address: CUdeviceptr) {
        let driver = Driver::current()?;
        driver.state().forbid_unsafe_call("cuMemFree")?;
        if address == 0 { Ok(()) } else { free(driver, address) }
    }

    fn cuMemAllocAsync(address: Out<CUdeviceptr>, bytes: usize, stream: CUstream) {
        let driver = Driver::current()?;
        driver.state().forbid_in_capture(stream, "cuMemAllocAsync")?;
        allocate(driver, address, bytes)
    }

    fn cuMemFreeAsync(address: CUdeviceptr, stream: CUstream) {
        let driver = Driver::current()?;
        driver.state().forbid_in_capture(stream, "cuMemFreeAsync")?;
        give_up(driver, address)?;
        driver.submit(stream, Work::Free { address })
    }

    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let driver = Driver::current()?;
        let memory = driver.settings.memory;
        put_if_asked(free, memory.saturating_sub(driver.state().in_use(&driver.memory)));
        put_if_asked(total, memory);
        Ok(())
    }

    fn cuMemHostAlloc(host: Out<*mut c_void>, bytes: usize, flags: u32) {
        allocate_host(host, bytes, flags)
    }

    fn cuMemAllocHost_v2(host: Out<*mut c_void>, bytes: usize) {
        allocate_host(host, bytes, 0)
    }

    fn cuMemFreeHost(host: *mut c_void) {
        let driver = Driver::current()?;
        driver.state().forbid_unsafe_call("cuMemFreeHost")?;
        let drained = driver.drain();
        let _execution = driver.execution();
        let mut state = driver.state();
        let device = state.pinned.get(&(host as u64)).and_then(|pinned| pinned.device);
        let Some(device) = device else {
            let sentence = format!("cuMemFreeHost of {host:p}, where no host allocation starts");
            return refuse(CUresult::INVALID_VALUE, sentence);
        };
        state.pinned.remove(&(host as u64));
        driver.memory.free(device);
        drained
    }

    fn cuMemHostRegister_v2(host: *mut c_void, bytes: usize, flags: u32) {
        let driver = Driver::current()?;
        let mut state = driver.state();
        state.forbid_unsafe_call("cuMemHostRegister")?;
        let start = host as u64;
        let end = start.checked_add(bytes as u64).ok_or(CUresult::INVALID_VALUE)?;
        if host.is_null() || bytes == 0 || flags & !REGISTER_FLAGS != 0 {
            return Err(CUresult::INVALID_VALUE);
        }
        let before = state.pinned.range(..end).next_back();
        if before.is_some_and(|(&other, pinned)| other + pinned.bytes as u64 > start) {
            return Err(CUresult::HOST_MEMORY_ALREADY_REGISTERED);
        }
        state.pinned.insert(start, Pinned { bytes, device: None });
        Ok(())
    }

    fn cuMemHostUnregister(host: *mut c_void) {
        let driver = Driver::current()?;
        driver.state().forbid_unsafe_call("cuMemHostUnregister")?;
        let drained = driver.drain();
        let _execution = driver.execution();
        let mut state = driver.state();
        match state.pinned.get(&(host as u64)) {
            Some(Pinned { device: None, .. }) => state.pinned.remove(&(host as u64)),
            Some(_) => return Err(CUresult::INVALID_VALUE),
            None => return Err(CUresult::HOST_MEMORY_NOT_REGISTERED),
        };
        drained
    }

    fn cuMemHostGetDevicePointer_v2(address: Out<CUdeviceptr>, host: *mut c_void, flags: u32) {
        let state = Driver::current()?.state();
        let (start, pinned) = state.pinned(host as u64, 1).ok_or(CUresult::INVALID_VALUE)?;
        if flags != 0 {
            return Err(CUresult::INVALID_VALUE);
        }
        let Some(device) = pinned.device else {
            let sentence = "kernels see no registered host memory; allocate it by cuMemHostAlloc";
            return refuse(CUresult::NOT_SUPPORTED, sentence.into());
        };
        put(address, device + (host as u64 - start))
    }
}
