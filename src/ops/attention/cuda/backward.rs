//! Launches of `kernels/attention/backward.cu`.

use crate::device::cuda::Cuda;
use crate::error::Result;
use crate::ops::attention::{Heads, HeadsMut, Inputs};
use crate::ops::check::Check;
use crate::tensor::{Tensor, TensorMut};

pub(in super::super) fn backward(
    _cuda: Cuda,
    _inputs: Inputs<'_>,
    _plan: Tensor<'_>,
    _o: Heads<'_>,
    _lse: Tensor<'_>,
    _d_o: Heads<'_>,
    _dq: HeadsMut<'_>,
    _dk: HeadsMut<'_>,
    _dv: HeadsMut<'_>,
    _delta: TensorMut<'_>,
) -> Result<()> {
    Err(Check::on_cpu("attention::backward").error("no kernel yet".into()))
}
