//! Allocations, copies, fills, page-locked host memory.

use std::ffi::c_void;
use std::ptr::null;

use emucuda::driver::copy::*;
use emucuda::driver::memory::*;

use super::*;

#[test]
fn what_is_copied_in_is_copied_out() {
    let _driver = driver();
    let (a, b) = (Words::new(&[1, 2, 3, 4]), Words::new(&[0; 4]));
    assert_eq!(call!(cuMemcpyDtoD_v2(b.address, a.address + 4, 8)), OK);
    assert_eq!(call!(cuMemcpy(b.address + 8, a.address, 4)), OK);
    assert_eq!(b.read(), [2, 3, 1, 0]);
    assert_eq!(call!(cuMemcpyDtoD_v2(a.address + 4, a.address, 12)), OK, "ranges may overlap");
    assert_eq!(a.read(), [1, 1, 2, 3]);
    let mut host = [9u32; 4];
    let to = host.as_mut_ptr();
    assert_eq!(call!(cuMemcpyAsync(to as u64, a.address, 8, 0)), OK);
    assert_eq!(call!(cuMemcpyAsync(to as u64 + 8, [7u32].as_ptr() as u64, 4, 0)), OK);
    assert_eq!(host, [1, 1, 7, 9]);
    assert_eq!(call!(cuMemcpyHtoDAsync_v2(b.address, host.as_ptr().cast(), 16, 0)), OK);
    assert_eq!(call!(cuMemcpyDtoDAsync_v2(b.address, b.address + 12, 4, 0)), OK);
    assert_eq!(call!(cuMemcpyDtoHAsync_v2(to.cast(), b.address, 16, 0)), OK);
    assert_eq!(host, [9, 1, 7, 9]);
    assert_eq!(call!(cuMemcpyHtoD_v2(1, null(), 0)), OK, "nothing is copied from nowhere");
}

#[test]
fn fills_repeat_a_value_of_one_two_or_four_bytes() {
    let _driver = driver();
    let words = Words::new(&[0; 4]);
    assert_eq!(call!(cuMemsetD8_v2(words.address, 0xAB, 3)), OK);
    assert_eq!(call!(cuMemsetD16_v2(words.address + 4, 0x1234, 1)), OK);
    assert_eq!(call!(cuMemsetD32_v2(words.address + 8, 0x8765_4321, 2)), OK);
    assert_eq!(words.read(), [0xAB_ABAB, 0x1234, 0x8765_4321, 0x8765_4321]);
    assert_eq!(call!(cuMemsetD8Async(words.address, 1, 1, 0)), OK);
    assert_eq!(call!(cuMemsetD16Async(words.address + 2, 2, 1, 0)), OK);
    assert_eq!(call!(cuMemsetD32Async(words.address + 4, 3, 3, 0)), OK);
    assert_eq!(words.read(), [0x2_AB01, 3, 3, 3]);
    assert_eq!(call!(cuMemsetD32_v2(words.address + 2, 0, 1)), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuMemsetD16_v2(words.address + 1, 0, 1)), CUresult::INVALID_VALUE);
}

#[test]
fn a_fill_of_rows_leaves_what_is_between_them() {
    let _driver = driver();
    let words = Words::new(&[0; 5]);
    assert_eq!(call!(cuMemsetD2D8Async(words.address, 8, 9, 2, 2, 0)), OK);
    assert_eq!(words.read(), [0x0909, 0, 0x0909, 0, 0]);
    assert_eq!(call!(cuMemsetD2D8Async(words.address, 8, 1, 4, 3, 0)), OK, "to the last byte");
    assert_eq!(call!(cuMemsetD2D8Async(words.address, 8, 1, 5, 3, 0)), CUresult::INVALID_VALUE);
    let narrow = call!(cuMemsetD2D8Async(words.address, 2, 1, 4, 2, 0));
    assert_eq!(narrow, CUresult::INVALID_VALUE, "rows overlap");
    assert_eq!(call!(cuMemsetD2D8Async(words.address, 8, 1, 0, 9, 0)), OK);
    let endless = call!(cuMemsetD2D8Async(words.address, usize::MAX, 1, 4, 3, 0));
    assert_eq!(endless, CUresult::INVALID_VALUE);
    assert_eq!(words.read()[1], 0);
}

#[test]
fn ranges_outside_of_an_allocation_are_refused_in_a_sentence() {
    let _driver = driver();
    let words = Words::new(&[0; 4]);
    let host = [0u32; 8];
    let from = host.as_ptr().cast();
    assert_eq!(call!(cuMemcpyHtoD_v2(words.address, from, 17)), CUresult::INVALID_VALUE);
    let said = report();
    assert!(said.starts_with("a copy writes 17 bytes at 0x"), "{said}");
    assert!(said.ends_with(&format!("allocation of 16 bytes at {:#x}.", words.address)), "{said}");
    assert_eq!(call!(cuMemcpyHtoD_v2(words.address - 1, from, 4)), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuMemcpyHtoD_v2(words.address, null(), 4)), CUresult::INVALID_VALUE);
    let device = words.address as *const c_void;
    assert_eq!(call!(cuMemcpyHtoD_v2(words.address, device, 4)), CUresult::INVALID_VALUE);
    assert!(report().contains("takes 0x"), "{}", report());
    assert_eq!(call!(cuMemsetD8_v2(words.address + 16, 0, 1)), CUresult::INVALID_VALUE);
    for endless in [usize::MAX, usize::MAX / 4] {
        assert_eq!(call!(cuMemsetD8_v2(words.address, 0, endless)), CUresult::INVALID_VALUE);
        assert_eq!(call!(cuMemsetD32_v2(words.address, 0, endless)), CUresult::INVALID_VALUE);
    }
    assert_eq!(call!(cuMemFree_v2(words.address)), OK);
    assert_eq!(call!(cuMemcpyHtoD_v2(words.address, from, 4)), CUresult::INVALID_VALUE);
    assert!(report().contains("freed allocation"), "{}", report());
}

#[test]
fn an_allocation_is_freed_once_and_by_its_first_byte() {
    let _driver = driver();
    let address = get!(cuMemAlloc_v2(1000));
    assert!(address.is_multiple_of(256));
    assert_eq!(call!(cuMemFree_v2(address + 256)), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuMemFree_v2(address)), OK);
    assert_eq!(call!(cuMemFree_v2(address)), CUresult::INVALID_VALUE);
    assert!(report().contains("of the freed allocation of 1000 bytes"), "{}", report());
    assert_eq!(call!(cuMemFree_v2(0)), OK);
    let ordered = get!(cuMemAllocAsync(64, 0));
    assert_eq!(call!(cuMemFreeAsync(ordered, 0)), OK);
    assert_eq!(call!(cuMemFreeAsync(ordered, 0)), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuMemAlloc_v2(somewhere(), 0)), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuMemAlloc_v2(nowhere(), 8)), CUresult::INVALID_VALUE);
}

#[test]
fn memory_ends_where_the_device_says() {
    let _driver = driver();
    let (free, total) = both_written(|free, total| call!(cuMemGetInfo_v2(free, total)));
    assert!(free <= total);
    assert_eq!(call!(cuMemAlloc_v2(somewhere(), free + 1)), CUresult::OUT_OF_MEMORY);
    assert!(report().contains(&format!("no room for {} bytes", free + 1)), "{}", report());
    let address = get!(cuMemAlloc_v2(1 << 20));
    assert_eq!(written(|free| call!(cuMemGetInfo_v2(free, None))), free - (1 << 20));
    assert_eq!(call!(cuMemFree_v2(address)), OK);
}

#[test]
fn kernels_see_host_allocations() {
    let _driver = driver();
    let host = get!(cuMemHostAlloc(16, 0)).cast::<u32>();
    // SAFETY: 16 bytes of the driver's, used by this test alone.
    unsafe { host.copy_from([1, 2, 3, 4].as_ptr(), 4) };
    let device = get!(cuMemHostGetDevicePointer_v2(host.wrapping_add(1).cast(), 0));
    let module = kernels();
    assert_eq!(add(function(module, "add"), device, 10, 2, 0), OK);
    // SAFETY: as above.
    assert_eq!(unsafe { host.cast::<[u32; 4]>().read() }, [1, 12, 13, 4]);
    assert_eq!(call!(cuMemFreeHost(host.wrapping_add(1).cast())), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuMemFreeHost(host.cast())), OK);
    assert_eq!(call!(cuMemFreeHost(host.cast())), CUresult::INVALID_VALUE);
    assert_eq!(call!(cuModuleUnload(module)), OK);
}

#[test]
fn host_memory_is_registered_once() {
    let _driver = driver();
    let mut host = [0u8; 64];
    let start: *mut c_void = host.as_mut_ptr().cast();
    let inside = start.wrapping_byte_add(32);
    assert_eq!(call!(cuMemHostRegister_v2(start, 48, 0)), OK);
    let twice = CUresult::HOST_MEMORY_ALREADY_REGISTERED;
    assert_eq!(call!(cuMemHostRegister_v2(inside, 32, 0)), twice);
    let unknown = CUresult::NOT_SUPPORTED;
    assert_eq!(call!(cuMemHostGetDevicePointer_v2(somewhere(), start, 0)), unknown);
    assert_eq!(call!(cuMemHostUnregister(inside)), CUresult::HOST_MEMORY_NOT_REGISTERED);
    assert_eq!(call!(cuMemHostUnregister(start)), OK);
    assert_eq!(call!(cuMemHostUnregister(start)), CUresult::HOST_MEMORY_NOT_REGISTERED);
    assert_eq!(call!(cuMemHostRegister_v2(start, 0, 0)), CUresult::INVALID_VALUE);
}
