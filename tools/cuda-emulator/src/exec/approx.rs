//! The `.approx` functions: polynomials of our own, so that every machine gives the same bits, within the
//! errors that the PTX manual grants.

use std::f32::consts::{LN_2, LOG2_E};
use std::f64::consts::{FRAC_2_PI, FRAC_PI_2};

/// `2^x`, relative error below 2^-22.
#[inline(always)]
pub fn ex2(x: f32) -> f32 {
    // Beyond these bounds the result is 0 or infinity all the same.
    let clamped = x.clamp(-160.0, 130.0);
    let whole = clamped.round_ties_even();
    let part = clamped - whole;
    const P: [f32; 7] =
        [1.0, LN_2, 0.240_226_46, 0.055_503_286, 0.009_618_489, 0.001_339_993, 0.000_153_458_08];
    let power = polynomial(&P, part);
    // In two steps, since 2^whole itself may be out of range, or subnormal.
    let whole = whole as i32;
    let first = whole >> 1;
    let scale = |exponent: i32| f32::from_bits(((exponent + 127) as u32) << 23);
    power * scale(first) * scale(whole - first)
}

/// The binary logarithm: absolute error below 2^-22 between 1/2 and 2, relative error below 2^-22 elsewhere.
#[inline(always)]
pub fn lg2(x: f32) -> f32 {
    let is_subnormal = x < f32::MIN_POSITIVE;
    let scaled = if is_subnormal { x * 8_388_608.0 } else { x }; // 2^23
    // The mantissa between sqrt(1/2) and sqrt(2).
    let bits = scaled.to_bits().wrapping_sub(0x3f35_04f3);
    let exponent = (bits as i32) >> 23;
    let mantissa = f32::from_bits((bits & 0x7f_ffff) + 0x3f35_04f3);
    let exponent = if is_subnormal { exponent - 23 } else { exponent };
    const P: [f32; 10] = [
        LOG2_E,
        -0.721_347_33,
        0.480_897_9,
        -0.360_696_43,
        0.288_585_28,
        -0.239_636_57,
        0.204_296_17,
        -0.190_612_9,
        0.187_825_9,
        -0.112_973_355,
    ];
    let t = mantissa - 1.0;
    let log = polynomial(&P, t).mul_add(t, exponent as f32);
    if x == 0.0 {
        f32::NEG_INFINITY
    } else if x.is_nan() || x < 0.0 {
        f32::NAN
    } else if x == f32::INFINITY {
        x
    } else {
        log
    }
}

/// Absolute error below 2^-21 between -pi and pi.
#[inline(always)]
pub fn sin(x: f32) -> f32 {
    if x == 0.0 { x } else { sin_of_quadrants(x, 0) }
}

/// Absolute error below 2^-21 between -pi and pi.
#[inline(always)]
pub fn cos(x: f32) -> f32 {
    sin_of_quadrants(x, 1)
}

/// `sin(x + quadrants · pi/2)`
#[inline(always)]
fn sin_of_quadrants(x: f32, quadrants: i64) -> f32 {
    let wide = x as f64;
    let turns = (wide * FRAC_2_PI).round_ties_even();
    // So that huge x give some number between -1 and 1.
    let rest = (-turns).mul_add(FRAC_PI_2, wide).clamp(-0.79, 0.79) as f32;
    // The last two bits of an integer of at most 2^51 stand at the end of the sum with 3 · 2^51.
    let quadrant = (turns + 6_755_399_441_055_744.0).to_bits() as i64 + quadrants;
    let square = rest * rest;
    const SIN: [f32; 3] = [-0.166_666_64, 0.008_332_726, -0.000_195_829_78];
    const COS: [f32; 3] = [0.041_666_664, -0.001_388_828, 0.000_024_542_998];
    let sin = (polynomial(&SIN, square) * square).mul_add(rest, rest);
    let cos = polynomial(&COS, square).mul_add(square * square, square.mul_add(-0.5, 1.0));
    let value = if quadrant & 1 == 0 { sin } else { cos };
    let value = if quadrant & 2 == 0 { value } else { -value };
    if x.is_finite() { value } else { f32::NAN }
}

/// Relative error below 2^-11.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let magnitude = x.abs();
    let square = x * x;
    const P: [f32; 4] = [-0.333_332_5, 0.133_257_43, -0.052_868_75, 0.016_616_452];
    let small = (polynomial(&P, square) * square).mul_add(x, x);
    let large = 1.0 - 2.0 / (ex2(magnitude * 2.885_39) + 1.0); // 2 / ln 2
    if magnitude < 0.6 { small } else { large.copysign(x) }
}

/// Relative error below 2^-22.9: two roundings.
#[inline(always)]
pub fn rsqrt(x: f32) -> f32 {
    1.0 / x.sqrt()
}

/// `a / b` within 2 ulp; as the manual says 0 (or NaN) for the largest b.
#[inline(always)]
pub fn div(a: f32, b: f32) -> f32 {
    let is_too_large = b.abs() > 2f32.powi(126) && b.abs() < f32::INFINITY;
    if is_too_large { a * 0f32.copysign(b) } else { a / b }
}

#[inline(always)]
fn polynomial<const N: usize>(coefficients: &[f32; N], x: f32) -> f32 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum.mul_add(x, coefficients[i]);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `step`th float between two floats of the same sign, both ends included.
    fn floats(from: f32, to: f32, step: usize) -> impl Iterator<Item = f32> {
        let (low, high) = (from.to_bits().min(to.to_bits()), from.to_bits().max(to.to_bits()));
        (low..=high).step_by(step).chain([low, high]).map(f32::from_bits)
    }

    #[test]
    fn ex2_and_lg2_keep_the_manuals_bounds() {
        for sign in [1.0, -1.0] {
            for x in floats(sign * 1e-10, sign * 126.0, 10_007) {
                let exact = (x as f64).exp2();
                assert!((ex2(x) as f64 / exact - 1.0).abs() < 2f64.powi(-22), "{x}");
            }
        }
        assert_eq!([ex2(0.0), ex2(-200.0), ex2(128.0)], [1.0, 0.0, f32::INFINITY]);
        assert_eq!([ex2(f32::NEG_INFINITY), ex2(f32::INFINITY)], [0.0, f32::INFINITY]);
        assert_eq!(ex2(-149.0), f32::from_bits(1));
        assert!(ex2(f32::NAN).is_nan() && lg2(-1.0).is_nan() && lg2(f32::NAN).is_nan());
        for x in floats(f32::from_bits(1), f32::MAX, 40_009) {
            let (log, exact) = (lg2(x) as f64, (x as f64).log2());
            let scale = if x > 0.5 && x < 2.0 { 1.0 } else { exact.abs() };
            assert!((log - exact).abs() < 2f64.powi(-22) * scale, "{x:e}");
        }
        assert_eq!(
            [lg2(0.0), lg2(1.0), lg2(f32::INFINITY)],
            [f32::NEG_INFINITY, 0.0, f32::INFINITY]
        );
    }

    #[test]
    fn sin_and_cos_keep_the_manuals_bounds() {
        for sign in [1.0, -1.0] {
            for x in floats(sign * 1e-10, sign * 1000.0, 5_003) {
                let wide = x as f64;
                assert!((sin(x) as f64 - wide.sin()).abs() < 2f64.powi(-21), "{x}");
                assert!((cos(x) as f64 - wide.cos()).abs() < 2f64.powi(-21), "{x}");
            }
        }
        assert!(sin(0.0) == 0.0 && sin(-0.0).is_sign_negative());
        assert!(sin(f32::INFINITY).is_nan() && cos(f32::NAN).is_nan());
        assert!(sin(1e30).abs() <= 1.0 && cos(-3e38).abs() <= 1.0);
    }

    #[test]
    fn the_others_keep_the_manuals_bounds() {
        for sign in [1.0, -1.0] {
            for x in floats(sign * 1e-20, sign * 100.0, 10_007) {
                let exact = (x as f64).tanh();
                assert!((tanh(x) as f64 / exact - 1.0).abs() < 2f64.powi(-11), "{x}");
            }
        }
        for x in floats(f32::from_bits(1), f32::MAX, 100_003) {
            let exact = 1.0 / (x as f64).sqrt();
            assert!((rsqrt(x) as f64 / exact - 1.0).abs() < 2f64.powf(-22.9), "{x:e}");
        }
        assert_eq!([tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)], [1.0, -1.0]);
        assert_eq!([div(1.0, 4.0), div(3.0, 2f32.powi(127))], [0.25, 0.0]);
        assert!(div(f32::INFINITY, 2f32.powi(127)).is_nan() && div(1.0, f32::INFINITY) == 0.0);
    }
}
