//! `ld` and `st`.

use super::Opcode;
use crate::exec::address::{Target, addresses, target};
use crate::exec::lanes::{Lane, Run, Width, compile, each};
use crate::exec::problem::Problem;
use crate::exec::program::{Instruction, Order};
use crate::exec::race;
use crate::exec::touch::{Touch, touch};
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

/// Drops what says how caches see an access: here all see it at once.
pub fn ignore_hints(code: &mut Opcode<'_>) {
    const WORDS: [&str; 8] = ["ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc"];
    let is_hint = |word: &str| word.starts_with("L1::") || word.starts_with("L2::");
    code.ignore(|word| WORDS.contains(&word) || is_hint(word));
}

/// What an access or a fence is to other threads; `default` where it does not say.
pub fn order(code: &mut Opcode<'_>, default: Order) -> Order {
    let both = Order { acquires: true, releases: true, ..Order::RELAXED };
    let semantics = [
        ("weak", Order::WEAK),
        ("volatile", Order::RELAXED),
        ("relaxed", Order::RELAXED),
        ("acquire", Order { releases: false, ..both }),
        ("release", Order { acquires: false, ..both }),
        ("acq_rel", both),
        ("sc", both),
    ];
    let order = code.pick(&semantics).unwrap_or(default);
    let scopes = [("cta", true), ("cluster", false), ("gpu", false), ("gl", false), ("sys", false)];
    Order { is_of_block: code.pick(&scopes).unwrap_or(false), ..order }
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

/// What a load makes of an element: bits of `Instruction::form`.
const IS_SIGNED: u8 = 1;
/// The register has 16 bits.
const IS_SHORT: u8 = 2;

/// An instance for the bytes of an element, their count and whether registers are wide.
macro_rules! instance {
    ($function:ident, $bytes:expr, $count:expr, $is_wide:expr) => {
        Some(match ($bytes, $count, $is_wide) {
            (1, 1, false) => $function::<1, 1, u32>(),
            (1, 2, false) => $function::<1, 2, u32>(),
            (1, 4, false) => $function::<1, 4, u32>(),
            (2, 1, false) => $function::<2, 2, u32>(),
            (2, 2, false) => $function::<2, 4, u32>(),
            (2, 4, false) => $function::<2, 8, u32>(),
            (4, 1, false) => $function::<4, 4, u32>(),
            (4, 2, false) => $function::<4, 8, u32>(),
            (4, 4, false) => $function::<4, 16, u32>(),
            (1, 1, true) => $function::<1, 1, u64>(),
            (1, 2, true) => $function::<1, 2, u64>(),
            (1, 4, true) => $function::<1, 4, u64>(),
            (2, 1, true) => $function::<2, 2, u64>(),
            (2, 2, true) => $function::<2, 4, u64>(),
            (2, 4, true) => $function::<2, 8, u64>(),
            (4, 1, true) => $function::<4, 4, u64>(),
            (4, 2, true) => $function::<4, 8, u64>(),
            (4, 4, true) => $function::<4, 16, u64>(),
            (8, 1, true) => $function::<8, 8, u64>(),
            (8, 2, true) => $function::<8, 16, u64>(),
            _ => return None,
        })
    };
}

/// `ld` of `count` elements into registers of a width: operand 0 is the address. Also gives the form.
pub fn load(element: Type, count: usize, width: Width) -> Option<(Run, u8)> {
    let signed = if matches!(element, S8 | S16 | S32) { IS_SIGNED } else { 0 };
    let short = if width == Width::B16 { IS_SHORT } else { 0 };
    let run = instance!(load_bytes, fitting(element, width)?, count, width == Width::B64)?;
    Some((run, signed | short))
}

/// `st` of `count` elements from registers of a width: operand 0 is the address.
pub fn store(element: Type, count: usize, width: Width) -> Option<Run> {
    instance!(store_bytes, fitting(element, width)?, count, width == Width::B64)
}

/// The bytes of an element, unless they are more than a register has.
fn fitting(element: Type, width: Width) -> Option<u32> {
    let register = match width {
        Width::Predicate => return None,
        Width::B16 => 2,
        Width::B32 => 4,
        Width::B64 => 8,
    };
    Some(element.bytes()).filter(|&bytes| bytes <= register)
}

/// A register of raw bits.
trait Bits: Lane + Default {
    /// Of an element that is shorter, zero-extended.
    fn read(bytes: &[u8]) -> Self;
    fn write(self, bytes: &mut [u8]);
    fn extend_sign(self, bytes: usize) -> Self;
    fn short(self) -> Self;
}

macro_rules! raw_bits {
    ($($type:ty, $signed:ty;)*) => {$(
        impl Bits for $type {
            #[inline(always)]
            fn read(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<$type>()];
                own[..bytes.len()].copy_from_slice(bytes);
                <$type>::from_le_bytes(own)
            }
            #[inline(always)]
            fn write(self, bytes: &mut [u8]) {
                let length = bytes.len();
                bytes.copy_from_slice(&self.to_le_bytes()[..length]);
            }
            #[inline(always)]
            fn extend_sign(self, bytes: usize) -> Self {
                let unused = <$type>::BITS - 8 * bytes as u32;
                ((self << unused) as $signed >> unused) as $type
            }
            #[inline(always)]
            fn short(self) -> Self {
                self & 0xffff
            }
        }
    )*};
}

raw_bits! {
    u32, i32;
    u64, i64;
}

fn load_bytes<const E: usize, const N: usize, D: Bits>() -> Run {
    compile(
        #[inline(always)]
        |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
            let Instruction { access, immediate, operands, form, .. } = *instruction;
            let addresses = addresses(warp, block, operands[0], access.width, immediate);
            let mut bytes = [[0; N]; 32];
            read(warp, block, access.space, &addresses, mask, &mut bytes)?;
            for i in 0..N / E {
                let mut values: [D; 32] = each(
                    #[inline(always)]
                    |lane| D::read(&bytes[lane][i * E..(i + 1) * E]),
                );
                if form & IS_SIGNED != 0 {
                    values = each(
                        #[inline(always)]
                        |lane| values[lane].extend_sign(E),
                    );
                }
                if form & IS_SHORT != 0 {
                    values = each(
                        #[inline(always)]
                        |lane| values[lane].short(),
                    );
                }
                D::store(warp, operands[1 + i], values, mask);
            }
            Ok(())
        },
    )
}

fn store_bytes<const E: usize, const N: usize, S: Bits>() -> Run {
    compile(
        #[inline(always)]
        |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
            let Instruction { access, immediate, operands, .. } = *instruction;
            let addresses = addresses(warp, block, operands[0], access.width, immediate);
            let mut values = [[0; N]; 32];
            for i in 0..N / E {
                let elements = S::load(warp, block, operands[1 + i]);
                for lane in 0..32 {
                    elements[lane].write(&mut values[lane][i * E..(i + 1) * E]);
                }
            }
            write::<N>(warp, block, access.space, &addresses, &values, mask)
        },
    )
}

/// Puts the bytes that each lane of `mask` points to into `values`.
#[inline(never)]
pub fn read<const N: usize>(
    warp: &mut Warp,
    block: &Block<'_>,
    space: Space,
    addresses: &[u64; 32],
    mask: u32,
    values: &mut [[u8; N]; 32],
) -> Result<(), Box<Problem>> {
    let mut rest = mask;
    while rest != 0 {
        let target = target(warp, block, space, addresses, rest);
        rest &= !target.mask;
        let _alone = block.watch.and_then(|watch| watch.alone(warp, block, target.space));
        read_target(&target, block, addresses, values)?;
        touch(warp, block, &target, N, Touch::Read)?;
    }
    Ok(())
}

/// [`read`] of the host, for a kernel's messages: nothing that watches memory sees it.
pub fn peek<const N: usize>(
    warp: &Warp,
    block: &Block<'_>,
    space: Space,
    address: u64,
    lane: usize,
) -> Option<[u8; N]> {
    let (addresses, mut values) = ([address; 32], [[0; N]; 32]);
    let target = target(warp, block, space, &addresses, 1 << lane);
    read_target(&target, block, &addresses, &mut values).ok()?;
    Some(values[lane & 31])
}

#[inline(always)]
fn read_target<const N: usize>(
    target: &Target<'_>,
    block: &Block<'_>,
    addresses: &[u64; 32],
    values: &mut [[u8; N]; 32],
) -> Result<(), Box<Problem>> {
    if read_together(target, block.is_checked, values) {
        return Ok(());
    }
    read_apart(target, block, addresses, values)
}

/// Lane by lane.
fn read_apart<const N: usize>(
    target: &Target<'_>,
    block: &Block<'_>,
    addresses: &[u64; 32],
    values: &mut [[u8; N]; 32],
) -> Result<(), Box<Problem>> {
    for lane in (0..32).filter(|lane| target.mask >> lane & 1 != 0) {
        let offset = target.offsets[lane];
        let loaded = match offset % N as u64 {
            0 => target.region.load(offset, block.is_checked, &mut values[lane]),
            _ => Err(Kind::Misaligned),
        };
        if let Err(kind) = loaded {
            return Err(target.problem(kind, lane, addresses[lane], N, block));
        }
    }
    Ok(())
}

/// Reads for all lanes at once, where they point to the same bytes or to neighbouring ones and nothing is wrong.
fn read_together<const N: usize>(
    target: &Target<'_>,
    is_checked: bool,
    values: &mut [[u8; N]; 32],
) -> bool {
    let start = target.offsets[0];
    if !start.is_multiple_of(N as u64) {
        return false;
    }
    match target.step() {
        Some(0) => {
            let mut value = [0; N];
            let loaded = target.region.load(start, is_checked, &mut value);
            values.fill(value);
            loaded.is_ok()
        }
        Some(step) if step == N as u64 => {
            let chunks = values.as_flattened_mut().as_chunks_mut::<CHUNK>().0;
            chunks.iter_mut().enumerate().all(|(i, chunk)| {
                let offset = start.wrapping_add((i * CHUNK) as u64);
                target.region.load(offset, is_checked, chunk).is_ok()
            })
        }
        _ => false,
    }
}

/// Bytes that are moved at once: they divide what 32 lanes move.
const CHUNK: usize = 32;

/// Writes what each lane of `mask` has to where it points.
#[inline(never)]
pub fn write<const N: usize>(
    warp: &mut Warp,
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
        let _alone = block.watch.and_then(|watch| watch.alone(warp, block, target.space));
        if !write_together(&target, block.is_checked, values) {
            write_apart(&target, block, addresses, values)?;
            race::collide(warp, block, &target, values)?;
        }
        touch(warp, block, &target, N, Touch::Write)?;
    }
    Ok(())
}

/// Lane by lane.
fn write_apart<const N: usize>(
    target: &Target<'_>,
    block: &Block<'_>,
    addresses: &[u64; 32],
    values: &[[u8; N]; 32],
) -> Result<(), Box<Problem>> {
    for lane in (0..32).filter(|lane| target.mask >> lane & 1 != 0) {
        let offset = target.offsets[lane];
        let stored = match offset % N as u64 {
            0 => target.region.store::<N>(offset, values[lane], block.is_checked),
            _ => Err(Kind::Misaligned),
        };
        if let Err(kind) = stored {
            return Err(target.problem(kind, lane, addresses[lane], N, block));
        }
    }
    Ok(())
}

/// Writes for all lanes at once, where they point to neighbouring bytes and nothing is wrong.
fn write_together<const N: usize>(
    target: &Target<'_>,
    is_checked: bool,
    values: &[[u8; N]; 32],
) -> bool {
    let start = target.offsets[0];
    let is_dense = start.is_multiple_of(N as u64) && target.step() == Some(N as u64);
    let chunks = values.as_flattened().as_chunks::<CHUNK>().0;
    is_dense
        && chunks.iter().enumerate().all(|(i, chunk)| {
            let offset = start.wrapping_add((i * CHUNK) as u64);
            target.region.store(offset, *chunk, is_checked).is_ok()
        })
}
