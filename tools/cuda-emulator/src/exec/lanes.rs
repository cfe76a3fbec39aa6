//! Operations over the 32 lanes of a warp: how registers are seen, and how a function of one lane
//! becomes an instruction of all.
//!
//! An operation is a Rust closure without captures. [`compile`] makes of it a plain function, once for
//! the baseline and once for AVX2 and FMA, and gives the one that this machine can run; both
//! give the same bits. Bodies are `#[inline(always)]`, closures too, and loops run over
//! arrays of 32, so that LLVM vectorises them.

use std::sync::OnceLock;

use super::half::{self, Half};
use super::problem::Problem;
use super::program::{Instruction, Operand};
use super::warp::{Block, Warp};

pub const LANES: usize = 32;
/// The mask of all lanes.
pub const ALL: u32 = !0;

/// A decoded operation: runs an instruction for the lanes of a mask.
///
/// SAFETY: to be called only on the machine that made it, with the warp of a program whose operands the
/// binder made.
pub type Run = unsafe fn(&mut Warp, &Block<'_>, &Instruction, u32) -> Result<(), Box<Problem>>;

/// What [`Run`] points to before it is compiled.
pub trait Body:
    Fn(&mut Warp, &Block<'_>, &Instruction, u32) -> Result<(), Box<Problem>> + Copy
{
}
impl<F: Fn(&mut Warp, &Block<'_>, &Instruction, u32) -> Result<(), Box<Problem>> + Copy> Body
    for F
{
}

/// The function for this machine. With `CUDA_EMULATOR_PORTABLE=1` that for any machine, to compare them.
pub fn compile<F: Body>(_: F) -> Run {
    #[cfg(target_arch = "x86_64")]
    if is_wide() {
        return wide::<F>;
    }
    portable::<F>
}

#[cfg(target_arch = "x86_64")]
fn is_wide() -> bool {
    static IS_WIDE: OnceLock<bool> = OnceLock::new();
    *IS_WIDE.get_or_init(|| {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt")
            && std::env::var_os("CUDA_EMULATOR_PORTABLE").is_none_or(|value| value != "1")
    })
}

/// SAFETY: as of [`Run`].
unsafe fn portable<F: Body>(
    warp: &mut Warp,
    block: &Block<'_>,
    instruction: &Instruction,
    mask: u32,
) -> Result<(), Box<Problem>> {
    body::<F>()(warp, block, instruction, mask)
}

/// SAFETY: as of [`Run`]; `compile` found the features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
unsafe fn wide<F: Body>(
    warp: &mut Warp,
    block: &Block<'_>,
    instruction: &Instruction,
    mask: u32,
) -> Result<(), Box<Problem>> {
    body::<F>()(warp, block, instruction, mask)
}

/// The closure that was given to `compile`: one without captures is known by its type alone.
#[inline(always)]
fn body<F: Body>() -> F {
    const { assert!(size_of::<F>() == 0, "an operation captures nothing") };
    // SAFETY: a value without bytes may be read from any aligned place; `compile` was given one, so that there
    // are values of F, and F is Copy.
    unsafe { std::ptr::NonNull::<F>::dangling().read() }
}

/// What an operand is wide, in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    Predicate,
    /// In the low half of a slot whose high half is zero.
    B16,
    B32,
    /// Two slots.
    B64,
}

/// A type that registers are seen as.
pub trait Lane: Copy {
    const WIDTH: Width;
    fn load(warp: &Warp, block: &Block<'_>, operand: Operand) -> [Self; LANES];
    /// Writes the lanes of `mask`.
    fn store(warp: &mut Warp, operand: Operand, values: [Self; LANES], mask: u32);
}

/// The array of `f` of each lane.
#[inline(always)]
pub fn each<T: Copy + Default>(f: impl Fn(usize) -> T) -> [T; LANES] {
    let mut out = [T::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(lane);
    }
    out
}

/// All bits of a lane's word set where its bit is. Selections are written with such words and `&`: of an
/// `if` LLVM makes a choice between addresses, lane by lane.
#[inline(always)]
pub fn expand(bits: u32) -> [u32; LANES] {
    each(
        #[inline(always)]
        |lane| if bits & 1 << lane != 0 { !0 } else { 0 },
    )
}

/// As [`expand`].
#[inline(always)]
pub fn expand_wide(bits: u32) -> [u64; LANES] {
    each(
        #[inline(always)]
        |lane| if bits & 1 << lane != 0 { !0 } else { 0 },
    )
}

/// The bits of the lanes whose word has all bits set; the others are zero.
#[inline(always)]
pub fn collect(words: &[u32; LANES]) -> u32 {
    let bits: [u32; LANES] = each(
        #[inline(always)]
        |lane| words[lane] & 1 << lane,
    );
    let mut parts = [0; 8];
    for i in 0..8 {
        parts[i] = bits[i] | bits[i + 8] | bits[i + 16] | bits[i + 24];
    }
    let [a, b, c, d, e, f, g, h] = parts;
    (a | b | c | d) | (e | f | g | h)
}

/// Writes the lanes of `mask`. Out of line, so that it is there once and not in every operation.
#[inline(never)]
fn blend(slot: &mut [u32; LANES], values: &[u32; LANES], mask: u32) {
    let (old, chosen) = (*slot, expand(mask));
    *slot = each(
        #[inline(always)]
        |lane| values[lane] & chosen[lane] | old[lane] & !chosen[lane],
    );
}

/// As [`blend`].
#[inline(never)]
fn blend_wide(slots: &mut [u64; LANES], values: &[u64; LANES], mask: u32) {
    let (old, chosen) = (*slots, expand_wide(mask));
    *slots = each(
        #[inline(always)]
        |lane| values[lane] & chosen[lane] | old[lane] & !chosen[lane],
    );
}

impl Lane for u32 {
    const WIDTH: Width = Width::B32;
    #[inline(always)]
    fn load(warp: &Warp, block: &Block<'_>, operand: Operand) -> [u32; LANES] {
        *warp.word(block, operand)
    }
    #[inline(always)]
    fn store(warp: &mut Warp, operand: Operand, values: [u32; LANES], mask: u32) {
        let slot = warp.word_mut(operand);
        if mask == ALL {
            *slot = values;
        } else {
            blend(slot, &values, mask);
        }
    }
}

impl Lane for u64 {
    const WIDTH: Width = Width::B64;
    #[inline(always)]
    fn load(warp: &Warp, block: &Block<'_>, operand: Operand) -> [u64; LANES] {
        *warp.double(block, operand)
    }
    #[inline(always)]
    fn store(warp: &mut Warp, operand: Operand, values: [u64; LANES], mask: u32) {
        let slots = warp.double_mut(operand);
        if mask == ALL {
            *slots = values;
        } else {
            blend_wide(slots, &values, mask);
        }
    }
}

impl Lane for bool {
    const WIDTH: Width = Width::Predicate;
    #[inline(always)]
    fn load(warp: &Warp, _: &Block<'_>, operand: Operand) -> [bool; LANES] {
        let words = expand(warp.predicate(operand));
        each(
            #[inline(always)]
            |lane| words[lane] != 0,
        )
    }
    #[inline(always)]
    fn store(warp: &mut Warp, operand: Operand, values: [bool; LANES], mask: u32) {
        let words = each(
            #[inline(always)]
            |lane| if values[lane] { !0 } else { 0 },
        );
        warp.set_predicate(operand, collect(&words), mask);
    }
}

/// A predicate as words of 32 or 64 bits, all set or none: only to be read.
#[derive(Clone, Copy, Default)]
pub struct Chosen<T>(pub T);

impl Lane for Chosen<u32> {
    const WIDTH: Width = Width::Predicate;
    #[inline(always)]
    fn load(warp: &Warp, _: &Block<'_>, operand: Operand) -> [Self; LANES] {
        let words = expand(warp.predicate(operand));
        each(
            #[inline(always)]
            |lane| Chosen(words[lane]),
        )
    }
    #[inline(always)]
    fn store(_: &mut Warp, _: Operand, _: [Self; LANES], _: u32) {}
}

impl Lane for Chosen<u64> {
    const WIDTH: Width = Width::Predicate;
    #[inline(always)]
    fn load(warp: &Warp, _: &Block<'_>, operand: Operand) -> [Self; LANES] {
        let words = expand_wide(warp.predicate(operand));
        each(
            #[inline(always)]
            |lane| Chosen(words[lane]),
        )
    }
    #[inline(always)]
    fn store(_: &mut Warp, _: Operand, _: [Self; LANES], _: u32) {}
}

/// Types that are others seen through a conversion.
macro_rules! seen_as {
    ($($type:ty = $base:ty, $width:ident, $from:expr, $to:expr;)*) => {$(
        impl Lane for $type {
            const WIDTH: Width = Width::$width;
            #[inline(always)]
            fn load(warp: &Warp, block: &Block<'_>, operand: Operand) -> [Self; LANES] {
                let bits = <$base>::load(warp, block, operand);
                each(#[inline(always)] |lane| ($from)(bits[lane]))
            }
            #[inline(always)]
            fn store(warp: &mut Warp, operand: Operand, values: [Self; LANES], mask: u32) {
                let bits = each(#[inline(always)] |lane| ($to)(values[lane]));
                <$base>::store(warp, operand, bits, mask);
            }
        }
    )*};
}

seen_as! {
    i32 = u32, B32, |bits| bits as i32, |value| value as u32;
    f32 = u32, B32, f32::from_bits, f32::to_bits;
    i64 = u64, B64, |bits| bits as i64, |value| value as u64;
    f64 = u64, B64, f64::from_bits, f64::to_bits;
    u16 = u32, B16, |bits| bits as u16, |value| value as u32;
    i16 = u32, B16, |bits| bits as i16, |value| value as u16 as u32;
    half::F16 = u32, B16, |bits| half::F16(bits as u16), |value: half::F16| value.0 as u32;
    half::Bf16 = u32, B16, |bits| half::Bf16(bits as u16), |value: half::Bf16| value.0 as u32;
    half::FlushedF16 = u32, B16, |bits| half::FlushedF16::new(bits as u16),
        |value: half::FlushedF16| value.0.0 as u32;
    [half::FlushedF16; 2] = u32, B32,
        |bits| [half::FlushedF16::new(bits as u16), half::FlushedF16::new((bits >> 16) as u16)],
        |[low, high]: [half::FlushedF16; 2]| low.0.0 as u32 | (high.0.0 as u32) << 16;
    [half::F16; 2] = u32, B32, <half::F16 as Half>::unpack, <half::F16 as Half>::pack;
    [half::Bf16; 2] = u32, B32, <half::Bf16 as Half>::unpack, <half::Bf16 as Half>::pack;
}

/// An operation of every lane for itself, and the widths of its operands.
pub struct Lanewise {
    pub run: Run,
    pub results: Vec<Width>,
    pub sources: Vec<Width>,
    pub immediate: i64,
}

impl Lanewise {
    pub fn immediate(self, immediate: i64) -> Self {
        Lanewise { immediate, ..self }
    }
}

/// `map`: `d = f(a, ..)`. `with`: the same, and the function also gets the instruction's immediate.
macro_rules! functions_of {
    ($($map:ident, $with:ident: $($source:ident $name:ident $position:literal),+;)*) => {$(
        pub fn $map<$($source: Lane,)+ D: Lane + Default>(
            f: impl Fn($($source),+) -> D + Copy,
        ) -> Lanewise {
            $with(#[inline(always)] move |_, $($name: $source),+| f($($name),+))
        }

        pub fn $with<$($source: Lane,)+ D: Lane + Default>(
            f: impl Fn(i64, $($source),+) -> D + Copy,
        ) -> Lanewise {
            let run = compile(
                #[inline(always)]
                move |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
                    $(let $name = $source::load(warp, block, instruction.operands[$position]);)+
                    let immediate = instruction.immediate;
                    let values = each(#[inline(always)] |lane| f(immediate, $($name[lane]),+));
                    D::store(warp, instruction.operands[0], values, mask);
                    Ok(())
                },
            );
            let sources = vec![$($source::WIDTH),+];
            Lanewise { run, results: vec![D::WIDTH], sources, immediate: 0 }
        }
    )*};
}

functions_of! {
    map1, with1: A a 1;
    map2, with2: A a 1, B b 2;
    map3, with3: A a 1, B b 2, C c 3;
    map4, with4: A a 1, B b 2, C c 3, E e 4;
}
