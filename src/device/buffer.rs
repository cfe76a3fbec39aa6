//! Owned memory: one aligned, zeroed allocation, seen through views.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use crate::device::Device;
use crate::tensor::{DType, Element, Tensor, TensorMut};

/// Cache line of every CPU we run on, and the widest vector register.
const ALIGNMENT: usize = 64;

/// `[rows, cols]` elements on a device, zero at first. Untouched pages cost no memory.
pub struct Buffer {
    data: NonNull<u8>,
    rows: usize,
    cols: usize,
    dtype: DType,
    device: Device,
}

// SAFETY: a Buffer owns plain bytes and hands them out under Rust's borrow rules.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Allocates `[rows, cols]` zeroed elements.
    ///
    /// Panics when the size overflows; aborts like `Vec` when the system has no memory left.
    pub fn zeroed(device: Device, dtype: DType, rows: usize, cols: usize) -> Self {
        let Device::Cpu = device;
        let layout = Self::layout(dtype, rows, cols);
        // SAFETY: the layout has a non-zero size.
        let data = NonNull::new(unsafe { alloc_zeroed(layout) })
            .unwrap_or_else(|| handle_alloc_error(layout));
        Buffer { data, rows, cols, dtype, device }
    }

    /// f32 elements on the CPU.
    pub fn f32(rows: usize, cols: usize) -> Self {
        Self::zeroed(Device::Cpu, DType::F32, rows, cols)
    }

    fn layout(dtype: DType, rows: usize, cols: usize) -> Layout {
        let bytes = rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size()));
        let layout = bytes.and_then(|n| Layout::from_size_align(n.max(1), ALIGNMENT).ok());
        layout.unwrap_or_else(|| panic!("a buffer of [{rows}, {cols}] {dtype:?} overflows memory"))
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

    /// The whole buffer.
    pub fn view(&self) -> Tensor<'_> {
        let n = self.rows * self.cols;
        match self.dtype {
            DType::F32 => Tensor::new(self.slice::<f32>(n), self.rows, self.cols),
            DType::Bf16 => Tensor::new(self.slice::<half::bf16>(n), self.rows, self.cols),
            DType::F16 => Tensor::new(self.slice::<half::f16>(n), self.rows, self.cols),
            DType::U32 => Tensor::new(self.slice::<u32>(n), self.rows, self.cols),
            DType::U8 => Tensor::new(self.slice::<u8>(n), self.rows, self.cols),
        }
    }

    /// The whole buffer, writable.
    pub fn view_mut(&mut self) -> TensorMut<'_> {
        let (rows, cols) = (self.rows, self.cols);
        match self.dtype {
            DType::F32 => TensorMut::new(self.slice_mut::<f32>(), rows, cols),
            DType::Bf16 => TensorMut::new(self.slice_mut::<half::bf16>(), rows, cols),
            DType::F16 => TensorMut::new(self.slice_mut::<half::f16>(), rows, cols),
            DType::U32 => TensorMut::new(self.slice_mut::<u32>(), rows, cols),
            DType::U8 => TensorMut::new(self.slice_mut::<u8>(), rows, cols),
        }
    }

    /// The first `n` rows: a step uses as much of its planned buffers as its pack needs.
    pub fn head(&self, n: usize) -> Tensor<'_> {
        self.view().slice_rows(0..n)
    }

    /// The first `n` rows, writable.
    pub fn head_mut(&mut self, n: usize) -> TensorMut<'_> {
        self.view_mut().slice_rows(0..n)
    }

    fn slice<T: Element>(&self, n: usize) -> &[T] {
        assert!(T::DTYPE == self.dtype);
        // SAFETY: the allocation holds rows * cols elements of this dtype, aligned to 64 bytes,
        // zeroed or written as this dtype, and is borrowed with self.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast(), n) }
    }

    fn slice_mut<T: Element>(&mut self) -> &mut [T] {
        assert!(T::DTYPE == self.dtype);
        let n = self.rows * self.cols;
        // SAFETY: as in `slice`, exclusively borrowed with self.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr().cast(), n) }
    }

    /// Where the memory lives.
    pub fn device(&self) -> Device {
        self.device
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with the same layout.
        unsafe { dealloc(self.data.as_ptr(), Self::layout(self.dtype, self.rows, self.cols)) }
    }
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
        assert_eq!(Buffer::zeroed(Device::Cpu, DType::U8, 0, 9).bytes(), 0);
    }
}
