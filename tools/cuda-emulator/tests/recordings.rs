//! What a real GPU made of the micro-kernels: `conformance/<group>.tsv`.
//!
//! A line per case: name, [`fingerprint`], bytes of the output in hexadecimal, with tabs between. Lines that start
//! with `#` say where and when.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::cases::Case;

pub struct Recording {
    pub name: String,
    pub fingerprint: u64,
    pub output: Vec<u8>,
}

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance")
}

/// Of everything that decides what a case puts out (FNV-1a).
pub fn fingerprint(case: &Case) -> u64 {
    let shape = format!("{:?} {:?} {} {}", case.grid, case.block, case.dynamic_shared, case.output);
    let module = case.module();
    let bytes = [module.as_bytes(), shape.as_bytes(), &case.input, &case.extra].concat();
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

pub fn parse(text: &str) -> Result<Vec<Recording>, String> {
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.starts_with('#'));
    lines
        .map(|(line, number)| {
            record(line).ok_or_else(|| {
                format!("line {number}: expected name, fingerprint and hexadecimal bytes, got {line:.60}")
            })
        })
        .collect()
}

fn record(line: &str) -> Option<Recording> {
    let mut columns = line.split('\t');
    let name = columns.next()?.to_owned();
    let fingerprint = u64::from_str_radix(columns.next()?, 16).ok()?;
    let digits = columns.next()?;
    let byte = |i: usize| u8::from_str_radix(digits.get(i..i + 2)?, 16).ok();
    let output = (0..digits.len()).step_by(2).map(byte).collect::<Option<_>>()?;
    columns.next().is_none().then_some(Recording { name, fingerprint, output })
}

pub fn format(recording: &Recording) -> String {
    let mut line = format!("{}\t{:016x}\t", recording.name, recording.fingerprint);
    for byte in &recording.output {
        write!(line, "{byte:02x}").expect("a string takes text");
    }
    line + "\n"
}

#[test]
fn lines_are_read_as_they_are_written() {
    let recording =
        Recording { name: "add.s32 x".into(), fingerprint: 0xAB, output: vec![0, 255, 16] };
    let line = format(&recording);
    assert_eq!(line, "add.s32 x\t00000000000000ab\t00ff10\n");
    let found = parse(&format!("# a GPU\n{line}")).unwrap().remove(0);
    assert_eq!(
        (found.name, found.fingerprint, found.output),
        ("add.s32 x".into(), 0xAB, vec![0, 255, 16])
    );
    for damaged in ["x", "x\t0", "x\tg\t00", "x\t0\t0", "x\t0\t0g", "x\t0\t00\t"] {
        assert!(parse(damaged).err().unwrap().starts_with("line 1: expected name"), "{damaged}");
    }
}
