//! Guards and branches.

use super::build::{kernel, words};
use super::{Case, Expected};

const GROUP: &str = "control";

pub fn cases() -> Vec<Case> {
    [guards(), branches(), exits()].into_iter().flatten().collect()
}

/// A warp of which lane `i` stores `x` and must store `expected(i)`.
pub fn warp(name: &str, body: &str, expected: impl Fn(u32) -> u32) -> Case {
    with_functions(name, "", body, expected)
}

/// As [`warp`], with functions that the body calls.
pub fn with_functions(
    name: &str,
    functions: &str,
    body: &str,
    expected: impl Fn(u32) -> u32,
) -> Case {
    let body = format!(
        "    .reg .b32 x; .reg .b64 out;
{body}    mad.wide.u32 out, %thread, 4, %output;
    st.global.u32 [out], x;
"
    );
    let expected = Expected::Bits(words((0..32).map(expected)));
    kernel(GROUP, name, functions, &body, vec![0; 4], expected)
}

/// Lanes whose guard is false keep what they had and touch no memory.
fn guards() -> Vec<Case> {
    vec![
        warp(
            "guards",
            "    .reg .b32 y; .reg .pred p, q;
    mov.u32 x, 5;
    setp.gt.u32 p, %thread, 9;
    @p mov.u32 x, 7;
    @!p add.u32 x, x, %thread;
    mov.pred q, p;
    @p setp.eq.u32 q, %thread, 20;
    @q mov.u32 x, 1000;
",
            |i| {
                if i == 20 {
                    1000
                } else if i > 9 {
                    7
                } else {
                    5 + i
                }
            },
        ),
        // The others' addresses lie outside of everything.
        warp(
            "guarded memory",
            "    .shared .align 4 .b8 tile[128]; .reg .b32 at; .reg .b64 far; .reg .pred p;
    setp.lt.u32 p, %thread, 5;
    mov.u64 far, 12;
    @p mov.u64 far, %input;
    mov.u32 x, 3;
    @p ld.global.u32 x, [far];
    mov.u32 at, 0x7FFFFFF1;
    @p mov.u32 at, tile;
    @p mad.lo.u32 at, %thread, 4, at;
    @p st.shared.u32 [at], %thread;
    @p atom.shared.add.u32 x, [at], 1;
    @p ld.shared.u32 x, [at];
",
            |i| if i < 5 { i + 1 } else { 3 },
        ),
    ]
}

fn branches() -> Vec<Case> {
    let steps = |mut n: u32| {
        let mut steps = 0;
        while n != 1 {
            n = if n.is_multiple_of(2) { n / 2 } else { 3 * n + 1 };
            steps += 1;
        }
        steps
    };
    let nested = |i: u32| {
        if i < 16 {
            if i.is_multiple_of(2) { if i < 8 { 1 } else { 2 } } else { 3 + i }
        } else if i.is_multiple_of(3) {
            100 - i
        } else {
            (0..i % 5).map(|k| k * i).sum::<u32>()
        }
    };
    vec![
        // Every lane goes round a number of times of its own.
        warp(
            "loops of different length",
            "    .reg .b32 n, odd; .reg .pred p, q;
    add.u32 n, %thread, 1;
    mov.u32 x, 0;
NEXT:
    setp.eq.u32 p, n, 1;
    @p bra DONE;
    and.b32 odd, n, 1;
    setp.eq.u32 q, odd, 1;
    @q bra ODD;
    shr.u32 n, n, 1;
    bra COUNT;
ODD:
    mad.lo.u32 n, n, 3, 1;
COUNT:
    add.u32 x, x, 1;
    bra.uni NEXT;
DONE:
",
            |i| steps(i + 1),
        ),
        warp(
            "nested branches",
            "    .reg .b32 y, k; .reg .pred p;
    setp.ge.u32 p, %thread, 16;
    @p bra HIGH;
    and.b32 y, %thread, 1;
    setp.ne.u32 p, y, 0;
    @p bra LOWODD;
    setp.lt.u32 p, %thread, 8;
    mov.u32 x, 2;
    @!p bra END;
    mov.u32 x, 1;
    bra END;
LOWODD:
    add.u32 x, %thread, 3;
    bra END;
HIGH:
    rem.u32 y, %thread, 3;
    setp.eq.u32 p, y, 0;
    @!p bra SUM;
    sub.u32 x, 100, %thread;
    bra END;
SUM:
    rem.u32 y, %thread, 5;
    mov.u32 x, 0;
    mov.u32 k, 0;
AGAIN:
    setp.ge.u32 p, k, y;
    @p bra END;
    mad.lo.u32 x, k, %thread, x;
    add.u32 k, k, 1;
    bra AGAIN;
END:
",
            nested,
        ),
        // Backwards and forwards over one another, without a structure.
        warp(
            "crossing branches",
            "    .reg .pred p; .reg .b32 n;
    mov.u32 x, 0;
    mov.u32 n, %thread;
    bra MIDDLE;
FIRST:
    add.u32 x, x, 100;
    setp.gt.u32 p, n, 40;
    @p bra LAST;
MIDDLE:
    add.u32 n, n, 7;
    add.u32 x, x, 1;
    setp.lt.u32 p, n, 20;
    @p bra MIDDLE;
    setp.lt.u32 p, n, 50;
    @p bra FIRST;
LAST:
    mad.lo.u32 x, n, 1000, x;
",
            |i| {
                let (mut n, mut x) = (i, 0);
                loop {
                    n += 7;
                    x += 1;
                    if n < 20 {
                        continue;
                    }
                    if n >= 50 {
                        return n * 1000 + x;
                    }
                    x += 100;
                    if n > 40 {
                        return n * 1000 + x;
                    }
                }
            },
        ),
        warp(
            "brx.idx",
            "    .reg .b32 which;
    rem.u32 which, %thread, 4;
TABLE: .branchtargets A, B, C, B;
    brx.idx which, TABLE;
A:
    mov.u32 x, 10;
    bra END;
B:
    add.u32 x, %thread, 20;
    bra END;
C:
    mov.u32 x, 30;
END:
",
            |i| [10, 20 + i, 30, 20 + i][i as usize % 4],
        ),
        // Lanes that went different ways work together again.
        warp(
            "meeting again",
            "    .reg .b32 y; .reg .pred p;
    mov.u32 x, %thread;
    setp.lt.u32 p, %thread, 11;
    @p bra LOW;
    mul.lo.u32 x, x, 3;
    bra MEET;
LOW:
    mul.lo.u32 x, x, 5;
MEET:
    bar.warp.sync 0xFFFFFFFF;
    shfl.sync.idx.b32 y, x, 2, 31, 0xFFFFFFFF;
    add.u32 x, x, y;
    redux.sync.max.u32 y, x, 0xFFFFFFFF;
    add.u32 x, x, y;
",
            |i| {
                let own = |i: u32| if i < 11 { 5 * i } else { 3 * i };
                own(i) + own(2) + own(31) + own(2)
            },
        ),
    ]
}

/// Some lanes end early: they store before, the others after.
fn exits() -> Vec<Case> {
    let early = |name: &str, end: &str| {
        warp(
            name,
            &format!(
                "    .reg .pred p; .reg .b32 n;
    mad.wide.u32 out, %thread, 4, %output;
    st.global.u32 [out], %thread;
    mov.u32 n, 0;
NEXT:
    setp.eq.u32 p, n, %thread;
    @p {end};
    add.u32 n, n, 1;
    setp.lt.u32 p, n, 8;
    @p bra NEXT;
    activemask.b32 x;
"
            ),
            |i| if i < 8 { i } else { 0xFFFF_FF00 },
        )
    };
    vec![early("exit of some lanes", "exit"), early("ret of some lanes", "ret")]
}
