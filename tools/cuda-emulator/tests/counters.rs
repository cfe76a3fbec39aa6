//! What launches are counted to take, against numbers derived by hand.

mod first;

use emucuda::exec::{Counters, Options, Schedule};

use crate::attention::{Attention, source};
use crate::device::{CHECKED, Device, Params, Shape, compile};

/// Runs `body` on a block of `threads`; `lane` is the thread's number, `data` points to 64 KiB of global memory and
/// `own` to 8 KiB of shared memory.
fn counted(body: &str, threads: u32) -> Counters {
    scheduled(body, threads, Schedule::Order)
}

fn scheduled(body: &str, threads: u32, schedule: Schedule) -> Counters {
    let ptx = format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.const .align 4 .u32 table[32];
        .visible .entry k(.param .u64 base) {{
            .reg .b64 data, at; .reg .b32 lane, own, here, size, a<4>, b<2>, c<4>; .reg .b64 w<2>; .reg .b16 h;
            .reg .pred p;
            .shared .align 128 .b8 memory[8192]; .local .align 4 .b8 stack[16];
            ld.param.u64 data, [base]; mov.u32 lane, %tid.x; mov.u32 own, memory;
            {body}
            ret; }}"
    );
    let device = Device::new(&ptx);
    let base = device.upload(&[0u32; 16 << 10]);
    let shape = Shape { grid: [1, 1, 1], block: threads, dynamic_shared: 0 };
    // Shared memory is read that nobody wrote.
    let options = Options { checked: false, counts_first: true, schedule, ..CHECKED };
    let launched = device.launch("k", shape, &Params::new().with(base), &options);
    launched.unwrap_or_else(|fault| panic!("{body}: {fault}"))
}

/// Makes `at` (global) and `here` (shared) the place `stride` * what `index` leaves in `here` + `offset`.
fn at(index: &str, stride: i32, offset: i32) -> String {
    format!(
        "{index} mul.lo.u32 here, here, {stride}; add.u32 here, here, {offset};
        cvt.u64.u32 at, here; add.u64 at, at, data; add.u32 here, here, own;"
    )
}

const LANE: &str = "mov.u32 here, lane;";
const PAIR: &str = "shr.u32 here, lane, 1;";
/// 8 lanes to a row of 4096 bytes, 16 bytes each.
const ROWS: &str =
    "and.b32 here, lane, 7; shr.u32 size, lane, 3; mad.lo.u32 here, size, 256, here;";

/// Bytes, sectors and ideal sectors of an access to global memory.
#[test]
fn global_accesses() {
    type Case = (&'static str, &'static str, i32, i32, u32, [u64; 3]);
    const CASES: &[Case] = &[
        ("u32 a0", LANE, 4, 0, 32, [128, 4, 4]),
        // Bytes 4 to 131.
        ("u32 a0", LANE, 4, 4, 32, [128, 5, 4]),
        ("u32 a0", LANE, 8, 0, 32, [128, 8, 4]),
        ("u32 a0", LANE, 128, 0, 32, [128, 32, 4]),
        ("u32 a0", LANE, 0, 0, 32, [4, 1, 1]),
        ("u32 a0", LANE, -4, 124, 32, [128, 4, 4]),
        ("u32 a0", PAIR, 4, 0, 32, [64, 2, 2]),
        ("u32 a0", PAIR, 64, 0, 32, [64, 16, 2]),
        ("u32 a0", LANE, 4, 0, 20, [80, 3, 3]),
        ("u32 a0", LANE, 4, 20, 20, [80, 4, 3]),
        ("u32 a0", LANE, 4, 0, 1, [4, 1, 1]),
        ("b16 h", LANE, 2, 0, 32, [64, 2, 2]),
        ("u8 h", LANE, 1, 1, 32, [32, 2, 1]),
        ("u64 w0", LANE, 8, 8, 32, [256, 9, 8]),
        ("v2.u32 {a0, a1}", LANE, 8, 0, 32, [256, 8, 8]),
        ("v4.u32 {a0, a1, a2, a3}", LANE, 16, 0, 32, [512, 16, 16]),
        ("v4.u32 {a0, a1, a2, a3}", LANE, 16, 16, 32, [512, 17, 16]),
        ("v4.u32 {a0, a1, a2, a3}", LANE, 32, 0, 32, [512, 32, 16]),
        ("v4.u32 {a0, a1, a2, a3}", ROWS, 16, 0, 32, [512, 16, 16]),
        ("v2.u64 {w0, w1}", LANE, 0, 0, 32, [16, 1, 1]),
    ];
    for &(access, index, stride, offset, threads, [bytes, sectors, ideal]) in CASES {
        let (r#type, registers) = access.split_once(' ').unwrap();
        let place = at(index, stride, offset);
        for space in [".global", ""] {
            let load = counted(&format!("{place} ld{space}.{type} {registers}, [at];"), threads);
            let name = format!("{access}, {index} x {stride} + {offset} of {threads}");
            let got = (load.global_loads, load.global_bytes_read, load.global_sectors);
            assert_eq!((got, load.ideal_sectors), ((1, bytes, sectors), ideal), "{name}");
            let rest = (load.global_stores, load.global_bytes_written, load.shared_accesses);
            assert_eq!(rest, (0, 0, 0), "{name}");
            let store = counted(&format!("{place} st{space}.{type} [at], {registers};"), threads);
            let got = (store.global_stores, store.global_bytes_written, store.global_sectors);
            assert_eq!((got, store.ideal_sectors), ((1, bytes, sectors), ideal), "{name}");
            assert_eq!((store.global_loads, store.global_bytes_read), (0, 0), "{name}");
        }
    }
}

/// Wavefronts and ideal wavefronts of an access to shared memory.
#[test]
fn shared_accesses() {
    const V4: &str = "v4.u32 {a0, a1, a2, a3}";
    type Case = (&'static str, &'static str, i32, u32, [u64; 2]);
    const CASES: &[Case] = &[
        ("u32 a0", LANE, 4, 32, [1, 1]),
        ("u32 a0", LANE, 0, 32, [1, 1]),
        ("u32 a0", PAIR, 4, 32, [1, 1]),
        ("u32 a0", LANE, 8, 32, [2, 1]),
        ("u32 a0", LANE, 16, 32, [4, 1]),
        ("u32 a0", LANE, 128, 32, [32, 1]),
        ("u32 a0", LANE, 132, 32, [1, 1]),
        // 16 words of one bank, each read by two lanes.
        ("u32 a0", PAIR, 128, 32, [16, 1]),
        ("u32 a0", LANE, 128, 5, [5, 1]),
        ("b16 h", LANE, 2, 32, [1, 1]),
        ("u8 h", LANE, 1, 32, [1, 1]),
        ("b16 h", LANE, 128, 32, [32, 1]),
        // 16 lanes of 8 bytes are a pass.
        ("u64 w0", LANE, 8, 32, [2, 2]),
        ("u64 w0", LANE, 0, 32, [2, 2]),
        ("u64 w0", LANE, 16, 32, [4, 2]),
        ("u64 w0", LANE, 32, 32, [8, 2]),
        ("u64 w0", LANE, 128, 32, [32, 2]),
        ("u64 w0", LANE, 8, 16, [1, 1]),
        // 8 lanes of 16 bytes are a pass.
        (V4, LANE, 16, 32, [4, 4]),
        (V4, LANE, 0, 32, [4, 4]),
        (V4, PAIR, 16, 32, [4, 4]),
        (V4, LANE, 32, 32, [8, 4]),
        (V4, LANE, 64, 32, [16, 4]),
        (V4, LANE, 128, 32, [32, 4]),
        (V4, LANE, 144, 32, [4, 4]),
        (V4, LANE, 16, 9, [2, 2]),
    ];
    for &(access, index, stride, threads, [wavefronts, ideal]) in CASES {
        let (r#type, registers) = access.split_once(' ').unwrap();
        let place = at(index, stride, 0);
        let load = format!("ld.shared.{type} {registers}, [here];");
        let store = format!("st.shared.{type} [here], {registers};");
        for instruction in [load, store] {
            let got = counted(&format!("{place} {instruction}"), threads);
            let name = format!("{instruction} {index} x {stride} of {threads}");
            let counts = (got.shared_accesses, got.shared_wavefronts, got.ideal_wavefronts);
            assert_eq!(counts, (1, wavefronts, ideal), "{name}");
            assert_eq!((got.global_loads, got.global_stores, got.global_sectors), (0, 0, 0));
        }
    }
}

/// 8 rows of 16 bytes are a pass: rows that are 128 bytes apart lie in the same banks, unless their columns are
/// exchanged.
#[test]
fn matrices() {
    let rows = "shl.b32 here, lane, 7;";
    let swizzled = "and.b32 size, lane, 7; shl.b32 size, size, 4; shl.b32 here, lane, 7;
        xor.b32 here, here, size;";
    let dense = "shl.b32 here, lane, 4;";
    // Matrix `lane / 8` is 16 bytes of every row of 128 bytes.
    let tile = "and.b32 here, lane, 7; shl.b32 here, here, 7; shr.u32 size, lane, 3;
        shl.b32 size, size, 4; add.u32 here, here, size;";
    let tile_swizzled = "and.b32 here, lane, 7; shr.u32 size, lane, 3; xor.b32 size, size, here;
        shl.b32 here, here, 7; shl.b32 size, size, 4; add.u32 here, here, size;";
    let (one, two, four) = (("x1", "{a0}"), ("x2", "{a0, a1}"), ("x4", "{a0, a1, a2, a3}"));
    let cases = [
        (rows, four, [32, 4]),
        (swizzled, four, [4, 4]),
        (dense, four, [4, 4]),
        (tile, four, [32, 4]),
        (tile_swizzled, four, [4, 4]),
        (rows, one, [8, 1]),
        (dense, one, [1, 1]),
        (swizzled, two, [2, 2]),
        (tile, two, [16, 2]),
    ];
    for (place, (count, registers), [wavefronts, ideal]) in cases {
        for trans in ["", ".trans"] {
            let got = counted(
                &format!(
                    "{place} add.u32 here, here, own;
                    ldmatrix.sync.aligned.m8n8.{count}{trans}.shared.b16 {registers}, [here];"
                ),
                32,
            );
            let counts = (got.shared_accesses, got.shared_wavefronts, got.ideal_wavefronts);
            assert_eq!(counts, (1, wavefronts, ideal), "{place} {count}");
            let counts = (got.matrix_wavefronts, got.ideal_matrix_wavefronts);
            assert_eq!(counts, (wavefronts, ideal), "{place} {count}");
        }
    }
    // What conflicts beside it is no matter of ldmatrix.
    let beside = counted(
        "shl.b32 here, lane, 7; add.u32 here, here, own; st.shared.u32 [here], lane;
        shl.b32 here, lane, 4; add.u32 here, here, own;
        ldmatrix.sync.aligned.m8n8.x2.shared.b16 {a0, a1}, [here];
        ldmatrix.sync.aligned.m8n8.x1.shared.b16 {a0}, [here];",
        32,
    );
    assert_eq!((beside.shared_wavefronts, beside.ideal_wavefronts), (35, 4));
    assert_eq!((beside.matrix_wavefronts, beside.ideal_matrix_wavefronts), (3, 3));
}

#[test]
fn asynchronous_copies() {
    let place = at(LANE, 16, 0);
    let whole = counted(&format!("{place} cp.async.cg.shared.global [here], [at], 16;"), 32);
    let global = |got: &Counters| {
        (got.global_loads, got.global_bytes_read, got.global_sectors, got.ideal_sectors)
    };
    let shared =
        |got: &Counters| (got.shared_accesses, got.shared_wavefronts, got.ideal_wavefronts);
    assert_eq!((global(&whole), shared(&whole)), ((1, 512, 16, 16), (1, 4, 4)));
    assert_eq!((whole.cp_async, whole.global_stores, whole.atomics), (1, 0, 0));
    // 16 bytes by lanes 0 to 15, 8 by lane 16, nothing by the rest: zeros are written for it all the same.
    let cut = "mul.lo.u32 size, lane, 16; sub.s32 size, 264, size; max.s32 size, size, 0;
        min.s32 size, size, 16;";
    let tail =
        counted(&format!("{place} {cut} cp.async.cg.shared.global [here], [at], 16, size;"), 32);
    assert_eq!((global(&tail), shared(&tail)), ((1, 264, 9, 9), (1, 4, 4)));
}

#[test]
fn atomic_operations() {
    let global = counted("red.global.add.u32 [data], lane;", 32);
    assert_eq!((global.atomics, global.global_loads, global.global_stores), (1, 0, 0));
    assert_eq!((global.global_bytes_read, global.global_bytes_written), (4, 4));
    assert_eq!((global.global_sectors, global.ideal_sectors), (1, 1));
    let place = at(LANE, 4, 0);
    let spread = counted(&format!("{place} atom.global.max.u32 a0, [at], lane;"), 32);
    assert_eq!((spread.global_bytes_read, spread.global_bytes_written), (128, 128));
    assert_eq!((spread.global_sectors, spread.ideal_sectors), (4, 4));
    let shared = counted("atom.shared.exch.b32 a0, [own], lane;", 32);
    assert_eq!((shared.atomics, shared.shared_accesses, shared.shared_wavefronts), (1, 1, 1));
    assert_eq!(shared.global_sectors, 0);
}

#[test]
fn products() {
    let long = counted(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {c0, c1, c2, c3}, {a0, a1, a2, a3},
            {b0, b1}, {c0, c1, c2, c3};",
        64,
    );
    assert_eq!((long.mma, long.mma_macs), (2, 2 * 16 * 8 * 16));
    let short = counted(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {c0, c1, c2, c3}, {a0, a1, a2, a3},
            {b0, b1}, {c0, c1, c2, c3};",
        32,
    );
    assert_eq!((short.mma, short.mma_macs), (1, 16 * 8 * 8));
}

/// Multiply-adds of a warp that waits are those of the slowest. In units of one mma.
#[test]
fn products_are_paced_by_the_slowest_warp() {
    /// `count` products by the warps from `first` to before `end`.
    fn products(label: &str, first: u32, end: u32, count: usize) -> String {
        let product =
            "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {c0, c1, c2, c3}, {a0, a1}, {b0},
            {c0, c1, c2, c3};";
        format!(
            "setp.lt.u32 p, lane, {}; @p bra {label}; setp.ge.u32 p, lane, {}; @p bra {label};
            {} {label}:",
            32 * first,
            32 * end,
            product.repeat(count)
        )
    }
    let [three, one] = [products("A", 0, 1, 3), products("B", 1, 2, 1)];
    let late = products("C", 1, 2, 2);
    let leave = "setp.ge.u32 p, lane, 64; @p ret;";
    let first_of_two = "setp.ge.u32 p, lane, 32; @p bra D;";
    let cases = [
        // Nobody waits before the end.
        (64, format!("{three} {one}"), [4, 6]),
        (64, format!("{three} bar.sync 0; {one}"), [4, 8]),
        (64, format!("{three} bar.sync 0; bar.sync 0; {late} bar.sync 3;"), [5, 10]),
        // What one had less before, it has more afterwards: the barrier between them costs.
        (64, format!("{three} {one} bar.sync 0; {late}"), [6, 10]),
        (64, format!("{three} {one} {late}"), [6, 6]),
        // A count of all threads is all threads; a vote waits as well.
        (64, format!("{three} bar.sync 1, 64; {one}"), [4, 8]),
        (64, format!("{three} bar.red.popc.u32 size, 0, 1; {one}"), [4, 8]),
        // A count of some is none, nor is an arrival.
        (64, format!("{three} bar.sync 1, 32; {one}"), [4, 6]),
        (
            64,
            format!("{three} {first_of_two} bar.arrive 1, 64; bra E; D: bar.sync 1, 64; E: {one}"),
            [4, 6],
        ),
        // Idle warps are of the block, and those that have exited; partial ones are warps.
        (72, format!("{three} bar.sync 0; {one}"), [4, 12]),
        (96, format!("{} {leave} {three} bar.sync 0; {one}", products("F", 2, 3, 4)), [8, 15]),
        (96, format!("{leave} {three} bar.sync 1, 64; {one}"), [4, 9]),
    ];
    for (threads, body, [all, paced]) in cases {
        for schedule in schedules() {
            let got = scheduled(&body, threads, schedule);
            let product = 16 * 8 * 8;
            let counts = (got.mma_macs, got.paced_macs);
            assert_eq!(counts, (all * product, paced * product), "{schedule}: {body}");
        }
    }
}

/// By arrivals of warps, whole or not.
#[test]
fn barriers() {
    let block = counted("bar.sync 0; barrier.sync.aligned 1; bar.warp.sync -1;", 40);
    assert_eq!((block.block_barriers, block.warp_barriers), (4, 2));
    let vote = counted("setp.eq.u32 p, lane, 0; bar.red.popc.u32 a0, 0, p;", 96);
    assert_eq!((vote.block_barriers, vote.warp_barriers), (3, 0));
}

#[test]
fn other_memory() {
    let local = counted("st.local.u32 [stack], lane; ld.local.u32 a0, [stack];", 20);
    assert_eq!(local.local_bytes, 2 * 20 * 4);
    let constant = counted("ld.const.u32 a0, [table]; ld.param.u64 at, [base];", 32);
    let counts = Counters { warp_instructions: 0, lane_instructions: 0, ..constant };
    assert_eq!(counts, Counters::default());
}

/// In order, in random orders, and with each warp as the last.
fn schedules() -> impl Iterator<Item = Schedule> {
    let random = (0..20).map(|launch| Schedule::Random { seed: 1, launch });
    let last = (0..4).map(|warp| Schedule::Last { warp });
    [Schedule::Order].into_iter().chain(random).chain(last)
}

/// Of everything at once: fragments, copies, barriers, tails.
#[test]
fn counters_are_the_same_for_any_schedule_and_number_of_threads() {
    let test = "counters_are_the_same_for_any_schedule_and_number_of_threads";
    let Some(ptx) = compile(test, &source()) else { return };
    let device = Device::new(&ptx);
    let attention = Attention::new(&device, 2, 200);
    let count = |threads, checked, schedule| {
        let options = Options { checked, counts_first: true, threads, schedule };
        attention.launch(&device, &options).unwrap_or_else(|fault| panic!("{fault}"))
    };
    let first = count(1, true, Schedule::Order);
    assert!(first.mma > 0 && first.cp_async > 0 && first.block_barriers > 0, "{first:?}");
    // All queries of a block times all keys, in whole tiles; every byte of q, k and v, and of o.
    assert_eq!((first.paced_macs, first.mma_macs), (first.mma_macs, 2 * 2 * 256 * 256 * 64));
    let tensor = 2 * 200 * 64 * 2;
    assert_eq!((first.first_bytes_read, first.first_bytes_written), (3 * tensor, tensor));
    assert!(first.global_bytes_read > 8 * tensor, "{first:?}");
    for threads in 1..=4 {
        let checked = count(threads, true, Schedule::Order);
        let plain = count(threads, false, Schedule::Order);
        assert_eq!((checked, plain), (first, first), "{threads} threads");
    }
    for schedule in schedules() {
        assert_eq!(count(2, false, schedule), first, "{schedule}");
    }
}
