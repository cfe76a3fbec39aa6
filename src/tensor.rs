//! Views: a place in a buffer, a shape `[rows, cols]`, a dtype and a row stride.
//!
//! Everything an op reads is a [`Tensor`], everything it writes a [`TensorMut`]; neither owns
//! memory. A view of some columns of a buffer keeps the buffer's row stride, so that attention
//! reads q, k and v straight out of the fused qkv product and writes their gradients straight
//! back. Vectors are one row (`[1, cols]`), per-row statistics one column (`[rows, 1]`).

use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};

use crate::device::Device;

/// Element types a view can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float: activations, gradients, trained weights on the CPU device.
    F32,
    /// bfloat16: frozen weights as stored in files.
    Bf16,
    /// IEEE half: frozen weights as stored in files.
    F16,
    /// 64-bit float: sums and scalars of the optimizer.
    F64,
    /// 32-bit unsigned: token ids, positions, row indices.
    U32,
    /// Bytes: pixels.
    U8,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 | DType::U32 => 4,
            DType::Bf16 | DType::F16 => 2,
            DType::U8 => 1,
        }
    }
}

/// A Rust type that is the element type of some [`DType`].
pub trait Element: bytemuck::Pod + Send + Sync {
    /// Its dtype.
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for bf16 {
    const DTYPE: DType = DType::Bf16;
}
impl Element for f16 {
    const DTYPE: DType = DType::F16;
}
impl Element for f64 {
    const DTYPE: DType = DType::F64;
}
impl Element for u32 {
    const DTYPE: DType = DType::U32;
}
impl Element for u8 {
    const DTYPE: DType = DType::U8;
}

/// What both kinds of view share. `ptr` addresses element (0, 0); row `i` starts
/// `i * row_stride` elements later. Invariant: every row lies inside the viewed memory.
#[derive(Clone, Copy)]
struct Place {
    ptr: *mut u8,
    rows: usize,
    cols: usize,
    row_stride: usize,
    dtype: DType,
    device: Device,
}

impl Place {
    /// Callers pass row <= rows and col <= cols, which by the invariant lies inside the viewed
    /// memory or just past its end; empty views stay at their start. Wrapping, because memory of a
    /// GPU is no object of this program.
    fn at(&self, row: usize, col: usize) -> *mut u8 {
        self.ptr.wrapping_add((row * self.row_stride + col) * self.dtype.size())
    }

    fn rows(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.rows,
            "rows {range:?} of {}",
            self.rows
        );
        let ptr = if range.is_empty() { self.ptr } else { self.at(range.start, 0) };
        Place { ptr, rows: range.len(), ..*self }
    }

    fn cols(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.cols,
            "cols {range:?} of {}",
            self.cols
        );
        let ptr =
            if range.is_empty() || self.rows == 0 { self.ptr } else { self.at(0, range.start) };
        Place { ptr, cols: range.len(), ..*self }
    }

    fn reshape(&self, rows: usize, cols: usize) -> Self {
        let [from, to] = [[self.rows, self.cols], [rows, cols]];
        let dense = self.row_stride == self.cols || self.rows <= 1;
        assert!(dense && self.rows * self.cols == rows * cols, "{from:?} seen as {to:?}");
        Place { rows, cols, row_stride: cols, ..*self }
    }

    fn halves(&self) -> Self {
        assert!(self.dtype == DType::F32, "halves of {:?}", self.dtype);
        Place { cols: 2 * self.cols, row_stride: 2 * self.row_stride, dtype: DType::Bf16, ..*self }
    }

    fn check<T: Element>(&self) {
        assert!(self.dtype == T::DTYPE, "a {:?} view read as {:?}", self.dtype, T::DTYPE);
        assert!(self.device == Device::Cpu, "memory of {} touched from the host", self.device);
    }

    fn of<T: Element>(ptr: *const T, len: usize, rows: usize, cols: usize) -> Self {
        assert!(rows * cols == len, "{len} elements viewed as [{rows}, {cols}]");
        let ptr = ptr.cast_mut().cast();
        Place { ptr, rows, cols, row_stride: cols, dtype: T::DTYPE, device: Device::Cpu }
    }
}

macro_rules! shared_accessors {
    () => {
        /// Number of rows.
        pub fn rows(&self) -> usize {
            self.place.rows
        }
        /// Number of columns.
        pub fn cols(&self) -> usize {
            self.place.cols
        }
        /// `[rows, cols]`.
        pub fn shape(&self) -> [usize; 2] {
            [self.place.rows, self.place.cols]
        }
        /// Elements between the starts of two rows.
        pub fn row_stride(&self) -> usize {
            self.place.row_stride
        }
        /// Element type.
        pub fn dtype(&self) -> DType {
            self.place.dtype
        }
        /// Where the memory lives.
        pub fn device(&self) -> Device {
            self.place.device
        }
        /// Whether rows follow each other without a gap.
        pub fn is_contiguous(&self) -> bool {
            self.place.row_stride == self.place.cols || self.place.rows <= 1
        }
    };
}

/// A read-only view.
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    place: Place,
    _memory: PhantomData<&'a [u8]>,
}

/// An exclusive view.
pub struct TensorMut<'a> {
    place: Place,
    _memory: PhantomData<&'a mut [u8]>,
}

// SAFETY: a Tensor is a shared borrow of plain elements, a TensorMut an exclusive one; like
// `&[T]` and `&mut [T]` of Send + Sync elements they may cross threads.
unsafe impl Send for Tensor<'_> {}
// SAFETY: as above.
unsafe impl Sync for Tensor<'_> {}
// SAFETY: as above.
unsafe impl Send for TensorMut<'_> {}
// SAFETY: as above; through `&TensorMut` elements can only be read.
unsafe impl Sync for TensorMut<'_> {}

impl<'a> Tensor<'a> {
    shared_accessors!();

    /// A `[rows, cols]` view of a slice that holds exactly that many elements.
    pub fn new<T: Element>(data: &'a [T], rows: usize, cols: usize) -> Self {
        Tensor { place: Place::of(data.as_ptr(), data.len(), rows, cols), _memory: PhantomData }
    }

    /// A slice as one row.
    pub fn vector<T: Element>(data: &'a [T]) -> Self {
        Self::new(data, 1, data.len())
    }

    /// A slice as one column.
    pub fn column<T: Element>(data: &'a [T]) -> Self {
        Self::new(data, data.len(), 1)
    }

    /// A `[rows, cols]` view of memory on any device.
    ///
    /// # Safety
    /// For 'a, `ptr` addresses `rows · cols` elements of `dtype` on `device`, aligned and
    /// initialised, that nobody writes.
    pub(crate) unsafe fn from_raw(
        ptr: *const u8,
        [rows, cols]: [usize; 2],
        dtype: DType,
        device: Device,
    ) -> Self {
        let place = Place { ptr: ptr.cast_mut(), rows, cols, row_stride: cols, dtype, device };
        Tensor { place, _memory: PhantomData }
    }

    /// Rows `range`.
    pub fn slice_rows(&self, range: Range<usize>) -> Tensor<'a> {
        Tensor { place: self.place.rows(range), _memory: PhantomData }
    }

    /// Columns `range`, same row stride.
    pub fn slice_cols(&self, range: Range<usize>) -> Tensor<'a> {
        Tensor { place: self.place.cols(range), _memory: PhantomData }
    }

    /// The same elements, row after row, in another shape. Panics when the view has gaps between rows
    /// or another number of elements.
    pub fn reshape(&self, rows: usize, cols: usize) -> Tensor<'a> {
        Tensor { place: self.place.reshape(rows, cols), _memory: PhantomData }
    }

    /// The bytes of f32 elements seen as twice as many bf16: what a kernel left there in place of them. Panics
    /// when the view is not f32.
    pub(crate) fn halves(&self) -> Tensor<'a> {
        Tensor { place: self.place.halves(), _memory: PhantomData }
    }

    /// Row `i` as a slice. Panics when `T` is not the view's element type.
    pub fn row<T: Element>(&self, i: usize) -> &'a [T] {
        self.place.check::<T>();
        assert!(i < self.place.rows, "row {i} of {}", self.place.rows);
        // SAFETY: row i lies inside the memory borrowed for 'a, is aligned because the first
        // element is and strides are whole elements, and nobody writes during a shared borrow.
        unsafe { std::slice::from_raw_parts(self.place.at(i, 0).cast(), self.place.cols) }
    }

    /// All elements as one slice. Panics when the view has gaps between rows.
    pub fn elements<T: Element>(&self) -> &'a [T] {
        self.place.check::<T>();
        assert!(self.is_contiguous(), "elements() of a strided view");
        // SAFETY: as in `row`, for rows without gaps.
        unsafe {
            std::slice::from_raw_parts(self.place.ptr.cast(), self.place.rows * self.place.cols)
        }
    }

    /// Address of the first element, for GEMM and kernel launches.
    pub fn as_ptr(&self) -> *const u8 {
        self.place.ptr
    }
}

impl<'a> TensorMut<'a> {
    shared_accessors!();

    /// A `[rows, cols]` view of a slice that holds exactly that many elements.
    pub fn new<T: Element>(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        TensorMut { place: Place::of(data.as_ptr(), data.len(), rows, cols), _memory: PhantomData }
    }

    /// A slice as one row.
    pub fn vector<T: Element>(data: &'a mut [T]) -> Self {
        let len = data.len();
        Self::new(data, 1, len)
    }

    /// A slice as one column.
    pub fn column<T: Element>(data: &'a mut [T]) -> Self {
        let len = data.len();
        Self::new(data, len, 1)
    }

    /// A `[rows, cols]` view of memory on any device.
    ///
    /// # Safety
    /// For 'a, `ptr` addresses `rows · cols` elements of `dtype` on `device`, aligned and
    /// initialised, that nobody else touches.
    pub(crate) unsafe fn from_raw(
        ptr: *mut u8,
        [rows, cols]: [usize; 2],
        dtype: DType,
        device: Device,
    ) -> Self {
        let place = Place { ptr, rows, cols, row_stride: cols, dtype, device };
        TensorMut { place, _memory: PhantomData }
    }

    /// The same view for a shorter time.
    pub fn reborrow(&mut self) -> TensorMut<'_> {
        TensorMut { place: self.place, _memory: PhantomData }
    }

    /// The view, read-only, while `self` is borrowed.
    pub fn as_ref(&self) -> Tensor<'_> {
        Tensor { place: self.place, _memory: PhantomData }
    }

    /// Rows `range`.
    pub fn slice_rows(self, range: Range<usize>) -> TensorMut<'a> {
        TensorMut { place: self.place.rows(range), _memory: PhantomData }
    }

    /// Columns `range`, same row stride.
    pub fn slice_cols(self, range: Range<usize>) -> TensorMut<'a> {
        TensorMut { place: self.place.cols(range), _memory: PhantomData }
    }

    /// Two disjoint views: rows before `at`, rows from `at`.
    pub fn split_rows(self, at: usize) -> (TensorMut<'a>, TensorMut<'a>) {
        let (head, tail) = (self.place.rows(0..at), self.place.rows(at..self.place.rows));
        (
            TensorMut { place: head, _memory: PhantomData },
            TensorMut { place: tail, _memory: PhantomData },
        )
    }

    /// Two disjoint views: columns before `at`, columns from `at`.
    pub fn split_cols(self, at: usize) -> (TensorMut<'a>, TensorMut<'a>) {
        let (head, tail) = (self.place.cols(0..at), self.place.cols(at..self.place.cols));
        (
            TensorMut { place: head, _memory: PhantomData },
            TensorMut { place: tail, _memory: PhantomData },
        )
    }

    /// The same elements, row after row, in another shape. Panics when the view has gaps between rows
    /// or another number of elements.
    pub fn reshape(self, rows: usize, cols: usize) -> TensorMut<'a> {
        TensorMut { place: self.place.reshape(rows, cols), _memory: PhantomData }
    }

    /// Row `i` as a slice. Panics when `T` is not the view's element type.
    pub fn row<T: Element>(&mut self, i: usize) -> &mut [T] {
        self.place.check::<T>();
        assert!(i < self.place.rows, "row {i} of {}", self.place.rows);
        // SAFETY: row i lies inside the memory borrowed for 'a and is aligned; column views of
        // one buffer hold disjoint parts of each row, so this slice is the only access to it.
        unsafe { std::slice::from_raw_parts_mut(self.place.at(i, 0).cast(), self.place.cols) }
    }

    /// All elements as one slice. Panics when the view has gaps between rows.
    pub fn elements<T: Element>(&mut self) -> &mut [T] {
        self.place.check::<T>();
        assert!(self.is_contiguous(), "elements() of a strided view");
        // SAFETY: as in `row`, for rows without gaps.
        unsafe {
            std::slice::from_raw_parts_mut(self.place.ptr.cast(), self.place.rows * self.place.cols)
        }
    }

    /// Sets every element. Panics when `T` is not the view's element type.
    pub fn fill<T: Element>(&mut self, value: T) {
        (0..self.rows()).for_each(|i| self.row::<T>(i).fill(value));
    }

    /// Address of the first element, for GEMM and kernel launches.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.place.ptr
    }

    /// A second exclusive view of rows `range`.
    ///
    /// # Safety
    /// While it lives, nobody else may touch these rows.
    pub(crate) unsafe fn alias_rows(&self, range: Range<usize>) -> TensorMut<'a> {
        TensorMut { place: self.place.rows(range), _memory: PhantomData }
    }

    /// A second exclusive view of columns `range`.
    ///
    /// # Safety
    /// While it lives, nobody else may touch these columns.
    pub(crate) unsafe fn alias_cols(&self, range: Range<usize>) -> TensorMut<'a> {
        TensorMut { place: self.place.cols(range), _memory: PhantomData }
    }
}

impl std::fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Place { rows, cols, dtype, .. } = self.place;
        write!(f, "{dtype:?} [{rows}, {cols}]")
    }
}

impl std::fmt::Debug for TensorMut<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_ref().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_views_of_one_buffer_are_disjoint() {
        let mut data: Vec<f32> = (0..12).map(|x| x as f32).collect();
        let (mut left, mut right) = TensorMut::new(&mut data, 3, 4).split_cols(1);
        left.fill(-1.0f32);
        right.row::<f32>(2)[2] = 7.0;
        assert_eq!(right.shape(), [3, 3]);
        assert_eq!(right.as_ref().row::<f32>(1), &[5.0, 6.0, 7.0]);
        assert_eq!(data, [-1., 1., 2., 3., -1., 5., 6., 7., -1., 9., 10., 7.]);
    }

    #[test]
    fn row_and_column_slices_address_the_same_elements() {
        let data: Vec<u32> = (0..20).collect();
        let view = Tensor::new(&data, 4, 5).slice_rows(1..4).slice_cols(2..4);
        assert_eq!((view.shape(), view.row_stride()), ([3, 2], 5));
        assert_eq!(view.row::<u32>(2), &[17, 18]);
        assert!(!view.is_contiguous() && view.slice_rows(0..1).is_contiguous());
    }

    #[test]
    fn halves_are_the_same_bytes() {
        let one_and_two = f32::from_bits(0x4000_3f80); // low half first
        let data = [0.0, one_and_two, 0.0, 0.0, one_and_two, 0.0];
        let halves = Tensor::new(&data, 2, 3).slice_cols(1..3).halves();
        assert_eq!((halves.shape(), halves.row_stride()), ([2, 4], 6));
        for i in [0, 1] {
            assert_eq!(halves.row::<bf16>(i)[..2], [1.0, 2.0].map(bf16::from_f32));
        }
    }

    #[test]
    fn a_part_of_a_flat_buffer_becomes_a_matrix() {
        let mut data: Vec<u32> = (0..20).collect();
        let flat = Tensor::vector(&data).slice_cols(4..10);
        assert_eq!(flat.reshape(2, 3).row::<u32>(1), [7, 8, 9]);
        TensorMut::vector(&mut data).slice_cols(4..10).reshape(3, 2).row::<u32>(2)[0] = 0;
        assert_eq!(data[6..10], [6, 7, 0, 9]);
    }

    #[test]
    #[should_panic(expected = "[2, 3] seen as [3, 2]")]
    fn a_view_with_gaps_keeps_its_shape() {
        Tensor::new(&[0u32; 8], 2, 4).slice_cols(1..4).reshape(3, 2);
    }

    #[test]
    fn empty_views_are_harmless() {
        let view = Tensor::new::<f32>(&[], 0, 7);
        assert_eq!(view.slice_cols(3..7).elements::<f32>().len(), 0);
        assert_eq!(Tensor::new(&[1.0f32], 1, 1).slice_rows(1..1).rows(), 0);
    }

    #[test]
    #[should_panic(expected = "read as")]
    fn a_view_is_read_as_what_it_is() {
        Tensor::vector(&[1u32]).row::<f32>(0);
    }
}
