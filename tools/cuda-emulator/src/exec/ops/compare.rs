//! Comparison and selection: `setp`, `set`, `selp`, `slct`.

use super::Opcode;
use super::float::Flushed;
use crate::exec::half;
use crate::exec::lanes::{Lane, Lanewise, Run, Width, compile, map3};
use crate::exec::program::Instruction;
use crate::exec::warp::{Block, Warp};
use crate::ptx::ast::Type::{self, *};

/// A comparison with its operands p, q, a, b, c: `p = (a op b) combine c`, `q = !(a op b) combine c`.
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
    let found = match r#type {
        U16 | B16 => integers::<u16>(operator),
        S16 => integers::<i16>(operator),
        U32 | B32 => integers::<u32>(operator),
        S32 => integers::<i32>(operator),
        U64 | B64 => integers::<u64>(operator),
        S64 => integers::<i64>(operator),
        F32 if is_flushed => floats::<Flushed>(operator),
        F32 => floats::<f32>(operator),
        F64 => floats::<f64>(operator),
        F16 if !is_flushed => floats::<half::F16>(operator),
        Bf16 => floats::<half::Bf16>(operator),
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

fn integers<T: Lane + PartialOrd>(operator: &str) -> Option<(Run, Width)> {
    Some(match operator {
        "eq" => compare(|a: T, b: T| a == b),
        "ne" => compare(|a: T, b: T| a != b),
        "lt" => compare(|a: T, b: T| a < b),
        "le" => compare(|a: T, b: T| a <= b),
        "gt" => compare(|a: T, b: T| a > b),
        "ge" => compare(|a: T, b: T| a >= b),
        _ => return None,
    })
}

/// With NaN the ordered comparisons are false, `ne` among them, and the unordered ones true.
fn floats<T: Lane + PartialOrd>(operator: &str) -> Option<(Run, Width)> {
    Some(match operator {
        "ne" => compare(|a: T, b: T| a < b || a > b),
        "equ" => compare(|a: T, b: T| !(a < b || a > b)),
        "neu" => compare(|a: T, b: T| a != b),
        "ltu" => compare(|a: T, b: T| !(a >= b)),
        "leu" => compare(|a: T, b: T| !(a > b)),
        "gtu" => compare(|a: T, b: T| !(a <= b)),
        "geu" => compare(|a: T, b: T| !(a < b)),
        "num" => compare(|a: T, b: T| a == a && b == b),
        "nan" => compare(|a: T, b: T| a != a || b != b),
        other => return integers::<T>(other),
    })
}

fn compare<T: Lane>(f: impl Fn(T, T) -> bool + Copy) -> (Run, Width) {
    let run = compile(
        #[inline(always)]
        move |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
            let [p, q, a, b, c, ..] = instruction.operands;
            let (a, b) = (T::load(warp, block, a), T::load(warp, block, b));
            let mut bits = 0;
            for lane in 0..32 {
                bits |= (f(a[lane], b[lane]) as u32) << lane;
            }
            let c = warp.predicate(c);
            let combine = |bits: u32| match instruction.immediate {
                0 => bits & c,
                1 => bits | c,
                _ => bits ^ c,
            };
            warp.set_predicate(p, combine(bits), mask);
            warp.set_predicate(q, combine(!bits), mask);
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
pub fn select_by_sign(code: &Opcode<'_>) -> Option<Lanewise> {
    Some(match code.types.as_slice() {
        [B32 | U32 | S32 | F32, S32] => map3(|a: u32, b: u32, c: i32| if c >= 0 { a } else { b }),
        [B64 | U64 | S64 | F64, S32] => map3(|a: u64, b: u64, c: i32| if c >= 0 { a } else { b }),
        [B32 | U32 | S32 | F32, F32] => map3(|a: u32, b: u32, c: f32| if c >= 0.0 { a } else { b }),
        [B64 | U64 | S64 | F64, F32] => map3(|a: u64, b: u64, c: f32| if c >= 0.0 { a } else { b }),
        _ => return None,
    })
}
