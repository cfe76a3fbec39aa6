//! `cvt`: between integers and floating-point types of any width.
//!
//! What kernels convert all the time has a function of its own. Everything else goes through the widest
//! integer or through a double that is rounded to odd, with the particulars in the immediate.

use super::Opcode;
use super::float::{MODES, flush, saturate};
use crate::exec::double::Exact;
use crate::exec::half::{self, Half};
use crate::exec::lanes::{Lane, Lanewise, Width, map1, map2, with1, with2};
use crate::exec::rounding::{self, Format, Mode, integer_odd, round};
use crate::ptx::ast::Type::{self, *};

/// The widths of the registers: they may be wider than the types.
pub fn decode(
    code: &mut Opcode<'_>,
    result: Width,
    source: Width,
) -> Result<Option<Lanewise>, String> {
    if code.flag("tf32") {
        return Ok(to_tf32(code));
    }
    let details = Details {
        mode: code.pick(&MODES).unwrap_or(Mode::Nearest),
        integral: code.pick(&INTEGRAL),
        saturates: code.flag("sat"),
        flushes: code.flag("ftz"),
        relu: code.flag("relu"),
        result: U32,
        source: U32,
    };
    let (to, from) = match *code.types.as_slice() {
        [to @ (F16x2 | Bf16x2), F32] => return Ok(pack(to, &details)),
        [to, from] => (to, from),
        _ => return Ok(None),
    };
    let details = Details { result: to, source: from, ..details };
    if (to, from, details.integral, details.saturates) == (F32, F32, None, true) {
        let flushed = |x: f32| saturate(flush(x));
        return Ok(Some(if details.flushes { map1(flushed) } else { map1(saturate) }));
    }
    let is_plain = !details.saturates && !details.flushes && !details.relu;
    let common = if is_plain && to.bytes() >= 4 && from.bytes() >= 4 {
        common(&details)
    } else {
        common_half(&details).filter(|_| is_plain)
    };
    let exact_registers = Some(to.bytes()) == bytes(result) && Some(from.bytes()) == bytes(source);
    if let Some(common) = common.filter(|_| exact_registers) {
        return Ok(Some(common));
    }
    let Some(found) = general(&details, result, source) else { return Ok(None) };
    let found = found.immediate(details.encode());
    Ok(Some(Lanewise { results: vec![result], sources: vec![source], ..found }))
}

fn bytes(width: Width) -> Option<u32> {
    match width {
        Width::Predicate => None,
        Width::B16 => Some(2),
        Width::B32 => Some(4),
        Width::B64 => Some(8),
    }
}

const INTEGRAL: [(&str, Mode); 4] =
    [("rni", Mode::Nearest), ("rzi", Mode::Zero), ("rmi", Mode::Down), ("rpi", Mode::Up)];

/// All that a conversion depends on.
#[derive(Clone, Copy)]
struct Details {
    mode: Mode,
    /// To an integral value, in this direction.
    integral: Option<Mode>,
    saturates: bool,
    flushes: bool,
    relu: bool,
    result: Type,
    source: Type,
}

impl Details {
    fn encode(self) -> i64 {
        let types = [self.result, self.source].map(|of| TYPES.iter().position(|&t| t == of));
        let [result, source] = types.map(|position| position.unwrap_or(0) as i64);
        let integral = self.integral.map_or(7, |mode| mode as i64);
        let flags = [self.saturates, self.flushes, self.relu].map(|flag| flag as i64);
        self.mode as i64
            | integral << 4
            | flags[0] << 8
            | flags[1] << 9
            | flags[2] << 10
            | result << 16
            | source << 24
    }

    #[inline(always)]
    fn decode(immediate: i64) -> Details {
        let r#type = |bits: i64| TYPES[(bits & 15).min(11) as usize];
        Details {
            mode: Mode::decode(immediate),
            integral: (immediate >> 4 & 15 != 7).then(|| Mode::decode(immediate >> 4)),
            saturates: immediate >> 8 & 1 != 0,
            flushes: immediate >> 9 & 1 != 0,
            relu: immediate >> 10 & 1 != 0,
            result: r#type(immediate >> 16),
            source: r#type(immediate >> 24),
        }
    }
}

const TYPES: [Type; 12] = [U8, U16, U32, U64, S8, S16, S32, S64, F16, Bf16, F32, F64];

/// Conversions of 32 and 64 bits with nothing special about them.
fn common(details: &Details) -> Option<Lanewise> {
    let Details { result, source, mode, integral, .. } = *details;
    Some(match (result, source) {
        (U32 | S32, U32 | S32) => map1(|a: u32| a),
        (U64 | S64, U64 | S64) => map1(|a: u64| a),
        (U64 | S64, U32) => map1(|a: u32| a as u64),
        (U64 | S64, S32) => map1(|a: i32| a as i64),
        (U32 | S32, U64 | S64) => map1(|a: u64| a as u32),
        (F32, S32) if mode == Mode::Nearest => map1(|a: i32| a as f32),
        (F32, U32) if mode == Mode::Nearest => map1(|a: u32| a as f32),
        (F32, S64) if mode == Mode::Nearest => map1(|a: i64| a as f32),
        (F32, U64) if mode == Mode::Nearest => map1(|a: u64| a as f32),
        (F64, S32) => map1(|a: i32| a as f64),
        (F64, U32) => map1(|a: u32| a as f64),
        (F64, S64) if mode == Mode::Nearest => map1(|a: i64| a as f64),
        (F64, U64) if mode == Mode::Nearest => map1(|a: u64| a as f64),
        (S32, F32) => match integral? {
            Mode::Nearest => map1(|a: f32| a.round_ties_even() as i32),
            Mode::Zero | Mode::Away => map1(|a: f32| a as i32),
            Mode::Down => map1(|a: f32| a.floor() as i32),
            Mode::Up => map1(|a: f32| a.ceil() as i32),
        },
        (U32, F32) if integral == Some(Mode::Zero) => map1(|a: f32| a as u32),
        (F32, F32) => match integral? {
            Mode::Nearest => map1(|a: f32| number(a.round_ties_even())),
            Mode::Zero | Mode::Away => map1(|a: f32| number(a.trunc())),
            Mode::Down => map1(|a: f32| number(a.floor())),
            Mode::Up => map1(|a: f32| number(a.ceil())),
        },
        _ => return None,
    })
}

#[inline(always)]
fn number(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(super::float::NAN) } else { x }
}

/// Between a half and f32, to nearest.
fn common_half(details: &Details) -> Option<Lanewise> {
    if details.integral.is_some() || details.mode != Mode::Nearest {
        return None;
    }
    Some(match (details.result, details.source) {
        (F16, F32) => map1(half::F16::narrow),
        (Bf16, F32) => map1(half::Bf16::narrow),
        (F32, F16) => map1(|a: half::F16| number(a.widen())),
        (F32, Bf16) => map1(|a: half::Bf16| number(a.widen())),
        _ => return None,
    })
}

/// `cvt.rn.bf16x2.f32 d, a, b`: a becomes the high half.
fn pack(to: Type, details: &Details) -> Option<Lanewise> {
    if details.integral.is_some() || details.saturates || details.flushes {
        return None;
    }
    Some(match (to, details.mode, details.relu) {
        (F16x2, Mode::Nearest, false) => pack_nearest::<half::F16>(),
        (Bf16x2, Mode::Nearest, false) => pack_nearest::<half::Bf16>(),
        (F16x2, ..) => pack_with::<half::F16>(details),
        _ => pack_with::<half::Bf16>(details),
    })
}

fn pack_nearest<H: Half>() -> Lanewise
where
    [H; 2]: Lane,
{
    map2(|a: f32, b: f32| [H::narrow(b), H::narrow(a)])
}

fn pack_with<H: Half>(details: &Details) -> Lanewise
where
    [H; 2]: Lane,
{
    let found = with2(|immediate, a: f32, b: f32| {
        let details = Details::decode(immediate);
        [b, a].map(|x| {
            let is_cut = details.relu && x <= 0.0;
            H::round(if is_cut { 0.0 } else { x as f64 }, details.mode)
        })
    });
    found.immediate(details.encode())
}

/// `cvt.rna.tf32.f32`: the 19 bits that tensor cores look at, the others zero.
fn to_tf32(code: &mut Opcode<'_>) -> Option<Lanewise> {
    let modes = [("rna", Mode::Away), ("rn", Mode::Nearest), ("rz", Mode::Zero)];
    let mode = code.pick(&modes)?;
    let &[F32] = code.types.as_slice() else { return None };
    let found = with1(|mode, a: f32| round(a as f64, rounding::TF32, Mode::decode(mode)) << 13);
    Some(found.immediate(mode as i64))
}

fn general(details: &Details, result: Width, source: Width) -> Option<Lanewise> {
    if !TYPES.contains(&details.result) || !TYPES.contains(&details.source) {
        return None;
    }
    Some(match (result, source) {
        (Width::B16, Width::B64) => with1(|i, a: u64| convert(i, a) as u16),
        (Width::B16, _) => with1(|i, a: u32| convert(i, a as u64) as u16),
        (Width::B32, Width::B64) => with1(|i, a: u64| convert(i, a) as u32),
        (Width::B32, _) => with1(|i, a: u32| convert(i, a as u64) as u32),
        (Width::B64, Width::B64) => with1(|i, a: u64| convert(i, a)),
        (Width::B64, _) => with1(|i, a: u32| convert(i, a as u64)),
        (Width::Predicate, _) => return None,
    })
}

/// Any conversion, of bits to bits.
fn convert(immediate: i64, bits: u64) -> u64 {
    let details = Details::decode(immediate);
    match details.source {
        F16 | Bf16 | F32 | F64 => from_float(&details, bits),
        _ => from_integer(&details, bits),
    }
}

/// The low bits as an integer of the type.
fn extend(bits: u64, r#type: Type) -> i128 {
    let unused = 64 - 8 * r#type.bytes();
    match r#type {
        S8 | S16 | S32 | S64 => ((bits << unused) as i64 >> unused) as i128,
        _ => (bits << unused >> unused) as i128,
    }
}

fn is_float(r#type: Type) -> bool {
    matches!(r#type, F16 | Bf16 | F32 | F64)
}

/// The least and the largest integer of a type.
fn range(r#type: Type) -> (i128, i128) {
    let bits = 8 * r#type.bytes();
    match r#type {
        S8 | S16 | S32 | S64 => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
        _ => (0, (1 << bits) - 1),
    }
}

fn from_integer(details: &Details, bits: u64) -> u64 {
    let value = extend(bits, details.source);
    if is_float(details.result) {
        let magnitude = value.unsigned_abs() as u64;
        let is_negative = value < 0;
        let exact = Exact { is_negative, significand: magnitude as u128, exponent: 0 };
        return match details.result {
            F64 => to_float(details, exact.round(details.mode)),
            _ => to_float(details, integer_odd(magnitude, is_negative)),
        };
    }
    let (least, largest) = range(details.result);
    let value = if details.saturates { value.clamp(least, largest) } else { value };
    // A wider register holds the extended value.
    extend(value as u64, details.result) as u64
}

fn from_float(details: &Details, bits: u64) -> u64 {
    let value = match details.source {
        F16 => half::F16::new(bits as u16).widen() as f64,
        Bf16 => half::Bf16::new(bits as u16).widen() as f64,
        F32 => {
            let value = f32::from_bits(bits as u32);
            let is_zero = details.flushes && value.is_subnormal();
            if is_zero { 0f32.copysign(value) as f64 } else { value as f64 }
        }
        _ => f64::from_bits(bits),
    };
    let value = match details.integral {
        None => value,
        Some(Mode::Nearest) => value.round_ties_even(),
        Some(Mode::Zero | Mode::Away) => value.trunc(),
        Some(Mode::Down) => value.floor(),
        Some(Mode::Up) => value.ceil(),
    };
    if is_float(details.result) {
        return to_float(details, value);
    }
    let is_wide = details.source == F64 || details.result.bytes() == 8;
    let integer = if value.is_nan() && is_wide {
        1 << (8 * details.result.bytes() - 1)
    } else {
        let (least, largest) = range(details.result);
        // A cast saturates, and makes 0 of NaN.
        (value as i128).clamp(least, largest)
    };
    extend(integer as u64, details.result) as u64
}

fn to_float(details: &Details, exact: f64) -> u64 {
    let exact = if details.relu && exact <= 0.0 { 0.0 } else { exact };
    let narrow = |format: Format| round(exact, format, details.mode);
    match details.result {
        F16 | Bf16 => {
            let (format, one) = match details.result {
                F16 => (rounding::F16, half::F16::ONE),
                _ => (rounding::BF16, half::Bf16::ONE),
            };
            match details.saturates {
                true if exact >= 1.0 => one as u64,
                true if exact > 0.0 => narrow(format) as u64,
                true => 0,
                false => narrow(format) as u64,
            }
        }
        F32 => {
            let value = f32::from_bits(narrow(rounding::F32));
            let is_zero = details.flushes && value.is_subnormal();
            let value = if is_zero { 0f32.copysign(value) } else { value };
            (if details.saturates { saturate(value) } else { value }).to_bits() as u64
        }
        _ if details.saturates => (if exact > 0.0 { exact.min(1.0) } else { 0.0 }).to_bits(),
        _ if exact.is_nan() => 0xfff8_0000_0000_0000,
        _ => exact.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_survive_their_encoding() {
        for (mode, integral, flag) in
            [(Mode::Up, None, true), (Mode::Nearest, Some(Mode::Down), false)]
        {
            for (result, source) in [(U8, F64), (F64, U8), (S64, Bf16)] {
                let details = Details {
                    mode,
                    integral,
                    saturates: flag,
                    flushes: !flag,
                    relu: flag,
                    result,
                    source,
                };
                let back = Details::decode(details.encode());
                assert_eq!((back.mode, back.integral), (mode, integral));
                assert_eq!((back.saturates, back.flushes, back.relu), (flag, !flag, flag));
                assert_eq!((back.result, back.source), (result, source));
            }
        }
    }
}
