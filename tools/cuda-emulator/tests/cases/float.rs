//! f32 and f64 arithmetic that is rounded as asked.

use super::Case;
use super::build::{Lanes, lanes};
use super::values::{Kind, rows};
use crate::random::Random;
use crate::soft::{F32, F64, Format, MODES, Mode, Value, add, div, mul, negated, sqrt};

const GROUP: &str = "float";

/// An operation on exact numbers; the mode decides the sign of a sum that is zero.
pub type Operation = fn(&[Value], Mode) -> Value;

pub const SUMS_AND_PRODUCTS: [(&str, usize, Operation); 4] = [
    ("add", 2, |v, mode| add(&v[0], &v[1], mode)),
    ("sub", 2, |v, mode| add(&v[0], &negated(&v[1]), mode)),
    ("mul", 2, |v, _| mul(&v[0], &v[1])),
    ("fma", 3, |v, mode| add(&mul(&v[0], &v[1]), &v[2], mode)),
];

const QUOTIENTS_AND_ROOTS: [(&str, usize, Operation); 3] = [
    ("div", 2, |v, _| div(&v[0], &v[1])),
    ("rcp", 1, |v, _| div(&F64.decode(F64.one()), &v[0])),
    ("sqrt", 1, |v, _| sqrt(&v[0])),
];

/// What happens around an operation.
#[derive(Clone, Copy, Default)]
pub struct Modifiers {
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
}

impl Modifiers {
    pub fn text(self) -> String {
        let names = [(self.ftz, ".ftz"), (self.sat, ".sat"), (self.relu, ".relu")];
        names.iter().filter(|(is_there, _)| *is_there).map(|(_, name)| *name).collect()
    }
}

/// The result of an operation on `operands`, rounded. `None` where the manual leaves it open: whether a
/// result that only rounding lifts to the least normal number is flushed; -0 under `.sat` and `.relu`.
pub fn rounded(
    format: Format,
    operation: Operation,
    operands: &[u64],
    mode: Mode,
    modifiers: Modifiers,
) -> Option<u64> {
    let values: Vec<Value> = operands
        .iter()
        .map(|&bits| format.decode(if modifiers.ftz { format.flushed(bits) } else { bits }))
        .collect();
    finished(format, &operation(&values, mode), mode, modifiers)
}

/// `value` rounded, flushed and clamped.
pub fn finished(format: Format, value: &Value, mode: Mode, modifiers: Modifiers) -> Option<u64> {
    let mut bits = format.encode(value, mode);
    if modifiers.ftz {
        let least = 1 << format.fraction;
        let toward_zero = format.encode(value, Mode::Zero);
        if bits & !format.sign() == least && toward_zero != bits {
            return None;
        }
        bits = format.flushed(bits);
    }
    if modifiers.sat {
        if bits == format.sign() {
            return None;
        }
        bits = format.saturated(bits);
    }
    if modifiers.relu && !format.is_nan(bits) && bits & format.sign() != 0 {
        bits = if bits == format.sign() { return None } else { 0 };
    }
    Some(bits)
}

pub fn cases() -> Vec<Case> {
    [sums_and_products(), quotients_and_roots(), extremes(), signs()]
        .into_iter()
        .flatten()
        .collect()
}

/// With operands of three between which nearly nothing is left, or which make ties.
pub fn fused_rows(kind: Kind, format: Format) -> Vec<Vec<u64>> {
    let mut random = Random::new(8);
    let mut rows = rows(&[kind; 3]);
    let operands = rows.clone();
    for row in &operands[300..] {
        let product = mul(&format.decode(row[0]), &format.decode(row[1]));
        let least = 1 + random.below(3) as u64;
        let sign = if random.below(2) == 0 { format.sign() } else { 0 };
        rows.push(vec![row[0], row[1], format.encode(&negated(&product), Mode::Nearest)]);
        rows.push(vec![row[0], row[1], least | sign]);
    }
    // (1 + i / 2^p) (1 + k / 2^q) with i and k odd and p + q one more than the bits of the fraction lies in the
    // middle between two numbers; a third operand tips it.
    let p = format.fraction.div_ceil(2);
    let q = format.fraction + 1 - p;
    for odd in (1..8).step_by(2) {
        let a = format.one() + (odd << (format.fraction - p));
        let b = format.one() + (((odd * 3) % 8) << (format.fraction - q));
        for tip in [0, 1, 1 | format.sign(), 1 << format.fraction] {
            rows.extend([vec![a, b, tip], vec![a | format.sign(), b, tip]]);
        }
    }
    rows
}

fn operation_lanes(format: Format, opcode: String, operands: usize) -> Lanes {
    let list = ["a", "a, b", "a, b, c"][operands - 1];
    let kind = Kind::Float(format);
    let text = format!("{opcode} d, {list};");
    let lanes = lanes(GROUP, opcode, &vec![kind; operands], format.bits, text);
    if operands == 3 { lanes.with_rows(fused_rows(kind, format)) } else { lanes }
}

fn sums_and_products() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, operands, operation) in SUMS_AND_PRODUCTS {
        for (mode_name, mode) in MODES {
            for (ftz, sat) in [(false, false), (true, false), (false, true), (true, true)] {
                let modifiers = Modifiers { ftz, sat, relu: false };
                let opcode = format!("{name}.{mode_name}{}.f32", modifiers.text());
                cases.push(
                    operation_lanes(F32, opcode, operands)
                        .floats(F32, |row| rounded(F32, operation, row, mode, modifiers)),
                );
            }
            let opcode = format!("{name}.{mode_name}.f64");
            cases.push(
                operation_lanes(F64, opcode, operands)
                    .floats(F64, |row| rounded(F64, operation, row, mode, Modifiers::default())),
            );
        }
        if name == "fma" {
            continue;
        }
        for format in [F32, F64] {
            let opcode = format!("{name}.{}", format.name);
            cases.push(operation_lanes(format, opcode, operands).floats(format, |row| {
                rounded(format, operation, row, Mode::Nearest, Modifiers::default())
            }));
        }
    }
    let (_, _, fma) = SUMS_AND_PRODUCTS[3];
    for (format, mode) in [(F32, "rn"), (F32, "rz"), (F64, "rn")] {
        let rounding = if mode == "rn" { Mode::Nearest } else { Mode::Zero };
        let opcode = format!("mad.{mode}.{}", format.name);
        cases.push(
            operation_lanes(format, opcode, 3)
                .floats(format, |row| rounded(format, fma, row, rounding, Modifiers::default())),
        );
    }
    cases
}

fn quotients_and_roots() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, operands, operation) in QUOTIENTS_AND_ROOTS {
        for (mode_name, mode) in MODES {
            for (format, ftz) in [(F32, false), (F32, true), (F64, false)] {
                let modifiers = Modifiers { ftz, ..Modifiers::default() };
                let opcode = format!("{name}.{mode_name}{}.{}", modifiers.text(), format.name);
                cases.push(
                    operation_lanes(format, opcode, operands)
                        .floats(format, |row| rounded(format, operation, row, mode, modifiers)),
                );
            }
        }
    }
    cases
}

/// The smaller or the larger of two; -0 is smaller than +0. With `.NaN` a NaN wins, else it loses.
pub fn extreme(format: Format, a: u64, b: u64, is_min: bool, nan_wins: bool) -> u64 {
    match (format.is_nan(a), format.is_nan(b)) {
        (true, true) => return format.nan(),
        (true, false) => return if nan_wins { format.nan() } else { b },
        (false, true) => return if nan_wins { format.nan() } else { a },
        (false, false) => {}
    }
    // Ordered as integers: the sign, then the magnitude, reversed below zero.
    let order = |bits: u64| match bits & format.sign() {
        0 => bits as i128,
        _ => -1 - (bits & !format.sign()) as i128,
    };
    if (order(a) < order(b)) == is_min { a } else { b }
}

fn extremes() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, is_min) in [("min", true), ("max", false)] {
        for (format, ftz, nan) in [
            (F32, false, false),
            (F32, true, false),
            (F32, false, true),
            (F32, true, true),
            (F64, false, false),
        ] {
            let modifiers =
                format!("{}{}", if ftz { ".ftz" } else { "" }, if nan { ".NaN" } else { "" });
            let opcode = format!("{name}{modifiers}.{}", format.name);
            cases.push(operation_lanes(format, opcode, 2).floats(format, |row| {
                let [a, b] =
                    [0, 1].map(|i: usize| if ftz { format.flushed(row[i]) } else { row[i] });
                Some(extreme(format, a, b, is_min, nan))
            }));
        }
    }
    // Of magnitudes, with the product of the signs.
    for (name, is_min) in [("min", true), ("max", false)] {
        for nan in [false, true] {
            let opcode = format!("{name}{}.xorsign.abs.f32", if nan { ".NaN" } else { "" });
            cases.push(operation_lanes(F32, opcode, 2).on("sm_90").floats(F32, |row| {
                let sign = (row[0] ^ row[1]) & F32.sign();
                let [a, b] = [0, 1].map(|i: usize| row[i] & !F32.sign());
                let size = extreme(F32, a, b, is_min, nan);
                Some(if F32.is_nan(size) { size } else { size | sign })
            }));
        }
    }
    cases
}

fn signs() -> Vec<Case> {
    let mut cases = Vec::new();
    for (format, ftz) in [(F32, false), (F32, true), (F64, false)] {
        let flush = move |bits: u64| if ftz { format.flushed(bits) } else { bits };
        let flush_name = if ftz { ".ftz" } else { "" };
        let opcode = format!("abs{flush_name}.{}", format.name);
        cases.push(
            operation_lanes(format, opcode, 1)
                .floats(format, |row| Some(flush(row[0]) & !format.sign())),
        );
        let opcode = format!("neg{flush_name}.{}", format.name);
        cases.push(
            operation_lanes(format, opcode, 1)
                .floats(format, |row| Some(flush(row[0]) ^ format.sign())),
        );
    }
    cases
}
