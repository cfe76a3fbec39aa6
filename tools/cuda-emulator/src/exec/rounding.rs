//! Rounding to any format in any direction, from a double that stands for the exact value.
//!
//! A double rounded to odd keeps what the rounding to a narrower format needs: where the exact value
//! is no double, its last bit is 1. A format with at least two bits fewer is then rounded to correctly.

/// A binary floating-point format of at most 32 bits.
#[derive(Clone, Copy)]
pub struct Format {
    /// Bits of the significand, the hidden one among them.
    precision: u32,
    /// Exponent of the smallest normal number.
    min_exponent: i32,
    /// The bits of infinity.
    infinity: u32,
    /// The one NaN that operations return.
    nan: u32,
    sign: u32,
}

pub const F32: Format = Format {
    precision: 24,
    min_exponent: -126,
    infinity: 0x7f80_0000,
    nan: 0x7fff_ffff,
    sign: 1 << 31,
};
pub const F16: Format =
    Format { precision: 11, min_exponent: -14, infinity: 0x7c00, nan: 0x7fff, sign: 1 << 15 };
pub const BF16: Format =
    Format { precision: 8, min_exponent: -126, infinity: 0x7f80, nan: 0x7fff, sign: 1 << 15 };
/// In the high 19 bits of an f32: shift what was rounded left by 13.
pub const TF32: Format =
    Format { precision: 11, min_exponent: -126, infinity: 0xff << 10, nan: 0x3ffff, sign: 1 << 18 };

/// `.rn`, `.rz`, `.rm`, `.rp` and, ties away from zero, `.rna`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Nearest,
    Zero,
    Down,
    Up,
    Away,
}

impl Mode {
    pub const ALL: [Mode; 5] = [Mode::Nearest, Mode::Zero, Mode::Down, Mode::Up, Mode::Away];

    /// From the low bits of an immediate.
    #[inline(always)]
    pub fn decode(immediate: i64) -> Mode {
        Self::ALL[(immediate & 7).min(4) as usize]
    }
}

/// The bits of `x` in `format`.
#[inline(always)]
pub fn round(x: f64, format: Format, mode: Mode) -> u32 {
    let bits = x.to_bits();
    let sign = if bits >> 63 != 0 { format.sign } else { 0 };
    let is_negative = sign != 0;
    let exponent = (bits >> 52 & 0x7ff) as i32 - 1023;
    // 53 bits; a double below its own normal range is far below every format's, and stays a sticky bit.
    let significand = bits & ((1 << 52) - 1) | 1 << 52;
    let below = (format.min_exponent - exponent).max(0);
    let shift = (53 - format.precision as i32 + below).min(60) as u32;
    let kept = significand >> shift;
    let lost = significand & ((1 << shift) - 1);
    let half = 1u64 << (shift - 1);
    let up = match mode {
        Mode::Nearest => lost > half || lost == half && kept & 1 != 0,
        Mode::Away => lost >= half,
        Mode::Zero => false,
        Mode::Down => is_negative && lost != 0,
        Mode::Up => !is_negative && lost != 0,
    };
    // A hidden bit in `kept` adds one to the exponent field, and so does a carry.
    let field = (exponent.max(format.min_exponent) - format.min_exponent) as u64;
    let magnitude = (field << (format.precision - 1)) + kept + up as u64;
    let overflow = match mode {
        Mode::Nearest | Mode::Away => format.infinity,
        Mode::Zero => format.infinity - 1,
        Mode::Down => format.infinity - !is_negative as u32,
        Mode::Up => format.infinity - is_negative as u32,
    };
    let finite =
        if magnitude >= format.infinity as u64 { overflow } else { magnitude as u32 } | sign;
    if x == 0.0 {
        sign
    } else if x.is_nan() {
        format.nan
    } else if x.is_infinite() {
        format.infinity | sign
    } else {
        finite
    }
}

/// `a + b`, rounded to odd.
#[inline(always)]
pub fn sum_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let a_part = sum - b;
    let b_part = sum - a_part;
    odd(sum, (a - a_part) + (b - b_part))
}

/// `a / b` of numbers that are singles, rounded to odd.
#[inline(always)]
pub fn quotient_odd(a: f64, b: f64) -> f64 {
    let quotient = a / b;
    let remainder = (-quotient).mul_add(b, a);
    odd(quotient, if b < 0.0 { -remainder } else { remainder })
}

/// The square root of a number that is a single, rounded to odd.
#[inline(always)]
pub fn sqrt_odd(a: f64) -> f64 {
    let root = a.sqrt();
    odd(root, (-root).mul_add(root, a))
}

/// `nearest` where the exact value is `nearest + error`: itself if the error is 0, else the one of
/// the two doubles around the exact value that is odd.
#[inline(always)]
fn odd(nearest: f64, error: f64) -> f64 {
    let bits = nearest.to_bits();
    let is_inexact = error != 0.0 && nearest.is_finite() && !error.is_nan();
    // Towards the exact value, and a zero never occurs here: sums and quotients of singles do not underflow.
    let is_further = (error > 0.0) == (nearest > 0.0);
    let next = if is_further { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    f64::from_bits(if is_inexact && bits & 1 == 0 { next } else { bits })
}

/// An integer as a double, rounded to odd.
#[inline(always)]
pub fn integer_odd(magnitude: u64, is_negative: bool) -> f64 {
    // Below 2^53 exact; else the low 11 bits collapse into a sticky one.
    let sticky = (magnitude & 0x7ff != 0) as u64;
    let kept = if magnitude >> 53 == 0 { magnitude } else { magnitude & !0x7ff | sticky << 11 };
    let value = kept as f64;
    if is_negative { -value } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every half, from its definition.
    fn f16(bits: u32) -> f64 {
        let (exponent, fraction) = (bits >> 10 & 31, (bits & 1023) as f64);
        let magnitude = match exponent {
            0 => fraction * 2f64.powi(-24),
            31 => f64::INFINITY,
            _ => (1024.0 + fraction) * 2f64.powi(exponent as i32 - 25),
        };
        if bits >> 15 != 0 { -magnitude } else { magnitude }
    }

    #[test]
    fn every_half_and_what_lies_between() {
        for bits in 0..0x7bffu32 {
            let (here, next) = (f16(bits), f16(bits + 1));
            for mode in Mode::ALL {
                assert_eq!(round(here, F16, mode), bits);
            }
            let middle = (here + next) / 2.0;
            let even = if bits & 1 == 0 { bits } else { bits + 1 };
            for (x, expected) in [
                (middle, [even, bits, bits, bits + 1, bits + 1]),
                (middle.next_down(), [bits, bits, bits, bits + 1, bits]),
                (middle.next_up(), [bits + 1, bits, bits, bits + 1, bits + 1]),
            ] {
                for (mode, expected) in Mode::ALL.into_iter().zip(expected) {
                    assert_eq!(round(x, F16, mode), expected, "{x} {mode:?}");
                }
                let mirrored = [0, 1, 3, 2, 4].map(|mode| expected[mode] | 0x8000);
                for (mode, expected) in Mode::ALL.into_iter().zip(mirrored) {
                    assert_eq!(round(-x, F16, mode), expected, "{} {mode:?}", -x);
                }
            }
        }
    }

    #[test]
    fn overflow_and_underflow() {
        let max = 0x7f7f_ffff;
        let large = f32::MAX as f64 * 2.0;
        for (mode, up, down) in [
            (Mode::Nearest, max + 1, max + 1),
            (Mode::Zero, max, max),
            (Mode::Down, max, max + 1),
            (Mode::Up, max + 1, max),
        ] {
            assert_eq!(round(large, F32, mode), up);
            assert_eq!(round(-large, F32, mode), down | 1 << 31);
        }
        for tiny in [f64::MIN_POSITIVE, f64::from_bits(1), 2f64.powi(-150)] {
            assert_eq!(round(tiny, F32, Mode::Nearest), 0);
            assert_eq!(round(tiny, F32, Mode::Up), 1);
            assert_eq!(round(-tiny, F32, Mode::Down), 1 | 1 << 31);
        }
        assert_eq!(round(2f64.powi(-150).next_up(), F32, Mode::Nearest), 1);
        assert_eq!(round(f64::NAN, BF16, Mode::Nearest), 0x7fff);
        assert_eq!(round(-0.0, BF16, Mode::Up), 0x8000);
        assert_eq!(round(f64::NEG_INFINITY, F16, Mode::Up), 0xfc00);
    }

    /// To nearest, all this must agree with the processor.
    #[test]
    fn nearest_is_the_processors() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // Exponents near each other, so that sums round.
            f32::from_bits((state >> 32) as u32 & 0x83ff_ffff | 0x3c00_0000)
        };
        let as_single = |x: f64| f32::from_bits(round(x, F32, Mode::Nearest));
        for _ in 0..100_000 {
            let (a, b, c) = (next(), next(), next());
            let [x, y, z] = [a, b, c].map(f64::from);
            assert_eq!(as_single(sum_odd(x, y)), a + b);
            assert_eq!(as_single(sum_odd(x * y, z)), a.mul_add(b, c));
            assert_eq!(as_single(quotient_odd(x, y)), a / b);
            assert_eq!(as_single(sqrt_odd(x.abs())), a.abs().sqrt());
        }
        for shift in 0..40 {
            let magnitude = 0xffff_ff80_0000_0000u64 >> shift | 1;
            assert_eq!(as_single(integer_odd(magnitude, false)), magnitude as f32);
        }
    }
}
