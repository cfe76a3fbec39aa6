//! Functions of one float that vectorise: plain arithmetic, no branches, no calls. Inside
//! [`crate::device::cpu::simd`] a loop over them runs 8 or 16 elements at a time.
//!
//! Polynomials are Chebyshev interpolants, computed in 40-digit arithmetic for this file.

/// `e^x`, within 2 ulp. Below about -87 it is 0 (results stay normal numbers), so `exp(-inf) == 0`;
/// above 88.72 it is infinite; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5·2^23 leaves round(x / ln 2) in the low bits of the sum.
    const SHIFT: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has so few bits that n·LN2_HIGH is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -87.3 { -87.3 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    // e^r = 1 + r + r²·p(r) for |r| <= ln 2 / 2
    let p = 1.392_617_6e-3f32;
    let p = p * r + 8.363_173e-3;
    let p = p * r + 4.166_655_5e-2;
    let p = p * r + 1.666_657_7e-1;
    let p = p * r + 0.5;
    let e = 1.0 + (r + r * r * p);
    // 2^(n-1), then twice: n = 128 stays representable, n = -126 becomes 0.
    let half = f32::from_bits(shifted.to_bits().wrapping_add(126) << 23);
    e * half * 2.0
}

/// The error function, absolute error below 1.5e-7.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let a = x.abs();
    let a = if a > 4.0 { 4.0 } else { a }; // 1 - erf(4) is 1.5e-8
    let u = a * a;
    // |x| <= 1: erf(x) = x·p(x²)
    let p = 7.875_875e-5f32;
    let p = p * u - 8.016_864e-4;
    let p = p * u + 5.189_087_4e-3;
    let p = p * u - 2.685_421_2e-2;
    let p = p * u + 0.112_835_95;
    let p = p * u - 0.376_126_27;
    let p = p * u + std::f32::consts::FRAC_2_SQRT_PI;
    // |x| > 1: erf(x) = 1 - e^(-x²)·q(1 / (1 + x/2))
    let t = 1.0 / (1.0 + 0.5 * a);
    let q = -5.363_043e-2f32;
    let q = q * t - 5.706_52e-2;
    let q = q * t + 0.403_495_05;
    let q = q * t + 0.101_495_41;
    let q = q * t + 0.330_757_13;
    let q = q * t + 0.273_634_34;
    let q = q * t + 6.051_184e-4;
    let magnitude = if a <= 1.0 { a * p } else { 1.0 - exp(-u) * q };
    if x.is_nan() { x } else { magnitude.copysign(x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        for i in -860_000..887_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}): relative error {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!([exp(f32::NEG_INFINITY), exp(-88.0), exp(f32::MIN)], [0.0; 3]);
        assert_eq!([exp(f32::INFINITY), exp(f32::MAX)], [f32::INFINITY; 2]);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn erf_matches_its_series() {
        for i in -60_000..60_000 {
            let x = i as f32 * 1e-4;
            let error = (f64::from(erf(x)) - series(f64::from(x))).abs();
            assert!(error < 1.5e-7, "erf({x}): error {error:e}");
        }
        assert_eq!([erf(0.0), erf(f32::INFINITY), erf(f32::NEG_INFINITY)], [0.0, 1.0, -1.0]);
        assert!(erf(f32::NAN).is_nan());
    }

    /// `2/√π · e^(-x²) · Σ 2^n x^(2n+1) / (2n+1)!!`: all terms of one sign.
    fn series(x: f64) -> f64 {
        let (mut term, mut sum, mut n) = (x, x, 1.0);
        while term.abs() > 1e-17 * sum.abs() {
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
    }
}
