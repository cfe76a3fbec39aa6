//! What the text of a PTX module says, names resolved.

use std::collections::BTreeMap;

/// A translation unit.
#[derive(Debug, Default)]
pub struct Module {
    /// `.version 9.0`
    pub version: (u32, u32),
    /// `sm_80`
    pub target: String,
    /// `.file` by number.
    pub files: BTreeMap<u32, String>,
    /// `.global`, `.const` and `.shared` variables outside of functions.
    pub variables: Vec<Variable>,
    /// Entry points and device functions with a body.
    pub functions: Vec<Function>,
}

/// A kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Where a generic address may point: any of the others.
    Generic,
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// Type of a register, a parameter or an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
}

impl Type {
    const NAMES: [(&'static str, Type, u32); 20] = [
        ("pred", Type::Pred, 1),
        ("b8", Type::B8, 1),
        ("b16", Type::B16, 2),
        ("b32", Type::B32, 4),
        ("b64", Type::B64, 8),
        ("b128", Type::B128, 16),
        ("u8", Type::U8, 1),
        ("u16", Type::U16, 2),
        ("u32", Type::U32, 4),
        ("u64", Type::U64, 8),
        ("s8", Type::S8, 1),
        ("s16", Type::S16, 2),
        ("s32", Type::S32, 4),
        ("s64", Type::S64, 8),
        ("f16", Type::F16, 2),
        ("f16x2", Type::F16x2, 4),
        ("bf16", Type::Bf16, 2),
        ("bf16x2", Type::Bf16x2, 4),
        ("f32", Type::F32, 4),
        ("f64", Type::F64, 8),
    ];

    /// Of `b32`, without a dot.
    pub fn from_name(name: &str) -> Option<Type> {
        Self::NAMES.iter().find(|entry| entry.0 == name).map(|entry| entry.1)
    }

    /// In memory; 1 for a predicate, which is never there.
    pub fn bytes(self) -> u32 {
        Self::NAMES.iter().find(|entry| entry.1 == self).map_or(0, |entry| entry.2)
    }
}

/// A variable in memory.
#[derive(Clone, Debug)]
pub struct Variable {
    pub name: String,
    pub space: Space,
    pub align: u32,
    /// 0 for `extern .shared x[]`: as much as the launch asks for.
    pub bytes: u64,
    /// What it starts with, shorter than `bytes` when the rest is zero; `None`: not initialised.
    pub initial: Option<Initial>,
    /// Line of the PTX text.
    pub line: u32,
}

/// The first bytes of a variable, and the addresses to be written over them.
#[derive(Clone, Debug, Default)]
pub struct Initial {
    pub bytes: Vec<u8>,
    /// At byte offset: the address of a symbol, plus so many bytes. Eight bytes each.
    pub addresses: Vec<(u64, String, i64)>,
}

/// An entry point or a function.
#[derive(Debug)]
pub struct Function {
    pub name: String,
    pub is_entry: bool,
    /// Of the `.param` space: in declaration order; what a function returns comes in `results`.
    pub params: Vec<Variable>,
    pub results: Vec<Variable>,
    /// `.maxntid`: threads of a block at most, in x, y, z.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`
    pub required_threads: Option<[u32; 3]>,
    /// Every register that the body names, of every scope, by number: its name in the text and its type.
    pub registers: Vec<(String, Type)>,
    /// `.local`, `.shared` and `.param` variables of the body, all scopes, renamed to be unique: a second
    /// `param0` is `param0#1`.
    pub variables: Vec<Variable>,
    pub body: Vec<Instruction>,
    /// Index into `body` of each label, by its number; `body.len()` at the end.
    pub labels: Vec<usize>,
    /// `.loc` lines that instructions refer to.
    pub places: Vec<Place>,
    /// Line of the PTX text.
    pub line: u32,
}

/// A line of the source, from `.loc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the `.file`.
    pub file: u32,
    pub line: u32,
    pub column: u32,
    /// The place of the call that was inlined here, in `Function::places`.
    pub inlined_at: Option<u32>,
}

/// `@%p1 ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1+16];`
#[derive(Clone, Debug)]
pub struct Instruction {
    /// The predicate register and whether it is negated.
    pub guard: Option<(Register, bool)>,
    /// Split at the dots: `["ld", "global", "v4", "b32"]`; `::` stays: `"shared::cta"`.
    pub opcode: Vec<String>,
    pub operands: Vec<Operand>,
    /// Line of the PTX text.
    pub line: u32,
    /// In `Function::places`.
    pub place: Option<u32>,
}

/// Number of a register in `Function::registers`.
pub type Register = u32;

#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    Register(Register),
    /// `!%p1`
    Not(Register),
    /// `_`
    Sink,
    /// Two's complement.
    Integer(i64),
    /// Bits of `0f3F800000`.
    F32(u32),
    /// Bits of `0d3FF0000000000000`, or of a decimal `1.0`, which may stand where an f32 is meant.
    F64(u64),
    /// `%tid.x`, `%laneid`: every name with a `%` that is not declared, known or not.
    Special(String),
    /// Address of a variable, or a function's name; plus bytes.
    Symbol(String, i64),
    /// In `Function::labels`.
    Label(u32),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `[base+offset]`; the base is a register, an integer, or a symbol with offset 0.
    Address(Box<Operand>, i64),
    /// `d|p`
    Pair(Box<Operand>, Box<Operand>),
    /// `(a, b)` of a call; the labels of a `brx.idx`.
    List(Vec<Operand>),
}
