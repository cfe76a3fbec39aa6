//! The gradient's norm against a plain sum, and its search for what is not finite.

use proptest::prelude::*;
use silkie::ops::grad_norm::{all_finite, first_non_finite, sum_of_squares};

use crate::support::*;

/// One chunk of the op is 64 Ki elements.
const CHUNK: usize = 64 * 1024;

#[test]
fn agrees_with_a_plain_sum() {
    for n in [0, 1, 15, 16, 17, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5] {
        let g = random(n, 1);
        let want: f64 = g.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
        let got = sum_of_squares(&g);
        assert!((got - want).abs() <= 1e-12 * want, "{n} elements: got {got}, expected {want}");
    }
}

#[test]
fn huge_and_tiny_values_neither_overflow_nor_vanish() {
    assert_eq!(sum_of_squares(&[1e30; 4]), 4.0 * f64::from(1e30f32).powi(2));
    assert_eq!(sum_of_squares(&[1e-30; 4]), 4.0 * f64::from(1e-30f32).powi(2));
}

#[test]
fn threads_do_not_change_a_bit() {
    let g: Vec<f32> = random(5 * CHUNK + 3, 1).iter().map(|x| x.powi(9)).collect();
    same_on_any_threads("sum_of_squares", || {
        let bits = sum_of_squares(&g).to_bits();
        [bits as u32, (bits >> 32) as u32].map(f32::from_bits).to_vec()
    });
}

#[test]
fn the_first_non_finite_element_is_named() {
    let mut g = random(3 * CHUNK, 1);
    assert!(all_finite(&g) && all_finite(&[]) && all_finite(&[f32::MAX, f32::MIN]));
    for (at, value) in [
        (3 * CHUNK - 1, f32::NAN),
        (2 * CHUNK, f32::INFINITY),
        (CHUNK + 77, f32::NEG_INFINITY),
        (0, f32::NAN),
    ] {
        g[at] = value;
        assert_eq!(first_non_finite(&g), Some(at));
        assert!(!all_finite(&g));
    }
}

proptest! {
    #[test]
    fn any_place_is_found(n in 1usize..2000, seed: usize, value in prop::sample::select(
        vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]))
    {
        let mut g = random(n, 1);
        g[seed % n] = value;
        prop_assert_eq!(first_non_finite(&g), Some(seed % n));
    }
}
