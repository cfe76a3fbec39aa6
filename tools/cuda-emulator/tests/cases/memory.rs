//! Loads, stores and addresses.

use super::build::{kernel, words};
use super::values::{mask, value};
use super::{Case, Expected};
use crate::random::Random;

const GROUP: &str = "memory";

/// Name, bits and sign of what is loaded and stored.
const TYPES: [(&str, u32, bool); 14] = [
    ("b8", 8, false),
    ("u8", 8, false),
    ("s8", 8, true),
    ("b16", 16, false),
    ("u16", 16, false),
    ("s16", 16, true),
    ("b32", 32, false),
    ("u32", 32, false),
    ("s32", 32, true),
    ("f32", 32, false),
    ("b64", 64, false),
    ("u64", 64, false),
    ("s64", 64, true),
    ("f64", 64, false),
];

pub fn cases() -> Vec<Case> {
    [loads(), stores(), hints(), windows(), variables(), parameters(), fences(), moves()]
        .into_iter()
        .flatten()
        .collect()
}

/// 16 random bytes for each of 32 threads.
fn random_bytes(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..32 * 16).map(|_| random.next() as u8).collect()
}

/// Names for `count` registers of a vector, or one.
fn registers(count: usize) -> (String, String) {
    let names: Vec<String> = (0..count).map(|i| format!("x{i}")).collect();
    let list = names.join(", ");
    (list.clone(), if count == 1 { list } else { format!("{{{list}}}") })
}

fn suffix(count: usize) -> &'static str {
    ["", "", ".v2", "", ".v4"][count]
}

/// Where a type of `width` bits is held: those narrower than 32 bits in registers of 32, extended by sign.
fn register_width(width: u32) -> u32 {
    width.max(32)
}

/// Every type and vector from every space; each thread has 16 bytes, which it copies there if the space is its
/// own. The registers are stored whole.
fn loads() -> Vec<Case> {
    let input = random_bytes(1);
    let mut cases = Vec::new();
    for space in ["global", "shared", "local", "const"] {
        for (r#type, width, is_signed) in TYPES {
            for count in [1, 2, 4] {
                let bytes = width as usize / 8 * count;
                // Of constants every type once is enough: their table is the same.
                if bytes > 16 || space == "const" && count > 1 && r#type != "b32" {
                    continue;
                }
                let held = register_width(width);
                let opcode = format!("ld.{space}{}.{type}", suffix(count));
                let (list, vector) = registers(count);
                let stores: String = (0..count)
                    .map(|i| {
                        format!("    st.global.b{held} [out+{}], x{i};\n", i as u32 * held / 8)
                    })
                    .collect();
                let body = format!(
                    "    .reg .b{held} {list};
{}    mad.wide.u32 out, %thread, {}, %output;
    {opcode} {vector}, [at];
{stores}",
                    place(space, &opcode),
                    held as usize / 8 * count
                );
                let expected = (0..32 * count).flat_map(|i| {
                    let at = i / count * 16 + i % count * width as usize / 8;
                    let bits = read(&input, at, width);
                    let bits = value(bits, width, is_signed) as u64 & mask(held);
                    bits.to_le_bytes()[..held as usize / 8].to_vec()
                });
                let expected = Expected::Bits(expected.collect());
                let declarations = declarations(space, &opcode, &input);
                let case = kernel(GROUP, opcode, &declarations, &body, input.clone(), expected);
                cases.push(case);
            }
        }
    }
    cases
}

fn read(bytes: &[u8], at: usize, width: u32) -> u64 {
    (0..width as usize / 8).fold(0, |value, i| value | u64::from(bytes[at + i]) << (8 * i))
}

/// A table for `ld.const`, of the same bytes as the input.
fn declarations(space: &str, opcode: &str, input: &[u8]) -> String {
    if space != "const" {
        return String::new();
    }
    let name = table(opcode);
    let bytes: Vec<String> = input.iter().map(u8::to_string).collect();
    format!(".const .align 16 .b8 {name}[512] = {{{}}};\n", bytes.join(", "))
}

fn table(opcode: &str) -> String {
    format!("table_{}", opcode.replace('.', "_"))
}

/// Sets `at` to this thread's 16 bytes of a space, which hold its bytes of the input.
fn place(space: &str, opcode: &str) -> String {
    let copy = |declare: &str, address: &str| {
        format!(
            "    .reg .b64 from, out; .reg .b32 y0, y1, y2, y3;
{declare}    mad.wide.u32 from, %thread, 16, %input;
    ld.global.v4.b32 {{y0, y1, y2, y3}}, [from];
{address}    st.{space}.v4.b32 [at], {{y0, y1, y2, y3}};
"
        )
    };
    match space {
        "global" => "    .reg .b64 at, out;\n    mad.wide.u32 at, %thread, 16, %input;\n".into(),
        "shared" => copy(
            "    .shared .align 16 .b8 tile[512];\n    .reg .b32 at;\n",
            "    mov.u32 at, tile;\n    mad.lo.u32 at, %thread, 16, at;\n",
        ),
        "local" => copy(
            "    .local .align 16 .b8 depot[16];\n    .reg .b64 at;\n",
            "    mov.u64 at, depot;\n",
        ),
        _ => format!(
            "    .reg .b64 at, out;\n    mov.u64 at, {};\n    mad.wide.u32 at, %thread, 16, at;\n",
            table(opcode)
        ),
    }
}

/// Every type and vector to every space: 16 bytes of 0xAA, over which the registers are stored.
fn stores() -> Vec<Case> {
    let mut random = Random::new(2);
    let input: Vec<u8> = (0..32 * 32).map(|_| random.next() as u8).collect();
    let mut cases = Vec::new();
    for space in ["global", "shared", "local"] {
        for (r#type, width, _) in TYPES {
            for count in [1, 2, 4] {
                let bytes = width as usize / 8 * count;
                if bytes > 16 {
                    continue;
                }
                let held = register_width(width) as usize / 8;
                let opcode = format!("st.{space}{}.{type}", suffix(count));
                let (list, vector) = registers(count);
                let loads: String = (0..count)
                    .map(|i| format!("    ld.global.b{} x{i}, [from+{}];\n", held * 8, i * held))
                    .collect();
                let (declare, address) = match space {
                    "global" => ("    .reg .b64 at;\n", "    mov.u64 at, out;\n"),
                    "shared" => (
                        "    .shared .align 16 .b8 tile[512];\n    .reg .b32 at;\n",
                        "    mov.u32 at, tile;\n    mad.lo.u32 at, %thread, 16, at;\n",
                    ),
                    _ => (
                        "    .local .align 16 .b8 depot[16];\n    .reg .b64 at;\n",
                        "    mov.u64 at, depot;\n",
                    ),
                };
                let body = format!(
                    "    .reg .b{} {list};
    .reg .b64 from, out;
    .reg .b32 fill, y0, y1, y2, y3;
{declare}    mad.wide.u32 from, %thread, 32, %input;
    mad.wide.u32 out, %thread, 16, %output;
{loads}{address}    mov.b32 fill, 0xAAAAAAAA;
    st.{space}.v4.b32 [at], {{fill, fill, fill, fill}};
    {opcode} [at], {vector};
    ld.{space}.v4.b32 {{y0, y1, y2, y3}}, [at];
    st.global.v4.b32 [out], {{y0, y1, y2, y3}};
",
                    held * 8
                );
                let mut expected = vec![0xAA; 32 * 16];
                for (i, bytes) in expected.chunks_exact_mut(width as usize / 8).enumerate() {
                    let (thread, element) = (i * width as usize / 128, i * width as usize / 8 % 16);
                    let element = element / (width as usize / 8);
                    if element < count {
                        let at = thread * 32 + element * held;
                        bytes.copy_from_slice(&input[at..at + bytes.len()]);
                    }
                }
                cases.push(kernel(
                    GROUP,
                    opcode,
                    "",
                    &body,
                    input.clone(),
                    Expected::Bits(expected),
                ));
            }
        }
    }
    cases
}

/// What tells caches and other threads about an access does not change it.
fn hints() -> Vec<Case> {
    let loads = [
        "ld.global.nc.u32",
        "ld.global.ca.u32",
        "ld.global.cg.u32",
        "ld.global.cs.u32",
        "ld.global.lu.u32",
        "ld.global.cv.u32",
        "ld.global.nc.L1::no_allocate.u32",
        "ld.global.L2::128B.u32",
        "ld.global.L1::evict_last.u32",
        "ld.volatile.global.u32",
        "ld.weak.global.u32",
        "ld.relaxed.gpu.global.u32",
        "ld.acquire.sys.global.u32",
    ];
    let stores = [
        "st.global.wb.u32",
        "st.global.cg.u32",
        "st.global.cs.u32",
        "st.global.wt.u32",
        "st.global.L1::no_allocate.u32",
        "st.volatile.global.u32",
        "st.weak.global.u32",
        "st.relaxed.cta.global.u32",
        "st.release.gpu.global.u32",
    ];
    let pairs = loads.iter().map(|load| (*load, "st.global.u32"));
    let pairs = pairs.chain(stores.iter().map(|store| ("ld.global.u32", *store)));
    let input = words((0..32).map(|i| i * 0x0101_0101 + 7));
    let case = |(load, store): (&str, &str)| {
        let body = format!(
            "    .reg .b64 at; .reg .b32 x;
    mad.wide.u32 at, %thread, 4, %input;
    {load} x, [at];
    mad.wide.u32 at, %thread, 4, %output;
    {store} [at], x;
"
        );
        let name = if store == "st.global.u32" { load } else { store };
        kernel(GROUP, name, "", &body, input.clone(), Expected::Bits(input.clone()))
    };
    pairs.map(case).collect()
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
    let bytes: Vec<u8> = (0..48u8).map(|i| i * 5 + 100).collect();
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

/// They change nothing that one thread can see.
fn fences() -> Vec<Case> {
    let texts = [
        "membar.cta;",
        "membar.gl;",
        "membar.sys;",
        "fence.acq_rel.cta;",
        "fence.acq_rel.gpu;",
        "fence.sc.sys;",
        "prefetch.global.L1 [at];",
        "prefetch.global.L2 [at];",
        "prefetchu.L1 [at];",
        "nanosleep.u32 20;",
    ];
    let input = words(0..32);
    let case = |text: &str| {
        let body = format!(
            "    .reg .b64 at, out; .reg .b32 x;
    mad.wide.u32 at, %thread, 4, %input;
    mad.wide.u32 out, %thread, 4, %output;
    ld.global.u32 x, [at];
    {text}
    st.global.u32 [out], x;
"
        );
        let name = text.trim_end_matches(';').trim_end_matches(" [at]");
        kernel(GROUP, name, "", &body, input.clone(), Expected::Bits(input.clone()))
    };
    texts.into_iter().map(case).collect()
}

/// Registers put together and taken apart.
fn moves() -> Vec<Case> {
    let mut random = Random::new(3);
    let input: Vec<u64> = (0..32).map(|_| random.next()).collect();
    let functions: [(&str, &str, fn(u64) -> u64); 7] = [
        ("mov.b64 {b32}", ".reg .b32 l, h; mov.b64 {l, h}, x; mov.b64 x, {h, l};", |x| {
            x.rotate_left(32)
        }),
        (
            "mov.b64 {b16}",
            ".reg .b16 a, b, c, d; mov.b64 {a, b, c, d}, x; mov.b64 x, {b, d, a, c};",
            |x| x >> 16 & 0xFFFF | (x >> 48) << 16 | (x & 0xFFFF) << 32 | (x >> 32 & 0xFFFF) << 48,
        ),
        (
            "mov.b32 {b16}",
            ".reg .b16 a, b; .reg .b32 y; cvt.u32.u64 y, x; mov.b32 {a, b}, y; mov.b32 y, {b, a}; cvt.u64.u32 x, y;",
            |x| u64::from((x as u32).rotate_left(16)),
        ),
        (
            "mov.b32 {b8}",
            ".reg .b8 a, b, c, d; .reg .b32 y; cvt.u32.u64 y, x; mov.b32 {a, b, c, d}, y; \
             mov.b32 y, {d, c, b, a}; cvt.u64.u32 x, y;",
            |x| u64::from((x as u32).swap_bytes()),
        ),
        ("mov.b64 {_, b32}", ".reg .b32 h; mov.b64 {_, h}, x; cvt.u64.u32 x, h;", |x| x >> 32),
        (
            "mov.b32 {0, b16}",
            ".reg .b16 a; .reg .b32 y; cvt.u16.u64 a, x; mov.b32 y, {0, a}; cvt.u64.u32 x, y;",
            |x| (x & 0xFFFF) << 16,
        ),
        (
            "mov.f32",
            ".reg .f32 f; .reg .b32 l, h; mov.b64 {l, h}, x; mov.b32 f, h; mov.f32 f, f; mov.b32 h, f; \
             mov.b64 x, {h, l};",
            |x| x.rotate_left(32),
        ),
    ];
    let case = |(name, text, f): (&str, &str, fn(u64) -> u64)| {
        let body = format!(
            "    .reg .b64 at, x;
    mad.wide.u32 at, %thread, 8, %input;
    ld.global.b64 x, [at];
    {{ {text} }}
    mad.wide.u32 at, %thread, 8, %output;
    st.global.b64 [at], x;
"
        );
        let bytes = |f: fn(u64) -> u64| input.iter().flat_map(|&x| f(x).to_le_bytes()).collect();
        kernel(GROUP, name, "", &body, bytes(|x| x), Expected::Bits(bytes(f)))
    };
    functions.into_iter().map(case).collect()
}
