//! Runs blocks, one after the other: the warps of a block take turns until all have finished.

use super::barrier::{BARRIERS, Barrier};
use super::divergence::{Groups, State};
use super::fault::{self, Location};
use super::lanes::{ALL, LANES};
use super::module::Kernel;
use super::problem::Problem;
use super::program::{Op, Special};
use super::schedule::{Schedule, Turns};
use super::warp::{Block, Warp};
use super::{Counters, Launch};
use crate::memory::ADDRESSABLE;
use crate::report::{Fault, Kind};

/// What shared and local memory hold at first: NaN in every float type, and no valid index.
const POISON: u8 = 0xFF;
/// Local memory of a thread ends with bytes that belong to nobody.
const RED_ZONE: u32 = 16;

/// Bytes of local memory set aside for each thread.
pub fn local_bytes(kernel: &Kernel) -> u32 {
    match kernel.local {
        0 => 0,
        bytes => bytes.next_multiple_of(RED_ZONE) + RED_ZONE,
    }
}

/// A warp and where its lanes are.
pub struct Scheduled {
    pub warp: Warp,
    pub groups: Groups,
    /// Lanes that have not exited.
    pub live: u32,
    /// Lanes that the block's size gave the warp.
    pub born: u32,
    /// Its multiply-adds when all warps of the block last met.
    paced: u64,
}

/// What a block needs to run; one block at a time.
pub struct Runner<'a> {
    pub kernel: &'a Kernel,
    pub launch: &'a Launch<'a>,
    pub block: Block<'a>,
    pub warps: Vec<Scheduled>,
    pub barriers: [Barrier; BARRIERS],
    pub counters: Counters,
    turns: Turns,
    schedule: Schedule,
    /// Instructions after which a block counts as endless.
    limit: u64,
    /// Of the block in the grid.
    index: [u32; 3],
}

/// What is wrong, and at which instruction.
pub struct Failure {
    pub at: u32,
    pub problem: Box<Problem>,
}

impl<'a> Runner<'a> {
    pub fn new(
        kernel: &'a Kernel,
        launch: &'a Launch<'a>,
        block: Block<'a>,
        schedule: Schedule,
        limit: u64,
    ) -> Self {
        let threads: u32 = launch.block.iter().product();
        let warps = (0..threads.div_ceil(LANES as u32)).map(|index| {
            let lanes = (threads - index * LANES as u32).min(LANES as u32);
            Scheduled {
                warp: Warp::new(&kernel.program),
                groups: Groups::default(),
                live: 0,
                born: ALL >> (LANES as u32 - lanes),
                paced: 0,
            }
        });
        let warps: Vec<Scheduled> = warps.collect();
        Runner {
            kernel,
            launch,
            block,
            turns: Turns::new(schedule, warps.len()),
            schedule,
            warps,
            barriers: Default::default(),
            counters: Counters::default(),
            limit,
            index: [0; 3],
        }
    }

    /// Runs the block at `index` of the grid to its end.
    pub fn run(&mut self, index: [u32; 3]) -> Result<(), Fault> {
        self.start(index);
        loop {
            self.turns.next_round();
            let mut progress = false;
            for number in 0..self.turns.count() {
                let Some((warp, turn)) = self.turns.get(number, progress) else { continue };
                let before = self.warps[warp].warp.clock;
                self.turn(warp, turn).map_err(|failure| self.report(warp, failure))?;
                progress |= self.warps[warp].warp.clock != before;
            }
            let instructions = self.warps.iter().map(|scheduled| scheduled.warp.clock).sum::<u64>();
            if self.live() == 0 {
                self.pace();
                self.counters.warp_instructions += instructions;
                return Ok(());
            }
            if !progress {
                return Err(self.stuck());
            }
            if instructions > self.limit {
                return Err(self.endless());
            }
        }
    }

    fn start(&mut self, index: [u32; 3]) {
        self.index = index;
        let [width, height, _] = self.launch.grid.map(u64::from);
        let [i, j, k] = index.map(u64::from);
        self.turns.start(i + width * (j + height * k));
        self.barriers = Default::default();
        if let Some(watch) = self.block.watch {
            watch.start(index, self.warps.iter().map(|scheduled| scheduled.born));
        }
        self.clear_memory();
        let [x, y, _] = self.launch.block;
        let count = self.warps.len() as u32;
        for (number, scheduled) in self.warps.iter_mut().enumerate() {
            let Scheduled { warp, groups, live, born, .. } = scheduled;
            warp.reset(number as u32);
            *live = *born;
            groups.start(*born);
            let first = warp.first_thread();
            for &(special, operand) in &self.kernel.program.specials {
                let values = match special {
                    Special::Thread(0) => std::array::from_fn(|lane| (first + lane as u32) % x),
                    Special::Thread(1) => std::array::from_fn(|lane| (first + lane as u32) / x % y),
                    Special::Thread(_) => std::array::from_fn(|lane| (first + lane as u32) / x / y),
                    Special::BlockSize(axis) => [self.launch.block[axis as usize]; LANES],
                    Special::Block(axis) => [index[axis as usize]; LANES],
                    Special::GridSize(axis) => [self.launch.grid[axis as usize]; LANES],
                    Special::Warp => [number as u32; LANES],
                    Special::WarpCount => [count; LANES],
                    Special::DynamicShared => [self.launch.dynamic_shared; LANES],
                    Special::TotalShared => {
                        [self.kernel.static_shared + self.launch.dynamic_shared; LANES]
                    }
                };
                *warp.word_mut(operand) = values;
            }
        }
    }

    /// Nothing of the block before is left in shared and local memory.
    fn clear_memory(&self) {
        let layout = &self.kernel.layout;
        let shared = self.block.shared;
        shared.fill(0, shared.bytes(), POISON);
        shared.mark(0, shared.bytes(), 0, 0xFF);
        let dynamic = (layout.dynamic_shared, self.launch.dynamic_shared);
        for &(offset, bytes) in layout.shared.iter().chain([&dynamic]) {
            shared.mark(offset as u64, bytes as usize, ADDRESSABLE, 0);
        }
        let local = self.block.local;
        if self.kernel.local > 0 {
            local.fill(0, local.bytes(), POISON);
            local.mark(0, local.bytes(), 0, 0xFF);
            for start in (0..local.bytes()).step_by(self.block.local_bytes as usize) {
                local.mark(start as u64, self.kernel.local as usize, ADDRESSABLE, 0);
            }
        }
    }

    /// Threads of the block that have not exited.
    pub fn live(&self) -> u32 {
        self.warps.iter().map(|scheduled| scheduled.live.count_ones()).sum()
    }

    /// Threads that the block began with.
    pub fn born(&self) -> u32 {
        self.warps.iter().map(|scheduled| scheduled.born.count_ones()).sum()
    }

    /// All warps have met: whoever had less to multiply has waited for the one that had most.
    pub fn pace(&mut self) {
        let mut most = 0;
        for Scheduled { warp, paced, .. } in &mut self.warps {
            most = most.max(warp.counters.mma_macs - *paced);
            *paced = warp.counters.mma_macs;
        }
        self.counters.paced_macs += most * self.warps.len() as u64;
    }

    fn report(&self, warp: usize, failure: Failure) -> Fault {
        let location = Location {
            block: self.index,
            block_size: self.launch.block,
            warp: warp as u32,
            at: failure.at,
            schedule: self.schedule,
        };
        fault::report(self.kernel, location, *failure.problem)
    }

    /// No warp can go on. Lanes that wait for others of their warp are to blame first, else all are.
    #[cold]
    fn stuck(&self) -> Fault {
        for (number, scheduled) in self.warps.iter().enumerate() {
            if let Some(group) = scheduled.groups.first_in(|state| state == State::Parked) {
                return self.report(number, self.never_joined(number, group));
            }
        }
        let mut lines = Vec::new();
        let mut first = None;
        for (number, scheduled) in self.warps.iter().enumerate() {
            for group in scheduled.groups.iter() {
                let State::AtBarrier(barrier) = group.state else { continue };
                first = first.or(Some((number, group.at)));
                let Barrier { arrived, expected, .. } = self.barriers[barrier as usize];
                let expected = if expected == 0 { self.live() } else { expected };
                let line = fault::line(&self.kernel.program, group.at);
                lines.push(format!(
                    "Warp {number} waits at {line} for barrier {barrier}, where {arrived} of {expected} threads \
                     have arrived."
                ));
            }
        }
        let (number, at) = first.unwrap_or_default();
        let problem = Problem::of_lanes(Kind::Deadlock, 0, lines.join(" "));
        self.report(number, Failure { at, problem })
    }

    #[cold]
    fn endless(&self) -> Fault {
        let busy = |scheduled: &Scheduled| scheduled.groups.first_in(|state| state == State::Ready);
        let found =
            self.warps.iter().enumerate().find_map(|(number, of)| Some((number, busy(of)?)));
        let (number, at) = found.map_or((0, 0), |(number, group)| (number, group.at));
        let detail = format!("The block has run more than {} instructions.", self.limit);
        let problem = Problem::of_lanes(Kind::Endless, 0, detail);
        self.report(number, Failure { at, problem })
    }

    /// A group waits for lanes of its warp that will not come.
    #[cold]
    pub fn never_joined(&self, warp: usize, group: super::divergence::Group) -> Failure {
        let scheduled = &self.warps[warp];
        let elsewhere: Vec<String> = scheduled
            .groups
            .iter()
            .filter(|other| other.at != group.at)
            .map(|other| {
                let line = fault::line(&self.kernel.program, other.at);
                format!("Lanes {:#010x} are at {line}.", other.mask)
            })
            .collect();
        let instruction = &self.kernel.program.instructions[group.at as usize];
        let (kind, what) = match instruction.op {
            Op::Barrier(_) => {
                (Kind::BarrierDivergence, "have arrived without the rest of their warp")
            }
            _ => (Kind::MissingLanes, "wait for lanes that their mask names and that never come"),
        };
        let detail = format!("Lanes {:#010x} {what}. {}", group.mask, elsewhere.join(" "));
        let problem = Problem::of_lanes(kind, group.mask, detail.trim_end().into());
        Failure { at: group.at, problem }
    }
}
