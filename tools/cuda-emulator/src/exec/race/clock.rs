//! Vector clocks: which accesses of which threads come before.
//!
//! Every block counts time, which advances at whatever orders its threads. A thread is known up to a time
//! when its accesses stamped with that time or an earlier one come before.

use std::collections::BTreeMap;
use std::sync::Arc;

pub type Time = u32;

/// What is known of the threads of one block.
#[derive(Clone, Debug, Default)]
struct Known {
    /// All threads are known up to the time before this one.
    floor: Time,
    /// Up to which time each thread is; without them, none is beyond the floor.
    threads: Option<Arc<[Time]>>,
}

impl Known {
    fn has(&self, thread: u32, time: Time) -> bool {
        let threads = self.threads.as_deref().unwrap_or_default();
        time < self.floor || threads.get(thread as usize).is_some_and(|&known| known >= time)
    }

    fn join(&mut self, other: &Known) {
        self.floor = self.floor.max(other.floor);
        let Some(more) = &other.threads else { return };
        match &mut self.threads {
            None => self.threads = Some(Arc::clone(more)),
            Some(threads) if Arc::ptr_eq(threads, more) => {}
            Some(threads) => raise_all(Arc::make_mut(threads), more),
        }
    }
}

/// Each time becomes the later of the two.
pub fn raise_all(times: &mut [Time], others: &[Time]) {
    for (time, &other) in times.iter_mut().zip(others) {
        *time = (*time).max(other);
    }
}

/// What is known of the threads of some blocks. Copies share what they hold.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<BTreeMap<u32, Known>>>);

impl Clock {
    /// What is known of one block: all threads before `floor`, and each thread up to a time.
    pub fn of_block(block: u32, floor: Time, threads: &[Time]) -> Clock {
        let known = Known { floor, threads: Some(threads.into()) };
        Clock(Some(Arc::new(BTreeMap::from([(block, known)]))))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether the accesses of a thread at a time come before.
    pub fn has(&self, block: u32, thread: u32, time: Time) -> bool {
        self.known(block).is_some_and(|known| known.has(thread, time))
    }

    /// Up to which time each thread of a block is known, its floor left aside.
    pub fn threads(&self, block: u32) -> &[Time] {
        self.known(block).and_then(|known| known.threads.as_deref()).unwrap_or_default()
    }

    fn known(&self, block: u32) -> Option<&Known> {
        self.0.as_ref()?.get(&block)
    }

    /// Adds all that another clock knows.
    pub fn join(&mut self, other: &Clock) {
        let Some(more) = &other.0 else { return };
        match &mut self.0 {
            None => self.0 = Some(Arc::clone(more)),
            Some(blocks) if Arc::ptr_eq(blocks, more) => {}
            Some(blocks) => {
                let blocks = Arc::make_mut(blocks);
                for (&block, known) in more.iter() {
                    blocks.entry(block).or_default().join(known);
                }
            }
        }
    }

    /// Adds the accesses of one of the `count` threads of a block, up to a time.
    pub fn raise(&mut self, block: u32, thread: u32, time: Time, count: usize) {
        let blocks = Arc::make_mut(self.0.get_or_insert_default());
        let known = blocks.entry(block).or_default();
        let threads = known.threads.get_or_insert_with(|| vec![0; count].into());
        if let Some(known) = Arc::make_mut(threads).get_mut(thread as usize) {
            *known = time.max(*known);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_known_at_first() {
        let clock = Clock::default();
        assert!(clock.is_empty() && !clock.has(0, 0, 0) && clock.threads(0).is_empty());
    }

    #[test]
    fn a_block_is_known_up_to_its_floor_and_each_thread_beyond() {
        let clock = Clock::of_block(7, 5, &[0, 9]);
        assert!(clock.has(7, 0, 4) && !clock.has(7, 0, 5), "thread 0 up to 4");
        assert!(clock.has(7, 1, 9) && !clock.has(7, 1, 10), "thread 1 up to 9");
        assert!(!clock.has(6, 0, 1) && !clock.has(7, 2, 5), "another block, no such thread");
    }

    #[test]
    fn joined_clocks_know_what_each_knew() {
        let mut clock = Clock::of_block(0, 2, &[3, 0]);
        let shared = clock.clone();
        clock.join(&Clock::of_block(0, 1, &[0, 6]));
        clock.join(&Clock::of_block(4, 9, &[0, 0]));
        clock.join(&Clock::default());
        assert!(
            clock.has(0, 0, 3) && clock.has(0, 1, 6) && clock.has(0, 1, 1) && clock.has(4, 1, 8)
        );
        assert!(!clock.has(0, 0, 4) && !clock.has(4, 1, 9));
        assert!(!shared.has(0, 1, 6), "a copy of before keeps what it knew");
    }

    #[test]
    fn a_thread_can_be_raised_alone() {
        let mut clock = Clock::default();
        clock.raise(3, 1, 8, 2);
        clock.raise(3, 1, 5, 2);
        assert!(clock.has(3, 1, 8) && !clock.has(3, 0, 1) && !clock.has(3, 1, 9));
        assert_eq!(clock.threads(3), [0, 8]);
    }
}
