//! The driver's C functions, called as a program in C would call them.

mod capture;
mod context;
mod cudarc;
mod deferred;
mod launch;
mod launched;
mod memory;
mod replacement;
mod schedule;
mod stream;

use std::ffi::{CString, c_void};
use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, Once};

use emucuda::driver::api::{Out, emucuda_last_report};
use emucuda::driver::error::CUresult;
use emucuda::driver::launch::*;
use emucuda::driver::module::*;

/// Calls a function of the driver.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: these tests pass null, live locals, or handles and device addresses, which the
        // driver checks.
        unsafe { $function($($argument),*) }
    };
}
pub(crate) use call;

/// Calls a function and gives what it writes into the place that is its first argument, or, after
/// `; out`, its last.
macro_rules! get {
    ($function:ident($($argument:expr),*; out)) => {
        crate::driver::written(|out| call!($function($($argument,)* out)))
    };
    ($function:ident($($argument:expr),*)) => {
        crate::driver::written(|out| call!($function(out, $($argument),*)))
    };
}
pub(crate) use get;

/// What a call that succeeds writes.
pub fn written<T>(call: impl FnOnce(Out<T>) -> CUresult) -> T {
    let mut result = MaybeUninit::uninit();
    assert_eq!(call(Some(&mut result)), OK);
    // SAFETY: the call succeeded and so wrote it.
    unsafe { result.assume_init() }
}

/// The two results of a call that succeeds.
pub fn both_written<A, B>(call: impl FnOnce(Out<A>, Out<B>) -> CUresult) -> (A, B) {
    let mut first = MaybeUninit::uninit();
    let second = written(|second| call(Some(&mut first), second));
    // SAFETY: the call succeeded and so wrote it.
    (unsafe { first.assume_init() }, second)
}

pub const OK: CUresult = CUresult::SUCCESS;

/// Makes the context current on this thread. One test at a time: captures forbid calls on all
/// threads.
pub fn driver() -> MutexGuard<'static, ()> {
    use emucuda::driver::context::{cuCtxSetCurrent, cuDevicePrimaryCtxRetain};
    static ALONE: Mutex<()> = Mutex::new(());
    static RETAIN: Once = Once::new();
    let alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    assert_eq!(call!(cuInit(0)), OK);
    RETAIN.call_once(|| {
        get!(cuDevicePrimaryCtxRetain(0));
    });
    let context = get!(cuDevicePrimaryCtxRetain(0));
    assert_eq!(call!(cuCtxSetCurrent(context)), OK);
    alone
}

use emucuda::driver::cuInit;

/// What the driver said last on this thread.
pub fn report() -> String {
    let mut bytes = vec![0; call!(emucuda_last_report(std::ptr::null_mut(), 0))];
    call!(emucuda_last_report(bytes.as_mut_ptr(), bytes.len()));
    String::from_utf8(bytes).unwrap()
}

/// The module of kernels.ptx.
pub fn kernels() -> u64 {
    let ptx = CString::new(include_str!("kernels.ptx")).unwrap();
    get!(cuModuleLoadData(ptx.as_ptr().cast()))
}

pub fn function(module: u64, name: &str) -> u64 {
    let name = CString::new(name).unwrap();
    get!(cuModuleGetFunction(module, name.as_ptr()))
}

/// Launches `function` over `grid` x `block` threads with parameters of any type.
pub fn launch(
    function: u64,
    grid: u32,
    block: u32,
    shared: u32,
    stream: u64,
    params: &[*const c_void],
) -> CUresult {
    let params = params.as_ptr();
    let extra = std::ptr::null();
    call!(cuLaunchKernel(function, grid, 1, 1, block, 1, 1, shared, stream, params, extra))
}

/// The address of a parameter.
pub fn param<T>(value: &T) -> *const c_void {
    std::ptr::from_ref(value).cast()
}

/// `add` over `count` words.
pub fn add(function: u64, words: u64, amount: u32, count: u32, stream: u64) -> CUresult {
    launch(function, 1, count, 0, stream, &[param(&words), param(&amount)])
}

/// Words in device memory.
pub struct Words {
    pub address: u64,
    count: usize,
}

impl Words {
    pub fn new(values: &[u32]) -> Self {
        use emucuda::driver::copy::cuMemcpyHtoD_v2;
        let bytes = 4 * values.len();
        let address = get!(cuMemAlloc_v2(bytes));
        assert_eq!(call!(cuMemcpyHtoD_v2(address, values.as_ptr().cast(), bytes)), OK);
        Words { address, count: values.len() }
    }

    pub fn read(&self) -> Vec<u32> {
        use emucuda::driver::copy::cuMemcpyDtoH_v2;
        let mut values = vec![0u32; self.count];
        let (to, bytes) = (values.as_mut_ptr().cast(), 4 * self.count);
        assert_eq!(call!(cuMemcpyDtoH_v2(to, self.address, bytes)), OK);
        values
    }
}

use emucuda::driver::memory::cuMemAlloc_v2;

/// A null place for a result.
pub fn nowhere<T>() -> Out<'static, T> {
    None
}

/// A place for a result that nobody reads.
pub fn somewhere<T>() -> Out<'static, T> {
    Some(Box::leak(Box::new(MaybeUninit::uninit())))
}
