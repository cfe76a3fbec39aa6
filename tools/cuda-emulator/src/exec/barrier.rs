//! The sixteen barriers of a block.

use super::program::Reduction;

pub const BARRIERS: usize = 16;

/// One barrier since it was last complete.
#[derive(Clone, Copy, Default)]
pub struct Barrier {
    /// Threads that have arrived; of a count, whole warps.
    pub arrived: u32,
    /// Threads of a count; 0: all threads of the block.
    pub expected: u32,
    /// The instruction of the first arrival.
    pub first: Option<u32>,
    /// Threads that have arrived with a predicate that is true, and all of a reduction.
    votes: u32,
    voters: u32,
}

impl Barrier {
    pub fn vote(&mut self, votes: u32, voters: u32) {
        self.votes += votes.count_ones();
        self.voters += voters.count_ones();
    }

    pub fn result(&self, reduction: Reduction) -> u32 {
        match reduction {
            Reduction::Count => self.votes,
            Reduction::And => (self.votes == self.voters) as u32,
            Reduction::Or => (self.votes > 0) as u32,
        }
    }

    /// `live` are the threads of the block that have not exited.
    pub fn is_complete(&self, live: u32) -> bool {
        let expected = if self.expected == 0 { live } else { self.expected };
        self.first.is_some() && self.arrived >= expected
    }
}
