//! The lanes of a warp that stand at different instructions.
//!
//! Lanes at the same instruction form a group. The group with the lowest instruction runs, and takes up
//! those it catches up with. Nothing else is needed for branches that join again, in whatever order the
//! compiler laid out its blocks.

/// Lanes that run together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Index of the next instruction.
    pub at: u32,
    pub mask: u32,
    pub state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ready,
    /// At an instruction that needs lanes which are elsewhere.
    Parked,
    /// Has arrived at a barrier of this number.
    AtBarrier(u8),
}

/// All groups of a warp but the one that runs.
#[derive(Default)]
pub struct Groups {
    groups: Vec<Group>,
    /// Instructions that the lowest groups ran while another was ready.
    preferred: u64,
    /// How often another got to run instead.
    exceptions: usize,
    /// The lanes that are to run instead, and for how many instructions yet.
    exception: (u32, u64),
}

/// After so many instructions of the lowest groups while another is ready, the other gets to run: a lane may wait
/// for what another lane of its warp has yet to do. Instructions of the warp are counted, not turns, so
/// that what runs does not hang on the schedule.
const PATIENCE: u64 = 8192;
/// Instructions for which the other runs.
const EXCEPTION: u64 = 512;

/// A group that is to run.
pub struct Taken {
    pub group: Group,
    /// The first instruction from its own on where another group stands.
    pub stop: u32,
    /// Instructions after which another group may have to run.
    pub limit: u64,
    /// Another group could run.
    has_rival: bool,
}

impl Groups {
    /// All lanes of `mask` at the first instruction.
    pub fn start(&mut self, mask: u32) {
        self.groups.clear();
        (self.preferred, self.exceptions, self.exception) = (0, 0, (0, 0));
        self.push(Group { at: 0, mask, state: State::Ready });
    }

    /// Puts a group back. A ready one joins those at its instruction that are ready or parked.
    pub fn push(&mut self, group: Group) {
        if group.mask == 0 {
            return;
        }
        let same = self.groups.iter_mut().find(|other| {
            other.at == group.at
                && group.state == State::Ready
                && matches!(other.state, State::Ready | State::Parked)
        });
        match same {
            Some(other) => {
                other.mask |= group.mask;
                other.state = State::Ready;
            }
            None => self.groups.push(group),
        }
    }

    /// Takes the group to run next.
    pub fn take(&mut self) -> Option<Taken> {
        let ready = |group: &&Group| group.state == State::Ready;
        let lowest =
            |of: &mut dyn Iterator<Item = &Group>| of.min_by_key(|group| group.at).copied();
        let mut chosen = lowest(&mut self.groups.iter().filter(ready))?;
        let has_rival = self.groups.iter().filter(ready).count() > 1;
        if has_rival && self.preferred >= PATIENCE {
            let mut others: Vec<_> =
                self.groups.iter().filter(ready).filter(|of| **of != chosen).collect();
            others.sort_unstable_by_key(|group| group.at);
            self.exceptions += 1;
            self.preferred = 0;
            self.exception = (others[self.exceptions % others.len()].mask, EXCEPTION);
        }
        let mut limit = PATIENCE - self.preferred.min(PATIENCE - 1);
        if let (lanes, rest @ 1..) = self.exception {
            let is_meant = |group: &&Group| group.mask & lanes != 0;
            match lowest(&mut self.groups.iter().filter(ready).filter(is_meant)) {
                Some(other) => (chosen, limit) = (other, rest),
                None => self.exception = (0, 0),
            }
        }
        self.groups.retain(|group| *group != chosen);
        Some(Taken { group: chosen, stop: self.next_after(chosen.at), limit, has_rival })
    }

    /// The lanes of the group that was taken have run so many instructions.
    pub fn ran(&mut self, taken: &Taken, instructions: u64) {
        let (_, rest) = &mut self.exception;
        if *rest > 0 {
            *rest = rest.saturating_sub(instructions);
        } else if taken.has_rival {
            self.preferred += instructions;
        } else {
            self.preferred = 0;
        }
    }

    /// The first instruction from `at` on where a group stands that would be joined.
    pub fn next_after(&self, at: u32) -> u32 {
        let others = self
            .groups
            .iter()
            .filter(|group| group.at >= at && matches!(group.state, State::Ready | State::Parked));
        others.map(|group| group.at).min().unwrap_or(u32::MAX)
    }

    pub fn is_alone(&self) -> bool {
        self.groups.is_empty()
    }

    /// Lanes have left, so that what a parked group needs may have changed.
    pub fn retry_parked(&mut self) {
        let parked = self.groups.iter_mut().filter(|group| group.state == State::Parked);
        parked.for_each(|group| group.state = State::Ready);
    }

    /// Lets the groups at a barrier go on; `f` sees each of them before.
    pub fn release(&mut self, barrier: u8, mut f: impl FnMut(Group)) {
        for group in self.groups.iter_mut().filter(|of| of.state == State::AtBarrier(barrier)) {
            f(*group);
            group.at += 1;
            group.state = State::Ready;
        }
    }

    /// The lowest group in a state, when none is ready.
    pub fn first_in(&self, is_wanted: impl Fn(State) -> bool) -> Option<Group> {
        let wanted = self.groups.iter().filter(|group| is_wanted(group.state));
        wanted.min_by_key(|group| group.at).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(at: u32, mask: u32, state: State) -> Group {
        Group { at, mask, state }
    }

    #[test]
    fn the_lowest_runs_and_joins_what_it_meets() {
        let mut groups = Groups::default();
        groups.start(0xff);
        let all = groups.take().unwrap();
        assert_eq!((all.group.mask, all.stop), (0xff, u32::MAX));
        groups.push(group(7, 0x0f, State::Ready));
        groups.push(group(3, 0xf0, State::Ready));
        let low = groups.take().unwrap();
        assert_eq!((low.group.at, low.group.mask, low.stop), (3, 0xf0, 7));
        groups.push(group(7, 0xf0, State::Ready));
        let joined = groups.take().unwrap().group;
        assert_eq!((joined.at, joined.mask), (7, 0xff));
        assert!(groups.is_alone() && groups.take().is_none());
    }

    #[test]
    fn parked_groups_wait_to_be_joined() {
        let mut groups = Groups::default();
        groups.push(group(5, 1, State::Parked));
        groups.push(group(9, 2, State::Ready));
        let other = groups.take().unwrap();
        assert_eq!((other.group.at, other.stop), (9, u32::MAX));
        assert_eq!(groups.next_after(2), 5);
        groups.push(group(5, 2, State::Ready));
        assert_eq!(groups.take().unwrap().group, group(5, 3, State::Ready));
        groups.push(group(5, 1, State::Parked));
        assert!(groups.take().is_none());
        groups.retry_parked();
        assert_eq!(groups.take().unwrap().group.mask, 1);
    }

    #[test]
    fn groups_at_a_barrier_are_joined_by_nobody() {
        let mut groups = Groups::default();
        groups.push(group(5, 1, State::AtBarrier(3)));
        groups.push(group(5, 2, State::Ready));
        assert_eq!(groups.take().unwrap().group, group(5, 2, State::Ready));
        let mut seen = Vec::new();
        groups.release(4, |group| seen.push(group));
        groups.release(3, |group| seen.push(group));
        assert_eq!(seen, [group(5, 1, State::AtBarrier(3))]);
        assert_eq!(groups.take().unwrap().group, group(6, 1, State::Ready));
    }

    /// However many instructions a turn has.
    #[test]
    fn nobody_starves() {
        let run = |turn: u64| {
            let mut groups = Groups::default();
            for at in [1, 5, 9] {
                groups.push(group(at, 1 << at, State::Ready));
            }
            let mut ran = [0; 10];
            let mut order = Vec::new();
            let mut rest = 4 * (PATIENCE + EXCEPTION);
            while rest > 0 {
                let taken = groups.take().unwrap();
                let instructions = taken.limit.min(turn).min(rest);
                rest -= instructions;
                ran[taken.group.at as usize] += instructions;
                order.push(taken.group.at);
                groups.ran(&taken, instructions);
                groups.push(taken.group);
            }
            order.dedup();
            assert_eq!([ran[1], ran[5], ran[9]], [4 * PATIENCE, 2 * EXCEPTION, 2 * EXCEPTION]);
            order
        };
        let order = run(u64::MAX);
        assert_eq!(order.len(), 8);
        assert!([1, 7, 96, 512].iter().all(|&turn| run(turn) == order));
    }
}
