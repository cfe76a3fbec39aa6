//! Every micro-kernel, run by the emulator.

use std::collections::HashSet;
use std::fmt::Write;
use std::process::Command;

use emucuda::exec::Options;
use emucuda::ptx::parse;

use crate::cases::{head, list};
use crate::nvcc;
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
            let found = run(case, &Options { checked, threads });
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
