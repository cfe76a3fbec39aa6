//! Modules, launches, their limits and their faults.

use std::ffi::c_void;
use std::ptr::{null, null_mut, without_provenance};

use emucuda::driver::device::cuDeviceGetAttribute;
use emucuda::driver::memory::*;

use super::*;
use crate::process;

#[test]
fn a_kernel_runs_with_the_parameters_of_its_launch() {
    let _driver = driver();
    let module = kernels();
    let add_kernel = function(module, "add");
    assert_eq!(function(module, "add"), add_kernel, "the same handle each time");
    let words = Words::new(&[1; 256]);
    let params = [param(&words.address), param(&4u32)];
    assert_eq!(launch(add_kernel, 4, 64, 0, 0, &params), OK);
    assert_eq!(words.read(), [5; 256]);
    let missing = [param(&words.address), null()];
    assert_eq!(launch(add_kernel, 4, 64, 0, 0, &missing), CUresult::INVALID_VALUE);
    assert_eq!(report(), "add takes 2 parameters; number 1 is null");
    let none = call!(cuLaunchKernel(add_kernel, 1, 1, 1, 1, 1, 1, 0, 0, null(), null()));
    assert_eq!(none, CUresult::INVALID_VALUE);
    assert_eq!(words.read(), [5; 256]);
    assert_eq!(call!(cuModuleUnload(module)), OK);
    assert_eq!(launch(add_kernel, 4, 64, 0, 0, &params), CUresult::INVALID_HANDLE);
}

#[test]
fn parameters_may_come_in_one_buffer() {
    let _driver = driver();
    let module = kernels();
    let words = Words::new(&[1]);
    let mut buffer = words.address.to_le_bytes().to_vec();
    buffer.extend(7u32.to_le_bytes());
    let mut bytes = buffer.len();
    let mut launch = |bytes: &usize| {
        let [pointer, size] = [1, 2].map(without_provenance::<c_void>);
        let extra = [pointer, buffer.as_mut_ptr().cast(), size, param(bytes), null()];
        let add_kernel = function(module, "add");
        call!(cuLaunchKernel(add_kernel, 1, 1, 1, 1, 1, 1, 0, 0, null(), extra.as_ptr()))
    };
    assert_eq!(launch(&bytes), OK);
    assert_eq!(words.read(), [8]);
    bytes += 4;
    assert_eq!(launch(&bytes), CUresult::INVALID_VALUE);
    assert_eq!(report(), "add takes 12 bytes of parameters, got 16");
}

#[test]
fn modules_are_refused_with_the_line_at_fault() {
    let _driver = driver();
    let load = |text: &str| {
        let text = CString::new(text).unwrap();
        call!(cuModuleLoadData(somewhere(), text.as_ptr().cast()))
    };
    let unknown = include_str!("kernels.ptx").replace("trap;", "frobnicate.b32;");
    let line = unknown.lines().position(|line| line.contains("frobnicate")).unwrap() + 1;
    assert_eq!(load(&unknown), CUresult::INVALID_PTX);
    let said = report();
    assert!(said.contains("frobnicate.b32") && said.contains(&line.to_string()), "{said}");
    assert_eq!(load("no PTX"), CUresult::INVALID_IMAGE);
    assert_eq!(call!(cuModuleLoadData(somewhere(), null())), CUresult::INVALID_IMAGE);
    let elf = c"\x7fELF".as_ptr().cast();
    assert_eq!(call!(cuModuleLoadData(somewhere(), elf)), CUresult::NO_BINARY_FOR_GPU);
    let nowhere_to_be_found = c"/nonexistent/kernels.ptx".as_ptr();
    let code = call!(cuModuleLoad(somewhere(), nowhere_to_be_found));
    assert_eq!(code, CUresult::FILE_NOT_FOUND);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/driver/kernels.ptx\0");
    let module = get!(cuModuleLoad(path.as_ptr().cast()));
    let missing = call!(cuModuleGetFunction(somewhere(), module, c"gone".as_ptr()));
    assert_eq!(missing, CUresult::NOT_FOUND);
    let missing = call!(cuModuleGetFunction(somewhere(), module, null()));
    assert_eq!(missing, CUresult::INVALID_VALUE);
}

#[test]
fn variables_of_a_module_have_addresses() {
    let _driver = driver();
    let module = kernels();
    let variable = |name: &std::ffi::CStr| {
        let name = name.as_ptr();
        both_written(|address, bytes| call!(cuModuleGetGlobal_v2(address, bytes, module, name)))
    };
    let ((counter, four), (table, eight)) = (variable(c"counter"), variable(c"table"));
    assert_eq!((four, eight), (4, 8));
    let words = Words::new(&[0; 2]);
    let run = || launch(function(module, "variables"), 1, 1, 0, 0, &[param(&words.address)]);
    assert_eq!(run(), OK);
    assert_eq!(words.read(), [7, 4]);
    use emucuda::driver::copy::cuMemsetD32_v2;
    assert_eq!(call!(cuMemsetD32_v2(counter, 70, 1)), OK);
    assert_eq!(call!(cuMemsetD32_v2(table, 40, 2)), OK, "the host may write constants");
    assert_eq!(run(), OK);
    assert_eq!(words.read(), [70, 40]);
    assert_eq!(call!(cuMemFree_v2(counter)), CUresult::INVALID_VALUE);
    let missing = call!(cuModuleGetGlobal_v2(None, None, module, c"gone".as_ptr()));
    assert_eq!(missing, CUresult::NOT_FOUND);
}

#[test]
fn a_launch_beyond_the_device_is_refused() {
    let _driver = driver();
    let module = kernels();
    let kernel = function(module, "at_most_64_threads");
    let shape = |grid: [u32; 3], block: [u32; 3]| {
        let ([a, b, c], [x, y, z]) = (grid, block);
        call!(cuLaunchKernel(kernel, a, b, c, x, y, z, 0, 0, null(), null()))
    };
    assert_eq!(shape([2, 3, 4], [4, 4, 4]), OK);
    let refused = [
        ([0, 1, 1], [1, 1, 1]),
        ([1, 65536, 1], [1, 1, 1]),
        ([1, 1, 65536], [1, 1, 1]),
        ([1 << 31, 1, 1], [1, 1, 1]),
        ([1, 1, 1], [1, 0, 1]),
        ([1, 1, 1], [1025, 1, 1]),
        ([1, 1, 1], [1, 1, 65]),
        ([1, 1, 1], [32, 33, 1]),
        ([1, 1, 1], [u32::MAX, u32::MAX, u32::MAX]),
    ];
    for (grid, block) in refused {
        assert_eq!(shape(grid, block), CUresult::INVALID_VALUE, "{grid:?} {block:?}");
    }
    assert_eq!(shape([1, 1, 1], [65, 1, 1]), CUresult::LAUNCH_OUT_OF_RESOURCES);
    assert_eq!(report(), "at_most_64_threads: a block of 65 threads; its bound is 64");
}

#[test]
fn more_shared_memory_must_be_asked_for() {
    let _driver = driver();
    let module = kernels();
    let kernel = function(module, "has_shared");
    let words = Words::new(&[0]);
    let run = |dynamic| launch(kernel, 1, 1, dynamic, 0, &[param(&words.address)]);
    let attribute = |number| get!(cuFuncGetAttribute(number, kernel));
    assert_eq!([0, 1, 5, 6, 8].map(attribute), [1024, 1024, 80, 80, 47 << 10]);
    assert_eq!(run(47 << 10), OK);
    assert_eq!(words.read(), [5]);
    assert_eq!(run((47 << 10) + 1), CUresult::INVALID_VALUE);
    assert!(report().contains("up to 165888"), "{}", report());
    assert_eq!(call!(cuFuncSetAttribute(kernel, 8, 162 << 10)), OK);
    assert_eq!(run(162 << 10), OK);
    assert_eq!(call!(cuFuncSetAttribute(kernel, 8, (162 << 10) + 1)), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuFuncSetAttribute(kernel, 8, -1)), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuFuncSetAttribute(kernel, 9, 100)), OK);
    assert_eq!(call!(cuFuncSetAttribute(kernel, 1, 1)), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuFuncGetAttribute(somewhere(), 99, kernel)), CUresult::INVALID_VALUE);
    let resident = |threads, shared| {
        get!(cuOccupancyMaxActiveBlocksPerMultiprocessor(kernel, threads, shared))
    };
    assert_eq!(resident(1024, 0), 2, "2048 threads");
    assert_eq!(resident(32, 0), 32, "32 blocks");
    assert_eq!(resident(32, 39 << 10), 4, "164 KiB of shared memory, one of each block's reserved");
    assert_eq!(resident(2048, 0), 0);
    let info = both_written(|offset, bytes| call!(cuFuncGetParamInfo(kernel, 0, offset, bytes)));
    assert_eq!(info, (0, 8));
    let beyond = call!(cuFuncGetParamInfo(kernel, 1, somewhere(), None));
    assert_eq!(beyond, CUresult::INVALID_VALUE);
    assert_eq!(get!(cuFuncGetModule(kernel)), module);
}

/// As much shared memory as an H100's blocks have.
#[test]
fn the_environment_gives_more_shared_memory() {
    let test = "driver::launch::the_environment_gives_more_shared_memory";
    if process::alone(test, &[("CUDA_EMULATOR_SHARED", "227")]).is_some() {
        return;
    }
    let _driver = driver();
    let attributes = [8, 81, 97].map(|number| get!(cuDeviceGetAttribute(number, 0)));
    assert_eq!(attributes, [48 << 10, 228 << 10, 227 << 10]);
    let (kernel, words) = (function(kernels(), "has_shared"), Words::new(&[0]));
    let run = |dynamic| launch(kernel, 1, 1, dynamic, 0, &[param(&words.address)]);
    assert_eq!(run(226 << 10), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuFuncSetAttribute(kernel, 8, 226 << 10)), OK);
    assert_eq!(run(226 << 10), OK);
    assert_eq!(words.read(), [5]);
    assert_eq!(call!(cuFuncSetAttribute(kernel, 8, (226 << 10) + 1)), CUresult::INVALID_VALUE);
}

#[test]
fn attributes_of_a_launch_are_understood_or_refused() {
    let _driver = driver();
    let module = kernels();
    let kernel = function(module, "add");
    let words = Words::new(&[0]);
    let params = [param(&words.address), param(&1u32)];
    let run = |blocks: u32, attributes: &[(u32, [u32; 3])]| {
        let attributes: Vec<_> = attributes
            .iter()
            .map(|&(id, [x, y, z])| {
                let mut value = [0; 16];
                value[..3].copy_from_slice(&[x, y, z]);
                LaunchAttribute { id, padding: 0, value }
            })
            .collect();
        let config = LaunchConfig {
            grid: [blocks, 1, 1],
            block: [1, 1, 1],
            dynamic_shared: 0,
            stream: 0,
            attributes: attributes.as_ptr(),
            attribute_count: attributes.len() as u32,
        };
        call!(cuLaunchKernelEx(Some(&config), kernel, params.as_ptr(), null()))
    };
    use attribute::*;
    let harmless = [(CLUSTER_DIMENSION, [1, 1, 1]), (PROGRAMMATIC_STREAM_SERIALIZATION, [1, 0, 0])];
    assert_eq!(run(1, &[]), OK);
    assert_eq!(run(1, &harmless), OK);
    assert_eq!(run(1, &[(COOPERATIVE, [1, 0, 0])]), OK);
    assert_eq!(words.read(), [3]);
    assert_eq!(run(1, &[(CLUSTER_DIMENSION, [2, 1, 1])]), CUresult::NOT_SUPPORTED);
    assert_eq!(report(), "a cluster of 2 x 1 x 1 blocks: sm_80 has no clusters");
    let too_large = CUresult::COOPERATIVE_LAUNCH_TOO_LARGE;
    assert_eq!(run(129, &[(COOPERATIVE, [1, 0, 0])]), too_large, "4 x 32 blocks fit");
    assert_eq!(run(1, &[(7, [0; 3])]), CUresult::NOT_SUPPORTED);
    let code = call!(cuLaunchKernelEx(None, kernel, params.as_ptr(), null()));
    assert_eq!(code, CUresult::INVALID_VALUE);
    let cooperative =
        call!(cuLaunchCooperativeKernel(kernel, 1, 1, 1, 1, 1, 1, 0, 0, params.as_ptr()));
    assert_eq!(cooperative, OK);
    assert_eq!(words.read(), [4]);
}

#[test]
fn a_fault_is_the_code_of_a_device_and_a_report() {
    let _driver = driver();
    let module = kernels();
    let add_kernel = function(module, "add");
    let words = Words::new(&[1; 8]);
    assert_eq!(add(add_kernel, words.address, 1, 9, 0), CUresult::ILLEGAL_ADDRESS);
    let said = report();
    assert!(said.starts_with("out of bounds in add, ld.global.u32 at "), "{said}");
    assert!(said.contains("lane 8 = thread (8, 0, 0), 4 bytes of global memory at 0x"), "{said}");
    assert_eq!(add(add_kernel, words.address + 2, 1, 1, 0), CUresult::MISALIGNED_ADDRESS);
    let unwritten = get!(cuMemAlloc_v2(4));
    assert_eq!(add(add_kernel, unwritten, 1, 1, 0), CUresult::ILLEGAL_ADDRESS);
    assert!(report().starts_with("uninitialised read in add"), "{}", report());
    assert_eq!(call!(cuMemFree_v2(unwritten)), OK);
    assert_eq!(add(add_kernel, unwritten, 1, 1, 0), CUresult::ILLEGAL_ADDRESS);
    assert!(report().starts_with("use after free in add"), "{}", report());
    let failed = CUresult::LAUNCH_FAILED;
    assert_eq!(launch(function(module, "half_a_barrier"), 1, 32, 0, 0, &[]), failed);
    assert!(report().starts_with("barrier divergence in half_a_barrier"), "{}", report());
    assert_eq!(launch(function(module, "stops"), 1, 1, 0, 0, &[]), failed);
    assert!(report().starts_with("trap in stops"), "{}", report());
    let mut few = [0u8; 4];
    assert_eq!(call!(emucuda_last_report(few.as_mut_ptr(), 4)), report().len());
    assert_eq!(&few, b"trap");
    assert_eq!(call!(emucuda_last_report(null_mut(), 0)), report().len());
    let fresh = Words::new(&[1]);
    assert_eq!(add(add_kernel, fresh.address, 1, 1, 0), OK, "faults do not stick");
}
