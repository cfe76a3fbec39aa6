//! `CUDA_EMULATOR_STREAMS=deferred`: work waits until the host waits for it, and runs in a random order of those that
//! streams and events allow.
//!
//! A task waits for the one before it in its stream, for those whose events its stream waits for, and by the
//! rules of the legacy stream; nodes of a graph for those that the capture ordered before them. When the
//! host waits for some tasks, they and all before them run, and half of the times others among them. Who is
//! ready goes by a random rank: of its stream, so that one stream may run far ahead of another, or its own.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::mem::take;
use std::sync::{Arc, TryLockError};
use std::time::Instant;

use super::api::{CUevent, CUstream, last_report, refuse};
use super::error::{CUresult, Done};
use super::event::Recorded;
use super::graph::Node;
use super::stream::is_legacy;
use super::work::Work;
use super::{Driver, State};

/// Work that was submitted and has not run.
#[derive(Default)]
pub struct Queue {
    /// By the order of submission.
    tasks: BTreeMap<u64, Task>,
    /// The last task of each stream; of those that are done, the numbers may be left.
    last: BTreeMap<CUstream, u64>,
    /// The last launch of each graph, by the address of its nodes.
    launches: BTreeMap<usize, u64>,
    /// Tasks so far.
    count: u64,
    /// Times that the host waited.
    waits: u64,
    /// What went wrong, until a call that waits for work has told it.
    fault: Option<(CUresult, String)>,
}

struct Task {
    work: Submitted,
    stream: CUstream,
    /// The legacy stream waits for it.
    is_blocking: bool,
    waits_for: Vec<u64>,
}

/// Work of a stream, or a node of a graph that was launched in it.
enum Submitted {
    Work(Work),
    Node(Arc<Vec<Node>>, usize),
}

impl Submitted {
    fn work(&self) -> &Work {
        match self {
            Submitted::Work(work) => work,
            Submitted::Node(nodes, number) => &nodes[*number].work,
        }
    }
}

impl Queue {
    fn is_pending(&self, task: u64) -> bool {
        self.tasks.contains_key(&task)
    }

    /// What the next task of a stream waits for. The legacy stream and blocking streams wait for each other.
    fn before(&self, stream: CUstream, is_blocking: bool) -> Vec<u64> {
        let is_before = |other: CUstream, task: u64| {
            let Some(task) = self.tasks.get(&task) else { return false };
            let is_implicit =
                is_legacy(stream) && task.is_blocking || is_blocking && is_legacy(other);
            other == stream || is_implicit
        };
        let last = self.last.iter().map(|(&other, &task)| (other, task));
        last.filter(|&(other, task)| is_before(other, task)).map(|(_, task)| task).collect()
    }

    fn push(&mut self, task: Task) -> u64 {
        let number = self.count;
        self.count += 1;
        self.last.insert(task.stream, number);
        self.tasks.insert(number, task);
        number
    }

    /// An order in which tasks can run, up to the last of those that are wanted and what they wait for.
    fn order(&mut self, wanted: &[u64], seed: u64) -> Vec<u64> {
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
    fn check(&self) -> Done {
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

impl State {
    /// Puts work into a stream.
    pub fn enqueue(&mut self, stream: CUstream, work: Work) -> Done {
        self.queue.check()?;
        let is_blocking = self.streams.get(stream)?.is_blocking();
        let stream = if is_legacy(stream) { 0 } else { stream };
        let mut waits_for = self.queue.before(stream, is_blocking);
        match work {
            Work::Graph(nodes) => {
                // The manual: a launch comes after all earlier ones of its graph.
                let graph = Arc::as_ptr(&nodes).addr();
                waits_for.extend(self.queue.launches.get(&graph));
                let end = self.enqueue_nodes(&nodes, stream, is_blocking, waits_for)?;
                self.queue.launches.insert(graph, end);
            }
            work => {
                let work = Submitted::Work(work);
                self.enqueue_task(Task { work, stream, is_blocking, waits_for })?;
            }
        }
        Ok(())
    }

    /// The nodes of a graph as tasks of their own, and one at its end that waits for them all.
    fn enqueue_nodes(
        &mut self,
        nodes: &Arc<Vec<Node>>,
        stream: CUstream,
        is_blocking: bool,
        before: Vec<u64>,
    ) -> Result<u64, CUresult> {
        let mut tasks: Vec<u64> = Vec::new();
        for (i, node) in nodes.iter().enumerate() {
            let mut waits_for: Vec<u64> = node.waits_for.iter().map(|&node| tasks[node]).collect();
            waits_for.extend(&before);
            tasks.push(match &node.work {
                Work::Graph(inner) => self.enqueue_nodes(inner, stream, is_blocking, waits_for)?,
                _ => {
                    let work = Submitted::Node(Arc::clone(nodes), i);
                    self.enqueue_task(Task { work, stream, is_blocking, waits_for })?
                }
            });
        }
        let waits_for = [tasks, before].concat();
        let work = Submitted::Work(Work::Nothing);
        self.enqueue_task(Task { work, stream, is_blocking, waits_for })
    }

    fn enqueue_task(&mut self, mut task: Task) -> Result<u64, CUresult> {
        if let Work::Wait { event } = *task.work.work() {
            task.waits_for.extend(self.pending_record(event)?);
        }
        let records = match *task.work.work() {
            Work::Record { event } => Some(event),
            _ => None,
        };
        let number = self.queue.push(task);
        if let Some(event) = records {
            self.events.get_mut(event)?.last = Recorded::Queued(number);
        }
        Ok(number)
    }

    /// The task that an event happens at, if it has not happened.
    fn pending_record(&self, event: CUevent) -> Result<Option<u64>, CUresult> {
        Ok(match self.events.get(event)?.last {
            Recorded::Queued(task) => Some(task).filter(|&task| self.queue.is_pending(task)),
            _ => None,
        })
    }

    /// The event of a record that ran, unless it was recorded anew since, or destroyed.
    fn happen(&mut self, event: CUevent, task: u64) {
        if let Ok(event) = self.events.get_mut(event)
            && matches!(event.last, Recorded::Queued(last) if last == task)
        {
            event.last = Recorded::At(Instant::now());
        }
    }
}

/// What a call waits for.
#[derive(Clone, Copy)]
pub enum Awaited {
    Stream(CUstream),
    Event(CUevent),
    Everything,
}

impl Driver {
    /// Waits for work: that of other threads that runs, and what is queued. Tells what went wrong in any of it since
    /// the last time.
    pub(super) fn wait(&self, awaited: Awaited) -> Done {
        let _execution = self.execution();
        let done = self.run_queued(awaited, usize::MAX);
        self.state().queue.fault = None;
        done
    }

    /// Lets all work end before what it may use is taken away. What goes wrong is told here, and once more by
    /// the next call that waits.
    pub(super) fn drain(&self) -> Done {
        let _execution = self.execution();
        self.run_queued(Awaited::Everything, usize::MAX)
    }

    /// Whether work is done. If not, a task of it runs, so that asking again and again comes to an end.
    pub(super) fn query(&self, awaited: Awaited) -> Done {
        let _execution = match self.execution.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(CUresult::NOT_READY),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Ok(execution) => execution,
        };
        let is_done = self.state().awaited(awaited)?.is_empty();
        if is_done {
            let check = self.state().queue.check();
            self.state().queue.fault = None;
            return check;
        }
        self.run_queued(awaited, 1)?;
        Err(CUresult::NOT_READY)
    }

    /// Runs what is awaited, and at most so many tasks. The caller holds `execution`.
    fn run_queued(&self, awaited: Awaited, most: usize) -> Done {
        let Some(seed) = self.settings.deferred else { return Ok(()) };
        let mut state = self.state();
        let wanted = state.awaited(awaited)?;
        let order = state.queue.order(&wanted, seed);
        drop(state);
        for number in order.into_iter().take(most) {
            let task = self.state().queue.tasks.remove(&number);
            let done = match task.as_ref().map(|task| task.work.work()) {
                Some(&Work::Record { event }) => {
                    self.state().happen(event, number);
                    Ok(())
                }
                Some(work) => work.run(self),
                None => Ok(()),
            };
            if let Err(code) = done {
                self.abandon(code);
                return Err(code);
            }
        }
        self.state().queue.check()
    }

    /// After a fault nothing that is queued runs any more, and all events happen.
    fn abandon(&self, code: CUresult) {
        let mut state = self.state();
        state.queue.fault = Some((code, last_report()));
        let lost = take(&mut state.queue.tasks);
        for (&number, task) in &lost {
            if let Work::Record { event } = *task.work.work() {
                state.happen(event, number);
            }
        }
        // What ends with its work calls other libraries.
        drop(state);
        drop(lost);
    }
}

impl State {
    /// The tasks that a call waits for and that have not run.
    fn awaited(&self, awaited: Awaited) -> Result<Vec<u64>, CUresult> {
        Ok(match awaited {
            Awaited::Stream(stream) => {
                let stream = if is_legacy(stream) { 0 } else { stream };
                self.queue.before(stream, false)
            }
            Awaited::Event(event) => self.pending_record(event)?.into_iter().collect(),
            Awaited::Everything => self.queue.tasks.keys().copied().collect(),
        })
    }
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
