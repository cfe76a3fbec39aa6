//! Token embedding: `x[t] = table[ids[t]]`; backward `dtable[ids[t]] += dx[t]`, in token order.

mod cpu;

use crate::error::Result;
use crate::ops::check::Check;
use crate::tensor::{Tensor, TensorMut};

/// `ids`: u32 `[T, 1]`; `table`: `[V, D]` f32, bf16 or f16; `x`: `[T, D]` f32, overwritten.
///
/// No arithmetic; reads and writes `T · D` elements. Errors: a shape or dtype that differs, an
/// id beyond the table.
pub fn forward(ids: Tensor<'_>, table: Tensor<'_>, x: TensorMut<'_>) -> Result<()> {
    let check = Check::on_cpu("embedding::forward");
    let (tokens, [vocab, width]) = (ids.rows(), table.shape());
    check.u32("ids", ids, [tokens, 1], "tokens, 1")?;
    check.weight("table", table, [vocab, width], "vocabulary, width")?;
    check.f32("x", x.as_ref(), [tokens, width], "tokens, width")?;
    check.below("ids", ids, vocab, "rows of the table")?;
    cpu::forward(ids, table, x);
    Ok(())
}

/// `ids`: u32 `[T, 1]`; `dx`: `[T, D]`; `dtable`: `[V, D]` f32, added to.
///
/// One addition per element of `dx`; rows of one id are added in token order. Errors: a shape or
/// dtype that differs, an id beyond the table.
pub fn backward(ids: Tensor<'_>, dx: Tensor<'_>, dtable: TensorMut<'_>) -> Result<()> {
    let check = Check::on_cpu("embedding::backward");
    let (tokens, [vocab, width]) = (ids.rows(), dtable.shape());
    check.u32("ids", ids, [tokens, 1], "tokens, 1")?;
    check.f32("dx", dx, [tokens, width], "tokens, width")?;
    check.f32("dtable", dtable.as_ref(), [vocab, width], "vocabulary, width")?;
    check.below("ids", ids, vocab, "rows of the table")?;
    cpu::backward(ids, dx, dtable);
    Ok(())
}
