//! Instructions of lanes together.

use super::{Decoder, count, elements};
use crate::exec::lanes::Width;
use crate::exec::ops::memory::space;
use crate::exec::ops::{Opcode, matrix, warp_wide};
use crate::exec::program::{Access, Members, Op, Order};
use crate::ptx::ast::{Operand as Text, Space, Type};

pub fn decode(
    decoder: &mut Decoder<'_>,
    code: &mut Opcode<'_>,
    text: &[Text],
) -> Result<(), String> {
    if code.name == "activemask" {
        count(text, 1)?;
        let result = decoder.binder.result(&text[0], Width::B32)?;
        decoder.lanes(warp_wide::active_mask(), &[result], 0);
        return Ok(());
    }
    if !code.flag("sync") {
        return Err("only its `.sync` form is supported".into());
    }
    match code.name {
        "ldmatrix" => return load_matrix(decoder, code, text),
        "movmatrix" => return transpose(decoder, code, text),
        "mma" => return multiply(decoder, code, text),
        _ => {}
    }
    let unsupported = || "not supported, or not with these modifiers and types".to_string();
    let width = match code.types.first() {
        Some(Type::B64) => Width::B64,
        _ => Width::B32,
    };
    let binder = &mut decoder.binder;
    let (run, operands) = match (code.name, text) {
        ("shfl", [d, a, b, c, members]) => {
            let run = warp_wide::shuffle(code).ok_or_else(unsupported)?;
            let (d, p) = pair(d);
            let operands = vec![
                binder.result(d, Width::B32)?,
                binder.result(p, Width::Predicate)?,
                binder.source(a, Width::B32)?,
                binder.source(b, Width::B32)?,
                binder.source(c, Width::B32)?,
                binder.source(members, Width::B32)?,
            ];
            (run, operands)
        }
        ("match", [d, a, members]) => {
            let run = warp_wide::match_values(code).ok_or_else(unsupported)?;
            let (d, p) = pair(d);
            let operands = vec![
                binder.result(d, Width::B32)?,
                binder.result(p, Width::Predicate)?,
                binder.source(a, width)?,
                binder.source(members, Width::B32)?,
            ];
            (run, operands)
        }
        ("elect", [d, members]) => {
            let (d, p) = pair(d);
            let operands = vec![
                binder.result(d, Width::B32)?,
                binder.result(p, Width::Predicate)?,
                binder.source(members, Width::B32)?,
            ];
            (warp_wide::elect(), operands)
        }
        ("vote", [d, a, members]) => {
            let result = match code.types.first() {
                Some(Type::Pred) => Width::Predicate,
                _ => Width::B32,
            };
            let run = warp_wide::vote(code).ok_or_else(unsupported)?;
            let operands = vec![
                binder.result(d, result)?,
                binder.source(a, Width::Predicate)?,
                binder.source(members, Width::B32)?,
            ];
            (run, operands)
        }
        ("redux", [d, a, members]) => {
            let run = warp_wide::reduce(code).ok_or_else(unsupported)?;
            let operands = vec![
                binder.result(d, Width::B32)?,
                binder.source(a, Width::B32)?,
                binder.source(members, Width::B32)?,
            ];
            (run, operands)
        }
        _ => return Err(format!("{} operands are not supported", text.len())),
    };
    let members = operands.last().copied().unwrap_or_default();
    decoder.append(Op::Sync(run, Members::Mask(members)), &operands);
    Ok(())
}

/// `d|p`, or d alone.
fn pair(text: &Text) -> (&Text, &Text) {
    match text {
        Text::Pair(d, p) => (d, p),
        d => (d, &Text::Sink),
    }
}

/// `ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {a, b, c, d}, [address]`
fn load_matrix(
    decoder: &mut Decoder<'_>,
    code: &mut Opcode<'_>,
    text: &[Text],
) -> Result<(), String> {
    count(text, 2)?;
    let number =
        code.pick(&[("x1", 1), ("x2", 2), ("x4", 4)]).ok_or("expected `.x1`, `.x2` or `.x4`")?;
    let is_known = code.flag("aligned") && code.flag("m8n8") && code.types == [Type::B16];
    let run = matrix::load(code.flag("trans"), number).filter(|_| is_known);
    let Some(run) = run else { return code.unsupported_type() };
    let mut space = space(code);
    if !matches!(space, Space::Generic | Space::Shared) {
        return Err("only `.shared` is supported".into());
    }
    let results = elements(&text[0]);
    count(results, number)?;
    let (address, width, offset) = decoder.address(&text[1], &mut space)?;
    let mut operands = vec![address];
    for result in results {
        operands.push(decoder.binder.result(result, Width::B32)?);
    }
    let access = Access { space, width, order: Order::WEAK };
    let instruction = decoder.append(Op::Sync(run, Members::All), &operands);
    (instruction.immediate, instruction.access) = (offset, access);
    Ok(())
}

fn transpose(
    decoder: &mut Decoder<'_>,
    code: &mut Opcode<'_>,
    text: &[Text],
) -> Result<(), String> {
    count(text, 2)?;
    let run = matrix::transposition(code).filter(|_| code.flag("aligned"));
    let Some(run) = run else { return code.unsupported_type() };
    let binder = &mut decoder.binder;
    let operands = [binder.result(&text[0], Width::B32)?, binder.source(&text[1], Width::B32)?];
    decoder.append(Op::Sync(run, Members::All), &operands);
    Ok(())
}

/// `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 d, a, b, c`
fn multiply(decoder: &mut Decoder<'_>, code: &mut Opcode<'_>, text: &[Text]) -> Result<(), String> {
    count(text, 4)?;
    let product = matrix::product(code).filter(|_| code.flag("aligned"));
    let Some(product) = product else {
        return Err("not supported, or not with this shape and these types".into());
    };
    let mut operands = Vec::new();
    for (i, (text, number)) in text.iter().zip(product.registers).enumerate() {
        let registers = elements(text);
        count(registers, number)?;
        for register in registers {
            let binder = &mut decoder.binder;
            operands.push(match i {
                0 => binder.result(register, Width::B32)?,
                _ => binder.source(register, Width::B32)?,
            });
        }
    }
    decoder.append(Op::Sync(product.run, Members::All), &operands);
    Ok(())
}
