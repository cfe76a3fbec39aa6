//! A device for tests: memory, a module compiled from CUDA C++, launches with typed arguments.

use std::path::Path;

use emucuda::exec::{Counters, Launch, Module, Options, Schedule, launch};
use emucuda::memory::{BASE, INITIALISED, Memory};
use emucuda::report::Fault;

use crate::nvcc;

/// Checked, on one thread, in order.
pub const CHECKED: Options =
    Options { checked: true, counts_first: false, threads: 1, schedule: Schedule::Order };

pub struct Device {
    pub memory: Memory,
    pub module: Module,
}

/// A launch's sizes.
#[derive(Clone, Copy)]
pub struct Shape {
    pub grid: [u32; 3],
    pub block: u32,
    pub dynamic_shared: u32,
}

impl Device {
    pub fn new(ptx: &str) -> Device {
        let memory = Memory::new(1 << 30).expect("a reservation of memory");
        let module = Module::load(ptx, &memory).unwrap_or_else(|e| panic!("{e}"));
        Device { memory, module }
    }

    /// A new allocation with these values.
    pub fn upload<T: Copy>(&self, values: &[T]) -> u64 {
        let bytes = size_of_val(values);
        let address = self.allocate(bytes);
        let region = self.memory.region();
        let at = region.data().wrapping_add((address - BASE) as usize);
        // SAFETY: `bytes` bytes were allocated there.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast(), at, bytes) };
        region.mark(address - BASE, bytes, INITIALISED, 0);
        address
    }

    /// A new allocation without values.
    pub fn allocate(&self, bytes: usize) -> u64 {
        self.memory.allocate(bytes, "allocation").expect("device memory")
    }

    /// What a kernel left. Panics when it did not write all of it.
    pub fn download<T: Copy + Default>(&self, address: u64, count: usize) -> Vec<T> {
        let mut values = vec![T::default(); count];
        let bytes = count * size_of::<T>();
        let from = self.memory.region().readable(address - BASE, bytes);
        let from = from.unwrap_or_else(|(at, kind)| panic!("byte {}: {kind}", at + BASE - address));
        // SAFETY: `bytes` bytes are readable there, and any bits are a T of the tests: numbers.
        unsafe { std::ptr::copy_nonoverlapping(from, values.as_mut_ptr().cast(), bytes) };
        values
    }

    pub fn launch(
        &self,
        kernel: &str,
        shape: Shape,
        params: &Params,
        options: &Options,
    ) -> Result<Counters, Fault> {
        let kernel = self.module.kernel(kernel).unwrap_or_else(|| panic!("no kernel {kernel}"));
        assert_eq!(params.bytes.len(), kernel.param_bytes, "parameters of {}", kernel.name);
        let block = [shape.block, 1, 1];
        let Shape { grid, dynamic_shared, .. } = shape;
        launch(
            &self.memory,
            &Launch { kernel, grid, block, dynamic_shared, params: &params.bytes },
            options,
        )
    }
}

/// The bytes of a kernel's parameters.
#[derive(Default)]
pub struct Params {
    bytes: Vec<u8>,
}

impl Params {
    pub fn new() -> Params {
        Params::default()
    }

    /// Adds a value at its natural alignment.
    pub fn with<T: Copy>(mut self, value: T) -> Params {
        self.bytes.resize(self.bytes.len().next_multiple_of(align_of::<T>()), 0);
        // SAFETY: the bytes of a number.
        let bytes =
            unsafe { std::slice::from_raw_parts((&raw const value).cast::<u8>(), size_of::<T>()) };
        self.bytes.extend_from_slice(bytes);
        self
    }
}

/// The PTX of a source file, with lines; `None` without nvcc, which was said.
pub fn compile(test: &str, source: &Path) -> Option<String> {
    let nvcc = nvcc::find(test)?;
    let include = format!("-I{}", nvcc::root().join("kernels").display());
    let arguments = ["-ptx", "-O3", "-std=c++17", "-lineinfo", "-arch=compute_80", &include];
    let ptx = nvcc::compile(&nvcc, source, &arguments);
    Some(String::from_utf8(ptx).expect("PTX is text"))
}
