//! What an instruction finds wrong, before the kernel, the line and the thread are known.

use crate::memory::Memory;
use crate::ptx::ast::Space;
use crate::report::Kind;

#[derive(Debug)]
pub struct Problem {
    pub kind: Kind,
    pub lane: Option<u32>,
    /// Space, address in it and bytes.
    pub access: Option<(Space, u64, u32)>,
    pub detail: String,
}

impl Problem {
    /// Of the lanes of `mask`, the first of which is named.
    #[cold]
    pub fn of_lanes(kind: Kind, mask: u32, detail: String) -> Box<Problem> {
        let lane = (mask != 0).then(|| mask.trailing_zeros());
        Box::new(Problem { kind, lane, access: None, detail })
    }

    /// Of one lane's access to `bytes` bytes at `address`.
    #[cold]
    pub fn of_access(
        kind: Kind,
        lane: u32,
        space: Space,
        address: u64,
        bytes: u32,
        memory: &Memory,
    ) -> Box<Problem> {
        let (mut kind, mut detail) = (kind, String::new());
        if let (Space::Global | Space::Const, true) = (space, kind != Kind::Misaligned) {
            let (text, was_freed) = memory.describe(address, bytes as u64);
            if kind == Kind::OutOfBounds && was_freed {
                kind = Kind::UseAfterFree;
            }
            detail = text;
        }
        Box::new(Problem { kind, lane: Some(lane), access: Some((space, address, bytes)), detail })
    }
}
