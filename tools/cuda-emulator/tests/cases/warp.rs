//! What the lanes of a warp do together.

use super::build::{kernel, lanes, words};
use super::values::{Kind, mask, value};
use super::{Case, Expected};
use crate::random::Random;

const GROUP: &str = "warp";
const WORD: Kind = Kind::Integer(32);

pub fn cases() -> Vec<Case> {
    [shuffles(), votes(), reductions(), matches(), masks(), elections()]
        .into_iter()
        .flatten()
        .collect()
}

/// Rows for so many warps: those of every operand from a function of warp and lane.
fn rows(warps: u64, operands: &[&dyn Fn(u64, u64) -> u64]) -> Vec<Vec<u64>> {
    let row = |i: u64| operands.iter().map(|operand| operand(i / 32, i % 32)).collect();
    (0..32 * warps).map(row).collect()
}

/// The lane that `lane` reads from and whether that is in range; c holds the clamp and the segment mask.
fn source(mode: &str, lane: u64, b: u64, c: u64) -> (u64, bool) {
    let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let first = lane & segment;
    let last = first | clamp & !segment;
    let (from, is_in_range) = match mode {
        "up" => (lane.wrapping_sub(b), lane as i64 - b as i64 >= last as i64),
        "down" => (lane + b, lane + b <= last),
        "bfly" => (lane ^ b, lane ^ b <= last),
        _ => (first | b & !segment, first | b & !segment <= last),
    };
    if is_in_range { (from, true) } else { (lane, false) }
}

fn shuffles() -> Vec<Case> {
    let mut random = Random::new(1);
    let values: Vec<u64> = (0..32 * 64).map(|_| random.next() & mask(32)).collect();
    let amounts: Vec<u64> = (0..32 * 64).map(|_| random.next() % 40).collect();
    let mut cases = Vec::new();
    for mode in ["up", "down", "bfly", "idx"] {
        let clamps: [u64; 4] = if mode == "up" { [0, 0, 3, 0] } else { [31, 31, 27, 5] };
        // Warps with one amount for all lanes and with an amount of each lane's own; whole warps and segments of
        // 16, 8, 4 and 2 lanes.
        let amount = |warp: u64, lane: u64| match warp % 2 {
            0 => [1, 2, 16, 31, 3, 8, 0, 33][(warp / 2 % 8) as usize],
            _ => amounts[(warp * 32 + lane) as usize],
        };
        let control = |warp: u64, _| {
            let segment = [0, 16, 24, 28, 30][(warp / 2 % 5) as usize];
            segment << 8 | clamps[(warp / 10 % 4) as usize]
        };
        let own = |warp: u64, lane: u64| values[(warp * 32 + lane) as usize];
        let rows = rows(64, &[&own, &amount, &control]);
        let opcode = format!("shfl.sync.{mode}.b32");
        let text = format!("{opcode} d, a, b, c, 0xFFFFFFFF;");
        cases.push(
            lanes(GROUP, opcode.clone(), &[WORD; 3], 32, text).with_rows(rows.clone()).of_warps(
                |rows, lane| {
                    let (from, _) = source(mode, lane as u64, rows[lane][1], rows[lane][2]);
                    rows[from as usize][0]
                },
            ),
        );
        let text = format!("{{ .reg .pred p; {opcode} d|p, a, b, c, -1; selp.b32 d, 1, 0, p; }}");
        cases.push(
            lanes(GROUP, format!("{opcode} p"), &[WORD; 3], 32, text).with_rows(rows).of_warps(
                |rows, lane| source(mode, lane as u64, rows[lane][1], rows[lane][2]).1.into(),
            ),
        );
    }
    // Half a warp exchanges while the other half does something else.
    let body = "    .reg .b32 x, y; .reg .b64 out; .reg .pred p;
    mad.lo.u32 x, %thread, 3, 100;
    setp.lt.u32 p, %thread, 16;
    @p bra LOW;
    shfl.sync.bfly.b32 y, x, 1, 31, 0xFFFF0000;
    bra DONE;
LOW:
    shfl.sync.down.b32 y, x, 4, 0x100F, 0x0000FFFF;
DONE:
    mad.wide.u32 out, %thread, 4, %output;
    st.global.u32 [out], y;
";
    let expected = (0..32u32).map(|lane| {
        let from = if lane >= 16 {
            lane ^ 1
        } else if lane + 4 < 16 {
            lane + 4
        } else {
            lane
        };
        100 + 3 * from
    });
    let expected = Expected::Bits(words(expected));
    cases.push(kernel(GROUP, "shfl of halves", "", body, vec![0; 4], expected));
    cases
}

/// Predicates of the lanes of 16 warps: none, all, one, and random ones.
fn predicate_rows() -> Vec<Vec<u64>> {
    let mut random = Random::new(2);
    let words: Vec<u64> = (0..16).map(|_| random.next()).collect();
    rows(
        16,
        &[&|warp, lane| match warp {
            0 => 0,
            1 => 1,
            2 => u64::from(lane == 17),
            3 => u64::from(lane != 4),
            _ => words[warp as usize] >> lane & 1,
        }],
    )
}

fn votes() -> Vec<Case> {
    let count = |rows: &[Vec<u64>]| rows.iter().filter(|row| row[0] != 0).count();
    let ballot =
        |rows: &[Vec<u64>]| (0..32).filter(|&i| rows[i][0] != 0).fold(0, |mask, i| mask | 1 << i);
    let vote = |name: &str, text: &str| {
        let text = format!("{{ .reg .pred p, q; setp.ne.b32 p, a, 0; {text} }}");
        lanes(GROUP, name, &[Kind::Bool], 32, text).with_rows(predicate_rows())
    };
    let select = "selp.b32 d, 1, 0, q;";
    vec![
        vote("vote.sync.all.pred", &format!("vote.sync.all.pred q, p, -1; {select}"))
            .of_warps(|rows, _| (count(rows) == 32).into()),
        vote("vote.sync.any.pred", &format!("vote.sync.any.pred q, p, -1; {select}"))
            .of_warps(|rows, _| (count(rows) > 0).into()),
        vote("vote.sync.uni.pred", &format!("vote.sync.uni.pred q, p, -1; {select}"))
            .of_warps(|rows, _| [0, 32].contains(&count(rows)).into()),
        vote("vote.sync.ballot.b32", "vote.sync.ballot.b32 d, p, -1;")
            .of_warps(|rows, _| ballot(rows)),
        vote("vote.sync.ballot.b32 negated", "vote.sync.ballot.b32 d, !p, -1;")
            .of_warps(|rows, _| !ballot(rows) & mask(32)),
        // Of the lanes in the mask only.
        vote(
            "vote.sync of odd lanes",
            "{ .reg .b32 odd; and.b32 odd, %thread, 1; setp.ne.u32 q, odd, 0; mov.b32 d, 7;
      @q vote.sync.ballot.b32 d, p, 0xAAAAAAAA; }",
        )
        .of_warps(|rows, lane| if lane % 2 == 1 { ballot(rows) & 0xAAAA_AAAA } else { 7 }),
    ]
}

fn reductions() -> Vec<Case> {
    let mut random = Random::new(3);
    let values: Vec<u64> = (0..32 * 16)
        .map(|i| if i / 32 < 2 { i * 7 + 1 } else { random.next() & mask(32) })
        .collect();
    let rows = rows(16, &[&|warp, lane| values[(warp * 32 + lane) as usize]]);
    let signed = |rows: &[Vec<u64>]| -> Vec<i128> {
        rows.iter().map(|row| value(row[0], 32, true)).collect()
    };
    let unsigned = |rows: &[Vec<u64>]| -> Vec<u64> { rows.iter().map(|row| row[0]).collect() };
    let reduce = |opcode: &str| {
        lanes(GROUP, opcode, &[WORD], 32, format!("{opcode} d, a, 0xFFFFFFFF;"))
            .with_rows(rows.clone())
    };
    let extreme = |number: Option<&i128>| *number.expect("32 lanes") as u64 & mask(32);
    let mut cases = vec![
        reduce("redux.sync.add.u32")
            .of_warps(|rows, _| unsigned(rows).iter().sum::<u64>() & mask(32)),
        reduce("redux.sync.add.s32")
            .of_warps(|rows, _| signed(rows).iter().sum::<i128>() as u64 & mask(32)),
        reduce("redux.sync.min.u32")
            .of_warps(|rows, _| *unsigned(rows).iter().min().expect("lanes")),
        reduce("redux.sync.max.u32")
            .of_warps(|rows, _| *unsigned(rows).iter().max().expect("lanes")),
        reduce("redux.sync.min.s32").of_warps(|rows, _| extreme(signed(rows).iter().min())),
        reduce("redux.sync.max.s32").of_warps(|rows, _| extreme(signed(rows).iter().max())),
        reduce("redux.sync.and.b32")
            .of_warps(|rows, _| unsigned(rows).iter().fold(mask(32), |x, y| x & y)),
        reduce("redux.sync.or.b32").of_warps(|rows, _| unsigned(rows).iter().fold(0, |x, y| x | y)),
        reduce("redux.sync.xor.b32")
            .of_warps(|rows, _| unsigned(rows).iter().fold(0, |x, y| x ^ y)),
    ];
    // Two groups of lanes, each with its mask.
    let text =
        "{ .reg .pred p; setp.lt.u32 p, a, 0x80000000; .reg .b32 m; vote.sync.ballot.b32 m, p, -1;
      @p bra LESS; not.b32 m, m; redux.sync.add.u32 d, a, m; bra DONE;
LESS: redux.sync.add.u32 d, a, m;
DONE: bar.warp.sync 0xFFFFFFFF; }";
    cases.push(lanes(GROUP, "redux.sync of groups", &[WORD], 32, text).with_rows(rows).of_warps(
        |rows, lane| {
            let is_low = |bits: u64| bits < 1 << 31;
            let own = is_low(rows[lane][0]);
            rows.iter().filter(|row| is_low(row[0]) == own).map(|row| row[0]).sum::<u64>()
                & mask(32)
        },
    ));
    cases
}

fn matches() -> Vec<Case> {
    let mut random = Random::new(4);
    let words: Vec<u64> = (0..32 * 16).map(|_| random.next()).collect();
    // Few different values in a warp; in some warps one.
    let own = move |warp: u64, lane: u64| match warp % 4 {
        0 => warp + 5,
        n => (words[(warp * 32 + lane) as usize] % (n * 3)) << 40 | 9,
    };
    let rows = rows(16, &[&own]);
    let mut cases = Vec::new();
    for width in [32u32, 64] {
        let rows: Vec<Vec<u64>> = rows
            .iter()
            .map(|row| {
                vec![(if width == 32 { row[0] >> 40 | row[0] } else { row[0] }) & mask(width)]
            })
            .collect();
        let equal = |rows: &[Vec<u64>], lane: usize| {
            (0..32).filter(|&i| rows[i] == rows[lane]).fold(0, |mask, i| mask | 1 << i)
        };
        let kind = Kind::Integer(width);
        let opcode = format!("match.any.sync.b{width}");
        let text = format!("{opcode} d, a, 0xFFFFFFFF;");
        cases.push(
            lanes(GROUP, opcode, &[kind], 32, text)
                .with_rows(rows.clone())
                .of_warps(|rows, lane| equal(rows, lane)),
        );
        let opcode = format!("match.all.sync.b{width}");
        let all = |rows: &[Vec<u64>]| rows.iter().all(|row| *row == rows[0]);
        let text = format!("{opcode} d, a, 0xFFFFFFFF;");
        cases.push(
            lanes(GROUP, opcode.clone(), &[kind], 32, text)
                .with_rows(rows.clone())
                .of_warps(|rows, _| if all(rows) { mask(32) } else { 0 }),
        );
        let text = format!("{{ .reg .pred p; {opcode} d|p, a, 0xFFFFFFFF; selp.b32 d, 1, 0, p; }}");
        cases.push(
            lanes(GROUP, format!("{opcode} p"), &[kind], 32, text)
                .with_rows(rows)
                .of_warps(|rows, _| all(rows).into()),
        );
    }
    cases
}

fn masks() -> Vec<Case> {
    // Under a guard and in a branch that other lanes do not take.
    let body = "    .reg .b32 x, y, z; .reg .b64 out; .reg .pred p, q;
    mad.wide.u32 out, %thread, 12, %output;
    activemask.b32 x;
    setp.gt.u32 p, %thread, 20;
    mov.b32 y, 1;
    mov.b32 z, 2;
    setp.ge.u32 q, %thread, 8;
    @q bra HIGH;
    bar.warp.sync 0x000000FF;
    activemask.b32 z;
HIGH:
    bar.warp.sync 0xFFFFFFFF;
    @p activemask.b32 y;
    st.global.u32 [out], x;
    st.global.u32 [out+4], y;
    st.global.u32 [out+8], z;
";
    let expected = (0..32).flat_map(|lane| {
        [mask(32) as u32, if lane > 20 { 0xFFE0_0000 } else { 1 }, if lane < 8 { 255 } else { 2 }]
    });
    let expected = Expected::Bits(words(expected));
    vec![kernel(GROUP, "activemask.b32", "", body, vec![0; 4], expected)]
}

/// One leader, the same for all; which, the manual leaves open.
fn elections() -> Vec<Case> {
    let body = "    .reg .b32 leader, first, same, own; .reg .b64 out; .reg .pred p, q;
    elect.sync leader|p, 0xFFFFFFFF;
    shfl.sync.idx.b32 first, leader, 0, 31, 0xFFFFFFFF;
    setp.eq.u32 q, first, leader;
    selp.b32 same, 1, 0, q;
    mov.u32 own, %laneid;
    setp.eq.u32 q, own, leader;
    xor.pred q, q, p;
    @q mov.b32 same, 2;
    mad.wide.u32 out, %thread, 4, %output;
    st.global.u32 [out], same;
";
    let case = kernel(GROUP, "elect.sync", "", body, vec![0; 4], Expected::Bits(words([1; 32])));
    vec![Case { target: "sm_90", ..case }]
}
