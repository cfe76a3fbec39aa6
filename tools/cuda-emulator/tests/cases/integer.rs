//! Integer arithmetic.

use super::Case;
use super::build::lanes;
use super::values::{Kind, mask, rows, value};

const GROUP: &str = "integer";

/// Name, bits and sign of the integer types.
pub const TYPES: [(&str, u32, bool); 6] = [
    ("u16", 16, false),
    ("s16", 16, true),
    ("u32", 32, false),
    ("s32", 32, true),
    ("u64", 64, false),
    ("s64", 64, true),
];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, width, is_signed) in TYPES {
        cases.extend(of_type(name, width, is_signed));
    }
    cases.extend(saturating());
    cases.extend(wide());
    cases.extend(carries());
    cases.extend(narrow());
    cases.extend(dot_products());
    cases
}

fn of_type(name: &'static str, width: u32, is_signed: bool) -> Vec<Case> {
    let one = Kind::Integer(width);
    let number = move |bits: u64| value(bits, width, is_signed);
    let binary = |opcode: &str, f: fn(i128, i128) -> Option<i128>| {
        let text = format!("{opcode}.{name} d, a, b;");
        lanes(GROUP, format!("{opcode}.{name}"), &[one, one], width, text)
            .bits(|row| Some(f(number(row[0]), number(row[1]))? as u64 & mask(width)))
    };
    let mut cases = vec![
        binary("add", |a, b| Some(a + b)),
        binary("sub", |a, b| Some(a - b)),
        binary("mul.lo", |a, b| Some(a.wrapping_mul(b))),
        binary("min", |a, b| Some(a.min(b))),
        binary("max", |a, b| Some(a.max(b))),
        binary("div", |a, b| if b == 0 { None } else { Some(a / b) }),
        binary("rem", |a, b| if b == 0 { None } else { Some(a % b) }),
    ];
    let high = move |a: u64, b: u64| match is_signed {
        true => ((number(a) * number(b)) >> width) as u64 & mask(width),
        false => ((u128::from(a) * u128::from(b)) >> width) as u64,
    };
    let text = |opcode: &str, operands: &str| format!("{opcode}.{name} d, {operands};");
    let case = |opcode: &str, operands: &[Kind], text: String| {
        lanes(GROUP, format!("{opcode}.{name}"), operands, width, text)
    };
    cases.push(
        case("mul.hi", &[one, one], text("mul.hi", "a, b")).bits(|row| Some(high(row[0], row[1]))),
    );
    cases.push(
        case("mad.lo", &[one; 3], text("mad.lo", "a, b, c"))
            .bits(|row| Some(row[0].wrapping_mul(row[1]).wrapping_add(row[2]) & mask(width))),
    );
    cases.push(
        case("mad.hi", &[one; 3], text("mad.hi", "a, b, c"))
            .bits(|row| Some(high(row[0], row[1]).wrapping_add(row[2]) & mask(width))),
    );
    cases.push(case("sad", &[one; 3], text("sad", "a, b, c")).bits(|row| {
        let difference = (number(row[0]) - number(row[1])).unsigned_abs() as u64;
        Some(row[2].wrapping_add(difference) & mask(width))
    }));
    if is_signed {
        let least = 1 << (width - 1);
        let unary = |opcode: &str, f: fn(i128) -> i128| {
            lanes(
                GROUP,
                format!("{opcode}.{name}"),
                &[one],
                width,
                format!("{opcode}.{name} d, a;"),
            )
            .bits(|row| Some(f(number(row[0])) as u64 & mask(width)))
        };
        cases.push(unary("neg", |a| -a));
        let text = text("abs", "a");
        cases.push(
            case("abs", &[one], text)
                .bits(|row| (row[0] != least).then(|| number(row[0]).unsigned_abs() as u64)),
        );
    }
    cases
}

/// `.sat` clamps to the range of s32.
fn saturating() -> Vec<Case> {
    let clamped = |x: i128| x.clamp(i32::MIN.into(), i32::MAX.into()) as u32 as u64;
    let number = |bits: u64| value(bits, 32, true);
    let one = Kind::Integer(32);
    vec![
        lanes(GROUP, "add.sat.s32", &[one; 2], 32, "add.sat.s32 d, a, b;")
            .bits(|row| Some(clamped(number(row[0]) + number(row[1])))),
        lanes(GROUP, "sub.sat.s32", &[one; 2], 32, "sub.sat.s32 d, a, b;")
            .bits(|row| Some(clamped(number(row[0]) - number(row[1])))),
        lanes(GROUP, "mad.hi.sat.s32", &[one; 3], 32, "mad.hi.sat.s32 d, a, b, c;")
            .bits(|row| Some(clamped(((number(row[0]) * number(row[1])) >> 32) + number(row[2])))),
    ]
}

/// Results of twice the width.
fn wide() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, width, is_signed) in &TYPES[..4] {
        let (one, twice) = (Kind::Integer(*width), Kind::Integer(2 * width));
        let product =
            |row: &[u64]| value(row[0], *width, *is_signed) * value(row[1], *width, *is_signed);
        let text = format!("mul.wide.{name} d, a, b;");
        cases.push(
            lanes(GROUP, format!("mul.wide.{name}"), &[one, one], 2 * width, text)
                .bits(|row| Some(product(row) as u64 & mask(2 * width))),
        );
        let text = format!("mad.wide.{name} d, a, b, c;");
        cases.push(
            lanes(GROUP, format!("mad.wide.{name}"), &[one, one, twice], 2 * width, text)
                .bits(|row| Some((product(row) as u64).wrapping_add(row[2]) & mask(2 * width))),
        );
    }
    cases
}

/// Numbers of two registers, with a carry between them.
fn carries() -> Vec<Case> {
    let long = Kind::Integer(64);
    let case = |name: &str, operands: &[Kind], text: &str| {
        let text = format!(
            "{{ .reg .b32 al, ah, bl, bh;
      mov.b64 {{al, ah}}, a;
      mov.b64 {{bl, bh}}, b;
      {text} }}"
        );
        lanes(GROUP, name, operands, 64, text)
    };
    vec![
        case("add.cc", &[long; 2], "add.cc.u32 al, al, bl; addc.u32 ah, ah, bh; mov.b64 d, {al, ah};")
            .bits(|row| Some(row[0].wrapping_add(row[1]))),
        case("sub.cc", &[long; 2], "sub.cc.u32 al, al, bl; subc.u32 ah, ah, bh; mov.b64 d, {al, ah};")
            .bits(|row| Some(row[0].wrapping_sub(row[1]))),
        // The carry of a sum of 64 bits: 0 or 1, beside the high word.
        case(
            "addc.cc",
            &[long; 2],
            "add.cc.u32 al, al, bl; addc.cc.u32 ah, ah, bh; addc.u32 al, 0, 0; mov.b64 d, {ah, al};",
        )
        .bits(|row| {
            let sum = u128::from(row[0]) + u128::from(row[1]);
            Some((sum >> 32) as u64)
        }),
        case(
            "subc.cc",
            &[long; 2],
            "sub.cc.u32 al, al, bl; subc.cc.u32 ah, ah, bh; subc.u32 al, 0, 0; mov.b64 d, {ah, al};",
        )
        .bits(|row| {
            let difference = u128::from(row[0]).wrapping_sub(u128::from(row[1]));
            Some((difference >> 32) as u64)
        }),
        // Low words of a and b multiplied, plus all of b.
        case(
            "madc",
            &[long; 2],
            "{ .reg .b32 l, h; mad.lo.cc.u32 l, al, bl, bl; madc.hi.u32 h, al, bl, bh; mov.b64 d, {l, h}; }",
        )
        .bits(|row| Some((row[0] & mask(32)).wrapping_mul(row[1] & mask(32)).wrapping_add(row[1]))),
    ]
}

/// Products of the low 24 bits.
fn narrow() -> Vec<Case> {
    let word = Kind::Integer(32);
    let mut cases = Vec::new();
    for (name, is_signed) in [("u32", false), ("s32", true)] {
        // Operands that are numbers of 24 bits.
        let rows = |columns: usize| {
            let mut rows = rows(&[word; 3][..columns]);
            for row in &mut rows {
                for operand in &mut row[..2] {
                    *operand = value(*operand & mask(24), 24, is_signed) as u64 & mask(32);
                }
            }
            rows
        };
        let product = |row: &[u64]| value(row[0], 32, is_signed) * value(row[1], 32, is_signed);
        for (mode, shift) in [("lo", 0), ("hi", 16)] {
            let opcode = format!("mul24.{mode}.{name}");
            cases.push(
                lanes(GROUP, &opcode, &[word; 2], 32, format!("{opcode} d, a, b;"))
                    .with_rows(rows(2))
                    .bits(|row| Some((product(row) >> shift) as u64 & mask(32))),
            );
            let opcode = format!("mad24.{mode}.{name}");
            cases.push(
                lanes(GROUP, &opcode, &[word; 3], 32, format!("{opcode} d, a, b, c;"))
                    .with_rows(rows(3))
                    .bits(|row| {
                        Some(((product(row) >> shift) as u64).wrapping_add(row[2]) & mask(32))
                    }),
            );
        }
    }
    cases
}

/// Bytes by bytes, and halves by bytes, summed.
fn dot_products() -> Vec<Case> {
    let word = Kind::Integer(32);
    let mut cases = Vec::new();
    let part = |bits: u64, i: u32, width: u32, is_signed: bool| {
        value(bits >> (i * width) & mask(width), width, is_signed)
    };
    for (a_type, a_signed) in [("u32", false), ("s32", true)] {
        for (b_type, b_signed) in [("u32", false), ("s32", true)] {
            let opcode = format!("dp4a.{a_type}.{b_type}");
            cases.push(
                lanes(GROUP, &opcode, &[word; 3], 32, format!("{opcode} d, a, b, c;")).bits(
                    |row| {
                        let products = (0..4)
                            .map(|i| part(row[0], i, 8, a_signed) * part(row[1], i, 8, b_signed));
                        Some((i128::from(row[2]) + products.sum::<i128>()) as u64 & mask(32))
                    },
                ),
            );
            for (mode, first) in [("lo", 0), ("hi", 2)] {
                let opcode = format!("dp2a.{mode}.{a_type}.{b_type}");
                cases.push(
                    lanes(GROUP, &opcode, &[word; 3], 32, format!("{opcode} d, a, b, c;")).bits(
                        |row| {
                            let products = (0..2).map(|i| {
                                part(row[0], i, 16, a_signed) * part(row[1], first + i, 8, b_signed)
                            });
                            Some((i128::from(row[2]) + products.sum::<i128>()) as u64 & mask(32))
                        },
                    ),
                );
            }
        }
    }
    cases
}
