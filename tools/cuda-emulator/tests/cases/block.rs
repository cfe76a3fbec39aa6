//! Barriers, and what a thread knows about itself.

use super::build::{kernel, words};
use super::{Case, Expected};

const GROUP: &str = "block";

pub fn cases() -> Vec<Case> {
    [barriers(), specials()].into_iter().flatten().collect()
}

/// A block of 128 threads: thread `i` stores `x`.
fn block(name: &str, body: &str, expected: impl Fn(u32) -> u32) -> Case {
    let body = format!(
        "    .shared .align 4 .b8 tile[512];
    .reg .b32 x, y, at, warp, other; .reg .b64 out; .reg .pred p, q;
    mov.u32 at, tile;
    mad.lo.u32 at, %thread, 4, at;
    shr.u32 warp, %thread, 5;
{body}    mad.wide.u32 out, %thread, 4, %output;
    st.global.u32 [out], x;
"
    );
    let expected = Expected::Bits(words((0..128).map(expected)));
    Case { block: [128, 1, 1], ..kernel(GROUP, name, "", &body, vec![0; 4], expected) }
}

fn barriers() -> Vec<Case> {
    // Thread t reads what thread 127 - t wrote before.
    let reversed = |barrier: &str| {
        format!(
            "    st.shared.u32 [at], %thread;
    {barrier}
    mov.u32 other, tile;
    sub.u32 x, 127, %thread;
    mad.lo.u32 other, x, 4, other;
    ld.shared.u32 x, [other];
"
        )
    };
    let mut cases: Vec<Case> = [
        "bar.sync 0;",
        "bar.sync 5;",
        "bar.sync 3, 128;",
        "bar.cta.sync 0;",
        "barrier.sync 0;",
        "barrier.sync.aligned 1;",
        "barrier.cta.sync 2, 128;",
        "mov.u32 y, 9; bar.sync y;",
        "mov.u32 y, 128; bar.sync 15, y;",
    ]
    .into_iter()
    .map(|barrier| block(barrier.trim_end_matches(';'), &reversed(barrier), |i| 127 - i))
    .collect();
    cases.extend([
        // Pairs of warps at barriers of their own, again and again.
        block(
            "bar.sync of warps",
            "    .reg .b32 round, number;
    shr.u32 number, warp, 1;
    add.u32 number, number, 1;
    mov.u32 x, %thread;
    mov.u32 round, 0;
    xor.b32 other, %thread, 32;
    mov.u32 y, tile;
    mad.lo.u32 other, other, 4, y;
NEXT:
    st.shared.u32 [at], x;
    bar.sync number, 64;
    ld.shared.u32 y, [other];
    bar.sync number, 64;
    add.u32 x, y, 1;
    add.u32 round, round, 1;
    setp.lt.u32 p, round, 5;
    @p bra NEXT;
",
            |i| (i ^ 32) + 5,
        ),
        // Warp 0 waits for what the others bring and go on.
        block(
            "bar.arrive",
            "    setp.eq.u32 p, warp, 0;
    @p bra WAIT;
    st.shared.u32 [at], %thread;
    bar.arrive 4, 128;
    mov.u32 x, 1;
    bra END;
WAIT:
    bar.sync 4, 128;
    ld.shared.u32 x, [at+128];
    ld.shared.u32 y, [at+384];
    add.u32 x, x, y;
END:
",
            |i| if i < 32 { 128 + 2 * i } else { 1 },
        ),
        // Lanes that have ended do not keep the others waiting.
        block(
            "bar.sync after exits",
            "    mad.wide.u32 out, %thread, 4, %output;
    st.global.u32 [out], %thread;
    setp.eq.u32 p, warp, 2;
    @p exit;
    and.b32 y, %thread, 3;
    setp.eq.u32 p, y, 1;
    @p exit;
    st.shared.u32 [at], %thread;
    bar.sync 0;
    mov.u32 other, tile;
    ld.shared.u32 x, [other+508];
",
            |i| if i / 32 == 2 || i % 4 == 1 { i } else { 127 },
        ),
        block(
            "bar.red.popc.u32",
            "    setp.lt.u32 p, %thread, 77;
    bar.red.popc.u32 x, 0, p;
    bar.red.popc.u32 y, 1, !p;
    mad.lo.u32 x, y, 1000, x;
",
            |_| 51_077,
        ),
        block(
            "bar.red.and.pred",
            "    setp.lt.u32 p, %thread, 127;
    bar.red.and.pred q, 0, p;
    selp.b32 x, 1, 0, q;
    setp.lt.u32 p, %thread, 128;
    bar.red.and.pred q, 0, p;
    selp.b32 y, 2, 0, q;
    or.b32 x, x, y;
    barrier.cta.red.and.aligned.pred q, 0, 128, !p;
    @q or.b32 x, x, 4;
",
            |_| 2,
        ),
        block(
            "bar.red.or.pred",
            "    setp.eq.u32 p, %thread, 99;
    bar.red.or.pred q, 0, p;
    selp.b32 x, 1, 0, q;
    setp.eq.u32 p, %thread, 128;
    bar.red.or.pred q, 0, p;
    @q or.b32 x, x, 2;
",
            |_| 1,
        ),
    ]);
    cases
}

fn specials() -> Vec<Case> {
    let (grid, block) = ([2u32, 3, 2], [5u32, 4, 3]);
    let names = [
        "%tid.x",
        "%tid.y",
        "%tid.z",
        "%ntid.x",
        "%ntid.y",
        "%ntid.z",
        "%ctaid.x",
        "%ctaid.y",
        "%ctaid.z",
        "%nctaid.x",
        "%nctaid.y",
        "%nctaid.z",
        "%laneid",
        "%warpid",
        "%lanemask_eq",
        "%lanemask_le",
        "%lanemask_lt",
        "%lanemask_ge",
        "%lanemask_gt",
        "%dynamic_smem_size",
    ];
    let mut body = "    .reg .b32 x, y, z, n, block; .reg .b64 out;
    mov.u32 x, %tid.z; mov.u32 n, %ntid.y; mov.u32 y, %tid.y; mad.lo.u32 x, x, n, y;
    mov.u32 n, %ntid.x; mov.u32 y, %tid.x; mad.lo.u32 x, x, n, y;
    mov.u32 block, %ctaid.z; mov.u32 n, %nctaid.y; mov.u32 y, %ctaid.y; mad.lo.u32 block, block, n, y;
    mov.u32 n, %nctaid.x; mov.u32 y, %ctaid.x; mad.lo.u32 block, block, n, y;
    mad.lo.u32 x, block, 60, x;
"
    .to_owned();
    body += &format!("    mad.wide.u32 out, x, {}, %output;\n", 4 * names.len());
    for (i, name) in names.iter().enumerate() {
        body += &format!("    mov.u32 z, {name}; st.global.u32 [out+{}], z;\n", 4 * i);
    }
    let mut expected = Vec::new();
    for i in 0..grid.iter().product::<u32>() {
        for thread in 0..block.iter().product::<u32>() {
            let at = |i: u32, size: [u32; 3]| {
                [i % size[0], i / size[0] % size[1], i / size[0] / size[1]]
            };
            let lane = thread % 32;
            let below = (1u32 << lane) - 1;
            let own = 1 << lane;
            expected.extend(at(thread, block));
            expected.extend(block);
            expected.extend(at(i, grid));
            expected.extend(grid);
            expected.extend([
                lane,
                thread / 32,
                own,
                below | own,
                below,
                !below,
                !(below | own),
                48,
            ]);
        }
    }
    let case =
        kernel(GROUP, "special registers", "", &body, vec![0; 4], Expected::Bits(words(expected)));
    // %clock only runs.
    let body = "    .reg .b64 a, b, out; .reg .b32 x, y; .reg .pred p;
    mov.u64 a, %clock64;
    mov.u32 y, %clock;
    mov.u64 b, %clock64;
    setp.le.u64 p, a, b;
    selp.b32 x, 1, 0, p;
    mad.wide.u32 out, %thread, 4, %output;
    st.global.u32 [out], x;
";
    let clock = kernel(GROUP, "%clock64", "", body, vec![0; 4], Expected::Bits(words([1; 32])));
    vec![Case { grid, block, dynamic_shared: 48, ..case }, clock]
}
