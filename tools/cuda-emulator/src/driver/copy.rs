//! Copies between device and host, and fills.

use std::ffi::c_void;

use super::Driver;
use super::api::{CUdeviceptr, CUstream, api, refuse};
use super::deferred::Awaited;
use super::error::{CUresult, Done};
use super::work::Work;
use crate::memory::{BASE, INITIALISED, WINDOW};

pub struct Copy {
    to: Place,
    from: Place,
    bytes: usize,
    /// It stands in a graph: its host memory must still be page-locked when it runs.
    is_captured: bool,
    /// What pageable host memory held when the copy was submitted, to be copied instead.
    staged: Option<Vec<u8>>,
}

/// One end of a copy.
#[derive(Clone, Copy)]
pub enum Place {
    Device(u64),
    Host(u64),
}

use Place::{Device, Host};

/// A value of `unit` bytes, `count` times in each of `rows` rows that lie `pitch` bytes apart.
pub struct Fill {
    address: u64,
    value: u32,
    unit: usize,
    count: usize,
    rows: usize,
    pitch: usize,
}

/// Unified addressing: the address says whose memory it is.
fn place(address: u64) -> Place {
    if (BASE..BASE + 3 * WINDOW).contains(&address) { Device(address) } else { Host(address) }
}

/// A host pointer, which must not be a device address.
fn host(pointer: *const c_void, bytes: usize) -> Result<Place, CUresult> {
    match place(pointer as u64) {
        Host(address) if address != 0 || bytes == 0 => Ok(Host(address)),
        _ => {
            let sentence = format!("a copy takes {pointer:p} for host memory, which it is not");
            refuse(CUresult::INVALID_VALUE, sentence)
        }
    }
}

impl Driver {
    /// The offset of a range that lies in one allocation.
    pub(super) fn range(&self, what: &str, address: u64, bytes: usize) -> Result<u64, CUresult> {
        if self.memory.holds(address, bytes) {
            return Ok(address - BASE);
        }
        let near = self.memory.describe(address, bytes as u64).0;
        let sentence = format!("{what} {bytes} bytes at {address:#x} in no allocation. {near}");
        refuse(CUresult::INVALID_VALUE, sentence)
    }

    fn copy(&self, to: Place, from: Place, bytes: usize, stream: CUstream) -> Done {
        let mut state = self.state();
        let capture = state.capture_of(stream)?;
        if let Some(id) = capture {
            for end in [to, from] {
                if let Host(address) = end
                    && state.pinned(address, bytes).is_none()
                {
                    state.invalidate_captures(|capture| capture.id == id);
                    let sentence =
                        format!("a captured copy of pageable host memory at {address:#x}");
                    return refuse(CUresult::STREAM_CAPTURE_UNSUPPORTED, sentence);
                }
            }
        }
        let is_captured = capture.is_some();
        let is_pageable = |end: Place| matches!(end, Host(at) if state.pinned(at, bytes).is_none());
        let (to_pageable, from_pageable) = (is_pageable(to), is_pageable(from));
        drop(state);
        let is_deferred = self.settings.deferred.is_some() && !is_captured;
        let staged = match (to, from) {
            (Device(_), Host(from)) if is_deferred && from_pageable && bytes > 0 => {
                // SAFETY: the manual's contract: host memory of so many bytes.
                Some(unsafe { std::slice::from_raw_parts(from as *const u8, bytes) }.to_vec())
            }
            _ => None,
        };
        self.submit(stream, Work::Copy(Copy { to, from, bytes, is_captured, staged }))?;
        // The manual, "API synchronization behavior": to pageable memory and between host memories, a copy is done when
        // the call returns.
        let is_between_hosts = matches!((to, from), (Host(_), Host(_)));
        match is_deferred && (to_pageable || is_between_hosts) {
            true => self.wait(Awaited::Stream(stream)),
            false => Ok(()),
        }
    }

    /// A copy in the legacy stream, which the host waits for when it is one from or to its memory.
    fn copy_and_wait(&self, to: Place, from: Place, bytes: usize) -> Done {
        self.state().forbid_synchronous_call("a synchronous copy")?;
        self.copy(to, from, bytes, 0)?;
        match (to, from) {
            (Device(_), Device(_)) => Ok(()),
            _ => self.wait(Awaited::Stream(0)),
        }
    }

    fn fill(&self, address: u64, value: u32, unit: usize, count: usize, stream: CUstream) -> Done {
        let pitch = unit.checked_mul(count).ok_or(CUresult::INVALID_VALUE)?;
        self.fill_rows(Fill { address, value, unit, count, rows: 1, pitch }, stream)
    }

    fn fill_rows(&self, fill: Fill, stream: CUstream) -> Done {
        let unit = fill.unit as u64;
        let is_aligned = fill.address.is_multiple_of(unit) && fill.pitch.is_multiple_of(fill.unit);
        let row = fill.unit.checked_mul(fill.count).ok_or(CUresult::INVALID_VALUE)?;
        if !is_aligned || (fill.rows > 1 && row > fill.pitch) {
            return Err(CUresult::INVALID_VALUE);
        }
        self.submit(stream, Work::Fill(fill))
    }

    /// A fill in the legacy stream, which by the manual the host does not wait for.
    fn fill_legacy(&self, address: u64, value: u32, unit: usize, count: usize) -> Done {
        self.state().forbid_synchronous_call("a synchronous fill")?;
        self.fill(address, value, unit, count, 0)
    }
}

impl Copy {
    /// Fails when a range lies in no allocation.
    pub fn check(&self, driver: &Driver) -> Done {
        for (what, end) in [("a copy reads", self.from), ("a copy writes", self.to)] {
            if let Device(address) = end
                && self.bytes > 0
            {
                driver.range(what, address, self.bytes)?;
            }
        }
        Ok(())
    }

    pub fn run(&self, driver: &Driver) -> Done {
        let Copy { to, mut from, bytes, is_captured, ref staged } = *self;
        if let Some(staged) = staged {
            from = Host(staged.as_ptr() as u64);
        }
        if bytes == 0 {
            return Ok(());
        }
        if is_captured {
            self.check_still_pinned(driver)?;
        }
        let region = driver.memory.region();
        let at = |offset: u64| region.data().wrapping_add(offset as usize);
        match (to, from) {
            (Device(to), Device(from)) => {
                let from = driver.range("a copy reads", from, bytes)?;
                region.copy(driver.range("a copy writes", to, bytes)?, from, bytes);
            }
            (Device(to), Host(from)) => {
                let to = driver.range("a copy writes", to, bytes)?;
                // SAFETY: `range` found the device's bytes; the host's are the manual's contract.
                unsafe { at(to).copy_from(from as *const u8, bytes) };
                region.mark(to, bytes, INITIALISED, 0);
            }
            (Host(to), Device(from)) => {
                let from = driver.range("a copy reads", from, bytes)?;
                driver.count_uninitialised(from, bytes);
                // SAFETY: as above.
                unsafe { at(from).copy_to(to as *mut u8, bytes) };
            }
            // SAFETY: both ranges are the manual's contract.
            (Host(to), Host(from)) => unsafe { (from as *const u8).copy_to(to as *mut u8, bytes) },
        }
        Ok(())
    }

    fn check_still_pinned(&self, driver: &Driver) -> Done {
        let state = driver.state();
        for end in [self.to, self.from] {
            if let Host(address) = end
                && state.pinned(address, self.bytes).is_none()
            {
                let sentence = format!("a graph copies host memory at {address:#x} that was freed");
                return refuse(CUresult::ILLEGAL_ADDRESS, sentence);
            }
        }
        Ok(())
    }
}

impl Driver {
    /// Copying bytes without a value to the host is allowed, and told once.
    fn count_uninitialised(&self, offset: u64, bytes: usize) {
        if !self.settings.checked {
            return;
        }
        let count = self.memory.region().uninitialised(offset, bytes);
        let mut state = self.state();
        if count > 0 && state.uninitialised == 0 {
            let near = self.memory.describe(BASE + offset, bytes as u64).0;
            eprintln!(
                "cuda-emulator: note: {count} of {bytes} bytes copied to the host were never \
                 written. {near} Later copies of this kind are not told."
            );
        }
        state.uninitialised += count as u64;
    }
}

impl Fill {
    /// The offset of the first byte; `None` when there is nothing to fill.
    pub fn range(&self, driver: &Driver) -> Result<Option<u64>, CUresult> {
        let row = self.unit * self.count;
        if row == 0 || self.rows == 0 {
            return Ok(None);
        }
        let before_last = self.pitch.checked_mul(self.rows - 1);
        let bytes = before_last.and_then(|bytes| bytes.checked_add(row));
        let bytes = bytes.ok_or(CUresult::INVALID_VALUE)?;
        driver.range("a fill writes", self.address, bytes).map(Some)
    }

    pub fn run(&self, driver: &Driver) -> Done {
        let Some(first) = self.range(driver)? else { return Ok(()) };
        let row = self.unit * self.count;
        let region = driver.memory.region();
        for i in 0..self.rows {
            let offset = first + (i * self.pitch) as u64;
            // SAFETY: `range` found the bytes, and only the holder of `execution` touches them.
            let target =
                unsafe { std::slice::from_raw_parts_mut(region.data().add(offset as usize), row) };
            match self.unit {
                1 => target.fill(self.value as u8),
                2 => target.as_chunks_mut().0.fill((self.value as u16).to_le_bytes()),
                _ => target.as_chunks_mut().0.fill(self.value.to_le_bytes()),
            }
            region.mark(offset, row, INITIALISED, 0);
        }
        Ok(())
    }
}

api! {
    fn cuMemcpy(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) {
        Driver::current()?.copy_and_wait(place(to), place(from), bytes)
    }

    fn cuMemcpyAsync(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) {
        Driver::current()?.copy(place(to), place(from), bytes, stream)
    }

    fn cuMemcpyHtoD_v2(to: CUdeviceptr, from: *const c_void, bytes: usize) {
        Driver::current()?.copy_and_wait(Device(to), host(from, bytes)?, bytes)
    }

    fn cuMemcpyDtoH_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize) {
        Driver::current()?.copy_and_wait(host(to, bytes)?, Device(from), bytes)
    }

    fn cuMemcpyDtoD_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) {
        Driver::current()?.copy_and_wait(Device(to), Device(from), bytes)
    }

    fn cuMemcpyHtoDAsync_v2(
        to: CUdeviceptr,
        from: *const c_void,
        bytes: usize,
        stream: CUstream,
    ) {
        Driver::current()?.copy(Device(to), host(from, bytes)?, bytes, stream)
    }

    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream) {
        Driver::current()?.copy(host(to, bytes)?, Device(from), bytes, stream)
    }

    fn cuMemcpyDtoDAsync_v2(
        to: CUdeviceptr,
        from: CUdeviceptr,
        bytes: usize,
        stream: CUstream,
    ) {
        Driver::current()?.copy(Device(to), Device(from), bytes, stream)
    }

    fn cuMemsetD8_v2(to: CUdeviceptr, value: u8, count: usize) {
        Driver::current()?.fill_legacy(to, value.into(), 1, count)
    }

    fn cuMemsetD16_v2(to: CUdeviceptr, value: u16, count: usize) {
        Driver::current()?.fill_legacy(to, value.into(), 2, count)
    }

    fn cuMemsetD32_v2(to: CUdeviceptr, value: u32, count: usize) {
        Driver::current()?.fill_legacy(to, value, 4, count)
    }

    fn cuMemsetD8Async(to: CUdeviceptr, value: u8, count: usize, stream: CUstream) {
        Driver::current()?.fill(to, value.into(), 1, count, stream)
    }

    fn cuMemsetD16Async(to: CUdeviceptr, value: u16, count: usize, stream: CUstream) {
        Driver::current()?.fill(to, value.into(), 2, count, stream)
    }

    fn cuMemsetD32Async(to: CUdeviceptr, value: u32, count: usize, stream: CUstream) {
        Driver::current()?.fill(to, value, 4, count, stream)
    }
    fn cuMemsetD2D8Async(
        to: CUdeviceptr,
        pitch: usize,
        value: u8,
        width: usize,
        height: usize,
        stream: CUstream,
    ) {
        let (value, count, rows) = (value.into(), width, height);
        let fill = Fill { address: to, value, unit: 1, count, rows, pitch };
        Driver::current()?.fill_rows(fill, stream)
    }
}
