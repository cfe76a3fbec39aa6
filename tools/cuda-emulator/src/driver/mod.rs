//! The CUDA driver's C functions, over the interpreter.
//!
//! There is one device, one context (the primary one) and one state for the process. Work runs inside
//! the call that submits it, unless its stream is being captured into a graph, or work is to be deferred (`deferred`).

pub mod api;
mod attributes;
pub mod blas;
pub mod capture;
pub mod context;
pub mod copy;
mod deferred;
pub mod device;
pub mod error;
pub mod event;
pub mod graph;
pub mod launch;
pub mod launched;
pub mod memory;
pub mod module;
mod queue;
mod replacement;
mod settings;
pub mod stream;
pub mod symbols;
mod table;
mod work;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use crate::exec::{self, Options};
use crate::memory::{Memory, WINDOW};
use api::{Out, api, may_call, put, refuse};
use capture::Capture;
use context::Context;
use error::{CUresult, Done};
use event::Event;
use graph::Graph;
use memory::Pinned;
use module::Function;
use queue::Queue;
use settings::{Settings, settings};
use stream::Stream;
use table::Table;
use work::Work;

/// The driver of the process, from cuInit on.
pub struct Driver {
    memory: Memory,
    settings: &'static Settings,
    state: Mutex<State>,
    /// Held while work runs, so that the device does one thing at a time. Taken before `state`,
    /// never while holding it.
    execution: Mutex<()>,
    /// How many there were.
    launches: AtomicU64,
}

/// Everything that has a handle.
#[derive(Default)]
struct State {
    context: Option<Context>,
    /// Device memory of the program: address and bytes.
    allocations: BTreeMap<u64, usize>,
    /// Page-locked host memory, by address.
    pinned: BTreeMap<u64, Pinned>,
    streams: Table<Stream>,
    events: Table<Event>,
    modules: Table<exec::Module>,
    functions: Table<Function>,
    graphs: Table<Graph>,
    /// Graphs ready to run.
    executables: Table<Graph>,
    captures: Table<Capture>,
    queue: Queue,
    /// Bytes copied to the host although nobody had written them.
    uninitialised: u64,
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

impl Driver {
    /// The driver, once cuInit ran.
    fn get() -> Result<&'static Driver, CUresult> {
        may_call()?;
        DRIVER.get().ok_or(CUresult::NOT_INITIALIZED)
    }

    /// The driver, when this thread has a context that lives.
    fn current() -> Result<&'static Driver, CUresult> {
        let driver = Driver::get()?;
        context::check_current(&driver.state())?;
        Ok(driver)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits for work that another thread submitted, and keeps new work out.
    fn execution(&self) -> MutexGuard<'_, ()> {
        self.execution.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// How the next launch is run.
    fn options(&self) -> Options {
        let &Settings { checked, threads, schedules, .. } = self.settings;
        let launch = self.launches.fetch_add(1, Ordering::Relaxed);
        let counts_first = launched::is_recording();
        Options { checked, counts_first, threads, schedule: schedules.of_launch(launch) }
    }

    /// Runs work now, or queues it, or adds it to the graph that its stream is captured into.
    fn submit(&self, stream: u64, work: Work) -> Done {
        let mut state = self.state();
        if let Some(capture) = state.capture_of(stream)? {
            return capture::add(&mut state, capture, stream, work);
        }
        state.forbid_implicit_dependency(stream)?;
        if self.settings.deferred.is_some() {
            work.check(self)?;
            return state.enqueue(stream, work);
        }
        drop(state);
        let _execution = self.execution();
        work.run(self)
    }
}

/// Addresses are never used twice, so there are many times as many of them as bytes.
const ADDRESSES_PER_BYTE: usize = 64;

fn initialise() -> Result<Driver, String> {
    let settings = settings().as_ref().map_err(String::clone)?;
    let most = settings.memory.saturating_mul(ADDRESSES_PER_BYTE).min(WINDOW as usize);
    let mut bytes = most;
    let memory = loop {
        match Memory::new(bytes) {
            Ok(memory) => break memory,
            Err(error) if bytes / 2 < settings.memory => {
                return Err(format!("{bytes} bytes of addresses for device memory: {error}"));
            }
            Err(_) => bytes /= 2,
        }
    };
    if !settings.quiet {
        let checks = if settings.checked { "on" } else { "off" };
        let streams = settings.deferred.map(|seed| format!(", streams deferred:{seed}"));
        let streams = streams.unwrap_or_default();
        eprintln!(
            "cuda-emulator: the CUDA driver of this process is the emulator: sm_80, version {}.{}, \
             checks {checks}, {} MiB, {} threads{streams}",
            settings.driver_version / 1000,
            settings.driver_version % 1000 / 10,
            settings.memory >> 20,
            settings.threads,
        );
    }
    let state = Mutex::new(State { streams: stream::built_in(), ..State::default() });
    let (execution, launches) = Default::default();
    Ok(Driver { memory, settings, state, execution, launches })
}

api! {
    fn cuInit(flags: u32) {
        if flags != 0 {
            return Err(CUresult::INVALID_VALUE);
        }
        static ONCE: Mutex<()> = Mutex::new(());
        let _once = ONCE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if DRIVER.get().is_none() {
            let driver = initialise().or_else(|sentence| refuse(CUresult::NO_DEVICE, sentence))?;
            DRIVER.get_or_init(|| driver);
        }
        Ok(())
    }

    fn cuDriverGetVersion(version: Out<i32>) {
        put(version, settings().as_ref().map_or(0, |settings| settings.driver_version))
    }

    fn cuProfilerStart() {
        Driver::get().map(|_| ())
    }

    fn cuProfilerStop() {
        Driver::get().map(|_| ())
    }
}
