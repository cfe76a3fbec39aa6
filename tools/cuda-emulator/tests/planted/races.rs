//! Races, found under every schedule with both lines; and schedules, which change nothing else.

use std::sync::OnceLock;

use emucuda::exec::{Counters, Options, Schedule};
use emucuda::ptx::ast::Space;
use emucuda::report::{Fault, Kind};

use super::{Source, ramp, shape};
use crate::device::{CHECKED, Device, Params, Shape};

fn races() -> &'static Source {
    static SOURCE: OnceLock<Source> = OnceLock::new();
    SOURCE.get_or_init(|| Source::new("races.cu"))
}

/// In order, one warp last, and so many random ones.
fn schedules(random: u64) -> Vec<Schedule> {
    let last = (0..4).map(|warp| Schedule::Last { warp });
    let random = (0..random).map(|launch| Schedule::Random { seed: 5, launch });
    [Schedule::Order].into_iter().chain(last).chain(random).collect()
}

/// On one thread and on two.
fn options(schedule: Schedule) -> [Options; 2] {
    [1, 2].map(|threads| Options { threads, schedule, ..CHECKED })
}

/// A kernel, its sizes and its parameters, made anew for every run.
struct Planted<'a> {
    device: &'a Device,
    shape: Shape,
    params: &'a dyn Fn(&Device) -> Params,
}

impl Planted<'_> {
    /// Fails under every schedule, with one of the kinds and the lines of both accesses.
    fn fails(&self, kernel: &str, lines: &str, kinds: &[Kind]) -> Vec<Fault> {
        let mut faults = Vec::new();
        for options in schedules(20).into_iter().flat_map(options) {
            let params = (self.params)(self.device);
            let Err(fault) = self.device.launch(kernel, self.shape, &params, &options) else {
                panic!("{kernel} passes: {options:?}")
            };
            assert!(kinds.contains(&fault.kind) && fault.kernel == kernel, "{fault}");
            for line in [lines.to_owned(), format!("{lines} too")] {
                let place = format!("races.cu:{}", races().line(&line));
                let ends = |text: &str| !text.starts_with(|next: char| next.is_ascii_digit());
                let text = fault.to_string();
                let found =
                    text.match_indices(&place).any(|(at, _)| ends(&text[at + place.len()..]));
                assert!(found, "not {place}: {fault}");
            }
            assert!(fault.to_string().ends_with(&format!("Schedule {}.", options.schedule)));
            faults.push(fault);
        }
        faults
    }

    /// Passes under every schedule.
    fn passes(&self, kernel: &str) {
        for options in schedules(50).into_iter().flat_map(options) {
            let params = (self.params)(self.device);
            let launched = self.device.launch(kernel, self.shape, &params, &options);
            launched.unwrap_or_else(|fault| panic!("{options:?}: {fault}"));
        }
    }
}

/// A source of `inputs` numbers and room for 256.
fn from_ramp(inputs: usize) -> impl Fn(&Device) -> Params {
    move |device| Params::new().with(device.upload(&ramp(inputs))).with(device.allocate(1024))
}

/// A test of a kernel that races and of its twin.
macro_rules! planted {
    ($($name:ident: $grid:literal x $block:literal, $params:expr;)*) => {$(
        #[test]
        fn $name() {
            let name = stringify!($name);
            let Some(device) = races().device(name) else { return };
            let planted = Planted { device: &device, shape: shape($grid, $block), params: &$params };
            planted.fails(name, name, &[Kind::Race]);
            planted.passes(&format!("{name}_right"));
        }
    )*};
}

planted! {
    missing_syncthreads: 1 x 64, from_ramp(64);
    missing_syncwarp: 1 x 32, from_ramp(32);
    narrow_syncwarp: 1 x 32, from_ramp(32);
    write_after_read: 1 x 64, from_ramp(64);
    bytes_of_a_word: 1 x 64, from_ramp(64);
    overwritten_source: 1 x 64, from_ramp(256);
    weak_flag: 1 x 64, from_ramp(64);
    unfenced_flag: 1 x 64, from_ramp(64);
    forgotten_reader: 1 x 128, from_ramp(64);
    early_consumer: 1 x 64, from_ramp(64);
    early_count: 1 x 128, from_ramp(128);
    missing_threadfence: 40 x 32, ticket;
}

/// Inputs, room for partial sums, a ticket and the sum.
fn ticket(device: &Device) -> Params {
    let (x, ticket) = (device.upload(&vec![1.0f32; 40 * 32]), device.upload(&[0u32]));
    Params::new().with(x).with(device.allocate(40 * 32 * 4)).with(ticket).with(device.allocate(4))
}

#[test]
fn syncwarp_in_its_place() {
    let Some(device) = races().device("syncwarp_in_its_place") else { return };
    let planted = Planted { device: &device, shape: shape(1, 64), params: &from_ramp(64) };
    let faults = planted.fails("syncwarp_in_its_place", "missing_syncthreads", &[Kind::Race]);
    for fault in faults {
        assert!(matches!(fault.access, Some((Space::Shared, _, 4))), "{fault}");
        let other = if fault.warp == 0 { "warp 1, lane 0 at" } else { "warp 0, lane 0 at" };
        assert!(fault.detail.contains(other) && fault.lane == Some(0), "{fault}");
    }
}

/// A fence of the block says nothing to other blocks, and one before the ticket needs one after it.
#[test]
fn fences_on_both_sides_and_wide_enough() {
    let Some(device) = races().device("fences_on_both_sides_and_wide_enough") else { return };
    let planted = Planted { device: &device, shape: shape(40, 32), params: &ticket };
    for kernel in ["narrow_threadfence", "missing_second_threadfence"] {
        for fault in planted.fails(kernel, "missing_threadfence", &[Kind::Race]) {
            assert!(matches!(fault.access, Some((Space::Global, _, 4))), "{fault}");
        }
    }
    planted.passes("fence_of_all_right");
}

/// In place, and into another array.
#[test]
fn cross_block() {
    let Some(device) = races().device("cross_block") else { return };
    let in_place = |device: &Device| {
        let x = device.upload(&ramp(8 * 64));
        Params::new().with(x).with(x)
    };
    let planted = Planted { device: &device, shape: shape(8, 64), params: &in_place };
    planted.fails("cross_block", "cross_block", &[Kind::Race]);
    let apart = |device: &Device| {
        Params::new().with(device.upload(&ramp(8 * 64))).with(device.allocate(8 * 64 * 4))
    };
    Planted { params: &apart, ..planted }.passes("cross_block");
}

/// Read before it is issued, while it is under way, or after its thread waited.
#[test]
fn copy_for_others() {
    let Some(device) = races().device("copy_for_others") else { return };
    let planted = Planted { device: &device, shape: shape(1, 64), params: &from_ramp(256) };
    let kinds = [Kind::Race, Kind::PendingCopy];
    planted.fails("copy_for_others", "copy_for_others", &kinds);
    planted.passes("copy_for_others_right");
}

#[test]
fn colliding_lanes() {
    let Some(device) = races().device("colliding_lanes") else { return };
    let params = from_ramp(64)(&device);
    let launched = device.launch("colliding_lanes", shape(1, 32), &params, &CHECKED);
    let fault = launched.expect_err("lanes write different values");
    races().check(&fault, "colliding_lanes", Kind::Race);
    assert!(fault.detail.starts_with("Lane 0 writes another value there"), "{fault}");
    assert_eq!(fault.lane, Some(1));
    let planted = Planted { device: &device, shape: shape(1, 32), params: &from_ramp(64) };
    planted.passes("colliding_lanes_right");
}

/// What a kernel runs, and what it leaves, is the same under each.
#[test]
fn schedules_change_nothing() {
    let Some(device) = races().device("schedules_change_nothing") else { return };
    for (kernel, grid) in [("divergence", 1), ("waiting_lane", 1)] {
        let run = |options: &Options| -> (Counters, Vec<u32>) {
            let (x, y) = (device.upload(&[7u32; 128]), device.upload(&[0u32; 128]));
            let params = Params::new().with(x).with(y);
            let counters = device.launch(kernel, shape(grid, 128), &params, options);
            (counters.unwrap_or_else(|fault| panic!("{fault}")), device.download(y, 128))
        };
        let expected = run(&CHECKED);
        assert!(expected.0.warp_instructions > 1000, "{kernel}: {expected:?}");
        for options in schedules(20).into_iter().flat_map(options) {
            assert_eq!(run(&options), expected, "{kernel} {options:?}");
        }
    }
}

/// The same schedule finds the same race on the same lanes, another one others.
#[test]
fn schedules_can_be_run_again() {
    let Some(device) = races().device("schedules_can_be_run_again") else { return };
    let run = |launch: u64| {
        let schedule = Schedule::Random { seed: 3, launch };
        let params = from_ramp(64)(&device);
        let options = Options { schedule, ..CHECKED };
        let launched = device.launch("missing_syncthreads", shape(1, 64), &params, &options);
        let fault = launched.expect_err("it races");
        (fault.ptx_line, fault.warp)
    };
    let faults: Vec<_> = (0..20).map(run).collect();
    assert_eq!((0..20).map(run).collect::<Vec<_>>(), faults);
    assert!(faults.iter().any(|fault| *fault != faults[0]), "{faults:?}");
}
