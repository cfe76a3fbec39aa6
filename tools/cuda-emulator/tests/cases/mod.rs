//! Micro-kernels: each runs one instruction, or a few, on inputs of its own, and says what must come
//! out by the PTX manual. They are data, so that the emulator and a GPU run the same.

mod address;
mod approximate;
mod atomic;
mod bits;
mod block;
mod build;
mod calls;
mod compare;
mod control;
mod convert;
mod float;
mod half;
mod integer;
mod judge;
mod matrix;
mod memory;
mod registers;
mod values;
mod warp;

use crate::soft::Format;

/// What a module's text starts with.
pub fn head(target: &str) -> String {
    format!(".version 8.0\n.target {target}\n.address_size 64\n")
}

/// A kernel with two parameters, the addresses of `input` and of `output` bytes that hold 0xFF.
#[derive(Clone)]
pub struct Case {
    /// Unique: what is tested, most often the opcode.
    pub name: String,
    /// The file of recordings.
    pub group: &'static str,
    /// The oldest architecture that has the instruction.
    pub target: &'static str,
    /// Without [`head`]; the entry point is [`Case::entry`].
    pub ptx: String,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
    pub input: Vec<u8>,
    /// A third parameter, by value, 16-byte aligned; mostly there is none.
    pub extra: Vec<u8>,
    pub output: usize,
    pub expected: Expected,
}

#[derive(Clone)]
pub enum Expected {
    /// These bytes.
    Bits(Vec<u8>),
    /// Numbers with these bits, but where a NaN is expected any NaN will do.
    Floats(Format, Vec<u8>),
    /// Numbers, each with how far off it may be. NaN and infinity: the same.
    Near(Format, Vec<(f64, f64)>),
}

impl Expected {
    /// Of the output.
    pub fn bytes(&self) -> usize {
        match self {
            Expected::Bits(bytes) | Expected::Floats(_, bytes) => bytes.len(),
            Expected::Near(format, values) => values.len() * format.bits as usize / 8,
        }
    }
}

impl Case {
    pub fn entry(&self) -> String {
        entry(&self.name)
    }

    pub fn module(&self) -> String {
        head(self.target) + &self.ptx
    }
}

/// The name of a case as a name in PTX.
fn entry(name: &str) -> String {
    let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    format!("case_{name}")
}

/// All cases.
pub fn list() -> Vec<Case> {
    let groups = [
        integer::cases,
        bits::cases,
        compare::cases,
        float::cases,
        approximate::cases,
        half::cases,
        convert::cases,
        memory::cases,
        address::cases,
        registers::cases,
        atomic::cases,
        warp::cases,
        control::cases,
        calls::cases,
        block::cases,
        matrix::cases,
    ];
    groups.into_iter().flat_map(|cases| cases()).collect()
}
