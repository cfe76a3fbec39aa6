//! Whether what came out is what must come out.

use super::{Case, Expected};
use crate::soft::Format;

impl Case {
    /// Compares the bytes of an output with what is expected. Errors: how many differ, and the first.
    pub fn check(&self, output: &[u8]) -> Result<(), String> {
        match &self.expected {
            Expected::Bits(bytes) => differing(output, bytes, 4, |got, expected| got == expected),
            Expected::Floats(format, bytes) => {
                differing(output, bytes, format.bits as usize / 8, |got, expected| {
                    got == expected || format.is_nan(got) && format.is_nan(expected)
                })
            }
            Expected::Near(format, values) => {
                near(*format, output, values.iter().copied(), |x| format!("{x:e}"))
            }
        }
    }

    /// Compares an output with a recorded one: equal, but for NaN and for what is approximate, where both may
    /// be off on either side.
    pub fn check_recorded(&self, output: &[u8], recorded: &[u8]) -> Result<(), String> {
        match &self.expected {
            Expected::Bits(_) => differing(output, recorded, 4, |got, expected| got == expected),
            Expected::Floats(format, _) => {
                differing(output, recorded, format.bits as usize / 8, |got, expected| {
                    got == expected || format.is_nan(got) && format.is_nan(expected)
                })
            }
            Expected::Near(format, values) => {
                let recorded = numbers(*format, recorded).map(|bits| format.to_f64(bits));
                let twice =
                    recorded.zip(values).map(|(recorded, (_, bound))| (recorded, 2.0 * bound));
                near(*format, output, twice, |x| format!("the recorded {x:e}"))
            }
        }
    }
}

/// Little-endian numbers of so many bytes; a shorter one may stand at the end.
fn chunks(bytes: &[u8], size: usize) -> impl Iterator<Item = u64> {
    bytes.chunks(size).map(|chunk| chunk.iter().rev().fold(0, |x, &byte| x << 8 | u64::from(byte)))
}

fn numbers(format: Format, bytes: &[u8]) -> impl Iterator<Item = u64> {
    chunks(bytes, format.bits as usize / 8)
}

fn differing(
    got: &[u8],
    expected: &[u8],
    size: usize,
    same: impl Fn(u64, u64) -> bool,
) -> Result<(), String> {
    if got.len() != expected.len() {
        return Err(format!("{} bytes, expected {}", got.len(), expected.len()));
    }
    let pairs = chunks(got, size).zip(chunks(expected, size)).enumerate();
    let mut wrong = pairs.filter(|(_, (got, expected))| !same(*got, *expected));
    let Some((i, (got, expected))) = wrong.next() else { return Ok(()) };
    let more = wrong.count();
    let digits = 2 + 2 * size;
    Err(format!("at {i} {got:#0digits$x}, expected {expected:#0digits$x}; {more} more differ"))
}

fn near(
    format: Format,
    output: &[u8],
    expected: impl Iterator<Item = (f64, f64)>,
    describe: impl Fn(f64) -> String,
) -> Result<(), String> {
    let expected: Vec<(f64, f64)> = expected.collect();
    let bytes = expected.len() * format.bits as usize / 8;
    if output.len() != bytes {
        return Err(format!("{} bytes, expected {bytes}", output.len()));
    }
    let pairs = numbers(format, output).map(|bits| format.to_f64(bits)).zip(expected).enumerate();
    let is_wrong = |got: f64, expected: f64, bound: f64| {
        let is_same = got == expected || got.is_nan() && expected.is_nan();
        let difference = (got - expected).abs();
        !is_same && (difference.is_nan() || difference > bound)
    };
    let mut wrong = pairs.filter(|(_, (got, (expected, bound)))| is_wrong(*got, *expected, *bound));
    let Some((i, (got, (expected, bound)))) = wrong.next() else { return Ok(()) };
    let more = wrong.count();
    let expected = describe(expected);
    Err(format!("at {i} {got:e}, expected {expected} within {bound:e}; {more} more differ"))
}
