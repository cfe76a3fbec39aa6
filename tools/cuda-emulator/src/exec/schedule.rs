//! In which order the blocks of a grid and the warps of a block run.
//!
//! A schedule says who runs when, never what is run: the lanes of a warp part and join at the same
//! instructions under each. Random ones hang on seed, launch and block alone, not on the host's threads.

use std::fmt;
use std::str::FromStr;

/// How one launch is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Schedule {
    /// Blocks and warps by number, in long turns.
    #[default]
    Order,
    /// Blocks in a random order, warps too, in turns of random length; by the launch's number.
    Random { seed: u64, launch: u64 },
    /// A warp of each block, counted round, runs only when no other can.
    Last { warp: u32 },
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Schedule::Order => write!(f, "order"),
            Schedule::Random { seed, launch } => write!(f, "random:{seed}, launch {launch}"),
            Schedule::Last { warp } => write!(f, "last:{warp}"),
        }
    }
}

/// How the launches of a program are run, one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Schedules {
    /// Most at random with seed 0, and every fourth with a warp that is last.
    #[default]
    Vary,
    Order,
    Random(u64),
    /// This warp, or without a number a random one.
    Last(Option<u32>),
}

impl Schedules {
    /// The schedule of a launch by its number.
    pub fn of_launch(self, launch: u64) -> Schedule {
        let any_warp = || Schedule::Last { warp: Random::new([0, launch, 0]).next() as u32 % 32 };
        match self {
            Schedules::Order => Schedule::Order,
            Schedules::Random(seed) => Schedule::Random { seed, launch },
            Schedules::Last(Some(warp)) => Schedule::Last { warp },
            Schedules::Last(None) => any_warp(),
            Schedules::Vary if launch % 4 == 3 => any_warp(),
            Schedules::Vary => Schedule::Random { seed: 0, launch },
        }
    }
}

impl FromStr for Schedules {
    type Err = ();

    /// `order`, `random`, `random:SEED`, `last` or `last:WARP`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (kind, number) = match text.split_once(':') {
            Some((kind, number)) => (kind, Some(number)),
            None => (text, None),
        };
        match (kind, number) {
            ("order", None) => Ok(Schedules::Order),
            ("random", None) => Ok(Schedules::Random(0)),
            ("random", Some(seed)) => seed.parse().map(Schedules::Random).map_err(|_| ()),
            ("last", None) => Ok(Schedules::Last(None)),
            ("last", Some(warp)) => {
                warp.parse().map(|warp| Schedules::Last(Some(warp))).map_err(|_| ())
            }
            _ => Err(()),
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn new(keys: [u64; 3]) -> Random {
        let mut random = Random(0);
        for key in keys {
            random.0 ^= key;
            random.0 = random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ x >> 31
    }

    /// Of 0 to `end` - 1.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (2..=items.len()).rev() {
            items.swap(end - 1, self.below(end));
        }
    }
}

/// The blocks of a grid in the order in which they start.
pub struct BlockOrder(Option<Vec<u64>>);

impl BlockOrder {
    pub fn new(schedule: Schedule, blocks: u64) -> BlockOrder {
        let Schedule::Random { seed, launch } = schedule else { return BlockOrder(None) };
        let mut order: Vec<u64> = (0..blocks).collect();
        Random::new([seed, launch, u64::MAX]).shuffle(&mut order);
        BlockOrder(Some(order))
    }

    pub fn number(&self, position: u64) -> u64 {
        self.0.as_ref().map_or(position, |order| order[position as usize])
    }
}

/// The turns of the warps of a block, round by round.
pub struct Turns {
    schedule: Schedule,
    random: Random,
    /// Of the round: each warp, and its instructions at most.
    round: Vec<(usize, u64)>,
    /// Rounds since the last warp had its turn.
    waited: u32,
}

/// Instructions of a turn.
const LONG_TURN: u64 = 512;
const LONGEST_RANDOM_TURN: u64 = 96;
/// Rounds after which a warp that is last gets a turn although others can run: they may spin, waiting for it.
const PATIENCE: u32 = 1 << 7;

impl Turns {
    pub fn new(schedule: Schedule, warps: usize) -> Turns {
        let round = (0..warps).map(|warp| (warp, LONG_TURN)).collect();
        Turns { schedule, random: Random(0), round, waited: 0 }
    }

    /// Another block begins.
    pub fn start(&mut self, block: u64) {
        let warps = self.round.len();
        match self.schedule {
            Schedule::Order => {}
            Schedule::Random { seed, launch } => self.random = Random::new([seed, launch, block]),
            Schedule::Last { warp } => {
                let last = warp as usize % warps;
                let others = (0..warps).filter(|&warp| warp != last);
                self.round = others.chain([last]).map(|warp| (warp, LONG_TURN)).collect();
            }
        }
        self.waited = 0;
    }

    pub fn next_round(&mut self) {
        if let Schedule::Random { .. } = self.schedule {
            for (_, turn) in &mut self.round {
                *turn = 1 + self.random.next() % LONGEST_RANDOM_TURN;
            }
            self.random.shuffle(&mut self.round);
        }
    }

    pub fn count(&self) -> usize {
        self.round.len()
    }

    /// A turn of the round: a warp and its instructions at most. `progress`: another warp has run in this round.
    pub fn get(&mut self, number: usize, progress: bool) -> Option<(usize, u64)> {
        let is_last =
            matches!(self.schedule, Schedule::Last { .. }) && number + 1 == self.round.len();
        if is_last && progress && self.waited < PATIENCE {
            self.waited += 1;
            return None;
        }
        if is_last {
            self.waited = 0;
        }
        Some(self.round[number])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(schedule: Schedule, block: u64) -> Vec<(usize, u64)> {
        let mut turns = Turns::new(schedule, 5);
        turns.start(block);
        let mut all = Vec::new();
        for _ in 0..6 {
            turns.next_round();
            let round: Vec<_> = (0..turns.count()).filter_map(|at| turns.get(at, false)).collect();
            let mut warps: Vec<usize> = round.iter().map(|&(warp, _)| warp).collect();
            warps.sort_unstable();
            assert_eq!(warps, [0, 1, 2, 3, 4], "every warp once a round");
            all.extend(round);
        }
        all
    }

    #[test]
    fn random_turns_hang_on_seed_launch_and_block() {
        let random = |seed, launch| Schedule::Random { seed, launch };
        let turns = rounds(random(1, 2), 3);
        assert_eq!(turns, rounds(random(1, 2), 3));
        for other in [rounds(random(0, 2), 3), rounds(random(1, 3), 3), rounds(random(1, 2), 4)] {
            assert_ne!(turns, other);
        }
        assert!(turns.iter().all(|&(_, turn)| (1..=LONGEST_RANDOM_TURN).contains(&turn)));
    }

    #[test]
    fn blocks_run_once_each_in_another_order() {
        let order = BlockOrder::new(Schedule::Random { seed: 0, launch: 7 }, 100);
        let mut blocks: Vec<u64> = (0..100).map(|position| order.number(position)).collect();
        assert!(!blocks.is_sorted());
        blocks.sort_unstable();
        assert!((0..100).eq(blocks));
        assert_eq!(BlockOrder::new(Schedule::Order, 100).number(42), 42);
    }

    #[test]
    fn the_last_warp_waits_for_the_others() {
        let mut turns = Turns::new(Schedule::Last { warp: 7 }, 5);
        turns.start(0);
        assert_eq!((turns.get(0, false), turns.get(4, true)), (Some((0, LONG_TURN)), None));
        assert_eq!(turns.get(4, false), Some((2, LONG_TURN)), "no other can run");
        let waits = (0..2 * PATIENCE).filter(|_| turns.get(4, true).is_none()).count() as u32;
        assert_eq!(waits, 2 * PATIENCE - 1, "others may wait for it");
    }

    #[test]
    fn schedules_have_names() {
        let parse = |text: &str| text.parse::<Schedules>();
        assert_eq!(parse("order"), Ok(Schedules::Order));
        assert_eq!(parse("random"), Ok(Schedules::Random(0)));
        assert_eq!(parse("random:12"), Ok(Schedules::Random(12)));
        assert_eq!(parse("last"), Ok(Schedules::Last(None)));
        assert_eq!(parse("last:3"), Ok(Schedules::Last(Some(3))));
        for wrong in ["", "vary", "order:1", "random:", "random:x", "last:-1"] {
            assert_eq!(parse(wrong), Err(()), "{wrong}");
        }
        let varied: Vec<_> = (0..8).map(|launch| Schedules::Vary.of_launch(launch)).collect();
        let is_last = |schedule: &Schedule| matches!(schedule, Schedule::Last { .. });
        assert!(varied.iter().enumerate().all(|(i, schedule)| is_last(schedule) == (i % 4 == 3)));
        assert_eq!(varied[2].to_string(), "random:0, launch 2");
        assert_eq!(Schedule::Last { warp: 3 }.to_string(), "last:3");
        assert_eq!(Schedules::Last(None).of_launch(3), varied[3], "so it can be forced");
    }
}
