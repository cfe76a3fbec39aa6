//! Instructions of every lane for itself: arithmetic, moves, conversions, comparisons.

use super::Decoder;
use super::binder::{CARRY, SCRATCH, negated, width};
use crate::exec::half::{self, Half};
use crate::exec::lanes::{
    Chosen, Lane, Lanewise, Run, Width, compile, map1, map2, map4, with1, with2,
};
use crate::exec::ops::{self, Opcode, carry, compare, convert, float, integer};
use crate::exec::program::{Instruction, Operand};
use crate::exec::warp::{Block, Warp};
use crate::ptx::ast::{Operand as Text, Type};

pub fn decode(
    decoder: &mut Decoder<'_>,
    code: &mut Opcode<'_>,
    text: &[Text],
) -> Result<(), String> {
    match code.name {
        "mov" => return copy(decoder, code, text),
        "setp" => return setp(decoder, code, text),
        "set" => return set(decoder, code, text),
        "lop3" => return lop3(decoder, code, text),
        "addc" | "subc" | "madc" => return carry(decoder, code, text),
        "add" | "sub" | "mad" if code.has("cc") => return carry(decoder, code, text),
        _ => {}
    }
    let found = match (code.name, code.types.as_slice()) {
        ("selp", &[r#type]) => compare::select(r#type),
        ("slct", _) => compare::select_by_sign(code),
        ("cvt", _) => {
            let width = |text: Option<&Text>, r#type: Option<&Type>| {
                let of_register = text.and_then(|text| decoder.binder.register_width(text));
                // A literal or a special register is as wide as the type, a byte as a half.
                of_register.or_else(|| r#type.map(|&r#type| width(r#type).unwrap_or(Width::B16)))
            };
            let widths =
                (width(text.first(), code.types.first()), width(text.get(1), code.types.get(1)));
            match widths {
                (Some(result), Some(source)) => convert::decode(code, result, source)?,
                _ => None,
            }
        }
        _ => match float::decode(code)? {
            Some(found) => Some(found),
            None => match ops::half::decode(code)? {
                Some(found) => Some(found),
                None => integer::decode(code)?,
            },
        },
    };
    match found {
        Some(found) => decoder.lanewise(found, text),
        None => Err("not supported, or not with these modifiers and types".into()),
    }
}

/// `mov`, which also packs and unpacks.
fn copy(decoder: &mut Decoder<'_>, code: &Opcode<'_>, text: &[Text]) -> Result<(), String> {
    super::count(text, 2)?;
    let &[r#type] = code.types.as_slice() else { return code.unsupported_type() };
    if let Text::Vector(parts) = &text[1] {
        let pack = match (width(r#type), parts.len()) {
            (Some(Width::B32), 4) => map4(|a: u16, b: u16, c: u16, d: u16| {
                let byte = |x: u16| x as u32 & 0xff;
                byte(a) | byte(b) << 8 | byte(c) << 16 | byte(d) << 24
            }),
            (Some(Width::B16), 2) => map2(|a: u16, b: u16| a & 0xff | b << 8),
            (Some(Width::B32), 2) => map2(|a: u16, b: u16| a as u32 | (b as u32) << 16),
            (Some(Width::B64), 2) => map2(|a: u32, b: u32| a as u64 | (b as u64) << 32),
            (Some(Width::B64), 4) => map4(|a: u16, b: u16, c: u16, d: u16| {
                a as u64 | (b as u64) << 16 | (c as u64) << 32 | (d as u64) << 48
            }),
            _ => return code.unsupported_type(),
        };
        let text: Vec<Text> = std::iter::once(&text[0]).chain(parts).cloned().collect();
        return decoder.lanewise(pack, &text);
    }
    if let Text::Vector(parts) = &text[0] {
        for (i, part) in parts.iter().enumerate() {
            let shift = 8 * (r#type.bytes() as usize / parts.len() * i) as i64;
            let unpack = match (width(r#type), parts.len()) {
                (Some(Width::B32), 4) => with1(|shift, a: u32| (a >> (shift & 31)) as u16 & 0xff),
                (Some(Width::B16), 2) => with1(|shift, a: u16| a >> (shift & 15) & 0xff),
                (Some(Width::B32), 2) => with1(|shift, a: u32| (a >> (shift & 31)) as u16),
                (Some(Width::B64), 2) => with1(|shift, a: u64| (a >> (shift & 63)) as u32),
                (Some(Width::B64), 4) => with1(|shift, a: u64| (a >> (shift & 63)) as u16),
                _ => return code.unsupported_type(),
            };
            if *part != Text::Sink {
                decoder.lanewise(unpack.immediate(shift), &[part.clone(), text[1].clone()])?;
            }
        }
        return Ok(());
    }
    if let Text::Special(name) = &text[1] {
        let clock = match name.as_str() {
            "%clock" | "%clock_hi" => Some((clock(|count| count as u32), Width::B32)),
            "%clock64" | "%globaltimer" => Some((clock(|count| count), Width::B64)),
            _ => None,
        };
        if let Some((run, width)) = clock {
            let result = decoder.binder.result(&text[0], width)?;
            decoder.lanes(run, &[result], (name == "%clock_hi") as i64 * 32);
            return Ok(());
        }
    }
    let copy = match width(r#type) {
        Some(Width::Predicate) => map1(|a: bool| a),
        Some(Width::B16) => map1(|a: u16| a),
        Some(Width::B32) => map1(|a: u32| a),
        Some(Width::B64) => map1(|a: u64| a),
        None => return code.unsupported_type(),
    };
    decoder.lanewise(copy, text)
}

/// The count of instructions that the warp has run, shifted right by the immediate.
fn clock<T: Lane + Default>(truncate: impl Fn(u64) -> T + Copy) -> Run {
    compile(
        #[inline(always)]
        move |warp: &mut Warp, _: &Block<'_>, instruction: &Instruction, mask| {
            let count = truncate(warp.clock >> instruction.immediate);
            T::store(warp, instruction.operands[0], [count; 32], mask);
            Ok(())
        },
    )
}

/// `setp.lt.and.s32 p|q, a, b, c`
fn setp(decoder: &mut Decoder<'_>, code: &mut Opcode<'_>, text: &[Text]) -> Result<(), String> {
    let (&[r#type], [result, sources @ ..]) = (code.types.as_slice(), text) else {
        return code.unsupported_type();
    };
    let (p, q) = match result {
        Text::Pair(p, q) => (&**p, &**q),
        p => (p, &Text::Sink),
    };
    let p = decoder.binder.result(p, Width::Predicate)?;
    let q = decoder.binder.result(q, Width::Predicate)?;
    comparison(decoder, code, r#type, [p, q], sources)
}

/// `set.lt.f32.s32 d, a, b`: a comparison whose result is a number, of pairs a pair of them.
fn set(decoder: &mut Decoder<'_>, code: &mut Opcode<'_>, text: &[Text]) -> Result<(), String> {
    use Type::{Bf16, Bf16x2, F16, F16x2, F32, S16, S32, U16, U32};
    let (&[result, source], [d, sources @ ..]) = (code.types.as_slice(), text) else {
        return code.unsupported_type();
    };
    let is_pair = matches!(source, F16x2 | Bf16x2);
    let yes = match (result, is_pair) {
        (U32 | S32, false) => 0xffff_ffff,
        (F32, false) => 1f32.to_bits() as i64,
        (U16 | S16, false) | (U32 | S32, true) => 0xffff,
        (F16, false) | (F16x2, true) => half::F16::ONE as i64,
        (Bf16, false) | (Bf16x2, true) => half::Bf16::ONE as i64,
        _ => return code.unsupported_type(),
    };
    comparison(decoder, code, source, SCRATCH, sources)?;
    let number = match (result.bytes(), is_pair) {
        (_, true) => with2(|yes, low: Chosen<u32>, high: Chosen<u32>| {
            low.0 & yes as u32 | (high.0 & yes as u32) << 16
        }),
        (2, _) => with1(|yes, p: Chosen<u32>| (p.0 & yes as u32) as u16),
        _ => with1(|yes, p: Chosen<u32>| p.0 & yes as u32),
    };
    let d = decoder.binder.result(d, number.results[0])?;
    decoder.lanes(number.run, &[d, SCRATCH[0], SCRATCH[1]], yes);
    Ok(())
}

/// Of sources a, b and perhaps c into the predicates p and q.
fn comparison(
    decoder: &mut Decoder<'_>,
    code: &mut Opcode<'_>,
    r#type: Type,
    [p, q]: [Operand; 2],
    sources: &[Text],
) -> Result<(), String> {
    let comparison = compare::comparison(code, r#type)?;
    super::count(sources, 2 + comparison.combines as usize)?;
    let binder = &mut decoder.binder;
    let a = binder.source(&sources[0], comparison.width)?;
    let b = binder.source(&sources[1], comparison.width)?;
    let c = match sources.get(2) {
        Some(c) => binder.source(c, Width::Predicate)?,
        None => Operand::TRUE,
    };
    decoder.lanes(comparison.run, &[p, q, a, b, c], comparison.immediate);
    Ok(())
}

/// `lop3.b32 d, a, b, c, table`
fn lop3(decoder: &mut Decoder<'_>, code: &mut Opcode<'_>, text: &[Text]) -> Result<(), String> {
    let Some((Text::Integer(table), rest)) = text.split_last() else {
        return Err("expected a literal table".into());
    };
    match integer::decode(code)? {
        Some(found) => decoder.lanewise(Lanewise { immediate: *table, ..found }, rest),
        None => code.unsupported_type(),
    }
}

/// `add.cc.u32 d, a, b`, `madc.lo.cc.u32 d, a, b, c`
fn carry(decoder: &mut Decoder<'_>, code: &mut Opcode<'_>, text: &[Text]) -> Result<(), String> {
    let (writes, reads) = (code.flag("cc"), code.name.ends_with('c'));
    let Some((run, width, sources)) = carry::decode(code) else { return code.unsupported_type() };
    super::count(text, 1 + sources)?;
    let binder = &mut decoder.binder;
    let mut operands = vec![
        binder.result(&text[0], width)?,
        if writes { CARRY } else { binder.sink(Width::Predicate) },
        if reads { CARRY } else { negated(Operand::TRUE) },
    ];
    for source in &text[1..] {
        operands.push(binder.source(source, width)?);
    }
    decoder.lanes(run, &operands, 0);
    Ok(())
}
