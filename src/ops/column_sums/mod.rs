//! The sum of the rows of a matrix: the gradient of a bias, `c += Σ_rows a`.
//!
//! Sums are f32, in a fixed order. `T` is f32; on CUDA also bf16.

mod cpu;
pub(crate) mod cuda;

use crate::device::Device;
use crate::error::Result;
use crate::ops::check::Check;
use crate::tensor::{Tensor, TensorMut};

/// Rows that a kernel sums before their sum joins the others.
const CHUNK: usize = 256;

/// Elements of `partials` on a GPU for `a` of this shape; the CPU needs none.
pub fn partials([rows, cols]: [usize; 2]) -> usize {
    let chunks = rows.div_ceil(CHUNK);
    if chunks > 1 { chunks * cols } else { 0 }
}

/// `c += Σ_rows a`. `a`: `[rows, cols]` T; `c`: `[1, cols]` f32; `partials`: scratch, one row of at
/// least [`partials`] f32, on the CPU empty.
///
/// 1 FLOP per element, reads `a` once. Errors: a shape or dtype that differs from these; on CUDA,
/// rows that are not whole packs of 16 bytes.
pub fn add(a: Tensor<'_>, c: TensorMut<'_>, partials: TensorMut<'_>) -> Result<()> {
    let check = Check::on(a.device(), "column_sums::add");
    let [rows, cols] = a.shape();
    check.packed("a", a, check.activations(), [rows, cols], "rows, cols")?;
    check.f32("c", c.as_ref(), [1, cols], "1, cols")?;
    check.scratch("partials", partials.as_ref(), self::partials([rows, cols]))?;
    match a.device() {
        Device::Cpu => cpu::add(a, c),
        Device::Cuda(cuda) => cuda::add(cuda, a, c, partials)?,
    }
    Ok(())
}
