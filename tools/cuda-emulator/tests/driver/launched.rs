//! The driver remembers launches for those who ask.

use emucuda::driver::launched::*;
use emucuda::driver::memory::cuMemFree_v2;
use emucuda::exec::Counters;

use super::*;

/// At most `capacity` launches, which were made since the last time.
fn take(capacity: usize) -> Vec<Launched> {
    let mut launched = Vec::with_capacity(capacity);
    let count = call!(emucuda_take_launches(launched.as_mut_ptr(), capacity));
    // SAFETY: the function wrote that many.
    unsafe { launched.set_len(count) };
    launched
}

#[test]
fn launches_are_taken_once_and_in_order() {
    let _driver = driver();
    let module = kernels();
    let (add_kernel, words) = (function(module, "add"), Words::new(&[1; 100]));
    assert_eq!(call!(emucuda_take_launches(std::ptr::null_mut(), 9)), 0);
    assert_eq!(add(add_kernel, words.address, 1, 100, 0), OK);
    assert_eq!(launch(function(module, "at_most_64_threads"), 3, 64, 16, 0, &[]), OK);
    assert_ne!(add(add_kernel, words.address, 1, 101, 0), OK);
    let taken = take(10);
    let names = taken.iter().map(|launch| launch.kernel.split(|byte| *byte == 0).next().unwrap());
    assert_eq!(names.collect::<Vec<_>>(), [&b"add"[..], b"at_most_64_threads"], "no fault");
    let sizes = taken.iter().map(|launch| (launch.grid, launch.block, launch.dynamic_shared));
    let sizes: Vec<_> = sizes.collect();
    assert_eq!(sizes, [([1, 1, 1], [100, 1, 1], 0), ([3, 1, 1], [64, 1, 1], 16)]);
    // 13 instructions in 4 warps, the last of 4 lanes.
    let expected = Counters {
        warp_instructions: 4 * 13,
        lane_instructions: 100 * 13,
        global_loads: 4,
        global_stores: 4,
        global_bytes_read: 400,
        global_bytes_written: 400,
        first_bytes_read: 400,
        first_bytes_written: 400,
        global_sectors: 2 * (3 * 4 + 1),
        ideal_sectors: 2 * (3 * 4 + 1),
        ..Counters::default()
    };
    assert_eq!(taken[0].counters, expected);
    assert_eq!(take(10), []);
    for _ in 0..3 {
        assert_eq!(add(add_kernel, words.address, 1, 100, 0), OK);
    }
    assert_eq!(take(2).len(), 2);
    assert_eq!(take(10), [], "the rest is forgotten");
    assert_eq!(call!(cuMemFree_v2(words.address)), OK);
}
