//! Streams. Their work runs inside the call that submits it, or is queued: see `deferred`.

use super::api::{CUcontext, CUevent, CUstream, Out, api, put, refuse};
use super::deferred::Awaited;
use super::error::CUresult;
use super::table::Table;
use super::work::{HostFunction, Work};
use super::{Driver, State, capture, context};

pub struct Stream {
    pub flags: u32,
    pub priority: i32,
    /// What it is captured into.
    pub capture: Option<u64>,
}

/// CU_STREAM_NON_BLOCKING: does not wait for the legacy stream, nor that for it.
const NON_BLOCKING: u32 = 1;
/// CU_STREAM_LEGACY, also known as 0.
const LEGACY: CUstream = 1;
/// CU_STREAM_PER_THREAD. Here all threads share it.
const PER_THREAD: CUstream = 2;

pub const LEAST_PRIORITY: i32 = 0;
pub const GREATEST_PRIORITY: i32 = -5;

impl Stream {
    fn new(flags: u32, priority: i32) -> Self {
        Stream { flags, priority, capture: None }
    }

    pub fn is_blocking(&self) -> bool {
        self.flags & NON_BLOCKING == 0
    }
}

pub fn is_legacy(stream: CUstream) -> bool {
    stream <= LEGACY
}

/// The streams that need no creation.
pub fn built_in() -> Table<Stream> {
    let mut table = Table::default();
    for handle in [0, LEGACY, PER_THREAD] {
        table.insert_at(handle, Stream::new(0, LEAST_PRIORITY));
    }
    table
}

fn create(stream: Out<CUstream>, flags: u32, priority: i32) -> Result<(), CUresult> {
    let driver = Driver::current()?;
    if stream.is_none() || flags & !NON_BLOCKING != 0 {
        return Err(CUresult::INVALID_VALUE);
    }
    let priority = priority.clamp(GREATEST_PRIORITY, LEAST_PRIORITY);
    put(stream, driver.state().streams.insert(Stream::new(flags, priority)))
}

impl State {
    /// Fails, and ends the capture's chances, when the host asks a stream that is captured how far
    /// it is.
    fn forbid_waiting_for(&mut self, stream: CUstream, what: &str) -> Result<(), CUresult> {
        if let Some(id) = self.streams.get(stream)?.capture {
            self.invalidate_captures(|capture| capture.id == id);
            return refuse(
                CUresult::STREAM_CAPTURE_UNSUPPORTED,
                format!("{what} of a stream that is captured"),
            );
        }
        self.forbid_implicit_dependency(stream)
    }
}

api! {
    fn cuStreamCreate(stream: Out<CUstream>, flags: u32) {
        create(stream, flags, LEAST_PRIORITY)
    }

    fn cuStreamCreateWithPriority(stream: Out<CUstream>, flags: u32, priority: i32) {
        create(stream, flags, priority)
    }

    fn cuStreamDestroy_v2(stream: CUstream) {
        let driver = Driver::current()?;
        if stream <= PER_THREAD {
            return Err(CUresult::INVALID_HANDLE);
        }
        let mut state = driver.state();
        state.forbid_waiting_for(stream, "cuStreamDestroy")?;
        state.streams.remove(stream).map(|_| ())
    }

    fn cuStreamSynchronize(stream: CUstream) {
        let driver = Driver::current()?;
        driver.state().forbid_waiting_for(stream, "cuStreamSynchronize")?;
        driver.wait(Awaited::Stream(stream))
    }

    fn cuStreamQuery(stream: CUstream) {
        let driver = Driver::current()?;
        driver.state().forbid_waiting_for(stream, "cuStreamQuery")?;
        driver.query(Awaited::Stream(stream))
    }

    fn cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: u32) {
        capture::wait(Driver::current()?, stream, event, flags)
    }

    fn cuStreamGetFlags(stream: CUstream, flags: Out<u32>) {
        put(flags, Driver::current()?.state().streams.get(stream)?.flags)
    }

    fn cuStreamGetPriority(stream: CUstream, priority: Out<i32>) {
        put(priority, Driver::current()?.state().streams.get(stream)?.priority)
    }

    fn cuStreamGetCtx(stream: CUstream, context: Out<CUcontext>) {
        let driver = Driver::current()?;
        driver.state().streams.get(stream)?;
        put(context, context::top())
    }

    fn cuLaunchHostFunc(
        stream: CUstream,
        function: Option<unsafe extern "C" fn(*mut std::ffi::c_void)>,
        data: *mut std::ffi::c_void,
    ) {
        let function = function.ok_or(CUresult::INVALID_VALUE)?;
        let function = HostFunction { function, data: data as usize };
        Driver::current()?.submit(stream, Work::Host(function))
    }
}
