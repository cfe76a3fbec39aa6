//! One typed launch: a kernel by name, a grid, and one struct of arguments by value.

use std::collections::HashMap;
use std::ffi::{CString, c_void};

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute};

use super::driver::Told;
use super::{Cuda, Gpu};
use crate::device::kernels::{self, Module};
use crate::error::{Error, Result};

/// The one parameter of a kernel, `const __grid_constant__ NAME p`: pointers, sizes, strides,
/// scalars; nothing that changes between the steps of a run, because launches are replayed from
/// graphs. `align(64)` when it holds a tensor map.
///
/// # Safety
/// `#[repr(C)]` without padding that the kernel reads, field by field the struct in the `.cu`. Its
/// size is asserted on both sides: `const _: () = assert!(size_of::<Forward>() == 72);` here,
/// `static_assert(sizeof(Forward) == 72)` there.
pub unsafe trait Arguments: Copy + 'static {}

/// A kernel's symbol, as in [`kernels::Kernel::symbol`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelName(pub &'static str);

/// How many blocks of how many threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Along x, y, z; without any block a launch does nothing.
    pub blocks: [u32; 3],
    /// Threads of a block, along x.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// Blocks of a cluster along x, y, z (sm_90 and newer).
    pub cluster: [u32; 3],
    /// May start before the launch ahead of it has ended; the kernel itself waits for what it reads
    /// (`griddepcontrol.wait`, sm_90 and newer).
    pub programmatic: bool,
}

impl Grid {
    /// `blocks` of `threads`, without dynamic shared memory, clusters or early start.
    pub fn new(blocks: [u32; 3], threads: u32) -> Grid {
        Grid { blocks, threads, shared: 0, cluster: [1; 3], programmatic: false }
    }
}

impl Cuda {
    /// Puts a kernel on the compute stream. Errors: no such kernel, a grid the GPU cannot run;
    /// also an error of a kernel before it, which the driver tells late.
    ///
    /// # Safety
    /// `arguments` is the struct that this kernel takes, and until it has run every pointer in it
    /// covers, on this device, all that the kernel touches through it.
    pub unsafe fn launch<A: Arguments>(
        self,
        kernel: &KernelName,
        grid: Grid,
        arguments: &A,
    ) -> Result<()> {
        let Some(&function) = self.0.functions.get(kernel.0) else {
            return Err(Error::Device(format!(
                "{self}: no kernel {} in this binary; build again",
                kernel.0
            )));
        };
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let mut parameters = [(&raw const *arguments).cast_mut().cast::<c_void>()];
        let (mut attributes, count) = grid.attributes();
        let [x, y, z] = grid.blocks;
        self.work(kernel.0, |stream| {
            let config = sys::CUlaunchConfig {
                gridDimX: x,
                gridDimY: y,
                gridDimZ: z,
                blockDimX: grid.threads,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: grid.shared,
                hStream: stream,
                attrs: attributes.as_mut_ptr(),
                numAttrs: count,
            };
            let (parameters, none) = (parameters.as_mut_ptr(), std::ptr::null_mut());
            // SAFETY: the one parameter is as large as the caller promises; config and attributes
            // live until the call returns.
            unsafe { sys::cuLaunchKernelEx(&config, function.0, parameters, none) }.result()
        })
    }
}

impl Grid {
    /// The launch attributes, and how many of them count.
    fn attributes(&self) -> ([sys::CUlaunchAttribute; 2], u32) {
        use sys::CUlaunchAttributeID as Id;
        let [x, y, z] = self.cluster;
        let mut cluster = sys::CUlaunchAttributeValue { pad: [0; 64] };
        cluster.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
        let mut early = sys::CUlaunchAttributeValue { pad: [0; 64] };
        early.programmaticStreamSerializationAllowed = 1;
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let cluster = attribute(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, cluster);
        let early = attribute(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, early);
        match (self.cluster != [1; 3], self.programmatic) {
            (true, programmatic) => ([cluster, early], 1 + u32::from(programmatic)),
            (false, programmatic) => ([early, cluster], u32::from(programmatic)),
        }
    }
}

/// A loaded entry point.
#[derive(Clone, Copy)]
pub(super) struct Function(CUfunction);

/// Every kernel of the program that `gpu` can run, loaded now, so that no launch loads anything,
/// least of all during a capture.
pub(super) fn load(gpu: &Gpu) -> Result<HashMap<&'static str, Function>> {
    let mut functions = HashMap::new();
    for module in kernels::modules() {
        let runs = |arch: &str| arch != "sm_90a" || gpu.capability == [9, 0];
        if module.kernels.iter().any(|kernel| runs(kernel.arch)) {
            load_module(gpu, module, &mut functions)?;
        }
    }
    Ok(functions)
}

fn load_module(
    gpu: &Gpu,
    module: &'static Module,
    functions: &mut HashMap<&'static str, Function>,
) -> Result<()> {
    use CUfunction_attribute::{
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC,
        CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as STATIC,
    };
    let (at, file) = (format!("cuda:{}", gpu.ordinal), format!("kernels/{}.cu", module.name));
    let fatbin = module.fatbin();
    // SAFETY: a fat binary as nvcc wrote it, aligned.
    let loaded = unsafe { result::module::load_data(fatbin.as_ptr().cast()) };
    let loaded = loaded.told(&at, format_args!("cannot load {file}"))?;
    for kernel in module.kernels {
        let symbol = kernel.symbol;
        if functions.contains_key(symbol) {
            continue; // seen for another architecture
        }
        let what = format!("cannot load {symbol} of {file}");
        let text = CString::new(symbol).unwrap_or_default();
        // SAFETY: the module was loaded above and stays loaded.
        let function = unsafe { result::module::get_function(loaded, text) };
        let function = function.told(&at, &what)?;
        // SAFETY: the function just found.
        unsafe {
            let used = result::function::get_function_attribute(function, STATIC);
            let room = gpu.shared as i32 - used.told(&at, &what)?;
            result::function::set_function_attribute(function, DYNAMIC, room.max(0))
                .told(&at, &what)?;
        }
        functions.insert(symbol, Function(function));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::CUlaunchAttributeID as Id;

    /// No kernel asks for these yet, and the emulated GPU knows no clusters.
    #[test]
    fn clusters_and_early_starts_become_attributes() {
        let plain = Grid::new([4, 1, 1], 128);
        assert_eq!(plain.attributes().1, 0);
        let early = Grid { programmatic: true, ..plain };
        let (attributes, count) = early.attributes();
        assert_eq!(count, 1);
        let early_id = Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        assert_eq!(attributes[0].id, early_id);
        for (grid, expected) in [(plain, 1), (early, 2)] {
            let (attributes, count) = Grid { cluster: [2, 1, 1], ..grid }.attributes();
            assert_eq!(count, expected);
            assert_eq!(attributes[0].id, Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
            assert_eq!(attributes[1].id, early_id);
            // SAFETY: written as these members in `attributes`.
            let (cluster, early) = unsafe {
                let early = attributes[1].value.programmaticStreamSerializationAllowed;
                (attributes[0].value.clusterDim, early)
            };
            assert_eq!(([cluster.x, cluster.y, cluster.z], early), ([2, 1, 1], 1));
        }
    }
}
