//! `ld` and `st`.

use super::Opcode;
use crate::exec::address::{addresses, target};
use crate::exec::lanes::{Lane, Run, Width, compile, each};
use crate::exec::problem::Problem;
use crate::exec::program::Instruction;
use crate::exec::warp::{Block, Warp};
use crate::ptx::ast::Space;
use crate::ptx::ast::Type::{self, *};
use crate::report::Kind;

/// The space that the modifiers name; generic without one.
pub fn space(code: &mut Opcode<'_>) -> Space {
    const SPACES: [(&str, Space); 8] = [
        ("global", Space::Global),
        ("const", Space::Const),
        ("shared", Space::Shared),
        ("shared::cta", Space::Shared),
        ("local", Space::Local),
        ("param", Space::Param),
        ("param::entry", Space::Param),
        ("param::func", Space::Param),
    ];
    code.pick(&SPACES).unwrap_or(Space::Generic)
}

/// Drops what says how caches and other threads see an access: here all see it at once.
pub fn ignore_hints(code: &mut Opcode<'_>) {
    const WORDS: [&str; 18] = [
        "ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "weak", "volatile", "relaxed", "acquire",
        "release", "acq_rel", "cta", "cluster", "gpu", "sys",
    ];
    let is_hint = |word: &str| word.starts_with("L1::") || word.starts_with("L2::");
    code.ignore(|word| WORDS.contains(&word) || is_hint(word));
}

/// How many values, of which type and space an instruction moves.
pub fn vector(code: &mut Opcode<'_>) -> Result<(usize, Type), String> {
    let count = code.pick(&[("v2", 2), ("v4", 4)]).unwrap_or(1);
    match *code.types.as_slice() {
        [element] if element.bytes() * count as u32 <= 16 && element != Pred => {
            Ok((count, element))
        }
        _ => code.unsupported_type(),
    }
}

/// `ld` of `count` elements into registers of a width: operand 0 is the address.
pub fn load(element: Type, count: usize, width: Width) -> Option<Run> {
    use Width::{B16, B32, B64};
    Some(match (element, width) {
        (B8 | U8, B16) => load_of::<u8, u16>(count)?,
        (B8 | U8, B32) => load_of::<u8, u32>(count)?,
        (B8 | U8, B64) => load_of::<u8, u64>(count)?,
        (S8, B16) => load_of::<i8, u16>(count)?,
        (S8, B32) => load_of::<i8, u32>(count)?,
        (S8, B64) => load_of::<i8, u64>(count)?,
        (Type::B16 | U16 | F16 | Bf16, B16) => load_of::<u16, u16>(count)?,
        (Type::B16 | U16 | F16 | Bf16, B32) => load_of::<u16, u32>(count)?,
        (Type::B16 | U16, B64) => load_of::<u16, u64>(count)?,
        (S16, B16) => load_of::<i16, u16>(count)?,
        (S16, B32) => load_of::<i16, u32>(count)?,
        (S16, B64) => load_of::<i16, u64>(count)?,
        (Type::B32 | U32 | S32 | F32 | F16x2 | Bf16x2, B32) => load_of::<u32, u32>(count)?,
        (Type::B32 | U32, B64) => load_of::<u32, u64>(count)?,
        (S32, B64) => load_of::<i32, u64>(count)?,
        (Type::B64 | U64 | S64 | F64, B64) => load_of::<u64, u64>(count)?,
        _ => return None,
    })
}

/// `st` of `count` elements from registers of a width: operand 0 is the address.
pub fn store(element: Type, count: usize, width: Width) -> Option<Run> {
    use Width::{B32, B64};
    Some(match (element.bytes(), width) {
        (1, Width::B16 | B32) => store_of::<u8, u32>(count)?,
        (1, B64) => store_of::<u8, u64>(count)?,
        (2, Width::B16 | B32) => store_of::<u16, u32>(count)?,
        (2, B64) => store_of::<u16, u64>(count)?,
        (4, B32) => store_of::<u32, u32>(count)?,
        (4, B64) => store_of::<u32, u64>(count)?,
        (8, B64) => store_of::<u64, u64>(count)?,
        _ => return None,
    })
}

/// What lies in memory, little-endian.
trait Element: Copy {
    const BYTES: usize;
    /// Sign- or zero-extended.
    fn read(bytes: &[u8]) -> u64;
    fn write(value: u64, bytes: &mut [u8]);
}

macro_rules! elements {
    ($($type:ty)*) => {$(
        impl Element for $type {
            const BYTES: usize = size_of::<$type>();
            #[inline(always)]
            fn read(bytes: &[u8]) -> u64 {
                let mut own = [0; size_of::<$type>()];
                own.copy_from_slice(bytes);
                <$type>::from_le_bytes(own) as i64 as u64
            }
            #[inline(always)]
            fn write(value: u64, bytes: &mut [u8]) {
                bytes.copy_from_slice(&(value as $type).to_le_bytes());
            }
        }
    )*};
}

elements!(u8 i8 u16 i16 u32 i32 u64);

/// A register of raw bits.
trait Bits: Lane + Default {
    fn truncate(value: u64) -> Self;
    fn extend(self) -> u64;
}

macro_rules! raw_bits {
    ($($type:ty)*) => {$(
        impl Bits for $type {
            #[inline(always)]
            fn truncate(value: u64) -> Self {
                value as $type
            }
            #[inline(always)]
            fn extend(self) -> u64 {
                self as u64
            }
        }
    )*};
}

raw_bits!(u16 u32 u64);

fn load_of<E: Element, D: Bits>(count: usize) -> Option<Run> {
    Some(match E::BYTES * count {
        1 => load_bytes::<E, D, 1>(),
        2 => load_bytes::<E, D, 2>(),
        4 => load_bytes::<E, D, 4>(),
        8 => load_bytes::<E, D, 8>(),
        16 => load_bytes::<E, D, 16>(),
        _ => return None,
    })
}

fn load_bytes<E: Element, D: Bits, const N: usize>() -> Run {
    compile(
        #[inline(always)]
        |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
            let Instruction { access, immediate, operands, .. } = *instruction;
            let addresses = addresses(warp, block, operands[0], access.width, immediate);
            let read = read::<N>(warp, block, access.space, &addresses, mask)?;
            for i in 0..N / E::BYTES {
                let values = each(
                    #[inline(always)]
                    |lane| D::truncate(E::read(&read[lane][i * E::BYTES..(i + 1) * E::BYTES])),
                );
                D::store(warp, operands[1 + i], values, mask);
            }
            Ok(())
        },
    )
}

fn store_of<E: Element, S: Bits>(count: usize) -> Option<Run> {
    Some(match E::BYTES * count {
        1 => store_bytes::<E, S, 1>(),
        2 => store_bytes::<E, S, 2>(),
        4 => store_bytes::<E, S, 4>(),
        8 => store_bytes::<E, S, 8>(),
        16 => store_bytes::<E, S, 16>(),
        _ => return None,
    })
}

fn store_bytes<E: Element, S: Bits, const N: usize>() -> Run {
    compile(
        #[inline(always)]
        |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
            let Instruction { access, immediate, operands, .. } = *instruction;
            let addresses = addresses(warp, block, operands[0], access.width, immediate);
            let mut values = [[0; N]; 32];
            for i in 0..N / E::BYTES {
                let elements = S::load(warp, block, operands[1 + i]);
                for lane in 0..32 {
                    let bytes = &mut values[lane][i * E::BYTES..(i + 1) * E::BYTES];
                    E::write(elements[lane].extend(), bytes);
                }
            }
            write::<N>(warp, block, access.space, &addresses, &values, mask)
        },
    )
}

/// The bytes that each lane of `mask` points to; zero in the others.
#[inline(always)]
pub fn read<const N: usize>(
    warp: &Warp,
    block: &Block<'_>,
    space: Space,
    addresses: &[u64; 32],
    mask: u32,
) -> Result<[[u8; N]; 32], Box<Problem>> {
    let mut values = [[0; N]; 32];
    let mut rest = mask;
    while rest != 0 {
        let target = target(warp, block, space, addresses, rest);
        rest &= !target.mask;
        for lane in 0..32 {
            if target.mask >> lane & 1 == 0 {
                continue;
            }
            let offset = target.offsets[lane];
            let loaded = match offset % N as u64 {
                0 => target.region.load::<N>(offset, block.is_checked),
                _ => Err(Kind::Misaligned),
            };
            values[lane] = match loaded {
                Ok(value) => value,
                Err(kind) => return Err(target.problem(kind, lane, addresses[lane], N, block)),
            };
        }
    }
    Ok(values)
}

/// Writes what each lane of `mask` has to where it points, lane by lane.
#[inline(always)]
fn write<const N: usize>(
    warp: &Warp,
    block: &Block<'_>,
    space: Space,
    addresses: &[u64; 32],
    values: &[[u8; N]; 32],
    mask: u32,
) -> Result<(), Box<Problem>> {
    let mut rest = mask;
    while rest != 0 {
        let target = target(warp, block, space, addresses, rest);
        rest &= !target.mask;
        for lane in 0..32 {
            if target.mask >> lane & 1 == 0 {
                continue;
            }
            let offset = target.offsets[lane];
            let stored = match offset % N as u64 {
                0 => target.region.store::<N>(offset, values[lane], block.is_checked),
                _ => Err(Kind::Misaligned),
            };
            if let Err(kind) = stored {
                return Err(target.problem(kind, lane, addresses[lane], N, block));
            }
        }
    }
    Ok(())
}
