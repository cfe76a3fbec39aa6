//! What every lane of a block knows to come before: the happens-before of PTX's memory model.
//!
//! The lanes of a warp share one view until an instruction of some of them tells them apart, and again once
//! they have all met. What all threads of a block know of each other is a single number, its floor.

use super::clock::{Clock, Time, raise_all};
use super::piece::Piece;
use crate::exec::barrier::BARRIERS;
use crate::exec::lanes::LANES;
use crate::exec::program::Order;

/// Stamp of what is not over: nobody can know of it.
pub const UNFINISHED: Time = Time::MAX;

/// Of what goes by scope: the block's, the device's.
const SCOPES: usize = 2;

/// What lanes know, beyond what each knows of itself.
#[derive(Clone, Default)]
struct View {
    /// Up to which time each thread of the block is known.
    threads: Vec<Time>,
    /// And the threads of other blocks.
    others: Clock,
    released: [Released; SCOPES],
    /// What was read from strong writes, and comes before once a fence follows.
    observed: [Clock; SCOPES],
}

/// What a strong write of the lane hands on: what was known at its latest fence, or at that of a thread which it
/// has met since.
#[derive(Clone, Default)]
struct Released {
    clock: Clock,
    /// And what each lane itself had done up to this time.
    own: Time,
}

impl View {
    fn is_plain(&self) -> bool {
        self.others.is_empty()
            && self.released.iter().all(|released| released.clock.is_empty())
            && self.observed.iter().all(Clock::is_empty)
    }

    /// Adds all that another view knows, but not what its lanes know of themselves.
    fn join(&mut self, other: &View) {
        raise_all(&mut self.threads, &other.threads);
        self.others.join(&other.others);
        for scope in 0..SCOPES {
            self.released[scope].clock.join(&other.released[scope].clock);
            self.observed[scope].join(&other.observed[scope]);
        }
    }

    /// Takes what another clock knows as coming before.
    fn acquire(&mut self, clock: &Clock, block: u32) {
        raise_all(&mut self.threads, clock.threads(block));
        self.others.join(clock);
    }
}

/// The lanes of a warp: one view for all or one for each.
struct WarpViews {
    views: Vec<View>,
    live: u32,
}

impl WarpViews {
    fn of(&self, lane: u32) -> &View {
        &self.views[if self.views.len() == 1 { 0 } else { lane as usize }]
    }

    /// Whether `lanes` are all and share a view.
    fn are_one(&self, lanes: u32) -> bool {
        self.views.len() == 1 && self.live & !lanes == 0
    }

    /// The views of `lanes`, each with the lanes that have it.
    fn of_lanes(&mut self, lanes: u32) -> impl Iterator<Item = (u32, &mut View)> {
        let are_one = self.are_one(lanes);
        if !are_one && self.views.len() == 1 {
            let view = self.views[0].clone();
            self.views.resize(LANES, view);
        }
        self.views.iter_mut().enumerate().filter_map(move |(lane, view)| {
            let own = if are_one { lanes } else { lanes & 1 << lane };
            (own != 0).then_some((own, view))
        })
    }
}

/// The views of the threads of the block that runs.
pub struct Views {
    block: u32,
    now: Time,
    /// What any thread of the block did before this time comes before whatever any of them does.
    floor: Time,
    warps: Vec<WarpViews>,
    /// No view knows more than the threads of the block.
    are_plain: bool,
    /// What those bring that have arrived at a barrier of some threads.
    meetings: [Option<View>; BARRIERS],
}

impl Views {
    pub fn new(warps: usize) -> Views {
        let view = View { threads: vec![0; warps * LANES], ..View::default() };
        let warps = (0..warps).map(|_| WarpViews { views: vec![view.clone()], live: 0 }).collect();
        Views { block: 0, now: 0, floor: 0, warps, are_plain: true, meetings: Default::default() }
    }

    pub fn block(&self) -> u32 {
        self.block
    }

    pub fn now(&self) -> Time {
        self.now
    }

    pub fn floor(&self) -> Time {
        self.floor
    }

    /// Another block begins; the lanes of its warps are given.
    pub fn start(&mut self, block: u32, born: impl Iterator<Item = u32>) {
        self.block = block;
        self.meetings = Default::default();
        if !self.are_plain {
            let view = self.nobody();
            self.warps.iter_mut().for_each(|warp| warp.views = vec![view.clone()]);
        }
        for (warp, born) in self.warps.iter_mut().zip(born) {
            warp.live = born;
        }
        self.are_plain = true;
        self.advance();
        self.floor = self.now;
    }

    pub fn exit(&mut self, warp: u32, lanes: u32) {
        self.warps[warp as usize].live &= !lanes;
    }

    fn advance(&mut self) {
        // A block of more events than that has long been found to be endless.
        self.now = self.now.saturating_add(1).min(UNFINISHED - 1);
    }

    /// All threads of the block meet, those that have exited included.
    pub fn meet(&mut self) {
        if !self.are_plain {
            let mut all = self.nobody();
            for warp in 0..self.warps.len() {
                self.gather(warp as u32, !0, &mut all);
            }
            self.are_plain = all.is_plain();
            for warp in &mut self.warps {
                warp.views = vec![all.clone()];
            }
        }
        self.advance();
        self.floor = self.now;
    }

    /// A view without knowledge.
    fn nobody(&self) -> View {
        View { threads: vec![0; self.warps.len() * LANES], ..View::default() }
    }

    /// Adds what some lanes of a warp know, of themselves as well.
    fn gather(&mut self, warp: u32, lanes: u32, meeting: &mut View) {
        let (block, now, count) = (self.block, self.now, meeting.threads.len());
        self.are_plain &= self.warps[warp as usize].are_one(lanes);
        for (lanes, view) in self.warps[warp as usize].of_lanes(lanes) {
            meeting.join(view);
            for thread in threads(warp, lanes) {
                meeting.threads[thread as usize] = now;
                for (to, from) in meeting.released.iter_mut().zip(&view.released) {
                    if from.own > 0 {
                        to.clock.raise(block, thread, from.own, count);
                    }
                }
            }
        }
    }

    /// Lanes of a warp meet.
    pub fn meet_in_warp(&mut self, warp: u32, lanes: u32) {
        let views = &mut self.warps[warp as usize];
        if views.are_one(lanes) && self.are_plain {
            let first = warp as usize * LANES;
            views.views[0].threads[first..first + LANES].fill(self.now);
        } else {
            let mut meeting = self.nobody();
            self.gather(warp, lanes, &mut meeting);
            let views = &mut self.warps[warp as usize];
            if views.live & !lanes == 0 {
                views.views = vec![meeting];
            } else {
                views.of_lanes(lanes).for_each(|(_, view)| *view = meeting.clone());
            }
        }
        self.advance();
    }

    /// Lanes arrive at a barrier of a number of threads.
    pub fn arrive(&mut self, barrier: usize, warp: u32, lanes: u32) {
        let mut meeting = self.meetings[barrier].take().unwrap_or_else(|| self.nobody());
        self.gather(warp, lanes, &mut meeting);
        self.meetings[barrier] = Some(meeting);
        self.advance();
    }

    /// Lanes go on from a barrier where all have arrived.
    pub fn leave(&mut self, barrier: usize, warp: u32, lanes: u32) {
        let Some(meeting) = &self.meetings[barrier] else { return };
        self.are_plain &= meeting.is_plain() && self.warps[warp as usize].are_one(lanes);
        for (_, view) in self.warps[warp as usize].of_lanes(lanes) {
            view.join(meeting);
        }
    }

    /// The barrier is as new.
    pub fn end_meeting(&mut self, barrier: usize) {
        self.meetings[barrier] = None;
    }

    /// What was observed comes before, and what comes before is released.
    pub fn fence(&mut self, warp: u32, lanes: u32, order: Order) {
        self.are_plain = false;
        let (block, now, floor) = (self.block, self.now, self.floor);
        let scope = if order.is_of_block { 0 } else { 1 };
        for (_, view) in self.warps[warp as usize].of_lanes(lanes) {
            if order.acquires {
                let observed = view.observed[scope].clone();
                view.acquire(&observed, block);
            }
            if order.releases {
                let mut clock = Clock::of_block(block, floor, &view.threads);
                clock.join(&view.others);
                for released in &mut view.released[..=scope] {
                    *released = Released { clock: clock.clone(), own: now };
                }
            }
        }
        self.advance();
    }

    /// What a strong write of a lane hands on to threads of its block, and to all, if to any.
    pub fn released(&self, warp: u32, lane: u32) -> Option<[Clock; SCOPES]> {
        if self.are_plain {
            return None;
        }
        let view = self.warps[warp as usize].of(lane);
        let thread = warp * LANES as u32 + lane;
        let clocks = view.released.each_ref().map(|released| {
            let mut clock = released.clock.clone();
            if released.own > 0 {
                clock.raise(self.block, thread, released.own, view.threads.len());
            }
            clock
        });
        clocks.iter().any(|clock| !clock.is_empty()).then_some(clocks)
    }

    /// A strong read of lanes has seen what was handed on to the threads of the block, and to all.
    pub fn observe(&mut self, warp: u32, lanes: u32, clocks: &[Clock; SCOPES]) {
        self.are_plain = false;
        for (_, view) in self.warps[warp as usize].of_lanes(lanes) {
            view.observed[0].join(&clocks[0]);
            view.observed[1].join(&clocks[0]);
            view.observed[1].join(&clocks[1]);
        }
    }

    /// A pair of lanes that touch the same byte, of an access before and of one now, if nothing orders them.
    #[inline]
    pub fn unordered(&self, old: &Piece, new: &Piece) -> Option<[u32; 2]> {
        let is_own = old.block == self.block;
        if is_own && old.time < self.floor || is_own && old.is_by_threads_of(new) {
            return None;
        }
        self.unordered_lanes(old, new)
    }

    fn unordered_lanes(&self, old: &Piece, new: &Piece) -> Option<[u32; 2]> {
        let is_own = old.block == self.block;
        let (first, warp) = (old.warp() * LANES as u32, &self.warps[new.warp() as usize]);
        for (old_lane, bytes) in old.lanes_at(new.bytes()) {
            for (new_lane, _) in new.lanes_at(bytes) {
                let is_same = is_own && old.warp() == new.warp() && old_lane == new_lane;
                if is_same && old.time != UNFINISHED {
                    continue;
                }
                let (view, thread) = (warp.of(new_lane), first + old_lane);
                let is_known = if is_own {
                    view.threads[thread as usize] >= old.time
                } else {
                    view.others.has(old.block, thread, old.time)
                };
                if !is_known {
                    return Some([old_lane, new_lane]);
                }
            }
        }
        None
    }
}

/// The threads of a block that are `lanes` of a warp.
fn threads(warp: u32, lanes: u32) -> impl Iterator<Item = u32> {
    let first = warp * LANES as u32;
    (0..LANES as u32).filter(move |lane| lanes >> lane & 1 != 0).map(move |lane| first + lane)
}
