//! Register allocation: virtual registers that are never alive together share slots.
//!
//! Liveness over the control-flow graph, then a linear scan over intervals from the first to the last
//! instruction at which a register is alive.
//!
//! Liveness is that of one lane, which is right for a warp too: groups of lanes that diverged hold
//! disjoint lanes, and a write touches the lanes of its group only. But registers of different sizes never share:
//! lane 3 of a register of one slot lies where lane 1 of one of two slots does.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// What an instruction does to virtual registers, and what may run after it.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub uses: Vec<u32>,
    pub defs: Vec<u32>,
    /// The write leaves some lanes as they were (a guard): what was in `defs` before lives on.
    pub is_partial: bool,
    /// The next instruction may follow.
    pub falls_through: bool,
    /// Other instructions that may follow, by index. An exit has none and does not fall through.
    pub targets: Vec<u32>,
}

/// What a virtual register takes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A mask with a bit per lane: numbered apart from slots.
    Predicate,
    /// So many slots (1, 2 or 4) at a multiple of as many.
    Slots(u32),
}

/// Where every virtual register lies.
#[derive(Clone, Debug, Default)]
pub struct Allocation {
    /// First slot, or for a predicate its number, by virtual register. A register that no instruction
    /// names has 0.
    pub places: Vec<u32>,
    pub slots: u32,
    pub predicates: u32,
}

/// Places the registers of `classes` for a program that starts at the first node. Every register in
/// `nodes` has a class, and every target is a node. A register that an instruction writes never shares
/// with one that it reads, so that results may be written before all operands were read.
pub fn allocate(nodes: &[Node], classes: &[Class]) -> Allocation {
    let mut intervals = intervals(nodes, classes.len());
    intervals.sort_unstable_by_key(|interval| (interval.first, interval.register));
    let mut allocation = Allocation { places: vec![0; classes.len()], slots: 0, predicates: 0 };
    let mut pools: BTreeMap<u32, Pool> = BTreeMap::new();
    let mut predicates = Pool::default();
    for &Interval { register, first, last } in &intervals {
        let place = &mut allocation.places[register as usize];
        *place = match classes[register as usize] {
            Class::Predicate => predicates.take(first, last),
            Class::Slots(size) => size * pools.entry(size).or_default().take(first, last),
        };
    }
    allocation.predicates = predicates.is_taken.len() as u32;
    // One pool's slots after the other's.
    for (&size, pool) in &pools {
        let start = allocation.slots.next_multiple_of(size);
        allocation.slots = start + size * pool.is_taken.len() as u32;
        let of_pool = |of: &&Interval| classes[of.register as usize] == Class::Slots(size);
        for Interval { register, .. } in intervals.iter().filter(of_pool) {
            allocation.places[*register as usize] += start;
        }
    }
    allocation
}

/// Places of one size, and when those in use come free.
#[derive(Default)]
struct Pool {
    is_taken: Vec<bool>,
    /// Last instruction and place.
    ends: BinaryHeap<Reverse<(u32, u32)>>,
}

impl Pool {
    /// The lowest place that is free from `first` to `last`.
    fn take(&mut self, first: u32, last: u32) -> u32 {
        while let Some(&Reverse((end, place))) = self.ends.peek()
            && end < first
        {
            self.ends.pop();
            self.is_taken[place as usize] = false;
        }
        let free = self.is_taken.iter().position(|is_taken| !is_taken);
        let place = free.unwrap_or_else(|| {
            self.is_taken.push(false);
            self.is_taken.len() - 1
        });
        self.is_taken[place] = true;
        self.ends.push(Reverse((last, place as u32)));
        place as u32
    }
}

/// First and last instruction at which a register is alive or named.
struct Interval {
    register: u32,
    first: u32,
    last: u32,
}

fn intervals(nodes: &[Node], registers: usize) -> Vec<Interval> {
    let blocks = blocks(nodes);
    let (live_in, live_out) = liveness(nodes, &blocks, registers);
    let mut extents = vec![(u32::MAX, 0); registers];
    let mut extend = |register: u32, at: usize| {
        let (first, last) = &mut extents[register as usize];
        *first = (*first).min(at as u32);
        *last = (*last).max(at as u32);
    };
    for (block, (live_in, live_out)) in blocks.iter().zip(live_in.iter().zip(&live_out)) {
        live_in.each(|register| extend(register, block.start));
        live_out.each(|register| extend(register, block.end - 1));
        for at in block.start..block.end {
            let node = &nodes[at];
            node.uses.iter().chain(&node.defs).for_each(|&register| extend(register, at));
        }
    }
    let named = extents.iter().zip(0..).filter(|((first, _), _)| *first != u32::MAX);
    named.map(|(&(first, last), register)| Interval { register, first, last }).collect()
}

/// Instructions that run one after the other.
struct Block {
    start: usize,
    end: usize,
    /// Blocks that may follow.
    next: Vec<usize>,
}

fn blocks(nodes: &[Node]) -> Vec<Block> {
    let mut starts_block = vec![false; nodes.len()];
    for (at, node) in nodes.iter().enumerate() {
        node.targets.iter().for_each(|&target| starts_block[target as usize] = true);
        let ends_block = !node.targets.is_empty() || !node.falls_through;
        starts_block[at] |= at == 0;
        if ends_block && at + 1 < nodes.len() {
            starts_block[at + 1] = true;
        }
    }
    let starts: Vec<usize> = (0..nodes.len()).filter(|&at| starts_block[at]).collect();
    let mut block_at = vec![0; nodes.len()];
    for (block, &start) in starts.iter().enumerate() {
        block_at[start] = block;
    }
    let ends = starts.iter().skip(1).copied().chain([nodes.len()]);
    let block = |(&start, end): (&usize, usize)| {
        let last: &Node = &nodes[end - 1];
        let mut next: Vec<usize> = last.targets.iter().map(|&at| block_at[at as usize]).collect();
        if last.falls_through && end < nodes.len() {
            next.push(block_at[end]);
        }
        Block { start, end, next }
    };
    starts.iter().zip(ends).map(block).collect()
}

/// What is alive at the start and at the end of every block.
fn liveness(nodes: &[Node], blocks: &[Block], registers: usize) -> (Vec<Bits>, Vec<Bits>) {
    let empty = || vec![Bits::new(registers); blocks.len()];
    // Read before it is written in the block; written in whole.
    let (mut exposed, mut killed) = (empty(), empty());
    for (i, block) in blocks.iter().enumerate() {
        for node in nodes[block.start..block.end].iter().rev() {
            if !node.is_partial {
                node.defs.iter().for_each(|&register| exposed[i].remove(register));
                node.defs.iter().for_each(|&register| killed[i].insert(register));
            } else {
                node.defs.iter().for_each(|&register| exposed[i].insert(register));
            }
            node.uses.iter().for_each(|&register| exposed[i].insert(register));
        }
    }
    let (mut live_in, mut live_out) = (exposed, empty());
    let mut changed = true;
    while changed {
        changed = false;
        for i in (0..blocks.len()).rev() {
            for &next in &blocks[i].next {
                live_out[i].union(&live_in[next]);
            }
            changed |= live_in[i].union_except(&live_out[i], &killed[i]);
        }
    }
    (live_in, live_out)
}

/// A set of registers.
#[derive(Clone)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(registers: usize) -> Self {
        Bits(vec![0; registers.div_ceil(64)])
    }

    fn insert(&mut self, register: u32) {
        self.0[register as usize / 64] |= 1 << (register % 64);
    }

    fn remove(&mut self, register: u32) {
        self.0[register as usize / 64] &= !(1 << (register % 64));
    }

    fn union(&mut self, other: &Bits) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    /// Adds what is in `other` and not in `except`; whether that was anything new.
    fn union_except(&mut self, other: &Bits, except: &Bits) -> bool {
        let mut changed = false;
        for (word, (other, except)) in self.0.iter_mut().zip(other.0.iter().zip(&except.0)) {
            let new = *word | other & !except;
            changed |= new != *word;
            *word = new;
        }
        changed
    }

    fn each(&self, mut visit: impl FnMut(u32)) {
        for (i, &word) in self.0.iter().enumerate() {
            let mut word = word;
            while word != 0 {
                visit(i as u32 * 64 + word.trailing_zeros());
                word &= word - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn node(defs: &[u32], uses: &[u32]) -> Node {
        let (defs, uses) = (defs.to_vec(), uses.to_vec());
        Node { uses, defs, falls_through: true, ..Node::default() }
    }

    fn exit() -> Node {
        Node::default()
    }

    fn branch(uses: &[u32], targets: &[u32], falls_through: bool) -> Node {
        let (uses, targets) = (uses.to_vec(), targets.to_vec());
        Node { uses, targets, falls_through, ..Node::default() }
    }

    const ONE: Class = Class::Slots(1);

    #[test]
    fn slots_are_used_again() {
        // r0 = ..; r1 = f(r0); r2 = f(r1); use r2
        let nodes = [node(&[0], &[]), node(&[1], &[0]), node(&[2], &[1]), node(&[], &[2]), exit()];
        let found = allocate(&nodes, &[ONE; 4]);
        assert_eq!((found.places, found.slots), (vec![0, 1, 0, 0], 2));
    }

    #[test]
    fn sizes_are_aligned_and_predicates_apart() {
        let nodes = [node(&[0, 1, 2, 3], &[]), node(&[], &[0, 1, 2, 3]), exit()];
        let classes = [ONE, Class::Slots(2), Class::Predicate, Class::Slots(4)];
        let found = allocate(&nodes, &classes);
        assert_eq!((found.places, found.slots, found.predicates), (vec![0, 2, 0, 4], 8, 1));
    }

    #[test]
    fn sizes_never_share() {
        // r0 = ..; use r0; r1 = ..; use r1, of one slot and of two.
        let nodes = [node(&[0], &[]), node(&[], &[0]), node(&[1], &[]), node(&[], &[1]), exit()];
        assert_eq!(allocate(&nodes, &[ONE, ONE]).slots, 1);
        let found = allocate(&nodes, &[ONE, Class::Slots(2)]);
        assert_eq!((found.places, found.slots), (vec![0, 2], 4));
    }

    #[test]
    fn a_loop_keeps_what_its_next_round_reads() {
        // r0 = ..; r1 = ..; L: r2 = f(r0); use r2; @r1 bra L. Without the loop r0 would end at r2.
        let nodes = [
            node(&[0], &[]),
            node(&[1], &[]),
            node(&[2], &[0]),
            node(&[3], &[2]),
            branch(&[1], &[2], true),
            exit(),
        ];
        let found = allocate(&nodes, &[ONE; 4]);
        let [r0, r1, r2, r3] = found.places[..] else { panic!() };
        assert!(r0 != r1 && ![r2, r3].contains(&r0) && ![r2, r3].contains(&r1) && r2 != r3);
    }

    #[test]
    fn a_partial_write_keeps_the_other_lanes() {
        // r0 = ..; r1 = ..; use r1; @p r0 = ..; use r0
        let mut nodes = vec![
            node(&[0], &[]),
            node(&[1], &[]),
            node(&[], &[1]),
            node(&[0], &[]),
            node(&[], &[0]),
            exit(),
        ];
        assert_eq!(allocate(&nodes, &[ONE; 2]).slots, 2, "an interval has no holes");
        nodes.remove(0);
        assert_eq!(allocate(&nodes, &[ONE; 2]).slots, 1);
        nodes[2].is_partial = true;
        assert_eq!(allocate(&nodes, &[ONE; 2]).slots, 2, "r0 is alive from the start");
    }

    /// Runs random programs with every register in its slot and with a slot for each: both read the
    /// same values.
    #[test]
    fn random_programs_read_what_they_wrote() {
        let mut state = 1u64;
        let mut below = |end: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % end
        };
        for _ in 0..300 {
            let registers = 1 + below(12);
            let classes: Vec<Class> = (0..registers)
                .map(|_| match below(5) {
                    0 => Class::Predicate,
                    1 => Class::Slots(4),
                    2 => Class::Slots(2),
                    _ => ONE,
                })
                .collect();
            let length = 2 + below(40);
            let mut nodes = Vec::new();
            for _ in 0..length {
                let mut list = |most: usize| {
                    let mut list: Vec<u32> =
                        (0..below(most + 1)).map(|_| below(registers) as u32).collect();
                    list.sort();
                    list.dedup();
                    list
                };
                let (uses, defs) = (list(3), list(2));
                let targets = if below(5) == 0 { vec![below(length) as u32] } else { vec![] };
                let falls_through = targets.is_empty() || below(3) > 0;
                nodes.push(Node { uses, defs, is_partial: below(4) == 0, falls_through, targets });
            }
            let found = allocate(&nodes, &classes);
            // Registers of the program, and what the slots hold: the same, where the program may look.
            let mut own = vec![0u64; registers];
            let mut slots = vec![0u64; found.slots as usize];
            let mut predicates = vec![0u64; found.predicates as usize];
            let mut at = 0;
            for step in 1..500 {
                let node = &nodes[at];
                let range = |register: u32| {
                    let place = found.places[register as usize] as usize;
                    match classes[register as usize] {
                        Class::Predicate => (true, place..place + 1),
                        Class::Slots(size) => (false, place..place + size as usize),
                    }
                };
                for &register in &node.uses {
                    let (is_predicate, range) = range(register);
                    let held = if is_predicate { &predicates[range] } else { &slots[range] };
                    assert!(held.iter().all(|&value| value == own[register as usize]));
                }
                if !(node.is_partial && below(2) == 0) {
                    for &register in &node.defs {
                        let (is_predicate, range) = range(register);
                        let held = if is_predicate { &mut predicates } else { &mut slots };
                        own[register as usize] = step;
                        held[range].fill(step);
                    }
                }
                let jumps = !node.targets.is_empty() && (!node.falls_through || below(2) == 0);
                at = if jumps { node.targets[0] as usize } else { at + 1 };
                if at == nodes.len() {
                    break;
                }
            }
        }
    }

    #[test]
    fn five_thousand_instructions_are_quick() {
        let nodes: Vec<Node> = (0..5000u32)
            .map(|i| match i % 50 {
                49 => branch(&[i - 1], &[i - i % 500], true),
                _ => node(&[i], &[i.saturating_sub(1), i.saturating_sub(40), i / 2]),
            })
            .collect();
        let start = Instant::now();
        let found = allocate(&nodes, &vec![ONE; 5000]);
        assert!(found.slots < 5000);
        assert!(start.elapsed().as_secs_f64() < 1.0, "{:?}", start.elapsed());
    }
}
