//! A kernel, decoded: what the interpreter runs.

use std::collections::BTreeMap;

use super::lanes::{Run, Width};
use crate::ptx::ast::{Place, Space};

/// A register of the warp or a constant of the program, or a predicate.
///
/// Of 32-bit slots: the number of the slot, with [`Operand::CONSTANT`] in the program's table of constants,
/// which are the same in all lanes. Of predicates: the number of the predicate, with
/// [`Operand::NEGATED`] its negation. The binder made it for a program, so it lies inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operand(pub u16);

impl Operand {
    pub const CONSTANT: u16 = 1 << 15;
    pub const NEGATED: u16 = 1 << 15;
    /// The predicate that is always true.
    pub const TRUE: Operand = Operand(0);

    pub fn is_constant(self) -> bool {
        self.0 & Self::CONSTANT != 0
    }

    pub fn index(self) -> usize {
        (self.0 & !Self::CONSTANT) as usize
    }
}

/// Operands of the longest instruction, mma: 4 + 4 + 2 + 4.
pub const MAX_OPERANDS: usize = 14;

/// One decoded instruction.
#[derive(Clone, Copy)]
pub struct Instruction {
    pub op: Op,
    /// Lanes where this predicate is false skip the instruction.
    pub guard: Operand,
    /// Results first.
    pub operands: [Operand; MAX_OPERANDS],
    /// What else the operation needs to know: an offset, a table, a rounding mode.
    pub immediate: i64,
    /// Of instructions that touch memory.
    pub access: Access,
    /// Which of several forms the operation has.
    pub form: u8,
}

/// The space of a memory instruction, how wide its addresses are, and what it is to other threads.
#[derive(Clone, Copy)]
pub struct Access {
    pub space: Space,
    pub width: Width,
    pub order: Order,
}

/// How an access or a fence takes part in PTX's memory model; as it is by default, weakly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    pub is_strong: bool,
    pub acquires: bool,
    pub releases: bool,
    /// Its scope is the block; else it is the device.
    pub is_of_block: bool,
}

impl Order {
    pub const WEAK: Order =
        Order { is_strong: false, acquires: false, releases: false, is_of_block: false };
    pub const RELAXED: Order = Order { is_strong: true, ..Order::WEAK };
}

impl Access {
    /// Of instructions that touch no memory.
    pub const NONE: Access =
        Access { space: Space::Generic, width: Width::B64, order: Order::WEAK };
}

#[derive(Clone, Copy)]
pub enum Op {
    /// Of every lane for itself.
    Lanes(Run),
    /// Of lanes together, all of which must be there: those in the mask that the operand gives, or all 32.
    Sync(Run, Members),
    Branch(u32),
    /// Operand 0 chooses among so many of `Program::tables` from an index on.
    BranchTable(u32, u32),
    Exit,
    Barrier(Barrier),
    Trap,
    /// `__assertfail`, see `provided`.
    AssertFail,
    /// `vprintf`, see `provided`.
    Print,
}

#[derive(Clone, Copy)]
pub enum Members {
    Mask(Operand),
    All,
}

/// `barrier{.cta}` and `bar`. Operand 0 is the barrier's number, operand 1 the count of threads.
#[derive(Clone, Copy)]
pub struct Barrier {
    pub action: Action,
    /// A warp arrives whole.
    pub is_aligned: bool,
    /// Operand 1 counts; else all threads of the block take part.
    pub is_counted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Sync,
    Arrive,
    /// Operand 2 is the result and operand 3 the predicate that is reduced.
    Reduce(Reduction),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    Count,
    And,
    Or,
}

/// 32 lanes of 32 bits; a 64-bit register is 32 lanes of 64 bits in two of them.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Slot(pub [u32; 32]);

/// Where an instruction stands in the text.
#[derive(Clone, Copy)]
pub struct Origin {
    /// Of `Program::opcodes`.
    pub opcode: u32,
    pub line: u32,
    /// Of `Program::places`.
    pub place: Option<u32>,
}

/// A value that is known when a warp starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    Thread(u8),
    BlockSize(u8),
    Block(u8),
    GridSize(u8),
    Warp,
    WarpCount,
    DynamicShared,
    TotalShared,
}

/// An entry point with all it calls.
pub struct Program {
    pub instructions: Vec<Instruction>,
    pub origins: Vec<Origin>,
    pub opcodes: Vec<String>,
    pub places: Vec<Place>,
    pub files: BTreeMap<u32, String>,
    pub constants: Vec<Slot>,
    /// Targets of branches that choose.
    pub tables: Vec<u32>,
    /// 32-bit slots of a warp.
    pub slots: usize,
    pub predicates: usize,
    /// Slots to be filled when a warp starts.
    pub specials: Vec<(Special, Operand)>,
}
