//! What every call returns: the driver API's result codes, their names and sentences.

use std::ffi::{CStr, c_char};
use std::fmt;
use std::ptr::null;

use super::api::{Out, api, explain, put};

/// A result code; `CUDA_SUCCESS` is [`CUresult::SUCCESS`].
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CUresult(pub u32);

macro_rules! results {
    ($($name:ident $full:literal = $code:literal, $text:literal;)*) => {
        impl CUresult {
            $(pub const $name: CUresult = CUresult($code);)*
        }

        /// Name and sentence of a code, each ending in a zero byte.
        fn describe(code: u32) -> Option<(&'static str, &'static str)> {
            match code {
                $($code => Some((concat!($full, "\0"), concat!($text, "\0"))),)*
                _ => None,
            }
        }
    };
}

results! {
    SUCCESS "CUDA_SUCCESS" = 0, "no error";
    INVALID_VALUE "CUDA_ERROR_INVALID_VALUE" = 1, "invalid argument";
    OUT_OF_MEMORY "CUDA_ERROR_OUT_OF_MEMORY" = 2, "out of memory";
    NOT_INITIALIZED "CUDA_ERROR_NOT_INITIALIZED" = 3, "initialization error";
    NO_DEVICE "CUDA_ERROR_NO_DEVICE" = 100, "no CUDA-capable device is detected";
    INVALID_DEVICE "CUDA_ERROR_INVALID_DEVICE" = 101, "invalid device ordinal";
    INVALID_IMAGE "CUDA_ERROR_INVALID_IMAGE" = 200, "device kernel image is invalid";
    INVALID_CONTEXT "CUDA_ERROR_INVALID_CONTEXT" = 201, "invalid device context";
    NO_BINARY_FOR_GPU "CUDA_ERROR_NO_BINARY_FOR_GPU" = 209,
        "no kernel image is available for execution on the device";
    UNSUPPORTED_LIMIT "CUDA_ERROR_UNSUPPORTED_LIMIT" = 215,
        "limit is not supported on this architecture";
    INVALID_PTX "CUDA_ERROR_INVALID_PTX" = 218, "a PTX JIT compilation failed";
    UNSUPPORTED_PTX_VERSION "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" = 222,
        "the provided PTX was compiled with an unsupported toolchain.";
    FILE_NOT_FOUND "CUDA_ERROR_FILE_NOT_FOUND" = 301, "file not found";
    INVALID_HANDLE "CUDA_ERROR_INVALID_HANDLE" = 400, "invalid resource handle";
    ILLEGAL_STATE "CUDA_ERROR_ILLEGAL_STATE" = 401,
        "the operation cannot be performed in the present state";
    NOT_FOUND "CUDA_ERROR_NOT_FOUND" = 500, "named symbol not found";
    NOT_READY "CUDA_ERROR_NOT_READY" = 600, "device not ready";
    ILLEGAL_ADDRESS "CUDA_ERROR_ILLEGAL_ADDRESS" = 700,
        "an illegal memory access was encountered";
    LAUNCH_OUT_OF_RESOURCES "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES" = 701,
        "too many resources requested for launch";
    LAUNCH_TIMEOUT "CUDA_ERROR_LAUNCH_TIMEOUT" = 702, "the launch timed out and was terminated";
    PRIMARY_CONTEXT_ACTIVE "CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE" = 708,
        "cannot set while device is active in this process";
    CONTEXT_IS_DESTROYED "CUDA_ERROR_CONTEXT_IS_DESTROYED" = 709, "context is destroyed";
    ASSERT "CUDA_ERROR_ASSERT" = 710, "device-side assert triggered";
    HOST_MEMORY_ALREADY_REGISTERED "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED" = 712,
        "part or all of the requested memory range is already mapped";
    HOST_MEMORY_NOT_REGISTERED "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED" = 713,
        "pointer does not correspond to a registered memory region";
    MISALIGNED_ADDRESS "CUDA_ERROR_MISALIGNED_ADDRESS" = 716, "misaligned address";
    LAUNCH_FAILED "CUDA_ERROR_LAUNCH_FAILED" = 719, "unspecified launch failure";
    COOPERATIVE_LAUNCH_TOO_LARGE "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE" = 720,
        "too many blocks in cooperative launch";
    NOT_PERMITTED "CUDA_ERROR_NOT_PERMITTED" = 800, "operation not permitted";
    NOT_SUPPORTED "CUDA_ERROR_NOT_SUPPORTED" = 801, "operation not supported";
    STREAM_CAPTURE_UNSUPPORTED "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" = 900,
        "operation not permitted when stream is capturing";
    STREAM_CAPTURE_INVALIDATED "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" = 901,
        "operation failed due to a previous error during capture";
    STREAM_CAPTURE_MERGE "CUDA_ERROR_STREAM_CAPTURE_MERGE" = 902,
        "operation would result in a merge of separate capture sequences";
    STREAM_CAPTURE_UNMATCHED "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED" = 903,
        "capture was not ended in the same stream as it began";
    STREAM_CAPTURE_UNJOINED "CUDA_ERROR_STREAM_CAPTURE_UNJOINED" = 904,
        "capturing stream has unjoined work";
    STREAM_CAPTURE_ISOLATION "CUDA_ERROR_STREAM_CAPTURE_ISOLATION" = 905,
        "dependency created on uncaptured work in another stream";
    STREAM_CAPTURE_IMPLICIT "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT" = 906,
        "operation would make the legacy stream depend on a capturing blocking stream";
    CAPTURED_EVENT "CUDA_ERROR_CAPTURED_EVENT" = 907,
        "operation not permitted on an event last recorded in a capturing stream";
    STREAM_CAPTURE_WRONG_THREAD "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD" = 908,
        "attempt to terminate a thread-local capture sequence from another thread";
    UNKNOWN "CUDA_ERROR_UNKNOWN" = 999, "unknown error";
}

impl CUresult {
    pub fn name(self) -> Option<&'static CStr> {
        describe(self.0).and_then(|(name, _)| CStr::from_bytes_with_nul(name.as_bytes()).ok())
    }

    pub fn sentence(self) -> Option<&'static CStr> {
        describe(self.0).and_then(|(_, text)| CStr::from_bytes_with_nul(text.as_bytes()).ok())
    }
}

impl fmt::Debug for CUresult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(&name.to_string_lossy()),
            None => write!(f, "CUresult({})", self.0),
        }
    }
}

/// What a body ends with; `api` turns it into a [`CUresult`].
pub type Done = Result<(), CUresult>;

fn put_text(out: Out<*const c_char>, text: Option<&'static CStr>) -> Done {
    put(out, text.map_or(null(), CStr::as_ptr))?;
    text.map(|_| ()).ok_or(CUresult::INVALID_VALUE)
}

api! {
    fn cuGetErrorName(error: CUresult, text: Out<*const c_char>) {
        put_text(text, error.name())
    }

    fn cuGetErrorString(error: CUresult, text: Out<*const c_char>) {
        put_text(text, explain(error))
    }
}
