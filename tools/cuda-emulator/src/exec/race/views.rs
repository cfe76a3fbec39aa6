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

    /// Whether an access of the block comes before whatever any of its threads does now.
    #[inline]
    pub fn is_past(&self, old: &Piece) -> bool {
        old.block == self.block && old.time < self.floor
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
        if self.is_past(old) || old.block == self.block && old.is_by_threads_of(new) {
            return None;
        }
        self.unordered_lanes(old, new)
    }

    fn unordered_lanes(&self, old: &Piece, new: &Piece) -> Option<[u32; 2]> {
        let (is_own, is_warps) = (old.block == self.block, old.warp() == new.warp());
        let is_program_order = is_own && is_warps && old.time != UNFINISHED;
        let (first, warp) = (old.warp() * LANES as u32, &self.warps[new.warp() as usize]);
        let mut old_lanes = old.lanes_at(new.bytes());
        while old_lanes != 0 {
            let old_lane = old_lanes.trailing_zeros();
            old_lanes &= old_lanes - 1;
            let mut lanes = new.lanes_at(old.bytes_of(old_lane));
            if is_program_order {
                lanes &= !(1 << old_lane);
            }
            while lanes != 0 {
                let lane = lanes.trailing_zeros();
                let (view, thread) = (warp.of(lane), first + old_lane);
                let is_known = if is_own {
                    view.threads[thread as usize] >= old.time
                } else {
                    view.others.has(old.block, thread, old.time)
                };
                if !is_known {
                    return Some([old_lane, lane]);
                }
                // Lanes with one view know the same.
                lanes &= if warp.views.len() == 1 { 0 } else { lanes - 1 };
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

#[cfg(test)]
mod tests {
    use super::super::piece::{READS, WRITES};
    use super::*;
    use crate::exec::lanes::ALL;

    const DEVICE: Order =
        Order { is_strong: true, acquires: true, releases: true, is_of_block: false };

    fn views(block: u32) -> Views {
        let mut views = Views::new(2);
        views.start(block, [ALL; 2].into_iter());
        views
    }

    /// Whether a lane knows what another thread has done up to now, or rather the time `now`.
    fn knows(views: &Views, lane: [u32; 2], other: [u32; 2], block: u32, now: Time) -> bool {
        let piece = |[warp, lane]: [u32; 2], time, block, kind| {
            Piece::new(time, block, warp, 0, kind).of_lane(lane)
        };
        let old = piece(other, now, block, WRITES);
        views.unordered(&old, &piece(lane, views.now(), views.block(), READS)).is_none()
    }

    #[test]
    fn lanes_that_meet_know_each_other() {
        let mut views = views(0);
        let before = views.now();
        assert!(knows(&views, [0, 3], [0, 3], 0, before), "itself");
        assert!(!knows(&views, [0, 3], [0, 4], 0, before));
        views.meet_in_warp(0, 0xff);
        assert!(knows(&views, [0, 3], [0, 4], 0, before));
        assert!(!knows(&views, [0, 3], [0, 4], 0, views.now()), "what it does from now on");
        assert!(
            !knows(&views, [0, 3], [0, 8], 0, before) && !knows(&views, [0, 8], [0, 3], 0, before)
        );
        views.meet_in_warp(0, ALL);
        assert!(
            knows(&views, [0, 8], [0, 3], 0, before) && !knows(&views, [1, 8], [0, 3], 0, before)
        );
        let later = views.now();
        views.meet();
        assert!(knows(&views, [1, 8], [0, 3], 0, later));
        assert!(!knows(&views, [1, 8], [0, 3], 0, views.now()));
    }

    #[test]
    fn who_arrives_knows_nothing_of_the_others() {
        let mut views = views(0);
        let before = views.now();
        views.arrive(3, 0, ALL);
        views.arrive(3, 1, ALL);
        views.leave(3, 1, ALL);
        views.end_meeting(3);
        assert!(knows(&views, [1, 0], [0, 31], 0, before));
        assert!(!knows(&views, [0, 31], [1, 0], 0, before));
        let own = views.now();
        assert!(!knows(&views, [1, 0], [0, 31], 0, own), "after it had arrived");
    }

    /// Thread 5 of block 0 fences and writes; a thread of block 1 reads and fences.
    #[test]
    fn fences_hand_on_to_other_blocks() {
        for (releases, acquires) in [(true, true), (true, false), (false, true)] {
            for is_narrow in [false, true] {
                let [mut from, mut to] = [0, 1].map(views);
                let before = from.now();
                if releases {
                    from.fence(0, 1 << 5, Order { is_of_block: is_narrow, ..DEVICE });
                }
                let after = from.now();
                let clocks = from.released(0, 5).unwrap_or_default();
                assert!(from.released(0, 6).is_none(), "another lane has not fenced");
                // Another block is handed what is for the device.
                to.observe(1, 1 << 9, &[Clock::default(), clocks[1].clone()]);
                if acquires {
                    to.fence(1, 1 << 9, DEVICE);
                }
                let expected = releases && acquires && !is_narrow;
                assert_eq!(knows(&to, [1, 9], [0, 5], 0, before), expected);
                assert!(!knows(&to, [1, 9], [0, 6], 0, before), "a lane that has not fenced");
                assert!(!knows(&to, [1, 9], [0, 5], 0, after), "after the fence");
                assert!(!knows(&to, [1, 8], [0, 5], 0, before), "a lane that has not read");
                to.meet();
                assert_eq!(knows(&to, [0, 0], [0, 5], 0, before), expected, "by a barrier");
            }
        }
    }

    /// What threads have fenced before a barrier, one of them hands on after it.
    #[test]
    fn fences_of_all_are_handed_on_by_one() {
        let [mut from, mut to] = [0, 1].map(views);
        let before = from.now();
        from.fence(0, ALL, DEVICE);
        from.fence(1, ALL, DEVICE);
        from.meet();
        let clocks = from.released(0, 0).expect("it has fenced");
        to.observe(0, 1, &[Clock::default(), clocks[1].clone()]);
        to.meet();
        assert!(!knows(&to, [1, 7], [1, 30], 0, before));
        to.fence(1, ALL, DEVICE);
        assert!(knows(&to, [1, 7], [1, 30], 0, before));
    }

    #[test]
    fn another_block_starts_without_knowledge() {
        let mut views = views(4);
        let before = views.now();
        views.fence(0, 2, DEVICE);
        views.start(5, [ALL; 2].into_iter());
        assert!(!knows(&views, [0, 1], [0, 1], 4, before));
        assert!(views.released(0, 1).is_none());
    }
}
