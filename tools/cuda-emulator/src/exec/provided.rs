//! The functions that kernels call and no module defines: `printf` and what a failed `assert` calls.
//!
//! Their parameters lie in the local memory of the caller; the operands are the addresses.

use std::io::Write;

use super::ops::memory::{peek, write};
use super::print;
use super::problem::Problem;
use super::program::Instruction;
use super::warp::{Block, Warp};
use crate::ptx::ast::Space;

/// Strings longer than this are cut.
const LONGEST: u64 = 1024;

/// What `__assertfail` is told: operands message, file, line and function.
pub fn assertion(warp: &Warp, block: &Block<'_>, instruction: &Instruction, lane: u32) -> String {
    let lane = Lane { warp, block, lane };
    let parameter = |i: usize| warp.double(block, instruction.operands[i])[lane.lane as usize & 31];
    let text = |i: usize| {
        let address = lane.read(Space::Local, parameter(i)).map_or(0, u64::from_le_bytes);
        String::from_utf8_lossy(&lane.string(address)).into_owned()
    };
    let line = lane.read(Space::Local, parameter(2)).map_or(0, u32::from_le_bytes);
    let (message, file, function) = (text(0), text(1), text(3));
    format!("Assertion `{message}` failed at {file}:{line} in {function}.")
}

/// `vprintf` of the lanes of `mask`, one after the other: operands format, arguments and result.
pub fn print(
    warp: &mut Warp,
    block: &Block<'_>,
    instruction: &Instruction,
    mask: u32,
) -> Result<(), Box<Problem>> {
    let [format, arguments, result, ..] = instruction.operands;
    let [format, arguments, result] =
        [format, arguments, result].map(|operand| *warp.double(block, operand));
    let mut counts = [[0; 4]; 32];
    for number in (0..32).filter(|number| mask >> number & 1 != 0) {
        let lane = Lane { warp, block, lane: number as u32 };
        let pointer = |at: u64| lane.read(Space::Local, at).map_or(0, u64::from_le_bytes);
        let row = pointer(arguments[number]);
        let argument = |at: u64, bytes: usize| match bytes {
            4 => lane
                .read(Space::Generic, row.wrapping_add(at))
                .map(|bytes| u32::from_le_bytes(bytes) as u64),
            _ => lane.read(Space::Generic, row.wrapping_add(at)).map(u64::from_le_bytes),
        };
        let string = |address: u64| lane.string(address);
        let (text, count) = print::text(&lane.string(pointer(format[number])), argument, string);
        // What cannot be printed is of no consequence to the kernel.
        let _ = std::io::stdout().lock().write_all(&text);
        counts[number] = count.to_le_bytes();
    }
    write(warp, block, Space::Local, &result, &counts, mask)
}

/// One lane's view of memory.
struct Lane<'a> {
    warp: &'a Warp,
    block: &'a Block<'a>,
    lane: u32,
}

impl Lane<'_> {
    fn read<const N: usize>(&self, space: Space, address: u64) -> Option<[u8; N]> {
        peek(self.warp, self.block, space, address, self.lane as usize)
    }

    /// Up to the 0 at its end.
    fn string(&self, address: u64) -> Vec<u8> {
        let byte = |at: u64| self.read(Space::Generic, address.wrapping_add(at)).map(|[byte]| byte);
        (0..LONGEST).map_while(byte).take_while(|&byte: &u8| byte != 0).collect()
    }
}
