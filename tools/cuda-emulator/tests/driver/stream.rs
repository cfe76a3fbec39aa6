//! Streams and events outside of captures.

use std::ffi::c_void;
use std::ptr::null_mut;

use emucuda::driver::context::{cuCtxGetCurrent, cuCtxSetCurrent};
use emucuda::driver::event::*;
use emucuda::driver::memory::{cuMemAlloc_v2, cuMemFree_v2};
use emucuda::driver::stream::*;

use super::*;

#[test]
fn a_stream_lives_until_it_is_destroyed() {
    let _driver = driver();
    let stream = get!(cuStreamCreateWithPriority(1, -9));
    assert_eq!(get!(cuStreamGetFlags(stream; out)), 1);
    assert_eq!(get!(cuStreamGetPriority(stream; out)), -5, "the greatest there is");
    assert_eq!(call!(cuStreamSynchronize(stream)), OK);
    assert_eq!(call!(cuStreamQuery(stream)), OK);
    assert_eq!(call!(cuStreamDestroy_v2(stream)), OK);
    assert_eq!(call!(cuStreamDestroy_v2(stream)), CUresult::INVALID_HANDLE);
    assert_eq!(call!(cuStreamSynchronize(stream)), CUresult::INVALID_HANDLE);
    assert_eq!(call!(cuStreamDestroy_v2(0)), CUresult::INVALID_HANDLE);
    assert_eq!(call!(cuStreamCreate(somewhere(), 2)), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuStreamCreate(nowhere(), 0)), CUresult::INVALID_VALUE);
    for built_in in [0, 1, 2] {
        assert_eq!(call!(cuStreamSynchronize(built_in)), OK);
    }
}

#[test]
fn a_handle_of_one_kind_is_none_of_another() {
    let _driver = driver();
    let (stream, event) = (get!(cuStreamCreate(0)), get!(cuEventCreate(0)));
    let (module, address) = (kernels(), get!(cuMemAlloc_v2(4)));
    let invalid = CUresult::INVALID_HANDLE;
    for wrong in [event, module, address, u64::MAX] {
        assert_eq!(call!(cuStreamSynchronize(wrong)), invalid);
        assert_eq!(call!(cuEventRecord(event, wrong)), invalid);
        assert_eq!(call!(cuStreamWaitEvent(wrong, event, 0)), invalid);
    }
    for wrong in [0, stream, module, address] {
        assert_eq!(call!(cuEventRecord(wrong, stream)), invalid);
        assert_eq!(call!(cuStreamWaitEvent(stream, wrong, 0)), invalid);
        assert_eq!(call!(cuEventQuery(wrong)), invalid);
        assert_eq!(launch(wrong, 1, 1, 0, stream, &[]), invalid);
    }
    assert_eq!(call!(cuModuleUnload(stream)), invalid);
    assert_eq!(call!(cuModuleUnload(module)), OK);
    assert_eq!(call!(cuStreamDestroy_v2(stream)), OK);
    assert_eq!(call!(cuEventDestroy_v2(event)), OK);
    assert_eq!(call!(cuEventDestroy_v2(event)), invalid);
}

#[test]
fn events_tell_the_time_between_them() {
    let _driver = driver();
    let stream = get!(cuStreamCreate(0));
    let (start, end, untimed) =
        (get!(cuEventCreate(0)), get!(cuEventCreate(1)), get!(cuEventCreate(2)));
    let elapsed = |from, to| call!(cuEventElapsedTime(somewhere(), from, to));
    assert_eq!(call!(cuEventQuery(start)), OK, "an event that was not recorded has happened");
    assert_eq!(call!(cuStreamWaitEvent(stream, start, 0)), OK);
    assert_eq!(elapsed(start, end), CUresult::INVALID_HANDLE);
    for event in [start, end, untimed] {
        assert_eq!(call!(cuEventRecord(event, stream)), OK);
    }
    let milliseconds = get!(cuEventElapsedTime_v2(start, end));
    assert!((0.0..1000.0).contains(&milliseconds), "{milliseconds}");
    assert_eq!(get!(cuEventElapsedTime(end, start)), -milliseconds);
    assert_eq!(elapsed(start, untimed), CUresult::INVALID_HANDLE);
    assert_eq!(call!(cuEventSynchronize(end)), OK);
    assert_eq!(call!(cuStreamWaitEvent(stream, end, 0)), OK);
    assert_eq!(call!(cuEventRecordWithFlags(end, stream, 1)), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuStreamWaitEvent(stream, end, 1)), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuEventCreate(somewhere(), 8)), CUresult::INVALID_VALUE);
}

extern "C" fn calls_the_driver(result: *mut c_void) {
    let code = call!(cuMemAlloc_v2(somewhere(), 4));
    // SAFETY: the test passes a place for a code that outlives the call.
    unsafe { result.cast::<CUresult>().write(code) };
}

#[test]
fn a_host_function_runs_and_may_not_call_the_driver() {
    let _driver = driver();
    let mut code = OK;
    let data = (&raw mut code).cast();
    assert_eq!(call!(cuLaunchHostFunc(0, Some(calls_the_driver), data)), OK);
    assert_eq!(code, CUresult::NOT_PERMITTED);
    get!(cuMemAlloc_v2(4));
    assert_eq!(call!(cuLaunchHostFunc(0, None, null_mut())), CUresult::INVALID_VALUE);
}

#[test]
fn threads_use_the_driver_side_by_side() {
    let _driver = driver();
    let context = get!(cuCtxGetCurrent());
    let add_kernel = function(kernels(), "add");
    let work = move |seed: u32| {
        assert_eq!(call!(cuCtxSetCurrent(context)), OK);
        let (stream, event) = (get!(cuStreamCreate(1)), get!(cuEventCreate(0)));
        for round in 0..50 {
            let words = Words::new(&[seed; 64]);
            for _ in 0..3 {
                assert_eq!(add(add_kernel, words.address, round, 64, stream), OK);
            }
            assert_eq!(call!(cuEventRecord(event, stream)), OK);
            assert_eq!(call!(cuEventSynchronize(event)), OK);
            assert_eq!(words.read(), [seed + 3 * round; 64]);
            assert_eq!(call!(cuMemFree_v2(words.address)), OK);
        }
        assert_eq!(call!(cuStreamDestroy_v2(stream)), OK);
    };
    std::thread::scope(|scope| (1..5).for_each(|seed| drop(scope.spawn(move || work(seed)))));
}
