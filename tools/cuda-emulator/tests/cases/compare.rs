//! Comparison and selection.

use super::Case;
use super::build::lanes;
use super::integer::TYPES;
use super::values::{Kind, mask, value};
use crate::soft::{F32, F64, Format};

const GROUP: &str = "compare";

type Order = fn(&i128, &i128) -> bool;
type FloatOrder = fn(f64, f64) -> bool;

pub fn cases() -> Vec<Case> {
    [integers(), floats(), combined(), set(), selections(), properties()]
        .into_iter()
        .flatten()
        .collect()
}

/// `text` sets predicate p; the result is 1 where it is true.
fn predicate(name: impl Into<String>, operands: &[Kind], text: &str) -> super::build::Lanes {
    let text = format!("{{ .reg .pred p; {text} selp.b32 d, 1, 0, p; }}");
    lanes(GROUP, name, operands, 32, text)
}

fn integers() -> Vec<Case> {
    let comparisons: [(&str, Order); 6] = [
        ("eq", i128::eq),
        ("ne", i128::ne),
        ("lt", i128::lt),
        ("le", i128::le),
        ("gt", i128::gt),
        ("ge", i128::ge),
    ];
    let unsigned: [(&str, Order); 4] =
        [("lo", i128::lt), ("ls", i128::le), ("hi", i128::gt), ("hs", i128::ge)];
    let mut cases = Vec::new();
    let mut push = |opcode: String, width: u32, is_signed: bool, f: Order| {
        let operands = [Kind::Integer(width); 2];
        let text = format!("{opcode} p, a, b;");
        cases.push(predicate(opcode, &operands, &text).bits(|row| {
            Some(f(&value(row[0], width, is_signed), &value(row[1], width, is_signed)).into())
        }));
    };
    for (name, width, is_signed) in TYPES {
        for (comparison, f) in comparisons {
            push(format!("setp.{comparison}.{name}"), width, is_signed, f);
        }
        if !is_signed {
            for (comparison, f) in unsigned {
                push(format!("setp.{comparison}.{name}"), width, false, f);
            }
        }
    }
    for width in [16, 32, 64] {
        for (comparison, f) in &comparisons[..2] {
            push(format!("setp.{comparison}.b{width}"), width, false, *f);
        }
    }
    cases
}

/// Ordered comparisons are false with a NaN, unordered ones true.
pub const FLOAT_COMPARISONS: [(&str, FloatOrder); 14] = [
    ("eq", |a, b| a == b),
    ("ne", |a, b| a != b && !a.is_nan() && !b.is_nan()),
    ("lt", |a, b| a < b),
    ("le", |a, b| a <= b),
    ("gt", |a, b| a > b),
    ("ge", |a, b| a >= b),
    ("equ", |a, b| a == b || a.is_nan() || b.is_nan()),
    ("neu", |a, b| a != b),
    ("ltu", |a, b| a < b || a.is_nan() || b.is_nan()),
    ("leu", |a, b| a <= b || a.is_nan() || b.is_nan()),
    ("gtu", |a, b| a > b || a.is_nan() || b.is_nan()),
    ("geu", |a, b| a >= b || a.is_nan() || b.is_nan()),
    ("num", |a, b| !a.is_nan() && !b.is_nan()),
    ("nan", |a, b| a.is_nan() || b.is_nan()),
];

fn floats() -> Vec<Case> {
    let mut cases = Vec::new();
    for (format, is_flushed) in [(F32, false), (F32, true), (F64, false)] {
        for (comparison, f) in FLOAT_COMPARISONS {
            let flush = if is_flushed { ".ftz" } else { "" };
            let opcode = format!("setp.{comparison}{flush}.{}", format.name);
            let text = format!("{opcode} p, a, b;");
            let operands = [Kind::Float(format); 2];
            cases.push(predicate(opcode, &operands, &text).bits(|row| {
                let [a, b] = [0, 1].map(|i: usize| number(format, row[i], is_flushed));
                Some(f(a, b).into())
            }));
        }
    }
    cases
}

fn number(format: Format, bits: u64, is_flushed: bool) -> f64 {
    format.to_f64(if is_flushed { format.flushed(bits) } else { bits })
}

type Combination = (&'static str, fn(bool, bool) -> bool);
const COMBINATIONS: [Combination; 3] =
    [("and", |t, c| t && c), ("or", |t, c| t || c), ("xor", |t, c| t != c)];

/// Two results, combined with a third predicate: bit 0 is p, bit 1 is q.
fn combined() -> Vec<Case> {
    let mut cases = Vec::new();
    let operands = [Kind::Integer(32), Kind::Integer(32), Kind::Bool];
    for (combination, f) in COMBINATIONS {
        for negation in ["", "!"] {
            let name = format!("setp.lt.{combination}.s32 {negation}c");
            let text = format!(
                "{{ .reg .pred p, q, r; .reg .b32 x;
      setp.ne.b32 r, c, 0;
      setp.lt.{combination}.s32 p|q, a, b, {negation}r;
      selp.b32 d, 1, 0, p;
      selp.b32 x, 2, 0, q;
      or.b32 d, d, x; }}"
            );
            cases.push(lanes(GROUP, name, &operands, 32, text).bits(|row| {
                let t = value(row[0], 32, true) < value(row[1], 32, true);
                let c = (row[2] != 0) != (negation == "!");
                Some(u64::from(f(t, c)) | u64::from(f(!t, c)) << 1)
            }));
        }
    }
    let text = "{ .reg .pred p, q; .reg .b32 x;
      setp.geu.f32 p|q, a, b;
      selp.b32 d, 1, 0, p;
      selp.b32 x, 2, 0, q;
      or.b32 d, d, x; }";
    cases.push(lanes(GROUP, "setp p|q", &[Kind::Float(F32); 2], 32, text).bits(|row| {
        let [a, b] = [0, 1].map(|i: usize| F32.to_f64(row[i]));
        Some(if a >= b || a.is_nan() || b.is_nan() { 1 } else { 2 })
    }));
    let text = "{ .reg .pred q; setp.lt.u32 _|q, a, b; selp.b32 d, 1, 0, q; }";
    cases.push(
        lanes(GROUP, "setp _|q", &[Kind::Integer(32); 2], 32, text)
            .bits(|row| Some((row[0] >= row[1]).into())),
    );
    cases
}

/// All ones, or 1.0, where the comparison holds.
fn set() -> Vec<Case> {
    let mut cases = Vec::new();
    for (result, truth) in [("u32", mask(32)), ("s32", mask(32)), ("f32", F32.one())] {
        let opcode = format!("set.gt.{result}.s32");
        let text = format!("{opcode} d, a, b;");
        cases.push(lanes(GROUP, opcode, &[Kind::Integer(32); 2], 32, text).bits(|row| {
            let holds = value(row[0], 32, true) > value(row[1], 32, true);
            Some(if holds { truth } else { 0 })
        }));
        for (comparison, f) in [FLOAT_COMPARISONS[3], FLOAT_COMPARISONS[7]] {
            for (flush, is_flushed) in [("", false), (".ftz", true)] {
                let opcode = format!("set.{comparison}{flush}.{result}.f32");
                let text = format!("{opcode} d, a, b;");
                cases.push(lanes(GROUP, opcode, &[Kind::Float(F32); 2], 32, text).bits(|row| {
                    let [a, b] = [0, 1].map(|i: usize| number(F32, row[i], is_flushed));
                    Some(if f(a, b) { truth } else { 0 })
                }));
            }
        }
        let opcode = format!("set.eq.{result}.f64");
        let text = format!("{opcode} d, a, b;");
        cases
            .push(lanes(GROUP, opcode, &[Kind::Float(F64); 2], 32, text).bits(|row| {
                Some(if F64.to_f64(row[0]) == F64.to_f64(row[1]) { truth } else { 0 })
            }));
        let opcode = format!("set.ne.{result}.b64");
        let text = format!("{opcode} d, a, b;");
        cases.push(
            lanes(GROUP, opcode, &[Kind::Integer(64); 2], 32, text)
                .bits(|row| Some(if row[0] != row[1] { truth } else { 0 })),
        );
    }
    for (combination, f) in COMBINATIONS {
        let opcode = format!("set.hs.{combination}.u32.u32");
        let text = format!("{{ .reg .pred r; setp.ne.b32 r, c, 0; {opcode} d, a, b, r; }}");
        let operands = [Kind::Integer(32), Kind::Integer(32), Kind::Bool];
        cases.push(
            lanes(GROUP, opcode, &operands, 32, text)
                .bits(|row| Some(if f(row[0] >= row[1], row[2] != 0) { mask(32) } else { 0 })),
        );
    }
    cases
}

fn selections() -> Vec<Case> {
    let mut cases = Vec::new();
    for (r#type, width) in [
        ("b16", 16),
        ("u16", 16),
        ("s16", 16),
        ("b32", 32),
        ("u32", 32),
        ("s32", 32),
        ("f32", 32),
        ("b64", 64),
        ("u64", 64),
        ("s64", 64),
        ("f64", 64),
    ] {
        let one = Kind::Integer(width);
        let opcode = format!("selp.{type}");
        let text = format!("{{ .reg .pred p; setp.ne.b32 p, c, 0; {opcode} d, a, b, p; }}");
        cases.push(
            lanes(GROUP, opcode, &[one, one, Kind::Bool], width, text)
                .bits(|row| Some(if row[2] != 0 { row[0] } else { row[1] })),
        );
        if width == 16 {
            continue;
        }
        let opcode = format!("slct.{type}.s32");
        let text = format!("{opcode} d, a, b, c;");
        cases.push(
            lanes(GROUP, opcode, &[one, one, Kind::Integer(32)], width, text)
                .bits(|row| Some(if value(row[2], 32, true) >= 0 { row[0] } else { row[1] })),
        );
        for (flush, is_flushed) in [("", false), (".ftz", true)] {
            let opcode = format!("slct{flush}.{type}.f32");
            let text = format!("{opcode} d, a, b, c;");
            cases.push(lanes(GROUP, opcode, &[one, one, Kind::Float(F32)], width, text).bits(
                |row| Some(if number(F32, row[2], is_flushed) >= 0.0 { row[0] } else { row[1] }),
            ));
        }
    }
    cases
}

fn properties() -> Vec<Case> {
    let mut cases = Vec::new();
    for format in [F32, F64] {
        let operands = [Kind::Float(format)];
        let is_zero = |bits: u64| bits & !format.sign() == 0;
        let is_infinite = |bits: u64| bits & !format.sign() == format.infinity();
        let finite = |bits: u64| !format.is_nan(bits) && !is_infinite(bits);
        let properties: [(&str, &dyn Fn(u64) -> bool); 6] = [
            ("finite", &finite),
            ("infinite", &is_infinite),
            ("number", &|bits| !format.is_nan(bits)),
            ("notanumber", &|bits| format.is_nan(bits)),
            ("normal", &|bits| finite(bits) && !format.is_subnormal(bits) || is_zero(bits)),
            ("subnormal", &|bits| format.is_subnormal(bits)),
        ];
        for (property, f) in properties {
            let opcode = format!("testp.{property}.{}", format.name);
            let text = format!("{opcode} p, a;");
            cases.push(predicate(opcode, &operands, &text).bits(|row| Some(f(row[0]).into())));
        }
        let opcode = format!("copysign.{}", format.name);
        let text = format!("{opcode} d, a, b;");
        let operands = [Kind::Float(format); 2];
        cases.push(
            lanes(GROUP, opcode, &operands, format.bits, text)
                .bits(|row| Some(row[0] & format.sign() | row[1] & !format.sign())),
        );
    }
    cases
}
