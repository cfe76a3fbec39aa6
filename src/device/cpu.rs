//! The CPU device: rows over all cores, vector instructions chosen at run time.
//!
//! Determinism: work is cut into chunks whose size never depends on the number of threads, each
//! output element is written by exactly one chunk, and partial sums are added in chunk order.
//! The same input therefore gives the same bytes with 1, 2 or 64 threads.

use rayon::prelude::*;

use crate::tensor::TensorMut;

/// Runs `body(first_row, chunks)` over chunks of `rows_per_chunk` rows of `outputs`, in parallel.
/// All outputs must have the same number of rows.
pub fn par_rows<const N: usize>(
    outputs: [TensorMut<'_>; N],
    rows_per_chunk: usize,
    body: impl Fn(usize, [TensorMut<'_>; N]) + Sync,
) {
    let rows = outputs.first().map_or(0, TensorMut::rows);
    assert!(outputs.iter().all(|t| t.rows() == rows), "par_rows over outputs of unequal rows");
    let chunk = rows_per_chunk.max(1);
    (0..rows.div_ceil(chunk)).into_par_iter().for_each(|i| {
        let range = i * chunk..((i + 1) * chunk).min(rows);
        // SAFETY: `outputs` is exclusively ours, and distinct i name disjoint rows.
        let parts = std::array::from_fn(|k| unsafe { outputs[k].alias_rows(range.clone()) });
        simd(
            #[inline(always)]
            || body(range.start, parts),
        );
    });
}

/// Runs `body(first_col, chunk)` over chunks of `cols_per_chunk` columns of `output`, in parallel.
pub fn par_cols(
    output: TensorMut<'_>,
    cols_per_chunk: usize,
    body: impl Fn(usize, TensorMut<'_>) + Sync,
) {
    let cols = output.cols();
    let chunk = cols_per_chunk.max(1);
    (0..cols.div_ceil(chunk)).into_par_iter().for_each(|i| {
        let range = i * chunk..((i + 1) * chunk).min(cols);
        // SAFETY: `output` is exclusively ours, and distinct i name disjoint columns.
        let part = unsafe { output.alias_cols(range.clone()) };
        simd(
            #[inline(always)]
            || body(range.start, part),
        );
    });
}

/// Runs `body(i)` for `0..n`, in parallel.
pub fn par_tasks(n: usize, body: impl Fn(usize) + Sync) {
    (0..n).into_par_iter().for_each(|i| {
        simd(
            #[inline(always)]
            || body(i),
        )
    });
}

/// Runs `body` compiled for the widest vector instructions this CPU has (AVX-512, AVX2 + FMA or
/// the baseline). `body` and what it calls must be `#[inline(always)]` to be compiled along: a
/// closure that is merely called from all three versions is compiled once, for the baseline.
#[inline(always)]
pub fn simd<R>(body: impl FnOnce() -> R) -> R {
    struct Body<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Body<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Body(body))
}

/// What the processor calls itself, where the system says: `model name` of `/proc/cpuinfo`.
pub fn name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// The vector instructions that [`simd`] chooses on this processor.
pub fn vectors() -> &'static str {
    match pulp::Arch::new() {
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V4(_) => "AVX-512",
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V3(_) => "AVX2 and FMA",
        _ => "baseline",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_visited_once() {
        let mut data = vec![0.0f32; 7 * 3];
        let mut sums = vec![0.0f32; 7];
        let outputs = [TensorMut::new(&mut data, 7, 3), TensorMut::column(&mut sums)];
        par_rows(outputs, 2, |first, [mut x, mut s]| {
            for i in 0..x.rows() {
                x.row::<f32>(i).fill((first + i) as f32);
                s.row::<f32>(i)[0] += 1.0;
            }
        });
        assert_eq!(data.iter().sum::<f32>(), 3.0 * 21.0);
        assert_eq!(sums, [1.0; 7]);
    }

    #[test]
    fn every_column_is_visited_once() {
        let mut data = vec![0.0f32; 2 * 5];
        par_cols(TensorMut::new(&mut data, 2, 5), 2, |first, mut x| {
            for i in 0..x.rows() {
                x.row::<f32>(i).iter_mut().enumerate().for_each(|(j, v)| *v += (first + j) as f32);
            }
        });
        assert_eq!(data, [0., 1., 2., 3., 4., 0., 1., 2., 3., 4.]);
    }
}
