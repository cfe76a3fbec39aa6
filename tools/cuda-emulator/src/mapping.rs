//! Ranges of the host's memory that are reserved at once and cost nothing until they are touched.

use std::io;
use std::ptr::NonNull;

/// Bytes that are zero at first, with no page in use.
pub struct Mapping {
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a Mapping owns plain bytes and hands out raw pointers only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `bytes`; pages cost memory once they are touched. Errors: the system's.
    pub fn reserve(bytes: usize) -> io::Result<Self> {
        // SAFETY: a new private mapping at an address of the system's choice.
        let at = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), bytes.max(1), protection, flags, -1, 0)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Mapping { at, bytes })
    }

    /// The first byte.
    #[inline(always)]
    pub fn start(&self) -> NonNull<u8> {
        self.at
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives the whole pages of a range back to the system; they read as zero again. Panics when the range is not
    /// inside.
    pub fn discard(&self, offset: usize, bytes: usize) {
        const PAGE: usize = 4096;
        assert!(offset + bytes <= self.bytes, "a discarded range outside of its mapping");
        let start = offset.next_multiple_of(PAGE);
        let end = (offset + bytes) / PAGE * PAGE;
        if start < end {
            // SAFETY: whole pages inside the mapping.
            unsafe {
                let at = self.at.as_ptr().add(start).cast();
                libc::madvise(at, end - start, libc::MADV_DONTNEED);
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `reserve` with this length.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes.max(1)) };
    }
}
