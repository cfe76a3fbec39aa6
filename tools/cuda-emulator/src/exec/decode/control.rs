//! Control flow, barriers and fences.

use std::sync::atomic::{Ordering, fence};

use super::inline;
use super::{Decoder, count};
use crate::exec::lanes::{Width, compile};
use crate::exec::ops::Opcode;
use crate::exec::ops::memory::order;
use crate::exec::program::{Action, Barrier, Instruction, Members, Op, Order, Reduction};
use crate::exec::warp::{Block, Warp};
use crate::ptx::ast::{Operand as Text, Type};

pub fn decode(
    decoder: &mut Decoder<'_>,
    code: &mut Opcode<'_>,
    text: &[Text],
) -> Result<(), String> {
    let name = code.name;
    let op = match name {
        "bra" => {
            code.flag("uni");
            match text {
                [Text::Label(label)] => Op::Branch(*label),
                _ => return Err("expected a label".into()),
            }
        }
        "brx" => {
            let is_known = code.flag("idx");
            code.flag("uni");
            let [index, Text::List(labels)] = text else {
                return Err("expected an index and a table of labels".into());
            };
            if !is_known || labels.is_empty() {
                return Err("expected `.idx` and labels".into());
            }
            let index = decoder.binder.source(index, Width::B32)?;
            let first = decoder.tables.len() as u32;
            for label in labels {
                let Text::Label(label) = label else { return Err("expected labels".into()) };
                decoder.tables.push(*label);
            }
            let table = Op::BranchTable(first, labels.len() as u32);
            decoder.append(table, &[index]);
            return Ok(());
        }
        "ret" | "exit" => {
            code.flag("uni");
            Op::Exit
        }
        "trap" => Op::Trap,
        "call" => {
            code.flag("uni");
            return call(decoder, text);
        }
        "membar" | "fence" => {
            let both = Order { acquires: true, releases: true, ..Order::RELAXED };
            let order = order(code, both);
            let run = compile(
                #[inline(always)]
                |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
                    fence(Ordering::SeqCst);
                    if let Some(watch) = block.watch {
                        watch.fence(warp.index, mask, instruction.access.order);
                    }
                    Ok(())
                },
            );
            decoder.append(Op::Lanes(run), &[]).access.order = order;
            return Ok(());
        }
        "bar" if code.flag("warp") => {
            count(text, 1)?;
            let members = decoder.binder.source(&text[0], Width::B32)?;
            let meet = compile(
                #[inline(always)]
                |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
                    warp.counters.warp_barriers += 1;
                    if let Some(watch) = block.watch {
                        let members = warp.word(block, instruction.operands[0]);
                        watch.meet_in_warp(warp.index, mask, members);
                    }
                    Ok(())
                },
            );
            if !code.flag("sync") {
                return Err("expected `.sync`".into());
            }
            decoder.append(Op::Sync(meet, Members::Mask(members)), &[members]);
            return Ok(());
        }
        "bar" | "barrier" => return barrier(decoder, code, text),
        // A hint, a pause, a mark: nothing that a kernel could notice.
        _ => {
            code.types.clear();
            return Ok(());
        }
    };
    decoder.append(op, &[]);
    Ok(())
}

/// `bar.sync a, b`, `bar.arrive a, b`, `bar.red.popc.u32 d, a, b, p`
fn barrier(decoder: &mut Decoder<'_>, code: &mut Opcode<'_>, text: &[Text]) -> Result<(), String> {
    code.flag("cta");
    let is_aligned = code.flag("aligned") || code.name == "bar";
    let reductions = [("popc", Reduction::Count), ("and", Reduction::And), ("or", Reduction::Or)];
    let action = match code.pick(&[("sync", 's'), ("arrive", 'a'), ("red", 'r')]) {
        Some('s') => Action::Sync,
        Some('a') => Action::Arrive,
        Some(_) => Action::Reduce(code.pick(&reductions).ok_or("expected a reduction")?),
        None => return Err("expected `.sync`, `.arrive` or `.red`".into()),
    };
    let (result, text, predicate) = match (action, text) {
        (Action::Reduce(_), [result, text @ .., predicate]) => {
            (Some(result), text, Some(predicate))
        }
        (_, text) => (None, text, None),
    };
    if text.is_empty() || text.len() > 2 {
        return Err(format!("expected a barrier and perhaps a count, found {}", text.len()));
    }
    if action == Action::Arrive && text.len() == 1 {
        return Err("an arrival needs a count of threads".into());
    }
    let binder = &mut decoder.binder;
    let mut operands = vec![binder.source(&text[0], Width::B32)?];
    operands.push(match text.get(1) {
        Some(count) => binder.source(count, Width::B32)?,
        None => binder.constant(0, Width::B32)?,
    });
    if let (Action::Reduce(reduction), Some(result), Some(predicate)) = (action, result, predicate)
    {
        let (r#type, width) = match reduction {
            Reduction::Count => (Type::U32, Width::B32),
            _ => (Type::Pred, Width::Predicate),
        };
        if code.types != [r#type] {
            return code.unsupported_type();
        }
        operands.push(binder.result(result, width)?);
        operands.push(binder.source(predicate, Width::Predicate)?);
    }
    let barrier = Barrier { action, is_aligned, is_counted: text.len() == 2 };
    decoder.append(Op::Barrier(barrier), &operands);
    Ok(())
}

/// Of the functions that are not in the module, two are known.
fn call(decoder: &mut Decoder<'_>, text: &[Text]) -> Result<(), String> {
    let Some((results, name, arguments)) = inline::parts(text) else {
        return Err("a call through a pointer is not supported".into());
    };
    let mut addresses = Vec::new();
    for argument in arguments {
        addresses.push(decoder.binder.source(argument, Width::B64)?);
    }
    match (name, results, addresses.as_slice()) {
        // The message, the file, the line and the function.
        ("__assertfail", [], &[message, file, line, function, _]) => {
            let operands = [message, file, line, function];
            decoder.append(Op::AssertFail, &operands);
        }
        // The format and the row of arguments.
        ("vprintf", [result], &[format, arguments]) => {
            let result = decoder.binder.source(result, Width::B64)?;
            let operands = [format, arguments, result];
            decoder.append(Op::Print, &operands);
        }
        _ => return Err(format!("`{name}` is not defined in the module")),
    }
    Ok(())
}
