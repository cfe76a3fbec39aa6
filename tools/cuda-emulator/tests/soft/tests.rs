//! The judge judged: against the machine, and against itself.

use super::*;
use crate::random::Random;

/// Against the machine's own arithmetic, which rounds to nearest.
#[test]
fn agrees_with_the_machine() {
    let mut random = Random::new(5);
    let near = Mode::Nearest;
    for i in 0..200_000 {
        // Exponents near to one another, so that sums cancel and round.
        let mut next32 = || {
            let bits = random.next() as u32;
            if i % 3 == 0 { bits } else { bits & 0x807F_FFFF | (bits >> 8 & 31) << 23 }
        };
        let [a, b, c] = [next32(), next32(), next32()];
        let [x, y, z] = [a, b, c].map(f32::from_bits);
        let [u, v, w] = [a, b, c].map(|bits| F32.decode(bits.into()));
        let check = |name: &str, got: &Value, expected: f32| {
            let got = f32::from_bits(F32.encode(got, near) as u32);
            let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
            assert!(same, "{name} {x:e} {y:e} {z:e}: {got:e}, expected {expected:e}");
        };
        check("add", &add(&u, &v, near), x + y);
        check("mul", &mul(&u, &v), x * y);
        check("fma", &add(&mul(&u, &v), &w, near), x.mul_add(y, z));
        check("div", &div(&u, &v), x / y);
        check("sqrt", &sqrt(&u), x.sqrt());
        let mut next64 = || {
            let bits = random.next();
            if i % 3 == 0 { bits } else { bits & 0x800F_FFFF_FFFF_FFFF | (bits >> 8 & 31) << 52 }
        };
        let [a, b, c] = [next64(), next64(), next64()];
        let [x, y, z] = [a, b, c].map(f64::from_bits);
        let [u, v, w] = [a, b, c].map(|bits| F64.decode(bits));
        let check = |name: &str, got: &Value, expected: f64| {
            let got = f64::from_bits(F64.encode(got, near));
            let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
            assert!(same, "{name} {x:e} {y:e} {z:e}: {got:e}, expected {expected:e}");
        };
        check("add", &add(&u, &v, near), x + y);
        check("mul", &mul(&u, &v), x * y);
        check("fma", &add(&mul(&u, &v), &w, near), x.mul_add(y, z));
        check("div", &div(&u, &v), x / y);
        check("sqrt", &sqrt(&u), x.sqrt());
        let narrowed = F32.encode(&u, near) as u32;
        assert!(narrowed == (x as f32).to_bits() || x.is_nan());
    }
}

/// Directed rounding brackets the exact value, and one of the two is the nearest.
#[test]
fn directed_rounding_brackets() {
    let mut random = Random::new(6);
    for _ in 0..20_000 {
        let exact = F64.decode(random.next());
        for format in [F16, BF16, F32] {
            let [near, zero, down, up] =
                MODES.map(|(_, mode)| format.to_f64(format.encode(&exact, mode)));
            let x = f64::from_bits(F64.encode(&exact, Mode::Nearest));
            if x.is_nan() {
                continue;
            }
            assert!(down <= x && x <= up && (near == down || near == up));
            assert_eq!(zero, if x < 0.0 { up } else { down });
            assert!(near.is_infinite() || (near - x).abs() <= (up - x).min(x - down));
        }
    }
}
