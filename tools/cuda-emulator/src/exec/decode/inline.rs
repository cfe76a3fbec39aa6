//! Device functions become part of the kernels that call them.

use std::collections::HashMap;

use crate::exec::LoadError;
use crate::ptx::ast::{Function, Instruction, Module, Operand, Place, Space, Type, Variable};

/// A kernel without calls, but for those of functions that the emulator itself provides.
pub struct Flat {
    pub registers: Vec<(String, Type)>,
    /// Of the body and of what was inlined, with unique names.
    pub variables: Vec<Variable>,
    pub body: Vec<Instruction>,
    /// Index into `body`.
    pub labels: Vec<usize>,
    pub places: Vec<Place>,
}

/// Instructions of a kernel at most: functions that call functions may grow without bound.
const MAX_INSTRUCTIONS: usize = 1 << 20;

/// The names by which a module's variables and functions are known in a flat kernel.
pub fn flatten(module: &Module, kernel: &Function) -> Result<Flat, LoadError> {
    let functions = module.functions.iter().filter(|function| !function.is_entry);
    let mut inliner = Inliner {
        functions: functions.map(|function| (function.name.as_str(), function)).collect(),
        stack: Vec::new(),
        count: 0,
        flat: Flat {
            registers: Vec::new(),
            variables: Vec::new(),
            body: Vec::new(),
            labels: Vec::new(),
            places: Vec::new(),
        },
    };
    inliner.append(kernel, HashMap::new(), None, None)?;
    Ok(inliner.flat)
}

struct Inliner<'a> {
    functions: HashMap<&'a str, &'a Function>,
    /// The functions that are being inlined.
    stack: Vec<&'a str>,
    /// Bodies appended so far.
    count: usize,
    flat: Flat,
}

impl<'a> Inliner<'a> {
    /// Appends a body. `names` are the caller's variables for its parameters, `end` is where it returns to, and
    /// `caller` the place of the call.
    fn append(
        &mut self,
        function: &'a Function,
        mut names: HashMap<String, String>,
        end: Option<u32>,
        caller: Option<u32>,
    ) -> Result<(), LoadError> {
        let number = self.count;
        self.count += 1;
        self.stack.push(&function.name);
        let first_register = self.flat.registers.len() as u32;
        self.flat.registers.extend_from_slice(&function.registers);
        let first_place = self.flat.places.len() as u32;
        self.flat.places.extend(function.places.iter().map(|place| {
            let inlined_at = place.inlined_at.map(|at| at + first_place).or(caller);
            Place { inlined_at, ..place.clone() }
        }));
        let first_label = self.flat.labels.len() as u32;
        self.flat.labels.resize(self.flat.labels.len() + function.labels.len(), 0);
        for variable in &function.variables {
            // A function's shared variable is one, however often the function is inlined.
            let name = match (number, variable.space) {
                (0, _) => variable.name.clone(),
                (_, Space::Shared) => format!("{}::{}", function.name, variable.name),
                _ => format!("{}@{number}", variable.name),
            };
            names.insert(variable.name.clone(), name.clone());
            if !self.flat.variables.iter().any(|known| known.name == name) {
                self.flat.variables.push(Variable { name, ..variable.clone() });
            }
        }
        let mover = Mover { names, first_register, first_label };
        let place = |at: Option<u32>| at.map(|at| at + first_place).or(caller);
        for at in 0..=function.body.len() {
            for (i, _) in function.labels.iter().enumerate().filter(|(_, label)| **label == at) {
                self.flat.labels[first_label as usize + i] = self.flat.body.len();
            }
            let Some(instruction) = function.body.get(at) else { break };
            if self.flat.body.len() >= MAX_INSTRUCTIONS {
                let message = format!("the kernel has more than {MAX_INSTRUCTIONS} instructions");
                return Err(LoadError::new(instruction.line, message));
            }
            let mut moved = Instruction {
                guard: instruction.guard.map(|(register, not)| (register + first_register, not)),
                operands: instruction
                    .operands
                    .iter()
                    .map(|operand| mover.operand(operand))
                    .collect(),
                place: place(instruction.place),
                ..instruction.clone()
            };
            match (moved.opcode[0].as_str(), end) {
                ("call", _) if self.call(&moved)? => continue,
                ("ret", Some(end)) => {
                    moved.opcode = vec!["bra".into()];
                    moved.operands = vec![Operand::Label(end)];
                }
                // A function's parameters lie in the local memory of its caller.
                ("ld" | "st", Some(_)) => moved.opcode.iter_mut().for_each(|part| {
                    if part == "param" {
                        *part = "local".into();
                    }
                }),
                _ => {}
            }
            self.flat.body.push(moved);
        }
        self.stack.pop();
        Ok(())
    }

    /// False when the function is none of the module's.
    fn call(&mut self, call: &Instruction) -> Result<bool, LoadError> {
        let Some((results, name, arguments)) = parts(&call.operands) else {
            let message = "a call through a pointer is not supported";
            return Err(LoadError::new(call.line, message.into()));
        };
        let Some(&callee) = self.functions.get(name) else { return Ok(false) };
        if self.stack.contains(&name) {
            return Err(LoadError::new(call.line, format!("`{name}` calls itself")));
        }
        let formal = callee.results.iter().chain(&callee.params);
        let actual: Vec<_> = results.iter().chain(arguments).collect();
        if actual.len() != callee.results.len() + callee.params.len() {
            let message = format!("`{name}` is called with {} parameters", actual.len());
            return Err(LoadError::new(call.line, message));
        }
        let mut names = HashMap::new();
        for (formal, actual) in formal.zip(actual) {
            let Operand::Symbol(actual, 0) = actual else {
                let message = format!("`{name}` is called with something that is no `.param`");
                return Err(LoadError::new(call.line, message));
            };
            names.insert(formal.name.clone(), actual.clone());
        }
        let end = self.flat.labels.len() as u32;
        self.flat.labels.push(0);
        if let Some((register, is_negated)) = call.guard {
            self.flat.body.push(Instruction {
                guard: Some((register, !is_negated)),
                opcode: vec!["bra".into()],
                operands: vec![Operand::Label(end)],
                ..call.clone()
            });
        }
        self.append(callee, names, Some(end), call.place)?;
        self.flat.labels[end as usize] = self.flat.body.len();
        Ok(true)
    }
}

/// Results, function and arguments of a call.
pub fn parts(call: &[Operand]) -> Option<(&[Operand], &str, &[Operand])> {
    match call {
        [Operand::Symbol(name, 0)] => Some((&[], name, &[])),
        [Operand::Symbol(name, 0), Operand::List(arguments)] => Some((&[], name, arguments)),
        [Operand::List(results), Operand::Symbol(name, 0)] => Some((results, name, &[])),
        [Operand::List(results), Operand::Symbol(name, 0), Operand::List(arguments)] => {
            Some((results, name, arguments))
        }
        _ => None,
    }
}

/// Gives the operands of a body their numbers and names in the flat kernel.
struct Mover {
    names: HashMap<String, String>,
    first_register: u32,
    first_label: u32,
}

impl Mover {
    fn operand(&self, operand: &Operand) -> Operand {
        let all = |operands: &[Operand]| operands.iter().map(|inner| self.operand(inner)).collect();
        let boxed = |inner: &Operand| Box::new(self.operand(inner));
        match operand {
            Operand::Register(register) => Operand::Register(register + self.first_register),
            Operand::Not(register) => Operand::Not(register + self.first_register),
            Operand::Label(label) => Operand::Label(label + self.first_label),
            Operand::Symbol(name, offset) => {
                Operand::Symbol(self.names.get(name).unwrap_or(name).clone(), *offset)
            }
            Operand::Vector(inner) => Operand::Vector(all(inner)),
            Operand::List(inner) => Operand::List(all(inner)),
            Operand::Address(base, offset) => Operand::Address(boxed(base), *offset),
            Operand::Pair(first, second) => Operand::Pair(boxed(first), boxed(second)),
            other => other.clone(),
        }
    }
}
