//! Runs the micro-kernels on a real GPU and writes what they put out to `conformance/`, or the folder it is
//! given, for the tests to replay. `tools/gpu-check` calls it.

// Parts of these modules serve the tests alone.
#[allow(dead_code)]
#[path = "../tests/cases/mod.rs"]
mod cases;
#[path = "../tests/random.rs"]
mod random;
#[allow(dead_code)]
#[path = "../tests/recordings.rs"]
mod recordings;
#[allow(dead_code)]
#[path = "../tests/soft/mod.rs"]
mod soft;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::process::ExitCode;
use std::ptr::{null, null_mut};

use cases::Case;
use recordings::{Recording, fingerprint, folder, format};

fn main() -> ExitCode {
    match record() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("record-conformance: {message}");
            ExitCode::FAILURE
        }
    }
}

fn record() -> Result<(), String> {
    let driver = Driver::open()?;
    let (name, capability) = (driver.name()?, driver.capability()?);
    if name.starts_with("Emulated") {
        return Err(format!("the driver is the emulator ({name}); expected NVIDIA's libcuda.so.1"));
    }
    let mut groups: BTreeMap<&str, String> = BTreeMap::new();
    let mut disagreements = 0;
    for case in cases::list() {
        let needed: c_int = case.target.trim_start_matches("sm_").parse().unwrap_or(c_int::MAX);
        if needed > capability {
            eprintln!(
                "{}: not recorded: needs {}, this GPU is sm_{capability}",
                case.name, case.target
            );
            continue;
        }
        let output = driver.run(&case).map_err(|e| format!("{}: {e}", case.name))?;
        if let Err(message) = case.check(&output) {
            eprintln!("{}: the GPU does not what we expect: {message}", case.name);
            disagreements += 1;
        }
        let recording =
            Recording { name: case.name.clone(), fingerprint: fingerprint(&case), output };
        let head = || format!("# {name}, sm_{capability}; examples/record-conformance.rs\n");
        groups.entry(case.group).or_insert_with(head).push_str(&format(&recording));
    }
    let folder = std::env::args_os().nth(1).map_or_else(folder, PathBuf::from);
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for (group, text) in groups {
        let path = folder.join(format!("{group}.tsv"));
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        println!("{}", path.display());
    }
    match disagreements {
        0 => Ok(()),
        n => Err(format!("{n} cases expect something else than the GPU does; mend them")),
    }
}

/// The functions of the driver API that running a kernel takes. All return 0 or an error.
struct Driver {
    get_error_name: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
    device_get_name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int,
    device_get_attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int,
    module_load_data: unsafe extern "C" fn(*mut *mut c_void, *const c_void) -> c_int,
    module_unload: unsafe extern "C" fn(*mut c_void) -> c_int,
    module_get_function:
        unsafe extern "C" fn(*mut *mut c_void, *mut c_void, *const c_char) -> c_int,
    mem_alloc: unsafe extern "C" fn(*mut u64, usize) -> c_int,
    mem_free: unsafe extern "C" fn(u64) -> c_int,
    copy_to_device: unsafe extern "C" fn(u64, *const c_void, usize) -> c_int,
    copy_to_host: unsafe extern "C" fn(*mut c_void, u64, usize) -> c_int,
    launch_kernel: LaunchKernel,
    synchronize: unsafe extern "C" fn() -> c_int,
}

/// Function, grid, block, dynamic shared memory, stream, parameters, extras.
type LaunchKernel = unsafe extern "C" fn(
    *mut c_void,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    *mut c_void,
    *mut *mut c_void,
    *mut *mut c_void,
) -> c_int;

const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;

/// The function `name`, whose type the caller knows to be `T`, a function pointer.
///
/// # Safety
/// `library` is open, and `T` is the type of the function.
unsafe fn symbol<T: Copy>(library: *mut c_void, name: &CStr) -> Result<T, String> {
    // SAFETY: an open library and a C string.
    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
    if found.is_null() {
        return Err(format!("libcuda.so.1 has no {}", name.to_string_lossy()));
    }
    // SAFETY: a function pointer of the type that the caller promises.
    Ok(unsafe { std::mem::transmute_copy(&found) })
}

impl Driver {
    /// The real driver, with a context of device 0.
    fn open() -> Result<Driver, String> {
        // SAFETY: a library by name; its initialisers are NVIDIA's.
        let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
        if library.is_null() {
            return Err(
                "libcuda.so.1 cannot be opened; record on a machine with an NVIDIA driver".into()
            );
        }
        // SAFETY: each type is that of the function in cuda.h.
        unsafe {
            let driver = Driver {
                get_error_name: symbol(library, c"cuGetErrorName")?,
                device_get_name: symbol(library, c"cuDeviceGetName")?,
                device_get_attribute: symbol(library, c"cuDeviceGetAttribute")?,
                module_load_data: symbol(library, c"cuModuleLoadData")?,
                module_unload: symbol(library, c"cuModuleUnload")?,
                module_get_function: symbol(library, c"cuModuleGetFunction")?,
                mem_alloc: symbol(library, c"cuMemAlloc_v2")?,
                mem_free: symbol(library, c"cuMemFree_v2")?,
                copy_to_device: symbol(library, c"cuMemcpyHtoD_v2")?,
                copy_to_host: symbol(library, c"cuMemcpyDtoH_v2")?,
                launch_kernel: symbol(library, c"cuLaunchKernel")?,
                synchronize: symbol(library, c"cuCtxSynchronize")?,
            };
            type Init = unsafe extern "C" fn(c_uint) -> c_int;
            type Retain = unsafe extern "C" fn(*mut *mut c_void, c_int) -> c_int;
            type SetCurrent = unsafe extern "C" fn(*mut c_void) -> c_int;
            let init: Init = symbol(library, c"cuInit")?;
            let retain: Retain = symbol(library, c"cuDevicePrimaryCtxRetain")?;
            let set_current: SetCurrent = symbol(library, c"cuCtxSetCurrent")?;
            let mut context = null_mut();
            driver.done("cuInit", init(0))?;
            driver.done("cuDevicePrimaryCtxRetain", retain(&mut context, 0))?;
            driver.done("cuCtxSetCurrent", set_current(context))?;
            Ok(driver)
        }
    }

    fn done(&self, call: &str, code: c_int) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        let mut name = null();
        // SAFETY: writes a pointer to a static string, or null.
        unsafe { (self.get_error_name)(code, &mut name) };
        if name.is_null() {
            return Err(format!("{call}: error {code}"));
        }
        // SAFETY: the driver's own string.
        let name = unsafe { CStr::from_ptr(name) };
        Err(format!("{call}: {}", name.to_string_lossy()))
    }

    fn name(&self) -> Result<String, String> {
        let mut name = [0u8; 256];
        // SAFETY: 256 bytes, as said.
        let code = unsafe { (self.device_get_name)(name.as_mut_ptr().cast(), 256, 0) };
        self.done("cuDeviceGetName", code)?;
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    /// 80 for sm_80.
    fn capability(&self) -> Result<c_int, String> {
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: writes an integer.
            let code = unsafe { (self.device_get_attribute)(&mut value, attribute, 0) };
            self.done("cuDeviceGetAttribute", code).map(|()| value)
        };
        Ok(attribute(CAPABILITY_MAJOR)? * 10 + attribute(CAPABILITY_MINOR)?)
    }

    fn run(&self, case: &Case) -> Result<Vec<u8>, String> {
        let text = CString::new(case.module()).map_err(|e| e.to_string())?;
        let entry = CString::new(case.entry()).map_err(|e| e.to_string())?;
        let (mut module, mut function) = (null_mut(), null_mut());
        let (mut input, mut output) =
            (self.upload(&case.input)?, self.upload(&vec![0xFF; case.output])?);
        let mut params: [*mut c_void; 3] = [
            (&raw mut input).cast(),
            (&raw mut output).cast(),
            case.extra.as_ptr().cast_mut().cast(),
        ];
        let mut bytes = vec![0; case.output];
        let ([x, y, z], [u, v, w]) = (case.grid, case.block);
        // SAFETY: the text ends in NUL; parameters are those of the entry point (the driver looks at as many
        // as it has); the kernel stays inside its input and output, as the emulator has checked.
        unsafe {
            self.done(
                "cuModuleLoadData",
                (self.module_load_data)(&mut module, text.as_ptr().cast()),
            )?;
            let code = (self.module_get_function)(&mut function, module, entry.as_ptr());
            self.done("cuModuleGetFunction", code)?;
            let (shared, stream, extra) = (case.dynamic_shared, null_mut(), null_mut());
            let params = params.as_mut_ptr();
            let code =
                (self.launch_kernel)(function, x, y, z, u, v, w, shared, stream, params, extra);
            self.done("cuLaunchKernel", code)?;
            self.done("cuCtxSynchronize", (self.synchronize)())?;
            let code = (self.copy_to_host)(bytes.as_mut_ptr().cast(), output, bytes.len());
            self.done("cuMemcpyDtoH", code)?;
            self.done("cuModuleUnload", (self.module_unload)(module))?;
            self.done("cuMemFree", (self.mem_free)(input))?;
            self.done("cuMemFree", (self.mem_free)(output))?;
        }
        Ok(bytes)
    }

    fn upload(&self, bytes: &[u8]) -> Result<u64, String> {
        let mut address = 0;
        // SAFETY: allocates and fills as many bytes as the slice has.
        unsafe {
            self.done("cuMemAlloc", (self.mem_alloc)(&mut address, bytes.len()))?;
            let code = (self.copy_to_device)(address, bytes.as_ptr().cast(), bytes.len());
            self.done("cuMemcpyHtoD", code)?;
        }
        Ok(address)
    }
}
