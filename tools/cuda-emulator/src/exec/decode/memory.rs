//! Instructions that touch memory, and those that convert addresses.

use super::{Decoder, count, elements};
use crate::exec::address::{space_of, window};
use crate::exec::async_copy;
use crate::exec::lanes::{Width, map1, with1};
use crate::exec::ops::memory::{ignore_hints, load, order, space, store, vector};
use crate::exec::ops::{Opcode, atomic};
use crate::exec::program::{Access, Op, Operand, Order};
use crate::ptx::ast::{Operand as Text, Space, Type};

pub fn decode(
    decoder: &mut Decoder<'_>,
    code: &mut Opcode<'_>,
    text: &[Text],
) -> Result<(), String> {
    match code.name {
        "ld" | "ldu" => ld(decoder, code, text),
        "st" => st(decoder, code, text),
        "atom" | "red" => atom(decoder, code, text),
        "cp" => copy(decoder, code, text),
        "cvta" => cvta(decoder, code, text),
        "isspacep" => isspacep(decoder, code, text),
        "createpolicy" => {
            // How the cache treats an access is of no consequence here; 0 stands for any policy.
            code.ignore(|_| true);
            let Some(result) = text.first() else { return Err("expected a result".into()) };
            let policy = decoder.binder.constant(0, Width::B64)?;
            let result = decoder.binder.result(result, Width::B64)?;
            decoder.lanes(map1(|a: u64| a).run, &[result, policy], 0);
            Ok(())
        }
        // Caches are not modelled.
        _ => {
            code.ignore(|_| true);
            Ok(())
        }
    }
}

/// The operands without a cache policy.
fn without_policy<'t>(code: &mut Opcode<'_>, text: &'t [Text]) -> &'t [Text] {
    match (code.flag("L2::cache_hint"), text) {
        (true, [rest @ .., _]) => rest,
        (_, text) => text,
    }
}

/// The width of registers that a value of a type goes to or comes from: as wide as it is, or wider.
fn element_width(decoder: &Decoder<'_>, text: &[Text], r#type: Type) -> Width {
    let of_type = super::binder::width(r#type).unwrap_or(Width::B16);
    text.iter().find_map(|text| decoder.binder.register_width(text)).unwrap_or(of_type)
}

fn ld(decoder: &mut Decoder<'_>, code: &mut Opcode<'_>, text: &[Text]) -> Result<(), String> {
    let text = without_policy(code, text);
    count(text, 2)?;
    let mut space = space(code);
    let order = order(code, Order::WEAK);
    ignore_hints(code);
    let (number, r#type) = vector(code)?;
    let results = elements(&text[0]);
    count(results, number)?;
    let width = element_width(decoder, results, r#type);
    let (address, address_width, offset) = decoder.address(&text[1], &mut space)?;
    let mut operands = vec![address];
    for result in results {
        operands.push(decoder.binder.result(result, width)?);
    }
    let Some((run, form)) = load(r#type, number, width) else { return code.unsupported_type() };
    let access = Access { space, width: address_width, order };
    let instruction = decoder.append(Op::Lanes(run), &operands);
    (instruction.immediate, instruction.access, instruction.form) = (offset, access, form);
    Ok(())
}

fn st(decoder: &mut Decoder<'_>, code: &mut Opcode<'_>, text: &[Text]) -> Result<(), String> {
    let text = without_policy(code, text);
    count(text, 2)?;
    let mut space = space(code);
    let order = order(code, Order::WEAK);
    ignore_hints(code);
    let (number, r#type) = vector(code)?;
    let sources = elements(&text[1]);
    count(sources, number)?;
    let width = element_width(decoder, sources, r#type);
    let (address, address_width, offset) = decoder.address(&text[0], &mut space)?;
    let mut operands = vec![address];
    for source in sources {
        operands.push(decoder.binder.source(source, width)?);
    }
    let Some(run) = store(r#type, number, width) else { return code.unsupported_type() };
    let access = Access { space, width: address_width, order };
    let instruction = decoder.append(Op::Lanes(run), &operands);
    (instruction.immediate, instruction.access) = (offset, access);
    Ok(())
}

/// `atom d, [a], b, c`, and `red [a], b` without a result.
fn atom(decoder: &mut Decoder<'_>, code: &mut Opcode<'_>, text: &[Text]) -> Result<(), String> {
    let text = without_policy(code, text);
    let mut space = space(code);
    let order = order(code, Order::RELAXED);
    ignore_hints(code);
    let with_result = (code.name == "atom") as usize;
    let Some(atomic::Atomic { run, width, form, sources }) = atomic::decode(code) else {
        return Err("not supported, or not with these modifiers and types".into());
    };
    count(text, 1 + with_result + sources)?;
    let result = match with_result {
        1 => decoder.binder.result(&text[0], width)?,
        _ => decoder.binder.sink(width),
    };
    let (address, address_width, offset) = decoder.address(&text[with_result], &mut space)?;
    let mut operands = vec![result, address];
    for source in &text[1 + with_result..] {
        operands.push(decoder.binder.source(source, width)?);
    }
    let access = Access { space, width: address_width, order };
    let instruction = decoder.append(Op::Lanes(run), &operands);
    (instruction.immediate, instruction.access, instruction.form) = (offset, access, form);
    Ok(())
}

/// `cp.async`
fn copy(decoder: &mut Decoder<'_>, code: &mut Opcode<'_>, text: &[Text]) -> Result<(), String> {
    if !code.flag("async") {
        return Err("only `cp.async` is supported".into());
    }
    if code.flag("commit_group") {
        decoder.lanes(async_copy::commit(), &[], 0);
        return Ok(());
    }
    if code.flag("wait_all") {
        decoder.lanes(async_copy::wait(), &[], -1);
        return Ok(());
    }
    if code.flag("wait_group") {
        let [Text::Integer(groups @ 0..)] = text else { return Err("expected a number".into()) };
        decoder.lanes(async_copy::wait(), &[], *groups);
        return Ok(());
    }
    let level = code.pick(&[("ca", 'a'), ("cg", 'g')]).ok_or("expected `.ca` or `.cg`")?;
    let is_shared = code.flag("shared") || code.flag("shared::cta");
    if !is_shared || !code.flag("global") {
        return Err("only copies from global to shared memory are supported".into());
    }
    let text = without_policy(code, text);
    ignore_hints(code);
    let (to, from, bytes, rest) = match text {
        [to, from, Text::Integer(bytes), rest @ ..] if rest.len() <= 1 => (to, from, *bytes, rest),
        _ => return Err("expected two addresses and the number of bytes".into()),
    };
    if level == 'g' && bytes != 16 {
        return Err(format!("`.cg` copies 16 bytes, not {bytes}"));
    }
    let Some(run) = async_copy::issue(bytes as usize) else {
        return Err(format!("a copy of {bytes} bytes is not supported"));
    };
    let (mut shared, mut global) = (Space::Shared, Space::Global);
    let (to, to_width, to_offset) = decoder.address(to, &mut shared)?;
    let (from, _, from_offset) = decoder.address(from, &mut global)?;
    let in_range = |offset: i64| i32::try_from(offset).is_ok();
    if !in_range(to_offset) || !in_range(from_offset) {
        return Err("an offset of an address has more than 32 bits".into());
    }
    let binder = &mut decoder.binder;
    let mut read = binder.constant(bytes as u64, Width::B32)?;
    let mut ignored = super::binder::negated(Operand::TRUE);
    if let Some(last) = rest.first() {
        if binder.register_width(last) == Some(Width::Predicate) {
            ignored = binder.source(last, Width::Predicate)?;
        } else {
            read = binder.source(last, Width::B32)?;
        }
    }
    let offsets = to_offset << 32 | from_offset & 0xffff_ffff;
    let access = Access { space: Space::Shared, width: to_width, order: Order::WEAK };
    let instruction = decoder.append(Op::Lanes(run), &[to, from, read, ignored]);
    (instruction.immediate, instruction.access) = (offsets, access);
    Ok(())
}

/// `cvta.shared.u64 d, a` makes a generic address, `cvta.to.shared.u64 d, a` undoes it.
fn cvta(decoder: &mut Decoder<'_>, code: &mut Opcode<'_>, text: &[Text]) -> Result<(), String> {
    let is_back = code.flag("to");
    let start = window(space(code)) as i64;
    if code.types != [Type::U64] {
        return code.unsupported_type();
    }
    let found = with1(|start, a: u64| a.wrapping_add(start as u64));
    decoder.lanewise(found.immediate(if is_back { -start } else { start }), text)
}

fn isspacep(decoder: &mut Decoder<'_>, code: &mut Opcode<'_>, text: &[Text]) -> Result<(), String> {
    let space = space(code);
    if matches!(space, Space::Generic | Space::Const) {
        return Err("expected `.global`, `.shared`, `.local` or `.param`".into());
    }
    let found = with1(|start, a: u64| window(space_of(a)) == start as u64);
    decoder.lanewise(found.immediate(window(space) as i64), text)
}
