//! The size of a flat gradient: its sum of squares, and whether every element is finite.
//!
//! `norm = sqrt(Σ g²)`. Squares are summed in f64, over chunks of constant size whose sums are
//! added in index order: any number of threads gives the same bits, and no f32 overflows it.

mod cpu;

/// `Σ g²` in f64. 2 FLOP per element, one read.
///
/// Holds one f64 per 64 Ki elements while it runs.
pub fn sum_of_squares(g: &[f32]) -> f64 {
    cpu::sum_of_squares(g)
}

/// Whether no element is infinite or NaN. One read.
pub fn all_finite(g: &[f32]) -> bool {
    first_non_finite(g).is_none()
}

/// The first element that is infinite or NaN: its index names the parameter. One read.
pub fn first_non_finite(g: &[f32]) -> Option<usize> {
    cpu::first_non_finite(g)
}
