//! Comparison and selection: `setp`, `set`, `selp`, `slct`.

use super::Opcode;
use super::float::{Flushed, Single};
use crate::exec::half::{self, FlushedF16, Half};
use crate::exec::lanes::{Chosen, Lane, Lanewise, Run, Width, collect, compile, each, map3};
use crate::exec::program::Instruction;
use crate::exec::warp::{Block, Warp};
use crate::ptx::ast::Type::{self, *};

/// A comparison with its operands p, q, a, b, c: `p = (a op b) combine c`, `q = !(a op b) combine c`; of pairs,
/// q is the high half's result.
pub struct Comparison {
    pub run: Run,
    pub width: Width,
    /// The operator, and how c is combined.
    pub immediate: i64,
    /// There is an operand c.
    pub combines: bool,
}

/// How the result is combined with c; `None` in the text is `AND` with true.
const COMBINE: [(&str, i64); 3] = [("and", 0), ("or", 1), ("xor", 2)];

/// Of `setp`, or of `set` with its source type.
pub fn comparison(code: &mut Opcode<'_>, r#type: Type) -> Result<Comparison, String> {
    let operator = code.pick(&OPERATORS).ok_or("it has no comparison that is supported")?;
    let combination = code.pick(&COMBINE);
    let is_flushed = code.flag("ftz");
    let (run, width) = match (r#type, is_flushed) {
        (U16 | B16, false) => compare::<u16>(),
        (S16, false) => compare::<i16>(),
        (U32 | B32, false) => compare::<u32>(),
        (S32, false) => compare::<i32>(),
        (U64 | B64, false) => compare::<u64>(),
        (S64, false) => compare::<i64>(),
        (F32, true) => compare::<Flushed>(),
        (F32, false) => compare::<f32>(),
        (F64, false) => compare::<f64>(),
        (F16, true) => compare::<FlushedF16>(),
        (F16, false) => compare::<half::F16>(),
        (F16x2, true) => compare::<[FlushedF16; 2]>(),
        (F16x2, false) => compare::<[half::F16; 2]>(),
        (Bf16, false) => compare::<half::Bf16>(),
        (Bf16x2, false) => compare::<[half::Bf16; 2]>(),
        _ => return code.unsupported_type(),
    };
    let (combines, combination) = (combination.is_some(), combination.unwrap_or(0));
    Ok(Comparison { run, width, immediate: operator | combination << 4, combines })
}

/// The outcomes for which a comparison holds: 1 less, 2 equal, 4 greater, 8 unordered.
const OPERATORS: [(&str, i64); 18] = [
    ("eq", 2),
    ("ne", 1 | 4),
    ("lt", 1),
    ("le", 1 | 2),
    ("gt", 4),
    ("ge", 4 | 2),
    ("lo", 1),
    ("ls", 1 | 2),
    ("hi", 4),
    ("hs", 4 | 2),
    ("equ", 2 | 8),
    ("neu", 1 | 4 | 8),
    ("ltu", 1 | 8),
    ("leu", 1 | 2 | 8),
    ("gtu", 4 | 8),
    ("geu", 4 | 2 | 8),
    ("num", 1 | 2 | 4),
    ("nan", 8),
];

/// What is compared: a number, or two of them with a result each.
trait Compared: Lane {
    type Number: PartialOrd + Copy;
    const IS_PAIR: bool = false;
    fn low(self) -> Self::Number;
    fn high(self) -> Self::Number {
        self.low()
    }
}

macro_rules! compared {
    ($($type:ty: $number:ty, $view:expr;)*) => {$(
        impl Compared for $type {
            type Number = $number;
            #[inline(always)]
            fn low(self) -> $number {
                ($view)(self)
            }
        }
    )*};
}

compared! {
    u16: u16, |x| x;
    i16: i16, |x| x;
    u32: u32, |x| x;
    i32: i32, |x| x;
    u64: u64, |x| x;
    i64: i64, |x| x;
    f32: f32, |x| x;
    f64: f64, |x| x;
    Flushed: f32, Flushed::get;
    half::F16: f32, half::F16::widen;
    half::Bf16: f32, half::Bf16::widen;
    FlushedF16: f32, |x: FlushedF16| x.0.widen();
}

impl<T: Compared> Compared for [T; 2]
where
    [T; 2]: Lane,
{
    type Number = T::Number;
    const IS_PAIR: bool = true;
    #[inline(always)]
    fn low(self) -> T::Number {
        self[0].low()
    }
    #[inline(always)]
    fn high(self) -> T::Number {
        self[1].low()
    }
}

fn compare<T: Compared>() -> (Run, Width) {
    let run = compile(
        #[inline(always)]
        |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
            let [p, q, a, b, c, ..] = instruction.operands;
            let (a, b) = (T::load(warp, block, a), T::load(warp, block, b));
            let operator = instruction.immediate;
            let low = holds(
                operator,
                #[inline(always)]
                |lane| (a[lane].low(), b[lane].low()),
            );
            let high = if T::IS_PAIR {
                holds(
                    operator,
                    #[inline(always)]
                    |lane| (a[lane].high(), b[lane].high()),
                )
            } else {
                !low
            };
            let c = warp.predicate(c);
            let combine = |bits: u32| match operator >> 4 {
                0 => bits & c,
                1 => bits | c,
                _ => bits ^ c,
            };
            warp.set_predicate(p, combine(low), mask);
            warp.set_predicate(q, combine(high), mask);
            Ok(())
        },
    );
    (run, T::WIDTH)
}

/// The lanes whose numbers compare as one of the outcomes.
#[inline(always)]
fn holds<N: PartialOrd>(operator: i64, numbers: impl Fn(usize) -> (N, N)) -> u32 {
    let wanted = |outcome: i64| if operator & outcome != 0 { !0 } else { 0 };
    let [less, equal, greater, unordered] = [1, 2, 4, 8].map(wanted);
    let all_if = |condition: bool| if condition { !0u32 } else { 0 };
    let words = each(
        #[inline(always)]
        |lane| {
            let (a, b) = numbers(lane);
            let [is_less, is_equal, is_greater] = [a < b, a == b, a > b].map(all_if);
            is_less & less
                | is_equal & equal
                | is_greater & greater
                | !(is_less | is_equal | is_greater) & unordered
        },
    );
    collect(&words)
}

/// `d = p ? a : b`
pub fn select(r#type: Type) -> Option<Lanewise> {
    Some(match r#type {
        B16 | U16 | S16 => map3(|a: u16, b: u16, p: Chosen<u32>| a & p.0 as u16 | b & !p.0 as u16),
        B32 | U32 | S32 | F32 => map3(|a: u32, b: u32, p: Chosen<u32>| a & p.0 | b & !p.0),
        B64 | U64 | S64 | F64 => map3(|a: u64, b: u64, p: Chosen<u64>| a & p.0 | b & !p.0),
        _ => return None,
    })
}

/// `d = c >= 0 ? a : b`
pub fn select_by_sign(code: &mut Opcode<'_>) -> Option<Lanewise> {
    let is_flushed = code.flag("ftz");
    Some(match code.types.as_slice() {
        [B32 | U32 | S32 | F32, F32] if is_flushed => {
            map3(|a: u32, b: u32, c: Flushed| if c.get() >= 0.0 { a } else { b })
        }
        [B64 | U64 | S64 | F64, F32] if is_flushed => {
            map3(|a: u64, b: u64, c: Flushed| if c.get() >= 0.0 { a } else { b })
        }
        [B32 | U32 | S32 | F32, S32] => map3(|a: u32, b: u32, c: i32| if c >= 0 { a } else { b }),
        [B64 | U64 | S64 | F64, S32] => map3(|a: u64, b: u64, c: i32| if c >= 0 { a } else { b }),
        [B32 | U32 | S32 | F32, F32] => map3(|a: u32, b: u32, c: f32| if c >= 0.0 { a } else { b }),
        [B64 | U64 | S64 | F64, F32] => map3(|a: u64, b: u64, c: f32| if c >= 0.0 { a } else { b }),
        _ => return None,
    })
}
