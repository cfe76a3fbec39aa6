//! What strong writes hand on to the strong reads that see them, by address.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::clock::Clock;

/// All words of a memory through which something is handed on.
#[derive(Default)]
pub struct Locations {
    words: Mutex<HashMap<u64, Word>>,
    /// There are any.
    are_there: AtomicBool,
}

#[derive(Default)]
struct Word {
    /// For all threads.
    device: Clock,
    /// For those of a block.
    blocks: BTreeMap<u32, Clock>,
}

/// The words that so many bytes lie in.
fn words(offset: u64, bytes: usize) -> std::ops::RangeInclusive<u64> {
    offset >> 2..=offset.wrapping_add(bytes as u64 - 1) >> 2
}

impl Locations {
    /// A thread of `block` has written: for its block, and for the device unless it writes to its block alone. Adds to
    /// what was handed on before, as an atomic operation does.
    pub fn publish(
        &self,
        offset: u64,
        bytes: usize,
        block: u32,
        clocks: [Clock; 2],
        is_of_block: bool,
    ) {
        let mut table = self.table();
        for word in words(offset, bytes) {
            let word = table.entry(word).or_default();
            word.blocks.entry(block).or_default().join(&clocks[0]);
            if !is_of_block {
                word.device.join(&clocks[1]);
            }
        }
        self.are_there.store(true, Ordering::SeqCst);
    }

    /// What a thread of `block` that has read learns from its block, and from the device unless it reads from its
    /// block alone.
    pub fn observe(
        &self,
        offset: u64,
        bytes: usize,
        block: u32,
        is_of_block: bool,
    ) -> Option<[Clock; 2]> {
        if !self.are_there.load(Ordering::SeqCst) {
            return None;
        }
        let table = self.table();
        let mut clocks = [Clock::default(), Clock::default()];
        for word in words(offset, bytes).filter_map(|word| table.get(&word)) {
            if let Some(clock) = word.blocks.get(&block) {
                clocks[0].join(clock);
            }
            if !is_of_block {
                clocks[1].join(&word.device);
            }
        }
        clocks.iter().any(|clock| !clock.is_empty()).then_some(clocks)
    }

    /// A value that handed something on is overwritten.
    pub fn forget(&self, offset: u64, bytes: usize) {
        if self.are_there.load(Ordering::SeqCst) {
            let mut table = self.table();
            words(offset, bytes).for_each(|word| drop(table.remove(&word)));
        }
    }

    pub fn clear(&self) {
        if self.are_there.swap(false, Ordering::SeqCst) {
            self.table().clear();
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<u64, Word>> {
        self.words.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(block: u32) -> Clock {
        Clock::of_block(block, 5, &[0])
    }

    #[test]
    fn who_sees_what_was_handed_on() {
        let locations = Locations::default();
        assert!(locations.observe(8, 4, 1, false).is_none());
        locations.publish(8, 4, 1, [clock(1), clock(2)], false);
        locations.publish(8, 4, 1, [clock(1), clock(3)], true);
        let seen = |offset, block, is_of_block| {
            let clocks = locations.observe(offset, 4, block, is_of_block).unwrap_or_default();
            clocks.map(|clock| [1, 2, 3].map(|block| clock.has(block, 0, 1)))
        };
        let (nothing, all) = ([false; 3], [false, true, false]);
        assert_eq!(seen(8, 1, false), [[true, false, false], all]);
        assert_eq!(seen(8, 1, true), [[true, false, false], nothing]);
        assert_eq!(seen(8, 4, false), [nothing, all], "another block");
        assert_eq!(seen(8, 4, true), [nothing, nothing], "another block, which asks its own");
        assert_eq!(seen(12, 1, false), [nothing, nothing], "another word");
        locations.forget(8, 8);
        assert_eq!(seen(8, 1, false), [nothing, nothing], "overwritten");
        locations.publish(8, 4, 1, [clock(1), clock(2)], false);
        locations.clear();
        assert!(locations.observe(8, 4, 1, false).is_none());
    }
}
