//! Work that waits until the host waits for it: what streams and events do not order is seen.

use std::collections::BTreeMap;

use emucuda::driver::capture::*;
use emucuda::driver::context::cuCtxSynchronize;
use emucuda::driver::copy::*;
use emucuda::driver::event::*;
use emucuda::driver::graph::*;
use emucuda::driver::memory::*;
use emucuda::driver::stream::*;

use super::*;
use crate::process::{Said, alone, run_test};

const NON_BLOCKING: u32 = 1;

/// Two streams and two words; `add` is a kernel.
struct Scene {
    a: u64,
    b: u64,
    x: Words,
    y: Words,
    add: u64,
}

impl Scene {
    fn new() -> Scene {
        let [a, b] = [(); 2].map(|()| get!(cuStreamCreate(NON_BLOCKING)));
        let add = function(kernels(), "add");
        Scene { a, b, x: Words::new(&[1]), y: Words::new(&[0]), add }
    }

    fn add_to_x(&self, amount: u32, stream: u64) {
        assert_eq!(add(self.add, self.x.address, amount, 1, stream), OK);
    }

    fn set_x(&self, value: u32, stream: u64) {
        assert_eq!(call!(cuMemsetD32Async(self.x.address, value, 1, stream)), OK);
    }

    fn copy_x_to_y(&self, stream: u64) {
        assert_eq!(call!(cuMemcpyDtoDAsync_v2(self.y.address, self.x.address, 4, stream)), OK);
    }

    fn y(&self) -> u32 {
        assert_eq!(call!(cuCtxSynchronize()), OK);
        self.y.read()[0]
    }
}

/// What `later` gets from now on waits for what `earlier` holds now.
fn order(earlier: u64, later: u64) {
    let event = get!(cuEventCreate(2));
    assert_eq!(call!(cuEventRecord(event, earlier)), OK);
    assert_eq!(call!(cuStreamWaitEvent(later, event, 0)), OK);
    assert_eq!(call!(cuEventDestroy_v2(event)), OK);
}

fn order_if(is_ordered: bool, earlier: u64, later: u64) {
    if is_ordered {
        order(earlier, later);
    }
}

/// What stream b reads is written on stream a; the host waits for b first.
fn produced_on_another_stream(is_ordered: bool) -> bool {
    let scene = Scene::new();
    scene.add_to_x(1, scene.a);
    order_if(is_ordered, scene.a, scene.b);
    scene.copy_x_to_y(scene.b);
    assert_eq!(call!(cuStreamSynchronize(scene.b)), OK);
    scene.y() == 2
}

/// The same when the host waits for stream a first, after some more work of both.
fn produced_far_behind(is_ordered: bool) -> bool {
    let scene = Scene::new();
    (0..20).for_each(|_| scene.add_to_x(1, scene.a));
    order_if(is_ordered, scene.a, scene.b);
    scene.copy_x_to_y(scene.b);
    let more = Words::new(&[0]);
    assert_eq!(add(scene.add, more.address, 1, 1, scene.b), OK);
    scene.y() == 21
}

/// What stream a reads is overwritten on stream b.
fn overwritten_on_another_stream(is_ordered: bool) -> bool {
    let scene = Scene::new();
    scene.copy_x_to_y(scene.a);
    order_if(is_ordered, scene.a, scene.b);
    scene.set_x(9, scene.b);
    assert_eq!(call!(cuStreamSynchronize(scene.a)), OK);
    assert_eq!(call!(cuStreamSynchronize(scene.b)), OK);
    scene.y() == 1
}

/// Page-locked memory is written again while it is copied.
fn pinned_memory_used_again(is_waited_for: bool) -> bool {
    let scene = Scene::new();
    let host = get!(cuMemHostAlloc(4, 0)).cast::<u32>();
    // SAFETY: 4 bytes of the driver's, used by this test alone.
    unsafe { host.write(5) };
    assert_eq!(call!(cuMemcpyHtoDAsync_v2(scene.y.address, host.cast(), 4, scene.a)), OK);
    if is_waited_for {
        let event = get!(cuEventCreate(2));
        assert_eq!(call!(cuEventRecord(event, scene.a)), OK);
        assert_eq!(call!(cuEventSynchronize(event)), OK);
    }
    // SAFETY: as above.
    unsafe { host.write(6) };
    scene.y() == 5
}

/// Page-locked memory is read before the copy to it is done.
fn pinned_memory_read_early(is_waited_for: bool) -> bool {
    let scene = Scene::new();
    let host = get!(cuMemHostAlloc(4, 0)).cast::<u32>();
    assert_eq!(call!(cuMemcpyDtoHAsync_v2(host.cast(), scene.x.address, 4, scene.a)), OK);
    if is_waited_for {
        assert_eq!(call!(cuStreamSynchronize(scene.a)), OK);
    }
    // SAFETY: 4 bytes of the driver's, used by this test alone.
    unsafe { host.read() == 1 }
}

/// Two branches of a graph, one of which reads what the other writes.
fn branches_of_a_graph(is_ordered: bool) -> bool {
    let scene = Scene::new();
    assert_eq!(call!(cuStreamBeginCapture_v2(scene.a, 2)), OK);
    order(scene.a, scene.b);
    scene.add_to_x(1, scene.a);
    order_if(is_ordered, scene.a, scene.b);
    scene.copy_x_to_y(scene.b);
    order(scene.b, scene.a);
    let graph = get!(cuStreamEndCapture(scene.a; out));
    let executable = get!(cuGraphInstantiateWithFlags(graph, 0));
    assert_eq!(call!(cuGraphLaunch(executable, scene.a)), OK);
    assert_eq!(call!(cuGraphExecDestroy(executable)), OK);
    scene.y() == 2
}

/// Two launches in two streams, of one graph or of two that do the same.
fn launches_of_graphs(is_one: bool) -> bool {
    let scene = Scene::new();
    let capture = || {
        assert_eq!(call!(cuStreamBeginCapture_v2(scene.a, 2)), OK);
        scene.copy_x_to_y(scene.a);
        scene.add_to_x(1, scene.a);
        let graph = get!(cuStreamEndCapture(scene.a; out));
        get!(cuGraphInstantiateWithFlags(graph, 0))
    };
    let first = capture();
    let second = if is_one { first } else { capture() };
    assert_eq!(call!(cuGraphLaunch(first, scene.a)), OK);
    assert_eq!(call!(cuGraphLaunch(second, scene.b)), OK);
    scene.y() == 2
}

/// The legacy stream writes; only blocking streams wait for it.
fn behind_the_legacy_stream(is_blocking: bool) -> bool {
    let scene = Scene::new();
    let stream = get!(cuStreamCreate(if is_blocking { 0 } else { NON_BLOCKING }));
    scene.set_x(3, 0);
    scene.copy_x_to_y(stream);
    scene.y() == 3
}

/// The legacy stream overwrites; it waits for blocking streams only, also for ones that are destroyed.
fn before_the_legacy_stream(is_blocking: bool) -> bool {
    let scene = Scene::new();
    let stream = get!(cuStreamCreate(if is_blocking { 0 } else { NON_BLOCKING }));
    scene.copy_x_to_y(stream);
    assert_eq!(call!(cuStreamDestroy_v2(stream)), OK);
    scene.set_x(3, 0);
    scene.y() == 1
}

/// Memory is freed in the order of one stream and used on another.
fn freed_on_another_stream(is_ordered: bool) -> bool {
    let scene = Scene::new();
    scene.copy_x_to_y(scene.a);
    order_if(is_ordered, scene.a, scene.b);
    assert_eq!(call!(cuMemFreeAsync(scene.x.address, scene.b)), OK);
    let done = call!(cuCtxSynchronize());
    assert!(done == OK || report().contains("freed allocation"), "{}", report());
    done == OK
}

/// What is to be done right or wrong, and whether all went well.
type Scenario = fn(bool) -> bool;

const SCENARIOS: [(&str, Scenario); 10] = [
    ("produced on another stream", produced_on_another_stream),
    ("produced far behind", produced_far_behind),
    ("overwritten on another stream", overwritten_on_another_stream),
    ("pinned memory used again", pinned_memory_used_again),
    ("pinned memory read early", pinned_memory_read_early),
    ("branches of a graph", branches_of_a_graph),
    ("launches of graphs", launches_of_graphs),
    ("behind the legacy stream", behind_the_legacy_stream),
    ("before the legacy stream", before_the_legacy_stream),
    ("freed on another stream", freed_on_another_stream),
];

fn is_deferred() -> bool {
    std::env::var_os("CUDA_EMULATOR_STREAMS").is_some()
}

/// Says what comes of each scenario; where work runs at once, all is well.
#[test]
fn scenarios() {
    let _driver = driver();
    for (name, run) in SCENARIOS {
        for is_right in [true, false] {
            let result = run(is_right);
            assert!(result || (is_deferred() && !is_right), "{name}");
            println!("{name}, {is_right}: {result}");
        }
    }
}

#[test]
fn what_nothing_orders_goes_wrong_for_some_seed_and_what_is_ordered_never() {
    let run = |seed: u32| {
        let streams = format!("deferred:{seed}");
        let Said { stdout, .. } =
            run_test("driver::deferred::scenarios", &[("CUDA_EMULATOR_STREAMS", &streams)]);
        let lines = stdout.lines().filter_map(|line| line.split_once(": "));
        let results: Vec<(String, bool)> = lines
            .filter(|(_, result)| ["true", "false"].contains(result))
            .map(|(name, result)| (name.to_string(), result == "true"))
            .collect();
        assert_eq!(results.len(), 2 * SCENARIOS.len(), "{stdout}");
        results
    };
    let mut wrong: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..16 {
        for (name, is_right) in run(seed) {
            *wrong.entry(name).or_default() += usize::from(!is_right);
        }
    }
    for (name, _) in SCENARIOS {
        assert_eq!(wrong[&format!("{name}, true")], 0, "{name}");
        assert!(wrong[&format!("{name}, false")] > 0, "{name} is never wrong");
    }
    println!("{wrong:?}");
    assert_eq!(run(3), run(3), "the same for a seed");
}

/// Runs a test of this file with deferred work.
fn deferred(test: &str) -> bool {
    let streams = [("CUDA_EMULATOR_STREAMS", "deferred:1")];
    alone(&format!("driver::deferred::{test}"), &streams).is_none()
}

#[test]
fn a_wait_is_for_the_record_before_it() {
    if !deferred("a_wait_is_for_the_record_before_it") {
        return;
    }
    let _driver = driver();
    let scene = Scene::new();
    let event = get!(cuEventCreate(2));
    scene.add_to_x(1, scene.a);
    assert_eq!(call!(cuEventRecord(event, scene.a)), OK);
    assert_eq!(call!(cuStreamWaitEvent(scene.b, event, 0)), OK);
    scene.copy_x_to_y(scene.b);
    order(scene.b, scene.a);
    scene.add_to_x(1, scene.a);
    assert_eq!(call!(cuEventRecord(event, scene.a)), OK);
    assert_eq!(call!(cuEventSynchronize(event)), OK);
    assert_eq!((scene.x.read(), scene.y()), (vec![3], 2));
}

#[test]
fn asking_says_not_ready_until_it_is() {
    if !deferred("asking_says_not_ready_until_it_is") {
        return;
    }
    let _driver = driver();
    let scene = Scene::new();
    let (start, end) = (get!(cuEventCreate(0)), get!(cuEventCreate(0)));
    assert_eq!(call!(cuEventRecord(start, scene.a)), OK);
    scene.add_to_x(1, scene.a);
    assert_eq!(call!(cuEventRecord(end, scene.a)), OK);
    let not_ready = CUresult::NOT_READY;
    assert_eq!(call!(cuEventElapsedTime(somewhere(), start, end)), not_ready);
    let asked = std::iter::repeat_with(|| call!(cuEventQuery(end)));
    assert_eq!(asked.take(4).collect::<Vec<_>>(), [not_ready, not_ready, not_ready, OK]);
    assert!(get!(cuEventElapsedTime(start, end)) >= 0.0);
    assert_eq!(call!(cuStreamQuery(scene.a)), OK);
    scene.add_to_x(1, scene.a);
    assert_eq!(call!(cuStreamQuery(scene.a)), not_ready);
    assert_eq!(call!(cuStreamQuery(scene.a)), OK);
    assert_eq!(scene.x.read(), [3]);
}

extern "C" fn count(calls: *mut c_void) {
    // SAFETY: the test passes a number that outlives the stream's work.
    unsafe { *calls.cast::<u32>() += 1 };
}

/// The fault is nobody's who did not wait, and is not lost where a free finds it; nothing runs after it.
#[test]
fn a_fault_is_told_by_the_call_that_waits() {
    if !deferred("a_fault_is_told_by_the_call_that_waits") {
        return;
    }
    let _driver = driver();
    let scene = Scene::new();
    let mut calls = 0u32;
    let data = (&raw mut calls).cast();
    let other = Words::new(&[0]);
    assert_eq!(call!(cuLaunchHostFunc(scene.a, Some(count), data)), OK);
    assert_eq!(add(scene.add, scene.x.address, 1, 2, scene.a), OK, "two threads, one word");
    assert_eq!(call!(cuLaunchHostFunc(scene.a, Some(count), data)), OK);
    let event = get!(cuEventCreate(2));
    assert_eq!(call!(cuEventRecord(event, scene.a)), OK);
    let illegal = CUresult::ILLEGAL_ADDRESS;
    assert_eq!(call!(cuMemFree_v2(other.address)), illegal);
    assert_eq!(add(scene.add, scene.x.address, 1, 1, scene.b), illegal, "nothing starts after it");
    assert_eq!(call!(cuStreamSynchronize(scene.b)), illegal, "any call that waits");
    assert!(report().starts_with("out of bounds in add"), "{}", report());
    assert_eq!(calls, 1);
    assert_eq!(call!(cuStreamSynchronize(scene.a)), OK, "once");
    assert_eq!(call!(cuEventQuery(event)), OK);
    scene.set_x(4, scene.a);
    scene.copy_x_to_y(scene.a);
    assert_eq!(scene.y(), 4, "and the device goes on");
}

/// As the manual has it: pageable memory is read inside of the call, and a copy to it is done when the call
/// returns.
#[test]
fn pageable_memory_is_free_when_the_call_returns() {
    if !deferred("pageable_memory_is_free_when_the_call_returns") {
        return;
    }
    let _driver = driver();
    let scene = Scene::new();
    let mut host = [7u32, 0];
    let at = host.as_mut_ptr();
    assert_eq!(call!(cuMemcpyHtoDAsync_v2(scene.x.address, at.cast(), 4, scene.a)), OK);
    host[0] = 8;
    scene.add_to_x(1, scene.a);
    let to = host[1..].as_mut_ptr().cast();
    assert_eq!(call!(cuMemcpyDtoHAsync_v2(to, scene.x.address, 4, scene.a)), OK);
    assert_eq!(host, [8, 8]);
}
