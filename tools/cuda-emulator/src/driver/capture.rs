//! Capture of streams into a graph, and what a program may not do meanwhile.
//!
//! A capture begins in one stream, its origin. A stream that waits for an event recorded in the
//! capture joins it. An operation that conflicts with a capture fails and invalidates the capture:
//! everything in it fails from there on, and so does its end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::{self, ThreadId};

use super::api::{CUevent, CUgraph, CUstream, Out, api, put, put_if_asked, refuse};
use super::error::{CUresult, Done};
use super::event::{EXTERNAL, Recorded};
use super::graph::{Graph, Node};
use super::stream::is_legacy;
use super::table::new_handle;
use super::work::Work;
use super::{Driver, State};

pub(super) struct Capture {
    pub id: u64,
    origin: CUstream,
    mode: Mode,
    thread: ThreadId,
    nodes: Vec<Node>,
    /// For every stream in it: the nodes that its next work waits for.
    streams: BTreeMap<CUstream, Vec<usize>>,
    /// A stream in it waits for the legacy stream.
    is_blocking: bool,
    is_invalid: bool,
}

/// What other calls it forbids: CU_STREAM_CAPTURE_MODE_GLOBAL, _THREAD_LOCAL, _RELAXED.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Global,
    ThreadLocal,
    Relaxed,
}

impl Capture {
    /// The nodes that a stream's next work waits for.
    pub fn frontier(&self, stream: CUstream) -> Vec<usize> {
        self.streams.get(&stream).cloned().unwrap_or_default()
    }

    /// Whether every stream's last work comes before the origin's.
    fn is_joined(&self) -> bool {
        let mut before = vec![false; self.nodes.len()];
        let mut open = self.frontier(self.origin);
        while let Some(node) = open.pop() {
            if !before[node] {
                before[node] = true;
                open.extend(&self.nodes[node].waits_for);
            }
        }
        self.streams.values().flatten().all(|&node| before[node])
    }
}

/// Adds work of a stream to the capture it is in.
pub(super) fn add(state: &mut State, capture: u64, stream: CUstream, work: Work) -> Done {
    let capture = state.captures.get_mut(capture)?;
    let waits_for = capture.frontier(stream);
    capture.streams.insert(stream, vec![capture.nodes.len()]);
    capture.nodes.push(Node { handle: new_handle(), work, waits_for });
    Ok(())
}

/// Makes a stream wait for an event: in a capture that is an edge of the graph.
pub(super) fn wait(driver: &Driver, stream: CUstream, event: CUevent, flags: u32) -> Done {
    let mut state = driver.state();
    let last = state.events.get(event)?.last.clone();
    let ours = state.capture_of(stream)?;
    if flags & !EXTERNAL != 0 || (flags == EXTERNAL && ours.is_none()) {
        return Err(CUresult::INVALID_VALUE);
    }
    match (ours, last) {
        (Some(ours), _) if flags == EXTERNAL => add(&mut state, ours, stream, Work::Wait { event }),
        (Some(ours), Recorded::In { capture, nodes }) if capture == ours => {
            let frontier = state.captures.get_mut(ours)?.streams.entry(stream).or_default();
            frontier.extend(nodes);
            frontier.sort_unstable();
            frontier.dedup();
            Ok(())
        }
        (Some(ours), Recorded::In { capture: theirs, .. })
            if state.captures.get(theirs).is_ok() =>
        {
            state.invalidate_captures(|capture| capture.id == ours || capture.id == theirs);
            let sentence = "a captured stream waits for an event of another capture".into();
            refuse(CUresult::STREAM_CAPTURE_MERGE, sentence)
        }
        (Some(ours), _) => {
            state.invalidate_captures(|capture| capture.id == ours);
            refuse(
                CUresult::STREAM_CAPTURE_ISOLATION,
                "a captured stream waits for an event that was not recorded in its capture".into(),
            )
        }
        (None, Recorded::In { capture: id, nodes }) => {
            let Ok(capture) = state.captures.get(id) else {
                let sentence = "a stream waits for an event that was last recorded in a capture";
                return refuse(CUresult::CAPTURED_EVENT, sentence.into());
            };
            if capture.is_invalid {
                return Err(CUresult::STREAM_CAPTURE_INVALIDATED);
            }
            if is_legacy(stream) {
                state.invalidate_captures(|capture| capture.id == id);
                let sentence = "the legacy stream waits for an event of a capture".into();
                return refuse(CUresult::STREAM_CAPTURE_IMPLICIT, sentence);
            }
            let joining = state.streams.get_mut(stream)?;
            joining.capture = Some(id);
            let is_blocking = joining.is_blocking();
            let capture = state.captures.get_mut(id)?;
            capture.is_blocking |= is_blocking;
            capture.streams.insert(stream, nodes);
            Ok(())
        }
        (None, _) => {
            drop(state);
            driver.submit(stream, Work::Wait { event })
        }
    }
}

impl State {
    /// What a stream is captured into.
    pub fn capture_of(&self, stream: CUstream) -> Result<Option<u64>, CUresult> {
        let Some(id) = self.streams.get(stream)?.capture else { return Ok(None) };
        if self.captures.get(id)?.is_invalid {
            return Err(CUresult::STREAM_CAPTURE_INVALIDATED);
        }
        Ok(Some(id))
    }

    /// Invalidates captures in progress. False when there were none.
    pub fn invalidate_captures(&mut self, concerned: impl Fn(&Capture) -> bool) -> bool {
        let mut any = false;
        for capture in self.captures.values_mut().filter(|capture| concerned(capture)) {
            capture.is_invalid = true;
            any = true;
        }
        any
    }

    /// The legacy stream waits for every blocking stream and they for it, which a capture cannot
    /// express.
    pub fn forbid_implicit_dependency(&mut self, stream: CUstream) -> Done {
        if is_legacy(stream) && self.invalidate_captures(|capture| capture.is_blocking) {
            return refuse(
                CUresult::STREAM_CAPTURE_IMPLICIT,
                "the legacy stream is used, by name or by a synchronous call, while a stream that \
                 waits for it is captured"
                    .into(),
            );
        }
        Ok(())
    }

    /// Calls that may wait for the device are forbidden to the thread that captures, and to all
    /// threads while a capture is global.
    pub fn forbid_unsafe_call(&mut self, what: &str) -> Done {
        let here = thread::current().id();
        let forbids = |capture: &Capture| match capture.mode {
            Mode::Global => true,
            Mode::ThreadLocal => capture.thread == here,
            Mode::Relaxed => false,
        };
        if self.invalidate_captures(forbids) {
            return refuse(
                CUresult::STREAM_CAPTURE_UNSUPPORTED,
                format!("{what} while a stream is captured: call it before or after the capture"),
            );
        }
        Ok(())
    }

    /// [`State::forbid_implicit_dependency`] and [`State::forbid_unsafe_call`]: for a call that
    /// works in the legacy stream and waits for it.
    pub fn forbid_synchronous_call(&mut self, what: &str) -> Done {
        self.forbid_implicit_dependency(0)?;
        self.forbid_unsafe_call(what)
    }
}

/// CU_STREAM_CAPTURE_STATUS_NONE, _ACTIVE, _INVALIDATED
fn status(state: &State, stream: CUstream) -> Result<(u32, u64), CUresult> {
    let Some(id) = state.streams.get(stream)?.capture else { return Ok((0, 0)) };
    Ok((if state.captures.get(id)?.is_invalid { 2 } else { 1 }, id))
}

/// Status and number of the capture for cuStreamIsCapturing and its relatives.
fn put_status(stream: CUstream, out: Out<u32>, id: Out<u64>) -> Done {
    let mut state = Driver::current()?.state();
    if is_legacy(stream) {
        state.forbid_implicit_dependency(stream)?;
    }
    let (status, number) = status(&state, stream)?;
    put_if_asked(id, number);
    put(out, status)
}

api! {
    fn cuStreamBeginCapture_v2(stream: CUstream, mode: u32) {
        let driver = Driver::current()?;
        let mode = match mode {
            0 => Mode::Global,
            1 => Mode::ThreadLocal,
            2 => Mode::Relaxed,
            _ => return Err(CUresult::INVALID_VALUE),
        };
        let mut state = driver.state();
        if is_legacy(stream) {
            let sentence = "the legacy stream cannot be captured; create a stream".into();
            return refuse(CUresult::STREAM_CAPTURE_UNSUPPORTED, sentence);
        }
        let origin = state.streams.get(stream)?;
        if origin.capture.is_some() {
            return Err(CUresult::ILLEGAL_STATE);
        }
        let id = new_handle();
        let capture = Capture {
            id,
            origin: stream,
            mode,
            thread: thread::current().id(),
            nodes: Vec::new(),
            streams: BTreeMap::from([(stream, Vec::new())]),
            is_blocking: origin.is_blocking(),
            is_invalid: false,
        };
        state.captures.insert_at(id, capture);
        state.streams.get_mut(stream)?.capture = Some(id);
        Ok(())
    }

    fn cuStreamEndCapture(stream: CUstream, graph: Out<CUgraph>) {
        let driver = Driver::current()?;
        if graph.is_none() {
            return Err(CUresult::INVALID_VALUE);
        }
        let mut state = driver.state();
        let id = state.streams.get(stream)?.capture.ok_or(CUresult::ILLEGAL_STATE)?;
        let capture = state.captures.get(id)?;
        if capture.origin != stream {
            state.invalidate_captures(|capture| capture.id == id);
            return Err(CUresult::STREAM_CAPTURE_UNMATCHED);
        }
        if capture.mode != Mode::Relaxed && capture.thread != thread::current().id() {
            return Err(CUresult::STREAM_CAPTURE_WRONG_THREAD);
        }
        let capture = state.captures.remove(id)?;
        for stream in capture.streams.keys() {
            state.streams.get_mut(*stream)?.capture = None;
        }
        if capture.is_invalid {
            put(graph, 0)?;
            return Err(CUresult::STREAM_CAPTURE_INVALIDATED);
        }
        if !capture.is_joined() {
            put(graph, 0)?;
            return refuse(
                CUresult::STREAM_CAPTURE_UNJOINED,
                "a stream joined the capture and has work that nothing waits for: let the stream \
                 where the capture began wait for an event recorded after it"
                    .into(),
            );
        }
        put(graph, state.graphs.insert(Graph { nodes: Arc::new(capture.nodes) }))
    }

    fn cuStreamIsCapturing(stream: CUstream, status: Out<u32>) {
        put_status(stream, status, None)
    }

    fn cuStreamGetCaptureInfo(stream: CUstream, status: Out<u32>, id: Out<u64>) {
        put_status(stream, status, id)
    }

    fn cuStreamGetCaptureInfo_v2(
        stream: CUstream,
        status: Out<u32>,
        id: Out<u64>,
        graph: Out<CUgraph>,
        dependencies: Out<*const u64>,
        dependency_count: Out<usize>,
    ) {
        if graph.is_some() || dependencies.is_some() || dependency_count.is_some() {
            let sentence = "cuStreamGetCaptureInfo: the graph of a capture in progress".into();
            return refuse(CUresult::NOT_SUPPORTED, sentence);
        }
        put_status(stream, status, id)
    }
}
