//! What every call returns, and the versions.

use std::ffi::{CStr, c_char, c_int};

/// `cublasStatus_t`
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u32);

impl Status {
    pub const SUCCESS: Status = Status(0);
    pub const NOT_INITIALIZED: Status = Status(1);
    pub const INVALID_VALUE: Status = Status(7);
    pub const EXECUTION_FAILED: Status = Status(13);
    pub const NOT_SUPPORTED: Status = Status(15);

    fn name(self) -> &'static CStr {
        match self {
            Status::SUCCESS => c"CUBLAS_STATUS_SUCCESS",
            Status::NOT_INITIALIZED => c"CUBLAS_STATUS_NOT_INITIALIZED",
            Status::INVALID_VALUE => c"CUBLAS_STATUS_INVALID_VALUE",
            Status::EXECUTION_FAILED => c"CUBLAS_STATUS_EXECUTION_FAILED",
            Status::NOT_SUPPORTED => c"CUBLAS_STATUS_NOT_SUPPORTED",
            _ => c"<unknown>",
        }
    }

    fn sentence(self) -> &'static CStr {
        match self {
            Status::SUCCESS => c"success",
            Status::NOT_INITIALIZED => c"the library was not initialized",
            Status::INVALID_VALUE => {
                c"an unsupported value or parameter was passed to the function"
            }
            Status::EXECUTION_FAILED => c"the function failed to launch on the GPU",
            Status::NOT_SUPPORTED => c"the functionality requested is not supported",
            _ => c"unknown status",
        }
    }

    pub fn of(result: Result<(), Status>) -> Status {
        result.err().unwrap_or(Status::SUCCESS)
    }
}

/// Says on stderr why a call fails.
pub fn refuse<T>(status: Status, sentence: &str) -> Result<T, Status> {
    eprintln!("cuda-emulator: cuBLASLt: {sentence}");
    Err(status)
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetStatusName(status: Status) -> *const c_char {
    status.name().as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetStatusString(status: Status) -> *const c_char {
    status.sentence().as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetVersion() -> usize {
    130_000
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetCudartVersion() -> usize {
    13_000
}

/// Major, minor and patch level are 0, 1 and 2 of `libraryPropertyType`.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetProperty(property: c_int, value: Option<&mut c_int>) -> Status {
    let Some(value) = value else { return Status::INVALID_VALUE };
    *value = match property {
        0 => 13,
        1 | 2 => 0,
        _ => return Status::INVALID_VALUE,
    };
    Status::SUCCESS
}
