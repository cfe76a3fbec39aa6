//! What was launched and what it took, for programs that ask.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use super::DRIVER;
use crate::exec::{Counters, Launch};

/// A launch that ran to its end without a fault.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launched {
    /// Its name, cut to fit, and zeros.
    pub kernel: [u8; 128],
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes.
    pub dynamic_shared: u32,
    pub padding: u32,
    pub counters: Counters,
}

const _: () = assert!(size_of::<Launched>() == 344 && align_of::<Launched>() == 8);

/// Launches that are remembered at most.
const MOST: usize = 1 << 16;

/// Since the last call of [`emucuda_take_launches`]; `None` before the first.
static LAUNCHED: Mutex<Option<VecDeque<Launched>>> = Mutex::new(None);

fn launched() -> MutexGuard<'static, Option<VecDeque<Launched>>> {
    LAUNCHED.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Whether anybody has asked for launches.
pub fn is_recording() -> bool {
    launched().is_some()
}

/// Remembers a launch, if anybody has asked for them.
pub fn remember(launch: &Launch<'_>, counters: Counters) {
    let mut launched = launched();
    let Some(launched) = launched.as_mut() else { return };
    let &Launch { grid, block, dynamic_shared, .. } = launch;
    let mut kernel = [0; 128];
    let name = launch.kernel.name.as_bytes();
    let bytes = name.len().min(kernel.len() - 1);
    kernel[..bytes].copy_from_slice(&name[..bytes]);
    if launched.len() == MOST {
        launched.pop_front();
    }
    launched.push_back(Launched { kernel, grid, block, dynamic_shared, padding: 0, counters });
}

/// Writes the launches since the last call, the oldest first and `capacity` at most, and gives how many it wrote;
/// the rest are forgotten, as are all but the last 65,536. Launches are remembered from the first call on. Work that
/// is queued and has not run is not among them: wait for it first.
///
/// # Safety
/// `into` is null or has room for `capacity` launches.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn emucuda_take_launches(into: *mut Launched, capacity: usize) -> usize {
    // What runs on another thread ends first.
    let _execution = DRIVER.get().map(|driver| driver.execution());
    let taken = launched().replace(VecDeque::new()).unwrap_or_default();
    let count = if into.is_null() { 0 } else { taken.len().min(capacity) };
    for (i, launch) in taken.into_iter().take(count).enumerate() {
        // SAFETY: the caller promises the room.
        unsafe { into.add(i).write(launch) };
    }
    count
}
