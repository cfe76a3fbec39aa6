//! Column sums on the CPU: columns over the cores, each adds its rows in order.

use crate::device::cpu::par_cols;
use crate::ops::reduce;
use crate::tensor::{Tensor, TensorMut};

/// Columns per task.
const COLUMNS: usize = 64;

pub(super) fn add(a: Tensor<'_>, c: TensorMut<'_>) {
    par_cols(
        c,
        COLUMNS,
        #[inline(always)]
        |first, mut c| {
            let sums = c.row::<f32>(0);
            for i in 0..a.rows() {
                reduce::add(sums, &a.row::<f32>(i)[first..first + sums.len()]);
            }
        },
    );
}
