//! Arithmetic of f32 and f64.

use std::num::FpCategory;

use super::Opcode;
use crate::exec::approx;
use crate::exec::double;
use crate::exec::lanes::{Lane, Lanewise, Width, each, map1, map2, map3, with1, with2, with3};
use crate::exec::program::Operand;
use crate::exec::rounding::{F32, Mode, quotient_odd, round, sqrt_odd, sum_odd};
use crate::exec::warp::{Block, Warp};
use crate::ptx::ast::Type;

/// `None`: not an opcode of this file.
pub fn decode(code: &mut Opcode<'_>) -> Result<Option<Lanewise>, String> {
    Ok(match code.types.as_slice() {
        [Type::F32] => {
            if code.flag("ftz") {
                single::<Flushed>(code)
            } else {
                single::<f32>(code)
            }
        }
        [Type::F64] => wide(code),
        _ => None,
    })
}

/// An f32, or one whose subnormal values count as zero.
pub trait Single: Lane + Default {
    fn get(self) -> f32;
    /// NaN becomes the one NaN that the machine gives.
    fn new(x: f32) -> Self;
    /// The bits as they are.
    fn raw(bits: u32) -> Self;
}

impl Single for f32 {
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
    #[inline(always)]
    fn new(x: f32) -> f32 {
        if x.is_nan() { f32::from_bits(NAN) } else { x }
    }
    #[inline(always)]
    fn raw(bits: u32) -> f32 {
        f32::from_bits(bits)
    }
}

/// The NaN of f32 operations.
pub const NAN: u32 = 0x7fff_ffff;

/// `.ftz`: subnormal values are zero, on the way in and on the way out.
#[derive(Clone, Copy, Default, PartialEq, PartialOrd)]
pub struct Flushed(f32);

/// Zero of the same sign for a subnormal number.
#[inline(always)]
pub fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x }
}

impl Lane for Flushed {
    const WIDTH: Width = <f32 as Lane>::WIDTH;
    #[inline(always)]
    fn load(warp: &Warp, block: &Block<'_>, operand: Operand) -> [Self; 32] {
        let values = f32::load(warp, block, operand);
        each(
            #[inline(always)]
            |lane| Flushed(flush(values[lane])),
        )
    }
    #[inline(always)]
    fn store(warp: &mut Warp, operand: Operand, values: [Self; 32], mask: u32) {
        let values = each(
            #[inline(always)]
            |lane| flush(values[lane].0),
        );
        f32::store(warp, operand, values, mask);
    }
}

impl Single for Flushed {
    #[inline(always)]
    fn get(self) -> f32 {
        self.0
    }
    #[inline(always)]
    fn new(x: f32) -> Self {
        Flushed(f32::new(x))
    }
    #[inline(always)]
    fn raw(bits: u32) -> Self {
        Flushed(f32::from_bits(bits))
    }
}

fn single<S: Single>(code: &mut Opcode<'_>) -> Option<Lanewise> {
    if code.flag("approx") {
        return approximate::<S>(code.name);
    }
    if code.name == "div" && code.flag("full") {
        // Within 2 ulp of the quotient: here it is exact.
        return Some(map2(|a: S, b: S| S::new(a.get() / b.get())));
    }
    let mode = code.pick(&MODES).unwrap_or(Mode::Nearest);
    let saturates = code.flag("sat");
    if mode != Mode::Nearest || saturates {
        let found = directed::<S>(code.name)?;
        return Some(found.immediate(mode as i64 | (saturates as i64) << 8));
    }
    Some(match code.name {
        "add" => map2(|a: S, b: S| S::new(a.get() + b.get())),
        "sub" => map2(|a: S, b: S| S::new(a.get() - b.get())),
        "mul" => map2(|a: S, b: S| S::new(a.get() * b.get())),
        "fma" | "mad" => map3(|a: S, b: S, c: S| S::new(a.get().mul_add(b.get(), c.get()))),
        "div" => map2(|a: S, b: S| S::new(a.get() / b.get())),
        "sqrt" => map1(|a: S| S::new(a.get().sqrt())),
        "rcp" => map1(|a: S| S::new(1.0 / a.get())),
        "min" | "max" => return extremum::<S>(code),
        "abs" => map1(|a: S| S::raw(a.get().to_bits() & !(1 << 31))),
        "neg" => map1(|a: S| S::raw(a.get().to_bits() ^ 1 << 31)),
        "copysign" => map2(|a: f32, b: f32| b.copysign(a)),
        "testp" => return testp(code),
        _ => return None,
    })
}

pub const MODES: [(&str, Mode); 4] =
    [("rn", Mode::Nearest), ("rz", Mode::Zero), ("rm", Mode::Down), ("rp", Mode::Up)];

fn approximate<S: Single>(name: &str) -> Option<Lanewise> {
    Some(match name {
        "div" => map2(|a: S, b: S| S::new(approx::div(a.get(), b.get()))),
        "rcp" => map1(|a: S| S::new(1.0 / a.get())),
        "sqrt" => map1(|a: S| S::new(a.get().sqrt())),
        "rsqrt" => map1(|a: S| S::new(approx::rsqrt(a.get()))),
        "ex2" => map1(|a: S| S::new(approx::ex2(a.get()))),
        "lg2" => map1(|a: S| S::new(approx::lg2(a.get()))),
        "sin" => map1(|a: S| S::new(approx::sin(a.get()))),
        "cos" => map1(|a: S| S::new(approx::cos(a.get()))),
        "tanh" => map1(|a: S| S::new(approx::tanh(a.get()))),
        _ => return None,
    })
}

/// Of an immediate: the rounding mode, and with bit 8 saturation to 0..1.
#[inline(always)]
fn finish<S: Single>(immediate: i64, exact: f64) -> S {
    let rounded = f32::from_bits(round(exact, F32, Mode::decode(immediate)));
    S::new(if immediate & 256 != 0 { saturate(rounded) } else { rounded })
}

/// NaN becomes 0.
#[inline(always)]
pub fn saturate(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// A sum rounded to odd. Where it cancels, `.rm` wants -0.
#[inline(always)]
fn sum(immediate: i64, a: f64, b: f64) -> f64 {
    let sum = sum_odd(a, b);
    let cancels = sum == 0.0 && a.is_sign_negative() != b.is_sign_negative();
    if cancels && immediate & 7 == Mode::Down as i64 { -0.0 } else { sum }
}

/// With a rounding mode or `.sat`.
fn directed<S: Single>(name: &str) -> Option<Lanewise> {
    #[inline(always)]
    fn wide<S: Single>(x: S) -> f64 {
        x.get() as f64
    }
    Some(match name {
        "add" => with2(|i, a: S, b: S| finish::<S>(i, sum(i, wide(a), wide(b)))),
        "sub" => with2(|i, a: S, b: S| finish::<S>(i, sum(i, wide(a), -wide(b)))),
        "mul" => with2(|i, a: S, b: S| finish::<S>(i, wide(a) * wide(b))),
        "fma" | "mad" => {
            with3(|i, a: S, b: S, c: S| finish::<S>(i, sum(i, wide(a) * wide(b), wide(c))))
        }
        "div" => with2(|i, a: S, b: S| finish::<S>(i, quotient_odd(wide(a), wide(b)))),
        "rcp" => with1(|i, a: S| finish::<S>(i, quotient_odd(1.0, wide(a)))),
        "sqrt" => with1(|i, a: S| finish::<S>(i, sqrt_odd(wide(a)))),
        _ => return None,
    })
}

/// `min` and `max`: a number wins over NaN, unless with `.NaN`; -0 is below +0.
fn extremum<S: Single>(code: &mut Opcode<'_>) -> Option<Lanewise> {
    let keeps_nan = code.flag("NaN") as i64;
    let is_max = (code.name == "max") as i64;
    let by_magnitude = (code.flag("xorsign") && code.flag("abs")) as i64;
    let found = with2(|flags, a: S, b: S| {
        let (a, b) = (a.get(), b.get());
        let sign = (a.to_bits() ^ b.to_bits()) & 1 << 31;
        let (x, y) = if flags & 4 != 0 { (a.abs(), b.abs()) } else { (a, b) };
        // Of equal ones the signs decide: the order of the bits as integers.
        let x_is_less = x < y || x == y && (x.to_bits() as i32) < y.to_bits() as i32;
        let chosen = if x_is_less == (flags & 2 == 0) { x } else { y };
        let chosen = if x.is_nan() {
            y
        } else if y.is_nan() {
            x
        } else {
            chosen
        };
        let has_nan = x.is_nan() || y.is_nan();
        let is_nan = chosen.is_nan() || has_nan && flags & 1 != 0;
        if is_nan {
            S::raw(NAN)
        } else if flags & 4 != 0 {
            S::raw(chosen.to_bits() | sign)
        } else {
            S::new(chosen)
        }
    });
    Some(found.immediate(keeps_nan | is_max << 1 | by_magnitude << 2))
}

fn testp(code: &mut Opcode<'_>) -> Option<Lanewise> {
    let tests = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"];
    let tests: [(&str, i64); 6] = std::array::from_fn(|i| (tests[i], i as i64));
    let test = code.pick(&tests)?;
    let found = match code.types.as_slice() {
        [Type::F32] => with1(|test, a: f32| passes(test, a.classify())),
        _ => with1(|test, a: f64| passes(test, a.classify())),
    };
    Some(found.immediate(test))
}

fn passes(test: i64, category: FpCategory) -> bool {
    match test {
        0 => !matches!(category, FpCategory::Nan | FpCategory::Infinite),
        1 => category == FpCategory::Infinite,
        2 => category != FpCategory::Nan,
        3 => category == FpCategory::Nan,
        // The manual counts zero among the normal numbers.
        4 => matches!(category, FpCategory::Normal | FpCategory::Zero),
        _ => category == FpCategory::Subnormal,
    }
}

/// The NaN of f64 operations.
const NAN64: u64 = 0xfff8_0000_0000_0000;

#[inline(always)]
fn canonical(x: f64) -> f64 {
    if x.is_nan() { f64::from_bits(NAN64) } else { x }
}

fn wide(code: &mut Opcode<'_>) -> Option<Lanewise> {
    if code.flag("approx") {
        return match (code.name, code.flag("ftz")) {
            ("rcp", true) => Some(map1(|a: f64| gross(1.0 / flush_wide(a)))),
            ("rsqrt", true) => Some(map1(|a: f64| gross(1.0 / flush_wide(a).sqrt()))),
            ("rsqrt", false) => Some(map1(|a: f64| canonical(1.0 / a.sqrt()))),
            _ => None,
        };
    }
    let mode = code.pick(&MODES).unwrap_or(Mode::Nearest);
    if mode != Mode::Nearest {
        let found = match code.name {
            "add" => with2(|i, a, b| canonical(double::add(a, b, Mode::decode(i)))),
            "sub" => with2(|i, a, b: f64| canonical(double::add(a, -b, Mode::decode(i)))),
            "mul" => with2(|i, a, b| canonical(double::multiply(a, b, Mode::decode(i)))),
            "fma" | "mad" => {
                with3(|i, a, b, c| canonical(double::multiply_add(a, b, c, Mode::decode(i))))
            }
            "div" => with2(|i, a, b| canonical(double::divide(a, b, Mode::decode(i)))),
            "rcp" => with1(|i, a| canonical(double::divide(1.0, a, Mode::decode(i)))),
            "sqrt" => with1(|i, a| canonical(double::sqrt(a, Mode::decode(i)))),
            _ => return None,
        };
        return Some(found.immediate(mode as i64));
    }
    Some(match code.name {
        "add" => map2(|a: f64, b: f64| canonical(a + b)),
        "sub" => map2(|a: f64, b: f64| canonical(a - b)),
        "mul" => map2(|a: f64, b: f64| canonical(a * b)),
        "fma" | "mad" => map3(|a: f64, b: f64, c: f64| canonical(a.mul_add(b, c))),
        "div" => map2(|a: f64, b: f64| canonical(a / b)),
        "sqrt" => map1(|a: f64| canonical(a.sqrt())),
        "rcp" => map1(|a: f64| canonical(1.0 / a)),
        "min" => map2(|a: f64, b: f64| smaller(a, b)),
        "max" => map2(|a: f64, b: f64| larger(a, b)),
        "abs" => map1(|a: u64| a & !(1 << 63)),
        "neg" => map1(|a: u64| a ^ 1 << 63),
        "copysign" => map2(|a: f64, b: f64| b.copysign(a)),
        "testp" => return testp(code),
        _ => return None,
    })
}

/// What the manual calls a gross approximation: the low 32 bits are zero.
#[inline(always)]
fn gross(x: f64) -> f64 {
    f64::from_bits(flush_wide(canonical(x)).to_bits() & !0 << 32)
}

#[inline(always)]
fn flush_wide(x: f64) -> f64 {
    if x.abs() < f64::MIN_POSITIVE { 0f64.copysign(x) } else { x }
}

/// A number wins over NaN; -0 is below +0.
#[inline(always)]
fn smaller(a: f64, b: f64) -> f64 {
    let a_is_less = a < b || a == b && a.is_sign_negative();
    canonical(if b.is_nan() || a_is_less { a } else { b })
}

/// As [`smaller`].
#[inline(always)]
fn larger(a: f64, b: f64) -> f64 {
    let a_is_more = a > b || a == b && a.is_sign_positive();
    canonical(if b.is_nan() || a_is_more { a } else { b })
}
