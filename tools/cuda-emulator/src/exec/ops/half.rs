//! Arithmetic of f16 and bf16, alone and in pairs.
//!
//! Sums and products of two are formed in f32, whose 24 bits are more than twice the 11 of a half, so that the
//! second rounding finds what one would; a product plus a third is formed in f64, rounded to odd.

use super::Opcode;
use crate::exec::approx;
use crate::exec::half::{Bf16, F16, Half};
use crate::exec::lanes::{Lane, Lanewise, with1, with2, with3};
use crate::exec::rounding::{Mode, sum_odd};
use crate::ptx::ast::Type;

/// `None`: not an opcode of this file.
pub fn decode(code: &mut Opcode<'_>) -> Result<Option<Lanewise>, String> {
    Ok(match code.types.as_slice() {
        [Type::F16] => family::<F16, F16>(code),
        [Type::F16x2] => family::<F16, [F16; 2]>(code),
        [Type::Bf16] => family::<Bf16, Bf16>(code),
        [Type::Bf16x2] => family::<Bf16, [Bf16; 2]>(code),
        _ => None,
    })
}

/// One or two halves.
trait Halves<H>: Lane + Default {
    fn apply(a: Self, b: Self, c: Self, f: impl Fn(H, H, H) -> H) -> Self;
}

impl<H: Half + Lane> Halves<H> for H {
    #[inline(always)]
    fn apply(a: Self, b: Self, c: Self, f: impl Fn(H, H, H) -> H) -> Self {
        f(a, b, c)
    }
}

impl<H: Half> Halves<H> for [H; 2]
where
    [H; 2]: Lane,
{
    #[inline(always)]
    fn apply(a: Self, b: Self, c: Self, f: impl Fn(H, H, H) -> H) -> Self {
        [f(a[0], b[0], c[0]), f(a[1], b[1], c[1])]
    }
}

const FTZ: i64 = 1;
const SATURATE: i64 = 2;
const RELU: i64 = 4;
const NAN: i64 = 8;
const XOR_SIGN: i64 = 16;

fn family<H: Half, V: Halves<H>>(code: &mut Opcode<'_>) -> Option<Lanewise> {
    let mut flags = 0;
    let names =
        [("ftz", FTZ), ("sat", SATURATE), ("relu", RELU), ("NaN", NAN), ("xorsign", XOR_SIGN)];
    for (name, flag) in names {
        if code.flag(name) {
            flags |= flag;
        }
    }
    if flags & XOR_SIGN != 0 && !code.flag("abs") {
        return None;
    }
    code.flag("rn");
    let name = code.name;
    let found = match name {
        "add" => sum2::<H, V>(|a, b| a + b),
        "sub" => sum2::<H, V>(|a, b| a - b),
        "mul" => sum2::<H, V>(|a, b| a * b),
        "fma" => with3(|flags, a: V, b: V, c: V| {
            V::apply(
                a,
                b,
                c,
                #[inline(always)]
                |a, b, c| {
                    let [a, b, c] = [a, b, c].map(|x| widen(flags, x) as f64);
                    finish(flags, H::round(sum_odd(a * b, c), Mode::Nearest))
                },
            )
        }),
        "min" => with2(|flags, a: V, b: V| {
            V::apply(
                a,
                b,
                a,
                #[inline(always)]
                |a, b, _| extremum(flags, a, b, |x, y| x < y),
            )
        }),
        "max" => with2(|flags, a: V, b: V| {
            V::apply(
                a,
                b,
                a,
                #[inline(always)]
                |a, b, _| extremum(flags, a, b, |x, y| x > y),
            )
        }),
        "abs" => one::<H, V>(|_, a| H::new(a.bits() & 0x7fff)),
        "neg" => one::<H, V>(|_, a| H::new(a.bits() ^ 0x8000)),
        "ex2" if code.flag("approx") => {
            one::<H, V>(|flags, a| H::narrow(approx::ex2(widen(flags, a))))
        }
        "tanh" if code.flag("approx") => {
            one::<H, V>(|flags, a| H::narrow(approx::tanh(widen(flags, a))))
        }
        _ => return None,
    };
    Some(found.immediate(flags))
}

fn one<H: Half, V: Halves<H>>(f: impl Fn(i64, H) -> H + Copy) -> Lanewise {
    with1(
        #[inline(always)]
        move |flags, a: V| {
            V::apply(
                a,
                a,
                a,
                #[inline(always)]
                |a, _, _| flush(flags, f(flags, a)),
            )
        },
    )
}

fn sum2<H: Half, V: Halves<H>>(f: impl Fn(f32, f32) -> f32 + Copy) -> Lanewise {
    with2(
        #[inline(always)]
        move |flags, a: V, b: V| {
            V::apply(
                a,
                b,
                a,
                #[inline(always)]
                |a, b, _| finish(flags, H::narrow(f(widen(flags, a), widen(flags, b)))),
            )
        },
    )
}

/// Zero for a subnormal number, with `.ftz`.
#[inline(always)]
fn flush<H: Half>(flags: i64, x: H) -> H {
    let smallest_normal = H::INFINITY & H::INFINITY.wrapping_neg();
    let is_subnormal = x.bits() & 0x7fff < smallest_normal;
    if flags & FTZ != 0 && is_subnormal { H::new(x.bits() & 0x8000) } else { x }
}

#[inline(always)]
fn widen<H: Half>(flags: i64, x: H) -> f32 {
    flush(flags, x).widen()
}

#[inline(always)]
fn finish<H: Half>(flags: i64, x: H) -> H {
    let x = flush(flags, x);
    let is_positive = x.bits() & 0x8000 == 0;
    if flags & (SATURATE | RELU) == 0 {
        x
    } else if x.is_nan() {
        // Saturation turns NaN into 0, relu keeps it.
        H::new(if flags & SATURATE != 0 { 0 } else { H::NAN })
    } else if !is_positive {
        H::new(0)
    } else if flags & SATURATE != 0 && x.bits() > H::ONE {
        H::new(H::ONE)
    } else {
        x
    }
}

/// The one of two that `wins`: a number over NaN, unless with `.NaN`; -0 is below +0.
#[inline(always)]
fn extremum<H: Half>(flags: i64, a: H, b: H, wins: impl Fn(i32, i32) -> bool) -> H {
    let (a, b) = (flush(flags, a), flush(flags, b));
    let sign = (a.bits() ^ b.bits()) & 0x8000;
    let by_magnitude = flags & XOR_SIGN != 0;
    let magnitude = |x: H| if by_magnitude { H::new(x.bits() & 0x7fff) } else { x };
    let (x, y) = (magnitude(a), magnitude(b));
    // Sign and magnitude as an integer with the same order.
    let order = |x: H| {
        let (sign, rest) = ((x.bits() >> 15) as i32, (x.bits() & 0x7fff) as i32);
        if sign != 0 { -1 - rest } else { rest }
    };
    let chosen = if wins(order(x), order(y)) { x } else { y };
    if a.is_nan() && b.is_nan() || flags & NAN != 0 && (a.is_nan() || b.is_nan()) {
        H::new(H::NAN)
    } else if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else if by_magnitude {
        H::new(chosen.bits() | sign)
    } else {
        chosen
    }
}
