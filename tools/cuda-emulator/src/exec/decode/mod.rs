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

use binder::{Binder, Named};
use inline::Flat;

use super::LoadError;
use super::allocate::{Allocation, Node, allocate};
use super::lanes::{Lanewise, Run, Width};
use super::ops::Opcode;
use super::program::{Access, Instruction, MAX_OPERANDS, Op, Operand, Origin, Program};
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
    // Once to learn which instruction reads and writes which register, and once in earnest.
    let error = |message| LoadError::new(kernel.line, message);
    let classes = Binder::classes(&flat.registers).map_err(error)?;
    let unknown = Allocation::default();
    let binder = Binder::new(&flat.registers, &symbols, &unknown).map_err(error)?;
    let nodes = Decoder::new(binder).body(&flat, module)?;
    let allocation = allocate(&nodes, &classes);
    let binder = Binder::new(&flat.registers, &symbols, &allocation).map_err(error)?;
    let mut decoder = Decoder::new(binder);
    decoder.body(&flat, module)?;
    let Decoder { binder, instructions, tables, origins, opcodes, .. } = decoder;
    let Binder { constants, slots, predicates, specials, .. } = binder;
    let program = Program {
        instructions,
        origins,
        opcodes,
        places: flat.places,
        files: module.files.clone(),
        constants,
        tables,
        slots,
        predicates,
        specials,
    };
    Ok((program, layout))
}

struct Decoder<'a> {
    binder: Binder<'a>,
    instructions: Vec<Instruction>,
    /// Labels, and in the end the instructions that they stand for.
    tables: Vec<u32>,
    origins: Vec<Origin>,
    opcodes: Vec<String>,
    /// Of each of `opcodes`.
    numbers: HashMap<String, u32>,
}

impl<'a> Decoder<'a> {
    fn new(binder: Binder<'a>) -> Self {
        Decoder {
            binder,
            instructions: Vec::new(),
            tables: Vec::new(),
            origins: Vec::new(),
            opcodes: Vec::new(),
            numbers: HashMap::new(),
        }
    }

    /// Decodes all instructions. Gives, for each in the text, what it does to registers.
    fn body(&mut self, flat: &Flat, module: &Module) -> Result<Vec<Node>, LoadError> {
        let mut nodes = Vec::with_capacity(flat.body.len() + 1);
        let mut starts = Vec::with_capacity(flat.body.len() + 1);
        for text in &flat.body {
            let first = self.instructions.len();
            starts.push(first as u32);
            self.decode(text).map_err(|message| {
                let message = format!("`{}`: {message}", text.opcode.join("."));
                let source = super::fault::place_name(&flat.places, &module.files, text.place);
                LoadError::at(text.line, source, message)
            })?;
            let Named { uses, defs } = std::mem::take(&mut self.binder.named);
            let is_guarded = text.guard.is_some();
            let mut node = Node {
                uses,
                defs,
                is_partial: is_guarded,
                falls_through: true,
                targets: Vec::new(),
            };
            match self.instructions[first..].last().map(|instruction| instruction.op) {
                Some(Op::Branch(label)) => {
                    node.falls_through = is_guarded;
                    node.targets.push(flat.labels[label as usize] as u32);
                }
                Some(Op::BranchTable(first, count)) => {
                    node.falls_through = is_guarded;
                    let labels = &self.tables[first as usize..(first + count) as usize];
                    node.targets
                        .extend(labels.iter().map(|&label| flat.labels[label as usize] as u32));
                }
                Some(Op::Exit) => node.falls_through = is_guarded,
                _ => {}
            }
            nodes.push(node);
        }
        // A kernel may end without a `ret`.
        starts.push(self.instructions.len() as u32);
        nodes.push(Node::default());
        self.append(Op::Exit, &[]);
        let line = flat.body.last().map_or(0, |text| text.line);
        self.originate(&["ret".into()], line, None);
        for instruction in &mut self.instructions {
            if let Op::Branch(target) = &mut instruction.op {
                *target = starts[flat.labels[*target as usize]];
            }
        }
        for target in &mut self.tables {
            *target = starts[flat.labels[*target as usize]];
        }
        Ok(nodes)
    }

    fn decode(&mut self, text: &ast::Instruction) -> Result<(), String> {
        let first = self.instructions.len();
        let mut code = Opcode::new(&text.opcode);
        self.operation(&mut code, &text.operands)?;
        code.finish()?;
        let guard = match text.guard {
            None => Operand::TRUE,
            Some((register, is_negated)) => {
                let register = ast::Operand::Register(register);
                let predicate = self.binder.source(&register, Width::Predicate)?;
                if is_negated { binder::negated(predicate) } else { predicate }
            }
        };
        for instruction in &mut self.instructions[first..] {
            instruction.guard = guard;
        }
        self.originate(&text.opcode, text.line, text.place);
        Ok(())
    }

    fn operation(&mut self, code: &mut Opcode<'_>, text: &[ast::Operand]) -> Result<(), String> {
        match code.name {
            "bra" | "brx" | "ret" | "exit" | "call" | "bar" | "barrier" | "membar" | "fence"
            | "trap" | "brkpt" | "nanosleep" | "pmevent" => control::decode(self, code, text),
            "ld" | "ldu" | "st" | "atom" | "red" | "cp" | "cvta" | "isspacep" | "prefetch"
            | "prefetchu" | "applypriority" | "discard" | "createpolicy" => {
                memory::decode(self, code, text)
            }
            "shfl" | "vote" | "match" | "redux" | "elect" | "activemask" | "ldmatrix"
            | "movmatrix" | "mma" => warp_wide::decode(self, code, text),
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

    /// Appends an instruction, in its only form, without an immediate, that touches no memory.
    fn append(&mut self, op: Op, operands: &[Operand]) -> &mut Instruction {
        let mut all = [Operand::default(); MAX_OPERANDS];
        all[..operands.len()].copy_from_slice(operands);
        let (guard, access) = (Operand::TRUE, Access::NONE);
        let instruction = Instruction { op, guard, operands: all, immediate: 0, access, form: 0 };
        let at = self.instructions.len();
        self.instructions.push(instruction);
        &mut self.instructions[at]
    }

    /// Appends an instruction of every lane for itself.
    fn lanes(&mut self, run: Run, operands: &[Operand], immediate: i64) {
        self.append(Op::Lanes(run), operands).immediate = immediate;
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
