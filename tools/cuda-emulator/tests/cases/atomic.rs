//! Atomic operations: what they return, what they leave, and that none is lost.

use super::build::{Lanes, kernel, lanes, words};
use super::float::{Modifiers, SUMS_AND_PRODUCTS, rounded};
use super::values::{Kind, mask, value};
use super::{Case, Expected, entry};
use crate::soft::{BF16, F16, F32, F64, Format, Mode};

const GROUP: &str = "atomic";

/// What memory holds after, given what it held before and the operands.
type Update = fn(u64, u64, u64) -> u64;

/// Operation, types, operands after the address, and what it does to numbers of so many bits.
const OPERATIONS: [(&str, &[&str], usize, Update); 8] = [
    ("add", &["u32", "s32", "u64"], 1, |old, b, _| old.wrapping_add(b)),
    ("inc", &["u32"], 1, |old, b, _| if old >= b { 0 } else { old + 1 }),
    ("dec", &["u32"], 1, |old, b, _| if old == 0 || old > b { b } else { old - 1 }),
    ("and", &["b32", "b64"], 1, |old, b, _| old & b),
    ("or", &["b32", "b64"], 1, |old, b, _| old | b),
    ("xor", &["b32", "b64"], 1, |old, b, _| old ^ b),
    ("exch", &["b32", "b64"], 1, |_, b, _| b),
    ("cas", &["b16", "b32", "b64"], 2, |old, b, c| if old == b { c } else { old }),
];

pub fn cases() -> Vec<Case> {
    [integers(), extremes(), floats(), scopes(), contended()].into_iter().flatten().collect()
}

/// Every thread has memory of its own: the result is what the instruction returned, or what it left.
fn each_thread(
    opcode: &str,
    space: &str,
    kind: Kind,
    operands: usize,
    seen: Seen,
    target: &'static str,
) -> Lanes {
    let width = kind.width();
    let bytes = width / 8;
    let place = if opcode.contains(space) { String::new() } else { format!(" in {space}") };
    let name = format!("{opcode}{place} {}", if seen == Seen::Old { "old" } else { "new" });
    let memory = format!("memory_{}", entry(&name));
    let list = ["", ", b", ", b, c"][operands];
    let is_red = opcode.starts_with("red");
    let result = if is_red { "" } else { "x, " };
    let keep = if seen == Seen::Old {
        "mov.b".to_owned() + &width.to_string() + " d, x;"
    } else {
        String::new()
    };
    let (declarations, address, space_name) = match space {
        "shared" => (
            format!(".shared .align 8 .b8 {memory}[{}];\n", 100 * bytes),
            "mov.u32 %count, %tid.x;",
            ".shared",
        ),
        _ => (
            format!(".global .align 8 .b8 {memory}[{}];\n", 1000 * bytes),
            "mov.u32 %count, %index;",
            ".global",
        ),
    };
    // Without a space in the opcode the address is a generic one.
    let convert = match opcode.contains(space_name) {
        true => String::new(),
        false => format!("cvta{space_name}.u64 at, at;"),
    };
    let text = format!(
        "{{ .reg .b64 at, own; .reg .b{width} x;
      {address}
      mov.u64 own, {memory};
      mad.wide.u32 own, %count, {bytes}, own;
      mov.u64 at, own;
      {convert}
      st{space_name}.b{width} [own], a;
      {opcode} {result}[at]{list};
      ld{space_name}.b{width} d, [own];
      {keep} }}"
    );
    let kinds = vec![kind; 1 + operands];
    lanes(GROUP, name, &kinds, width, text).declaring(declarations).on(target)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Old,
    New,
}

/// `atom` of a space, seen both ways, and `red`.
fn all_ways(
    operation: &str,
    kind: Kind,
    operands: usize,
    target: &'static str,
    make: impl Fn(Lanes, &str, Seen) -> Case,
) -> Vec<Case> {
    let mut cases = Vec::new();
    for space in ["global", "shared"] {
        let opcode = format!("atom.{space}.{operation}");
        for seen in [Seen::Old, Seen::New] {
            cases.push(make(
                each_thread(&opcode, space, kind, operands, seen, target),
                space,
                seen,
            ));
        }
        if operands == 1 && !operation.starts_with("exch") {
            let opcode = format!("red.{space}.{operation}");
            let lanes = each_thread(&opcode, space, kind, operands, Seen::New, target);
            cases.push(make(lanes, space, Seen::New));
        }
    }
    cases
}

/// Rows in which the first two operands are often equal, so that `cas` swaps.
fn often_equal(kind: Kind) -> Vec<Vec<u64>> {
    let mut rows = super::values::rows(&[kind; 3]);
    rows.iter_mut().step_by(2).for_each(|row| row[1] = row[0]);
    rows
}

fn integers() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, types, operands, update) in OPERATIONS {
        for r#type in types {
            let width: u32 = r#type[1..].parse().expect("a type ends in its bits");
            let kind = Kind::Integer(width);
            let operation = format!("{name}.{type}");
            cases.extend(all_ways(&operation, kind, operands, "sm_80", |lanes, _, seen| {
                let lanes = if operands == 2 { lanes.with_rows(often_equal(kind)) } else { lanes };
                lanes.bits(|row| {
                    let new = update(row[0], row[1], *row.get(2).unwrap_or(&0)) & mask(width);
                    Some(if seen == Seen::Old { row[0] } else { new })
                })
            }));
        }
    }
    cases
}

fn extremes() -> Vec<Case> {
    let mut cases = Vec::new();
    for (r#type, width, is_signed) in
        [("u32", 32, false), ("s32", 32, true), ("u64", 64, false), ("s64", 64, true)]
    {
        for (name, is_min) in [("min", true), ("max", false)] {
            let operation = format!("{name}.{type}");
            cases.extend(all_ways(
                &operation,
                Kind::Integer(width),
                1,
                "sm_80",
                |lanes, _, seen| {
                    lanes.bits(|row| {
                        let is_less =
                            value(row[0], width, is_signed) < value(row[1], width, is_signed);
                        let new = if is_less == is_min { row[0] } else { row[1] };
                        Some(if seen == Seen::Old { row[0] } else { new })
                    })
                },
            ));
        }
    }
    cases
}

/// Of f32 those on global memory flush subnormal numbers, those on shared memory do not.
fn floats() -> Vec<Case> {
    let kinds: [(&str, Format, bool, &str); 6] = [
        ("add.f32", F32, false, "sm_80"),
        ("add.f64", F64, false, "sm_80"),
        ("add.noftz.f16", F16, false, "sm_80"),
        ("add.noftz.f16x2", F16, true, "sm_80"),
        ("add.noftz.bf16", BF16, false, "sm_90"),
        ("add.noftz.bf16x2", BF16, true, "sm_90"),
    ];
    let (_, _, add) = SUMS_AND_PRODUCTS[0];
    let mut cases = Vec::new();
    for (operation, format, is_pair, target) in kinds {
        let kind = if is_pair { Kind::Pair(format) } else { Kind::Float(format) };
        cases.extend(all_ways(operation, kind, 1, target, |lanes, space, seen| {
            let ftz = format == F32 && space == "global";
            let modifiers = Modifiers { ftz, ..Modifiers::default() };
            let sum = |row: &[u64]| rounded(format, add, row, Mode::Nearest, modifiers);
            lanes.floats(format, |row| {
                if seen == Seen::Old {
                    return Some(row[0]);
                }
                if !is_pair {
                    return sum(row);
                }
                let half = |shift: u32| sum(&[row[0] >> shift & 0xFFFF, row[1] >> shift & 0xFFFF]);
                Some(half(16)? << 16 | half(0)?)
            })
        }));
    }
    cases
}

/// Orders and scopes, and generic addresses.
fn scopes() -> Vec<Case> {
    let opcodes = [
        ("atom.add.u32", "global"),
        ("atom.add.u32", "shared"),
        ("atom.relaxed.gpu.global.add.u32", "global"),
        ("atom.acquire.cta.shared.add.u32", "shared"),
        ("atom.acq_rel.sys.global.add.u32", "global"),
        ("atom.release.gpu.add.u32", "global"),
        ("red.add.u32", "shared"),
        ("red.relaxed.gpu.global.add.u32", "global"),
        ("red.release.cta.shared.add.u32", "shared"),
    ];
    let case = |(opcode, space): (&str, &str)| {
        let lanes = each_thread(opcode, space, Kind::Integer(32), 1, Seen::New, "sm_80");
        lanes.bits(|row| Some(row[0].wrapping_add(row[1]) & mask(32)))
    };
    opcodes.into_iter().map(case).collect()
}

/// All threads of two blocks at one place. Sums of whole numbers do not depend on the order.
fn contended() -> Vec<Case> {
    let updates: [(&str, &str, u32, u32); 6] = [
        ("add.u32", "x", 0, 5 + (0..64).sum::<u32>() * 2),
        ("max.u32", "x", 0, 63),
        ("or.b32", "x", 0, 63),
        ("inc.u32", "1000", 0, 5 + 128),
        ("xor.b32", "1", 0, 5),
        ("add.f32", "f", 5f32.to_bits(), (5.0 + (0..64).sum::<u32>() as f32 * 2.0).to_bits()),
    ];
    let mut cases = Vec::new();
    for instruction in ["atom", "red"] {
        for (operation, operand, start, end) in updates {
            let name = format!("{instruction}.global.{operation} contended");
            let memory = format!("memory_{}", entry(&name));
            let ticket = format!("ticket_{}", entry(&name));
            let start = if start == 0 { 5 } else { start };
            let declarations = format!(
                ".global .align 4 .u32 {memory} = {start};\n.global .align 4 .u32 {ticket};\n"
            );
            let result = if instruction == "atom" { "y, " } else { "" };
            // The thread that takes the last ticket sees all updates.
            let body = format!(
                "    .reg .b32 x, y; .reg .f32 f; .reg .pred p;
    mov.u32 x, %thread;
    cvt.rn.f32.u32 f, x;
    {instruction}.global.{operation} {result}[{memory}], {operand};
    membar.gl;
    atom.global.add.u32 y, [{ticket}], 1;
    setp.ne.u32 p, y, 127;
    @p exit;
    membar.gl;
    ld.volatile.global.u32 x, [{memory}];
    st.global.u32 [%output], x;
"
            );
            let case =
                kernel(GROUP, name, &declarations, &body, vec![0; 4], Expected::Bits(words([end])));
            cases.push(Case { grid: [2, 1, 1], block: [64, 1, 1], ..case });
        }
    }
    cases
}
