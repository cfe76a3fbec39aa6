//! What a launch touches for the first time.

use super::{LANE, PAIR, at, counted, scheduled, schedules};

/// Bytes that are read first and written first, of those that are read and written.
#[test]
fn first_touches() {
    let [load, store, load_volatile, store_volatile] = [
        "ld.global.u32 a0, [at];",
        "st.global.u32 [at], a0;",
        "ld.volatile.global.u32 a0, [at];",
        "st.volatile.global.u32 [at], a0;",
    ];
    let dense = at(LANE, 4, 0);
    let cases: &[(&[&str], [u64; 4])] = &[
        (&[&dense, load], [128, 0, 128, 0]),
        (&[&dense, load, load], [128, 0, 256, 0]),
        (&[&dense, store, store], [0, 128, 0, 256]),
        // What was read may be written for the first time; what was written is not read for it.
        (&[&dense, load, store, load], [128, 128, 256, 128]),
        (&[&dense, store, load, store], [0, 128, 128, 256]),
        // The same, other, half other bytes.
        (&[&dense, load, &at(LANE, 0, 64), load], [128, 0, 132, 0]),
        (&[&at(LANE, 0, 64), load, &dense, load], [128, 0, 132, 0]),
        (&[&dense, load, &at(LANE, 4, 128), load], [256, 0, 256, 0]),
        (&[&dense, load, &at(LANE, 4, 4), load], [132, 0, 256, 0]),
        (&[&dense, load, &at(LANE, 4, 60), load], [188, 0, 256, 0]),
        (&[&at(LANE, 128, 0), load, &dense, load], [252, 0, 256, 0]),
        (&[&at(PAIR, 12, 0), store, &dense, load], [84, 64, 128, 64]),
        // Of any width.
        (&[&at(LANE, 1, 3), "ld.global.u8 h, [at];", &dense, load], [128, 0, 160, 0]),
        (&[&at(LANE, 4, 2), "st.global.b16 [at], h;", &dense, load], [64, 64, 128, 64]),
        (&[&at(LANE, 16, 16), "ld.global.v2.u64 {w0, w1}, [at];", &dense, load], [528, 0, 640, 0]),
        (
            &[&at(LANE, 48, 16), "st.global.v4.u32 [at], {a0, a1, a2, a3};", &dense, load],
            [80, 512, 128, 512],
        ),
        // By other ways.
        (&[&dense, load, "ld.u32 a0, [at];", "ld.global.nc.u32 a0, [at];"], [128, 0, 384, 0]),
        (&["red.global.add.u32 [data], lane; red.global.add.u32 [data], lane;"], [4, 4, 8, 8]),
        (&["red.global.add.u32 [data], lane; ld.global.u32 a0, [data];"], [4, 4, 8, 4]),
        (&[&dense, store, "red.global.add.u32 [data], lane;"], [0, 128, 4, 132]),
        // A strong read may come before a strong write, whatever happened here; not so where one of them is weak.
        (&[&dense, load_volatile, load_volatile], [128, 0, 256, 0]),
        (&[&dense, store_volatile, load_volatile, load_volatile], [128, 128, 256, 128]),
        (&[&dense, load_volatile, store_volatile, load_volatile], [128, 128, 256, 128]),
        (&[&dense, store, load_volatile], [0, 128, 128, 128]),
        (&[&dense, store_volatile, load], [0, 128, 128, 128]),
        (&[&dense, store_volatile, store, load_volatile], [0, 128, 128, 256]),
        (&["shl.b32 here, lane, 2; add.u32 here, here, own; st.shared.u32 [here], lane;"], [0; 4]),
    ];
    for &(body, expected) in cases {
        let got = counted(&body.concat(), 32);
        let counts = [
            got.first_bytes_read,
            got.first_bytes_written,
            got.global_bytes_read,
            got.global_bytes_written,
        ];
        assert_eq!(counts, expected, "{body:?}");
    }
    // Warps are one launch.
    let warps = counted(&format!("{} {load} {store}", at("and.b32 here, lane, 31;", 4, 0)), 96);
    assert_eq!((warps.first_bytes_read, warps.first_bytes_written), (128, 128));
    // 16 bytes by lanes 0 to 15, 9 by lane 16, 1 by the rest.
    let cut = "mul.lo.u32 size, lane, 16; sub.s32 size, 265, size; max.s32 size, size, 1;
        min.s32 size, size, 16;";
    let copy = "cp.async.cg.shared.global [here], [at], 16, size;";
    let copied = counted(&[&at(LANE, 16, 0), cut, copy, copy].concat(), 32);
    assert_eq!((copied.first_bytes_read, copied.global_bytes_read), (280, 560));
    assert_eq!(copied.first_bytes_written, 0);
}

/// Whichever warp comes first.
#[test]
fn first_touches_are_the_same_for_any_schedule() {
    let of_first = "setp.lt.u32 p, lane, 32; @!p bra SECOND;";
    let place = at("and.b32 here, lane, 31;", 4, 0);
    let cases = [
        ("ld.global.u32 a0, [at]; bar.sync 0;", "bar.sync 0; st.global.u32 [at], a0;", [128, 128]),
        ("st.global.u32 [at], a0; bar.sync 0;", "bar.sync 0; ld.global.u32 a0, [at];", [0, 128]),
        ("st.volatile.global.u32 [at], a0;", "ld.volatile.global.u32 a0, [at];", [128, 128]),
        ("red.global.add.u32 [at], a0;", "ld.volatile.global.u32 a0, [at];", [128, 128]),
        ("red.global.add.u32 [at], a0;", "red.global.add.u32 [at], a0;", [128, 128]),
        ("st.volatile.global.u32 [at], a0;", "st.volatile.global.u32 [at], a0;", [0, 128]),
    ];
    for (first, second, expected) in cases {
        let body = format!("{place} {of_first} {first} bra END; SECOND: {second} END:");
        for schedule in schedules() {
            let got = scheduled(&body, 64, schedule);
            assert_eq!(
                [got.first_bytes_read, got.first_bytes_written],
                expected,
                "{schedule}: {body}"
            );
        }
    }
}
