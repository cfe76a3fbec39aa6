//! Arithmetic on numbers of many words: `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc`, `madc`.

use super::Opcode;
use super::integer::{high_s32, high_s64, high_u32, high_u64};
use crate::exec::lanes::{Lane, Run, Width, compile};
use crate::exec::program::Instruction;
use crate::exec::warp::{Block, Warp};
use crate::ptx::ast::Type::*;

/// Operands d, carry out, carry in, a, b and, of `mad`, c. Also gives the width of d, a, b and c, and how
/// many of the latter there are.
pub fn decode(code: &mut Opcode<'_>) -> Option<(Run, Width, usize)> {
    let part = code.pick(&[("lo", 'l'), ("hi", 'h')]);
    let run = match (code.name, part, code.types.as_slice()) {
        ("add" | "addc", None, [U32 | S32]) => with_carry(|a: u32, b, _| (a, b)),
        ("add" | "addc", None, [U64 | S64]) => with_carry(|a: u64, b, _| (a, b)),
        // a - b is a + !b + 1, and the borrow the complement of the carry.
        ("sub" | "subc", None, [U32 | S32]) => with_borrow(|a: u32, b, _| (a, !b)),
        ("sub" | "subc", None, [U64 | S64]) => with_borrow(|a: u64, b, _| (a, !b)),
        ("mad" | "madc", Some('l'), [U32 | S32]) => {
            with_carry(|a: u32, b, c| (a.wrapping_mul(b), c))
        }
        ("mad" | "madc", Some('l'), [U64 | S64]) => {
            with_carry(|a: u64, b, c| (a.wrapping_mul(b), c))
        }
        ("mad" | "madc", _, [U32]) => with_carry(|a: u32, b, c| (high_u32(a, b), c)),
        ("mad" | "madc", _, [S32]) => {
            with_carry(|a: u32, b, c| (high_s32(a as i32, b as i32) as u32, c))
        }
        ("mad" | "madc", _, [U64]) => with_carry(|a: u64, b, c| (high_u64(a, b), c)),
        ("mad" | "madc", _, [S64]) => {
            with_carry(|a: u64, b, c| (high_s64(a as i64, b as i64) as u64, c))
        }
        _ => return None,
    };
    let width = if code.types[0].bytes() == 8 { Width::B64 } else { Width::B32 };
    Some((run, width, if part.is_some() { 3 } else { 2 }))
}

trait Word: Lane + Default {
    /// `self + other + carry`, and whether it overflows.
    fn add(self, other: Self, carry: bool) -> (Self, bool);
}

macro_rules! words {
    ($($word:ty)*) => {$(
        impl Word for $word {
            #[inline(always)]
            fn add(self, other: Self, carry: bool) -> (Self, bool) {
                let (sum, first) = self.overflowing_add(other);
                let (sum, second) = sum.overflowing_add(carry as $word);
                (sum, first | second)
            }
        }
    )*};
}

words!(u32 u64);

fn with_carry<T: Word>(terms: impl Fn(T, T, T) -> (T, T) + Copy) -> Run {
    add_terms::<T, false>(terms)
}

fn with_borrow<T: Word>(terms: impl Fn(T, T, T) -> (T, T) + Copy) -> Run {
    add_terms::<T, true>(terms)
}

fn add_terms<T: Word, const IS_BORROW: bool>(terms: impl Fn(T, T, T) -> (T, T) + Copy) -> Run {
    compile(
        #[inline(always)]
        move |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
            let [d, carry_out, carry_in, a, b, c, ..] = instruction.operands;
            let [a, b, c] = [a, b, c].map(|operand| T::load(warp, block, operand));
            let carry = bool::load(warp, block, carry_in);
            let (mut sums, mut carries) = ([T::default(); 32], [false; 32]);
            for lane in 0..32 {
                let (x, y) = terms(a[lane], b[lane], c[lane]);
                let (sum, overflow) = x.add(y, carry[lane] != IS_BORROW);
                (sums[lane], carries[lane]) = (sum, overflow != IS_BORROW);
            }
            T::store(warp, d, sums, mask);
            bool::store(warp, carry_out, carries, mask);
            Ok(())
        },
    )
}
