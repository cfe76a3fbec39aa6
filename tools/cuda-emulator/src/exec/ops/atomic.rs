//! `atom` and `red`: read, compute, write back as one.
//!
//! Blocks run on several threads, so these are atomic operations of the host, on the very bytes. The lanes
//! of a warp take their turns in order.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::Opcode;
use crate::exec::address::{addresses, target};
use crate::exec::half::{self, Half};
use crate::exec::lanes::{Lane, Run, Width, compile};
use crate::exec::program::Instruction;
use crate::exec::touch::{Touch, touch};
use crate::exec::warp::{Block, Warp};
use crate::ptx::ast::{Space, Type};
use crate::report::Kind;

/// An operation with its operands d, address, b and, of `cas`, c.
pub struct Atomic {
    pub run: Run,
    /// Of d, b and c.
    pub width: Width,
    /// The operator.
    pub form: u8,
    /// b and c.
    pub sources: usize,
}

const ADD: u8 = 0;
const MIN: u8 = 1;
const MAX: u8 = 2;
const INC: u8 = 3;
const DEC: u8 = 4;
const AND: u8 = 5;
const OR: u8 = 6;
const XOR: u8 = 7;
const EXCHANGE: u8 = 8;
const COMPARE: u8 = 9;

pub fn decode(code: &mut Opcode<'_>) -> Option<Atomic> {
    const OPERATORS: [(&str, u8); 10] = [
        ("add", ADD),
        ("min", MIN),
        ("max", MAX),
        ("inc", INC),
        ("dec", DEC),
        ("and", AND),
        ("or", OR),
        ("xor", XOR),
        ("exch", EXCHANGE),
        ("cas", COMPARE),
    ];
    let form = code.pick(&OPERATORS)?;
    let is_noftz = code.flag("noftz");
    let &[r#type] = code.types.as_slice() else { return None };
    use Type::*;
    let (run, width) = match (form, r#type) {
        (ADD | MIN | MAX | INC | DEC, U32)
        | (ADD, S32)
        | (AND | OR | XOR, B32)
        | (EXCHANGE | COMPARE, B32 | U32 | S32 | F32) => {
            atomic::<u32, u32>(|form, _, a, b, c| word(form, a, b, c))
        }
        (ADD | MIN | MAX, U64)
        | (ADD, S64)
        | (AND | OR | XOR, B64)
        | (EXCHANGE | COMPARE, B64 | U64 | S64 | F64) => {
            atomic::<u64, u64>(|form, _, a, b, c| double(form, a, b, c))
        }
        (MIN | MAX, S32) => {
            atomic::<i32, u32>(|form, _, a, b, _| if form == MIN { a.min(b) } else { a.max(b) })
        }
        (MIN | MAX, S64) => {
            atomic::<i64, u64>(|form, _, a, b, _| if form == MIN { a.min(b) } else { a.max(b) })
        }
        (COMPARE, B16) => atomic::<u16, u16>(|_, _, a, b, c| if a == b { c } else { a }),
        (ADD, F32) => atomic::<f32, u32>(|_, space, a, b, _| add_f32(space, a, b)),
        (ADD, F64) => atomic::<f64, u64>(|_, _, a, b, _| a + b),
        (ADD, F16) if is_noftz => atomic::<half::F16, u16>(|_, _, a, b, _| add_half(a, b)),
        (ADD, Bf16) if is_noftz => atomic::<half::Bf16, u16>(|_, _, a, b, _| add_half(a, b)),
        (ADD, F16x2) if is_noftz => atomic::<[half::F16; 2], u32>(|_, _, a, b, _| {
            [add_half(a[0], b[0]), add_half(a[1], b[1])]
        }),
        (ADD, Bf16x2) if is_noftz => atomic::<[half::Bf16; 2], u32>(|_, _, a, b, _| {
            [add_half(a[0], b[0]), add_half(a[1], b[1])]
        }),
        _ => return None,
    };
    Some(Atomic { run, width, form, sources: if form == COMPARE { 2 } else { 1 } })
}

fn word(form: u8, a: u32, b: u32, c: u32) -> u32 {
    match form {
        INC if a >= b => 0,
        INC => a + 1,
        DEC if a == 0 || a > b => b,
        DEC => a - 1,
        _ => double(form, a as u64, b as u64, c as u64) as u32,
    }
}

fn double(form: u8, a: u64, b: u64, c: u64) -> u64 {
    match form {
        ADD => a.wrapping_add(b),
        MIN => a.min(b),
        MAX => a.max(b),
        AND => a & b,
        OR => a | b,
        XOR => a ^ b,
        COMPARE if a == b => c,
        COMPARE => a,
        _ => b,
    }
}

/// In global memory subnormal numbers count as zero, in shared memory they do not.
#[inline(always)]
fn add_f32(space: Space, a: f32, b: f32) -> f32 {
    use super::float::{Single, flush};
    if space == Space::Shared {
        return f32::new(a + b);
    }
    f32::new(flush(flush(a) + flush(b)))
}

#[inline(always)]
fn add_half<H: Half>(a: H, b: H) -> H {
    H::narrow(a.widen() + b.widen())
}

/// Bits in memory that are updated as one.
trait Cell: Copy + Default {
    const BYTES: usize;
    /// SAFETY: `at` is aligned, and valid for as long as the call takes.
    unsafe fn update(at: *mut u8, f: impl Fn(Self) -> Self) -> Self;
}

macro_rules! cells {
    ($($bits:ty, $atomic:ty;)*) => {$(
        impl Cell for $bits {
            const BYTES: usize = size_of::<$bits>();
            #[inline(always)]
            unsafe fn update(at: *mut u8, f: impl Fn(Self) -> Self) -> Self {
                // SAFETY: as the caller promises.
                let cell = unsafe { <$atomic>::from_ptr(at.cast()) };
                let order = Ordering::SeqCst;
                match cell.fetch_update(order, order, |old| Some(f(old))) {
                    Ok(old) | Err(old) => old,
                }
            }
        }
    )*};
}

cells! {
    u16, AtomicU16;
    u32, AtomicU32;
    u64, AtomicU64;
}

/// A value that a cell holds.
trait Held<C>: Lane + Default {
    fn from_cell(bits: C) -> Self;
    fn into_cell(self) -> C;
}

macro_rules! held {
    ($($type:ty, $cell:ty, $from:expr, $into:expr;)*) => {$(
        impl Held<$cell> for $type {
            #[inline(always)]
            fn from_cell(bits: $cell) -> Self {
                ($from)(bits)
            }
            #[inline(always)]
            fn into_cell(self) -> $cell {
                ($into)(self)
            }
        }
    )*};
}

held! {
    u16, u16, |bits| bits, |value| value;
    u32, u32, |bits| bits, |value| value;
    u64, u64, |bits| bits, |value| value;
    i32, u32, |bits| bits as i32, |value| value as u32;
    i64, u64, |bits| bits as i64, |value| value as u64;
    f32, u32, f32::from_bits, f32::to_bits;
    f64, u64, f64::from_bits, f64::to_bits;
    half::F16, u16, half::F16, |value: half::F16| value.0;
    half::Bf16, u16, half::Bf16, |value: half::Bf16| value.0;
    [half::F16; 2], u32, half::F16::unpack, half::F16::pack;
    [half::Bf16; 2], u32, half::Bf16::unpack, half::Bf16::pack;
}

fn atomic<T: Held<C>, C: Cell>(f: impl Fn(u8, Space, T, T, T) -> T + Copy) -> (Run, Width) {
    let run = compile(
        #[inline(always)]
        move |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
            let Instruction { access, immediate, form, operands: [d, address, b, c, ..], .. } =
                *instruction;
            let addresses = addresses(warp, block, address, access.width, immediate);
            let b = T::load(warp, block, b);
            let c = T::load(warp, block, c);
            let mut old = [T::default(); 32];
            let mut rest = mask;
            while rest != 0 {
                let target = target(warp, block, access.space, &addresses, rest);
                rest &= !target.mask;
                let _alone = block.watch.and_then(|of| of.alone(warp, block, target.space));
                for lane in (0..32).filter(|lane| target.mask >> lane & 1 != 0) {
                    let at = cell::<C>(&target, lane, block.is_checked);
                    let at = at.map_err(|kind| {
                        target.problem(kind, lane, addresses[lane], C::BYTES, block)
                    })?;
                    let compute = |bits: C| {
                        f(form, target.space, T::from_cell(bits), b[lane], c[lane]).into_cell()
                    };
                    // SAFETY: `cell` checked bounds and alignment.
                    old[lane] = T::from_cell(unsafe { C::update(at, compute) });
                }
                touch(warp, block, &target, C::BYTES, Touch::Update)?;
            }
            T::store(warp, d, old, mask);
            Ok(())
        },
    );
    (run, T::WIDTH)
}

/// Where a lane's cell is on the host: aligned, inside of its region, holding a value, writable.
#[inline(always)]
fn cell<C: Cell>(
    target: &crate::exec::address::Target<'_>,
    lane: usize,
    is_checked: bool,
) -> Result<*mut u8, Kind> {
    let offset = target.offsets[lane];
    if !offset.is_multiple_of(C::BYTES as u64) {
        return Err(Kind::Misaligned);
    }
    if offset.saturating_add(C::BYTES as u64) > target.region.bytes() as u64 {
        return Err(Kind::OutOfBounds);
    }
    if is_checked {
        target.region.readable(offset, C::BYTES).map_err(|(_, kind)| kind)?;
        target.region.writable(offset, C::BYTES).map_err(|(_, kind)| kind)?;
    }
    Ok(target.region.data().wrapping_add(offset as usize))
}
