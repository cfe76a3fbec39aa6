//! Owned memory: one aligned, zeroed allocation on a device, seen through views.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::device::Device;
use crate::device::cuda::Cuda;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor, TensorMut};

/// Cache line of every CPU we run on, and the widest vector register.
const ALIGNMENT: usize = 64;

/// `[rows, cols]` elements on a device, zero at first. Untouched pages of the host cost no memory.
pub struct Buffer {
    data: NonNull<u8>,
    rows: usize,
    cols: usize,
    dtype: DType,
    device: Device,
    owner: Owner,
}

/// Who frees the memory, and how.
enum Owner {
    Host(Layout),
    Cuda(Cuda),
    /// Host memory that a GPU copies from directly.
    Pinned(Cuda),
    /// A part of another buffer.
    #[allow(dead_code)] // held, not read
    Part(Arc<Buffer>),
}

// SAFETY: a Buffer owns plain bytes and hands them out under Rust's borrow rules.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `[rows, cols]` zeroed elements on any device. Errors: not enough memory, with what was
    /// wanted and, on a GPU, what is free.
    pub fn on(device: Device, dtype: DType, rows: usize, cols: usize) -> Result<Self> {
        let bytes = byte_count(dtype, rows, cols)?;
        let (data, owner) = match device {
            Device::Cpu => {
                let error = || Error::Device(format!("cpu: no memory for {bytes} bytes"));
                let layout = Layout::from_size_align(bytes, ALIGNMENT).map_err(|_| error())?;
                // SAFETY: the layout has a non-zero size.
                let data = NonNull::new(unsafe { alloc_zeroed(layout) });
                (data.ok_or_else(error)?, Owner::Host(layout))
            }
            Device::Cuda(cuda) => (cuda.allocate(bytes)?, Owner::Cuda(cuda)),
        };
        Ok(Buffer { data, rows, cols, dtype, device, owner })
    }

    /// `[rows, cols]` zeroed elements on the host.
    ///
    /// Panics when the size overflows; aborts like `Vec` when the system has no memory left.
    pub fn host(dtype: DType, rows: usize, cols: usize) -> Self {
        Self::on(Device::Cpu, dtype, rows, cols).unwrap_or_else(|error| {
            let bytes = byte_count(dtype, rows, cols).unwrap_or_else(|error| panic!("{error}"));
            match Layout::from_size_align(bytes, ALIGNMENT) {
                Ok(layout) => handle_alloc_error(layout),
                Err(_) => panic!("{error}"),
            }
        })
    }

    /// f32 elements on the host.
    pub fn f32(rows: usize, cols: usize) -> Self {
        Self::host(DType::F32, rows, cols)
    }

    /// `[rows, cols]` zeroed elements of host memory that stays in place, so that `cuda` copies
    /// from it while the CPU does something else. Errors: not enough of it.
    pub(crate) fn pinned(cuda: Cuda, dtype: DType, rows: usize, cols: usize) -> Result<Self> {
        let bytes = byte_count(dtype, rows, cols)?;
        let (data, owner) = (cuda.allocate_pinned(bytes)?, Owner::Pinned(cuda));
        Ok(Buffer { data, rows, cols, dtype, device: Device::Cpu, owner })
    }

    /// The elements from byte `offset` of `whole` on, as a buffer of their own.
    ///
    /// # Safety
    /// They lie inside `whole`, aligned, and nobody else touches them while the part lives.
    pub(crate) unsafe fn part(
        whole: &Arc<Buffer>,
        offset: usize,
        dtype: DType,
        [rows, cols]: [usize; 2],
    ) -> Self {
        let data = whole.data.as_ptr().wrapping_add(offset);
        let data = NonNull::new(data).unwrap_or(whole.data);
        let (device, owner) = (whole.device, Owner::Part(whole.clone()));
        Buffer { data, rows, cols, dtype, device, owner }
    }

    /// Rows of the allocation.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the allocation.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.rows * self.cols * self.dtype.size()
    }

    /// Where the memory lives.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The whole buffer.
    pub fn view(&self) -> Tensor<'_> {
        let (data, shape) = (self.data.as_ptr(), [self.rows, self.cols]);
        // SAFETY: the allocation holds rows * cols elements of this dtype, aligned, zeroed or
        // written as this dtype, and is borrowed with self.
        unsafe { Tensor::from_raw(data, shape, self.dtype, self.device) }
    }

    /// The whole buffer, writable.
    pub fn view_mut(&mut self) -> TensorMut<'_> {
        let (data, shape) = (self.data.as_ptr(), [self.rows, self.cols]);
        // SAFETY: as in `view`, exclusively borrowed with self.
        unsafe { TensorMut::from_raw(data, shape, self.dtype, self.device) }
    }

    /// The first `n` rows: a step uses as much of its planned buffers as its pack needs.
    pub fn head(&self, n: usize) -> Tensor<'_> {
        self.view().slice_rows(0..n)
    }

    /// The first `n` rows, writable.
    pub fn head_mut(&mut self, n: usize) -> TensorMut<'_> {
        self.view_mut().slice_rows(0..n)
    }

    /// Overwrites the buffer by `from`, host memory of its shape and dtype, rows without gaps.
    /// When it returns, `from` may change; work started later sees the new content.
    pub fn upload(&mut self, from: Tensor<'_>) -> Result<()> {
        check_copy("buffer::upload", "from", self.view(), from)?;
        let (to, bytes) = (self.data.as_ptr(), self.bytes());
        match self.device {
            // SAFETY: both hold `bytes`; a host view cannot overlap what self borrows exclusively.
            Device::Cpu => unsafe { from.as_ptr().copy_to_nonoverlapping(to, bytes) },
            // SAFETY: as above.
            Device::Cuda(cuda) => unsafe { cuda.copy_in(to, from.as_ptr(), bytes)? },
        }
        Ok(())
    }

    /// Overwrites `to`, host memory of the buffer's shape and dtype, rows without gaps, by what
    /// the buffer holds when all work started before is done.
    pub fn download(&self, mut to: TensorMut<'_>) -> Result<()> {
        check_copy("buffer::download", "to", self.view(), to.as_ref())?;
        let (from, bytes) = (self.data.as_ptr(), self.bytes());
        match self.device {
            // SAFETY: both hold `bytes`; an exclusive view cannot overlap what self borrows.
            Device::Cpu => unsafe { to.as_mut_ptr().copy_from_nonoverlapping(from, bytes) },
            // SAFETY: as above.
            Device::Cuda(cuda) => unsafe { cuda.copy_out(to.as_mut_ptr(), from, bytes)? },
        }
        Ok(())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match &self.owner {
            // SAFETY: allocated in `on` with this layout.
            Owner::Host(layout) => unsafe { dealloc(self.data.as_ptr(), *layout) },
            // SAFETY: allocated in `on` by this device; nothing views it any more.
            Owner::Cuda(cuda) => unsafe { cuda.free(self.data) },
            // SAFETY: as above, in `pinned`.
            Owner::Pinned(cuda) => unsafe { cuda.free_pinned(self.data) },
            Owner::Part(_) => {}
        }
    }
}

/// At least 1: nobody allocates nothing.
fn byte_count(dtype: DType, rows: usize, cols: usize) -> Result<usize> {
    let bytes = rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size()));
    let bytes = bytes.filter(|&bytes| isize::try_from(bytes).is_ok());
    let message = || format!("a buffer of [{rows}, {cols}] {dtype:?} overflows memory");
    bytes.map(|bytes| bytes.max(1)).ok_or_else(|| Error::Device(message()))
}

/// `other` is what `buffer` can be copied from or to.
fn check_copy(op: &'static str, name: &str, buffer: Tensor<'_>, other: Tensor<'_>) -> Result<()> {
    let told = |t: Tensor<'_>| format!("{t:?} on {}", t.device());
    let fits = (other.dtype(), other.shape()) == (buffer.dtype(), buffer.shape());
    if fits && other.device() == Device::Cpu && other.is_contiguous() {
        return Ok(());
    }
    let gaps = if other.is_contiguous() { "" } else { " with gaps between rows" };
    let message =
        format!("{name} is {}{gaps}, expected {buffer:?} on cpu, without gaps", told(other));
    Err(Error::argument(op, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_starts_zeroed_and_aligned() {
        let mut buffer = Buffer::f32(3, 5);
        assert_eq!(buffer.view().as_ptr() as usize % ALIGNMENT, 0);
        assert!(buffer.view().elements::<f32>().iter().all(|&x| x == 0.0));
        buffer.head_mut(2).fill(1.0f32);
        assert_eq!(buffer.view().elements::<f32>().iter().sum::<f32>(), 10.0);
        assert_eq!(Buffer::host(DType::U8, 0, 9).bytes(), 0);
    }

    #[test]
    fn what_overflows_is_an_error() {
        let error = Buffer::on(Device::Cpu, DType::F32, usize::MAX, 2).err().unwrap().to_string();
        assert!(error.ends_with("overflows memory"), "{error}");
        let error = Buffer::on(Device::Cpu, DType::U8, isize::MAX as usize - 100, 1);
        assert!(error.err().unwrap().to_string().starts_with("cpu: no memory for"));
    }

    #[test]
    fn copies_ask_for_the_same_shape_and_dtype() {
        let mut buffer = Buffer::f32(2, 3);
        let values = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        buffer.upload(Tensor::new(&values, 2, 3)).unwrap();
        let mut back = [0.0f32; 6];
        buffer.download(TensorMut::new(&mut back, 2, 3)).unwrap();
        assert_eq!(back, values);
        let error = buffer.upload(Tensor::new(&values, 3, 2)).unwrap_err().to_string();
        assert_eq!(
            error,
            "buffer::upload: from is F32 [3, 2] on cpu, expected F32 [2, 3] on cpu, without gaps"
        );
        let error = buffer.upload(Tensor::new(&values, 2, 3).slice_cols(0..2)).unwrap_err();
        assert!(error.to_string().contains("F32 [2, 2] on cpu with gaps"), "{error}");
    }
}
