//! Kernels in which every thread computes a row of its own.

use super::values::{Kind, mask, rows};
use super::{Case, Expected, entry};
use crate::soft::Format;

/// Threads of a block: the last warp is a partial one.
const BLOCK: u32 = 100;

/// The operands of an instruction, and the width of its result.
pub struct Lanes {
    group: &'static str,
    name: String,
    operands: Vec<Kind>,
    result: u32,
    text: String,
    target: &'static str,
    declarations: String,
    rows: Vec<Vec<u64>>,
}

/// A case for `text`, which computes register `d` of `result` bits from registers `a`, `b`, `c`, `e` that hold
/// `operands`.
pub fn lanes(
    group: &'static str,
    name: impl Into<String>,
    operands: &[Kind],
    result: u32,
    text: impl Into<String>,
) -> Lanes {
    let operands = operands.to_vec();
    let rows = rows(&operands);
    Lanes {
        group,
        name: name.into(),
        operands,
        result,
        text: text.into(),
        target: "sm_80",
        declarations: String::new(),
        rows,
    }
}

impl Lanes {
    /// For an instruction that sm_80 has not.
    pub fn on(mut self, target: &'static str) -> Self {
        self.target = target;
        self
    }

    /// After declarations of the module.
    pub fn declaring(mut self, declarations: String) -> Self {
        self.declarations = declarations;
        self
    }

    /// Other operands than [`rows`].
    pub fn with_rows(mut self, rows: Vec<Vec<u64>>) -> Self {
        self.rows = rows;
        self
    }

    /// What must come out; `None` where the manual leaves it open, which is not run.
    pub fn bits(self, expected: impl Fn(&[u64]) -> Option<u64>) -> Case {
        let (width, mut bytes) = (self.result, Vec::new());
        let rows = self.specified(expected, |value| push(&mut bytes, value, width));
        self.case(rows, Expected::Bits(bytes))
    }

    /// As [`Lanes::bits`], for numbers of a format, any NaN for a NaN.
    pub fn floats(self, format: Format, expected: impl Fn(&[u64]) -> Option<u64>) -> Case {
        let (width, mut bytes) = (self.result, Vec::new());
        let rows = self.specified(expected, |value| push(&mut bytes, value, width));
        self.case(rows, Expected::Floats(format, bytes))
    }

    /// A number and how far off it may be.
    pub fn near(self, format: Format, expected: impl Fn(&[u64]) -> Option<(f64, f64)>) -> Case {
        let mut values = Vec::new();
        let rows = self.specified(expected, |value| values.push(value));
        self.case(rows, Expected::Near(format, values))
    }

    fn specified<T>(
        &self,
        expected: impl Fn(&[u64]) -> Option<T>,
        mut keep: impl FnMut(T),
    ) -> Vec<Vec<u64>> {
        let is_specified = |row: &&Vec<u64>| expected(row).map(&mut keep).is_some();
        self.rows.iter().filter(is_specified).cloned().collect()
    }

    fn case(self, rows: Vec<Vec<u64>>, expected: Expected) -> Case {
        assert!(!rows.is_empty(), "{}: no row is specified", self.name);
        let count = rows.len();
        let mut input = Vec::new();
        let mut loads = String::new();
        let mut registers = String::new();
        for (column, kind) in self.operands.iter().enumerate() {
            let (width, bytes) = (kind.width(), kind.width() / 8);
            let name = ["a", "b", "c", "e"][column];
            input.resize(input.len().next_multiple_of(8), 0);
            let start = input.len();
            rows.iter().for_each(|row| push(&mut input, row[column], width));
            registers += &format!("    .reg .b{width} {name};\n");
            loads += &format!(
                "    mad.wide.u32 %address, %index, {bytes}, %input;\n    ld.global.b{width} {name}, \
                 [%address+{start}];\n"
            );
        }
        let (entry, text, width, bytes) =
            (entry(&self.name), self.text, self.result, self.result / 8);
        let declarations = self.declarations;
        let ptx = format!(
            "{declarations}.visible .entry {entry}(.param .u64 input, .param .u64 output)
{{
    .reg .b64 %input, %output, %address;
    .reg .b32 %index, %count, %thread;
    .reg .pred %beyond;
{registers}    .reg .b{width} d;
    ld.param.u64 %input, [input];
    ld.param.u64 %output, [output];
    mov.u32 %index, %ctaid.x;
    mov.u32 %count, %ntid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.u32 %index, %index, %count, %thread;
    setp.ge.u32 %beyond, %index, {count};
    @%beyond exit;
{loads}    {text}
    mad.wide.u32 %address, %index, {bytes}, %output;
    st.global.b{width} [%address], d;
    ret;
}}
"
        );
        Case {
            name: self.name,
            group: self.group,
            target: self.target,
            ptx,
            grid: [(count as u32).div_ceil(BLOCK), 1, 1],
            block: [BLOCK, 1, 1],
            dynamic_shared: 0,
            input,
            extra: Vec::new(),
            output: count * bytes as usize,
            expected,
        }
    }
}

fn push(bytes: &mut Vec<u8>, value: u64, width: u32) {
    assert_eq!(value & !mask(width), 0, "a value of more than {width} bits");
    bytes.extend(&value.to_le_bytes()[..width as usize / 8]);
}

/// A kernel of one warp with a body of its own, in which `%input`, `%output` and `%thread` are set, after
/// declarations of the module.
pub fn kernel(
    group: &'static str,
    name: impl Into<String>,
    declarations: &str,
    body: &str,
    input: Vec<u8>,
    expected: Expected,
) -> Case {
    let name = name.into();
    let entry = entry(&name);
    let ptx = format!(
        "{declarations}.visible .entry {entry}(.param .u64 input, .param .u64 output)
{{
    .reg .b64 %input, %output;
    .reg .b32 %thread;
    ld.param.u64 %input, [input];
    ld.param.u64 %output, [output];
    mov.u32 %thread, %tid.x;
{body}
    ret;
}}
"
    );
    let output = expected.bytes();
    Case {
        name,
        group,
        target: "sm_80",
        ptx,
        grid: [1; 3],
        block: [32, 1, 1],
        dynamic_shared: 0,
        input,
        extra: Vec::new(),
        output,
        expected,
    }
}

/// Words in memory.
pub fn words(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// Threads of a block whose lanes work together.
const WARPS: u32 = 64;

impl Lanes {
    /// As [`Lanes::bits`], of warps: what lane `i` of the warp with these 32 rows gets.
    pub fn of_warps(mut self, expected: impl Fn(&[Vec<u64>], usize) -> u64) -> Case {
        self.rows.truncate(self.rows.len() / WARPS as usize * WARPS as usize);
        let (width, mut bytes) = (self.result, Vec::new());
        for rows in self.rows.chunks(32) {
            (0..32).for_each(|lane| push(&mut bytes, expected(rows, lane), width));
        }
        let rows = std::mem::take(&mut self.rows);
        let grid = [rows.len() as u32 / WARPS, 1, 1];
        Case { grid, block: [WARPS, 1, 1], ..self.case(rows, Expected::Bits(bytes)) }
    }
}
