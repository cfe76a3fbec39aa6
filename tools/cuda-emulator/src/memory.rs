//! Device memory: one reserved range of the host's memory, seen by kernels at [`BASE`]. An address is
//! never given out twice, so that a stale pointer is caught however late it is used. Between two
//! allocations lies a red zone.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::mapping::Mapping;
pub use crate::region::{ADDRESSABLE, INITIALISED, PENDING, READ_ONLY, Region};

/// Device address of the first byte of device memory. The host has nothing mapped there, so that a
/// program that follows a device pointer faults as it would with a real device.
pub const BASE: u64 = 0x0100_0000_0000;
/// Start of the window through which generic addresses reach a block's shared memory.
pub const SHARED_WINDOW: u64 = 0x0200_0000_0000;
/// Start of the window through which generic addresses reach a thread's local memory.
pub const LOCAL_WINDOW: u64 = 0x0300_0000_0000;
/// Bytes reserved for each window, device memory included.
pub const WINDOW: u64 = 0x0100_0000_0000;

/// Bytes that remember the latest accesses to one.
pub const ACCESS_BYTES: usize = 2;

/// Device memory and its allocations.
pub struct Memory {
    region: Region,
    /// [`ACCESS_BYTES`] for every byte.
    accesses: Mapping,
    launches: AtomicU32,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Every allocation there ever was, by device address.
    allocations: BTreeMap<u64, Allocation>,
    /// First offset never given out.
    next: u64,
    live: usize,
}

#[derive(Clone, Copy)]
struct Allocation {
    bytes: usize,
    is_live: bool,
    what: &'static str,
}

/// As cudaMalloc aligns.
const ALIGNMENT: u64 = 256;
/// Bytes after an allocation that belong to nobody: as many as it has, so that a row past the end is in no
/// other one, within these bounds.
const RED_ZONE: RangeInclusive<u64> = 256..=64 << 10;
/// What a new allocation holds: NaN in every float type, and no valid index.
const POISON: u8 = 0xFF;

impl Memory {
    /// A device with `bytes` of memory, and as many addresses as it takes never to use one twice for long.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let region = Region::reserve(bytes)?;
        let accesses = Mapping::reserve(bytes.next_multiple_of(ALIGNMENT as usize) * ACCESS_BYTES)?;
        Ok(Memory { region, accesses, launches: AtomicU32::new(0), table: Mutex::default() })
    }

    /// The bytes behind the addresses: offset = address - [`BASE`].
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// [`ACCESS_BYTES`] for each byte of the region, for what remembers the accesses to it. Those of freed memory
    /// become zero.
    pub fn accesses(&self) -> &Mapping {
        &self.accesses
    }

    /// A number that no launch on this memory had before, from 1 on.
    pub fn next_launch(&self) -> u32 {
        self.launches.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The device address of `bytes` new bytes that hold no value, 256-byte aligned; `None` when
    /// memory is exhausted. `what` names it in reports: `allocation`, `kernel parameters`.
    pub fn allocate(&self, bytes: usize, what: &'static str) -> Option<u64> {
        let mut table = self.table();
        let offset = table.next.checked_next_multiple_of(ALIGNMENT)?;
        let red_zone = (bytes as u64).clamp(*RED_ZONE.start(), *RED_ZONE.end());
        let end = offset.checked_add(bytes as u64)?.checked_add(red_zone)?;
        if end > self.region.bytes() as u64 {
            return None;
        }
        table.next = end;
        table.live += bytes;
        table.allocations.insert(BASE + offset, Allocation { bytes, is_live: true, what });
        drop(table);
        self.region.fill(offset, bytes, POISON);
        self.region.mark(offset, bytes, ADDRESSABLE, 0);
        Some(BASE + offset)
    }

    /// Ends an allocation. False when none starts at `address` or it was freed before.
    pub fn free(&self, address: u64) -> bool {
        let mut table = self.table();
        let Some(allocation) = table.allocations.get_mut(&address) else { return false };
        if !allocation.is_live {
            return false;
        }
        allocation.is_live = false;
        let bytes = allocation.bytes;
        table.live -= bytes;
        drop(table);
        self.region.discard(address - BASE, bytes);
        let offset = (address - BASE) as usize;
        self.accesses.discard(ACCESS_BYTES * offset, ACCESS_BYTES * bytes);
        true
    }

    /// Whether a range lies in one live allocation.
    pub fn holds(&self, address: u64, bytes: usize) -> bool {
        let table = self.table();
        let below = table.allocations.range(..=address).next_back();
        below.is_some_and(|(&start, allocation)| {
            let offset = (address - start) as usize;
            allocation.is_live && offset <= allocation.bytes && bytes <= allocation.bytes - offset
        })
    }

    /// Bytes in live allocations.
    pub fn live(&self) -> usize {
        self.table().live
    }

    /// Tells an access that lies in no live allocation what it is near to, in a sentence; and whether
    /// it lies in one that was freed.
    pub fn describe(&self, address: u64, bytes: u64) -> (String, bool) {
        let table = self.table();
        let Some((&start, allocation)) = table.allocations.range(..=address).next_back() else {
            return ("No allocation lies below the address.".into(), false);
        };
        let Allocation { bytes: size, is_live, what } = *allocation;
        let offset = address - start;
        let freed = if is_live { "" } else { "freed " };
        if offset < size as u64 {
            let text = format!(
                "Bytes {offset} to {} of the {freed}{what} of {size} bytes at {start:#x}.",
                offset.saturating_add(bytes).saturating_sub(1)
            );
            return (text, !is_live);
        }
        let past = offset - size as u64;
        let text = format!(
            "{past} bytes past the end of the {freed}{what} of {size} bytes at {start:#x}."
        );
        (text, false)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Kind;

    fn memory() -> Memory {
        Memory::new(1 << 20).unwrap()
    }

    #[test]
    fn only_what_was_allocated_and_written_is_read() {
        let memory = memory();
        let offset = memory.allocate(100, "allocation").unwrap() - BASE;
        let region = memory.region();
        let load = |offset: u64| {
            let mut bytes = [0; 4];
            region.load(offset, true, &mut bytes).map(|()| u32::from_le_bytes(bytes))
        };
        assert_eq!(load(offset), Err(Kind::Uninitialised));
        region.store(offset + 96, 7u32.to_le_bytes(), true).unwrap();
        assert_eq!(load(offset + 96), Ok(7));
        assert_eq!(load(offset + 97), Err(Kind::OutOfBounds));
        assert_eq!(region.store(offset + 100, [0u8], true), Err(Kind::OutOfBounds));
        assert_eq!(region.store(1 << 20, [0u8], false), Err(Kind::OutOfBounds));
        assert_eq!(region.load(u64::MAX - 3, false, &mut [0; 16]), Err(Kind::OutOfBounds));
    }

    #[test]
    fn pending_and_read_only_bytes_are_guarded() {
        let memory = memory();
        let offset = memory.allocate(64, "allocation").unwrap() - BASE;
        let region = memory.region();
        region.mark(offset, 64, INITIALISED, 0);
        region.mark(offset, 16, PENDING, 0);
        region.mark(offset + 32, 16, READ_ONLY, 0);
        assert_eq!(region.load(offset + 12, true, &mut [0; 8]), Err(Kind::PendingCopy));
        assert_eq!(region.store(offset, [0u8; 4], true), Err(Kind::PendingCopy));
        assert!(region.load(offset + 32, true, &mut [0; 16]).is_ok());
        assert_eq!(region.store(offset + 32, [0u8; 4], true), Err(Kind::ReadOnly));
        assert_eq!(region.readable(offset + 16, 100), Err((offset + 64, Kind::OutOfBounds)));
        assert_eq!(region.writable(offset + 16, 32), Err((offset + 32, Kind::ReadOnly)));
    }

    #[test]
    fn freed_memory_is_told_from_foreign_memory() {
        let memory = memory();
        let first = memory.allocate(10_000, "allocation").unwrap();
        assert!(memory.free(first) && !memory.free(first) && !memory.free(first + 1));
        let second = memory.allocate(10_000, "allocation").unwrap();
        assert!(second >= first + 20_000, "an address is not used twice, nor is one as far behind");
        assert_eq!(memory.live(), 10_000);
        let (text, freed) = memory.describe(first + 8, 4);
        assert!(freed && text.starts_with("Bytes 8 to 11 of the freed allocation"), "{text}");
        let (text, freed) = memory.describe(second + 10_004, 4);
        assert!(!freed && text.starts_with("4 bytes past the end of the allocation"), "{text}");
        assert!(memory.allocate(1 << 20, "allocation").is_none());
    }
}
