//! Instructions that may be a little wrong: by how much, the manual says.

use super::Case;
use super::build::lanes;
use super::values::{Kind, floats, rows};
use crate::random::Random;
use crate::soft::{BF16, F16, F32, F64, Format, Mode};

const GROUP: &str = "approximate";

/// How far off a result may be.
#[derive(Clone, Copy)]
enum Bound {
    /// Units in the last place of the result rounded to nearest.
    Ulps(f64),
    /// Relative to the exact result; the last place of a subnormal at least.
    Relative(f64),
    Absolute(f64),
}

/// A function of one operand: where the result is open, `None`.
struct Function {
    opcode: &'static str,
    ftz: bool,
    format: Format,
    exact: fn(f64) -> f64,
    bound: fn(f64) -> Option<Bound>,
    /// Random operands lie between these.
    range: (f64, f64),
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (opcode, exact, bound, range) in functions() {
        for ftz in [false, true] {
            cases.push(unary(Function { opcode, ftz, format: F32, exact, bound, range }));
        }
    }
    let tanh = Function {
        opcode: "tanh",
        ftz: false,
        format: F32,
        exact: f64::tanh,
        bound: |_| Some(Bound::Relative(2f64.powf(-11.0))),
        range: (-10.0, 10.0),
    };
    cases.push(unary(tanh));
    cases.push(unary(Function {
        opcode: "rsqrt",
        ftz: false,
        format: F64,
        exact: |x| 1.0 / x.sqrt(),
        // Without a bound in the manual; of f64 it should be one.
        bound: |_| Some(Bound::Relative(2f64.powf(-50.0))),
        range: (0.0, 100.0),
    }));
    cases.extend(divisions());
    cases.extend(upper_halves());
    cases.extend(halves());
    cases
}

type Exact = fn(f64) -> f64;
type BoundOf = fn(f64) -> Option<Bound>;

fn functions() -> [(&'static str, Exact, BoundOf, (f64, f64)); 7] {
    let trigonometric: BoundOf = |x| {
        let turns = x.abs() / std::f64::consts::PI;
        let power = if turns <= 2.0 { -20.5 } else { -14.7 };
        (turns <= 100.0 || !x.is_finite()).then(|| Bound::Absolute(2f64.powf(power)))
    };
    [
        ("rcp", |x| 1.0 / x, |_| Some(Bound::Ulps(1.0)), (-8.0, 8.0)),
        ("sqrt", f64::sqrt, |_| Some(Bound::Relative(2f64.powf(-23.0))), (0.0, 100.0)),
        ("rsqrt", |x| 1.0 / x.sqrt(), |_| Some(Bound::Relative(2f64.powf(-22.9))), (0.0, 100.0)),
        ("sin", f64::sin, trigonometric, (-300.0, 300.0)),
        ("cos", f64::cos, trigonometric, (-7.0, 7.0)),
        ("ex2", f64::exp2, |_| Some(Bound::Ulps(2.0)), (-151.0, 130.0)),
        (
            "lg2",
            f64::log2,
            |x| {
                let power = 2f64.powf(-22.0);
                Some(if x > 0.5 && x < 2.0 {
                    Bound::Absolute(power)
                } else {
                    Bound::Relative(power)
                })
            },
            (0.0, 4.0),
        ),
    ]
}

fn unary(function: Function) -> Case {
    let Function { opcode, ftz, format, exact, bound, range } = function;
    let flush = if ftz { ".ftz" } else { "" };
    let opcode = format!("{opcode}.approx{flush}.{}", format.name);
    let text = format!("{opcode} d, a;");
    let kind = Kind::Float(format);
    let mut random = Random::new(4);
    let mut rows = rows(&[kind]);
    for _ in 0..200 {
        let x = range.0 + (range.1 - range.0) * (random.next() >> 11) as f64 / (1u64 << 53) as f64;
        rows.push(vec![format.encode(&F64.decode(x.to_bits()), Mode::Nearest)]);
    }
    lanes(GROUP, opcode, &[kind], format.bits, text).with_rows(rows).near(format, |row| {
        let x = format.to_f64(if ftz { format.flushed(row[0]) } else { row[0] });
        near(format, exact(x), bound(x)?, ftz)
    })
}

/// The exact result and how far off it may be; `None` where that decides between zero or infinity and a
/// number.
fn near(format: Format, exact: f64, bound: Bound, ftz: bool) -> Option<(f64, f64)> {
    if exact.is_nan() || exact.is_infinite() || exact == 0.0 {
        return Some((exact, 0.0));
    }
    let ulp = format.ulp(exact);
    let bound = match bound {
        Bound::Ulps(ulps) => (ulps + 0.5) * ulp,
        Bound::Relative(relative) => (exact.abs() * relative).max(0.5 * format.ulp(0.0)),
        Bound::Absolute(absolute) => absolute,
    };
    let largest = format.to_f64(format.infinity() - 1);
    let least = format.to_f64(1 << format.fraction);
    let size = exact.abs();
    if size + bound >= largest {
        return (size - bound > largest).then_some((f64::INFINITY.copysign(exact), 0.0));
    }
    if ftz && size - bound < least {
        return (size + bound < least).then_some((0.0, 0.0));
    }
    Some((exact, bound))
}

fn divisions() -> Vec<Case> {
    let mut cases = Vec::new();
    for mode in ["approx", "full"] {
        for ftz in [false, true] {
            let flush = if ftz { ".ftz" } else { "" };
            let opcode = format!("div.{mode}{flush}.f32");
            let text = format!("{opcode} d, a, b;");
            cases.push(lanes(GROUP, opcode, &[Kind::Float(F32); 2], 32, text).near(F32, |row| {
                let [a, b] = [0, 1]
                    .map(|i: usize| F32.to_f64(if ftz { F32.flushed(row[i]) } else { row[i] }));
                let size = b.abs();
                if mode == "approx" && b.is_finite() && !a.is_nan() {
                    if size > 2f64.powi(126) {
                        return Some((if a.is_infinite() { f64::NAN } else { 0.0 }, 0.0));
                    }
                    if size < 2f64.powi(-126) && size > 0.0 {
                        return None;
                    }
                }
                near(F32, a / b, Bound::Ulps(2.0), ftz)
            }));
        }
    }
    cases
}

/// Of the upper half of an f64 into the upper half of an f64; the lower is zero. The manual says "gross" and
/// gives no bound; the 20 bits of the fraction ask for this one.
fn upper_halves() -> Vec<Case> {
    let functions: [(&str, Exact); 2] = [("rcp", |x| 1.0 / x), ("rsqrt", |x| 1.0 / x.sqrt())];
    let case = |(name, exact): (&str, Exact)| {
        let opcode = format!("{name}.approx.ftz.f64");
        let text = format!("{opcode} d, a;");
        lanes(GROUP, opcode, &[Kind::Float(F64)], 64, text).near(F64, |row| {
            let upper = row[0] & 0xFFFF_FFFF_0000_0000;
            let x = F64.to_f64(if F64.is_nan(row[0]) { F64.nan() } else { F64.flushed(upper) });
            near(F64, exact(x), Bound::Relative(2f64.powi(-19)), true)
        })
    };
    functions.into_iter().map(case).collect()
}

fn halves() -> Vec<Case> {
    let functions: [(&str, &str, Format, Exact, Bound); 4] = [
        ("ex2.approx", "sm_80", F16, f64::exp2, Bound::Relative(2f64.powf(-9.9))),
        ("tanh.approx", "sm_80", F16, f64::tanh, Bound::Absolute(2f64.powf(-10.987))),
        ("ex2.approx.ftz", "sm_90", BF16, f64::exp2, Bound::Relative(2f64.powi(-7))),
        ("tanh.approx", "sm_90", BF16, f64::tanh, Bound::Relative(2f64.powi(-8))),
    ];
    let mut cases = Vec::new();
    for (name, target, format, exact, bound) in functions {
        let ftz = name.ends_with("ftz");
        let result = |bits: u64| {
            let x = format.to_f64(if ftz { format.flushed(bits) } else { bits });
            near(format, exact(x), bound, ftz)
        };
        let opcode = format!("{name}.{}", format.name);
        let text = format!("{opcode} d, a;");
        cases.push(
            lanes(GROUP, opcode, &[Kind::Float(format)], 16, text)
                .on(target)
                .near(format, |row| result(row[0])),
        );
        // Of a pair, the halves one after the other.
        for (half, shift) in [("low", 0), ("high", 16)] {
            let opcode = format!("{name}.{}x2", format.name);
            let text = format!(
                "{{ .reg .b32 x; {opcode} x, a; shr.u32 x, x, {shift}; cvt.u16.u32 d, x; }}"
            );
            let values = floats(format);
            let pairs =
                (0..values.len()).map(|i| vec![values[i] << 16 | values[values.len() - 1 - i]]);
            cases.push(
                lanes(GROUP, format!("{opcode} {half}"), &[Kind::Pair(format)], 16, text)
                    .on(target)
                    .with_rows(pairs.chain(rows(&[Kind::Pair(format)])).collect())
                    .near(format, |row| result(row[0] >> shift & 0xFFFF)),
            );
        }
    }
    cases
}
