//! Where the variables of a kernel lie: parameters, shared and local memory.

use std::collections::HashMap;

use super::binder::Symbol;
use super::inline::Flat;
use crate::exec::LoadError;
use crate::exec::Param;
use crate::ptx::ast::{Function, Instruction, Module, Operand, Space, Variable};

/// Bytes between two shared variables that belong to neither, so that one cannot overflow into the next unseen.
const RED_ZONE: u64 = 16;
/// As much as a block can ever have, and more.
const MAX_SHARED: u64 = 1 << 20;
/// As much as a thread can have.
const MAX_LOCAL: u64 = 512 << 10;

/// The memory of a kernel that its program names.
pub struct Layout {
    /// Of shared memory: offset and bytes of each static variable.
    pub shared: Vec<(u32, u32)>,
    /// Where dynamic shared memory starts.
    pub dynamic_shared: u32,
    /// Bytes of static shared memory without the gaps, as a compiler would count them.
    pub static_shared: u32,
    /// Bytes of local memory of a thread.
    pub local: u32,
    pub symbols: HashMap<String, Symbol>,
}

impl Layout {
    pub fn of(module: &Module, kernel: &Function, flat: &Flat) -> Result<Layout, LoadError> {
        let mut layout = Layout {
            shared: Vec::new(),
            dynamic_shared: 0,
            static_shared: 0,
            local: 0,
            symbols: HashMap::new(),
        };
        let (params, _) = place_parameters(kernel);
        for (variable, param) in kernel.params.iter().zip(&params) {
            layout.define(variable, Space::Param, param.offset as u64);
        }
        layout.place_shared(module, flat)?;
        layout.place_local(flat)?;
        Ok(layout)
    }

    fn place_shared(&mut self, module: &Module, flat: &Flat) -> Result<(), LoadError> {
        let used = module.variables.iter().filter(|variable| is_named(&flat.body, &variable.name));
        let shared: Vec<_> =
            used.chain(&flat.variables).filter(|of| of.space == Space::Shared).collect();
        let (mut end, mut compact) = (0u64, 0u64);
        for variable in shared.iter().filter(|variable| variable.bytes > 0) {
            let align = u64::from(variable.align.max(1));
            let offset = end.next_multiple_of(align);
            end = offset.saturating_add(variable.bytes).saturating_add(RED_ZONE);
            compact = compact.next_multiple_of(align).saturating_add(variable.bytes);
            if end > MAX_SHARED {
                let message = format!("`{}` does not fit into shared memory", variable.name);
                return Err(LoadError::new(variable.line, message));
            }
            self.shared.push((offset as u32, variable.bytes as u32));
            self.define(variable, Space::Shared, offset);
        }
        // All dynamic variables are the same memory.
        let dynamic: Vec<_> = shared.iter().filter(|variable| variable.bytes == 0).collect();
        let align = dynamic.iter().map(|variable| variable.align.max(16)).max().unwrap_or(16);
        self.dynamic_shared = (end as u32).next_multiple_of(align);
        for variable in dynamic {
            self.define(variable, Space::Shared, self.dynamic_shared as u64);
        }
        self.static_shared = compact as u32;
        Ok(())
    }

    /// Local variables, and the parameters of calls.
    fn place_local(&mut self, flat: &Flat) -> Result<(), LoadError> {
        let mut end = 0u64;
        for variable in &flat.variables {
            if !matches!(variable.space, Space::Local | Space::Param) {
                continue;
            }
            let offset = end.next_multiple_of(u64::from(variable.align.max(1)));
            end = offset.saturating_add(variable.bytes);
            if end > MAX_LOCAL {
                let message = format!("`{}` does not fit into local memory", variable.name);
                return Err(LoadError::new(variable.line, message));
            }
            self.define(variable, Space::Local, offset);
        }
        self.local = end as u32;
        Ok(())
    }

    fn define(&mut self, variable: &Variable, space: Space, address: u64) {
        self.symbols.insert(variable.name.clone(), Symbol { space, address });
    }
}

/// Where the parameters of a kernel lie, and their bytes together.
pub fn place_parameters(kernel: &Function) -> (Vec<Param>, usize) {
    let mut end = 0usize;
    let params = kernel.params.iter().map(|variable| {
        let offset = end.next_multiple_of(variable.align.max(1) as usize);
        end = offset + variable.bytes as usize;
        Param { offset, bytes: variable.bytes as usize }
    });
    (params.collect(), end)
}

fn is_named(body: &[Instruction], name: &str) -> bool {
    fn names(operand: &Operand, name: &str) -> bool {
        match operand {
            Operand::Symbol(symbol, _) => symbol == name,
            Operand::Address(base, _) => names(base, name),
            Operand::Vector(all) | Operand::List(all) => all.iter().any(|inner| names(inner, name)),
            Operand::Pair(first, second) => names(first, name) || names(second, name),
            _ => false,
        }
    }
    body.iter().any(|instruction| instruction.operands.iter().any(|operand| names(operand, name)))
}
