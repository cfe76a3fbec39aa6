//! The argument checks ops share. Each error names the op, the argument, what was expected and
//! what came.

use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Checks the arguments of one op: `Check("rms_norm::forward").f32("x", x, [rows, cols], "…")?`.
#[derive(Clone, Copy)]
pub(crate) struct Check(pub &'static str);

impl Check {
    /// An error of this op.
    pub fn error(self, message: String) -> Error {
        Error::argument(self.0, message)
    }

    /// `tensor` is f32 of `shape`; `meaning` names the two sizes, as in "tokens, width".
    pub fn f32(
        self,
        name: &str,
        tensor: Tensor<'_>,
        shape: [usize; 2],
        meaning: &str,
    ) -> Result<()> {
        self.typed(name, tensor, &[DType::F32], shape, meaning)
    }

    /// `tensor` is u32 of `shape`.
    pub fn u32(
        self,
        name: &str,
        tensor: Tensor<'_>,
        shape: [usize; 2],
        meaning: &str,
    ) -> Result<()> {
        self.typed(name, tensor, &[DType::U32], shape, meaning)
    }

    /// `tensor` is a weight of `shape` in any float type.
    pub fn weight(
        self,
        name: &str,
        tensor: Tensor<'_>,
        shape: [usize; 2],
        meaning: &str,
    ) -> Result<()> {
        self.typed(name, tensor, &[DType::F32, DType::Bf16, DType::F16], shape, meaning)
    }

    /// `tensor` has one of `dtypes` and `shape`.
    pub fn typed(
        self,
        name: &str,
        tensor: Tensor<'_>,
        dtypes: &[DType],
        shape: [usize; 2],
        meaning: &str,
    ) -> Result<()> {
        if !dtypes.contains(&tensor.dtype()) {
            let expected: Vec<String> = dtypes.iter().map(|d| format!("{d:?}")).collect();
            let (expected, got) = (expected.join(" or "), tensor.dtype());
            return Err(self.error(format!("{name} has type {got:?}, expected {expected}")));
        }
        if tensor.shape() != shape {
            let got = tensor.shape();
            return Err(
                self.error(format!("{name} has shape {got:?}, expected {shape:?} ({meaning})"))
            );
        }
        Ok(())
    }

    /// Every element of the u32 column `index` is below `limit`.
    pub fn below(self, name: &str, index: Tensor<'_>, limit: usize, what: &str) -> Result<()> {
        let row = (0..index.rows()).find(|&i| index.row::<u32>(i)[0] as usize >= limit);
        row.map_or(Ok(()), |i| {
            let got = index.row::<u32>(i)[0];
            Err(self.error(format!("{name}[{i}] is {got}, expected less than {limit} ({what})")))
        })
    }
}
