//! Launches of `kernels/attention/forward.cu`.

use crate::device::cuda::Cuda;
use crate::error::Result;
use crate::ops::attention::{HeadsMut, Inputs};
use crate::ops::check::Check;
use crate::tensor::{Tensor, TensorMut};

pub(in super::super) fn forward(
    _cuda: Cuda,
    _inputs: Inputs<'_>,
    _plan: Tensor<'_>,
    _o: HeadsMut<'_>,
    _lse: TensorMut<'_>,
) -> Result<()> {
    Err(Check::on_cpu("attention::forward").error("no kernel yet".into()))
}
