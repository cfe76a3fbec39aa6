//! What went wrong in a kernel, and where.

use std::fmt;

use crate::exec::Schedule;
use crate::ptx::ast::Space;

/// The kinds of fault, each with the name it is reported by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    OutOfBounds,
    UseAfterFree,
    Misaligned,
    Uninitialised,
    /// Read or overwritten while an asynchronous copy into it is under way.
    PendingCopy,
    ReadOnly,
    /// Two threads touch a byte, at least one of them writes, and nothing orders them.
    Race,
    BarrierDivergence,
    Deadlock,
    /// A lane named in the mask of a `.sync` instruction does not take part.
    MissingLanes,
    /// `assert` of a kernel.
    Assertion,
    /// `trap`, or a kernel that does not end.
    Trap,
    Endless,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::OutOfBounds => "out of bounds",
            Kind::UseAfterFree => "use after free",
            Kind::Misaligned => "misaligned address",
            Kind::Uninitialised => "uninitialised read",
            Kind::PendingCopy => "pending asynchronous copy",
            Kind::ReadOnly => "write to read-only memory",
            Kind::Race => "race",
            Kind::BarrierDivergence => "barrier divergence",
            Kind::Deadlock => "deadlock",
            Kind::MissingLanes => "missing lanes",
            Kind::Assertion => "failed assertion",
            Kind::Trap => "trap",
            Kind::Endless => "endless kernel",
        })
    }
}

/// The first fault of a launch.
#[derive(Clone, Debug)]
pub struct Fault {
    pub kind: Kind,
    pub kernel: String,
    /// `ld.global.v4.b32` and its line of the PTX text.
    pub instruction: String,
    pub ptx_line: u32,
    /// `kernels/rms_norm.cu:57`, innermost first, then the lines it was inlined at.
    pub source: Vec<String>,
    pub block: [u32; 3],
    /// Of the block.
    pub warp: u32,
    /// The first lane concerned and its thread, where one lane is to blame.
    pub lane: Option<u32>,
    pub thread: Option<[u32; 3]>,
    /// Space, address in it and bytes of the access.
    pub access: Option<(Space, u64, u32)>,
    /// What the address lies in, what every warp waits for, or what it races with: whole sentences.
    pub detail: String,
    /// Of the launch.
    pub schedule: Schedule,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "{} in {}, {}", self.kind, self.kernel, self.instruction)?;
        match self.source.split_first() {
            Some((place, callers)) => {
                write!(f, " at {place}")?;
                for caller in callers {
                    write!(f, ", inlined at {caller}")?;
                }
                write!(f, " (PTX line {})", self.ptx_line)?;
            }
            None => write!(f, " at PTX line {}", self.ptx_line)?,
        }
        write!(f, ": block ({x}, {y}, {z}), warp {}", self.warp)?;
        if let Some(lane) = self.lane {
            write!(f, ", lane {lane}")?;
        }
        if let Some([x, y, z]) = self.thread {
            write!(f, " = thread ({x}, {y}, {z})")?;
        }
        if let Some((space, address, bytes)) = self.access {
            let space = format!("{space:?}").to_lowercase();
            write!(f, ", {bytes} bytes of {space} memory at {address:#x}")?;
        }
        if !self.detail.is_empty() {
            write!(f, ". {}", self.detail.trim_end_matches('.'))?;
        }
        write!(f, ". Schedule {}.", self.schedule)
    }
}

impl std::error::Error for Fault {}
