//! What the lanes of a warp do together: `shfl`, `vote`, `match`, `redux`, `activemask`.
//!
//! The lanes that an instruction names with its mask are all there when it runs; several groups of lanes,
//! each with its own mask, may run it at once.

use super::Opcode;
use crate::exec::lanes::{Lane, Run, compile, each};
use crate::exec::problem::Problem;
use crate::exec::program::{Instruction, Operand};
use crate::exec::warp::{Block, Warp};
use crate::ptx::ast::Type::*;
use crate::report::Kind;

/// Operands d, p, a, b, c, members: p tells whether the source lane lies in the segment.
pub fn shuffle(code: &mut Opcode<'_>) -> Option<Run> {
    let mode = code.pick(&[("up", 0), ("down", 1), ("bfly", 2), ("idx", 3)])?;
    let &[B32] = code.types.as_slice() else { return None };
    // The lane to read from, and whether it lies in the segment.
    Some(match mode {
        0 => shuffle_from(|lane, b, _, last| (lane - b, lane - b >= last)),
        1 => shuffle_from(|lane, b, _, last| (lane + b, lane + b <= last)),
        2 => shuffle_from(|lane, b, _, last| (lane ^ b, (lane ^ b) <= last)),
        _ => shuffle_from(|lane, b, segment, last| {
            let source = lane & segment | b & !segment;
            (source, source <= last)
        }),
    })
}

fn shuffle_from(source: impl Fn(i32, i32, i32, i32) -> (i32, bool) + Copy) -> Run {
    compile(
        #[inline(always)]
        move |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask: u32| {
            let [d, p, a, b, c, members, ..] = instruction.operands;
            let a = u32::load(warp, block, a);
            let b = u32::load(warp, block, b);
            let c = u32::load(warp, block, c);
            let members = present(warp, block, members, mask);
            let mut from = [0; 32];
            let mut inside = [false; 32];
            let mut absent = 0;
            for lane in 0..32 {
                let own = lane as i32;
                let (clamp, segment) = (c[lane] as i32 & 31, c[lane] as i32 >> 8 & 31);
                let last = own & segment | clamp & !segment;
                let (found, is_inside) = source(own, b[lane] as i32 & 31, segment, last);
                from[lane] = (if is_inside { found } else { own }) as u32 & 31;
                inside[lane] = is_inside;
                absent |= (!members[lane] >> from[lane] & 1) << lane;
            }
            if absent & mask != 0 {
                let lane = (absent & mask).trailing_zeros() as usize;
                let detail = format!("The lane reads from lane {}, which is absent.", from[lane]);
                return Err(Problem::of_lanes(Kind::MissingLanes, absent & mask, detail));
            }
            let values = each(
                #[inline(always)]
                |lane| a[from[lane] as usize & 31],
            );
            u32::store(warp, d, values, mask);
            bool::store(warp, p, inside, mask);
            Ok(())
        },
    )
}

/// The lanes that each lane's mask names: without those that never were, at the end of a block.
#[inline(always)]
fn present(warp: &Warp, block: &Block<'_>, members: Operand, mask: u32) -> [u32; 32] {
    let members = u32::load(warp, block, members);
    each(
        #[inline(always)]
        |lane| members[lane] & mask,
    )
}

/// Operands d, a, members.
pub fn vote(code: &mut Opcode<'_>) -> Option<Run> {
    let mode = code.pick(&[("ballot", 0), ("all", 1), ("any", 2), ("uni", 3)])?;
    Some(match (mode, code.types.as_slice()) {
        (0, [B32]) => count(|ones, _| ones),
        (1, [Pred]) => count(|ones, members| ones == members),
        (2, [Pred]) => count(|ones, _| ones != 0),
        (3, [Pred]) => count(|ones, members| ones == 0 || ones == members),
        _ => return None,
    })
}

/// Of the members where a holds, and the members.
fn count<D: Lane + Default>(f: impl Fn(u32, u32) -> D + Copy) -> Run {
    compile(
        #[inline(always)]
        move |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask: u32| {
            let [d, a, members, ..] = instruction.operands;
            let ones = warp.predicate(a) & mask;
            let members = present(warp, block, members, mask);
            let values = each(
                #[inline(always)]
                |lane| f(ones & members[lane], members[lane]),
            );
            D::store(warp, d, values, mask);
            Ok(())
        },
    )
}

/// `match`: operands d, p, a, members.
pub fn match_values(code: &mut Opcode<'_>) -> Option<Run> {
    let is_all = code.pick(&[("any", false), ("all", true)])?;
    Some(match (is_all, code.types.as_slice()) {
        (false, [B32]) => match_of::<u32, false>(),
        (true, [B32]) => match_of::<u32, true>(),
        (false, [B64]) => match_of::<u64, false>(),
        (true, [B64]) => match_of::<u64, true>(),
        _ => return None,
    })
}

fn match_of<T: Lane + PartialEq, const IS_ALL: bool>() -> Run {
    compile(
        #[inline(always)]
        |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
            let [d, p, a, members, ..] = instruction.operands;
            let a = T::load(warp, block, a);
            let members = present(warp, block, members, mask);
            let mut same = [0; 32];
            let mut agree = [false; 32];
            for lane in 0..32 {
                for other in 0..32 {
                    same[lane] |= ((a[lane] == a[other]) as u32) << other;
                }
                same[lane] &= members[lane];
                agree[lane] = same[lane] == members[lane];
                if IS_ALL && !agree[lane] {
                    same[lane] = 0;
                }
            }
            u32::store(warp, d, same, mask);
            bool::store(warp, p, agree, mask);
            Ok(())
        },
    )
}

/// Operands d, a, members.
pub fn reduce(code: &mut Opcode<'_>) -> Option<Run> {
    let operators = [("add", 0), ("min", 1), ("max", 2), ("and", 3), ("or", 4), ("xor", 5)];
    let operator = code.pick(&operators)?;
    Some(match (operator, code.types.as_slice()) {
        (0, [U32 | S32]) => reduce_by(u32::wrapping_add),
        (1, [U32]) => reduce_by(|a: u32, b: u32| a.min(b)),
        (1, [S32]) => reduce_by(|a: i32, b: i32| a.min(b)),
        (2, [U32]) => reduce_by(|a: u32, b: u32| a.max(b)),
        (2, [S32]) => reduce_by(|a: i32, b: i32| a.max(b)),
        (3, [B32]) => reduce_by(|a: u32, b: u32| a & b),
        (4, [B32]) => reduce_by(|a: u32, b: u32| a | b),
        (5, [B32]) => reduce_by(|a: u32, b: u32| a ^ b),
        _ => return None,
    })
}

fn reduce_by<T: Lane + Default>(f: impl Fn(T, T) -> T + Copy) -> Run {
    compile(
        #[inline(always)]
        move |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask: u32| {
            let [d, a, members, ..] = instruction.operands;
            let a = T::load(warp, block, a);
            let members = present(warp, block, members, mask);
            let mut values = [T::default(); 32];
            let mut rest = mask;
            while rest != 0 {
                let group = members[rest.trailing_zeros() as usize & 31] & rest;
                let lanes = (0..32).filter(|lane| group >> lane & 1 != 0);
                let Some(total) = lanes.clone().map(|lane| a[lane]).reduce(f) else { break };
                lanes.for_each(|lane| values[lane] = total);
                rest &= !group;
            }
            T::store(warp, d, values, mask);
            Ok(())
        },
    )
}

/// The first of the members: operands d, p, members.
pub fn elect() -> Run {
    compile(
        #[inline(always)]
        |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
            let [d, p, members, ..] = instruction.operands;
            let members = present(warp, block, members, mask);
            let first = each(
                #[inline(always)]
                |lane| members[lane].trailing_zeros(),
            );
            let is_first = each(
                #[inline(always)]
                |lane| first[lane] == lane as u32,
            );
            u32::store(warp, d, first, mask);
            bool::store(warp, p, is_first, mask);
            Ok(())
        },
    )
}

/// Operand d.
pub fn active_mask() -> Run {
    compile(
        #[inline(always)]
        |warp: &mut Warp, _: &Block<'_>, instruction: &Instruction, mask| {
            u32::store(warp, instruction.operands[0], [mask; 32], mask);
            Ok(())
        },
    )
}
