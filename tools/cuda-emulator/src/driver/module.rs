//! Modules and their functions.

use std::ffi::{c_char, c_int, c_void};
use std::sync::Arc;

use super::api::{CUdeviceptr, CUfunction, CUmodule, Out, api, put, put_if_asked, refuse, text};
use super::attributes::{CAPABILITY, SHARED_PER_BLOCK, shared_per_block_opt_in};
use super::error::{CUresult, Done};
use super::{Driver, State, replacement};
use crate::exec::{self, Kernel};
use crate::fatbin;

/// A kernel as a program holds it.
pub struct Function {
    pub module: CUmodule,
    pub kernel: Arc<Kernel>,
    /// Bytes of dynamic shared memory that a launch may ask for.
    pub max_dynamic_shared: u32,
}

/// The newest PTX that a driver reads, by the driver's version: the driver of a CUDA release reads
/// that release's PTX.
const NEWEST_PTX: [(i32, (u32, u32)); 14] = [
    (13020, (9, 2)),
    (13010, (9, 1)),
    (13000, (9, 0)),
    (12090, (8, 8)),
    (12080, (8, 7)),
    (12070, (8, 6)),
    (12050, (8, 5)),
    (12040, (8, 4)),
    (12030, (8, 3)),
    (12020, (8, 2)),
    (12010, (8, 1)),
    (12000, (8, 0)),
    (11080, (7, 8)),
    (11000, (7, 0)),
];

fn newest_ptx(driver_version: i32) -> (u32, u32) {
    let known = NEWEST_PTX.iter().find(|(version, _)| *version <= driver_version);
    known.map_or((6, 5), |&(_, ptx)| ptx)
}

/// `.version 9.0`
fn ptx_version(ptx: &str) -> Option<(u32, u32)> {
    let line = ptx.lines().find_map(|line| line.trim_start().strip_prefix(".version"))?;
    let (major, minor) = line.split_whitespace().next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// # Safety
/// `image` is as [`fatbin::ptx`] asks.
unsafe fn load(driver: &Driver, out: Out<CUmodule>, image: *const c_void) -> Done {
    driver.state().forbid_unsafe_call("loading a module")?;
    if out.is_none() {
        return Err(CUresult::INVALID_VALUE);
    }
    let capability = (CAPABILITY.0 * 10 + CAPABILITY.1) as u32;
    // SAFETY: the caller's promise.
    let mut ptx = match unsafe { fatbin::ptx(image, capability) } {
        Ok(ptx) => ptx,
        Err(error) => {
            let code = match error {
                fatbin::Error::NoPtx(_) => CUresult::NO_BINARY_FOR_GPU,
                fatbin::Error::NotAnImage(_) | fatbin::Error::Damaged(_) => CUresult::INVALID_IMAGE,
            };
            return refuse(code, error.to_string());
        }
    };
    if let Some(folder) = &driver.settings.modules {
        let found = replacement::find(folder, &ptx, capability)
            .or_else(|sentence| refuse(CUresult::INVALID_IMAGE, sentence))?;
        if let Some((path, text)) = found {
            eprintln!("cuda-emulator: {} takes the place of a module", path.display());
            ptx = text;
        }
    }
    let version = driver.settings.driver_version;
    let (major, minor) = newest_ptx(version);
    if let Some((ptx_major, ptx_minor)) = ptx_version(&ptx).filter(|&ptx| ptx > (major, minor)) {
        let sentence = format!(
            "the module is PTX {ptx_major}.{ptx_minor}, which driver {}.{} does not read: up to \
             {major}.{minor}",
            version / 1000,
            version % 1000 / 10
        );
        return refuse(CUresult::UNSUPPORTED_PTX_VERSION, sentence);
    }
    match exec::Module::load(&ptx, &driver.memory) {
        Ok(module) => put(out, driver.state().modules.insert(module)),
        Err(error) => refuse(CUresult::INVALID_PTX, error.to_string()),
    }
}

impl State {
    /// The handle of a kernel, the same each time.
    fn function(&mut self, module: CUmodule, name: &str) -> Result<CUfunction, CUresult> {
        let same = |function: &Function| function.module == module && function.kernel.name == name;
        if let Some((handle, _)) = self.functions.iter().find(|(_, function)| same(function)) {
            return Ok(handle);
        }
        let kernel = self.modules.get(module)?.kernel(name).ok_or(CUresult::NOT_FOUND)?;
        let kernel = Arc::clone(kernel);
        let max_dynamic_shared = SHARED_PER_BLOCK.saturating_sub(kernel.static_shared);
        Ok(self.functions.insert(Function { module, kernel, max_dynamic_shared }))
    }
}

/// Numbers in CUfunction_attribute.
mod attribute {
    pub const MAX_THREADS_PER_BLOCK: u32 = 0;
    pub const SHARED_SIZE_BYTES: u32 = 1;
    pub const CONST_SIZE_BYTES: u32 = 2;
    pub const LOCAL_SIZE_BYTES: u32 = 3;
    pub const NUM_REGS: u32 = 4;
    pub const PTX_VERSION: u32 = 5;
    pub const BINARY_VERSION: u32 = 6;
    pub const CACHE_MODE_CA: u32 = 7;
    pub const MAX_DYNAMIC_SHARED_SIZE_BYTES: u32 = 8;
    pub const PREFERRED_SHARED_MEMORY_CARVEOUT: u32 = 9;
    pub const CLUSTER: std::ops::RangeInclusive<u32> = 10..=15;
}

impl Function {
    fn attribute(&self, number: u32) -> Result<c_int, CUresult> {
        Ok(match number {
            attribute::MAX_THREADS_PER_BLOCK => self.kernel.max_threads as c_int,
            attribute::SHARED_SIZE_BYTES => self.kernel.static_shared as c_int,
            attribute::LOCAL_SIZE_BYTES => self.kernel.local as c_int,
            attribute::PTX_VERSION | attribute::BINARY_VERSION => CAPABILITY.0 * 10 + CAPABILITY.1,
            attribute::MAX_DYNAMIC_SHARED_SIZE_BYTES => self.max_dynamic_shared as c_int,
            attribute::PREFERRED_SHARED_MEMORY_CARVEOUT => -1,
            // PTX does not tell registers; a guess would be taken for a fact.
            attribute::NUM_REGS | attribute::CONST_SIZE_BYTES | attribute::CACHE_MODE_CA => 0,
            number if attribute::CLUSTER.contains(&number) => 0,
            _ => return Err(CUresult::INVALID_VALUE),
        })
    }

    fn set_attribute(&mut self, number: u32, value: c_int) -> Done {
        match number {
            attribute::MAX_DYNAMIC_SHARED_SIZE_BYTES => {
                let most = shared_per_block_opt_in().saturating_sub(self.kernel.static_shared);
                let bytes = u32::try_from(value).ok().filter(|&bytes| bytes <= most);
                let Some(bytes) = bytes else {
                    let sentence = format!(
                        "{} asks for {value} bytes of dynamic shared memory; a block has {most} \
                         beside its {} static ones",
                        self.kernel.name, self.kernel.static_shared
                    );
                    return refuse(CUresult::INVALID_VALUE, sentence);
                };
                self.max_dynamic_shared = bytes;
                Ok(())
            }
            attribute::PREFERRED_SHARED_MEMORY_CARVEOUT if (-1..=100).contains(&value) => Ok(()),
            _ => Err(CUresult::INVALID_VALUE),
        }
    }
}

api! {
    fn cuModuleLoadData(module: Out<CUmodule>, image: *const c_void) {
        // SAFETY: the manual's contract, which `fatbin::ptx` repeats.
        unsafe { load(Driver::current()?, module, image) }
    }

    fn cuModuleLoadDataEx(
        module: Out<CUmodule>,
        image: *const c_void,
        _option_count: u32,
        _options: *mut u32,
        _values: *mut *mut c_void,
    ) {
        // SAFETY: the manual's contract, which `fatbin::ptx` repeats.
        unsafe { load(Driver::current()?, module, image) }
    }

    fn cuModuleLoad(module: Out<CUmodule>, path: *const c_char) {
        let driver = Driver::current()?;
        // SAFETY: the manual's contract.
        let path = unsafe { text(path) }?.to_string_lossy();
        let Ok(mut image) = std::fs::read(&*path) else {
            return refuse(CUresult::FILE_NOT_FOUND, format!("{path}: cannot be read"));
        };
        image.push(0);
        // SAFETY: a file's bytes and a zero byte; sizes inside are not checked against the file's,
        // as the driver is not told them either.
        unsafe { load(driver, module, image.as_ptr().cast()) }
    }

    fn cuModuleUnload(module: CUmodule) {
        let driver = Driver::current()?;
        driver.state().forbid_unsafe_call("cuModuleUnload")?;
        let drained = driver.drain();
        let _execution = driver.execution();
        let mut state = driver.state();
        let unloaded = state.modules.remove(module)?;
        state.functions.retain(|function| function.module != module);
        drop(state);
        unloaded.unload(&driver.memory);
        drained
    }

    fn cuModuleGetFunction(function: Out<CUfunction>, module: CUmodule, name: *const c_char) {
        let driver = Driver::current()?;
        // SAFETY: the manual's contract.
        let name = unsafe { text(name) }?.to_string_lossy();
        put(function, driver.state().function(module, &name)?)
    }

    fn cuModuleGetGlobal_v2(
        address: Out<CUdeviceptr>,
        bytes: Out<usize>,
        module: CUmodule,
        name: *const c_char,
    ) {
        let state = Driver::current()?.state();
        // SAFETY: the manual's contract.
        let name = unsafe { text(name) }?.to_string_lossy();
        let variable = state.modules.get(module)?.variable(&name);
        let (start, length) = variable.ok_or(CUresult::NOT_FOUND)?;
        put_if_asked(address, start);
        put_if_asked(bytes, length);
        Ok(())
    }

    fn cuFuncGetModule(module: Out<CUmodule>, function: CUfunction) {
        put(module, Driver::current()?.state().functions.get(function)?.module)
    }

    fn cuFuncGetAttribute(value: Out<c_int>, number: u32, function: CUfunction) {
        put(value, Driver::current()?.state().functions.get(function)?.attribute(number)?)
    }

    fn cuFuncSetAttribute(function: CUfunction, number: u32, value: c_int) {
        Driver::current()?.state().functions.get_mut(function)?.set_attribute(number, value)
    }

    fn cuFuncSetCacheConfig(function: CUfunction, _config: u32) {
        Driver::current()?.state().functions.get(function).map(|_| ())
    }

    fn cuFuncGetParamInfo(
        function: CUfunction,
        index: usize,
        offset: Out<usize>,
        bytes: Out<usize>,
    ) {
        let state = Driver::current()?.state();
        let kernel = &state.functions.get(function)?.kernel;
        let param = kernel.params.get(index).ok_or(CUresult::INVALID_VALUE)?;
        put(offset, param.offset)?;
        put_if_asked(bytes, param.bytes);
        Ok(())
    }
}
