//! A loaded translation unit: its kernels decoded, its variables in device memory.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use super::decode::{self, Layout, Symbol};
use super::program::Program;
use crate::memory::{BASE, INITIALISED, Memory, READ_ONLY};
use crate::ptx::ast::{self, Space, Variable};
use crate::ptx::parse;

/// A loaded translation unit.
pub struct Module {
    kernels: BTreeMap<String, Arc<Kernel>>,
    variables: HashMap<String, (u64, usize)>,
}

/// An entry point.
pub struct Kernel {
    pub name: String,
    pub params: Vec<Param>,
    /// Of all parameters together.
    pub param_bytes: usize,
    /// Bytes of static shared memory of a block.
    pub static_shared: u32,
    /// Bytes of local memory of a thread.
    pub local: u32,
    /// Threads of a block at most.
    pub max_threads: u32,
    pub(super) program: Program,
    pub(super) layout: Layout,
}

/// A parameter of a kernel among the bytes of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    pub offset: usize,
    pub bytes: usize,
}

/// Why a module cannot be loaded.
#[derive(Debug)]
pub struct LoadError {
    line: u32,
    /// `rms_norm.cu:57`, where it is known.
    source: Option<String>,
    message: String,
}

impl LoadError {
    pub(super) fn new(line: u32, message: String) -> Self {
        LoadError { line, source: None, message }
    }

    pub(super) fn at(line: u32, source: Option<String>, message: String) -> Self {
        LoadError { line, source, message }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PTX line {}", self.line)?;
        if let Some(source) = &self.source {
            write!(f, " ({source})")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for LoadError {}

impl Module {
    /// Parses, decodes and checks every function, and gives every variable its memory.
    pub fn load(ptx: &str, memory: &Memory) -> Result<Module, LoadError> {
        let module = parse(ptx).map_err(|e| LoadError::new(e.line, e.message))?;
        let mut loaded = Module { kernels: BTreeMap::new(), variables: HashMap::new() };
        match loaded.fill(&module, memory) {
            Ok(()) => Ok(loaded),
            Err(e) => {
                loaded.unload(memory);
                Err(e)
            }
        }
    }

    pub fn kernel(&self, name: &str) -> Option<&Arc<Kernel>> {
        self.kernels.get(name)
    }

    pub fn kernels(&self) -> impl Iterator<Item = &Arc<Kernel>> {
        self.kernels.values()
    }

    /// Address and bytes of a `.global` or `.const` variable.
    pub fn variable(&self, name: &str) -> Option<(u64, usize)> {
        self.variables.get(name).copied()
    }

    /// Frees the variables.
    pub fn unload(self, memory: &Memory) {
        for (address, _) in self.variables.into_values() {
            memory.free(address);
        }
    }

    fn fill(&mut self, module: &ast::Module, memory: &Memory) -> Result<(), LoadError> {
        let mut symbols = HashMap::new();
        for variable in &module.variables {
            if variable.space == Space::Shared {
                continue;
            }
            let Some(address) = memory.allocate(variable.bytes as usize, "variable") else {
                let message = format!("device memory has no room for `{}`", variable.name);
                return Err(LoadError::new(variable.line, message));
            };
            self.variables.insert(variable.name.clone(), (address, variable.bytes as usize));
            let symbol = Symbol { space: variable.space, address };
            symbols.insert(variable.name.clone(), symbol);
        }
        for variable in &module.variables {
            if let Some(&(address, bytes)) = self.variables.get(&variable.name) {
                self.initialise(variable, address, bytes, memory)?;
            }
        }
        for function in module.functions.iter().filter(|function| function.is_entry) {
            let (program, layout) = decode::kernel(module, function, &symbols)?;
            let (params, param_bytes) = decode::place_parameters(function);
            let threads = function.required_threads.or(function.max_threads);
            let threads = threads.map(|[x, y, z]| x.saturating_mul(y).saturating_mul(z));
            let kernel = Kernel {
                name: function.name.clone(),
                params,
                param_bytes,
                static_shared: layout.static_shared,
                local: layout.local,
                max_threads: threads.unwrap_or(MAX_THREADS).min(MAX_THREADS),
                program,
                layout,
            };
            self.kernels.insert(function.name.clone(), Arc::new(kernel));
        }
        Ok(())
    }

    /// A variable starts with zeros, except for what the text says.
    fn initialise(
        &self,
        variable: &Variable,
        address: u64,
        bytes: usize,
        memory: &Memory,
    ) -> Result<(), LoadError> {
        let error = |message: String| Err(LoadError::new(variable.line, message));
        let (region, start) = (memory.region(), address - BASE);
        region.fill(start, bytes, 0);
        let initial = variable.initial.clone().unwrap_or_default();
        if initial.bytes.len() > bytes {
            return error(format!("`{}` has more initial values than bytes", variable.name));
        }
        for (i, &byte) in initial.bytes.iter().enumerate() {
            region.fill(start + i as u64, 1, byte);
        }
        for (at, name, offset) in &initial.addresses {
            let Some((target, _)) = self.variables.get(name) else {
                return error(format!(
                    "`{}` holds the address of `{name}`, which has none",
                    variable.name
                ));
            };
            let value = target.wrapping_add(*offset as u64).to_le_bytes();
            if *at as usize + value.len() > bytes {
                return error(format!(
                    "`{}` has no room for the address of `{name}`",
                    variable.name
                ));
            }
            for (i, byte) in value.into_iter().enumerate() {
                region.fill(start + at + i as u64, 1, byte);
            }
        }
        let constant = if variable.space == Space::Const { READ_ONLY } else { 0 };
        region.mark(start, bytes, INITIALISED | constant, 0);
        Ok(())
    }
}

/// Threads of a block at most, on every device.
const MAX_THREADS: u32 = 1024;
