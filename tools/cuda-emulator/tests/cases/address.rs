//! Addresses, variables and parameters.

use super::build::{kernel, words};
use super::{Case, Expected};

const GROUP: &str = "address";

pub fn cases() -> Vec<Case> {
    [windows(), variables(), parameters()].into_iter().flatten().collect()
}

/// Generic addresses of every space, and back.
fn windows() -> Vec<Case> {
    let input = words((0..32).map(|i| 1000 + i));
    let spaces = [
        ("global", "    mad.wide.u32 own, %thread, 4, %input;\n"),
        (
            "shared",
            "    .shared .align 4 .b8 tile[128];
    mov.u64 own, tile;
    mad.wide.u32 own, %thread, 4, own;
    st.shared.b32 [own], x;
",
        ),
        (
            "local",
            "    .local .align 4 .b8 depot[4];
    mov.u64 own, depot;
    st.local.b32 [own], x;
",
        ),
    ];
    let mut cases = Vec::new();
    for (space, set) in spaces {
        // Bit 0: the way back is the way there; the rest: a load and a store of 3 more through the window.
        let body = format!(
            "    .reg .b64 at, out, own, back, generic; .reg .b32 x, y, same; .reg .pred p;
    mad.wide.u32 at, %thread, 4, %input;
    mad.wide.u32 out, %thread, 4, %output;
    ld.global.b32 x, [at];
{set}    cvta.{space}.u64 generic, own;
    cvta.to.{space}.u64 back, generic;
    setp.eq.u64 p, back, own;
    selp.b32 same, 1, 0, p;
    ld.b32 y, [generic];
    add.u32 y, y, 3;
    st.b32 [generic], y;
    ld.{space}.b32 y, [back];
    mad.lo.u32 y, y, 2, same;
    st.global.b32 [out], y;
"
        );
        let expected = Expected::Bits(words((0..32).map(|i| (1003 + i) * 2 + 1)));
        cases.push(kernel(GROUP, format!("cvta.{space}"), "", &body, input.clone(), expected));
    }
    // One generic load whose lanes look into three spaces.
    let body = "    .shared .align 4 .b8 tile[128]; .local .align 4 .b8 depot[4];
    .reg .b64 at, out, own, g, s, l; .reg .b32 x, third; .reg .pred p;
    mad.wide.u32 g, %thread, 4, %input;
    mad.wide.u32 out, %thread, 4, %output;
    ld.global.b32 x, [g];
    add.u32 x, x, 100;
    mov.u64 s, tile;
    mad.wide.u32 s, %thread, 4, s;
    st.shared.b32 [s], x;
    add.u32 x, x, 100;
    mov.u64 l, depot;
    st.local.b32 [l], x;
    cvta.global.u64 g, g;
    cvta.shared.u64 s, s;
    cvta.local.u64 l, l;
    rem.u32 third, %thread, 3;
    mov.u64 at, g;
    setp.eq.u32 p, third, 1;
    @p mov.u64 at, s;
    setp.eq.u32 p, third, 2;
    @p mov.u64 at, l;
    ld.b32 x, [at];
    st.global.b32 [out], x;
";
    let expected = Expected::Bits(words((0..32).map(|i| 1000 + i + i % 3 * 100)));
    cases.push(kernel(GROUP, "ld of three windows", "", body, input.clone(), expected));
    let body = "    .shared .align 4 .b8 tile[4]; .local .align 4 .b8 depot[4];
    .reg .b64 out, s, l; .reg .b32 x, y; .reg .pred p;
    mad.wide.u32 out, %thread, 4, %output;
    mov.u64 s, tile;
    cvta.shared.u64 s, s;
    mov.u64 l, depot;
    cvta.local.u64 l, l;
    isspacep.global p, %input; selp.b32 x, 1, 0, p;
    isspacep.shared p, %input; selp.b32 y, 2, 0, p; or.b32 x, x, y;
    isspacep.shared p, s; selp.b32 y, 4, 0, p; or.b32 x, x, y;
    isspacep.local p, s; selp.b32 y, 8, 0, p; or.b32 x, x, y;
    isspacep.local p, l; selp.b32 y, 16, 0, p; or.b32 x, x, y;
    isspacep.global p, l; selp.b32 y, 32, 0, p; or.b32 x, x, y;
    st.global.b32 [out], x;
";
    let expected = Expected::Bits(words([1 | 4 | 16; 32]));
    cases.push(kernel(GROUP, "isspacep", "", body, input, expected));
    cases
}

/// Variables of a module: initial values, addresses among them, and offsets.
fn variables() -> Vec<Case> {
    let declarations = "\
.global .align 4 .u32 gv_numbers[4] = {11, 22, 33, 44};
.global .align 4 .f32 gv_float = 0f40490FDB;
.global .align 8 .u64 gv_pointer = generic(gv_numbers)+8;
.global .align 8 .u64 gv_own = gv_numbers;
.const .align 4 .u32 cv_numbers[3] = {5, 6};
.global .align 4 .u32 gv_zero;
.global .align 2 .b8 gv_bytes[6] = {1, 2, 3, 255};
";
    let body = "    .reg .b64 at; .reg .b32 x, sum;
    ld.global.u32 sum, [gv_numbers+12];
    ld.global.u32 x, [gv_float]; st.global.u32 [%output+4], x;
    ld.global.u64 at, [gv_pointer]; ld.u32 x, [at]; st.global.u32 [%output+8], x;
    ld.global.u64 at, [gv_own]; ld.global.u32 x, [at+-0]; st.global.u32 [%output+12], x;
    ld.const.u32 x, [cv_numbers+4]; st.global.u32 [%output+16], x;
    ld.const.u32 x, [cv_numbers+8]; st.global.u32 [%output+20], x;
    ld.global.u32 x, [gv_zero]; st.global.u32 [%output+24], x;
    ld.global.u16 x, [gv_bytes+2]; st.global.u32 [%output+28], x;
    mov.u64 at, gv_numbers+4; ld.global.u32 x, [at+4]; st.global.u32 [%output+32], x;
    cvta.global.u64 at, gv_numbers; ld.u32 x, [at]; st.global.u32 [%output+36], x;
    ld.global.s8 x, [gv_bytes+3]; st.global.u32 [%output+40], x;
    ld.global.u8 x, [gv_bytes+5]; st.global.u32 [%output+44], x;
    mov.u64 at, cv_numbers; ld.const.u32 x, [at]; st.global.u32 [%output+48], x;
    st.global.u32 [%output], sum;
";
    let expected = [44, 0x4049_0FDB, 33, 11, 6, 0, 0, 0xFF03, 33, 11, u32::MAX, 0, 5];
    let mut cases = vec![Case {
        block: [1; 3],
        ..kernel(
            GROUP,
            "variables",
            declarations,
            body,
            vec![0; 4],
            Expected::Bits(words(expected)),
        )
    }];
    // Dynamic shared memory starts after the static variables, aligned.
    let declarations = ".extern .shared .align 16 .b8 sv_dynamic[];\n";
    let body = "    .shared .align 4 .b8 first[20];
    .reg .b32 at, x, y, size; .reg .b64 out;
    mov.u32 at, sv_dynamic;
    and.b32 y, at, 15;
    mov.u32 size, %dynamic_smem_size;
    add.u32 y, y, size;
    mad.lo.u32 at, %thread, 4, at;
    st.shared.u32 [at+128], %thread;
    st.shared.u32 [first], y;
    bar.sync 0;
    mov.u32 at, sv_dynamic;
    sub.u32 x, 31, %thread;
    mad.lo.u32 at, x, 4, at;
    ld.shared.u32 x, [at+128];
    ld.shared.u32 y, [first];
    mad.lo.u32 x, y, 1000, x;
    mad.wide.u32 out, %thread, 4, %output;
    st.global.u32 [out], x;
";
    let expected = Expected::Bits(words((0..32).map(|i| 256_000 + 31 - i)));
    let case = kernel(GROUP, "dynamic shared", declarations, body, vec![0; 4], expected);
    cases.push(Case { dynamic_shared: 256, ..case });
    cases
}

/// Parameters of every width, by name, by address and generically.
fn parameters() -> Vec<Case> {
    let bytes: Vec<u8> = (0..48u8).map(|i| i.wrapping_mul(5).wrapping_add(100)).collect();
    let body = "    .reg .b64 at, x, y; .reg .b32 a, b, c, d; .reg .b16 h;
    ld.param.u8 a, [extra+3]; st.global.u32 [%output], a;
    ld.param.s8 a, [extra+7]; st.global.u32 [%output+4], a;
    ld.param.u16 h, [extra+6]; cvt.u32.u16 a, h; st.global.u32 [%output+8], a;
    ld.param.u32 a, [extra+4]; st.global.u32 [%output+12], a;
    ld.param.u64 x, [extra+8]; st.global.u64 [%output+16], x;
    ld.param.v2.u64 {x, y}, [extra+16]; st.global.v2.u64 [%output+32], {x, y};
    ld.param.v4.b32 {a, b, c, d}, [extra+32]; st.global.v4.b32 [%output+48], {a, b, c, d};
    mov.b64 at, extra;
    ld.param.u32 a, [at+20]; st.global.u32 [%output+24], a;
    cvta.param.u64 at, at;
    ld.u32 a, [at+24]; st.global.u32 [%output+28], a;
";
    let at = |i: usize, n: usize| bytes[i..i + n].to_vec();
    let mut expected = vec![bytes[3], 0, 0, 0, bytes[7], 0, 0, 0];
    if bytes[7] > 127 {
        expected[5..8].fill(255);
    }
    expected.extend(
        [at(6, 2), vec![0; 2], at(4, 4), at(8, 8), at(20, 4), at(24, 4), at(16, 32)].concat(),
    );
    let case = kernel(GROUP, "ld.param", "", body, vec![0; 4], Expected::Bits(expected));
    let ptx = case
        .ptx
        .replace(".param .u64 output)", ".param .u64 output, .param .align 16 .b8 extra[48])");
    vec![Case { block: [1; 3], extra: bytes, ptx, ..case }]
}
