//! From the tree of a kernel to the program that the interpreter runs. What is not supported is found
//! here, when a module is loaded, and never when a kernel runs.

mod binder;
mod control;
mod inline;
mod lanewise;
mod layout;
mod memory;
mod warp_wide;

use std::collections::HashMap;

use binder::Binder;

use super::LoadError;
use super::lanes::{Lanewise, Run, Width};
use super::ops::Opcode;
use super::program::{Access, Instruction, MAX_OPERANDS, Members, Op, Operand, Origin, Program};
use crate::ptx::ast::{self, Function, Module, Space};

pub use binder::Symbol;
pub use layout::{Layout, place_parameters};

/// Decodes an entry point. `variables` are the module's, by name.
pub fn kernel(
    module: &Module,
    kernel: &Function,
    variables: &HashMap<String, Symbol>,
) -> Result<(Program, Layout), LoadError> {
    let flat = inline::flatten(module, kernel)?;
    let layout = Layout::of(module, kernel, &flat)?;
    let mut symbols = variables.clone();
    symbols.extend(layout.symbols.iter().map(|(name, symbol)| (name.clone(), *symbol)));
    let binder = Binder::new(&flat.registers, &symbols);
    let binder = binder.map_err(|message| LoadError::new(kernel.line, message))?;
    let mut decoder = Decoder {
        binder,
        instructions: Vec::new(),
        origins: Vec::new(),
        opcodes: Vec::new(),
        numbers: HashMap::new(),
    };
    let mut starts = Vec::with_capacity(flat.body.len() + 1);
    for instruction in &flat.body {
        starts.push(decoder.instructions.len() as u32);
        decoder.decode(instruction).map_err(|message| {
            let message = format!("`{}`: {message}", instruction.opcode.join("."));
            let source = super::fault::place_name(&flat.places, &module.files, instruction.place);
            LoadError::at(instruction.line, source, message)
        })?;
    }
    starts.push(decoder.instructions.len() as u32);
    // A kernel may end without a `ret`.
    decoder.append(None, Op::Exit, &[], 0, Access::NONE);
    let last = flat.body.last();
    let line = last.map_or(kernel.line, |instruction| instruction.line);
    decoder.originate(&["ret".into()], line, None);
    for instruction in &mut decoder.instructions {
        if let Op::Branch(target) = &mut instruction.op {
            let at = flat.labels.get(*target as usize).and_then(|&label| starts.get(label));
            *target = *at.unwrap_or(&0);
        }
    }
    let Decoder { binder, instructions, origins, opcodes, .. } = decoder;
    let Binder { constants, slots, predicates, specials, .. } = binder;
    let program = Program {
        instructions,
        origins,
        opcodes,
        places: flat.places,
        files: module.files.clone(),
        constants,
        slots,
        predicates,
        specials,
    };
    Ok((program, layout))
}

struct Decoder<'a> {
    binder: Binder<'a>,
    instructions: Vec<Instruction>,
    origins: Vec<Origin>,
    opcodes: Vec<String>,
    /// Of each of `opcodes`.
    numbers: HashMap<String, u32>,
}

impl Decoder<'_> {
    fn decode(&mut self, text: &ast::Instruction) -> Result<(), String> {
        let guard = match text.guard {
            None => Operand::TRUE,
            Some((register, is_negated)) => {
                let predicate = self.binder.register(register, Width::Predicate)?;
                if is_negated { binder::negated(predicate) } else { predicate }
            }
        };
        let first = self.instructions.len();
        let mut code = Opcode::new(&text.opcode);
        self.operation(&mut code, &text.operands)?;
        code.finish()?;
        for instruction in &mut self.instructions[first..] {
            instruction.guard = guard;
        }
        self.originate(&text.opcode, text.line, text.place);
        Ok(())
    }

    fn operation(&mut self, code: &mut Opcode<'_>, text: &[ast::Operand]) -> Result<(), String> {
        match code.name {
            "bra" | "ret" | "exit" | "call" | "bar" | "barrier" | "membar" | "fence" | "trap"
            | "brkpt" | "nanosleep" | "pmevent" => control::decode(self, code, text),
            "ld" | "ldu" | "st" | "atom" | "red" | "cp" | "cvta" | "isspacep" | "prefetch"
            | "prefetchu" | "applypriority" | "discard" | "createpolicy" => {
                memory::decode(self, code, text)
            }
            "shfl" | "vote" | "match" | "redux" | "activemask" | "ldmatrix" | "movmatrix"
            | "mma" => warp_wide::decode(self, code, text),
            _ => lanewise::decode(self, code, text),
        }
    }

    /// Says of all instructions that have no origin yet where they stand in the text.
    fn originate(&mut self, opcode: &[String], line: u32, place: Option<u32>) {
        let opcode = opcode.join(".");
        let next = self.opcodes.len() as u32;
        let number = *self.numbers.entry(opcode.clone()).or_insert(next);
        if number == next {
            self.opcodes.push(opcode);
        }
        let origin = Origin { opcode: number, line, place };
        self.origins.resize(self.instructions.len(), origin);
    }

    fn append(
        &mut self,
        members: Option<Members>,
        op: Op,
        operands: &[Operand],
        immediate: i64,
        access: Access,
    ) {
        let op = match (op, members) {
            (Op::Lanes(run), Some(members)) => Op::Sync(run, members),
            (op, _) => op,
        };
        let mut all = [Operand::default(); MAX_OPERANDS];
        all[..operands.len()].copy_from_slice(operands);
        let guard = Operand::TRUE;
        self.instructions.push(Instruction { op, guard, operands: all, immediate, access });
    }

    /// An instruction of every lane for itself.
    fn lanes(&mut self, run: Run, operands: &[Operand], immediate: i64) {
        self.append(None, Op::Lanes(run), operands, immediate, Access::NONE);
    }

    /// Results, then sources, as the operation wants them.
    fn lanewise(&mut self, found: Lanewise, text: &[ast::Operand]) -> Result<(), String> {
        let (results, sources) = (&found.results, &found.sources);
        count(text, results.len() + sources.len())?;
        let mut operands = Vec::new();
        for (text, &width) in text.iter().zip(results) {
            operands.push(self.binder.result(text, width)?);
        }
        for (text, &width) in text[results.len()..].iter().zip(sources) {
            operands.push(self.binder.source(text, width)?);
        }
        self.lanes(found.run, &operands, found.immediate);
        Ok(())
    }

    /// An address with its width and offset. A parameter of a call lies in local memory.
    fn address(
        &mut self,
        text: &ast::Operand,
        space: &mut Space,
    ) -> Result<(Operand, Width, i64), String> {
        let ast::Operand::Address(base, offset) = text else {
            return Err("expected an address in brackets".into());
        };
        let width = match **base {
            ast::Operand::Register(_) => {
                let width = self.binder.register_width(base);
                width.filter(|&width| {
                    let may_be_short = !matches!(space, Space::Generic | Space::Global);
                    width == Width::B64 || width == Width::B32 && may_be_short
                })
            }
            ast::Operand::Symbol(ref name, _) => {
                let symbol = self.binder.symbol(name)?;
                match (*space, symbol.space) {
                    (Space::Generic, _) => *space = symbol.space,
                    (Space::Param, Space::Local) => *space = Space::Local,
                    (named, actual) if named == actual => {}
                    (named, actual) => {
                        return Err(format!("`{name}` lies in {actual:?}, not in {named:?}"));
                    }
                }
                Some(Width::B64)
            }
            _ => Some(Width::B64),
        };
        let width = width.ok_or("the address has an unfit width")?;
        Ok((self.binder.source(base, width)?, width, *offset))
    }
}

fn count(text: &[ast::Operand], expected: usize) -> Result<(), String> {
    match text.len() == expected {
        true => Ok(()),
        false => Err(format!("expected {expected} operands, found {}", text.len())),
    }
}

/// The elements of `{a, b}`, or the operand itself.
fn elements(text: &ast::Operand) -> &[ast::Operand] {
    match text {
        ast::Operand::Vector(elements) => elements,
        single => std::slice::from_ref(single),
    }
}
