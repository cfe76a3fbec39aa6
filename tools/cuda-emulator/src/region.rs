//! Bytes with a shadow byte for every byte: what may be touched, what holds a value.

use std::io;
use std::slice;

use crate::mapping::Mapping;
use crate::report::Kind;

/// Of a shadow byte: the byte belongs to an allocation.
pub const ADDRESSABLE: u8 = 1;
/// Of a shadow byte: the byte has been written.
pub const INITIALISED: u8 = 2;
/// Of a shadow byte: an asynchronous copy into the byte is under way.
pub const PENDING: u8 = 4;
/// Of a shadow byte: kernels may not write it.
pub const READ_ONLY: u8 = 8;

/// Bytes and their shadow, mapped together and zero at first: nothing addressable, no page in use.
///
/// Kernels' blocks run on several threads and touch the bytes through raw pointers, as a device's threads do; a
/// kernel that races gets some value, never an invalid one.
pub struct Region {
    data: Mapping,
    shadow: Mapping,
}

impl Region {
    /// Reserves `bytes`; pages cost memory once they are touched. Errors: the system's.
    pub fn reserve(bytes: usize) -> io::Result<Self> {
        Ok(Region { data: Mapping::reserve(bytes)?, shadow: Mapping::reserve(bytes)? })
    }

    #[inline(always)]
    pub fn bytes(&self) -> usize {
        self.data.bytes()
    }

    /// Where byte 0 is on the host.
    pub fn data(&self) -> *mut u8 {
        self.data.start().as_ptr()
    }

    /// Puts the `N` bytes at `offset`, all of which must hold values when `checked`, into `to`. (Not as a
    /// result: inside of a `Result` they would lie at odd places.)
    #[inline(always)]
    pub fn load<const N: usize>(
        &self,
        offset: u64,
        checked: bool,
        to: &mut [u8; N],
    ) -> Result<(), Kind> {
        if offset.saturating_add(N as u64) > self.bytes() as u64 {
            return Err(Kind::OutOfBounds);
        }
        // SAFETY: the bytes lie inside both mappings; `[u8; N]` needs no alignment.
        unsafe {
            if checked {
                let shadow = self.shadow.start().add(offset as usize).cast::<[u8; N]>().read();
                if differs(&shadow, !READ_ONLY, ADDRESSABLE | INITIALISED) {
                    return Err(why_not_readable(&shadow));
                }
            }
            *to = self.data.start().add(offset as usize).cast::<[u8; N]>().read();
        }
        Ok(())
    }

    /// Writes `N` bytes at `offset`, all of which must be writable when `checked`.
    #[inline(always)]
    pub fn store<const N: usize>(
        &self,
        offset: u64,
        value: [u8; N],
        checked: bool,
    ) -> Result<(), Kind> {
        if offset.saturating_add(N as u64) > self.bytes() as u64 {
            return Err(Kind::OutOfBounds);
        }
        // SAFETY: as in `load`.
        unsafe {
            if checked {
                let shadow = self.shadow.start().add(offset as usize).cast::<[u8; N]>();
                let flags = shadow.read();
                if differs(&flags, !INITIALISED, ADDRESSABLE) {
                    return Err(why_not_writable(&flags));
                }
                shadow.write([ADDRESSABLE | INITIALISED; N]);
            }
            self.data.start().add(offset as usize).cast::<[u8; N]>().write(value);
        }
        Ok(())
    }

    /// An asynchronous copy into `N` bytes at `offset`, all of which must be writable, is under way from now on.
    #[inline(always)]
    pub fn begin_copy<const N: usize>(&self, offset: u64) -> Result<(), Kind> {
        if offset.saturating_add(N as u64) > self.bytes() as u64 {
            return Err(Kind::OutOfBounds);
        }
        // SAFETY: as in `load`.
        unsafe {
            let shadow = self.shadow.start().add(offset as usize).cast::<[u8; N]>();
            let flags = shadow.read();
            if differs(&flags, !INITIALISED, ADDRESSABLE) {
                return Err(why_not_writable(&flags));
            }
            shadow.write(flags.map(|flags| flags | PENDING));
        }
        Ok(())
    }

    /// The host address of `bytes` bytes at `offset`, all readable; else the first that is not and why.
    pub fn readable(&self, offset: u64, bytes: usize) -> Result<*const u8, (u64, Kind)> {
        self.all(offset, bytes, |flags| {
            flags & (ADDRESSABLE | INITIALISED | PENDING) == ADDRESSABLE | INITIALISED
        })
        .map_err(|(at, flags)| (at, why_not_readable(&[flags])))?;
        // SAFETY: inside the mapping, as `all` found.
        Ok(unsafe { self.data.start().as_ptr().add(offset as usize) })
    }

    /// The host address of `bytes` bytes at `offset`, all writable; else the first that is not and why.
    pub fn writable(&self, offset: u64, bytes: usize) -> Result<*mut u8, (u64, Kind)> {
        self.all(offset, bytes, |flags| flags & (ADDRESSABLE | READ_ONLY | PENDING) == ADDRESSABLE)
            .map_err(|(at, flags)| (at, why_not_writable(&[flags])))?;
        // SAFETY: inside the mapping, as `all` found.
        Ok(unsafe { self.data.start().as_ptr().add(offset as usize) })
    }

    fn all(
        &self,
        offset: u64,
        bytes: usize,
        is_good: impl Fn(u8) -> bool,
    ) -> Result<(), (u64, u8)> {
        for at in offset..offset.saturating_add(bytes as u64) {
            let flags = self.flags(at);
            if !is_good(flags) {
                return Err((at, flags));
            }
        }
        Ok(())
    }

    /// The shadow of a byte; 0 outside.
    pub fn flags(&self, offset: u64) -> u8 {
        if offset >= self.bytes() as u64 {
            return 0;
        }
        // SAFETY: inside the mapping.
        unsafe { self.shadow.start().add(offset as usize).read() }
    }

    /// Sets and clears flags of a range. Panics when it is not inside.
    pub fn mark(&self, offset: u64, bytes: usize, set: u8, clear: u8) {
        assert!(offset as usize + bytes <= self.bytes(), "a mark outside of its region");
        // SAFETY: inside the mapping; nobody holds a reference into the shadow.
        unsafe {
            let shadow = self.shadow.start().as_ptr().add(offset as usize);
            for i in 0..bytes {
                let flags = shadow.add(i);
                flags.write(flags.read() & !clear | set);
            }
        }
    }

    /// Gives the pages of a range back to the system: nothing of it is addressable any more. Panics when it is not inside.
    pub fn discard(&self, offset: u64, bytes: usize) {
        self.mark(offset, bytes, 0, 0xFF);
        self.data.discard(offset as usize, bytes);
        self.shadow.discard(offset as usize, bytes);
    }

    /// Fills a range with a byte, whatever its shadow says. Panics when it is not inside.
    pub fn fill(&self, offset: u64, bytes: usize, value: u8) {
        assert!(offset as usize + bytes <= self.bytes(), "a fill outside of its region");
        // SAFETY: inside the mapping.
        unsafe { self.data.start().as_ptr().add(offset as usize).write_bytes(value, bytes) }
    }

    /// Copies a range over another, which then holds values where the first does. Panics when one is not inside.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) {
        let end = to.max(from) as usize + bytes;
        assert!(end <= self.bytes(), "a copy outside of its region");
        // SAFETY: both ranges lie inside the mappings; they may overlap, so the shadow of one is copied
        // before the other's is borrowed.
        unsafe {
            let data = self.data.start().as_ptr();
            data.add(to as usize).copy_from(data.add(from as usize), bytes);
            let shadow = self.shadow.start().as_ptr();
            let from = slice::from_raw_parts(shadow.add(from as usize), bytes).to_vec();
            let to = slice::from_raw_parts_mut(shadow.add(to as usize), bytes);
            for (to, from) in to.iter_mut().zip(from) {
                *to = *to & !INITIALISED | from & INITIALISED;
            }
        }
    }

    /// How many bytes of a range hold no value. Panics when it is not inside.
    pub fn uninitialised(&self, offset: u64, bytes: usize) -> usize {
        assert!(offset as usize + bytes <= self.bytes(), "a count outside of its region");
        // SAFETY: inside the mapping.
        let flags = unsafe {
            slice::from_raw_parts(self.shadow.start().as_ptr().add(offset as usize), bytes)
        };
        // Sums that fit in a byte are sums of many bytes at once.
        let count = |flags: &[u8]| -> u8 {
            flags.iter().map(|flag| u8::from(flag & INITIALISED == 0)).sum()
        };
        flags.chunks(128).map(|flags| usize::from(count(flags))).sum()
    }
}

/// Whether the flags of `mask` are other than `wanted` in any byte: without a branch for each.
#[inline(always)]
fn differs<const N: usize>(shadow: &[u8; N], mask: u8, wanted: u8) -> bool {
    let mut difference = 0;
    for flags in shadow {
        difference |= flags & mask ^ wanted;
    }
    difference != 0
}

#[cold]
fn why_not_readable(shadow: &[u8]) -> Kind {
    let any = |missing: fn(u8) -> bool| shadow.iter().any(|&flags| missing(flags));
    if any(|flags| flags & ADDRESSABLE == 0) {
        Kind::OutOfBounds
    } else if any(|flags| flags & PENDING != 0) {
        Kind::PendingCopy
    } else {
        Kind::Uninitialised
    }
}

#[cold]
fn why_not_writable(shadow: &[u8]) -> Kind {
    let any = |missing: fn(u8) -> bool| shadow.iter().any(|&flags| missing(flags));
    if any(|flags| flags & ADDRESSABLE == 0) {
        Kind::OutOfBounds
    } else if any(|flags| flags & PENDING != 0) {
        Kind::PendingCopy
    } else {
        Kind::ReadOnly
    }
}
