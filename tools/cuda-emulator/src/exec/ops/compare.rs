//! Comparison and selection: `setp`, `set`, `selp`, `slct`.

use super::Opcode;
use super::float::{Flushed, Single};
use crate::exec::half::{self, FlushedF16, Half};
use crate::exec::lanes::{Lane, Lanewise, Run, Width, compile, map3};
use crate::exec::program::Instruction;
use crate::exec::warp::{Block, Warp};
use crate::ptx::ast::Type::{self, *};

/// A comparison with its operands p, q, a, b, c: `p = (a op b) combine c`, `q = !(a op b) combine c`; of pairs,
/// q is the high half's result.
pub struct Comparison {
    pub run: Run,
    pub width: Width,
    /// How c is combined.
    pub immediate: i64,
    /// There is an operand c.
    pub combines: bool,
}

/// How the result is combined with c; `None` in the text is `AND` with true.
const COMBINE: [(&str, i64); 3] = [("and", 0), ("or", 1), ("xor", 2)];

/// Of `setp`, or of `set` with its source type.
pub fn comparison(code: &mut Opcode<'_>, r#type: Type) -> Result<Comparison, String> {
    // The names of the operator may be those of a combination too, but none is.
    let operator = code.pick(&OPERATORS).ok_or("it has no comparison that is supported")?;
    let combination = code.pick(&COMBINE);
    let is_flushed = code.flag("ftz");
    let found = match (r#type, is_flushed) {
        (U16 | B16, false) => ordered::<u16>(operator),
        (S16, false) => ordered::<i16>(operator),
        (U32 | B32, false) => ordered::<u32>(operator),
        (S32, false) => ordered::<i32>(operator),
        (U64 | B64, false) => ordered::<u64>(operator),
        (S64, false) => ordered::<i64>(operator),
        (F32, true) => any::<Flushed>(operator),
        (F32, false) => any::<f32>(operator),
        (F64, false) => any::<f64>(operator),
        (F16, true) => any::<FlushedF16>(operator),
        (F16, false) => any::<half::F16>(operator),
        (F16x2, true) => any::<[FlushedF16; 2]>(operator),
        (F16x2, false) => any::<[half::F16; 2]>(operator),
        (Bf16, false) => any::<half::Bf16>(operator),
        (Bf16x2, false) => any::<[half::Bf16; 2]>(operator),
        _ => return code.unsupported_type(),
    };
    let Some((run, width)) = found else {
        return Err("it has no such comparison for its type".into());
    };
    let combines = combination.is_some();
    Ok(Comparison { run, width, immediate: combination.unwrap_or(0), combines })
}

const OPERATORS: [(&str, &str); 18] = {
    const fn twice(name: &'static str) -> (&'static str, &'static str) {
        (name, name)
    }
    [
        twice("eq"),
        twice("ne"),
        twice("lt"),
        twice("le"),
        twice("gt"),
        twice("ge"),
        ("lo", "lt"),
        ("ls", "le"),
        ("hi", "gt"),
        ("hs", "ge"),
        twice("equ"),
        twice("neu"),
        twice("ltu"),
        twice("leu"),
        twice("gtu"),
        twice("geu"),
        twice("num"),
        twice("nan"),
    ]
};

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

fn ordered<T: Compared>(operator: &str) -> Option<(Run, Width)> {
    Some(match operator {
        "eq" => compare::<T>(|a, b| a == b),
        "ne" => compare::<T>(|a, b| a < b || a > b),
        "lt" => compare::<T>(|a, b| a < b),
        "le" => compare::<T>(|a, b| a <= b),
        "gt" => compare::<T>(|a, b| a > b),
        "ge" => compare::<T>(|a, b| a >= b),
        _ => return None,
    })
}

/// With NaN the ordered comparisons are false, `ne` among them, and the unordered ones true.
fn any<T: Compared>(operator: &str) -> Option<(Run, Width)> {
    Some(match operator {
        "equ" => compare::<T>(|a, b| !(a < b || a > b)),
        "neu" => compare::<T>(|a, b| a != b),
        "ltu" => compare::<T>(|a, b| !(a >= b)),
        "leu" => compare::<T>(|a, b| !(a > b)),
        "gtu" => compare::<T>(|a, b| !(a <= b)),
        "geu" => compare::<T>(|a, b| !(a < b)),
        "num" => compare::<T>(|a, b| a == a && b == b),
        "nan" => compare::<T>(|a, b| a != a || b != b),
        _ => return ordered::<T>(operator),
    })
}

fn compare<T: Compared>(f: impl Fn(T::Number, T::Number) -> bool + Copy) -> (Run, Width) {
    let run = compile(
        #[inline(always)]
        move |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
            let [p, q, a, b, c, ..] = instruction.operands;
            let (a, b) = (T::load(warp, block, a), T::load(warp, block, b));
            let (mut low, mut high) = (0, 0);
            for lane in 0..32 {
                low |= (f(a[lane].low(), b[lane].low()) as u32) << lane;
                if T::IS_PAIR {
                    high |= (f(a[lane].high(), b[lane].high()) as u32) << lane;
                }
            }
            let c = warp.predicate(c);
            let combine = |bits: u32| match instruction.immediate {
                0 => bits & c,
                1 => bits | c,
                _ => bits ^ c,
            };
            warp.set_predicate(p, combine(low), mask);
            warp.set_predicate(q, combine(if T::IS_PAIR { high } else { !low }), mask);
            Ok(())
        },
    );
    (run, T::WIDTH)
}

/// `d = p ? a : b`
pub fn select(r#type: Type) -> Option<Lanewise> {
    Some(match r#type {
        B16 | U16 | S16 => map3(|a: u16, b: u16, p: bool| if p { a } else { b }),
        B32 | U32 | S32 | F32 => map3(|a: u32, b: u32, p: bool| if p { a } else { b }),
        B64 | U64 | S64 | F64 => map3(|a: u64, b: u64, p: bool| if p { a } else { b }),
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
