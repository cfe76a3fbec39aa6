//! NVIDIA GPUs, through the driver API: cudarc's `result` and `sys` level, none of its safe layer.
//!
//! [`Cuda`] is a GPU opened for the life of the process, with two streams: all work is put on the
//! compute stream in order, [`Staging`] copies on the copy stream beside it. Nothing here knows an op.
//!
//! | file | what it does |
//! |---|---|
//! | `counters` | what kernels do, as an emulated driver counts it |
//! | `driver` | finds the driver, says in one sentence what is missing |
//! | `memory` | allocations and copies, behind [`Buffer`](crate::device::Buffer) |
//! | `launch` | every embedded kernel loaded once; one typed launch |
//! | `gemm` | matrix products by cuBLASLt, which `library` finds |
//! | `graph` | a sequence of launches recorded, and replayed |
//! | `staging` | host data on its way to the GPU while kernels run |
//! | `stream` | streams and events |

mod counters;
mod driver;
mod gemm;
mod graph;
mod launch;
mod library;
mod memory;
mod staging;
mod stream;

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{CUcontext, CUstream};

pub use counters::{Counters, Launched};
use driver::Told;
pub use driver::{Gpu, gpus, usable, version};
pub use gemm::Algorithms;
use gemm::Blas;
pub(crate) use gemm::gemm;
pub use graph::Graph;
use launch::Function;
pub use launch::{Arguments, Grid, KernelName};
pub use library::{Found, cublas_lt, nccl};
pub use staging::Staging;
use stream::Stream;

use crate::error::Result;

/// A GPU, opened once for the life of the process. Cheap to copy.
#[derive(Clone, Copy)]
pub struct Cuda(&'static Context);

struct Context {
    gpu: Gpu,
    context: CUcontext,
    /// Kernels, GEMMs, copies that the host waits for.
    compute: Stream,
    /// Copies beside the kernels.
    copy: Stream,
    functions: HashMap<&'static str, Function>,
    /// Or why there is none; set when the GPU is opened.
    blas: OnceLock<std::result::Result<Blas, String>>,
    /// Held exclusively while a thread records a graph: what another put on the compute stream
    /// then would be recorded instead of done.
    recording: RwLock<()>,
}

// SAFETY: handles of the driver, which all its threads may use; none is ever destroyed.
unsafe impl Send for Context {}
// SAFETY: as above; what is not the driver's is behind locks or constant.
unsafe impl Sync for Context {}

thread_local! {
    /// The GPU whose context the driver uses on this thread.
    static CURRENT: Cell<Option<Cuda>> = const { Cell::new(None) };
    /// The GPU whose compute stream this thread records.
    static RECORDING: Cell<Option<Cuda>> = const { Cell::new(None) };
}

impl Cuda {
    /// Opens GPU `ordinal`: driver, primary context, streams, every embedded kernel, cuBLASLt where
    /// there is one. The same GPU again costs nothing.
    ///
    /// Errors, each one sentence with the ways out: no driver, one too old for the kernels, no GPU,
    /// one too old, no kernels in this binary.
    pub fn open(ordinal: usize) -> Result<Cuda> {
        static OPEN: Mutex<Vec<Cuda>> = Mutex::new(Vec::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&cuda) = open.iter().find(|cuda| cuda.ordinal() == ordinal) {
            return Ok(cuda);
        }
        let cuda = Cuda(Box::leak(Box::new(Context::new(ordinal)?)));
        cuda.0.blas.get_or_init(|| Blas::open(cuda));
        open.push(cuda);
        Ok(cuda)
    }

    /// N of `cuda:N`.
    pub fn ordinal(self) -> usize {
        self.0.gpu.ordinal
    }

    /// What the GPU says of itself.
    pub fn gpu(self) -> &'static Gpu {
        &self.0.gpu
    }

    /// Streaming multiprocessors: a persistent kernel has so many blocks, or a small multiple.
    pub fn multiprocessors(self) -> u32 {
        self.0.gpu.multiprocessors
    }

    /// Waits until everything on the compute stream is done. Errors: one of it failed.
    pub fn synchronize(self) -> Result<()> {
        self.work("waiting for the compute stream", |stream| {
            // SAFETY: the stream lives as long as the process.
            unsafe { result::stream::synchronize(stream) }
        })
    }

    /// Makes this the GPU that the driver uses on this thread.
    fn bind(self) -> Result<()> {
        if CURRENT.get() == Some(self) {
            return Ok(());
        }
        // SAFETY: the primary context is never released.
        let set = unsafe { result::ctx::set_current(self.0.context) };
        set.told(self, "cannot make the context current")?;
        CURRENT.set(Some(self));
        Ok(())
    }

    /// Puts something on the compute stream; `what` names it in an error.
    fn work<T>(
        self,
        what: &str,
        body: impl FnOnce(CUstream) -> std::result::Result<T, DriverError>,
    ) -> Result<T> {
        self.bind()?;
        self.on_stream(body).told(self, what)
    }

    /// Runs `body` with the compute stream, not while another thread records it. Whatever lock `body`
    /// takes is taken after this one.
    fn on_stream<R>(self, body: impl FnOnce(CUstream) -> R) -> R {
        let recorded_here = RECORDING.get() == Some(self);
        let _turn = (!recorded_here)
            .then(|| self.0.recording.read().unwrap_or_else(PoisonError::into_inner));
        body(self.0.compute.0)
    }
}

impl Context {
    fn new(ordinal: usize) -> Result<Context> {
        let gpu = driver::usable(ordinal)?;
        let at = format!("cuda:{ordinal}");
        let device = result::device::get(ordinal as i32).told(&at, "cannot open the GPU")?;
        // SAFETY: the driver gave the device; the primary context is never released.
        let context = unsafe { result::primary_ctx::retain(device) };
        let context = context.told(&at, "cannot make a context")?;
        CURRENT.set(None);
        // SAFETY: the context made above.
        unsafe { result::ctx::set_current(context) }.told(&at, "cannot enter the context")?;
        Ok(Context {
            context,
            compute: Stream::new(&at)?,
            copy: Stream::new(&at)?,
            functions: launch::load(&gpu)?,
            blas: OnceLock::new(),
            recording: RwLock::new(()),
            gpu,
        })
    }
}

impl PartialEq for Cuda {
    fn eq(&self, other: &Cuda) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Cuda {}

impl fmt::Display for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{}", self.ordinal())
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
