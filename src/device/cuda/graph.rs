//! A sequence of launches, recorded once and replayed: one call of the driver instead of hundreds.

use std::sync::PoisonError;

use cudarc::driver::result::{self, stream};
use cudarc::driver::sys::{CUgraph, CUgraphExec, CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::driver::Told;
use super::{Cuda, RECORDING};
use crate::error::{Error, Result};

/// Work of the compute stream, ready to be replayed with the very arguments and addresses that were
/// recorded. Buffers it touches must outlive it: it would write what then lies there, on the GPU,
/// never on the host.
pub struct Graph {
    graph: CUgraphExec,
    cuda: Cuda,
}

// SAFETY: a handle that one thread at a time uses; it is not Sync.
unsafe impl Send for Graph {}

impl Cuda {
    /// Records what `record` puts on the compute stream from this thread, and does none of it;
    /// meanwhile other threads wait with theirs. What the host waits for (allocations, uploads,
    /// `synchronize`) cannot be recorded.
    ///
    /// Errors: those of `record`; something that cannot be recorded. The stream is then as before.
    pub fn capture(self, record: impl FnOnce() -> Result<()>) -> Result<Graph> {
        if RECORDING.get().is_some() {
            let message = format!("{self}: a capture inside a capture; record one after the other");
            return Err(Error::Device(message));
        }
        self.bind()?;
        let _others_wait = self.0.recording.write().unwrap_or_else(PoisonError::into_inner);
        let recording = Recording::begin(self)?;
        let recorded = record();
        let graph = recording.end();
        recorded?;
        let graph = graph?;
        // SAFETY: the graph just recorded.
        let graph = unsafe { result::graph::instantiate(graph.0, CUgraphInstantiate_flags(0)) };
        Ok(Graph {
            graph: graph.told(self, "cannot make a graph of what was recorded")?,
            cuda: self,
        })
    }
}

impl Graph {
    /// Puts the recorded work on the compute stream.
    pub fn launch(&self) -> Result<()> {
        self.cuda.work("launching a graph", |stream| {
            // SAFETY: both live; what the graph touches does too, as whoever recorded it promised.
            unsafe { result::graph::launch(self.graph, stream) }
        })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.cuda.bind().is_ok() {
            // SAFETY: made in `capture`; the driver keeps it until its launches are done.
            let _ = unsafe { result::graph::exec_destroy(self.graph) };
        }
    }
}

/// The compute stream while it records; ends with it, also by a panic.
struct Recording(Cuda);

impl Recording {
    fn begin(cuda: Cuda) -> Result<Recording> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as the process.
        let begun = unsafe { stream::begin_capture(cuda.0.compute.0, mode) };
        begun.told(cuda, "cannot begin a capture")?;
        RECORDING.set(Some(cuda));
        Ok(Recording(cuda))
    }

    fn end(self) -> Result<Recorded> {
        let cuda = self.0;
        std::mem::forget(self);
        end(cuda)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = end(self.0);
    }
}

fn end(cuda: Cuda) -> Result<Recorded> {
    RECORDING.set(None);
    // SAFETY: the stream records; it lives as long as the process.
    let ended = unsafe { stream::end_capture(cuda.0.compute.0) };
    let what = "something that cannot be recorded was put on the stream of a capture";
    ended.told(cuda, what).map(Recorded)
}

/// A graph that is not ready to run.
struct Recorded(CUgraph);

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: from `Recording::end`, used by nobody else.
        let _ = unsafe { result::graph::destroy(self.0) };
    }
}
