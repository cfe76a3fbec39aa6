//! Functions by name, for programs that ask the driver instead of the linker.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;

use super::api::{Out, api, put, put_if_asked, text};
use super::error::{CUresult, Done};

/// CU_GET_PROC_ADDRESS_SUCCESS and _SYMBOL_NOT_FOUND
const FOUND: u32 = 0;
const NOT_FOUND: u32 = 1;

/// The newest function of a name: programs ask for `cuMemAlloc` and mean `cuMemAlloc_v2`.
fn find(name: &CStr) -> Option<*mut c_void> {
    let name = name.to_str().ok().filter(|name| name.starts_with("cu"))?;
    let library = this_library()?;
    ["_v2", ""].into_iter().find_map(|version| {
        let symbol = CString::new(format!("{name}{version}")).ok()?;
        // SAFETY: an open library and a C string.
        let function = unsafe { libc::dlsym(library, symbol.as_ptr()) };
        (!function.is_null()).then_some(function)
    })
}

/// The loaded object that this function is in.
fn this_library() -> Option<*mut c_void> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    let here: fn() -> Option<*mut c_void> = this_library;
    // SAFETY: an address of this object, and room for what is known of it; all zero is a valid
    // Dl_info. The name lives as long as the object.
    unsafe {
        if libc::dladdr(here as *const c_void, info.as_mut_ptr()) == 0 {
            return None;
        }
        let library =
            libc::dlopen(info.assume_init().dli_fname, libc::RTLD_NOLOAD | libc::RTLD_NOW);
        (!library.is_null()).then_some(library)
    }
}

fn look_up(name: *const c_char, function: Out<*mut c_void>, status: Out<u32>) -> Done {
    // SAFETY: the manual's contract.
    let found = find(unsafe { text(name) }?);
    put(function, found.unwrap_or(std::ptr::null_mut()))?;
    put_if_asked(status, if found.is_some() { FOUND } else { NOT_FOUND });
    found.map(|_| ()).ok_or(CUresult::NOT_FOUND)
}

api! {
    fn cuGetProcAddress(
        symbol: *const c_char,
        function: Out<*mut c_void>,
        _version: c_int,
        _flags: u64,
    ) {
        look_up(symbol, function, None)
    }

    fn cuGetProcAddress_v2(
        symbol: *const c_char,
        function: Out<*mut c_void>,
        _version: c_int,
        _flags: u64,
        status: Out<u32>,
    ) {
        look_up(symbol, function, status)
    }
}
