//! Every micro-kernel, run by the emulator.

use std::collections::HashSet;
use std::fmt::Write;
use std::process::Command;

use emucuda::exec::Options;
use emucuda::ptx::parse;

use crate::cases::{Case, Expected, head, list};
use crate::device::CHECKED;
use crate::nvcc;
use crate::random::Random;
use crate::run::run;

#[test]
fn names_are_unique() {
    let mut names = HashSet::new();
    let mut entries = HashSet::new();
    for case in list() {
        assert!(entries.insert(case.entry()), "{}: the entry point is taken", case.name);
        assert!(names.insert(case.name.clone()), "{} is there twice", case.name);
    }
}

#[test]
fn texts_are_understood() {
    for case in list() {
        let module = parse(&case.module()).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert!(
            module.functions.iter().any(|function| function.name == case.entry()),
            "{}",
            case.name
        );
    }
}

/// NVIDIA's assembler takes them for PTX too.
#[test]
fn ptxas_accepts_all() {
    let Some(nvcc) = nvcc::find("ptxas_accepts_all") else { return };
    for target in ["sm_80", "sm_90"] {
        let mut text = head(target);
        for case in list().iter().filter(|case| case.target == target) {
            writeln!(text, "// {}\n{}", case.name, case.ptx).expect("a string takes text");
        }
        let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
        let path = folder.join(format!("micro.{target}.{}.ptx", std::process::id()));
        std::fs::write(&path, &text).expect("the folder for tests can be written");
        let output = Command::new(nvcc.with_file_name("ptxas"))
            .args(["-O0", "-o", "/dev/null", "-arch", target])
            .arg(&path)
            .output()
            .expect("ptxas runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}\n{said}", path.display());
        std::fs::remove_file(&path).expect("the text can be removed");
    }
}

/// Under checks and without them; on one thread and on two.
#[test]
fn results_are_the_manuals() {
    let mut failures = Vec::new();
    let cases = list();
    for case in &cases {
        for (checked, threads) in [(true, 1), (false, 2)] {
            let found = run(case, &Options { checked, threads, ..CHECKED });
            if let Err(message) = found.and_then(|output| case.check(&output)) {
                let mode = if checked { "checked" } else { "unchecked" };
                failures.push(format!("{} ({mode}): {message}", case.name));
                break;
            }
        }
    }
    let (failed, all) = (failures.len(), cases.len());
    assert!(failures.is_empty(), "{failed} of {all} cases fail:\n{}", failures.join("\n"));
}

/// A wrong output would be seen: a bit of a number that differs, and for approximate ones other numbers.
#[test]
fn wrong_outputs_are_found() {
    let mut random = Random::new(12);
    for case in list() {
        let wrong = match &case.expected {
            Expected::Near(..) => vec![0x5A; case.output],
            Expected::Bits(bytes) | Expected::Floats(_, bytes) => {
                assert_eq!(case.check(bytes), Ok(()), "{}", case.name);
                assert_eq!(case.check_recorded(bytes, bytes), Ok(()), "{}", case.name);
                let mut wrong = bytes.clone();
                let at = random.below(wrong.len());
                wrong[at] ^= 1 << random.below(8);
                if matches!(case.expected, Expected::Floats(..)) {
                    wrong.fill(0x5A); // a NaN may have other bits
                }
                assert!(case.check_recorded(&wrong, bytes).is_err(), "{}", case.name);
                wrong
            }
        };
        assert!(case.check(&wrong).is_err(), "{}", case.name);
        assert!(case.check(&wrong[1..]).is_err(), "{}", case.name);
    }
}

/// Opcodes and operands of one kernel in another: an error, a fault or some result, never a panic.
#[test]
fn mixed_up_kernels_do_not_panic() {
    let cases = list();
    // Without loops, so that every one ends.
    let cases: Vec<&Case> = cases.iter().filter(|case| !case.ptx.contains("bra")).collect();
    let statements: Vec<&str> =
        cases.iter().flat_map(|case| case.ptx.split_inclusive(';')).collect();
    let mut random = Random::new(11);
    let mut loaded = 0;
    for _ in 0..4000 {
        let case = cases[random.below(cases.len())];
        let mut lines: Vec<&str> = case.ptx.split_inclusive(';').collect();
        let at = random.below(lines.len());
        let other = statements[random.below(statements.len())];
        let (own_opcode, own_operands) =
            lines[at].trim().split_once(' ').unwrap_or((lines[at], ";"));
        let (opcode, operands) = other.trim().split_once(' ').unwrap_or((other, ";"));
        let mixed = match random.below(3) {
            0 => format!(" {opcode} {own_operands}"),
            1 => format!(" {own_opcode} {operands}"),
            _ => other.to_owned(),
        };
        lines[at] = &mixed;
        let ptx = lines.concat();
        if ptx.contains("bra") {
            continue;
        }
        let mixed = Case { ptx, ..case.clone() };
        loaded += usize::from(run(&mixed, &CHECKED).is_ok());
    }
    assert!(loaded > 100, "{loaded}: some still run");
}
