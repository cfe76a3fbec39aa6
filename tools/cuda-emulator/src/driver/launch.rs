//! Launches of kernels and their limits.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use super::api::{CUfunction, CUmodule, CUstream, Out, api, put, refuse, report};
use super::attributes::*;
use super::error::{CUresult, Done};
use super::module::Function;
use super::work::Work;
use super::{Driver, launched};
use crate::exec::{self, Kernel, Launch};
use crate::report::{Fault, Kind};

/// A kernel with everything it was launched with; parameters are copied when it is submitted.
pub struct KernelLaunch {
    kernel: Arc<Kernel>,
    module: CUmodule,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    params: Vec<u8>,
}

/// CUlaunchConfig
#[repr(C)]
#[derive(Debug)]
pub struct LaunchConfig {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
    pub stream: CUstream,
    pub attributes: *const LaunchAttribute,
    pub attribute_count: u32,
}

/// CUlaunchAttribute: a number of CUlaunchAttributeID and 64 bytes of value.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct LaunchAttribute {
    pub id: u32,
    pub padding: u32,
    pub value: [u32; 16],
}

const _: () = assert!(size_of::<LaunchConfig>() == 56 && size_of::<LaunchAttribute>() == 72);

/// Numbers in CUlaunchAttributeID.
pub mod attribute {
    pub const IGNORE: u32 = 0;
    pub const ACCESS_POLICY_WINDOW: u32 = 1;
    pub const COOPERATIVE: u32 = 2;
    pub const SYNCHRONIZATION_POLICY: u32 = 3;
    pub const CLUSTER_DIMENSION: u32 = 4;
    pub const PROGRAMMATIC_STREAM_SERIALIZATION: u32 = 6;
    pub const PRIORITY: u32 = 8;
}

/// Ends the list in `extra`, and what its other entries say.
const PARAM_END: usize = 0;
const PARAM_BUFFER_POINTER: usize = 1;
const PARAM_BUFFER_SIZE: usize = 2;

/// What the attributes of a launch ask for.
#[derive(Default)]
struct Wishes {
    is_cooperative: bool,
}

fn read_attributes(attributes: &[LaunchAttribute]) -> Result<Wishes, CUresult> {
    let mut wishes = Wishes::default();
    for LaunchAttribute { id, value, .. } in attributes {
        match *id {
            attribute::COOPERATIVE => wishes.is_cooperative = value[0] != 0,
            attribute::CLUSTER_DIMENSION if value[..3] != [1, 1, 1] => {
                let [x, y, z, ..] = *value;
                let sentence =
                    format!("a cluster of {x} x {y} x {z} blocks: sm_80 has no clusters");
                return refuse(CUresult::NOT_SUPPORTED, sentence);
            }
            // Hints, and an order that streams have here anyway.
            attribute::IGNORE
            | attribute::ACCESS_POLICY_WINDOW
            | attribute::SYNCHRONIZATION_POLICY
            | attribute::CLUSTER_DIMENSION
            | attribute::PROGRAMMATIC_STREAM_SERIALIZATION
            | attribute::PRIORITY => {}
            id => {
                let sentence = format!("launch attribute {id} is not emulated");
                return refuse(CUresult::NOT_SUPPORTED, sentence);
            }
        }
    }
    Ok(wishes)
}

/// # Safety
/// `pointers` and `extra` are null or as cuLaunchKernel asks.
unsafe fn read_params(
    kernel: &Kernel,
    pointers: *const *const c_void,
    extra: *const *const c_void,
) -> Result<Vec<u8>, CUresult> {
    let mut params = vec![0; kernel.param_bytes];
    if !pointers.is_null() && !extra.is_null() {
        return Err(CUresult::INVALID_VALUE);
    }
    // SAFETY: the caller's promise: one pointer for each parameter, to as many bytes; or a list of
    // pairs that ends.
    unsafe {
        if !extra.is_null() {
            let (mut buffer, mut bytes) = (null_mut::<u8>().cast_const(), 0);
            let mut entry = extra;
            while *entry as usize != PARAM_END {
                match *entry as usize {
                    PARAM_BUFFER_POINTER => buffer = (*entry.add(1)).cast(),
                    PARAM_BUFFER_SIZE => bytes = *(*entry.add(1)).cast::<usize>(),
                    _ => return Err(CUresult::INVALID_VALUE),
                }
                entry = entry.add(2);
            }
            if bytes != params.len() || (buffer.is_null() && bytes > 0) {
                let sentence = format!(
                    "{} takes {} bytes of parameters, got {bytes}",
                    kernel.name,
                    params.len()
                );
                return refuse(CUresult::INVALID_VALUE, sentence);
            }
            params.as_mut_ptr().copy_from(buffer, bytes);
            return Ok(params);
        }
        for (i, param) in kernel.params.iter().enumerate() {
            let value = if pointers.is_null() { null_mut() } else { (*pointers.add(i)).cast_mut() };
            if value.is_null() {
                let count = kernel.params.len();
                let sentence =
                    format!("{} takes {count} parameters; number {i} is null", kernel.name);
                return refuse(CUresult::INVALID_VALUE, sentence);
            }
            let place = &mut params[param.offset..param.offset + param.bytes];
            place.as_mut_ptr().copy_from(value.cast(), param.bytes);
        }
    }
    Ok(params)
}

impl Function {
    /// Blocks of `threads` threads and so much dynamic shared memory that fit on one
    /// multiprocessor. Registers, which PTX does not tell, are left out.
    fn blocks_per_multiprocessor(&self, threads: u32, dynamic_shared: usize) -> u32 {
        if threads > self.kernel.max_threads || dynamic_shared > self.max_dynamic_shared as usize {
            return 0;
        }
        let shared = self.kernel.static_shared + dynamic_shared as u32 + SHARED_RESERVED_PER_BLOCK;
        let by_shared = shared_per_multiprocessor() / shared.next_multiple_of(128);
        let by_threads = MAX_THREADS_PER_MULTIPROCESSOR / threads.next_multiple_of(WARP);
        by_shared.min(by_threads).min(MAX_BLOCKS_PER_MULTIPROCESSOR)
    }

    fn check_limits(&self, grid: [u32; 3], block: [u32; 3], dynamic_shared: u32) -> Done {
        let name = &self.kernel.name;
        let within = |sizes: [u32; 3], most: [u32; 3]| {
            sizes.iter().zip(most).all(|(&size, most)| (1..=most).contains(&size))
        };
        if !within(grid, MAX_GRID) {
            let sentence =
                format!("{name}: a grid of {grid:?} blocks; 1 to {MAX_GRID:?} are possible");
            return refuse(CUresult::INVALID_VALUE, sentence);
        }
        let threads: u32 = if within(block, MAX_BLOCK) { block.iter().product() } else { u32::MAX };
        if threads > MAX_THREADS_PER_BLOCK {
            let sentence = format!(
                "{name}: a block of {block:?} threads; 1 to {MAX_BLOCK:?} are possible, and \
                 {MAX_THREADS_PER_BLOCK} in all"
            );
            return refuse(CUresult::INVALID_VALUE, sentence);
        }
        if threads > self.kernel.max_threads {
            let most = self.kernel.max_threads;
            let sentence = format!("{name}: a block of {threads} threads; its bound is {most}");
            return refuse(CUresult::LAUNCH_OUT_OF_RESOURCES, sentence);
        }
        if dynamic_shared > self.max_dynamic_shared {
            let sentence = format!(
                "{name}: {dynamic_shared} bytes of dynamic shared memory beside {} static ones; \
                 allowed are {}, and after cuFuncSetAttribute(MAX_DYNAMIC_SHARED_SIZE_BYTES) up to {}",
                self.kernel.static_shared,
                self.max_dynamic_shared,
                shared_per_block_opt_in().saturating_sub(self.kernel.static_shared)
            );
            return refuse(CUresult::INVALID_VALUE, sentence);
        }
        Ok(())
    }
}

/// # Safety
/// As [`read_params`].
unsafe fn launch(
    config: &LaunchConfig,
    wishes: &Wishes,
    function: CUfunction,
    pointers: *const *const c_void,
    extra: *const *const c_void,
) -> Done {
    let driver = Driver::current()?;
    let &LaunchConfig { grid, block, dynamic_shared, .. } = config;
    let state = driver.state();
    let function = state.functions.get(function)?;
    function.check_limits(grid, block, dynamic_shared)?;
    if wishes.is_cooperative {
        let threads = block.iter().product();
        let resident =
            MULTIPROCESSORS * function.blocks_per_multiprocessor(threads, dynamic_shared as usize);
        let blocks: u64 = grid.iter().map(|&size| u64::from(size)).product();
        if blocks > resident.into() {
            let name = &function.kernel.name;
            let sentence = format!("{name}: a cooperative grid of {blocks} blocks; {resident} fit");
            return refuse(CUresult::COOPERATIVE_LAUNCH_TOO_LARGE, sentence);
        }
    }
    let (kernel, module) = (Arc::clone(&function.kernel), function.module);
    drop(state);
    // SAFETY: the caller's promise.
    let params = unsafe { read_params(&kernel, pointers, extra) }?;
    let launch = KernelLaunch { kernel, module, grid, block, dynamic_shared, params };
    driver.submit(config.stream, Work::Kernel(launch))
}

impl KernelLaunch {
    pub fn run(&self, driver: &Driver) -> Done {
        let KernelLaunch { kernel, module, grid, block, dynamic_shared, params } = self;
        if driver.state().modules.get(*module).is_err() {
            let sentence = format!("a graph launches {}, whose module was unloaded", kernel.name);
            return refuse(CUresult::INVALID_HANDLE, sentence);
        }
        let (grid, block, dynamic_shared) = (*grid, *block, *dynamic_shared);
        let launch = Launch { kernel, grid, block, dynamic_shared, params };
        match exec::launch(&driver.memory, &launch, &driver.options()) {
            Ok(counters) => {
                launched::remember(&launch, counters);
                Ok(())
            }
            Err(fault) => {
                report(fault.to_string());
                Err(code(&fault))
            }
        }
    }
}

/// What a device says of such a fault; of one that it would not notice, an illegal address.
fn code(fault: &Fault) -> CUresult {
    match fault.kind {
        Kind::Misaligned => CUresult::MISALIGNED_ADDRESS,
        Kind::BarrierDivergence | Kind::Deadlock | Kind::MissingLanes | Kind::Trap => {
            CUresult::LAUNCH_FAILED
        }
        Kind::Assertion => CUresult::ASSERT,
        Kind::Endless => CUresult::LAUNCH_TIMEOUT,
        Kind::OutOfBounds
        | Kind::UseAfterFree
        | Kind::Uninitialised
        | Kind::Race
        | Kind::PendingCopy
        | Kind::ReadOnly => CUresult::ILLEGAL_ADDRESS,
    }
}

fn occupancy(out: Out<c_int>, function: CUfunction, threads: c_int, shared: usize) -> Done {
    let state = Driver::current()?.state();
    let function = state.functions.get(function)?;
    let threads = u32::try_from(threads).ok().filter(|&threads| threads > 0);
    let threads = threads.ok_or(CUresult::INVALID_VALUE)?;
    put(out, function.blocks_per_multiprocessor(threads, shared) as c_int)
}

api! {
    fn cuLaunchKernel(
        function: CUfunction,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        dynamic_shared: u32,
        stream: CUstream,
        params: *const *const c_void,
        extra: *const *const c_void,
    ) {
        let config = LaunchConfig {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            dynamic_shared,
            stream,
            attributes: null_mut(),
            attribute_count: 0,
        };
        // SAFETY: the manual's contract, which `launch` repeats.
        unsafe { launch(&config, &Wishes::default(), function, params, extra) }
    }

    fn cuLaunchCooperativeKernel(
        function: CUfunction,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        dynamic_shared: u32,
        stream: CUstream,
        params: *const *const c_void,
    ) {
        let config = LaunchConfig {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            dynamic_shared,
            stream,
            attributes: null_mut(),
            attribute_count: 0,
        };
        // SAFETY: the manual's contract, which `launch` repeats.
        unsafe { launch(&config, &Wishes { is_cooperative: true }, function, params, null_mut()) }
    }

    fn cuLaunchKernelEx(
        config: Option<&LaunchConfig>,
        function: CUfunction,
        params: *const *const c_void,
        extra: *const *const c_void,
    ) {
        let config = config.ok_or(CUresult::INVALID_VALUE)?;
        let attributes = match config.attribute_count as usize {
            0 => &[],
            _ if config.attributes.is_null() => return Err(CUresult::INVALID_VALUE),
            // SAFETY: the manual's contract.
            count => unsafe { std::slice::from_raw_parts(config.attributes, count) },
        };
        let wishes = read_attributes(attributes)?;
        // SAFETY: the manual's contract, which `launch` repeats.
        unsafe { launch(config, &wishes, function, params, extra) }
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: Out<c_int>,
        function: CUfunction,
        threads: c_int,
        dynamic_shared: usize,
    ) {
        occupancy(blocks, function, threads, dynamic_shared)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: Out<c_int>,
        function: CUfunction,
        threads: c_int,
        dynamic_shared: usize,
        _flags: u32,
    ) {
        occupancy(blocks, function, threads, dynamic_shared)
    }
}
