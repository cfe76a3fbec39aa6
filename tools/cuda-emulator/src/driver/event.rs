//! Events: points in the order of work, with a time.

use std::time::Instant;

use super::api::{CUevent, CUstream, Out, api, put, refuse};
use super::deferred::Awaited;
use super::error::CUresult;
use super::work::Work;
use super::{Driver, State, capture};

pub struct Event {
    flags: u32,
    pub last: Recorded,
}

/// Where an event was last recorded.
#[derive(Clone)]
pub enum Recorded {
    Never,
    At(Instant),
    /// At a task that is queued.
    Queued(u64),
    /// In a capture: what a wait for it has to wait for.
    In {
        capture: u64,
        nodes: Vec<usize>,
    },
}

/// CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING
const KNOWN: u32 = 1 | DISABLE_TIMING;
const DISABLE_TIMING: u32 = 2;
/// CU_EVENT_RECORD_EXTERNAL, CU_EVENT_WAIT_EXTERNAL: a node of its own in the graph.
pub const EXTERNAL: u32 = 1;

fn record(stream: CUstream, event: CUevent, flags: u32) -> Result<(), CUresult> {
    let driver = Driver::current()?;
    if flags & !EXTERNAL != 0 {
        return Err(CUresult::INVALID_VALUE);
    }
    let mut state = driver.state();
    state.events.get(event)?;
    let capture = state.capture_of(stream)?;
    match capture {
        Some(capture) if flags & EXTERNAL == 0 => {
            let nodes = state.captures.get(capture)?.frontier(stream);
            state.events.get_mut(event)?.last = Recorded::In { capture, nodes };
            Ok(())
        }
        Some(capture) => capture::add(&mut state, capture, stream, Work::Record { event }),
        None if flags & EXTERNAL != 0 => Err(CUresult::INVALID_VALUE),
        None => {
            drop(state);
            driver.submit(stream, Work::Record { event })
        }
    }
}

impl State {
    /// Fails when the host asks whether an event happened that it cannot ask for.
    fn forbid_asking_for(&mut self, event: CUevent, what: &str) -> Result<(), CUresult> {
        if let Recorded::In { capture: id, .. } = self.events.get(event)?.last {
            self.invalidate_captures(|capture| capture.id == id);
            let sentence = format!("{what} of an event that was last recorded in a capture");
            return refuse(CUresult::CAPTURED_EVENT, sentence);
        }
        self.forbid_unsafe_call(what)
    }
}

fn elapsed(milliseconds: Out<f32>, start: CUevent, end: CUevent) -> Result<(), CUresult> {
    let state = Driver::current()?.state();
    let time = |event| match state.events.get(event)? {
        Event { flags, .. } if flags & DISABLE_TIMING != 0 => Err(CUresult::INVALID_HANDLE),
        Event { last: Recorded::At(time), .. } => Ok(*time),
        Event { last: Recorded::Queued(_), .. } => Err(CUresult::NOT_READY),
        Event { last: Recorded::Never, .. } => Err(CUresult::INVALID_HANDLE),
        Event { last: Recorded::In { .. }, .. } => Err(CUresult::CAPTURED_EVENT),
    };
    let (start, end) = (time(start)?, time(end)?);
    let seconds = match end.checked_duration_since(start) {
        Some(after) => after.as_secs_f32(),
        None => -start.duration_since(end).as_secs_f32(),
    };
    put(milliseconds, seconds * 1e3)
}

api! {
    fn cuEventCreate(event: Out<CUevent>, flags: u32) {
        let driver = Driver::current()?;
        if event.is_none() || flags & !KNOWN != 0 {
            return Err(CUresult::INVALID_VALUE);
        }
        put(event, driver.state().events.insert(Event { flags, last: Recorded::Never }))
    }

    fn cuEventDestroy_v2(event: CUevent) {
        Driver::current()?.state().events.remove(event).map(|_| ())
    }

    fn cuEventRecord(event: CUevent, stream: CUstream) {
        record(stream, event, 0)
    }

    fn cuEventRecordWithFlags(event: CUevent, stream: CUstream, flags: u32) {
        record(stream, event, flags)
    }

    fn cuEventQuery(event: CUevent) {
        let driver = Driver::current()?;
        driver.state().forbid_asking_for(event, "cuEventQuery")?;
        driver.query(Awaited::Event(event))
    }

    fn cuEventSynchronize(event: CUevent) {
        let driver = Driver::current()?;
        driver.state().forbid_asking_for(event, "cuEventSynchronize")?;
        driver.wait(Awaited::Event(event))
    }

    fn cuEventElapsedTime(milliseconds: Out<f32>, start: CUevent, end: CUevent) {
        elapsed(milliseconds, start, end)
    }

    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: CUevent, end: CUevent) {
        elapsed(milliseconds, start, end)
    }
}
