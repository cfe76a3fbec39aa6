//! Work that waits to run, and the orders in which it may.
//!
//! A task waits for the one before it in its stream, for those whose events its stream waits for, and by the
//! rules of the legacy stream; nodes of a graph for those that the capture ordered before them. When the
//! host waits for some tasks, they and all before them run, and half of the times others among them. Who is
//! ready goes by a random rank: of its stream, so that one stream may run far ahead of another, or its own.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use super::api::{CUstream, refuse};
use super::error::{CUresult, Done};
use super::graph::Node;
use super::stream::is_legacy;
use super::work::Work;

/// Work that was submitted and has not run.
#[derive(Default)]
pub struct Queue {
    /// By the order of submission.
    pub tasks: BTreeMap<u64, Task>,
    /// The last task of each stream; of those that are done, the numbers may be left.
    last: BTreeMap<CUstream, u64>,
    /// The last launch of each graph, by the address of its nodes.
    pub launches: BTreeMap<usize, u64>,
    /// Tasks so far.
    count: u64,
    /// Times that the host waited.
    waits: u64,
    /// What went wrong, until a call that waits for work has told it.
    pub fault: Option<(CUresult, String)>,
}

pub struct Task {
    pub work: Submitted,
    pub stream: CUstream,
    /// The legacy stream waits for it.
    pub is_blocking: bool,
    pub waits_for: Vec<u64>,
}

/// Work of a stream, or a node of a graph that was launched in it.
pub enum Submitted {
    Work(Work),
    Node(Arc<Vec<Node>>, usize),
}

impl Submitted {
    pub fn work(&self) -> &Work {
        match self {
            Submitted::Work(work) => work,
            Submitted::Node(nodes, number) => &nodes[*number].work,
        }
    }
}

impl Queue {
    pub fn is_pending(&self, task: u64) -> bool {
        self.tasks.contains_key(&task)
    }

    /// What the next task of a stream waits for. The legacy stream and blocking streams wait for each other.
    pub fn before(&self, stream: CUstream, is_blocking: bool) -> Vec<u64> {
        let is_before = |other: CUstream, task: u64| {
            let Some(task) = self.tasks.get(&task) else { return false };
            let is_implicit =
                is_legacy(stream) && task.is_blocking || is_blocking && is_legacy(other);
            other == stream || is_implicit
        };
        let last = self.last.iter().map(|(&other, &task)| (other, task));
        last.filter(|&(other, task)| is_before(other, task)).map(|(_, task)| task).collect()
    }

    pub fn push(&mut self, task: Task) -> u64 {
        let number = self.count;
        self.count += 1;
        self.last.insert(task.stream, number);
        self.tasks.insert(number, task);
        number
    }

    /// An order in which tasks can run, up to the last of those that are wanted and what they wait for.
    pub fn order(&mut self, wanted: &[u64], seed: u64) -> Vec<u64> {
        let seed = mix(seed, self.waits);
        self.waits += 1;
        let (runs_others, by_stream) = (seed & 1 != 0, seed & 2 != 0);
        let mut needed = BTreeSet::new();
        let mut open: Vec<u64> =
            wanted.iter().copied().filter(|&task| self.is_pending(task)).collect();
        while let Some(number) = open.pop() {
            if needed.insert(number) {
                open.extend(self.pending_before(&self.tasks[&number]));
            }
        }
        let rank = |number: u64| {
            let stream = if by_stream { mix(seed, !self.tasks[&number].stream) } else { 0 };
            (stream, mix(seed, number), number)
        };
        let (mut ready, mut blocked) = (BinaryHeap::new(), BTreeMap::new());
        let mut followers: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (&number, task) in &self.tasks {
            if !runs_others && !needed.contains(&number) {
                continue;
            }
            let before = self.pending_before(task);
            before.iter().for_each(|&other| followers.entry(other).or_default().push(number));
            match before.len() {
                0 => ready.push(rank(number)),
                count => drop(blocked.insert(number, count)),
            }
        }
        let mut order = Vec::new();
        while !needed.is_empty()
            && let Some((.., number)) = ready.pop()
        {
            order.push(number);
            needed.remove(&number);
            for follower in followers.remove(&number).unwrap_or_default() {
                let count = blocked.entry(follower).or_insert(1);
                *count -= 1;
                if *count == 0 {
                    ready.push(rank(follower));
                }
            }
        }
        order
    }

    /// What a task still waits for, each once.
    fn pending_before(&self, task: &Task) -> BTreeSet<u64> {
        task.waits_for.iter().copied().filter(|&number| self.is_pending(number)).collect()
    }

    /// Fails when work went wrong and nobody was told yet.
    pub fn check(&self) -> Done {
        match &self.fault {
            Some((code, sentence)) => refuse(*code, sentence.clone()),
            None => Ok(()),
        }
    }
}

/// A random number for each pair: SplitMix64's step and mixture.
fn mix(seed: u64, number: u64) -> u64 {
    let x = seed ^ number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(queue: &mut Queue, stream: CUstream, waits_for: &[u64]) -> u64 {
        let mut waits_for = waits_for.to_vec();
        waits_for.extend(queue.before(stream, false));
        let work = Submitted::Work(Work::Nothing);
        queue.push(Task { work, stream, is_blocking: false, waits_for })
    }

    /// Two streams of three tasks, and one whose second task waits for the first stream's second.
    fn queue() -> Queue {
        let mut queue = Queue::default();
        for (stream, waits_for) in
            [(10, None), (10, None), (20, None), (10, None), (20, Some(1)), (30, None)]
        {
            push(&mut queue, stream, &waits_for.map_or(vec![], |task| vec![task]));
        }
        queue
    }

    #[test]
    fn every_order_is_one_that_is_allowed() {
        let mut orders = BTreeSet::new();
        for seed in 0..200 {
            let order = queue().order(&[3, 4, 5], seed);
            let at = |task: u64| order.iter().position(|&other| other == task).unwrap();
            for (first, second) in [(0, 1), (1, 3), (2, 4), (1, 4)] {
                assert!(at(first) < at(second), "{order:?}");
            }
            assert_eq!(order.len(), 6);
            assert_eq!(order, queue().order(&[3, 4, 5], seed), "the same for a seed");
            orders.insert(order);
        }
        assert!(orders.len() > 20, "{} orders", orders.len());
    }

    #[test]
    fn what_nobody_waits_for_runs_now_and_then() {
        let mut lengths = BTreeSet::new();
        for seed in 0..50 {
            let order = queue().order(&[1], seed);
            let needed: Vec<u64> = order.iter().copied().filter(|&task| task < 2).collect();
            assert_eq!((needed, order.last()), (vec![0, 1], Some(&1)));
            lengths.insert(order.len());
        }
        assert_eq!(lengths, BTreeSet::from([2, 3, 4]), "0, 1, and perhaps 2 and 5");
        assert_eq!(queue().order(&[], 1), []);
    }

    #[test]
    fn the_legacy_stream_and_blocking_ones_wait_for_each_other() {
        let mut queue = Queue::default();
        let mut push = |stream, is_blocking| {
            let waits_for = queue.before(stream, is_blocking);
            let work = Submitted::Work(Work::Nothing);
            queue.push(Task { work, stream, is_blocking, waits_for: waits_for.clone() });
            waits_for
        };
        assert_eq!(push(10, true), []);
        assert_eq!(push(20, false), []);
        assert_eq!(push(0, true), [0]);
        assert_eq!(push(20, false), [1]);
        assert_eq!(push(30, true), [2]);
        assert_eq!(push(10, true), [2, 0]);
    }
}
