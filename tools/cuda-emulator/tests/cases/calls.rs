//! Calls, and instructions that would end a kernel.

use super::Case;
use super::control::{warp, with_functions};

pub fn cases() -> Vec<Case> {
    [calls(), ends()].into_iter().flatten().collect()
}

fn calls() -> Vec<Case> {
    let functions = "\
.func (.param .b32 result) scaled(.param .b32 x, .param .b64 factor)
{
    .reg .b32 a, b; .reg .b64 f;
    ld.param.b32 a, [x];
    ld.param.b64 f, [factor];
    cvt.u32.u64 b, f;
    mul.lo.u32 a, a, b;
    st.param.b32 [result], a;
    ret;
}
.func (.param .align 8 .b8 result[16]) pair(.param .align 8 .b8 given[16])
{
    .reg .b32 %r<4>; .reg .b64 %d<2>; .reg .pred %p;
    ld.param.b32 %r1, [given];
    ld.param.b64 %d1, [given+8];
    cvt.u32.u64 %r2, %d1;
    setp.gt.u32 %p, %r1, 12;
    @%p bra BIG;
    {
    .param .b32 a0; .param .b64 a1; .param .b32 r0;
    st.param.b32 [a0], %r1;
    st.param.b64 [a1], 3;
    call.uni (r0), scaled, (a0, a1);
    ld.param.b32 %r2, [r0];
    }
    st.param.b32 [result], %r2;
    st.param.b64 [result+8], %d1;
    ret;
BIG:
    st.param.b32 [result], %r1;
    mul.wide.u32 %d1, %r2, 2;
    st.param.b64 [result+8], %d1;
    ret;
}
.func fill(.param .b64 place, .param .b32 value)
{
    .reg .b64 at; .reg .b32 x;
    .local .align 4 .b8 own[8];
    .reg .b64 depot;
    ld.param.b64 at, [place];
    ld.param.b32 x, [value];
    mov.u64 depot, own;
    st.local.b32 [depot+4], x;
    ld.local.b32 x, [depot+4];
    st.b32 [at+4], x;
    add.u32 x, x, 1;
    st.b32 [at], x;
    ret;
}
";
    vec![
        // Two calls deep; lanes above 12 take the other way in the function.
        with_functions(
            "call",
            functions,
            "    .reg .b64 big; .reg .b32 y;
    cvt.u64.u32 big, %thread;
    add.u64 big, big, 7;
    {
    .param .align 8 .b8 a0[16]; .param .align 8 .b8 r0[16];
    st.param.b32 [a0], %thread;
    st.param.b64 [a0+8], big;
    call.uni (r0), pair, (a0);
    ld.param.b32 x, [r0];
    ld.param.b64 big, [r0+8];
    }
    cvt.u32.u64 y, big;
    mad.lo.u32 x, y, 1000, x;
",
            |i| if i > 12 { 2000 * (i + 7) + i } else { 1000 * (i + 7) + 3 * i },
        ),
        // Only odd lanes call, under a branch, then under a guard.
        with_functions(
            "call of some lanes",
            &functions
                .replace("scaled", "scaled_some")
                .replace("pair", "pair_some")
                .replace("fill", "fill_some"),
            "    .reg .b32 odd; .reg .pred p;
    mov.u32 x, %thread;
    and.b32 odd, %thread, 1;
    setp.eq.u32 p, odd, 0;
    @p bra EVEN;
    {
    .param .b32 a0; .param .b64 a1; .param .b32 r0;
    st.param.b32 [a0], %thread;
    st.param.b64 [a1], 11;
    call (r0), scaled_some, (a0, a1);
    ld.param.b32 x, [r0];
    }
EVEN:
    add.u32 x, x, 1;
",
            |i| if i % 2 == 1 { 11 * i + 1 } else { i + 1 },
        ),
        // A function that writes to its caller's local memory, and has some of its own.
        with_functions(
            "call with an address",
            &functions
                .replace("scaled", "scaled_at")
                .replace("pair", "pair_at")
                .replace("fill", "fill_at"),
            "    .local .align 8 .b8 depot[8]; .reg .b64 at, window; .reg .b32 y;
    mov.u64 at, depot;
    st.local.b32 [at], 0;
    cvta.local.u64 window, at;
    {
    .param .b64 a0; .param .b32 a1;
    st.param.b64 [a0], window;
    st.param.b32 [a1], %thread;
    call.uni fill_at, (a0, a1);
    }
    ld.local.b32 x, [at];
    ld.local.b32 y, [at+4];
    mad.lo.u32 x, x, 100, y;
",
            |i| 100 * (i + 1) + i,
        ),
    ]
}

/// What would end the kernel, where no lane gets to it; and a call of the system's.
fn ends() -> Vec<Case> {
    let mut cases: Vec<Case> = ["trap", "brkpt"]
        .into_iter()
        .map(|opcode| {
            let body = format!(
                "    .reg .pred p;
    setp.gt.u32 p, %thread, 31;
    @p {opcode};
    add.u32 x, %thread, 1;
"
            );
            warp(&format!("{opcode} of no lane"), &body, |i| i + 1)
        })
        .collect();
    let functions = ".extern .func (.param .b32 r) vprintf(.param .b64 f, .param .b64 a);
.global .align 1 .b8 greeting[14] = {109, 105, 99, 114, 111, 45, 107, 101, 114, 110, 101, 108, 10};
";
    let body = "    .reg .b64 text; .reg .pred p;
    add.u32 x, %thread, 2;
    setp.ne.u32 p, %thread, 7;
    @p bra DONE;
    mov.u64 text, greeting;
    cvta.global.u64 text, text;
    {
    .param .b64 f; .param .b64 a; .param .b32 r;
    st.param.b64 [f], text;
    st.param.b64 [a], 0;
    call.uni (r), vprintf, (f, a);
    }
DONE:
";
    cases.push(with_functions("call of vprintf", functions, body, |i| i + 2));
    cases
}
