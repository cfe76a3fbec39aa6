//! A warp's registers, and the block around it as an instruction sees it.

use super::async_copy::AsyncCopies;
use super::counters::Counters;
use super::footprint::Footprint;
use super::lanes::LANES;
use super::program::{Operand, Program, Slot};
use super::race::Watch;
use crate::memory::{Memory, Region};

/// What the warps of a block share.
pub struct Block<'a> {
    pub program: &'a Program,
    pub constants: &'a [Slot],
    pub memory: &'a Memory,
    pub shared: &'a Region,
    /// `local_bytes` for each thread, one thread after the other.
    pub local: &'a Region,
    pub local_bytes: u32,
    pub params: &'a Region,
    /// The shadow of memory is heeded.
    pub is_checked: bool,
    /// Finds races.
    pub watch: Option<&'a Watch<'a>>,
    /// Tells what is touched for the first time.
    pub footprint: Option<&'a Footprint>,
}

/// The registers of a warp and its asynchronous copies.
pub struct Warp {
    /// Number of the warp in its block.
    pub index: u32,
    slots: Vec<Slot>,
    /// Lane by lane a bit.
    predicates: Vec<u32>,
    pub copies: AsyncCopies,
    /// Instructions run so far: `%clock`.
    pub clock: u64,
    /// The instruction that runs.
    pub at: u32,
    /// Of all blocks that it ran in.
    pub counters: Counters,
}

impl Warp {
    pub fn new(program: &Program) -> Self {
        Warp {
            index: 0,
            slots: vec![Slot([0; LANES]); program.slots],
            predicates: vec![0; program.predicates],
            copies: AsyncCopies::default(),
            clock: 0,
            at: 0,
            counters: Counters::default(),
        }
    }

    /// As at the start of warp `index` of a block.
    pub fn reset(&mut self, index: u32) {
        self.index = index;
        self.slots.fill(Slot([0; LANES]));
        self.predicates.fill(0);
        self.predicates[Operand::TRUE.index()] = !0;
        self.copies = AsyncCopies::default();
        self.clock = 0;
    }

    /// The first thread of the warp in its block.
    pub fn first_thread(&self) -> u32 {
        self.index * LANES as u32
    }

    #[inline(always)]
    pub fn word<'w>(&'w self, block: &'w Block<'_>, operand: Operand) -> &'w [u32; LANES] {
        // SAFETY: the binder made the operand for this program.
        unsafe { &(*self.slot(block, operand)).0 }
    }

    #[inline(always)]
    pub fn double<'w>(&'w self, block: &'w Block<'_>, operand: Operand) -> &'w [u64; LANES] {
        // SAFETY: the binder gave a 64-bit value two slots, one after the other; any bits are a u64.
        unsafe { &*self.slot(block, operand).cast() }
    }

    #[inline(always)]
    pub fn word_mut(&mut self, operand: Operand) -> &mut [u32; LANES] {
        // SAFETY: the binder made the operand for this program, and results are registers.
        unsafe { &mut self.slots.get_unchecked_mut(operand.index()).0 }
    }

    #[inline(always)]
    pub fn double_mut(&mut self, operand: Operand) -> &mut [u64; LANES] {
        // SAFETY: as in `word_mut` and `double`.
        unsafe { &mut *self.slots.as_mut_ptr().add(operand.index()).cast() }
    }

    #[inline(always)]
    fn slot(&self, block: &Block<'_>, operand: Operand) -> *const Slot {
        let slots = if operand.is_constant() { block.constants } else { &self.slots };
        slots.as_ptr().wrapping_add(operand.index())
    }

    /// Lane by lane a bit.
    #[inline(always)]
    pub fn predicate(&self, operand: Operand) -> u32 {
        let flip = if operand.0 & Operand::NEGATED != 0 { !0 } else { 0 };
        self.predicates[operand.index()] ^ flip
    }

    #[inline(always)]
    pub fn set_predicate(&mut self, operand: Operand, bits: u32, mask: u32) {
        let predicate = &mut self.predicates[operand.index()];
        *predicate = *predicate & !mask | bits & mask;
    }
}
