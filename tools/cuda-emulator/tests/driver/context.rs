//! The device, the context, errors, and the driver's version.

use std::ffi::CStr;

use emucuda::driver::context::*;
use emucuda::driver::cuDriverGetVersion;
use emucuda::driver::device::*;
use emucuda::driver::error::*;
use emucuda::driver::memory::{cuMemFree_v2, cuMemGetInfo_v2};
use emucuda::driver::stream::cuStreamCreate;

use super::*;
use crate::process;

#[test]
fn there_is_one_device_and_it_says_what_it_is() {
    let _driver = driver();
    assert_eq!(get!(cuDeviceGetCount()), 1);
    assert_eq!(get!(cuDeviceGet(0)), 0);
    for wrong in [-1, 1] {
        assert_eq!(call!(cuDeviceGet(somewhere(), wrong)), CUresult::INVALID_DEVICE);
        assert_eq!(call!(cuDeviceTotalMem_v2(somewhere(), wrong)), CUresult::INVALID_DEVICE);
    }
    let mut name = [1u8; 64];
    assert_eq!(call!(cuDeviceGetName(name.as_mut_ptr().cast(), 64, 0)), OK);
    let name = CStr::from_bytes_until_nul(&name).unwrap().to_str().unwrap();
    assert_eq!(name, "Emulated sm_80 (silkie cuda-emulator)");
    let mut short = [1u8; 9];
    assert_eq!(call!(cuDeviceGetPCIBusId(short.as_mut_ptr().cast(), 8, 0)), OK);
    assert_eq!(&short, b"0000:00\0\x01", "cut to the caller's room");
    let nothing = std::ptr::null_mut();
    assert_eq!(call!(cuDeviceGetName(nothing, 64, 0)), CUresult::INVALID_VALUE);
    let attribute = |number| get!(cuDeviceGetAttribute(number, 0));
    assert_eq!([75, 76, 10, 1, 8, 97].map(attribute), [8, 0, 32, 1024, 49152, 166_912]);
    assert_eq!([115, 120, 16].map(attribute), [1, 0, 4]);
    for wrong in [0, 1000] {
        let code = call!(cuDeviceGetAttribute(somewhere(), wrong, 0));
        assert_eq!(code, CUresult::INVALID_VALUE);
    }
    assert_eq!(get!(cuDeviceGetUuid(0)), get!(cuDeviceGetUuid_v2(0)));
}

#[test]
fn errors_have_names_and_sentences() {
    let _driver = driver();
    let text = |code| {
        let name = get_text(|out| call!(cuGetErrorName(CUresult(code), out)));
        (name, get_text(|out| call!(cuGetErrorString(CUresult(code), out))))
    };
    assert_eq!(text(0), ("CUDA_SUCCESS".into(), "no error".into()));
    assert_eq!(text(1).0, "CUDA_ERROR_INVALID_VALUE");
    assert_eq!(text(700).1, "an illegal memory access was encountered");
    assert_eq!(call!(cuMemFree_v2(8)), CUresult::INVALID_VALUE);
    let why = "invalid argument: free of 0x8, where no allocation in use starts.";
    assert!(text(1).1.starts_with(why), "{}", text(1).1);
    assert_eq!(call!(cuDeviceGetCount(None)), CUresult::INVALID_VALUE);
    assert_eq!(text(1).1, "invalid argument", "that failure told nothing");
    assert_eq!(call!(cuGetErrorName(CUresult(12345), somewhere())), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuGetErrorName(CUresult(1), nowhere())), CUresult::INVALID_VALUE);
}

fn get_text(ask: impl FnOnce(Out<*const std::ffi::c_char>) -> CUresult) -> String {
    // SAFETY: the driver's texts live for ever.
    unsafe { CStr::from_ptr(written(ask)) }.to_str().unwrap().into()
}

#[test]
fn a_thread_needs_the_context() {
    let _driver = driver();
    let context = get!(cuCtxGetCurrent());
    let fresh = std::thread::spawn(move || {
        assert_eq!(get!(cuCtxGetCurrent()), 0);
        assert_eq!(call!(cuStreamCreate(somewhere(), 0)), CUresult::INVALID_CONTEXT);
        assert_eq!(call!(cuCtxPopCurrent_v2(None)), CUresult::INVALID_CONTEXT);
        assert_eq!(call!(cuCtxSetCurrent(context + 1)), CUresult::CONTEXT_IS_DESTROYED);
        assert_eq!(call!(cuCtxPushCurrent_v2(context)), OK);
        assert_eq!(get!(cuCtxGetDevice()), 0);
        assert_eq!(get!(cuCtxPopCurrent_v2()), context);
        assert_eq!(call!(cuCtxGetDevice(somewhere())), CUresult::INVALID_CONTEXT);
    });
    fresh.join().unwrap();
    assert_eq!(get!(cuCtxGetApiVersion(context; out)), 3020);
    assert_eq!(get!(cuCtxGetLimit(0)), 1024);
    assert_eq!(call!(cuCtxSetLimit(0, 2048)), OK);
    assert_eq!(get!(cuCtxGetLimit(0)), 2048);
    assert_eq!(call!(cuCtxSetLimit(3, 0)), CUresult::UNSUPPORTED_LIMIT);
    assert_eq!(call!(cuCtxSynchronize()), OK);
}

/// Runs a test of this file in a process of its own, where it gets `None`; the parent gets what
/// that said on stderr.
fn alone(test: &str, variables: &[(&str, &str)]) -> Option<String> {
    let said = process::alone(&format!("driver::context::{test}"), variables)?;
    Some(said.stderr)
}

#[test]
fn a_context_ends_with_its_last_holder() {
    if alone("a_context_ends_with_its_last_holder", &[]).is_some() {
        return;
    }
    assert_eq!(call!(cuCtxGetCurrent(somewhere())), CUresult::NOT_INITIALIZED);
    assert_eq!(call!(cuInit(1)), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuInit(0)), OK);
    assert_eq!(call!(cuDevicePrimaryCtxRelease_v2(0)), CUresult::INVALID_CONTEXT);
    let context = get!(cuDevicePrimaryCtxRetain(0));
    assert_eq!(get!(cuDevicePrimaryCtxRetain(0)), context);
    assert_eq!(call!(cuCtxSetCurrent(context)), OK);
    let (module, words) = (kernels(), Words::new(&[1]));
    assert_eq!(add(function(module, "add"), words.address, 1, 1, 0), OK);
    assert_eq!(call!(cuDevicePrimaryCtxRelease_v2(0)), OK);
    assert_eq!(words.read(), [2]);
    assert_eq!(call!(cuDevicePrimaryCtxRelease_v2(0)), OK);
    assert_eq!(call!(cuStreamCreate(somewhere(), 0)), CUresult::CONTEXT_IS_DESTROYED);
    assert_eq!(call!(cuDevicePrimaryCtxRelease_v2(0)), CUresult::INVALID_CONTEXT);
    let again = get!(cuDevicePrimaryCtxRetain(0));
    assert_ne!(again, context);
    assert_eq!(call!(cuCtxSetCurrent(again)), OK);
    assert_eq!(call!(cuModuleUnload(module)), CUresult::INVALID_HANDLE);
    let (free, total) = both_written(|free, total| call!(cuMemGetInfo_v2(free, total)));
    assert_eq!(free, total);
}

#[test]
fn an_older_driver_reads_no_newer_ptx() {
    let older = [("CUDA_EMULATOR_DRIVER_VERSION", "12080")];
    if alone("an_older_driver_reads_no_newer_ptx", &older).is_some() {
        return;
    }
    assert_eq!(get!(cuDriverGetVersion()), 12080, "known before cuInit");
    let _driver = driver();
    let ptx = include_str!("kernels.ptx");
    let load = |ptx: String| {
        let ptx = CString::new(ptx).unwrap();
        call!(cuModuleLoadData(somewhere(), ptx.as_ptr().cast()))
    };
    assert_eq!(load(ptx.into()), CUresult::UNSUPPORTED_PTX_VERSION);
    let expected = "the module is PTX 9.0, which driver 12.8 does not read: up to 8.7";
    assert_eq!(report(), expected);
    assert_eq!(load(ptx.replace(".version 9.0", ".version 8.7")), OK);
}

#[test]
fn the_greeting_says_which_driver_this_is() {
    let small = [("CUDA_EMULATOR_MEMORY", "64"), ("CUDA_EMULATOR_CHECKS", "off")];
    let Some(said) = alone("the_greeting_says_which_driver_this_is", &small) else {
        assert_eq!(call!(cuInit(0)), OK);
        return;
    };
    let greeting = "cuda-emulator: the CUDA driver of this process is the emulator: sm_80, \
                    version 13.0, checks off, 64 MiB, ";
    assert!(said.contains(greeting), "{said}");
}

#[test]
fn the_log_has_a_line_for_every_call_and_quiet_takes_the_greeting_away() {
    let test = "the_log_has_a_line_for_every_call_and_quiet_takes_the_greeting_away";
    let settings = [("CUDA_EMULATOR_LOG", "1"), ("CUDA_EMULATOR_QUIET", "1")];
    let Some(said) = alone(test, &settings) else {
        assert_eq!(call!(cuInit(0)), OK);
        assert_eq!(call!(cuDeviceGet(None, 0)), CUresult::INVALID_VALUE);
        return;
    };
    let log = "cuda-emulator: cuInit(flags: 0) = CUDA_SUCCESS\n\
               cuda-emulator: cuDeviceGet(device: null, ordinal: 0) = CUDA_ERROR_INVALID_VALUE\n";
    assert_eq!(said, log);
}

#[test]
fn a_setting_that_cannot_be_read_is_refused() {
    let test = "a_setting_that_cannot_be_read_is_refused";
    for (name, value, expected) in [
        ("CUDA_EMULATOR_CHECKS", "maybe", "on or off"),
        ("CUDA_EMULATOR_SHARED", "47", "KiB, 48 to 227"),
        ("CUDA_EMULATOR_SHARED", "228", "KiB, 48 to 227"),
        ("CUDA_EMULATOR_SCHEDULE", "last:", "order, random, random:SEED, last or last:WARP"),
    ] {
        let Some(said) = alone(test, &[(name, value)]) else {
            assert_eq!(call!(cuInit(0)), CUresult::NO_DEVICE);
            assert_eq!(call!(cuDeviceGetCount(somewhere())), CUresult::NOT_INITIALIZED);
            return;
        };
        let refusal = format!("{name} is '{value}', expected {expected}; unset it or correct it");
        assert!(said.contains(&format!("cuda-emulator: {refusal}")), "{said}");
    }
}
