//! `--dtype`: how weights are stored.

use crate::tensor::DType;

/// A storage format of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Storage {
    /// 32-bit float
    F32,
    /// bfloat16
    Bf16,
    /// IEEE half
    F16,
}

impl From<Storage> for DType {
    fn from(storage: Storage) -> Self {
        match storage {
            Storage::F32 => DType::F32,
            Storage::Bf16 => DType::Bf16,
            Storage::F16 => DType::F16,
        }
    }
}
