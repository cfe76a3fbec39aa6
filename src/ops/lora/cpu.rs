//! Tails on the CPU: pair by pair, rows in parallel.

use half::bf16;

use super::Table;
use crate::device::cpu::par_rows;
use crate::ops::rows_per_chunk;
use crate::tensor::{Tensor, TensorMut};

pub(super) fn write_tails(masters: Tensor<'_>, table: &Table, tails: &mut [TensorMut<'_>]) {
    let masters = masters.row::<f32>(0);
    for (pair, tail) in table.pairs.iter().zip(tails) {
        let (r, chunk) = (pair.rank, rows_per_chunk(tail.cols()));
        par_rows(
            [tail.reborrow()],
            chunk,
            #[inline(always)]
            |first, [mut tail]| {
                for i in 0..tail.rows() {
                    let b = &masters[pair.first + (first + i) * r..][..r];
                    let tail = tail.row::<bf16>(i);
                    tail.fill(bf16::ZERO);
                    let own = tail[pair.group * r..].iter_mut().zip(b);
                    own.for_each(|(tail, b)| *tail = bf16::from_f32(b * pair.scale));
                }
            },
        );
    }
}
