//! Memory of the GPU, and host memory that it copies from: what
//! [`Buffer`](crate::device::Buffer) allocates, fills and frees.

use std::ptr::NonNull;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};

use super::Cuda;
use super::driver::Told;
use crate::error::{Error, Result};
use crate::tensor::TensorMut;

impl Cuda {
    /// `bytes` zeroed bytes, at a multiple of 256. Errors: what was wanted, what is free.
    pub(in crate::device) fn allocate(self, bytes: usize) -> Result<NonNull<u8>> {
        self.bind()?;
        // SAFETY: zeroed below, before anybody sees it.
        let address = match unsafe { result::malloc_sync(bytes) } {
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => return Err(self.full(bytes)),
            address => address.told(self, "cannot allocate")?,
        };
        let zeroed = self.work("cannot zero memory", |stream| {
            // SAFETY: allocated above; waited for, so that every stream sees it.
            unsafe {
                result::memset_d8_async(address, 0, bytes, stream)?;
                result::stream::synchronize(stream)
            }
        });
        let pointer = NonNull::new(address as *mut u8).filter(|_| zeroed.is_ok());
        if pointer.is_none() {
            // SAFETY: allocated above, and nobody has it.
            let _ = unsafe { result::free_sync(address) };
        }
        zeroed?;
        pointer.ok_or_else(|| Error::Device(format!("{self}: the driver gave memory at 0")))
    }

    fn full(self, bytes: usize) -> Error {
        let mebibytes = |bytes: usize| bytes.div_ceil(1 << 20);
        let told = result::mem_get_info().map_or(String::new(), |(free, total)| {
            format!(", {} of {} MiB are free", mebibytes(free), mebibytes(total))
        });
        Error::Device(format!(
            "{self}: no memory for {} MiB{told}; lower --token-budget, or see with nvidia-smi who \
             holds it",
            mebibytes(bytes)
        ))
    }

    /// # Safety
    /// `memory` is from [`allocate`](Self::allocate), and nothing uses it any more but work that is
    /// already on a stream.
    pub(in crate::device) unsafe fn free(self, memory: NonNull<u8>) {
        // Errors are those of earlier work, which its own caller hears of.
        if self.bind().is_ok() {
            // SAFETY: promised; the driver waits for that work.
            let _ = unsafe { result::free_sync(memory.as_ptr() as u64) };
        }
    }

    /// `bytes` zeroed bytes of host memory that stays in place.
    pub(in crate::device) fn allocate_pinned(self, bytes: usize) -> Result<NonNull<u8>> {
        self.bind()?;
        // SAFETY: zeroed below.
        let memory = unsafe { result::malloc_host(bytes, 0) };
        let what = format_args!("cannot pin {} MiB of host memory", bytes.div_ceil(1 << 20));
        let memory = NonNull::new(memory.told(self, what)?.cast::<u8>());
        let memory = memory.ok_or_else(|| Error::Device(format!("{self}: {what}")))?;
        // SAFETY: `bytes` bytes that are ours.
        unsafe { memory.as_ptr().write_bytes(0, bytes) };
        Ok(memory)
    }

    /// # Safety
    /// `memory` is from [`allocate_pinned`](Self::allocate_pinned), and no copy from it is under way.
    pub(in crate::device) unsafe fn free_pinned(self, memory: NonNull<u8>) {
        if self.bind().is_ok() {
            // SAFETY: promised.
            let _ = unsafe { result::free_host(memory.as_ptr().cast()) };
        }
    }

    /// Host to GPU, behind all work of the compute stream; waits until it is done.
    ///
    /// # Safety
    /// `to` on this GPU and `from` on the host hold `bytes` bytes; nobody else writes them.
    pub(in crate::device) unsafe fn copy_in(
        self,
        to: *mut u8,
        from: *const u8,
        bytes: usize,
    ) -> Result<()> {
        // SAFETY: promised.
        let from = unsafe { std::slice::from_raw_parts(from, bytes) };
        self.work("copying to the GPU", |stream| {
            // SAFETY: promised, and waited for.
            unsafe {
                result::memcpy_htod_async(to as u64, from, stream)?;
                result::stream::synchronize(stream)
            }
        })
    }

    /// GPU to host, behind all work of the compute stream; waits until it is done.
    ///
    /// # Safety
    /// As [`copy_in`](Self::copy_in), the other way round.
    pub(in crate::device) unsafe fn copy_out(
        self,
        to: *mut u8,
        from: *const u8,
        bytes: usize,
    ) -> Result<()> {
        // SAFETY: promised.
        let to = unsafe { std::slice::from_raw_parts_mut(to, bytes) };
        self.work("copying from the GPU", |stream| {
            // SAFETY: promised, and waited for.
            unsafe {
                result::memcpy_dtoh_async(to, from as u64, stream)?;
                result::stream::synchronize(stream)
            }
        })
    }

    /// Zeroes a view on this GPU, in the order of the compute stream.
    pub(super) fn zero(self, view: &mut TensorMut<'_>) -> Result<()> {
        let size = view.dtype().size();
        let (pitch, width) = (view.row_stride() * size, view.cols() * size);
        let (at, rows) = (view.as_mut_ptr() as u64, view.rows());
        self.work("zeroing", |stream| {
            // SAFETY: the view covers its rows, which are `pitch` bytes apart.
            unsafe { sys::cuMemsetD2D8Async(at, pitch, 0, width, rows, stream) }.result()
        })
    }
}
