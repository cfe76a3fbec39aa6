//! f16 and bf16, alone and in pairs.

use super::Case;
use super::build::{Lanes, lanes};
use super::compare::FLOAT_COMPARISONS;
use super::float::{Modifiers, Operation, SUMS_AND_PRODUCTS, extreme, fused_rows, rounded};
use super::values::Kind;
use crate::soft::{BF16, F16, Format, Mode};

const GROUP: &str = "half";

pub fn cases() -> Vec<Case> {
    [arithmetic(), extremes(), signs(), comparisons()].into_iter().flatten().collect()
}

/// A case for one number and a case for a pair.
fn alone_and_paired(
    opcode: &str,
    format: Format,
    operands: usize,
    target: &'static str,
    expected: impl Fn(&[u64]) -> Option<u64>,
) -> [Case; 2] {
    let list = ["a", "a, b", "a, b, c"][operands - 1];
    let make = |kind: Kind, suffix: &str| -> Lanes {
        let opcode = format!("{opcode}.{}{suffix}", format.name);
        let text = format!("{opcode} d, {list};");
        let lanes = lanes(GROUP, opcode, &vec![kind; operands], kind.width(), text).on(target);
        if operands == 3 { lanes.with_rows(triples(kind, format)) } else { lanes }
    };
    [
        make(Kind::Float(format), "").floats(format, &expected),
        make(Kind::Pair(format), "x2").floats(format, |row| {
            let half = |shift: u32| {
                let row: Vec<u64> = row.iter().map(|bits| bits >> shift & 0xFFFF).collect();
                expected(&row)
            };
            Some(half(16)? << 16 | half(0)?)
        }),
    ]
}

/// Operands of a fused product and sum; of pairs, one in each half.
fn triples(kind: Kind, format: Format) -> Vec<Vec<u64>> {
    let mut rows = fused_rows(Kind::Float(format), format);
    if format == BF16 {
        // 7 · 37 = 259 lies between 258 and 260; so small a third operand is lost in an f64.
        let [seven, thirty_seven] = [0x40E0, 0x4214];
        for tip in [0x0001, 0x8001, 0x0D00, 0x8D00] {
            rows.push(vec![seven, thirty_seven, tip]);
            rows.push(vec![seven | 0x8000, thirty_seven, tip]);
        }
    }
    match kind {
        Kind::Pair(_) => {
            let count = rows.len();
            let join = |i: usize, j: usize| {
                (0..3).map(|operand| rows[i][operand] << 16 | rows[j][operand]).collect()
            };
            (0..count).map(|i| join(i, (i * 7 + 5) % count)).collect()
        }
        _ => rows,
    }
}

fn arithmetic() -> Vec<Case> {
    let none = Modifiers::default();
    let ftz = Modifiers { ftz: true, ..none };
    let sat = Modifiers { sat: true, ..none };
    let relu = Modifiers { relu: true, ..none };
    let mut cases = Vec::new();
    let mut push =
        |name: &str, operands, operation: Operation, format, target, modifiers: Modifiers| {
            let opcode = format!("{name}{}", modifiers.text());
            cases.extend(alone_and_paired(&opcode, format, operands, target, |row| {
                rounded(format, operation, row, Mode::Nearest, modifiers)
            }));
        };
    for (name, operands, operation) in SUMS_AND_PRODUCTS {
        if name == "fma" {
            for modifiers in [
                none,
                ftz,
                sat,
                Modifiers { ftz: true, ..sat },
                relu,
                Modifiers { ftz: true, ..relu },
            ] {
                push("fma.rn", operands, operation, F16, "sm_80", modifiers);
            }
            for modifiers in [none, relu] {
                push("fma.rn", operands, operation, BF16, "sm_80", modifiers);
            }
            continue;
        }
        for modifiers in [none, ftz, sat, Modifiers { ftz: true, ..sat }] {
            push(name, operands, operation, F16, "sm_80", modifiers);
        }
        push(&format!("{name}.rn"), operands, operation, F16, "sm_80", none);
        push(name, operands, operation, BF16, "sm_90", none);
        push(&format!("{name}.rn"), operands, operation, BF16, "sm_90", none);
    }
    cases
}

fn extremes() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, is_min) in [("min", true), ("max", false)] {
        for (format, ftz, nan) in [
            (F16, false, false),
            (F16, true, false),
            (F16, false, true),
            (F16, true, true),
            (BF16, false, false),
            (BF16, false, true),
        ] {
            let modifiers =
                format!("{}{}", if ftz { ".ftz" } else { "" }, if nan { ".NaN" } else { "" });
            let opcode = format!("{name}{modifiers}");
            cases.extend(alone_and_paired(&opcode, format, 2, "sm_80", |row| {
                let [a, b] =
                    [0, 1].map(|i: usize| if ftz { format.flushed(row[i]) } else { row[i] });
                Some(extreme(format, a, b, is_min, nan))
            }));
        }
    }
    cases
}

fn signs() -> Vec<Case> {
    let mut cases = Vec::new();
    for (format, ftz) in [(F16, false), (F16, true), (BF16, false)] {
        let flush = move |bits: u64| if ftz { format.flushed(bits) } else { bits };
        let name = if ftz { ".ftz" } else { "" };
        cases.extend(alone_and_paired(&format!("abs{name}"), format, 1, "sm_80", |row| {
            Some(flush(row[0]) & !format.sign())
        }));
        cases.extend(alone_and_paired(&format!("neg{name}"), format, 1, "sm_80", |row| {
            Some(flush(row[0]) ^ format.sign())
        }));
    }
    cases
}

/// Of a pair: p of the low halves, q of the high ones.
fn comparisons() -> Vec<Case> {
    let mut cases = Vec::new();
    for (format, target, ftz) in
        [(F16, "sm_80", false), (F16, "sm_80", true), (BF16, "sm_90", false)]
    {
        for (comparison, f) in FLOAT_COMPARISONS {
            let flush = if ftz { ".ftz" } else { "" };
            let number = |bits: u64| format.to_f64(if ftz { format.flushed(bits) } else { bits });
            let opcode = format!("setp.{comparison}{flush}.{}", format.name);
            let text = format!("{{ .reg .pred p; {opcode} p, a, b; selp.b32 d, 1, 0, p; }}");
            cases.push(
                lanes(GROUP, opcode, &[Kind::Float(format); 2], 32, text)
                    .on(target)
                    .bits(|row| Some(f(number(row[0]), number(row[1])).into())),
            );
            let opcode = format!("setp.{comparison}{flush}.{}x2", format.name);
            let text = format!(
                "{{ .reg .pred p, q; .reg .b32 x;
      {opcode} p|q, a, b;
      selp.b32 d, 1, 0, p;
      selp.b32 x, 2, 0, q;
      or.b32 d, d, x; }}"
            );
            cases.push(lanes(GROUP, opcode, &[Kind::Pair(format); 2], 32, text).on(target).bits(
                |row| {
                    let half = |shift: u32| {
                        f(number(row[0] >> shift & 0xFFFF), number(row[1] >> shift & 0xFFFF))
                    };
                    Some(u64::from(half(0)) | u64::from(half(16)) << 1)
                },
            ));
        }
    }
    cases
}
