//! Finds races: two accesses to a byte, at least one a write, by different threads, that nothing orders.
//!
//! Every lane is a thread of its own. `views` holds what each knows to come before, by vector clocks
//! (`clock`); `shadow` remembers the latest accesses, as pieces (`piece`) of cells (`cell`); `location` carries what strong
//! accesses hand on from thread to thread.

mod cell;
mod clock;
mod location;
mod piece;
mod shadow;
mod views;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::sync::{Mutex, MutexGuard};

use super::address::Target;
use super::fault;
use super::problem::Problem;
use super::program::{Instruction, Order};
use super::touch::Touch;
use super::warp::{Block, Warp};
use crate::mapping::Mapping;
use crate::memory::{ACCESS_BYTES, BASE, Memory};
use crate::ptx::ast::Space;
use crate::report;
use location::Locations;
use piece::{Piece, READS, STRONG, WRITES};
use shadow::{Beside, Conflict, Shadow};
use views::{UNFINISHED, Views};

/// Binary logarithm of the bytes of a cell: the widest access of a lane to shared memory, the warp's dense access
/// to global memory.
const SHARED_CELL: u32 = 4;
const GLOBAL_CELL: u32 = 7;
/// Pieces of a cell in place. Of global memory: what makes its shadow twice as large as the memory is.
const GLOBAL_SLOTS: usize = 12;
const LEAST_SHARED_SLOTS: usize = 6;

const _: () = assert!(
    Shadow::bytes(1 << GLOBAL_CELL, GLOBAL_CELL, GLOBAL_SLOTS) == ACCESS_BYTES << GLOBAL_CELL
);

/// What is remembered of a launch, for all blocks.
pub struct LaunchWatch<'a> {
    launch: u32,
    memory: &'a Memory,
    grid: [u32; 3],
    has_workers: bool,
    locations: Locations,
    beside: Beside,
    /// Held over strong accesses to global memory, so that they are remembered in the order in which memory sees
    /// them.
    strong: Mutex<()>,
}

impl<'a> LaunchWatch<'a> {
    /// `has_workers`: several threads of the host run blocks.
    pub fn new(memory: &'a Memory, grid: [u32; 3], has_workers: bool) -> Self {
        let (locations, beside, strong) = Default::default();
        let launch = memory.next_launch();
        LaunchWatch { launch, memory, grid, has_workers, locations, beside, strong }
    }
}

/// What a block's shared memory needs of the host, for one block after the other.
pub struct SharedCells {
    cells: Mapping,
    slots: usize,
    beside: Beside,
}

impl SharedCells {
    /// For blocks of so many warps with so many bytes of shared memory.
    pub fn reserve(bytes: usize, warps: usize) -> io::Result<SharedCells> {
        // A write and a read by each warp.
        let slots = (warps + 1).max(LEAST_SHARED_SLOTS);
        let cells = Mapping::reserve(Shadow::bytes(bytes, SHARED_CELL, slots))?;
        Ok(SharedCells { cells, slots, beside: Beside::default() })
    }
}

/// Watches the block that runs.
pub struct Watch<'a> {
    launch: &'a LaunchWatch<'a>,
    global: Shadow<'a>,
    shared: Shadow<'a>,
    views: RefCell<Views>,
    locations: Locations,
    /// How many blocks were watched: the epoch of shared memory.
    blocks: Cell<u32>,
}

impl<'a> Watch<'a> {
    pub fn new(launch: &'a LaunchWatch<'a>, shared: &'a SharedCells, warps: usize) -> Self {
        let cells = launch.memory.accesses();
        let global =
            Shadow::new(cells, GLOBAL_CELL, GLOBAL_SLOTS, launch.has_workers, &launch.beside);
        let SharedCells { cells, slots, beside } = shared;
        Watch {
            launch,
            global,
            shared: Shadow::new(cells, SHARED_CELL, *slots, false, beside),
            views: RefCell::new(Views::new(warps)),
            locations: Locations::default(),
            blocks: Cell::new(0),
        }
    }

    /// Another block begins; the lanes of each warp are given.
    pub fn start(&self, index: [u32; 3], born: impl Iterator<Item = u32>) {
        let [x, y, _] = self.launch.grid;
        let number = index[0] + x * (index[1] + y * index[2]);
        self.views.borrow_mut().start(number, born);
        self.locations.clear();
        self.blocks.set(self.blocks.get() + 1);
    }

    pub fn exit(&self, warp: u32, lanes: u32) {
        self.views.borrow_mut().exit(warp, lanes);
    }

    /// All threads of the block meet.
    pub fn meet(&self) {
        self.views.borrow_mut().meet();
    }

    /// Lanes of a warp meet those that each of them names.
    pub fn meet_in_warp(&self, warp: u32, lanes: u32, members: &[u32; 32]) {
        let mut rest = lanes;
        while rest != 0 {
            let named = members[rest.trailing_zeros() as usize & 31] & rest;
            self.views.borrow_mut().meet_in_warp(warp, named);
            rest &= !named & (rest - 1);
        }
    }

    /// Lanes arrive at a barrier of a number of threads.
    pub fn arrive(&self, barrier: u8, warp: u32, lanes: u32) {
        self.views.borrow_mut().arrive(barrier.into(), warp, lanes);
    }

    /// Lanes go on from such a barrier, where all have arrived.
    pub fn leave(&self, barrier: u8, warp: u32, lanes: u32) {
        self.views.borrow_mut().leave(barrier.into(), warp, lanes);
    }

    /// All have gone on.
    pub fn end_meeting(&self, barrier: u8) {
        self.views.borrow_mut().end_meeting(barrier.into());
    }

    pub fn fence(&self, warp: u32, lanes: u32, order: Order) {
        self.views.borrow_mut().fence(warp, lanes, order);
    }

    /// To be held while lanes access memory and are remembered.
    #[inline]
    pub fn alone(
        &self,
        warp: &Warp,
        block: &Block<'_>,
        space: Space,
    ) -> Option<MutexGuard<'a, ()>> {
        let is_meant = self.launch.has_workers && space == Space::Global;
        (is_meant && order(warp, block).is_strong)
            .then(|| self.launch.strong.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// What lanes learn from the strong writes that they have seen, and what they hand on by theirs.
    #[inline(never)]
    fn synchronise(
        &self,
        warp: u32,
        order: Order,
        target: &Target<'_>,
        bytes: usize,
        does: piece::Kind,
    ) {
        let mut views = self.views.borrow_mut();
        if does & READS != 0 {
            self.observe(&mut views, warp, order, target, bytes);
        }
        if does & WRITES == 0 {
            return;
        }
        if order.releases {
            views.fence(warp, target.mask, Order { acquires: false, ..order });
        }
        for lane in (0..32).filter(|lane| target.mask >> lane & 1 != 0) {
            let clocks = views.released(warp, lane);
            let (block, offset) = (views.block(), target.offsets[lane as usize]);
            let locations = self.locations(target.space);
            if does & READS == 0 {
                locations.forget(offset, bytes);
            }
            if let Some(clocks) = clocks {
                locations.publish(offset, bytes, block, clocks, order.is_of_block);
            }
        }
    }

    fn observe(
        &self,
        views: &mut Views,
        warp: u32,
        order: Order,
        target: &Target<'_>,
        bytes: usize,
    ) {
        for lane in (0..32).filter(|lane| target.mask >> lane & 1 != 0) {
            let (block, offset) = (views.block(), target.offsets[lane as usize]);
            let locations = self.locations(target.space);
            if let Some(clocks) = locations.observe(offset, bytes, block, order.is_of_block) {
                views.observe(warp, 1 << lane, &clocks);
            }
        }
        if order.acquires {
            views.fence(warp, target.mask, Order { releases: false, ..order });
        }
    }

    fn locations(&self, space: Space) -> &Locations {
        match space {
            Space::Shared => &self.locations,
            _ => &self.launch.locations,
        }
    }

    /// Lanes have touched memory. Errors: a race with an access before.
    #[inline]
    pub fn touch(
        &self,
        warp: &Warp,
        block: &Block<'_>,
        target: &Target<'_>,
        bytes: usize,
        touch: Touch,
    ) -> Result<(), Box<Problem>> {
        if !is_watched(target.space) {
            return Ok(());
        }
        let order = order(warp, block);
        if order.is_strong {
            self.synchronise(warp.index, order, target, bytes, does(touch));
        }
        let views = self.views.borrow();
        let time = match touch {
            Touch::CopyFrom | Touch::CopyTo => UNFINISHED,
            _ => views.now(),
        };
        let kind = piece::kind(does(touch), order);
        let whole = Piece::new(time, views.block(), warp.index, warp.at, kind);
        let found = if target.space == Space::Shared {
            let epoch = self.blocks.get();
            piece::split(target, bytes, SHARED_CELL, &whole, |index, piece| {
                self.shared.touch(index, epoch, &piece, &views, true)
            })
        } else {
            piece::split(target, bytes, GLOBAL_CELL, &whole, |index, piece| {
                self.global.touch(index, self.launch.launch, &piece, &views, false)
            })
        };
        found.map_err(|conflict| self.problem(&conflict, block, target, bytes))
    }

    /// The asynchronous copies that lanes issued at instruction `at` are done.
    pub fn finish(&self, warp: u32, at: u32, target: &Target<'_>, bytes: usize, touch: Touch) {
        let views = self.views.borrow();
        let kind = does(touch);
        let whole = Piece::new(views.now(), views.block(), warp, at, kind);
        let (shadow, epoch) = match target.space {
            Space::Shared => (&self.shared, self.blocks.get()),
            _ => (&self.global, self.launch.launch),
        };
        let done: Result<(), Infallible> =
            piece::split(target, bytes, shadow.cell, &whole, |index, piece| {
                shadow.finish(index, epoch, &piece);
                Ok(())
            });
        let Ok(()) = done;
    }

    /// Tells of bytes of shared memory that a copy is under way to who issued it, in a sentence.
    #[cold]
    pub fn issuer(&self, block: &Block<'_>, offset: u64, bytes: usize) -> Option<String> {
        let (index, start) = (offset as usize >> SHARED_CELL, offset as u8 % (1 << SHARED_CELL));
        let bytes = start..start.saturating_add(bytes as u8);
        let copy = self.shared.unfinished(index, self.blocks.get(), bytes.clone())?;
        let lane = copy.lanes_at(bytes).trailing_zeros();
        let line = fault::line(block.program, copy.at());
        Some(format!("The copy was issued by warp {}, lane {lane} at {line}.", copy.warp()))
    }

    #[cold]
    fn problem(
        &self,
        conflict: &Conflict,
        block: &Block<'_>,
        target: &Target<'_>,
        bytes: usize,
    ) -> Box<Problem> {
        let Conflict { old, old_lane, lane } = conflict;
        let [x, y, _] = self.launch.grid;
        let [i, j, k] = [old.block % x, old.block / x % y, old.block / x / y];
        let what = match (old.kind & STRONG != 0, old.kind & WRITES != 0, old.kind & READS != 0) {
            _ if old.time == UNFINISHED => "an asynchronous copy that nobody has waited for,",
            (_, true, true) => "an atomic operation",
            (true, true, false) => "a strong write",
            (true, false, _) => "a strong read",
            (false, true, false) => "a write",
            (false, false, _) => "a read",
        };
        let line = fault::line(block.program, old.at());
        let text = format!(
            "Nothing orders it after {what} of the same bytes by block ({i}, {j}, {k}), warp {}, lane {old_lane} at \
             {line}.",
            old.warp(),
        );
        problem(block, target, *lane, bytes, text)
    }
}

/// Lanes have written. Errors: two of them different values to the same place.
#[inline(never)]
pub fn collide<const N: usize>(
    warp: &Warp,
    block: &Block<'_>,
    target: &Target<'_>,
    values: &[[u8; N]; 32],
) -> Result<(), Box<Problem>> {
    let is_meant = block.watch.is_some() && is_watched(target.space);
    if !is_meant || order(warp, block).is_strong || !piece::do_some_coincide(target) {
        return Ok(());
    }
    for lane in (0..32).filter(|lane| target.mask >> lane & 1 != 0) {
        for other in (0..lane).filter(|lane| target.mask >> lane & 1 != 0) {
            if target.offsets[lane] == target.offsets[other] && values[lane] != values[other] {
                let text = format!("Lane {other} writes another value there at the same time.");
                return Err(problem(block, target, lane as u32, N, text));
            }
        }
    }
    Ok(())
}

/// A race of a lane with what `text` tells.
fn problem(
    block: &Block<'_>,
    target: &Target<'_>,
    lane: u32,
    bytes: usize,
    text: String,
) -> Box<Problem> {
    let start = if target.space == Space::Shared { target.window } else { BASE };
    let address = target.offsets[lane as usize] + start;
    let mut problem = target.problem(report::Kind::Race, lane as usize, address, bytes, block);
    problem.detail = [text, problem.detail].join(" ").trim_end().into();
    problem
}

fn does(touch: Touch) -> piece::Kind {
    match touch {
        Touch::Read | Touch::CopyFrom => READS,
        Touch::Write | Touch::CopyTo => WRITES,
        Touch::Update => READS | WRITES,
    }
}

/// Others than one thread can touch it, and some write.
fn is_watched(space: Space) -> bool {
    matches!(space, Space::Global | Space::Shared)
}

fn order(warp: &Warp, block: &Block<'_>) -> Order {
    let instruction: &Instruction = &block.program.instructions[warp.at as usize];
    instruction.access.order
}
