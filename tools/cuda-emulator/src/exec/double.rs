//! Arithmetic of f64 in any rounding direction, in exact integers. To nearest, the processor does it.

use super::rounding::Mode;

/// `± significand · 2^exponent`. Where bits were lost below, the last bit is 1.
#[derive(Clone, Copy)]
pub struct Exact {
    pub is_negative: bool,
    pub significand: u128,
    pub exponent: i32,
}

/// Exponent of the smallest number.
const LEAST: i32 = -1074;

pub fn add(a: f64, b: f64, mode: Mode) -> f64 {
    if !(a.is_finite() && b.is_finite()) {
        return a + b;
    }
    sum(Exact::of(a), Exact::of(b), mode).round(mode)
}

pub fn multiply(a: f64, b: f64, mode: Mode) -> f64 {
    if !(a.is_finite() && b.is_finite()) {
        return a * b;
    }
    product(a, b).round(mode)
}

pub fn multiply_add(a: f64, b: f64, c: f64, mode: Mode) -> f64 {
    if !(a.is_finite() && b.is_finite() && c.is_finite()) {
        return a.mul_add(b, c);
    }
    sum(product(a, b), Exact::of(c), mode).round(mode)
}

pub fn divide(a: f64, b: f64, mode: Mode) -> f64 {
    if !(a.is_finite() && b.is_finite()) || a == 0.0 || b == 0.0 {
        return a / b;
    }
    let (a, b) = (Exact::of(a).normal(), Exact::of(b).normal());
    // At least 54 bits and what was lost: 2^64 is more than the quotient of the significands can lack.
    let numerator = (a.significand >> 64) << 64;
    let denominator = b.significand >> 64;
    Exact {
        is_negative: a.is_negative != b.is_negative,
        significand: (numerator / denominator) << 1 | (numerator % denominator != 0) as u128,
        exponent: a.exponent - b.exponent - 64 - 1,
    }
    .round(mode)
}

pub fn sqrt(a: f64, mode: Mode) -> f64 {
    if !(a.is_finite() && a > 0.0) {
        return a.sqrt();
    }
    let a = Exact::of(a).normal();
    // Half of an even exponent; the significand has room below.
    let odd = a.exponent.rem_euclid(2) as u32;
    let significand = a.significand >> odd;
    let root = significand.isqrt();
    Exact {
        is_negative: false,
        significand: root << 1 | (root * root != significand) as u128,
        exponent: (a.exponent + odd as i32) / 2 - 1,
    }
    .round(mode)
}

fn product(a: f64, b: f64) -> Exact {
    let (a, b) = (Exact::of(a), Exact::of(b));
    Exact {
        is_negative: a.is_negative != b.is_negative,
        significand: a.significand * b.significand,
        exponent: a.exponent + b.exponent,
    }
}

/// Of numbers of at most 106 bits.
fn sum(a: Exact, b: Exact, mode: Mode) -> Exact {
    if a.significand == 0 && b.significand == 0 {
        let is_negative = match a.is_negative == b.is_negative {
            true => a.is_negative,
            false => mode == Mode::Down,
        };
        return Exact { is_negative, ..a };
    }
    if a.significand == 0 || b.significand == 0 {
        return if a.significand == 0 { b } else { a };
    }
    let (a, b) = (a.normal(), b.normal());
    let (high, low) = if a.exponent >= b.exponent { (a, b) } else { (b, a) };
    let shift = (high.exponent - low.exponent) as u32;
    let moved = low.significand.checked_shr(shift).unwrap_or(0);
    let is_inexact = low.significand.checked_shl(128 - shift.min(128)).unwrap_or(0) != 0;
    let moved = moved | (shift > 0 && (is_inexact || shift > 127)) as u128;
    let (is_negative, significand) = match high.is_negative == low.is_negative {
        true => (high.is_negative, high.significand + moved),
        false if high.significand == moved => (mode == Mode::Down, 0),
        false if high.significand > moved => (high.is_negative, high.significand - moved),
        false => (low.is_negative, moved - high.significand),
    };
    Exact { is_negative, significand, exponent: high.exponent }
}

impl Exact {
    /// Of a finite number.
    fn of(x: f64) -> Exact {
        let bits = x.to_bits();
        let (field, fraction) = ((bits >> 52 & 0x7ff) as i32, bits & ((1 << 52) - 1));
        let hidden = if field == 0 { 0 } else { 1 << 52 };
        Exact {
            is_negative: bits >> 63 != 0,
            significand: (fraction | hidden) as u128,
            exponent: LEAST + field.max(1) - 1,
        }
    }

    /// The same number, not 0, with bit 126 as its highest.
    fn normal(self) -> Exact {
        let shift = self.significand.leading_zeros() as i32 - 1;
        let significand = self.significand << shift;
        Exact { significand, exponent: self.exponent - shift, ..self }
    }

    pub fn round(self, mode: Mode) -> f64 {
        let Exact { is_negative, significand, exponent } = self;
        let signed = |magnitude: f64| if is_negative { -magnitude } else { magnitude };
        if significand == 0 {
            return signed(0.0);
        }
        let top = exponent + 127 - significand.leading_zeros() as i32;
        // Exponent of the last bit that is kept.
        let last = (top - 52).max(LEAST);
        let shift = last - exponent;
        let (kept, lost, half) = match shift {
            ..=0 => (significand << -shift, 0, 1),
            1..=127 => {
                let shift = shift as u32;
                (significand >> shift, significand & ((1 << shift) - 1), 1 << (shift - 1))
            }
            _ => (0, 1, 2),
        };
        let up = match mode {
            Mode::Nearest => lost > half || lost == half && kept & 1 != 0,
            Mode::Away => lost >= half,
            Mode::Zero => false,
            Mode::Down => is_negative && lost != 0,
            Mode::Up => !is_negative && lost != 0,
        };
        // A hidden bit in `kept` adds one to the exponent field, and so does a carry.
        let bits = (((last - LEAST) as u64) << 52) + kept as u64 + up as u64;
        let infinity = f64::INFINITY.to_bits();
        let is_clamped = match mode {
            Mode::Nearest | Mode::Away => false,
            Mode::Zero => true,
            Mode::Down => !is_negative,
            Mode::Up => is_negative,
        };
        let most = if is_clamped { infinity - 1 } else { infinity };
        signed(f64::from_bits(if bits >= infinity { most } else { bits }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To nearest it must agree with the processor, and the other directions must lie around that.
    #[test]
    fn agrees_with_the_processor() {
        let mut state = 1u64;
        let mut next = |spread: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let exponent = 1023 - spread / 2 + (state >> 33) % spread;
            f64::from_bits(state << 20 >> 12 ^ (state & 1) << 63 | exponent << 52)
        };
        for spread in [4, 130, 2040] {
            for _ in 0..100_000 {
                let (a, b, c) = (next(spread), next(spread), next(spread));
                let operations: [(f64, &dyn Fn(Mode) -> f64); 5] = [
                    (a + b, &|mode| add(a, b, mode)),
                    (a * b, &|mode| multiply(a, b, mode)),
                    (a.mul_add(b, c), &|mode| multiply_add(a, b, c, mode)),
                    (a / b, &|mode| divide(a, b, mode)),
                    (a.abs().sqrt(), &|mode| sqrt(a.abs(), mode)),
                ];
                for (nearest, f) in operations {
                    assert_eq!(f(Mode::Nearest).to_bits(), nearest.to_bits(), "{a:e} {b:e} {c:e}");
                    let [down, up, zero] = [Mode::Down, Mode::Up, Mode::Zero].map(f);
                    assert!(down == up || down.next_up() == up, "{a:e} {b:e} {c:e}");
                    assert!([down, up].contains(&nearest));
                    assert_eq!(zero, if nearest.is_sign_negative() { up } else { down });
                }
            }
        }
        assert!(add(1.0, -1.0, Mode::Down).is_sign_negative());
        assert!(add(0.0, -0.0, Mode::Up).is_sign_positive());
        assert_eq!(multiply(f64::MAX, 2.0, Mode::Zero), f64::MAX);
        assert_eq!(multiply(f64::MIN_POSITIVE, f64::MIN_POSITIVE, Mode::Up), f64::from_bits(1));
    }
}
