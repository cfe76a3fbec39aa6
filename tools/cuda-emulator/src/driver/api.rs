//! What every exported function shares: the types of its arguments, its log line, its way of
//! failing.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::{CUresult, Done};
use super::settings::settings;

pub type CUdevice = c_int;
pub type CUdeviceptr = u64;

// Handles are opaque pointers in the manual. Here they are numbers that are never used twice: a
// stale one, or one of another kind, is found in no table.
pub type CUcontext = u64;
pub type CUstream = u64;
pub type CUevent = u64;
pub type CUmodule = u64;
pub type CUfunction = u64;
pub type CUgraph = u64;
pub type CUgraphNode = u64;
pub type CUgraphExec = u64;

const _: () = assert!(size_of::<usize>() == 8, "handles and device addresses fill a pointer");

/// Where a call writes a result: null, or a place for a `T`.
pub type Out<'a, T> = Option<&'a mut MaybeUninit<T>>;

/// Writes a result. A null place is `CUDA_ERROR_INVALID_VALUE`.
pub fn put<T>(out: Out<T>, value: T) -> Done {
    out.ok_or(CUresult::INVALID_VALUE)?.write(value);
    Ok(())
}

/// Writes a result that the caller may not want.
pub fn put_if_asked<T>(out: Out<T>, value: T) {
    if let Some(out) = out {
        out.write(value);
    }
}

/// The text of a C string. A null pointer is `CUDA_ERROR_INVALID_VALUE`.
///
/// # Safety
/// `text` is null or points to a string that ends in a zero byte and lives for `'a`.
pub unsafe fn text<'a>(text: *const c_char) -> Result<&'a CStr, CUresult> {
    if text.is_null() {
        return Err(CUresult::INVALID_VALUE);
    }
    // SAFETY: not null, and the caller promises the rest.
    Ok(unsafe { CStr::from_ptr(text) })
}

thread_local! {
    /// Why the call in progress fails, and why the last call that failed did.
    static REPORT: RefCell<Option<String>> = const { RefCell::new(None) };
    static LAST_FAILURE: RefCell<Failure> = RefCell::default();
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

/// The last call of a thread that failed.
#[derive(Default)]
struct Failure {
    code: Option<CUresult>,
    report: String,
    /// What cuGetErrorString answered for it.
    text: Option<&'static CStr>,
}

/// Tells on stderr why the call in progress fails, and keeps it for cuGetErrorString and
/// [`emucuda_last_report`].
pub fn report(sentence: String) {
    eprintln!("cuda-emulator: {sentence}");
    REPORT.set(Some(sentence));
}

/// What [`report`] told in the call in progress.
pub fn last_report() -> String {
    REPORT.with_borrow(|report| report.clone().unwrap_or_default())
}

/// The sentence of a code; and, if it is that of this thread's last failure, the report of that.
pub fn explain(code: CUresult) -> Option<&'static CStr> {
    let sentence = code.sentence()?;
    LAST_FAILURE.with_borrow_mut(|last| {
        if last.code != Some(code) || last.report.is_empty() {
            return Some(sentence);
        }
        // Leaked, because a program may keep such a text for ever; once per failure.
        let text = last.text.get_or_insert_with(|| {
            let text = format!("{}: {}", sentence.to_string_lossy(), last.report);
            CString::new(text).map_or(sentence, |text| Box::leak(text.into_boxed_c_str()))
        });
        Some(*text)
    })
}

/// Reports and fails.
pub fn refuse<T>(code: CUresult, sentence: String) -> Result<T, CUresult> {
    report(sentence);
    Err(code)
}

/// Runs a function of the program that stands in a stream: it may not call the driver.
pub fn in_host_function(run: impl FnOnce()) {
    IN_HOST_FUNCTION.set(true);
    run();
    IN_HOST_FUNCTION.set(false);
}

/// Whether the driver may be called: not from a function that [`in_host_function`] runs.
pub fn may_call() -> Done {
    if IN_HOST_FUNCTION.get() {
        return refuse(
            CUresult::NOT_PERMITTED,
            "a host function in a stream calls the driver".into(),
        );
    }
    Ok(())
}

/// Runs the body of an exported function. A panic of the emulator becomes `CUDA_ERROR_UNKNOWN`: it
/// must not unwind into a caller written in C.
pub fn call(log_line: Option<String>, body: impl FnOnce() -> Done) -> CUresult {
    let result = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => CUresult::SUCCESS,
        Ok(Err(code)) => code,
        Err(panic) => {
            report(format!("the emulator panicked: {}", message(&*panic)));
            CUresult::UNKNOWN
        }
    };
    if result != CUresult::SUCCESS {
        let report = REPORT.take().unwrap_or_default();
        LAST_FAILURE.set(Failure { code: Some(result), report, text: None });
    }
    if let Some(line) = log_line {
        eprintln!("cuda-emulator: {line} = {result:?}");
    }
    result
}

/// Whether calls are logged.
pub fn is_logging() -> bool {
    settings().as_ref().is_ok_and(|settings| settings.log)
}

/// A call as the log shows it: numbers in hexadecimal, `_` for where a result goes.
pub fn log_line(function: &str, arguments: &[(&str, String)]) -> String {
    let shown = |(name, value): &(&str, String)| match value.as_str() {
        "None" => format!("{name}: null"),
        place if place.starts_with("Some(MaybeUninit") => format!("{name}: _"),
        value => format!("{name}: {value}"),
    };
    let list: Vec<_> = arguments.iter().map(shown).collect();
    format!("{function}({})", list.join(", "))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// Exports functions of the driver: each body ends in a [`Done`].
macro_rules! api {
    ($($(#[$meta:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        /// # Safety
        /// Pointers are as the manual of the CUDA driver API asks.
        #[allow(non_snake_case)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> $crate::driver::error::CUresult {
            let log_line = $crate::driver::api::is_logging().then(|| {
                let arguments: &[(&str, String)] =
                    &[$((stringify!($argument), format!("{:x?}", $argument))),*];
                $crate::driver::api::log_line(stringify!($name), arguments)
            });
            $crate::driver::api::call(log_line, move || $body)
        }
    )*};
}
pub(crate) use api;

/// Copies why this thread's last call that failed did, cut to `bytes`, without a zero byte at its
/// end. Returns the bytes of the whole report.
///
/// # Safety
/// `buffer` is null or has room for `bytes`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn emucuda_last_report(buffer: *mut u8, bytes: usize) -> usize {
    LAST_FAILURE.with_borrow(|Failure { report, .. }| {
        if !buffer.is_null() {
            let bytes = bytes.min(report.len());
            // SAFETY: the caller promises the room.
            unsafe { buffer.copy_from_nonoverlapping(report.as_ptr(), bytes) };
        }
        report.len()
    })
}
