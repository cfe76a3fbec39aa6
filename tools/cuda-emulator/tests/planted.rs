//! Bugs planted in kernels: each must be found, by its kind, its kernel and its line, and the corrected kernel
//! must pass.

mod races;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use emucuda::exec::Options;
use emucuda::ptx::ast::Space;
use emucuda::report::{Fault, Kind};

use crate::device::{CHECKED, Device, Params, Shape, compile};

/// One of the files of tests/planted and what nvcc makes of it.
struct Source {
    path: PathBuf,
    text: String,
    ptx: OnceLock<Option<String>>,
}

impl Source {
    fn new(name: &str) -> Source {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/planted").join(name);
        let text = std::fs::read_to_string(&path).expect("a planted source");
        Source { path, text, ptx: OnceLock::new() }
    }

    /// A device with the kernels of the file; `None` without nvcc.
    fn device(&self, test: &str) -> Option<Device> {
        Some(Device::new(self.ptx.get_or_init(|| compile(test, &self.path)).as_ref()?))
    }

    /// The line that ends in a comment of these words.
    fn line(&self, comment: &str) -> usize {
        let ending = format!("// {comment}");
        let found = self.text.lines().position(|line| line.ends_with(&ending));
        found.unwrap_or_else(|| panic!("no line ends in `{ending}`")) + 1
    }

    /// What every report must say.
    fn check(&self, fault: &Fault, kernel: &str, kind: Kind) {
        assert_eq!((fault.kind, fault.kernel.as_str()), (kind, kernel), "{fault}");
        let file = self.path.file_name().expect("a name").to_string_lossy();
        let place = format!("{file}:{}", self.line(kernel.trim_end_matches("_right")));
        // What CUDA's own headers wrap is reported with the line in the header before the line that calls it.
        let own = fault.source.iter().find(|at| !at.contains("/include/"));
        assert!(own.is_some_and(|at| at.ends_with(&place)), "not {place}: {fault}");
        assert!(fault.to_string().contains(&place) && fault.ptx_line > 0, "{fault}");
    }
}

fn bounds() -> &'static Source {
    static SOURCE: OnceLock<Source> = OnceLock::new();
    SOURCE.get_or_init(|| Source::new("bounds.cu"))
}

fn shared() -> &'static Source {
    static SOURCE: OnceLock<Source> = OnceLock::new();
    SOURCE.get_or_init(|| Source::new("shared.cu"))
}

fn barriers() -> &'static Source {
    static SOURCE: OnceLock<Source> = OnceLock::new();
    SOURCE.get_or_init(|| Source::new("barriers.cu"))
}

fn shape(grid: u32, block: u32) -> Shape {
    Shape { grid: [grid, 1, 1], block, dynamic_shared: 0 }
}

/// Runs a kernel that must fail.
fn fails(device: &Device, kernel: &str, shape: Shape, params: &Params) -> Fault {
    match device.launch(kernel, shape, params, &CHECKED) {
        Err(fault) => fault,
        Ok(_) => panic!("{kernel} passes"),
    }
}

/// Runs a kernel that must pass, checked and not.
fn passes(device: &Device, kernel: &str, shape: Shape, params: &Params) {
    for checked in [true, false] {
        let options = Options { checked, threads: 2, ..CHECKED };
        let counters = device.launch(kernel, shape, params, &options);
        let counters = counters.unwrap_or_else(|fault| panic!("{fault}"));
        assert!(counters.lane_instructions >= counters.warp_instructions);
    }
}

fn ramp(count: usize) -> Vec<f32> {
    (0..count).map(|i| i as f32).collect()
}

#[test]
fn off_by_one_bound() {
    let Some(device) = bounds().device("off_by_one_bound") else { return };
    let (x, y) = (device.upload(&ramp(1000)), device.allocate(1024 * 4));
    let params = Params::new().with(x).with(y).with(1000i32);
    let fault = fails(&device, "off_by_one_bound", shape(8, 128), &params);
    bounds().check(&fault, "off_by_one_bound", Kind::OutOfBounds);
    assert_eq!(fault.access, Some((Space::Global, x + 4000, 4)));
    assert_eq!((fault.block, fault.warp, fault.lane), ([7, 0, 0], 3, Some(8)));
    assert_eq!(fault.thread, Some([104, 0, 0]));
    assert!(fault.detail.contains("0 bytes past the end"), "{fault}");
    passes(&device, "off_by_one_bound_right", shape(8, 128), &params);
    let expected: Vec<f32> =
        ramp(1024).into_iter().map(|x| if x < 1000.0 { x } else { 0.0 }).collect();
    assert_eq!(device.download::<f32>(y, 1024), expected);
}

#[test]
fn write_out_of_bounds() {
    let Some(device) = bounds().device("write_out_of_bounds") else { return };
    let y = device.allocate(100 * 4);
    let params = Params::new().with(y).with(100i32);
    let fault = fails(&device, "write_out_of_bounds", shape(1, 128), &params);
    bounds().check(&fault, "write_out_of_bounds", Kind::OutOfBounds);
    assert_eq!(fault.access, Some((Space::Global, y + 400, 4)));
    passes(&device, "write_out_of_bounds_right", shape(1, 128), &params);
    assert_eq!(device.download::<f32>(y, 100), [1.0; 100]);
}

#[test]
fn copied_past_the_end() {
    let Some(device) = bounds().device("copied_past_the_end") else { return };
    for bytes in [0, 1, 15, 16, 100, 112, 511, 512] {
        let values: Vec<u8> = (1..=255).cycle().take(bytes).collect();
        let (x, y) = (device.upload(&values), device.allocate(32 * 16));
        let params = Params::new().with(x).with(y).with(bytes as i32);
        if bytes < 512 {
            let fault = fails(&device, "copied_past_the_end", shape(1, 32), &params);
            bounds().check(&fault, "copied_past_the_end", Kind::OutOfBounds);
            assert_eq!(fault.lane, Some(bytes as u32 / 16));
        }
        passes(&device, "copied_past_the_end_right", shape(1, 32), &params);
        let padded = values.into_iter().chain([0].repeat(512 - bytes));
        assert!(padded.eq(device.download::<u8>(y, 512)), "{bytes} bytes");
    }
}

#[test]
fn use_after_free() {
    let Some(device) = bounds().device("use_after_free") else { return };
    let (x, y) = (device.upload(&ramp(64)), device.allocate(64 * 4));
    let params = Params::new().with(x).with(y);
    passes(&device, "use_after_free", shape(1, 64), &params);
    assert!(device.memory.free(x));
    let fault = fails(&device, "use_after_free", shape(1, 64), &params);
    bounds().check(&fault, "use_after_free", Kind::UseAfterFree);
    assert!(fault.detail.contains("of the freed allocation of 256 bytes"), "{fault}");
}

#[test]
fn uninitialised_global() {
    let Some(device) = bounds().device("uninitialised_global") else { return };
    let (x, y) = (device.allocate(64 * 4), device.allocate(64 * 4));
    let params = Params::new().with(x).with(y);
    let fault = fails(&device, "uninitialised_global", shape(1, 64), &params);
    bounds().check(&fault, "uninitialised_global", Kind::Uninitialised);
    let params = Params::new().with(device.upload(&ramp(64))).with(y);
    passes(&device, "uninitialised_global", shape(1, 64), &params);
}

#[test]
fn misaligned_vector_load() {
    let Some(device) = bounds().device("misaligned_vector_load") else { return };
    let (x, y) = (device.upload(&ramp(132)), device.allocate(32 * 4));
    let params = |shift: i32| Params::new().with(x).with(y).with(shift);
    let fault = fails(&device, "misaligned_vector_load", shape(1, 32), &params(1));
    bounds().check(&fault, "misaligned_vector_load", Kind::Misaligned);
    assert_eq!(fault.access, Some((Space::Global, x + 4, 16)));
    passes(&device, "misaligned_vector_load", shape(1, 32), &params(4));
}

#[test]
fn write_to_constant() {
    let Some(device) = bounds().device("write_to_constant") else { return };
    let y = device.allocate(16);
    let params = |is_right: i32| Params::new().with(y).with(is_right);
    let fault = fails(&device, "write_to_constant", shape(1, 4), &params(0));
    bounds().check(&fault, "write_to_constant", Kind::ReadOnly);
    passes(&device, "write_to_constant", shape(1, 4), &params(1));
    assert_eq!(device.download::<f32>(y, 4), [2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn uninitialised_shared() {
    let Some(device) = shared().device("uninitialised_shared") else { return };
    let params = Params::new().with(device.allocate(128 * 4));
    let fault = fails(&device, "uninitialised_shared", shape(1, 128), &params);
    shared().check(&fault, "uninitialised_shared", Kind::Uninitialised);
    assert_eq!((fault.warp, fault.lane), (3, Some(30)));
    assert!(matches!(fault.access, Some((Space::Shared, _, 4))), "{fault}");
    passes(&device, "uninitialised_shared_right", shape(1, 128), &params);
}

#[test]
fn missing_wait() {
    let Some(device) = shared().device("missing_wait") else { return };
    let params = Params::new().with(device.upload(&ramp(256))).with(device.allocate(64 * 4));
    let fault = fails(&device, "missing_wait", shape(1, 64), &params);
    shared().check(&fault, "missing_wait", Kind::PendingCopy);
    passes(&device, "missing_wait_right", shape(1, 64), &params);
}

#[test]
fn overwritten_copy() {
    let Some(device) = shared().device("overwritten_copy") else { return };
    let y = device.allocate(64 * 4);
    let params = Params::new().with(device.upload(&ramp(256))).with(y);
    let fault = fails(&device, "overwritten_copy", shape(1, 64), &params);
    shared().check(&fault, "overwritten_copy", Kind::PendingCopy);
    passes(&device, "overwritten_copy_right", shape(1, 64), &params);
    assert_eq!(device.download::<f32>(y, 64)[63], 252.0 + 7.0);
}

#[test]
fn wrong_ldmatrix_row() {
    let Some(device) = shared().device("wrong_ldmatrix_row") else { return };
    let params = Params::new().with(device.allocate(32 * 4));
    let fault = fails(&device, "wrong_ldmatrix_row", shape(1, 32), &params);
    shared().check(&fault, "wrong_ldmatrix_row", Kind::Uninitialised);
    assert_eq!((fault.lane, fault.access.map(|access| access.2)), (Some(15), Some(16)));
    passes(&device, "wrong_ldmatrix_row_right", shape(1, 32), &params);
}

#[test]
fn shared_overflow() {
    let Some(device) = shared().device("shared_overflow") else { return };
    let params = Params::new().with(device.allocate(32 * 4)).with(1i32);
    let fault = fails(&device, "shared_overflow", shape(1, 32), &params);
    shared().check(&fault, "shared_overflow", Kind::OutOfBounds);
    assert_eq!(fault.lane, Some(31));
    passes(&device, "shared_overflow_right", shape(1, 32), &params);
}

/// All that an H100 gives a block, and what every GPU gives.
#[test]
fn dynamic_overflow() {
    let Some(device) = shared().device("dynamic_overflow") else { return };
    let rows: Vec<u32> = (0..8 * 4).collect();
    let (x, y) = (device.upload(&rows), device.allocate(2 * 128 * 4));
    for bytes in [48 << 10, 227 << 10] {
        let dynamic_shared = bytes - 128;
        let shape = Shape { dynamic_shared, ..shape(2, 128) };
        let params = Params::new().with(x).with(y).with(dynamic_shared as i32 / 16);
        let fault = fails(&device, "dynamic_overflow", shape, &params);
        shared().check(&fault, "dynamic_overflow", Kind::OutOfBounds);
        assert_eq!(fault.lane, Some(7));
        passes(&device, "dynamic_overflow_right", shape, &params);
        assert!((0..256).map(|i| i % 32).eq(device.download::<u32>(y, 256)));
    }
}

#[test]
fn into_dynamic() {
    let Some(device) = shared().device("into_dynamic") else { return };
    let shape = Shape { dynamic_shared: 32 * 4, ..shape(1, 32) };
    for words in [1i32, 4] {
        let params = Params::new().with(device.allocate(32 * 4)).with(words);
        let fault = fails(&device, "into_dynamic", shape, &params);
        shared().check(&fault, "into_dynamic", Kind::OutOfBounds);
        passes(&device, "into_dynamic_right", shape, &params);
    }
}

#[test]
fn divergent_barrier() {
    let Some(device) = barriers().device("divergent_barrier") else { return };
    let params = Params::new().with(device.allocate(64 * 4));
    let fault = fails(&device, "divergent_barrier", shape(1, 64), &params);
    barriers().check(&fault, "divergent_barrier", Kind::BarrierDivergence);
    assert!(fault.detail.contains("Lanes 0x0000ffff have arrived without"), "{fault}");
    passes(&device, "divergent_barrier_right", shape(1, 64), &params);
}

#[test]
fn different_barriers() {
    let Some(device) = barriers().device("different_barriers") else { return };
    let y = device.allocate(64 * 4);
    let params = Params::new().with(y);
    let fault = fails(&device, "different_barriers", shape(1, 64), &params);
    assert_eq!(fault.kind, Kind::BarrierDivergence, "{fault}");
    assert_eq!(fault.warp, 1);
    passes(&device, "different_barriers_right", shape(1, 64), &params);
    let expected: Vec<f32> = (0..64).map(|i| 5.0 * f32::from(i < 64)).collect();
    assert_eq!(device.download::<f32>(y, 64), expected);
}

#[test]
fn deadlock() {
    let Some(device) = barriers().device("deadlock") else { return };
    let params = Params::new().with(device.allocate(64 * 4));
    let fault = fails(&device, "deadlock", shape(1, 64), &params);
    barriers().check(&fault, "deadlock", Kind::Deadlock);
    for waits in
        ["Warp 0 waits at", "for barrier 1, where 32 of 64", "Warp 1 waits at", "for barrier 2"]
    {
        assert!(fault.detail.contains(waits), "{fault}");
    }
    passes(&device, "deadlock_right", shape(1, 64), &params);
}

#[test]
fn missing_lanes() {
    let Some(device) = barriers().device("missing_lanes") else { return };
    let params = Params::new().with(device.upload(&ramp(32)));
    let fault = fails(&device, "missing_lanes", shape(1, 32), &params);
    barriers().check(&fault, "missing_lanes", Kind::MissingLanes);
    passes(&device, "missing_lanes_right", shape(1, 32), &params);
}

#[test]
fn exited_lanes() {
    let Some(device) = barriers().device("exited_lanes") else { return };
    let x = device.upload(&ramp(32));
    let params = Params::new().with(x).with(20i32);
    let fault = fails(&device, "exited_lanes", shape(1, 32), &params);
    barriers().check(&fault, "exited_lanes", Kind::MissingLanes);
    let counters = device.launch("exited_lanes_right", shape(1, 32), &params, &CHECKED);
    counters.unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(device.download::<f32>(x, 1), [190.0]);
}

#[test]
fn absent_lane() {
    let Some(device) = barriers().device("absent_lane") else { return };
    let params = Params::new().with(device.upload(&ramp(32)));
    let fault = fails(&device, "absent_lane", shape(1, 32), &params);
    barriers().check(&fault, "absent_lane", Kind::MissingLanes);
    passes(&device, "absent_lane_right", shape(1, 32), &params);
}

#[test]
fn inside_a_call() {
    let Some(device) = barriers().device("inside_a_call") else { return };
    let (x, y) = (device.upload(&ramp(32)), device.allocate(32 * 4));
    let params = |shift: i32| Params::new().with(x).with(y).with(shift);
    let fault = fails(&device, "inside_a_call", shape(1, 32), &params(1));
    barriers().check(&fault, "inside_a_call", Kind::OutOfBounds);
    let call = format!("barriers.cu:{}", barriers().line("the call"));
    assert!(fault.source.get(1).is_some_and(|at| at.ends_with(&call)), "{fault}");
    passes(&device, "inside_a_call", shape(1, 32), &params(0));
}

/// Of two blocks that fail on two threads, the first is reported, every time.
#[test]
fn the_first_block_is_reported() {
    let Some(device) = bounds().device("the_first_block_is_reported") else { return };
    let y = device.allocate(100 * 4);
    let params = Params::new().with(y).with(100_000i32);
    for _ in 0..20 {
        let options = Options { checked: true, threads: 4, ..CHECKED };
        let fault = device.launch("write_out_of_bounds", shape(100, 32), &params, &options);
        let fault = fault.expect_err("most blocks are out of bounds");
        assert_eq!((fault.block, fault.lane), ([3, 0, 0], Some(4)));
    }
}
