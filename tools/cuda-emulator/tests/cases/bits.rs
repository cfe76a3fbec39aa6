//! Logic, shifts and bit fields.

use super::Case;
use super::build::lanes;
use super::values::{Kind, mask, signed, value};
use crate::random::Random;

const GROUP: &str = "bits";
const WORD: Kind = Kind::Integer(32);

type Binary = fn(u64, u64) -> u64;
type Logic = fn(bool, bool) -> bool;

pub fn cases() -> Vec<Case> {
    [logic(), shifts(), counts(), fields(), permutes(), lop3(), masks(), predicates()]
        .into_iter()
        .flatten()
        .collect()
}

fn logic() -> Vec<Case> {
    let mut cases = Vec::new();
    for width in [16, 32, 64] {
        let one = Kind::Integer(width);
        let functions: [(&str, Binary); 3] =
            [("and", |a, b| a & b), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)];
        for (name, f) in functions {
            let opcode = format!("{name}.b{width}");
            let text = format!("{opcode} d, a, b;");
            cases.push(
                lanes(GROUP, opcode, &[one; 2], width, text).bits(|row| Some(f(row[0], row[1]))),
            );
        }
        let opcode = format!("not.b{width}");
        let text = format!("{opcode} d, a;");
        cases.push(
            lanes(GROUP, opcode, &[one], width, text).bits(|row| Some(!row[0] & mask(width))),
        );
        let opcode = format!("cnot.b{width}");
        let text = format!("{opcode} d, a;");
        cases
            .push(lanes(GROUP, opcode, &[one], width, text).bits(|row| Some((row[0] == 0).into())));
    }
    cases
}

/// Amounts beyond the width shift everything out; they do not wrap.
fn shifts() -> Vec<Case> {
    let mut cases = Vec::new();
    for width in [16, 32, 64] {
        let operands = [Kind::Integer(width), Kind::Amount];
        let opcode = format!("shl.b{width}");
        let text = format!("{opcode} d, a, b;");
        cases.push(lanes(GROUP, opcode, &operands, width, text).bits(|row| {
            Some(if row[1] >= width.into() { 0 } else { row[0] << row[1] & mask(width) })
        }));
        for letter in ["b", "u", "s"] {
            let opcode = format!("shr.{letter}{width}");
            let text = format!("{opcode} d, a, b;");
            cases.push(lanes(GROUP, opcode, &operands, width, text).bits(|row| {
                let amount = row[1].min(width.into()) as u32;
                Some((value(row[0], width, letter == "s") >> amount) as u64 & mask(width))
            }));
        }
    }
    for (mode, is_clamped) in [("clamp", true), ("wrap", false)] {
        let amount = move |c: u64| if is_clamped { c.min(32) } else { c & 31 } as u32;
        let joined = |row: &[u64]| u128::from(row[1] << 32 | row[0]);
        let operands = [WORD, WORD, Kind::Amount];
        let opcode = format!("shf.l.{mode}.b32");
        let text = format!("{opcode} d, a, b, c;");
        cases.push(
            lanes(GROUP, opcode, &operands, 32, text)
                .bits(|row| Some((joined(row) << amount(row[2]) >> 32) as u64 & mask(32))),
        );
        let opcode = format!("shf.r.{mode}.b32");
        let text = format!("{opcode} d, a, b, c;");
        cases.push(
            lanes(GROUP, opcode, &operands, 32, text)
                .bits(|row| Some((joined(row) >> amount(row[2])) as u64 & mask(32))),
        );
    }
    cases
}

fn counts() -> Vec<Case> {
    let mut cases = Vec::new();
    for width in [32u32, 64] {
        let one = Kind::Integer(width);
        let case = |opcode: String, result: u32| {
            let text = format!("{opcode} d, a;");
            lanes(GROUP, opcode, &[one], result, text)
        };
        let ones = |bits: u64| (0..width).filter(|i| bits >> i & 1 == 1).count() as u64;
        let highest = |bits: u64| (0..width).rev().find(|i| bits >> i & 1 == 1);
        cases.push(case(format!("popc.b{width}"), 32).bits(|row| Some(ones(row[0]))));
        cases.push(
            case(format!("clz.b{width}"), 32)
                .bits(|row| Some(highest(row[0]).map_or(width, |i| width - 1 - i).into())),
        );
        cases.push(case(format!("brev.b{width}"), width).bits(|row| {
            Some((0..width).fold(0, |bits, i| bits | (row[0] >> i & 1) << (width - 1 - i)))
        }));
        for letter in ["u", "s"] {
            let found = |bits: u64| {
                let is_flipped = letter == "s" && bits >> (width - 1) == 1;
                highest(if is_flipped { !bits & mask(width) } else { bits })
            };
            cases.push(
                case(format!("bfind.{letter}{width}"), 32)
                    .bits(|row| Some(found(row[0]).unwrap_or(u32::MAX).into())),
            );
            cases.push(
                case(format!("bfind.shiftamt.{letter}{width}"), 32)
                    .bits(|row| Some(found(row[0]).map_or(u32::MAX, |i| width - 1 - i).into())),
            );
        }
    }
    cases
}

fn fields() -> Vec<Case> {
    let mut cases = Vec::new();
    for width in [32u32, 64] {
        let one = Kind::Integer(width);
        let last = u64::from(width - 1);
        for letter in ["u", "s"] {
            let opcode = format!("bfe.{letter}{width}");
            let text = format!("{opcode} d, a, b, c;");
            let operands = [one, Kind::Amount, Kind::Amount];
            cases.push(lanes(GROUP, opcode, &operands, width, text).bits(|row| {
                let (position, length) = (row[1] & 255, row[2] & 255);
                let sign = match (letter, length) {
                    ("u", _) | (_, 0) => 0,
                    _ => row[0] >> (position + length - 1).min(last) & 1,
                };
                let bit = |i: u64| match i < length && position + i <= last {
                    true => row[0] >> (position + i) & 1,
                    false => sign,
                };
                Some((0..=last).fold(0, |bits, i| bits | bit(i) << i))
            }));
        }
        let opcode = format!("bfi.b{width}");
        let text = format!("{opcode} d, a, b, c, e;");
        let operands = [one, one, Kind::Amount, Kind::Amount];
        cases.push(lanes(GROUP, opcode, &operands, width, text).bits(|row| {
            let (position, length) = (row[2] & 255, row[3] & 255);
            Some((0..length).take_while(|i| position + i <= last).fold(row[1], |bits, i| {
                bits & !(1 << (position + i)) | (row[0] >> i & 1) << (position + i)
            }))
        }));
    }
    cases
}

fn permutes() -> Vec<Case> {
    let byte = |row: &[u64], i: u64| (row[1] << 32 | row[0]) >> (8 * i) & 255;
    let mut cases =
        vec![lanes(GROUP, "prmt.b32", &[WORD; 3], 32, "prmt.b32 d, a, b, c;").bits(|row| {
            Some((0..4).fold(0, |bits, i| {
                let select = row[2] >> (4 * i) & 15;
                let found = byte(row, select & 7);
                let is_sign = select & 8 != 0;
                let found = if !is_sign {
                    found
                } else if found & 128 != 0 {
                    255
                } else {
                    0
                };
                bits | found << (8 * i)
            }))
        })];
    // Of the two lowest bits of c: the source bytes of bytes 3, 2, 1, 0 of the result.
    let modes = [
        ("f4e", [0x3210, 0x4321, 0x5432, 0x6543]),
        ("b4e", [0x5670, 0x6701, 0x7012, 0x0123]),
        ("rc8", [0x0000, 0x1111, 0x2222, 0x3333]),
        ("ecl", [0x3210, 0x3211, 0x3222, 0x3333]),
        ("ecr", [0x0000, 0x1110, 0x2210, 0x3210]),
        ("rc16", [0x1010, 0x3232, 0x1010, 0x3232]),
    ];
    for (mode, table) in modes {
        let opcode = format!("prmt.b32.{mode}");
        let text = format!("{opcode} d, a, b, c;");
        cases.push(lanes(GROUP, opcode, &[WORD, WORD, Kind::Integer(32)], 32, text).bits(|row| {
            let select: u64 = table[(row[2] & 3) as usize];
            Some((0..4).fold(0, |bits, i| bits | byte(row, select >> (4 * i) & 7) << (8 * i)))
        }));
    }
    cases
}

fn lop3() -> Vec<Case> {
    let mut random = Random::new(3);
    let tables = [0u64, 0x80, 0xFE, 0x40, 0x1A, 0xF0, 0xCC, 0xAA, 0x96, 0xCA, 0xE8, 0xFF];
    let tables = tables.into_iter().chain((0..4).map(|_| random.next() & 255));
    let mut cases = Vec::new();
    for table in tables {
        let text = format!("lop3.b32 d, a, b, c, {table};");
        let name = format!("lop3.b32 {table:#04x}");
        if cases.iter().any(|case: &Case| case.name == name) {
            continue;
        }
        cases.push(lanes(GROUP, name, &[WORD; 3], 32, text).bits(|row| {
            Some((0..32).fold(0, |bits, i| {
                let [a, b, c] = [0, 1, 2].map(|operand: usize| row[operand] >> i & 1);
                bits | (table >> (a << 2 | b << 1 | c) & 1) << i
            }))
        }));
    }
    cases
}

fn masks() -> Vec<Case> {
    let mut cases = Vec::new();
    for (mode, is_clamped) in [("clamp", true), ("wrap", false)] {
        for letter in ["u", "s"] {
            let opcode = format!("szext.{mode}.{letter}32");
            let text = format!("{opcode} d, a, b;");
            cases.push(lanes(GROUP, opcode, &[WORD, Kind::Amount], 32, text).bits(|row| {
                let length = if is_clamped { row[1].min(32) } else { row[1] & 31 } as u32;
                Some(match (length, letter) {
                    (0, _) => 0,
                    (_, "u") => row[0] & mask(length),
                    _ => signed(row[0] & mask(length), length) as u64 & mask(32),
                })
            }));
        }
        let opcode = format!("bmsk.{mode}.b32");
        let text = format!("{opcode} d, a, b;");
        cases.push(lanes(GROUP, opcode, &[Kind::Amount; 2], 32, text).bits(|row| {
            let [start, length] =
                [0, 1].map(|i: usize| if is_clamped { row[i].min(32) } else { row[i] & 31 });
            let end = start + length;
            Some((start..end.min(32)).fold(0, |bits, i| bits | 1 << i))
        }));
    }
    cases.push(
        lanes(
            GROUP,
            "fns.b32",
            &[WORD, Kind::Integer(32), Kind::Integer(32)],
            32,
            "fns.b32 d, a, b, c;",
        )
        .bits(|row| {
            let (base, offset) = (row[1] as i64, signed(row[2], 32));
            if base > 31 {
                return None;
            }
            let is_set = |i: &i64| row[0] >> i & 1 == 1;
            let found = match offset {
                0 => Some(base).filter(is_set),
                1.. => (base..32).filter(is_set).nth(offset as usize - 1),
                _ => (0..=base).rev().filter(is_set).nth(-offset as usize - 1),
            };
            Some(found.map_or(mask(32), |i| i as u64))
        }),
    );
    cases
}

/// Of predicates, and their negations.
fn predicates() -> Vec<Case> {
    let functions: [(&str, &str, Logic); 6] = [
        ("and.pred", "and.pred r, p, q;", |p, q| p && q),
        ("or.pred", "or.pred r, p, q;", |p, q| p || q),
        ("xor.pred", "xor.pred r, p, q;", |p, q| p != q),
        ("not.pred", "not.pred r, p;", |p, _| !p),
        ("mov.pred", "mov.pred r, p;", |p, _| p),
        ("and.pred negated", "and.pred r, !p, !q;", |p, q| !p && !q),
    ];
    let case = |(name, text, f): (&str, &str, Logic)| {
        let text = format!(
            "{{ .reg .pred p, q, r;
      setp.ne.b32 p, a, 0;
      setp.ne.b32 q, b, 0;
      {text}
      selp.b32 d, 1, 0, r; }}"
        );
        lanes(GROUP, name, &[Kind::Bool; 2], 32, text)
            .bits(|row| Some(f(row[0] != 0, row[1] != 0).into()))
    };
    functions.into_iter().map(case).collect()
}
