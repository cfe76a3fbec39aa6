//! Registers: put together, taken apart, and many of them.

use super::build::{kernel, lanes, words};
use super::values::{Kind, mask, value};
use super::{Case, Expected};
use crate::random::Random;
use crate::soft::{F32, F64, Format, Mode, add};

const GROUP: &str = "registers";

type Unary = fn(u64) -> u64;

pub fn cases() -> Vec<Case> {
    [moves(), immediates(), pressure()].into_iter().flatten().collect()
}

/// Registers put together and taken apart.
fn moves() -> Vec<Case> {
    let mut random = Random::new(3);
    let input: Vec<u64> = (0..32).map(|_| random.next()).collect();
    let functions: [(&str, &str, Unary); 8] = [
        ("mov.b64 {b32}", ".reg .b32 l, h; mov.b64 {l, h}, x; mov.b64 x, {h, l};", |x| {
            x.rotate_left(32)
        }),
        (
            "mov.b64 {b16}",
            ".reg .b16 a, b, c, d; mov.b64 {a, b, c, d}, x; mov.b64 x, {b, d, a, c};",
            |x| x >> 16 & 0xFFFF | (x >> 48) << 16 | (x & 0xFFFF) << 32 | (x >> 32 & 0xFFFF) << 48,
        ),
        (
            "mov.b32 {b16}",
            ".reg .b16 a, b; .reg .b32 y; cvt.u32.u64 y, x; mov.b32 {a, b}, y; mov.b32 y, {b, a}; cvt.u64.u32 x, y;",
            |x| u64::from((x as u32).rotate_left(16)),
        ),
        (
            "mov.b32 {b8}",
            ".reg .b8 a, b, c, d; .reg .b32 y; cvt.u32.u64 y, x; mov.b32 {a, b, c, d}, y; \
             mov.b32 y, {d, c, b, a}; cvt.u64.u32 x, y;",
            |x| u64::from((x as u32).swap_bytes()),
        ),
        (
            "mov.b16 {b8}",
            ".reg .b8 a, b; .reg .b16 y; cvt.u16.u64 y, x; mov.b16 {a, b}, y; mov.b16 y, {b, a}; \
             cvt.u64.u16 x, y;",
            |x| u64::from((x as u16).swap_bytes()),
        ),
        ("mov.b64 {_, b32}", ".reg .b32 h; mov.b64 {_, h}, x; cvt.u64.u32 x, h;", |x| x >> 32),
        (
            "mov.b32 {0, b16}",
            ".reg .b16 a; .reg .b32 y; cvt.u16.u64 a, x; mov.b32 y, {0, a}; cvt.u64.u32 x, y;",
            |x| (x & 0xFFFF) << 16,
        ),
        (
            "mov.f32",
            ".reg .f32 f; .reg .b32 l, h; mov.b64 {l, h}, x; mov.b32 f, h; mov.f32 f, f; mov.b32 h, f; \
             mov.b64 x, {h, l};",
            |x| x.rotate_left(32),
        ),
    ];
    let case = |(name, text, f): (&str, &str, Unary)| {
        let body = format!(
            "    .reg .b64 at, x;
    mad.wide.u32 at, %thread, 8, %input;
    ld.global.b64 x, [at];
    {{ {text} }}
    mad.wide.u32 at, %thread, 8, %output;
    st.global.b64 [at], x;
"
        );
        let bytes = |f: Unary| input.iter().flat_map(|&x| f(x).to_le_bytes()).collect();
        kernel(GROUP, name, "", &body, bytes(|x| x), Expected::Bits(bytes(f)))
    };
    functions.into_iter().map(case).collect()
}

/// Literals of every kind as operands.
fn immediates() -> Vec<Case> {
    let (word, long) = (Kind::Integer(32), Kind::Integer(64));
    let near = Mode::Nearest;
    let sum = |format: Format, bits: u64, literal: f64| {
        let literal = F64.decode(literal.to_bits());
        format.encode(&add(&format.decode(bits), &literal, near), near)
    };
    let case = |kind: Kind, text: &str| {
        lanes(GROUP, text.trim_end_matches(';'), &[kind], kind.width(), text)
    };
    vec![
        case(word, "add.s32 d, a, -7;").bits(|row| Some(row[0].wrapping_sub(7) & mask(32))),
        case(word, "sub.s32 d, -2147483648, a;")
            .bits(|row| Some((1u64 << 31).wrapping_sub(row[0]) & mask(32))),
        case(word, "mul.lo.u32 d, a, 0xFFFFFFFF;")
            .bits(|row| Some(row[0].wrapping_neg() & mask(32))),
        case(word, "and.b32 d, 0b1101, a;").bits(|row| Some(row[0] & 13)),
        case(word, "or.b32 d, a, 0377;").bits(|row| Some(row[0] | 255)),
        case(word, "shl.b32 d, a, 33;").bits(|_| Some(0)),
        case(word, "selp.b32 d, 5, -5, 1;").bits(|_| Some(5)),
        case(Kind::Integer(16), "add.s16 d, a, -3;")
            .bits(|row| Some(row[0].wrapping_sub(3) & mask(16))),
        case(long, "add.s64 d, a, -1;").bits(|row| Some(row[0].wrapping_sub(1))),
        case(long, "and.b64 d, a, 0xFFFFFFFF00000000;").bits(|row| Some(row[0] & !mask(32))),
        case(long, "mov.b64 d, 0x8000000000000001;").bits(|_| Some(1 << 63 | 1)),
        case(Kind::Float(F32), "add.f32 d, a, 0f3FC00000;")
            .floats(F32, |row| Some(sum(F32, row[0], 1.5))),
        case(Kind::Float(F32), "add.f32 d, a, -2.5;")
            .floats(F32, |row| Some(sum(F32, row[0], -2.5))),
        case(Kind::Float(F64), "add.f64 d, 0dC00C000000000000, a;")
            .floats(F64, |row| Some(sum(F64, row[0], -3.5))),
        case(Kind::Float(F64), "add.f64 d, a, 1.25;")
            .floats(F64, |row| Some(sum(F64, row[0], 1.25))),
        lanes(GROUP, "mad.wide.s32 d, a, -1000, 5", &[word], 64, "mad.wide.s32 d, a, -1000, 5;")
            .bits(|row| Some((value(row[0], 32, true) * -1000 + 5) as u64)),
    ]
}

/// More values alive at once than a GPU has registers for, of every width, across a loop.
fn pressure() -> Vec<Case> {
    let count = 80;
    let mut body =
        "    .reg .b32 x, w<80>; .reg .b64 out; .reg .b64 d<80>; .reg .pred q<80>; .reg .b32 k, s; .reg .pred p;\n"
            .to_owned();
    for i in 0..count {
        body += &format!(
            "    mad.lo.u32 w{i}, %thread, {}, {i};\n    mul.wide.u32 d{i}, w{i}, {};\n    setp.gt.u32 q{i}, w{i}, {};\n",
            i + 1,
            i + 3,
            i * 16
        );
    }
    body += "    mov.u32 k, 0;\nNEXT:\n";
    for i in 0..count {
        let j = (i * 7 + 3) % count;
        body += &format!("    add.u32 w{i}, w{i}, w{j};\n    cvt.u64.u32 d{i}, w{j};\n");
    }
    body += "    add.u32 k, k, 1;\n    setp.lt.u32 p, k, 3;\n    @p bra NEXT;\n    mov.u32 x, 0;\n";
    for i in (0..count).rev() {
        body += &format!(
            "    mad.lo.u32 x, x, 3, w{i};\n    cvt.u32.u64 s, d{i};\n    xor.b32 x, x, s;\n    @q{i} add.u32 x, x, 1;\n"
        );
    }
    let expected = move |thread: u32| {
        let mut w: Vec<u32> = (0..count).map(|i| thread * (i + 1) + i).collect();
        let mut d = vec![0u32; count as usize];
        let q: Vec<bool> = (0..count).map(|i| w[i as usize] > i * 16).collect();
        for _ in 0..3 {
            for i in 0..count as usize {
                let j = (i * 7 + 3) % count as usize;
                w[i] = w[i].wrapping_add(w[j]);
                d[i] = w[j];
            }
        }
        (0..count as usize).rev().fold(0u32, |x, i| {
            let x = x.wrapping_mul(3).wrapping_add(w[i]) ^ d[i];
            x.wrapping_add(q[i].into())
        })
    };
    body += "    mad.wide.u32 out, %thread, 4, %output;\n    st.global.u32 [out], x;\n";
    let expected = Expected::Bits(words((0..32).map(expected)));
    vec![kernel(GROUP, "many registers", "", &body, vec![0; 4], expected)]
}
