//! Rope on the CPU: every head of a row by the row's cosines and sines.

use crate::device::cpu::par_rows;
use crate::ops::rows_per_chunk;
use crate::tensor::{Tensor, TensorMut};

/// `direction` is the sign of the angle.
pub(super) fn turn(
    qk: TensorMut<'_>,
    positions: Tensor<'_>,
    table: Tensor<'_>,
    logn: Option<Tensor<'_>>,
    head_dim: usize,
    direction: f32,
) {
    let (cols, half) = (qk.cols(), head_dim / 2);
    par_rows(
        [qk],
        rows_per_chunk(cols),
        #[inline(always)]
        |first, [mut qk]| {
            for i in 0..qk.rows() {
                let p = positions.row::<u32>(first + i)[0] as usize;
                let (cos, sin) = table.row::<f32>(p).split_at(half);
                let scale = logn.map_or(1.0, |logn| logn.row::<f32>(p)[0]);
                let (q, k) = qk.row::<f32>(i).split_at_mut(cols / 2);
                for (part, scale) in [(q, scale), (k, 1.0)] {
                    for head in part.chunks_exact_mut(head_dim) {
                        let (x1, x2) = head.split_at_mut(half);
                        for (((x1, x2), c), s) in x1.iter_mut().zip(x2).zip(cos).zip(sin) {
                            let (c, s) = (c * scale, s * scale * direction);
                            (*x1, *x2) = (*x1 * c - *x2 * s, *x2 * c + *x1 * s);
                        }
                    }
                }
            }
        },
    );
}
