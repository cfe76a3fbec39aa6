//! Streams captured into graphs, and what is refused meanwhile.

use std::thread;

use emucuda::driver::capture::*;
use emucuda::driver::context::*;
use emucuda::driver::copy::*;
use emucuda::driver::event::*;
use emucuda::driver::graph::*;
use emucuda::driver::memory::*;
use emucuda::driver::stream::*;

use super::*;

const GLOBAL: u32 = 0;
const THREAD_LOCAL: u32 = 1;
const RELAXED: u32 = 2;

const UNSUPPORTED: CUresult = CUresult::STREAM_CAPTURE_UNSUPPORTED;
const INVALIDATED: CUresult = CUresult::STREAM_CAPTURE_INVALIDATED;

/// A stream that does not wait for the legacy stream, and its capture.
fn begin(mode: u32) -> u64 {
    let stream = get!(cuStreamCreate(1));
    assert_eq!(call!(cuStreamBeginCapture_v2(stream, mode)), OK);
    stream
}

/// Ends a capture that must have failed, and checks that its stream works again.
fn end_invalidated(stream: u64) {
    assert_eq!(get!(cuStreamIsCapturing(stream; out)), 2);
    let mut graph = MaybeUninit::new(1);
    assert_eq!(call!(cuStreamEndCapture(stream, Some(&mut graph))), INVALIDATED);
    // SAFETY: initialised above.
    assert_eq!(unsafe { graph.assume_init() }, 0);
    assert_eq!(get!(cuStreamIsCapturing(stream; out)), 0);
    assert_eq!(call!(cuStreamDestroy_v2(stream)), OK);
}

/// Ends a capture and makes its graph ready to run.
fn end(stream: u64) -> u64 {
    let graph = get!(cuStreamEndCapture(stream; out));
    let executable = get!(cuGraphInstantiateWithFlags(graph, 0));
    assert_eq!(call!(cuGraphDestroy(graph)), OK);
    executable
}

#[test]
fn a_graph_replays_what_was_captured_on_what_memory_holds_now() {
    let _driver = driver();
    let module = kernels();
    let (words, copy) = (Words::new(&[1, 2]), Words::new(&[0; 2]));
    let stream = begin(THREAD_LOCAL);
    let mut amount = 10u32;
    let params = [param(&words.address), param(&amount)];
    assert_eq!(launch(function(module, "add"), 1, 2, 0, stream, &params), OK);
    amount = 1000;
    assert_eq!(call!(cuMemcpyDtoDAsync_v2(copy.address, words.address, 8, stream)), OK);
    assert_eq!(call!(cuMemsetD32Async(words.address, amount, 1, stream)), OK);
    let (status, id) = both_written(|status, id| call!(cuStreamGetCaptureInfo(stream, status, id)));
    assert!(status == 1 && id != 0);
    let executable = end(stream);
    assert_eq!(words.read(), [1, 2], "nothing ran yet");
    assert_eq!(call!(cuGraphUpload(executable, stream)), OK);
    assert_eq!(call!(cuGraphLaunch(executable, stream)), OK);
    assert_eq!((words.read(), copy.read()), (vec![1000, 12], vec![11, 12]));
    assert_eq!(call!(cuMemsetD32_v2(words.address, 5, 2)), OK);
    assert_eq!(call!(cuGraphLaunch(executable, stream)), OK);
    assert_eq!((words.read(), copy.read()), (vec![1000, 15], vec![15, 15]));
    assert_eq!(call!(cuModuleUnload(module)), OK);
    assert_eq!(call!(cuGraphLaunch(executable, stream)), CUresult::INVALID_HANDLE);
    assert_eq!(report(), "a graph launches add, whose module was unloaded");
    assert_eq!(call!(cuGraphExecDestroy(executable)), OK);
    assert_eq!(call!(cuGraphLaunch(executable, stream)), CUresult::INVALID_HANDLE);
    assert_eq!(call!(cuGraphExecDestroy(executable)), CUresult::INVALID_HANDLE);
}

#[test]
fn streams_fork_from_a_capture_and_join_it() {
    let _driver = driver();
    let module = kernels();
    let add_kernel = function(module, "add");
    let words = Words::new(&[0; 2]);
    let (fork, join) = (get!(cuEventCreate(2)), get!(cuEventCreate(2)));
    let other = get!(cuStreamCreate(1));
    let origin = begin(GLOBAL);
    assert_eq!(add(add_kernel, words.address, 1, 1, origin), OK);
    assert_eq!(call!(cuEventRecord(fork, origin)), OK);
    assert_eq!(call!(cuStreamWaitEvent(other, fork, 0)), OK);
    assert_eq!(get!(cuStreamIsCapturing(other; out)), 1);
    assert_eq!(add(add_kernel, words.address + 4, 2, 1, other), OK);
    assert_eq!(add(add_kernel, words.address, 3, 1, origin), OK);
    let unmatched = CUresult::STREAM_CAPTURE_UNMATCHED;
    assert_eq!(call!(cuEventRecord(join, other)), OK);
    assert_eq!(call!(cuStreamWaitEvent(origin, join, 0)), OK);
    let graph = get!(cuStreamEndCapture(origin; out));
    assert_eq!(get!(cuStreamIsCapturing(other; out)), 0);
    let mut count = 0;
    assert_eq!(call!(cuGraphGetNodes(graph, std::ptr::null_mut(), Some(&mut count))), OK);
    assert_eq!(count, 3);
    let mut nodes = [1u64; 5];
    count = 5;
    assert_eq!(call!(cuGraphGetNodes(graph, nodes.as_mut_ptr(), Some(&mut count))), OK);
    assert_eq!((count, nodes[3], nodes[4]), (3, 0, 0));
    assert_eq!(get!(cuGraphNodeGetType(nodes[0]; out)), 0);
    let executable = get!(cuGraphInstantiateWithFlags(graph, 1));
    for _ in 0..2 {
        assert_eq!(call!(cuGraphLaunch(executable, 0)), OK);
    }
    assert_eq!(words.read(), [8, 4]);
    assert_eq!(call!(cuStreamWaitEvent(other, join, 0)), CUresult::CAPTURED_EVENT);

    let origin = begin(GLOBAL);
    assert_eq!(call!(cuEventRecord(fork, origin)), OK);
    assert_eq!(call!(cuStreamWaitEvent(other, fork, 0)), OK);
    assert_eq!(call!(cuStreamEndCapture(other, somewhere())), unmatched);
    end_invalidated(origin);

    let origin = begin(GLOBAL);
    assert_eq!(call!(cuEventRecord(fork, origin)), OK);
    assert_eq!(call!(cuStreamWaitEvent(other, fork, 0)), OK);
    assert_eq!(add(add_kernel, words.address, 1, 1, other), OK);
    let unjoined = CUresult::STREAM_CAPTURE_UNJOINED;
    assert_eq!(call!(cuStreamEndCapture(origin, somewhere())), unjoined);
    assert_eq!([origin, other].map(|stream| get!(cuStreamIsCapturing(stream; out))), [0, 0]);
    assert_eq!(call!(cuModuleUnload(module)), OK);
}

#[test]
fn a_launched_graph_can_be_captured_and_events_can_be_its_nodes() {
    let _driver = driver();
    let words = Words::new(&[0]);
    let stream = begin(RELAXED);
    assert_eq!(call!(cuMemsetD32Async(words.address, 3, 1, stream)), OK);
    let inner = end(stream);
    assert_eq!(call!(cuStreamBeginCapture_v2(stream, RELAXED)), OK);
    let event = get!(cuEventCreate(0));
    assert_eq!(call!(cuGraphLaunch(inner, stream)), OK);
    assert_eq!(call!(cuEventRecordWithFlags(event, stream, 1)), OK);
    assert_eq!(call!(cuStreamWaitEvent(stream, event, 1)), OK);
    let outer = end(stream);
    assert_eq!(call!(cuEventElapsedTime(somewhere(), event, event)), CUresult::INVALID_HANDLE);
    assert_eq!(call!(cuGraphLaunch(outer, stream)), OK);
    assert_eq!(words.read(), [3]);
    assert_eq!(get!(cuEventElapsedTime(event, event)), 0.0);
}

#[test]
fn a_captured_copy_needs_page_locked_memory_for_as_long_as_it_is_replayed() {
    let _driver = driver();
    let words = Words::new(&[0]);
    let host = get!(cuMemHostAlloc(4, 0)).cast::<u32>();
    let stream = begin(THREAD_LOCAL);
    assert_eq!(call!(cuMemcpyHtoDAsync_v2(words.address, host.cast(), 4, stream)), OK);
    let executable = end(stream);
    // SAFETY: 4 bytes of the driver's, used by this test alone.
    unsafe { host.write(6) };
    assert_eq!(call!(cuGraphLaunch(executable, stream)), OK);
    assert_eq!(words.read(), [6]);
    assert_eq!(call!(cuMemFreeHost(host.cast())), OK);
    assert_eq!(call!(cuGraphLaunch(executable, stream)), CUresult::ILLEGAL_ADDRESS);
    let stream = begin(THREAD_LOCAL);
    let pageable = 5u32;
    let from = (&raw const pageable).cast();
    assert_eq!(call!(cuMemcpyHtoDAsync_v2(words.address, from, 4, stream)), UNSUPPORTED);
    assert!(report().starts_with("a captured copy of pageable host memory"), "{}", report());
    end_invalidated(stream);
}

#[test]
fn a_capture_begins_once_and_ends_where_it_began() {
    let _driver = driver();
    for legacy in [0, 1] {
        assert_eq!(call!(cuStreamBeginCapture_v2(legacy, GLOBAL)), UNSUPPORTED);
    }
    let stream = get!(cuStreamCreate(0));
    let illegal = CUresult::ILLEGAL_STATE;
    assert_eq!(call!(cuStreamEndCapture(stream, somewhere())), illegal);
    assert_eq!(call!(cuStreamBeginCapture_v2(stream, 3)), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuStreamBeginCapture_v2(stream, GLOBAL)), OK);
    assert_eq!(call!(cuStreamBeginCapture_v2(stream, GLOBAL)), illegal);
    assert_eq!(call!(cuStreamEndCapture(stream, nowhere())), CUresult::INVALID_VALUE);
    assert_eq!(end_on_another_thread(stream), CUresult::STREAM_CAPTURE_WRONG_THREAD);
    let graph = get!(cuStreamEndCapture(stream; out));
    assert_eq!(call!(cuGraphInstantiateWithFlags(somewhere(), graph, 16)), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuGraphInstantiateWithFlags(somewhere(), graph, 5)), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuGraphInstantiateWithFlags(somewhere(), graph, 4)), CUresult::NOT_SUPPORTED);
    let empty = get!(cuGraphInstantiateWithFlags(graph, 0));
    assert_eq!(call!(cuGraphLaunch(empty, stream)), OK);
    assert_eq!(call!(cuGraphDestroy(graph)), OK);
    assert_eq!(call!(cuGraphDestroy(graph)), CUresult::INVALID_HANDLE);
    assert_eq!(call!(cuStreamBeginCapture_v2(stream, RELAXED)), OK);
    assert_eq!(end_on_another_thread(stream), OK);
}

fn end_on_another_thread(stream: u64) -> CUresult {
    let context = get!(cuCtxGetCurrent());
    let end = move || {
        assert_eq!(call!(cuCtxSetCurrent(context)), OK);
        call!(cuStreamEndCapture(stream, somewhere()))
    };
    thread::spawn(end).join().unwrap()
}

#[test]
fn waiting_for_captured_work_is_refused_and_invalidates() {
    let _driver = driver();
    let waits: [fn(u64) -> CUresult; 4] = [
        |stream| call!(cuStreamSynchronize(stream)),
        |stream| call!(cuStreamQuery(stream)),
        |stream| call!(cuStreamDestroy_v2(stream)),
        |_| call!(cuCtxSynchronize()),
    ];
    for wait in waits {
        let stream = begin(RELAXED);
        assert_eq!(wait(stream), UNSUPPORTED);
        assert_eq!(call!(cuMemsetD8Async(0, 0, 1, stream)), INVALIDATED);
        end_invalidated(stream);
    }
    let asks: [fn(u64) -> CUresult; 2] =
        [|event| call!(cuEventQuery(event)), |event| call!(cuEventSynchronize(event))];
    for ask in asks {
        let (stream, event) = (begin(RELAXED), get!(cuEventCreate(0)));
        assert_eq!(call!(cuEventRecord(event, stream)), OK);
        assert_eq!(ask(event), CUresult::CAPTURED_EVENT);
        end_invalidated(stream);
    }
}

/// Calls that may wait for the device.
fn unsafe_calls() -> Vec<Box<dyn Fn() -> CUresult>> {
    let words = Words::new(&[0]);
    let (address, host) = (words.address, get!(cuMemHostAlloc(4, 0)));
    let (event, module) = (get!(cuEventCreate(0)), kernels());
    vec![
        Box::new(|| call!(cuMemAlloc_v2(somewhere(), 4))),
        Box::new(|| call!(cuMemHostAlloc(somewhere(), 4, 0))),
        Box::new(move || call!(cuMemFreeHost(host))),
        Box::new(move || call!(cuEventQuery(event))),
        Box::new(move || call!(cuEventSynchronize(event))),
        Box::new(move || call!(cuModuleUnload(module))),
        Box::new(move || call!(cuMemsetD8_v2(address, 0, 1))),
        Box::new(move || call!(cuMemcpyDtoD_v2(address, address, 1))),
        Box::new(move || call!(cuMemFree_v2(address))),
    ]
}

#[test]
fn calls_that_may_wait_are_forbidden_by_a_capture_of_this_thread() {
    let _driver = driver();
    for call in unsafe_calls() {
        for mode in [GLOBAL, THREAD_LOCAL] {
            let stream = begin(mode);
            assert_eq!(call(), UNSUPPORTED);
            end_invalidated(stream);
        }
        let stream = begin(RELAXED);
        assert_eq!(call(), OK);
        get!(cuStreamEndCapture(stream; out));
    }
}

#[test]
fn a_global_capture_forbids_them_on_every_thread() {
    let _driver = driver();
    let context = get!(cuCtxGetCurrent());
    let allocate_elsewhere = || {
        let allocate = move || {
            assert_eq!(call!(cuCtxSetCurrent(context)), OK);
            call!(cuMemAlloc_v2(somewhere(), 4))
        };
        thread::spawn(allocate).join().unwrap()
    };
    let stream = begin(GLOBAL);
    assert_eq!(allocate_elsewhere(), UNSUPPORTED);
    end_invalidated(stream);
    let stream = begin(THREAD_LOCAL);
    assert_eq!(allocate_elsewhere(), OK);
    get!(cuStreamEndCapture(stream; out));
}

#[test]
fn the_legacy_stream_is_forbidden_while_a_stream_that_waits_for_it_is_captured() {
    let _driver = driver();
    let words = Words::new(&[0]);
    let event = get!(cuEventCreate(0));
    let implicit = CUresult::STREAM_CAPTURE_IMPLICIT;
    let uses: [&dyn Fn() -> CUresult; 5] = [
        &|| call!(cuMemsetD8Async(words.address, 0, 1, 0)),
        &|| call!(cuMemsetD8_v2(words.address, 0, 1)),
        &|| call!(cuStreamSynchronize(0)),
        &|| call!(cuEventRecord(event, 1)),
        &|| call!(cuStreamWaitEvent(0, event, 0)),
    ];
    for legacy in uses {
        let stream = get!(cuStreamCreate(0));
        assert_eq!(call!(cuStreamBeginCapture_v2(stream, RELAXED)), OK);
        assert_eq!(legacy(), implicit);
        end_invalidated(stream);
        let stream = begin(RELAXED);
        assert_eq!(legacy(), OK, "a stream that does not wait for it");
        get!(cuStreamEndCapture(stream; out));
    }
    let (stream, captured) = (begin(RELAXED), get!(cuEventCreate(0)));
    assert_eq!(call!(cuEventRecord(captured, stream)), OK);
    assert_eq!(call!(cuStreamWaitEvent(0, captured, 0)), implicit);
    end_invalidated(stream);
}

#[test]
fn a_capture_waits_for_nothing_outside_of_it() {
    let _driver = driver();
    let event = get!(cuEventCreate(0));
    assert_eq!(call!(cuEventRecord(event, 0)), OK);
    let stream = begin(RELAXED);
    let isolated = CUresult::STREAM_CAPTURE_ISOLATION;
    assert_eq!(call!(cuStreamWaitEvent(stream, event, 0)), isolated);
    end_invalidated(stream);
    let (one, other) = (begin(RELAXED), begin(RELAXED));
    assert_eq!(call!(cuEventRecord(event, one)), OK);
    let merge = CUresult::STREAM_CAPTURE_MERGE;
    assert_eq!(call!(cuStreamWaitEvent(other, event, 0)), merge);
    end_invalidated(one);
    end_invalidated(other);
    let stream = begin(RELAXED);
    assert_eq!(call!(cuMemAllocAsync(somewhere(), 4, stream)), CUresult::NOT_SUPPORTED);
    end_invalidated(stream);
}
