//! `CUDA_EMULATOR_STREAMS=deferred`: work goes into the queue, and runs when the host waits for it.

use std::mem::take;
use std::sync::{Arc, TryLockError};
use std::time::Instant;

use super::api::{CUevent, CUstream, last_report};
use super::error::{CUresult, Done};
use super::event::Recorded;
use super::graph::Node;
use super::queue::{Submitted, Task};
use super::stream::is_legacy;
use super::work::Work;
use super::{Driver, State};

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
