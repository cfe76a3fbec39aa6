//! Streams, and the events that order them. All events of the program are made here.

use cudarc::driver::result;
use cudarc::driver::sys::{CUevent, CUevent_flags, CUevent_wait_flags, CUstream};

use super::Cuda;
use super::driver::Told;
use crate::error::Result;

/// A queue of work; it lives as long as the process.
pub(super) struct Stream(pub CUstream);

impl Stream {
    /// A stream of the current context that waits for no other, the legacy default one included.
    pub fn new(at: &str) -> Result<Stream> {
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
        Ok(Stream(stream.told(at, "cannot make a stream")?))
    }
}

/// A point in a stream, for another stream or the host to wait for.
pub(super) struct Event {
    event: CUevent,
    cuda: Cuda,
}

// SAFETY: a handle of the driver, which all its threads may use.
unsafe impl Send for Event {}

impl Event {
    /// One that was not recorded yet: waiting for it ends at once.
    pub fn new(cuda: Cuda) -> Result<Event> {
        Self::with_flags(cuda, CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn with_flags(cuda: Cuda, flags: CUevent_flags) -> Result<Event> {
        cuda.bind()?;
        let event = result::event::create(flags).told(cuda, "cannot make an event")?;
        Ok(Event { event, cuda })
    }

    /// Moves it behind all that `stream` holds now.
    pub fn record(&self, stream: CUstream) -> Result<()> {
        self.cuda.bind()?;
        // SAFETY: both live, and belong to this GPU.
        let recorded = unsafe { result::event::record(self.event, stream) };
        recorded.told(self.cuda, "cannot record an event")
    }

    /// Lets what `stream` gets from now on wait for it.
    pub fn holds_back(&self, stream: CUstream) -> Result<()> {
        self.cuda.bind()?;
        let flags = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live, and belong to this GPU.
        let waits = unsafe { result::stream::wait_event(stream, self.event, flags) };
        waits.told(self.cuda, "cannot wait for an event")
    }

    /// Lets the host wait for it.
    pub fn synchronize(&self) -> Result<()> {
        self.cuda.bind()?;
        // SAFETY: the event lives.
        let done = unsafe { result::event::synchronize(self.event) };
        done.told(self.cuda, "waiting for an event")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // A context that cannot be entered any more has lost its events.
        if self.cuda.bind().is_ok() {
            // SAFETY: made in `with_flags`; the driver keeps it until those that wait are done.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

impl Cuda {
    /// Seconds that the compute stream takes for what `work` puts on it.
    pub fn time(self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let [start, end] = [(); 2].map(|()| Self::timer(self));
        let (start, end) = (start?, end?);
        self.on_stream(|compute| start.record(compute))?;
        work()?;
        self.on_stream(|compute| end.record(compute))?;
        end.synchronize()?;
        // SAFETY: both were recorded on one stream, and the later one has passed.
        let milliseconds = unsafe { result::event::elapsed(start.event, end.event) };
        let milliseconds = milliseconds.told(self, "cannot ask the time between two events")?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    fn timer(self) -> Result<Event> {
        Event::with_flags(self, CUevent_flags::CU_EVENT_DEFAULT)
    }
}
