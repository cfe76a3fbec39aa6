//! The decoder's input: token embeddings, and image features in their slots, in one pass.
//!
//! ```text
//! forward    x[t] = source[t] < V ? table[source[t]] : features[source[t] − V]
//! backward   dtable[v] += Σ dx[t] over source[t] = v
//!            dfeatures[f] = Σ dx[t] over source[t] = V + f
//! ```
//!
//! Sums in token order, in f32. `T` is f32; on CUDA also bf16, and rows are whole packs of 16 bytes.
//! What each token takes, [`sources`], the host knows when it plans the pack, and so its
//! [inverse](super::rows::invert), from which backward sums.

mod cpu;
mod cuda;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::check::Check;
use crate::ops::rows::check_inverse;
use crate::tensor::{DType, Tensor, TensorMut};

/// Overwrites `source` by what each of `tokens` takes: its row of a table of `vocab` rows, or
/// `vocab + f` where `slots[f]` names it.
///
/// Errors: another length than `tokens`, an id beyond the table, a slot beyond the tokens.
pub fn sources(tokens: &[u32], slots: &[u32], vocab: usize, source: &mut [u32]) -> Result<()> {
    let error = |message| Error::argument("embedding::sources", message);
    if source.len() != tokens.len() {
        let (got, expected) = (source.len(), tokens.len());
        return Err(error(format!("source has {got} elements, expected {expected}")));
    }
    if let Some(t) = tokens.iter().position(|&id| id as usize >= vocab) {
        let id = tokens[t];
        let message =
            format!("tokens[{t}] is {id}, expected less than {vocab} (rows of the table)");
        return Err(error(message));
    }
    source.copy_from_slice(tokens);
    for (f, &slot) in slots.iter().enumerate() {
        let Some(source) = source.get_mut(slot as usize) else {
            let tokens = tokens.len();
            let message = format!("slots[{f}] is {slot}, expected less than {tokens} (tokens)");
            return Err(error(message));
        };
        *source = (vocab + f) as u32;
    }
    Ok(())
}

/// `source`: u32 `[T, 1]`; `table`: `[V, D]` f32, bf16 or, on the CPU, f16; `features`: `[F, D]` T;
/// `x`: `[T, D]` T, overwritten.
///
/// No arithmetic; reads and writes `T · D` elements. Errors: a shape or dtype that differs; a source
/// beyond the features, which on CUDA gives a row of NaN.
pub fn forward(
    source: Tensor<'_>,
    table: Tensor<'_>,
    features: Tensor<'_>,
    x: TensorMut<'_>,
) -> Result<()> {
    let check = Check::on(x.device(), "embedding::forward");
    let (tokens, [vocab, width], rows) = (source.rows(), table.shape(), features.rows());
    check.u32("source", source, [tokens, 1], "tokens, 1")?;
    let stored: &[DType] = match x.device() {
        Device::Cpu => &[DType::F32, DType::Bf16, DType::F16],
        Device::Cuda(_) => &[DType::F32, DType::Bf16],
    };
    check.packed("table", table, stored, [vocab, width], "vocabulary, width")?;
    check.packed("x", x.as_ref(), check.activations(), [tokens, width], "tokens, width")?;
    check.packed("features", features, &[x.dtype()], [rows, width], "features, width")?;
    check.below("source", source, vocab + rows, "rows of table and features")?;
    match x.device() {
        Device::Cpu => cpu::forward(source, table, features, x),
        Device::Cuda(cuda) => cuda::forward(cuda, source, table, features, x)?,
    }
    Ok(())
}

/// `inverse`: u32 `[1, 3·room + 1]`, that of the sources; `dx`: `[T, D]` T; `dtable`: `[vocab, D]` f32,
/// added to unless frozen (`None`); `dfeatures`: `[F, D]` T, of which the rows that a token took are
/// overwritten.
///
/// One addition per element of `dx`. Errors: a shape or dtype that differs, an inverse that
/// [`invert`](super::rows::invert) did not make; a source beyond the features, which on CUDA is
/// passed over.
pub fn backward(
    inverse: Tensor<'_>,
    dx: Tensor<'_>,
    dtable: Option<TensorMut<'_>>,
    dfeatures: TensorMut<'_>,
    vocab: usize,
) -> Result<()> {
    let check = Check::on(dx.device(), "embedding::backward");
    let ([tokens, width], rows) = (dx.shape(), dfeatures.rows());
    check.packed("dx", dx, check.activations(), [tokens, width], "tokens, width")?;
    if let Some(dtable) = &dtable {
        let (dtable, meaning) = (dtable.as_ref(), "vocabulary, width");
        check.packed("dtable", dtable, &[DType::F32], [vocab, width], meaning)?;
    }
    let features = dfeatures.as_ref();
    check.packed("dfeatures", features, &[dx.dtype()], [rows, width], "features, width")?;
    check_inverse(check, inverse, tokens, vocab + rows)?;
    match dx.device() {
        Device::Cpu => cpu::backward(inverse, dx, dtable, dfeatures, vocab),
        Device::Cuda(cuda) => cuda::backward(cuda, inverse, dx, dtable, dfeatures, vocab)?,
    }
    Ok(())
}
