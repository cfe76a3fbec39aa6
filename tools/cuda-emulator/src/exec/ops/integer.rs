//! Integer arithmetic, logic, shifts and bit fields.

use super::Opcode;
use crate::exec::lanes::{Lanewise, map1, map2, map3, map4, with1, with2, with3};
use crate::ptx::ast::Type::{self, *};

/// `None`: not an opcode of this file.
pub fn decode(code: &mut Opcode<'_>) -> Result<Option<Lanewise>, String> {
    let types = code.types.clone();
    let Some(&first) = types.first() else { return Ok(None) };
    let name = code.name;
    let found = match name {
        "add" | "sub" if code.flag("sat") => saturating(name, first),
        "mul" | "mad" => product(code, first),
        "mul24" | "mad24" => product24(code, first),
        "fns" if first == B32 => Some(map3(find_nth_set)),
        "bfind" => bfind(code.flag("shiftamt"), first),
        "shf" => funnel_shift(code),
        "prmt" if first == B32 => Some(prmt(code)),
        "dp4a" => dot4(&types),
        "dp2a" => dot2(code, &types),
        "szext" => szext(code, first),
        "bmsk" => bmsk(code),
        _ => arithmetic(name, first).or_else(|| bits(name, first)),
    };
    Ok(found)
}

fn arithmetic(name: &str, r#type: Type) -> Option<Lanewise> {
    Some(match (name, r#type) {
        ("add", U16 | S16) => map2(u16::wrapping_add),
        ("add", U32 | S32) => map2(u32::wrapping_add),
        ("add", U64 | S64) => map2(u64::wrapping_add),
        ("sub", U16 | S16) => map2(u16::wrapping_sub),
        ("sub", U32 | S32) => map2(u32::wrapping_sub),
        ("sub", U64 | S64) => map2(u64::wrapping_sub),
        // As the machine divides by zero: all bits are set, and the remainder is the dividend.
        ("div", U16) => map2(|a: u16, b: u16| a.checked_div(b).unwrap_or(!0)),
        ("div", U32) => map2(|a: u32, b: u32| a.checked_div(b).unwrap_or(!0)),
        ("div", U64) => map2(|a: u64, b: u64| a.checked_div(b).unwrap_or(!0)),
        ("div", S16) => map2(|a: i16, b: i16| if b == 0 { -1 } else { a.wrapping_div(b) }),
        ("div", S32) => map2(|a: i32, b: i32| if b == 0 { -1 } else { a.wrapping_div(b) }),
        ("div", S64) => map2(|a: i64, b: i64| if b == 0 { -1 } else { a.wrapping_div(b) }),
        ("rem", U16) => map2(|a: u16, b: u16| a.checked_rem(b).unwrap_or(a)),
        ("rem", U32) => map2(|a: u32, b: u32| a.checked_rem(b).unwrap_or(a)),
        ("rem", U64) => map2(|a: u64, b: u64| a.checked_rem(b).unwrap_or(a)),
        ("rem", S16) => map2(|a: i16, b: i16| if b == 0 { a } else { a.wrapping_rem(b) }),
        ("rem", S32) => map2(|a: i32, b: i32| if b == 0 { a } else { a.wrapping_rem(b) }),
        ("rem", S64) => map2(|a: i64, b: i64| if b == 0 { a } else { a.wrapping_rem(b) }),
        ("min", U16) => map2(<u16 as Ord>::min),
        ("min", S16) => map2(<i16 as Ord>::min),
        ("min", U32) => map2(<u32 as Ord>::min),
        ("min", S32) => map2(<i32 as Ord>::min),
        ("min", U64) => map2(<u64 as Ord>::min),
        ("min", S64) => map2(<i64 as Ord>::min),
        ("max", U16) => map2(<u16 as Ord>::max),
        ("max", S16) => map2(<i16 as Ord>::max),
        ("max", U32) => map2(<u32 as Ord>::max),
        ("max", S32) => map2(<i32 as Ord>::max),
        ("max", U64) => map2(<u64 as Ord>::max),
        ("max", S64) => map2(<i64 as Ord>::max),
        ("abs", S16) => map1(i16::wrapping_abs),
        ("abs", S32) => map1(i32::wrapping_abs),
        ("abs", S64) => map1(i64::wrapping_abs),
        ("neg", S16) => map1(i16::wrapping_neg),
        ("neg", S32) => map1(i32::wrapping_neg),
        ("neg", S64) => map1(i64::wrapping_neg),
        ("sad", U16) => map3(|a: u16, b: u16, c: u16| c.wrapping_add(a.abs_diff(b))),
        ("sad", S16) => map3(|a: i16, b: i16, c: u16| c.wrapping_add(a.abs_diff(b))),
        ("sad", U32) => map3(|a: u32, b: u32, c: u32| c.wrapping_add(a.abs_diff(b))),
        ("sad", S32) => map3(|a: i32, b: i32, c: u32| c.wrapping_add(a.abs_diff(b))),
        ("sad", U64) => map3(|a: u64, b: u64, c: u64| c.wrapping_add(a.abs_diff(b))),
        ("sad", S64) => map3(|a: i64, b: i64, c: u64| c.wrapping_add(a.abs_diff(b))),
        _ => return None,
    })
}

fn bits(name: &str, r#type: Type) -> Option<Lanewise> {
    Some(match (name, r#type) {
        ("and", Pred) => map2(|a: bool, b: bool| a & b),
        ("and", B16) => map2(|a: u16, b: u16| a & b),
        ("and", B32) => map2(|a: u32, b: u32| a & b),
        ("and", B64) => map2(|a: u64, b: u64| a & b),
        ("or", Pred) => map2(|a: bool, b: bool| a | b),
        ("or", B16) => map2(|a: u16, b: u16| a | b),
        ("or", B32) => map2(|a: u32, b: u32| a | b),
        ("or", B64) => map2(|a: u64, b: u64| a | b),
        ("xor", Pred) => map2(|a: bool, b: bool| a ^ b),
        ("xor", B16) => map2(|a: u16, b: u16| a ^ b),
        ("xor", B32) => map2(|a: u32, b: u32| a ^ b),
        ("xor", B64) => map2(|a: u64, b: u64| a ^ b),
        ("not", Pred) => map1(|a: bool| !a),
        ("not", B16) => map1(|a: u16| !a),
        ("not", B32) => map1(|a: u32| !a),
        ("not", B64) => map1(|a: u64| !a),
        ("cnot", B16) => map1(|a: u16| (a == 0) as u16),
        ("cnot", B32) => map1(|a: u32| (a == 0) as u32),
        ("cnot", B64) => map1(|a: u64| (a == 0) as u64),
        // Shifts by more than all bits give 0, or the sign.
        ("shl", B16) => map2(|a: u16, n: u32| if n < 16 { a << n } else { 0 }),
        ("shl", B32) => map2(|a: u32, n: u32| if n < 32 { a << n } else { 0 }),
        ("shl", B64) => map2(|a: u64, n: u32| if n < 64 { a << n } else { 0 }),
        ("shr", U16 | B16) => map2(|a: u16, n: u32| if n < 16 { a >> n } else { 0 }),
        ("shr", U32 | B32) => map2(|a: u32, n: u32| if n < 32 { a >> n } else { 0 }),
        ("shr", U64 | B64) => map2(|a: u64, n: u32| if n < 64 { a >> n } else { 0 }),
        ("shr", S16) => map2(|a: i16, n: u32| a >> n.min(15)),
        ("shr", S32) => map2(|a: i32, n: u32| a >> n.min(31)),
        ("shr", S64) => map2(|a: i64, n: u32| a >> n.min(63)),
        ("popc", B32) => map1(u32::count_ones),
        ("popc", B64) => map1(u64::count_ones),
        ("clz", B32) => map1(u32::leading_zeros),
        ("clz", B64) => map1(u64::leading_zeros),
        ("brev", B32) => map1(u32::reverse_bits),
        ("brev", B64) => map1(u64::reverse_bits),
        ("bfe", U32) => map3(|a: u32, at, bits| extract(a as u64, 32, at, bits, false) as u32),
        ("bfe", S32) => map3(|a: i32, at, bits| extract(a as u64, 32, at, bits, true) as u32),
        ("bfe", U64) => map3(|a: u64, at, bits| extract(a, 64, at, bits, false)),
        ("bfe", S64) => map3(|a: u64, at, bits| extract(a, 64, at, bits, true)),
        ("bfi", B32) => {
            map4(|a: u32, b: u32, at, bits| insert(a as u64, b as u64, at, bits) as u32)
        }
        ("bfi", B64) => map4(|a: u64, b: u64, at, bits| insert(a, b, at, bits)),
        ("lop3", B32) => with3(|table, a: u32, b: u32, c: u32| {
            let mut result = 0;
            for row in 0..8 {
                let select = |value: u32, bit: u32| if row & bit != 0 { value } else { !value };
                let chosen = 0u32.wrapping_sub((table >> row & 1) as u32);
                result |= chosen & select(a, 4) & select(b, 2) & select(c, 1);
            }
            result
        }),
        _ => return None,
    })
}

fn saturating(name: &str, r#type: Type) -> Option<Lanewise> {
    Some(match (name, r#type) {
        ("add", S32) => map2(i32::saturating_add),
        ("sub", S32) => map2(i32::saturating_sub),
        _ => return None,
    })
}

/// `mul` and `mad` with `.lo`, `.hi` and `.wide`.
fn product(code: &mut Opcode<'_>, r#type: Type) -> Option<Lanewise> {
    let part = code.pick(&[("lo", 'l'), ("hi", 'h'), ("wide", 'w')])?;
    Some(match (code.name, part, r#type) {
        ("mul", 'l', U16 | S16) => map2(u16::wrapping_mul),
        ("mul", 'l', U32 | S32) => map2(u32::wrapping_mul),
        ("mul", 'l', U64 | S64) => map2(u64::wrapping_mul),
        ("mul", 'h', U16) => map2(high_u16),
        ("mul", 'h', S16) => map2(high_s16),
        ("mul", 'h', U32) => map2(high_u32),
        ("mul", 'h', S32) => map2(high_s32),
        ("mul", 'h', U64) => map2(high_u64),
        ("mul", 'h', S64) => map2(high_s64),
        ("mul", 'w', U16) => map2(|a: u16, b: u16| a as u32 * b as u32),
        ("mul", 'w', S16) => map2(|a: i16, b: i16| a as i32 * b as i32),
        ("mul", 'w', U32) => map2(|a: u32, b: u32| a as u64 * b as u64),
        ("mul", 'w', S32) => map2(|a: i32, b: i32| a as i64 * b as i64),
        ("mad", 'l', U16 | S16) => map3(|a: u16, b, c| a.wrapping_mul(b).wrapping_add(c)),
        ("mad", 'l', U32 | S32) => map3(|a: u32, b, c| a.wrapping_mul(b).wrapping_add(c)),
        ("mad", 'l', U64 | S64) => map3(|a: u64, b, c| a.wrapping_mul(b).wrapping_add(c)),
        ("mad", 'h', S32) if code.flag("sat") => {
            map3(|a: i32, b: i32, c: i32| high_s32(a, b).saturating_add(c))
        }
        ("mad", 'h', U32) => map3(|a: u32, b: u32, c: u32| high_u32(a, b).wrapping_add(c)),
        ("mad", 'h', S32) => map3(|a: i32, b: i32, c: i32| high_s32(a, b).wrapping_add(c)),
        ("mad", 'h', U64) => map3(|a: u64, b: u64, c: u64| high_u64(a, b).wrapping_add(c)),
        ("mad", 'h', S64) => map3(|a: i64, b: i64, c: i64| high_s64(a, b).wrapping_add(c)),
        ("mad", 'h', U16) => map3(|a: u16, b: u16, c: u16| high_u16(a, b).wrapping_add(c)),
        ("mad", 'h', S16) => map3(|a: i16, b: i16, c: i16| high_s16(a, b).wrapping_add(c)),
        ("mad", 'w', U16) => map3(|a: u16, b: u16, c: u32| c.wrapping_add(a as u32 * b as u32)),
        ("mad", 'w', S16) => map3(|a: i16, b: i16, c: i32| c.wrapping_add(a as i32 * b as i32)),
        ("mad", 'w', U32) => map3(|a: u32, b: u32, c: u64| c.wrapping_add(a as u64 * b as u64)),
        ("mad", 'w', S32) => map3(|a: i32, b: i32, c: i64| c.wrapping_add(a as i64 * b as i64)),
        _ => return None,
    })
}

/// The high half of a product.
macro_rules! high_halves {
    ($($name:ident, $type:ty, $wide:ty;)*) => {$(
        #[inline(always)]
        pub fn $name(a: $type, b: $type) -> $type {
            ((a as $wide * b as $wide) >> <$type>::BITS) as $type
        }
    )*};
}

high_halves! {
    high_u16, u16, u32;
    high_s16, i16, i32;
    high_u32, u32, u64;
    high_s32, i32, i64;
    high_u64, u64, u128;
    high_s64, i64, i128;
}

/// Bits 0 to 31 or 16 to 47 of the product of two numbers of 24 bits.
fn product24(code: &mut Opcode<'_>, r#type: Type) -> Option<Lanewise> {
    #[inline(always)]
    fn unsigned(a: u32, b: u32) -> u64 {
        (a & 0xff_ffff) as u64 * (b & 0xff_ffff) as u64
    }
    #[inline(always)]
    fn signed(a: i32, b: i32) -> i64 {
        (a << 8 >> 8) as i64 * (b << 8 >> 8) as i64
    }
    let part = code.pick(&[("lo", 'l'), ("hi", 'h')])?;
    Some(match (code.name, part, r#type) {
        ("mul24", 'l', U32) => map2(|a: u32, b: u32| unsigned(a, b) as u32),
        ("mul24", 'l', S32) => map2(|a: i32, b: i32| signed(a, b) as i32),
        ("mul24", 'h', U32) => map2(|a: u32, b: u32| (unsigned(a, b) >> 16) as u32),
        ("mul24", 'h', S32) => map2(|a: i32, b: i32| (signed(a, b) >> 16) as i32),
        ("mad24", 'l', U32) => map3(|a: u32, b: u32, c: u32| c.wrapping_add(unsigned(a, b) as u32)),
        ("mad24", 'l', S32) => map3(|a: i32, b: i32, c: i32| c.wrapping_add(signed(a, b) as i32)),
        ("mad24", 'h', S32) if code.flag("sat") => {
            map3(|a: i32, b: i32, c: i32| c.saturating_add((signed(a, b) >> 16) as i32))
        }
        ("mad24", 'h', U32) => {
            map3(|a: u32, b: u32, c: u32| c.wrapping_add((unsigned(a, b) >> 16) as u32))
        }
        ("mad24", 'h', S32) => {
            map3(|a: i32, b: i32, c: i32| c.wrapping_add((signed(a, b) >> 16) as i32))
        }
        _ => return None,
    })
}

/// The highest bit that is not the sign; counted from the top with `.shiftamt`. None: all bits set.
fn bfind(is_shift: bool, r#type: Type) -> Option<Lanewise> {
    #[inline(always)]
    fn find(leading_zeros: u32, bits: u32, is_shift: i64) -> u32 {
        if leading_zeros == bits {
            !0
        } else if is_shift != 0 {
            leading_zeros
        } else {
            bits - 1 - leading_zeros
        }
    }
    // A sign-extended number and its complement have the same highest bit of interest.
    let found = match r#type {
        U32 => with1(|shift, a: u32| find(a.leading_zeros(), 32, shift)),
        S32 => with1(|shift, a: i32| find((a ^ a >> 31).leading_zeros(), 32, shift)),
        U64 => with1(|shift, a: u64| find(a.leading_zeros(), 64, shift)),
        S64 => with1(|shift, a: i64| find((a ^ a >> 63).leading_zeros(), 64, shift)),
        _ => return None,
    };
    Some(found.immediate(is_shift as i64))
}

/// The n-th bit that is set from bit `base` on upwards, or with a negative n downwards; with 0 `base` itself.
/// None: all bits set.
#[inline(always)]
fn find_nth_set(bits: u32, base: u32, n: i32) -> u32 {
    let mut left = n.unsigned_abs().max(1);
    let mut at = base as i32;
    while (0..32).contains(&at) {
        left -= bits >> at & 1;
        if left == 0 {
            return at as u32;
        }
        if n == 0 {
            break;
        }
        at += n.signum();
    }
    !0
}

/// `bits` bits of `a` from bit `at`; beyond the top, or signed, the sign is repeated.
#[inline(always)]
fn extract(a: u64, width: u32, at: u32, bits: u32, is_signed: bool) -> u64 {
    let (at, bits) = (at & 0xff, bits & 0xff);
    let top = (at + bits).min(width).wrapping_sub(1) & 63;
    let sign = is_signed && bits != 0 && a >> top & 1 != 0;
    let fill = if sign { !0 } else { 0 };
    let field = if at < width { a >> (at & 63) } else { fill };
    // Where the number ends before the field does, the sign goes on.
    let there = width.saturating_sub(at).min(bits);
    let known = if there < 64 { (1u64 << (there & 63)) - 1 } else { !0 };
    field & known | fill & !known
}

/// The low `bits` bits of `a` over those of `b` from bit `at`.
#[inline(always)]
fn insert(a: u64, b: u64, at: u32, bits: u32) -> u64 {
    let (at, bits) = (at & 0xff, bits & 0xff);
    let field = if bits < 64 { (1u64 << (bits & 63)) - 1 } else { !0 };
    let mask = if at < 64 { field << (at & 63) } else { 0 };
    let moved = if at < 64 { a << (at & 63) } else { 0 };
    moved & mask | b & !mask
}

/// The high half of b:a shifted left, or the low half of it shifted right.
fn funnel_shift(code: &mut Opcode<'_>) -> Option<Lanewise> {
    #[inline(always)]
    fn pair(a: u32, b: u32) -> u64 {
        (b as u64) << 32 | a as u64
    }
    let to = code.pick(&[("l", 'l'), ("r", 'r')])?;
    let amount = code.pick(&[("clamp", 'c'), ("wrap", 'w')])?;
    Some(match (to, amount, code.types.as_slice()) {
        ('l', 'w', [B32]) => map3(|a: u32, b: u32, n: u32| (pair(a, b) << (n & 31) >> 32) as u32),
        ('l', _, [B32]) => map3(|a: u32, b: u32, n: u32| (pair(a, b) << n.min(32) >> 32) as u32),
        ('r', 'w', [B32]) => map3(|a: u32, b: u32, n: u32| (pair(a, b) >> (n & 31)) as u32),
        ('r', _, [B32]) => map3(|a: u32, b: u32, n: u32| (pair(a, b) >> n.min(32)) as u32),
        _ => return None,
    })
}

/// Four bytes chosen from the eight of b:a.
fn prmt(code: &mut Opcode<'_>) -> Lanewise {
    #[inline(always)]
    fn permute(a: u32, b: u32, selectors: [u32; 4]) -> u32 {
        let bytes = (b as u64) << 32 | a as u64;
        let mut result = 0;
        for (i, selector) in selectors.into_iter().enumerate() {
            let byte = (bytes >> (8 * (selector & 7))) as u32 & 0xff;
            // With bit 3 the byte's sign instead of the byte.
            let byte = if selector & 8 != 0 { (byte >> 7) * 0xff } else { byte };
            result |= byte << (8 * i);
        }
        result
    }
    let modes = ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"];
    let modes: [(&str, i64); 6] = std::array::from_fn(|i| (modes[i], i as i64));
    let Some(mode) = code.pick(&modes) else {
        return map3(|a, b, c: u32| {
            permute(a, b, [c & 15, c >> 4 & 15, c >> 8 & 15, c >> 12 & 15])
        });
    };
    let prmt = with3(|mode, a, b, c: u32| {
        let n = c & 3;
        let selectors = match mode {
            0 => [n, n + 1, n + 2, n + 3],
            1 => [n, n + 7, n + 6, n + 5],
            2 => [n; 4],
            3 => [n, n.max(1), n.max(2), 3],
            4 => [0, n.min(1), n.min(2), n],
            _ => [(n & 1) * 2, (n & 1) * 2 + 1, (n & 1) * 2, (n & 1) * 2 + 1],
        };
        permute(a, b, selectors.map(|selector| selector & 7))
    });
    prmt.immediate(mode)
}

/// Field `i` of `bits` bits, sign- or zero-extended.
#[inline(always)]
fn field(a: u32, i: u32, bits: u32, is_signed: bool) -> i32 {
    let moved = a << (32 - bits * (i + 1));
    if is_signed { moved as i32 >> (32 - bits) } else { (moved >> (32 - bits)) as i32 }
}

/// The sum of the products of four bytes each, added to c.
fn dot4(types: &[Type]) -> Option<Lanewise> {
    let &[a @ (U32 | S32), b @ (U32 | S32)] = types else { return None };
    let dot = with3(|signs, a: u32, b: u32, c: u32| {
        let mut sum = c as i32;
        for i in 0..4 {
            let product = field(a, i, 8, signs & 1 != 0) * field(b, i, 8, signs & 2 != 0);
            sum = sum.wrapping_add(product);
        }
        sum as u32
    });
    Some(dot.immediate((a == S32) as i64 | ((b == S32) as i64) << 1))
}

/// The sum of the products of two halves of a with two bytes of b, the low or the high ones, added to c.
fn dot2(code: &mut Opcode<'_>, types: &[Type]) -> Option<Lanewise> {
    let is_high = code.pick(&[("lo", 0), ("hi", 4)])?;
    let &[a @ (U32 | S32), b @ (U32 | S32)] = types else { return None };
    let dot = with3(|flags, a: u32, b: u32, c: u32| {
        let (mut sum, first) = (c as i32, if flags & 4 != 0 { 2 } else { 0 });
        for i in 0..2 {
            let product = field(a, i, 16, flags & 1 != 0) * field(b, first + i, 8, flags & 2 != 0);
            sum = sum.wrapping_add(product);
        }
        sum as u32
    });
    Some(dot.immediate((a == S32) as i64 | ((b == S32) as i64) << 1 | is_high))
}

/// The low b bits of a, extended.
fn szext(code: &mut Opcode<'_>, r#type: Type) -> Option<Lanewise> {
    let wraps = code.pick(&[("clamp", 0), ("wrap", 1)])?;
    let is_signed = match r#type {
        U32 => 0,
        S32 => 2,
        _ => return None,
    };
    let extend = with2(|flags, a: u32, n: u32| {
        let n = if flags & 1 != 0 { n & 31 } else { n.min(32) };
        extract(a as u64, 32, 0, n, flags & 2 != 0) as u32
    });
    Some(extend.immediate(wraps | is_signed))
}

/// b bits from bit a.
fn bmsk(code: &mut Opcode<'_>) -> Option<Lanewise> {
    let wraps = code.pick(&[("clamp", 0), ("wrap", 1)])?;
    let &[B32] = code.types.as_slice() else { return None };
    let mask = with2(|wraps, a: u32, b: u32| {
        let (a, b) = if wraps != 0 { (a & 31, b & 31) } else { (a.min(32), b.min(32)) };
        insert(!0, 0, a, b) as u32
    });
    Some(mask.immediate(wraps))
}
