//! `cvt` in every direction.

use super::Case;
use super::build::{Lanes, lanes};
use super::float::{Modifiers, finished};
use super::values::{Kind, mask, rows, value};
use crate::random::Random;
use crate::soft::{BF16, Exact, F16, F32, F64, Format, MODES, Mode, Natural, Value, integer};

const GROUP: &str = "convert";

/// Name, bits and sign of every integer type.
const INTEGERS: [(&str, u32, bool); 8] = [
    ("u8", 8, false),
    ("s8", 8, true),
    ("u16", 16, false),
    ("s16", 16, true),
    ("u32", 32, false),
    ("s32", 32, true),
    ("u64", 64, false),
    ("s64", 64, true),
];
const FORMATS: [Format; 3] = [F16, F32, F64];

pub fn cases() -> Vec<Case> {
    [
        integer_to_integer(),
        other_registers(),
        integer_to_float(),
        float_to_integer(),
        to_integral(),
        float_to_float(),
        packed(),
        tensor_float(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Bits of a register for a type: those of 8 bits live in registers of 32, whose other bits are not looked at.
fn register(width: u32) -> u32 {
    if width == 8 { 32 } else { width }
}

fn least(width: u32, is_signed: bool) -> i128 {
    if is_signed { -1 << (width - 1) } else { 0 }
}

fn most(width: u32, is_signed: bool) -> i128 {
    (1 << (width - u32::from(is_signed))) - 1
}

/// An integer type's number as its register holds it, extended by its sign.
fn held(number: i128, width: u32, is_signed: bool) -> u64 {
    value(number as u64, width, is_signed) as u64 & mask(register(width))
}

fn convert(opcode: String, source: Kind, result: u32) -> Lanes {
    let text = format!("{opcode} d, a;");
    lanes(GROUP, opcode, &[source], result, text)
}

fn integer_to_integer() -> Vec<Case> {
    let mut cases = Vec::new();
    for (to, width, is_signed) in INTEGERS {
        for (from, from_width, from_signed) in INTEGERS {
            let source = Kind::Integer(register(from_width));
            cases.push(
                convert(format!("cvt.{to}.{from}"), source, register(width)).bits(|row| {
                    Some(held(value(row[0], from_width, from_signed), width, is_signed))
                }),
            );
            let (low, high) = (least(width, is_signed), most(width, is_signed));
            let fits =
                low <= least(from_width, from_signed) && most(from_width, from_signed) <= high;
            if !fits {
                cases.push(convert(format!("cvt.sat.{to}.{from}"), source, register(width)).bits(
                    |row| {
                        let number = value(row[0], from_width, from_signed).clamp(low, high);
                        Some(held(number, width, is_signed))
                    },
                ));
            }
        }
    }
    cases
}

/// Registers wider than the types, or of 16 bits for those of 8: the source's low bits count, the result is
/// extended by its sign.
fn other_registers() -> Vec<Case> {
    let mut cases = Vec::new();
    for (to, width, is_signed) in INTEGERS {
        for (from, from_width, from_signed) in INTEGERS {
            for (source, result) in [(64, 64), (16, 64), (64, 16), (16, 16), (32, 16), (16, 32)] {
                let is_usual = source == register(from_width) && result == register(width);
                if source < from_width || result < width || is_usual {
                    continue;
                }
                let opcode = format!("cvt.{to}.{from}");
                let name = format!("{opcode} b{result} from b{source}");
                let text = format!("{opcode} d, a;");
                cases.push(lanes(GROUP, name, &[Kind::Integer(source)], result, text).bits(
                    |row| {
                        let number = value(row[0] & mask(from_width), from_width, from_signed);
                        Some(value(number as u64, width, is_signed) as u64 & mask(result))
                    },
                ));
            }
        }
    }
    cases
}

fn integer_to_float() -> Vec<Case> {
    let mut cases = Vec::new();
    for (from, width, is_signed) in INTEGERS {
        for format in FORMATS {
            for (mode_name, mode) in MODES {
                for sat in [false, true] {
                    if sat && mode != Mode::Nearest {
                        continue;
                    }
                    let modifiers = Modifiers { sat, ..Modifiers::default() };
                    let opcode =
                        format!("cvt.{mode_name}{}.{}.{from}", modifiers.text(), format.name);
                    let source = Kind::Integer(register(width));
                    cases.push(convert(opcode, source, format.bits).floats(format, |row| {
                        finished(format, &integer(value(row[0], width, is_signed)), mode, modifiers)
                    }));
                }
            }
        }
    }
    cases
}

const INTEGRAL: [(&str, Mode); 4] =
    [("rni", Mode::Nearest), ("rzi", Mode::Zero), ("rmi", Mode::Down), ("rpi", Mode::Up)];

/// Numbers around the ends of every integer type, and halves.
fn around_integers(format: Format) -> Vec<Vec<u64>> {
    let mut random = Random::new(9);
    let mut rows = rows(&[Kind::Float(format)]);
    let ends = [0, 7, 8, 15, 16, 31, 32, 63, 64].map(|power| 1i128 << power);
    for end in ends.into_iter().flat_map(|end| [end, -end]) {
        let bits = format.encode(&integer(end), Mode::Nearest);
        rows.extend([bits - 1, bits, bits + 1].map(|bits| vec![bits]));
    }
    for quarter in -13..=13i32 {
        let exact = Exact {
            negative: quarter < 0,
            mantissa: Natural::from(u128::from(quarter.unsigned_abs())),
            exponent: -2,
        };
        rows.push(vec![format.encode(&Value::Finite(exact), Mode::Nearest)]);
    }
    for _ in 0..100 {
        let number = random.next() as i64 >> random.below(63);
        let exact = Exact {
            negative: number < 0,
            mantissa: Natural::from(u128::from(number.unsigned_abs())),
            exponent: -(random.below(6) as i32),
        };
        rows.push(vec![format.encode(&Value::Finite(exact), Mode::Nearest)]);
    }
    rows
}

/// Clamped to the range of the type. NaN becomes 0, but 2^(bits - 1) where 64 bits take part.
fn float_to_integer() -> Vec<Case> {
    let mut cases = Vec::new();
    for format in FORMATS {
        for (to, width, is_signed) in INTEGERS {
            for (mode_name, mode) in INTEGRAL {
                for ftz in [false, true] {
                    if ftz && format != F32 {
                        continue;
                    }
                    let flush = if ftz { ".ftz" } else { "" };
                    let opcode = format!("cvt.{mode_name}{flush}.{to}.{}", format.name);
                    let (low, high) = (least(width, is_signed), most(width, is_signed));
                    let lanes = convert(opcode, Kind::Float(format), register(width));
                    cases.push(lanes.with_rows(around_integers(format)).bits(|row| {
                        let bits = if ftz { format.flushed(row[0]) } else { row[0] };
                        let number = match format.decode(bits) {
                            Value::Nan if format == F64 || width == 64 => 1 << (width - 1),
                            Value::Nan => 0,
                            Value::Infinite { negative } => {
                                if negative {
                                    low
                                } else {
                                    high
                                }
                            }
                            Value::Finite(exact) => {
                                let size = exact.rounded_to(0, mode);
                                let size = if size.length() > 100 {
                                    i128::MAX
                                } else {
                                    size.to_u128() as i128
                                };
                                (if exact.negative { -size } else { size }).clamp(low, high)
                            }
                        };
                        Some(held(number, width, is_signed))
                    }));
                }
            }
        }
    }
    cases
}

/// To an integral value of the same format; a zero keeps the sign.
fn to_integral() -> Vec<Case> {
    let mut cases = Vec::new();
    for format in FORMATS {
        for (mode_name, mode) in INTEGRAL {
            for (ftz, sat) in [(false, false), (true, false), (false, true), (true, true)] {
                if ftz && format != F32 {
                    continue;
                }
                let modifiers = Modifiers { ftz, sat, relu: false };
                let name = format.name;
                let opcode = format!("cvt.{mode_name}{}.{name}.{name}", modifiers.text());
                let lanes = convert(opcode, Kind::Float(format), format.bits);
                cases.push(lanes.with_rows(around_integers(format)).floats(format, |row| {
                    let bits = if ftz { format.flushed(row[0]) } else { row[0] };
                    let value = match format.decode(bits) {
                        Value::Finite(exact) if exact.exponent < 0 => {
                            let mantissa = exact.rounded_to(0, mode);
                            Value::Finite(Exact { mantissa, exponent: 0, ..exact })
                        }
                        value => value,
                    };
                    finished(format, &value, Mode::Nearest, modifiers)
                }));
            }
        }
    }
    cases
}

/// Numbers of `from` that lie on, between and beside numbers of `to`.
fn between(from: Format, to: Format) -> Vec<Vec<u64>> {
    let mut random = Random::new(10);
    let mut rows = rows(&[Kind::Float(from)]);
    if from.bits > to.bits || from.fraction > to.fraction {
        for edge in rows_of(to) {
            let exact = to.decode(edge);
            let bits = from.encode(&exact, Mode::Nearest);
            let half = 1 << (from.fraction - to.fraction - 1);
            for nearby in [bits.wrapping_add(1), bits.wrapping_sub(1), bits ^ half, bits ^ half ^ 1]
            {
                rows.push(vec![nearby & mask(from.bits)]);
            }
        }
    }
    for _ in 0..60 {
        rows.push(vec![from.encode(&to.decode(random.next() & mask(to.bits)), Mode::Nearest)]);
    }
    rows
}

fn rows_of(format: Format) -> Vec<u64> {
    rows(&[Kind::Float(format)]).into_iter().map(|row| row[0]).collect()
}

fn float_to_float() -> Vec<Case> {
    let none = Modifiers::default();
    let ftz = Modifiers { ftz: true, ..none };
    let sat = Modifiers { sat: true, ..none };
    let mut cases = Vec::new();
    let mut push = |rounding: &str, mode: Mode, to: Format, from: Format, modifiers: Modifiers| {
        let opcode = format!("cvt{rounding}{}.{}.{}", modifiers.text(), to.name, from.name);
        let lanes = convert(opcode, Kind::Float(from), to.bits);
        cases.push(lanes.with_rows(between(from, to)).floats(to, |row| {
            // .ftz is of f32 only, on either side.
            let bits = if modifiers.ftz && from == F32 { from.flushed(row[0]) } else { row[0] };
            let modifiers = Modifiers { ftz: modifiers.ftz && to == F32, ..modifiers };
            finished(to, &from.decode(bits), mode, modifiers)
        }));
    };
    for (to, from) in [(F32, F16), (F64, F16), (F64, F32), (F32, BF16)] {
        push("", Mode::Nearest, to, from, none);
    }
    for (to, from) in [(F32, F16), (F64, F16), (F64, F32), (F32, F32), (F16, F16), (F64, F64)] {
        push("", Mode::Nearest, to, from, sat);
    }
    for (to, from) in [(F32, F16), (F64, F32), (F32, F32)] {
        push("", Mode::Nearest, to, from, ftz);
        push("", Mode::Nearest, to, from, Modifiers { ftz: true, ..sat });
    }
    for (mode_name, mode) in MODES {
        let rounding = format!(".{mode_name}");
        for (to, from) in [(F16, F32), (F16, F64), (F32, F64)] {
            push(&rounding, mode, to, from, none);
            push(&rounding, mode, to, from, sat);
        }
        for (to, from) in [(F16, F32), (F32, F64)] {
            push(&rounding, mode, to, from, ftz);
            push(&rounding, mode, to, from, Modifiers { ftz: true, ..sat });
        }
        if matches!(mode, Mode::Nearest | Mode::Zero) {
            for to in [F16, BF16] {
                push(&rounding, mode, to, F32, Modifiers { relu: true, ..none });
            }
            push(&rounding, mode, BF16, F32, none);
        }
    }
    cases
}

/// Two f32 to a pair: a goes into the upper half.
fn packed() -> Vec<Case> {
    let mut cases = Vec::new();
    for format in [F16, BF16] {
        for (mode_name, mode) in &MODES[..2] {
            for relu in [false, true] {
                let modifiers = Modifiers { relu, ..Modifiers::default() };
                let opcode = format!("cvt.{mode_name}{}.{}x2.f32", modifiers.text(), format.name);
                let text = format!("{opcode} d, a, b;");
                let values = between(F32, format);
                let pair = |i: usize| vec![values[i][0], values[(i * 3 + 1) % values.len()][0]];
                cases.push(
                    lanes(GROUP, opcode, &[Kind::Float(F32); 2], 32, text)
                        .with_rows((0..values.len()).map(pair).collect())
                        .floats(format, |row| {
                            let half = |bits| finished(format, &F32.decode(bits), *mode, modifiers);
                            Some(half(row[0])? << 16 | half(row[1])?)
                        }),
                );
            }
        }
    }
    cases
}

/// An f32 with the last 13 bits of its fraction rounded away, halves away from zero.
fn tensor_float() -> Vec<Case> {
    let lanes = convert("cvt.rna.tf32.f32".into(), Kind::Float(F32), 32);
    let dropped = 13;
    let rows = |format: Format| {
        rows_of(format).into_iter().flat_map(move |bits| {
            [bits, bits ^ 1 << (dropped - 1), bits ^ ((1 << (dropped - 1)) - 1)]
                .map(|bits| vec![bits])
        })
    };
    vec![lanes.with_rows(rows(F32).collect()).bits(|row| {
        let (sign, magnitude) = (row[0] & F32.sign(), row[0] & !F32.sign());
        if magnitude >= F32.infinity() {
            return (magnitude == F32.infinity()).then_some(row[0]);
        }
        Some(sign | (magnitude + (1 << (dropped - 1))) >> dropped << dropped)
    })]
}
