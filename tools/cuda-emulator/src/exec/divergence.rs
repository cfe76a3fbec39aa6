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
    /// How often in a row the lowest group was preferred to another that was ready.
    preferred: u32,
    /// How often another got its turn instead.
    exceptions: usize,
}

/// After so many quanta of one group while another is ready, the other gets one: a lane may wait for what
/// another lane of its warp has yet to do.
const PATIENCE: u32 = 16;

impl Groups {
    /// All lanes of `mask` at the first instruction.
    pub fn start(&mut self, mask: u32) {
        self.groups.clear();
        (self.preferred, self.exceptions) = (0, 0);
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

    /// Takes the group to run next, and the first instruction from its own on where another group stands.
    pub fn take(&mut self) -> Option<(Group, u32)> {
        let ready = |group: &&Group| group.state == State::Ready;
        let lowest = self.groups.iter().filter(ready).min_by_key(|group| group.at)?;
        let mut chosen = *lowest;
        if self.preferred >= PATIENCE {
            self.preferred = 0;
            self.exceptions += 1;
            let others: Vec<_> =
                self.groups.iter().filter(ready).filter(|of| **of != chosen).collect();
            if let Some(other) = others.get(self.exceptions % others.len().max(1)) {
                chosen = **other;
            }
        }
        self.groups.retain(|group| *group != chosen);
        Some((chosen, self.next_after(chosen.at)))
    }

    /// The first instruction from `at` on where a group stands that would be joined.
    pub fn next_after(&self, at: u32) -> u32 {
        let others = self
            .groups
            .iter()
            .filter(|group| group.at >= at && matches!(group.state, State::Ready | State::Parked));
        others.map(|group| group.at).min().unwrap_or(u32::MAX)
    }

    /// The quantum of the group that was taken is over.
    pub fn end_quantum(&mut self) {
        let others = self.groups.iter().any(|group| group.state == State::Ready);
        self.preferred = if others { self.preferred + 1 } else { 0 };
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
        let (all, next) = groups.take().unwrap();
        assert_eq!((all.mask, next), (0xff, u32::MAX));
        groups.push(group(7, 0x0f, State::Ready));
        groups.push(group(3, 0xf0, State::Ready));
        let (low, next) = groups.take().unwrap();
        assert_eq!((low.at, low.mask, next), (3, 0xf0, 7));
        groups.push(group(7, 0xf0, State::Ready));
        let (joined, _) = groups.take().unwrap();
        assert_eq!((joined.at, joined.mask), (7, 0xff));
        assert!(groups.is_alone() && groups.take().is_none());
    }

    #[test]
    fn parked_groups_wait_to_be_joined() {
        let mut groups = Groups::default();
        groups.push(group(5, 1, State::Parked));
        groups.push(group(9, 2, State::Ready));
        let (other, next) = groups.take().unwrap();
        assert_eq!((other.at, next), (9, u32::MAX));
        assert_eq!(groups.next_after(2), 5);
        groups.push(group(5, 2, State::Ready));
        assert_eq!(groups.take().unwrap().0, group(5, 3, State::Ready));
        groups.push(group(5, 1, State::Parked));
        assert!(groups.take().is_none());
        groups.retry_parked();
        assert_eq!(groups.take().unwrap().0.mask, 1);
    }

    #[test]
    fn groups_at_a_barrier_are_joined_by_nobody() {
        let mut groups = Groups::default();
        groups.push(group(5, 1, State::AtBarrier(3)));
        groups.push(group(5, 2, State::Ready));
        assert_eq!(groups.take().unwrap(), (group(5, 2, State::Ready), u32::MAX));
        let mut seen = Vec::new();
        groups.release(4, |group| seen.push(group));
        groups.release(3, |group| seen.push(group));
        assert_eq!(seen, [group(5, 1, State::AtBarrier(3))]);
        assert_eq!(groups.take().unwrap().0, group(6, 1, State::Ready));
    }

    #[test]
    fn nobody_starves() {
        let mut groups = Groups::default();
        for at in [1, 5, 9] {
            groups.push(group(at, at, State::Ready));
        }
        let mut turns = [0; 10];
        for _ in 0..4 * (PATIENCE + 1) {
            let (chosen, _) = groups.take().unwrap();
            turns[chosen.at as usize] += 1;
            groups.end_quantum();
            groups.push(chosen);
        }
        assert_eq!([turns[1], turns[5], turns[9]], [4 * PATIENCE, 2, 2]);
    }
}
