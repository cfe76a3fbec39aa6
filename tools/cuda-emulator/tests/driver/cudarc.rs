//! The shared library, reached as a product reaches it: by cudarc, which loads "libcuda.so".

use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Once};

use cudarc::driver::result::module;
use cudarc::driver::sys::{self, CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use cudarc::driver::{
    CudaContext, CudaStream, DevicePtr, DriverError, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;

use crate::nvcc;

/// The library beside this test: its file name is its own, its SONAME is libcuda.so.
fn library() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    folder.join("libemucuda.so")
}

/// A context of the emulated driver. Loaded by its path, it is what "libcuda.so" means from then
/// on.
fn context() -> Arc<CudaContext> {
    static LOAD: Once = Once::new();
    LOAD.call_once(|| {
        let path = CString::new(library().into_os_string().into_encoded_bytes()).unwrap();
        // SAFETY: a library of this workspace, whose initialisers do nothing.
        let loaded = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!loaded.is_null(), "{path:?} cannot be loaded");
    });
    let context = CudaContext::new(0).unwrap();
    assert_eq!(context.name().unwrap(), "Emulated sm_80 (silkie cuda-emulator)");
    context
}

fn kernels() -> Ptx {
    Ptx::from_src(include_str!("kernels.ptx"))
}

#[test]
fn buffers_are_copied_filled_and_freed() {
    let context = context();
    assert!(context.has_async_alloc());
    assert_eq!(context.compute_capability().unwrap(), (8, 0));
    let streams = [context.default_stream(), context.new_stream().unwrap()];
    for stream in &streams {
        let values: Vec<u32> = (0..1000).collect();
        let mut a = stream.clone_htod(&values).unwrap();
        let b = stream.clone_dtod(&a).unwrap();
        stream.memset_zeros(&mut a).unwrap();
        assert_eq!(stream.clone_dtoh(&a).unwrap(), vec![0; 1000]);
        assert_eq!(stream.clone_dtoh(&b.slice(10..20)).unwrap(), values[10..20]);
        stream.synchronize().unwrap();
    }
    streams[0].join(&streams[1]).unwrap();
    context.synchronize().unwrap();
    // SAFETY: written before it is read.
    let mut pinned = unsafe { context.alloc_pinned::<f32>(8) }.unwrap();
    pinned.as_mut_slice().unwrap().fill(2.5);
    let device = streams[1].clone_htod(&pinned).unwrap();
    assert_eq!(streams[1].clone_dtoh(&device).unwrap(), [2.5; 8]);
}

#[test]
fn a_kernel_is_loaded_launched_and_found_at_fault() {
    let context = context();
    let stream = context.new_stream().unwrap();
    let add = context.load_module(kernels()).unwrap().load_function("add").unwrap();
    let words = stream.clone_htod(&[1u32; 100]).unwrap();
    let mut launch = stream.launch_builder(&add);
    launch.arg(&words).arg(&41u32);
    // SAFETY: `add` takes a pointer and a word, and touches 100 words.
    unsafe { launch.launch(LaunchConfig::for_num_elems(100)) }.unwrap_err();
    let shape = LaunchConfig { grid_dim: (4, 1, 1), block_dim: (25, 1, 1), shared_mem_bytes: 0 };
    let words = stream.clone_htod(&[1u32; 100]).unwrap();
    let mut launch = stream.launch_builder(&add);
    launch.arg(&words).arg(&41u32);
    // SAFETY: as above, 4 x 25 words.
    unsafe { launch.launch(shape) }.unwrap();
    assert_eq!(stream.clone_dtoh(&words).unwrap(), [42; 100]);
    let mut launch = stream.launch_builder(&add);
    launch.arg(&words).arg(&1u32);
    let beyond = LaunchConfig { grid_dim: (5, 1, 1), ..shape };
    // SAFETY: the emulated driver checks every access; 25 of them are out of bounds.
    let error = unsafe { launch.launch(beyond) }.unwrap_err();
    assert_eq!(error.0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(format!("{error}").contains("an illegal memory access was encountered"), "{error}");
    assert_eq!(stream.clone_dtoh(&words).unwrap().len(), 100, "and the device goes on");
}

#[test]
fn a_stream_is_captured_and_its_graph_launched() {
    let context = context();
    // SAFETY: one stream only, so nothing needs events.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let mut words = stream.clone_htod(&[7u32; 4]).unwrap();
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    stream.memset_zeros(&mut words).unwrap();
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    assert_eq!(stream.clone_dtoh(&words).unwrap(), [7; 4]);
    for _ in 0..2 {
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&words).unwrap(), [0; 4]);
        stream.memcpy_htod(&[1u32; 4], &mut words).unwrap();
    }
}

/// As in scale.cu.
#[repr(C, align(64))]
struct Params {
    x: u64,
    y: u64,
    a: f32,
    count: i32,
}

#[test]
fn a_fat_binary_of_nvcc_is_launched_with_attributes() {
    let Some(nvcc) = nvcc::find("a_fat_binary_of_nvcc_is_launched_with_attributes") else { return };
    let source = nvcc::root().join("tools/cuda-emulator/tests/driver/scale.cu");
    let target = "-gencode=arch=compute_80,code=[compute_80,sm_80]";
    let image = nvcc::compile(&nvcc, &source, &["-fatbin", "-O3", "-lineinfo", target]);
    let stream = context().new_stream().unwrap();
    // SAFETY: the image is whole.
    let scale = unsafe {
        let loaded = module::load_data(image.as_ptr().cast()).unwrap();
        module::get_function(loaded, c"scale".to_owned()).unwrap()
    };
    let x: Vec<f32> = (0..1001).map(|i| i as f32).collect();
    let (device_x, device_y) =
        (stream.clone_htod(&x).unwrap(), stream.alloc_zeros::<f32>(1001).unwrap());
    let [x_address, y_address] = [&device_x, &device_y].map(|y| y.device_ptr(&stream).0);
    let params = |count| Params { x: x_address, y: y_address, a: 0.5, count };
    launch_scale(&stream, scale, &params(1001)).unwrap();
    let expected: Vec<f32> = x.iter().map(|x| 0.5 * x).collect();
    assert_eq!(stream.clone_dtoh(&device_y).unwrap(), expected);

    let beyond = launch_scale(&stream, scale, &params(1002)).unwrap_err();
    assert_eq!(beyond.0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let source = "scale.cu:16 ";
    let told = beyond.to_string();
    assert!(told.contains("out of bounds in scale") && told.contains(source), "{told}");
    let asserted = launch_scale(&stream, scale, &params(-1)).unwrap_err();
    assert_eq!(asserted.0, CUresult::CUDA_ERROR_ASSERT);
    let told = asserted.to_string();
    assert!(told.contains("Assertion `p.count >= 0` failed at ") && told.contains(":15 in void"));
}

fn launch_scale(
    stream: &CudaStream,
    scale: sys::CUfunction,
    params: &Params,
) -> Result<(), DriverError> {
    let mut pointers = [std::ptr::from_ref(params).cast::<c_void>().cast_mut()];
    // SAFETY: all zero is a valid attribute: IGNORE.
    let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
    attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
    let config = sys::CUlaunchConfig {
        gridDimX: 4,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 256,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 1024,
        hStream: stream.cu_stream(),
        attrs: &mut attribute,
        numAttrs: 1,
    };
    let extra = std::ptr::null_mut();
    // SAFETY: the kernel is called as scale.cu declares it; its accesses are checked.
    unsafe { sys::cuLaunchKernelEx(&config, scale, pointers.as_mut_ptr(), extra) }.result()
}

#[test]
fn the_driver_finds_its_functions_by_name() {
    let _context = context();
    let find = |name: &std::ffi::CStr| {
        let mut function = std::ptr::null_mut();
        let mut status = sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SUCCESS;
        // SAFETY: a C string and two places.
        let code = unsafe {
            sys::cuGetProcAddress_v2(name.as_ptr(), &mut function, 12020, 0, &mut status)
        };
        (code, function as usize, status as u32)
    };
    let (code, function, status) = find(c"cuMemAlloc");
    assert_eq!((code, status), (CUresult::CUDA_SUCCESS, 0));
    assert_eq!(find(c"cuMemAlloc_v2").1, function);
    assert_eq!(find(c"cuMemNothing"), (CUresult::CUDA_ERROR_NOT_FOUND, 0, 1));
    assert_eq!(find(c"malloc"), (CUresult::CUDA_ERROR_NOT_FOUND, 0, 1));
}
