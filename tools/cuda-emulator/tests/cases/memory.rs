//! Loads and stores.

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
    [loads(), stores(), hints(), fences()].into_iter().flatten().collect()
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

/// A load or store of a type, alone or in a vector, and how wide its registers are.
struct Form {
    space: &'static str,
    r#type: &'static str,
    width: u32,
    is_signed: bool,
    count: usize,
    held: u32,
}

impl Form {
    /// As `ld.global.v2.u16`; of registers that are not of 32 bits or of the type's own, it says so.
    fn name(&self, instruction: &str) -> String {
        let usual = self.width.max(32);
        let note = if self.held == usual { String::new() } else { format!(" in b{}", self.held) };
        self.opcode(instruction) + &note
    }

    fn opcode(&self, instruction: &str) -> String {
        format!("{instruction}.{}{}.{}", self.space, suffix(self.count), self.r#type)
    }

    /// Bytes of its registers.
    fn held_bytes(&self) -> usize {
        self.held as usize / 8
    }
}

/// Every type and vector that fits 16 bytes; on global memory with every width of registers.
fn forms(spaces: &[&'static str]) -> Vec<Form> {
    let mut forms = Vec::new();
    for &space in spaces {
        for (r#type, width, is_signed) in TYPES {
            for count in [1, 2, 4] {
                for held in [16, 32, 64] {
                    let is_usual = held == width.max(32);
                    // The table of constants is the same for all, so that a few do.
                    let is_wanted = match space {
                        "global" => held >= width,
                        "const" => is_usual && (count == 1 || r#type == "b32"),
                        _ => is_usual,
                    };
                    if is_wanted && width * count as u32 <= 128 {
                        forms.push(Form { space, r#type, width, is_signed, count, held });
                    }
                }
            }
        }
    }
    forms
}

/// From every space; each thread has 16 bytes, which it copies there if the space is its own. The registers,
/// extended by the sign, are stored whole.
fn loads() -> Vec<Case> {
    let input = random_bytes(1);
    let case = |form: &Form| {
        let Form { space, width, is_signed, count, held, .. } = *form;
        let opcode = form.opcode("ld");
        let (list, vector) = registers(count);
        let stores: String = (0..count)
            .map(|i| format!("    st.global.b{held} [out+{}], x{i};\n", i * form.held_bytes()))
            .collect();
        let body = format!(
            "    .reg .b{held} {list};
{}    mad.wide.u32 out, %thread, {}, %output;
    {opcode} {vector}, [at];
{stores}",
            place(space, &opcode),
            count * form.held_bytes()
        );
        let expected = (0..32 * count).flat_map(|i| {
            let at = i / count * 16 + i % count * width as usize / 8;
            let bits = value(read(&input, at, width), width, is_signed) as u64 & mask(held);
            bits.to_le_bytes()[..form.held_bytes()].to_vec()
        });
        let expected = Expected::Bits(expected.collect());
        let declarations = declarations(space, &opcode, &input);
        kernel(GROUP, form.name("ld"), &declarations, &body, input.clone(), expected)
    };
    forms(&["global", "shared", "local", "const"]).iter().map(case).collect()
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

/// To every space: 16 bytes of 0xAA, over which the low bits of the registers are stored.
fn stores() -> Vec<Case> {
    let mut random = Random::new(2);
    let input: Vec<u8> = (0..32 * 32).map(|_| random.next() as u8).collect();
    let case = |form: &Form| {
        let Form { space, width, count, held, .. } = *form;
        let opcode = form.opcode("st");
        let (list, vector) = registers(count);
        let loads: String = (0..count)
            .map(|i| format!("    ld.global.b{held} x{i}, [from+{}];\n", i * form.held_bytes()))
            .collect();
        let address = match space {
            "global" => "    .reg .b64 at;\n    mov.u64 at, out;\n",
            "shared" => {
                "    .shared .align 16 .b8 tile[512];
    .reg .b32 at;
    mov.u32 at, tile;
    mad.lo.u32 at, %thread, 16, at;
"
            }
            _ => "    .local .align 16 .b8 depot[16];\n    .reg .b64 at;\n    mov.u64 at, depot;\n",
        };
        let body = format!(
            "    .reg .b{held} {list};
    .reg .b64 from, out;
    .reg .b32 fill, y0, y1, y2, y3;
    mad.wide.u32 from, %thread, 32, %input;
    mad.wide.u32 out, %thread, 16, %output;
{loads}{address}    mov.b32 fill, 0xAAAAAAAA;
    st.{space}.v4.b32 [at], {{fill, fill, fill, fill}};
    {opcode} [at], {vector};
    ld.{space}.v4.b32 {{y0, y1, y2, y3}}, [at];
    st.global.v4.b32 [out], {{y0, y1, y2, y3}};
"
        );
        let mut expected = vec![0xAA; 32 * 16];
        let bytes = width as usize / 8;
        for thread in 0..32 {
            for element in 0..count {
                let from = thread * 32 + element * form.held_bytes();
                let to = thread * 16 + element * bytes;
                expected[to..to + bytes].copy_from_slice(&input[from..from + bytes]);
            }
        }
        kernel(GROUP, form.name("st"), "", &body, input.clone(), Expected::Bits(expected))
    };
    forms(&["global", "shared", "local"]).iter().map(case).collect()
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
        "ldu.global.u32",
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

/// They change nothing that one thread can see.
fn fences() -> Vec<Case> {
    let texts = [
        ("membar.cta", "membar.cta;"),
        ("membar.gl", "membar.gl;"),
        ("membar.sys", "membar.sys;"),
        ("fence.acq_rel.cta", "fence.acq_rel.cta;"),
        ("fence.acq_rel.gpu", "fence.acq_rel.gpu;"),
        ("fence.sc.sys", "fence.sc.sys;"),
        ("prefetch.global.L1", "prefetch.global.L1 [at];"),
        ("prefetch.global.L2", "prefetch.global.L2 [at];"),
        ("prefetchu.L1", "prefetchu.L1 [at];"),
        ("prefetch.L1", "prefetch.L1 [at];"),
        (
            "prefetch.local.L1",
            "{ .local .b32 own; .reg .b64 place; mov.u64 place, own; prefetch.local.L1 [place]; }",
        ),
        ("applypriority", "applypriority.global.L2::evict_normal [line], 128;"),
        ("createpolicy", "createpolicy.fractional.L2::evict_last.b64 line, 1.0;"),
        ("nanosleep.u32", "nanosleep.u32 20;"),
        ("pmevent", "pmevent 3;"),
    ];
    let input = words(0..32);
    let case = |(name, text): (&str, &str)| {
        let body = format!(
            "    .reg .b64 at, out, line; .reg .b32 x;
    and.b64 line, %input, -128;
    mad.wide.u32 at, %thread, 4, %input;
    mad.wide.u32 out, %thread, 4, %output;
    ld.global.u32 x, [at];
    {text}
    st.global.u32 [out], x;
"
        );
        kernel(GROUP, name, "", &body, input.clone(), Expected::Bits(input.clone()))
    };
    let mut cases: Vec<Case> = texts.into_iter().map(case).collect();
    // What the line held is lost.
    let declarations = ".global .align 128 .b8 lost[128];\n";
    let body = "    .reg .b64 line; .reg .b32 x;
    mov.u64 line, lost;
    discard.global.L2 [line], 128;
    st.global.u32 [lost], 5;
    ld.global.u32 x, [lost];
    st.global.u32 [%output], x;
";
    let case = kernel(GROUP, "discard", declarations, body, vec![0; 4], Expected::Bits(words([5])));
    cases.push(Case { block: [1; 3], ..case });
    cases
}
