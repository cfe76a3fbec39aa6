//! Judging results: relative error against an f64 oracle, central differences, same bits.

use std::fmt::Debug;

/// Fails unless `got` is finite and `||got - expected|| <= bound * ||expected||`.
///
/// An expected zero vector must be met to `bound` absolutely. `case` names what was computed.
#[track_caller]
pub fn assert_close(case: impl Debug, got: &[f32], expected: &[f64], bound: f64) {
    assert_sums_close(case, got, expected, expected, bound);
}

/// [`assert_close`] for sums whose terms may cancel: the error is relative to `sizes`, the sums of
/// the terms' absolute values, as that of any f32 summation is.
#[track_caller]
pub fn assert_sums_close(
    case: impl Debug,
    got: &[f32],
    expected: &[f64],
    sizes: &[f64],
    bound: f64,
) {
    assert_eq!(got.len(), expected.len(), "{case:?}: number of elements");
    let error: Vec<f64> = got.iter().zip(expected).map(|(&g, e)| f64::from(g) - e).collect();
    let norm = |x: &[f64]| x.iter().map(|v| v * v).sum::<f64>().sqrt();
    let size = norm(sizes);
    let relative = norm(&error) / if size == 0.0 { 1.0 } else { size };
    if relative <= bound {
        return;
    }
    let worst = (0..error.len()).max_by(|&a, &b| severity(error[a]).total_cmp(&severity(error[b])));
    let worst = worst.expect("an error without elements");
    let bad = got.iter().filter(|g| !g.is_finite()).count();
    panic!(
        "{case:?}: relative error {relative:.3e} of {} elements ({bad} not finite), worst at \
         {worst}: got {:e}, expected {:e}; bound {bound:.1e}",
        got.len(),
        got[worst],
        expected[worst],
    );
}

/// Fails unless `got` is at most twice as far from `expected` as `rounded` is: the same formula, in
/// f64, rounded only where the kernel says that it rounds. `bound` is what f32 arithmetic may add,
/// as in [`assert_close`].
#[track_caller]
pub fn assert_rounded(
    case: impl Debug,
    got: &[f32],
    expected: &[f64],
    rounded: &[f64],
    bound: f64,
) {
    let norm = |x: &[f64]| x.iter().map(|v| v * v).sum::<f64>().sqrt();
    let error: Vec<f64> = rounded.iter().zip(expected).map(|(r, e)| r - e).collect();
    let size = norm(expected);
    let allowed = 2.0 * norm(&error) / if size == 0.0 { 1.0 } else { size };
    assert_close(case, got, expected, allowed + bound);
}

fn severity(error: f64) -> f64 {
    if error.is_nan() { f64::INFINITY } else { error.abs() }
}

/// Fails unless every element is within `bound` of the expected one.
#[track_caller]
pub fn assert_within(case: impl Debug, got: &[f32], expected: &[f64], bound: f64) {
    assert_eq!(got.len(), expected.len(), "{case:?}: number of elements");
    for (i, (&g, &e)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(g) - e).abs();
        assert!(
            error <= bound,
            "{case:?}: element {i}: got {g:e}, expected {e:e}; bound {bound:e}"
        );
    }
}

/// Fails unless the two hold the same bits.
#[track_caller]
pub fn assert_same_bits(case: impl Debug, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{case:?}: number of elements");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert_eq!(g.to_bits(), e.to_bits(), "{case:?}: element {i}: got {g:e}, expected {e:e}");
    }
}

/// Fails unless `run` gives the same bits on 1, 2 and 3 threads; returns them.
#[track_caller]
pub fn same_on_any_threads(case: impl Debug, run: impl Fn() -> Vec<f32> + Sync) -> Vec<f32> {
    let on = |n: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("threads");
        pool.install(&run)
    };
    let one = on(1);
    for n in [2, 3] {
        assert_same_bits(format!("{case:?} on {n} threads"), &on(n), &one);
    }
    one
}

/// The derivative of `f` by each element of `x`, by central differences of step `h`.
pub fn central_differences(x: &[f64], h: f64, f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let middle = x[i];
            x[i] = middle + h;
            let above = f(&x);
            x[i] = middle - h;
            let below = f(&x);
            x[i] = middle;
            (above - below) / (2.0 * h)
        })
        .collect()
}

/// Fails unless a naive gradient is the derivative that central differences found.
#[track_caller]
pub fn assert_derivative(gradient: &[f64], differences: &[f64], bound: f64) {
    assert_eq!(gradient.len(), differences.len());
    for (i, (g, d)) in gradient.iter().zip(differences).enumerate() {
        assert!((g - d).abs() <= bound, "element {i}: gradient {g:e}, by differences {d:e}");
    }
}

/// `Σ a·b`: turns an output and its gradient into the scalar that is differentiated.
pub fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The message of an expected refusal.
#[track_caller]
pub fn refusal<T>(result: silkie::Result<T>) -> String {
    result.err().expect("an error").to_string()
}
