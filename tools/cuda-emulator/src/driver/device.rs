//! The one device: an sm_80 with few multiprocessors.

use std::ffi::{c_char, c_int};

use super::Driver;
use super::api::{CUdevice, Out, api, put};
use super::attributes::attribute;
use super::error::{CUresult, Done};

const NAME: &str = "Emulated sm_80 (silkie cuda-emulator)";
const PCI_BUS_ID: &str = "0000:00:00.0";
/// Spells its name, so that nobody takes it for a real device's.
const UUID: [u8; 16] = *b"cuda-emulator-80";

pub fn check_device(device: CUdevice) -> Done {
    if device == 0 { Ok(()) } else { Err(CUresult::INVALID_DEVICE) }
}

/// Writes `text` and a zero byte into `length` bytes, cut to fit.
///
/// # Safety
/// `out` is null or has room for `length` bytes.
unsafe fn put_text(out: *mut c_char, length: c_int, text: &str) -> Done {
    let room = usize::try_from(length).unwrap_or(0);
    if out.is_null() || room == 0 {
        return Err(CUresult::INVALID_VALUE);
    }
    let bytes = text.len().min(room - 1);
    // SAFETY: bytes + 1 <= room, which the caller promises.
    unsafe {
        out.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), bytes);
        out.add(bytes).write(0);
    }
    Ok(())
}

api! {
    fn cuDeviceGetCount(count: Out<c_int>) {
        Driver::get()?;
        put(count, 1)
    }

    fn cuDeviceGet(device: Out<CUdevice>, ordinal: c_int) {
        Driver::get()?;
        check_device(ordinal)?;
        put(device, ordinal)
    }

    fn cuDeviceGetName(name: *mut c_char, length: c_int, device: CUdevice) {
        Driver::get()?;
        check_device(device)?;
        // SAFETY: the manual's contract, as stated on the function.
        unsafe { put_text(name, length, NAME) }
    }

    fn cuDeviceGetPCIBusId(id: *mut c_char, length: c_int, device: CUdevice) {
        Driver::get()?;
        check_device(device)?;
        // SAFETY: the manual's contract, as stated on the function.
        unsafe { put_text(id, length, PCI_BUS_ID) }
    }

    fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, device: CUdevice) {
        Driver::get()?;
        check_device(device)?;
        put(uuid, UUID)
    }

    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: CUdevice) {
        Driver::get()?;
        check_device(device)?;
        put(uuid, UUID)
    }

    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: CUdevice) {
        let driver = Driver::get()?;
        check_device(device)?;
        put(bytes, driver.settings.memory)
    }

    fn cuDeviceGetAttribute(value: Out<c_int>, number: c_int, device: CUdevice) {
        Driver::get()?;
        check_device(device)?;
        put(value, attribute(number)?)
    }
}
