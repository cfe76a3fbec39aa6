//! Where the heads of q, k, v, o and their gradients lie.

use crate::tensor::{Tensor, TensorMut};

/// Heads of `dim` columns each, `stride` columns from one to the next: head h is columns
/// `h·stride..h·stride + dim` of a view that ends with the last head.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    columns: Tensor<'a>,
    lay: Lay,
}

/// [`Heads`] to write. Several may lie in one buffer, a head of one between two of another.
pub struct HeadsMut<'a> {
    columns: TensorMut<'a>,
    lay: Lay,
}

#[derive(Clone, Copy)]
pub(super) struct Lay {
    pub dim: usize,
    pub stride: usize,
}

impl Lay {
    /// How many heads such a view holds; none where they do not fit it.
    pub fn count(self, cols: usize) -> Option<usize> {
        let whole = cols + self.stride - self.dim;
        (self.dim > 0 && cols > 0 && whole.is_multiple_of(self.stride)).then(|| whole / self.stride)
    }

    /// Of head `h`.
    pub fn columns(self, h: usize) -> std::ops::Range<usize> {
        h * self.stride..h * self.stride + self.dim
    }

    /// The columns of q, k and v where a row is q, k and v of head 0, then of head 1, and so on.
    fn interleaved(cols: usize, dim: usize) -> [std::ops::Range<usize>; 3] {
        let last = cols.saturating_sub(3 * dim);
        [0, 1, 2].map(|i| (i * dim).min(cols)..(last + (i + 1) * dim).min(cols))
    }
}

impl<'a> Heads<'a> {
    /// Heads side by side: `[rows, heads · dim]`.
    pub fn dense(columns: Tensor<'a>, dim: usize) -> Self {
        Heads { columns, lay: Lay { dim, stride: dim } }
    }

    /// q, k and v of a product `[rows, heads · 3 · dim]` that holds them head by head.
    pub fn interleaved(qkv: Tensor<'a>, dim: usize) -> [Self; 3] {
        let lay = Lay { dim, stride: 3 * dim };
        Lay::interleaved(qkv.cols(), dim).map(|cols| Heads { columns: qkv.slice_cols(cols), lay })
    }

    pub(super) fn columns(&self) -> Tensor<'a> {
        self.columns
    }

    pub(super) fn lay(&self) -> Lay {
        self.lay
    }

    pub(super) fn head(&self, h: usize) -> Tensor<'a> {
        self.columns.slice_cols(self.lay.columns(h))
    }
}

impl<'a> HeadsMut<'a> {
    /// As [`Heads::dense`].
    pub fn dense(columns: TensorMut<'a>, dim: usize) -> Self {
        HeadsMut { columns, lay: Lay { dim, stride: dim } }
    }

    /// As [`Heads::interleaved`].
    pub fn interleaved(qkv: TensorMut<'a>, dim: usize) -> [Self; 3] {
        let lay = Lay { dim, stride: 3 * dim };
        Lay::interleaved(qkv.cols(), dim).map(|cols| {
            // SAFETY: only columns of its heads are touched through each, and those differ.
            HeadsMut { columns: unsafe { qkv.alias_cols(cols) }, lay }
        })
    }

    pub(super) fn as_ref(&self) -> Heads<'_> {
        Heads { columns: self.columns.as_ref(), lay: self.lay }
    }

    pub(super) fn head(&mut self, h: usize) -> TensorMut<'_> {
        self.columns.reborrow().slice_cols(self.lay.columns(h))
    }

    /// A second exclusive view of head `h`.
    ///
    /// # Safety
    /// While it lives, nobody else may touch the same rows of this head.
    pub(super) unsafe fn alias(&self, h: usize) -> TensorMut<'a> {
        // SAFETY: as the caller promises.
        unsafe { self.columns.alias_cols(self.lay.columns(h)) }
    }
}
