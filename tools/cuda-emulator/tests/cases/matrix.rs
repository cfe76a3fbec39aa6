//! Matrix fragments, and copies that run beside the program.

use super::build::{kernel, words};
use super::{Case, Expected};
use crate::random::Random;
use crate::soft::{BF16, F16, F32, F64, Format, Mode};

const GROUP: &str = "matrix";

pub fn cases() -> Vec<Case> {
    [products(), loads(), transposition(), copies()].into_iter().flatten().collect()
}

/// Shape and types of an `mma`: 16 x k by k x 8.
struct Shape {
    k: usize,
    /// Of A and B; tf32 is f32 of which 10 bits of the fraction count.
    input: Format,
    result: Format,
    opcode: &'static str,
}

const SHAPES: [Shape; 8] = [
    Shape { k: 16, input: BF16, result: F32, opcode: "m16n8k16.row.col.f32.bf16.bf16.f32" },
    Shape { k: 16, input: F16, result: F32, opcode: "m16n8k16.row.col.f32.f16.f16.f32" },
    Shape { k: 16, input: F16, result: F16, opcode: "m16n8k16.row.col.f16.f16.f16.f16" },
    Shape { k: 8, input: BF16, result: F32, opcode: "m16n8k8.row.col.f32.bf16.bf16.f32" },
    Shape { k: 8, input: F16, result: F32, opcode: "m16n8k8.row.col.f32.f16.f16.f32" },
    Shape { k: 8, input: F16, result: F16, opcode: "m16n8k8.row.col.f16.f16.f16.f16" },
    Shape { k: 8, input: F32, result: F32, opcode: "m16n8k8.row.col.f32.tf32.tf32.f32" },
    Shape { k: 4, input: F32, result: F32, opcode: "m16n8k4.row.col.f32.tf32.tf32.f32" },
];

impl Shape {
    /// Elements of a register.
    fn packed(&self) -> usize {
        32 / self.input.bits as usize
    }

    /// Row and column of the elements of A that a lane holds, in their order.
    fn a_at(&self, lane: usize) -> Vec<(usize, usize)> {
        let (group, member) = (lane / 4, lane % 4);
        let packed = self.packed();
        (0..16 * self.k / 32)
            .map(|i| {
                let (register, part) = (i / packed, i % packed);
                let row = group + 8 * (register % 2);
                (row, member * packed + part + register / 2 * 4 * packed)
            })
            .collect()
    }

    fn b_at(&self, lane: usize) -> Vec<(usize, usize)> {
        let (group, member) = (lane / 4, lane % 4);
        let packed = self.packed();
        (0..8 * self.k / 32)
            .map(|i| (member * packed + i % packed + i / packed * 4 * packed, group))
            .collect()
    }

    /// Of C and D.
    fn c_at(&self, lane: usize) -> [(usize, usize); 4] {
        let (group, member) = (lane / 4, lane % 4);
        [0, 1, 2, 3].map(|i| (group + 8 * (i / 2), 2 * member + i % 2))
    }
}

/// Elements in their order, as many to a word as fit.
fn pack(format: Format, values: &[f64]) -> Vec<u32> {
    let per_word = 32 / format.bits as usize;
    let encode = |x: f64| format.encode(&F64.decode(x.to_bits()), Mode::Nearest) as u32;
    values
        .chunks(per_word)
        .map(|values| {
            values
                .iter()
                .rev()
                .fold(0, |word, &x| if per_word == 1 { encode(x) } else { word << 16 | encode(x) })
        })
        .collect()
}

/// On whole numbers, whose sums are exact in any order, and on others.
fn products() -> Vec<Case> {
    SHAPES.iter().flat_map(|shape| [product(shape, true), product(shape, false)]).collect()
}

const WARPS: usize = 4;

fn product(shape: &Shape, is_exact: bool) -> Case {
    let mut random = Random::new(shape.k as u64 + u64::from(is_exact));
    let k = shape.k;
    let mut number = |format: Format| {
        let x = random.next();
        if is_exact {
            return (x % 17) as f64 - 8.0;
        }
        // Of tf32 the last 13 bits of the fraction are zero.
        let kept = if format == F32 { 10 } else { format.fraction };
        let fraction = (x >> 32) as f64 / 2f64.powi(32);
        let x = (1.0 + (fraction * 2f64.powi(kept as i32)).floor() / 2f64.powi(kept as i32))
            * 2f64.powi((x % 7) as i32 - 3);
        if random.below(2) == 0 { x } else { -x }
    };
    let (mut input, mut values) = (Vec::new(), Vec::new());
    let registers = [
        16 * k / 32 / shape.packed(),
        8 * k / 32 / shape.packed(),
        4 * shape.result.bits as usize / 32,
    ];
    for _ in 0..WARPS {
        let a: Vec<f64> = (0..16 * k).map(|_| number(shape.input)).collect();
        let b: Vec<f64> = (0..k * 8).map(|_| number(shape.input)).collect();
        let c: Vec<f64> = (0..16 * 8).map(|_| number(shape.result)).collect();
        for lane in 0..32 {
            let own_a: Vec<f64> = shape.a_at(lane).iter().map(|&(row, i)| a[row * k + i]).collect();
            let own_b: Vec<f64> =
                shape.b_at(lane).iter().map(|&(i, column)| b[i * 8 + column]).collect();
            let own_c = shape.c_at(lane).map(|(row, column)| c[row * 8 + column]);
            input.extend(pack(shape.input, &own_a));
            input.extend(pack(shape.input, &own_b));
            input.extend(pack(shape.result, &own_c));
            for (row, column) in shape.c_at(lane) {
                let terms: Vec<f64> = (0..k).map(|i| a[row * k + i] * b[i * 8 + column]).collect();
                let sum = c[row * 8 + column] + terms.iter().sum::<f64>();
                let size = c[row * 8 + column].abs() + terms.iter().map(|x| x.abs()).sum::<f64>();
                // The order and the width of the sums are the hardware's; f16 rounds once more.
                let bound = (k + 2) as f64 * 2f64.powi(-23) * size
                    + if shape.result == F16 { 2f64.powi(-11) * size } else { 0.0 };
                values.push((sum, if is_exact { 0.0 } else { bound }));
            }
        }
    }
    let [a, b, c] = registers;
    let names = |letter: &str, count: usize| -> Vec<String> {
        (0..count).map(|i| format!("{letter}{i}")).collect()
    };
    let (a_list, b_list, c_list, d_list) =
        (names("a", a), names("b", b), names("c", c), names("d", c));
    let all = [a_list.clone(), b_list.clone(), c_list.clone()].concat();
    let loads: String = all
        .iter()
        .enumerate()
        .map(|(i, name)| format!("    ld.global.b32 {name}, [at+{}];\n", 4 * i))
        .collect();
    let stores: String = d_list
        .iter()
        .enumerate()
        .map(|(i, name)| format!("    st.global.b32 [out+{}], {name};\n", 4 * i))
        .collect();
    let opcode = format!("mma.sync.aligned.{}", shape.opcode);
    let body = format!(
        "    .reg .b32 {}, {};
    .reg .b64 at, out;
    mad.wide.u32 at, %thread, {}, %input;
    mad.wide.u32 out, %thread, {}, %output;
{loads}    {opcode} {{{}}}, {{{}}}, {{{}}}, {{{}}};
{stores}",
        all.join(", "),
        d_list.join(", "),
        4 * all.len(),
        4 * c,
        d_list.join(", "),
        a_list.join(", "),
        b_list.join(", "),
        c_list.join(", ")
    );
    let name = format!("{opcode} {}", if is_exact { "exact" } else { "rounded" });
    let case = kernel(GROUP, name, "", &body, words(input), Expected::Near(shape.result, values));
    Case { block: [32 * WARPS as u32, 1, 1], ..case }
}

/// Bytes between the rows of matrices in shared memory.
const PITCH: usize = 48;

/// Where the row that a lane gives starts, in rows: any order will do.
fn row_of(lane: usize) -> usize {
    lane * 5 % 32
}

fn loads() -> Vec<Case> {
    let mut cases = Vec::new();
    for count in [1, 2, 4] {
        for is_transposed in [false, true] {
            // Element i of the rows holds i.
            let element = |matrix: usize, row: usize, column: usize| {
                (row_of(8 * matrix + row) * PITCH / 2 + column) as u32
            };
            let mut expected = Vec::new();
            for lane in 0..32 {
                for matrix in 0..count {
                    let [low, high] = [0, 1].map(|i| match is_transposed {
                        false => element(matrix, lane / 4, 2 * (lane % 4) + i),
                        true => element(matrix, 2 * (lane % 4) + i, lane / 4),
                    });
                    expected.push(high << 16 | low);
                }
            }
            let names: Vec<String> = (0..count).map(|i| format!("d{i}")).collect();
            let trans = if is_transposed { ".trans" } else { "" };
            let opcode = format!("ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16");
            let stores: String =
                (0..count).map(|i| format!("    st.global.b32 [out+{}], d{i};\n", 4 * i)).collect();
            let body = format!(
                "    .shared .align 16 .b8 tile[{bytes}];
    .reg .b32 {list}, start, at, end, value, row;
    .reg .b64 out;
    .reg .pred p;
    mov.u32 start, tile;
    mad.lo.u32 at, %thread, 4, start;
    add.u32 end, start, {bytes};
    mul.lo.u32 value, %thread, 2;
FILL:
    mad.lo.u32 row, value, 0x10001, 0x10000;
    st.shared.b32 [at], row;
    add.u32 value, value, 64;
    add.u32 at, at, 128;
    setp.lt.u32 p, at, end;
    @p bra FILL;
    bar.sync 0;
    mul.lo.u32 row, %thread, 5;
    rem.u32 row, row, 32;
    mad.lo.u32 at, row, {PITCH}, start;
    {opcode} {{{list}}}, [at];
    mad.wide.u32 out, %thread, {out}, %output;
{stores}",
                bytes = 32 * PITCH,
                list = names.join(", "),
                out = 4 * count
            );
            let expected = Expected::Bits(words(expected));
            cases.push(kernel(GROUP, opcode, "", &body, vec![0; 4], expected));
        }
    }
    cases
}

fn transposition() -> Vec<Case> {
    // Element (row, column) is 100 · row + column.
    let pair = |element: &dyn Fn(usize, usize) -> usize| {
        words((0..32).map(|lane| {
            let (row, column) = (lane / 4, 2 * (lane % 4));
            (element(row, column + 1) << 16 | element(row, column)) as u32
        }))
    };
    let body = "    .reg .b32 x; .reg .b64 at;
    mad.wide.u32 at, %thread, 4, %input;
    ld.global.b32 x, [at];
    movmatrix.sync.aligned.m8n8.trans.b16 x, x;
    mad.wide.u32 at, %thread, 4, %output;
    st.global.b32 [at], x;
";
    let input = pair(&|row, column| 100 * row + column);
    let expected = Expected::Bits(pair(&|row, column| 100 * column + row));
    vec![kernel(GROUP, "movmatrix.sync.aligned.m8n8.trans.b16", "", body, input, expected)]
}

/// Into shared memory, whole or filled up with zeros.
fn copies() -> Vec<Case> {
    let mut random = Random::new(5);
    let input: Vec<u8> = (0..32 * 16).map(|_| random.next() as u8).collect();
    let mut cases = Vec::new();
    for (cache, bytes) in [("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16)] {
        for is_filled in [false, true] {
            let opcode = format!("cp.async.{cache}.shared.global");
            // Thread t copies t mod (bytes + 1) bytes.
            let size = if is_filled { ", size" } else { "" };
            let body = format!(
                "    .shared .align 16 .b8 tile[512];
    .reg .b32 at, size, x, i; .reg .b64 from, out; .reg .pred p;
    mov.u32 at, tile;
    mad.lo.u32 at, %thread, {bytes}, at;
    mad.wide.u32 from, %thread, 16, %input;
    mad.wide.u32 out, %thread, {bytes}, %output;
    rem.u32 size, %thread, {};
    {opcode} [at], [from], {bytes}{size};
    cp.async.commit_group;
    cp.async.wait_group 0;
    bar.sync 0;
    mov.u32 i, 0;
NEXT:
    ld.shared.b32 x, [at];
    st.global.b32 [out], x;
    add.u32 at, at, 4;
    add.u64 out, out, 4;
    add.u32 i, i, 4;
    setp.lt.u32 p, i, {bytes};
    @p bra NEXT;
",
                bytes + 1
            );
            let expected = (0..32).flat_map(|thread| {
                let size = if is_filled { thread % (bytes + 1) } else { bytes };
                let row = &input[thread * 16..];
                (0..bytes).map(move |i| if i < size { row[i] } else { 0 })
            });
            let expected = Expected::Bits(expected.collect());
            let name = format!("{opcode} {bytes}{}", if is_filled { " filled" } else { "" });
            cases.push(kernel(GROUP, name, "", &body, input.clone(), expected));
        }
    }
    // Three groups under way: the first two are read while the last is not.
    let body = "    .shared .align 16 .b8 tile[1536];
    .reg .b32 at, x, y, z; .reg .b64 from, out;
    mov.u32 at, tile;
    mad.lo.u32 at, %thread, 16, at;
    mad.wide.u32 from, %thread, 16, %input;
    mad.wide.u32 out, %thread, 12, %output;
    cp.async.cg.shared.global [at], [from], 16;
    cp.async.commit_group;
    cp.async.ca.shared.global [at+512], [from+4], 4;
    cp.async.ca.shared.global [at+516], [from+8], 4;
    cp.async.commit_group;
    cp.async.ca.shared.global [at+1024], [from], 8;
    cp.async.commit_group;
    cp.async.wait_group 2;
    ld.shared.b32 x, [at+12];
    cp.async.wait_group 1;
    ld.shared.b32 y, [at+516];
    cp.async.ca.shared.global [at+512], [from], 4;
    cp.async.wait_all;
    ld.shared.b32 z, [at+1028];
    st.global.b32 [out], x;
    st.global.b32 [out+4], y;
    ld.shared.b32 x, [at+512];
    add.u32 z, z, x;
    st.global.b32 [out+8], z;
";
    let word = |thread: usize, i: usize| {
        u32::from_le_bytes(std::array::from_fn(|byte| input[thread * 16 + 4 * i + byte]))
    };
    let expected = (0..32).flat_map(|thread| {
        [word(thread, 3), word(thread, 2), word(thread, 1).wrapping_add(word(thread, 0))]
    });
    let expected = Expected::Bits(words(expected));
    cases.push(kernel(GROUP, "cp.async.wait_group", "", body, input.clone(), expected));
    cases
}
