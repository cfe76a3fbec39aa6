//! The reader of PTX, on what nvcc writes, on a snippet for every construct, and on damaged text.

use emucuda::ptx::ast::*;
use emucuda::ptx::parse;

use crate::nvcc;

/// Every kernel of the project, as nvcc compiles it for both architectures, is understood.
#[test]
fn kernels_of_the_project() {
    let Some(nvcc) = nvcc::find("kernels_of_the_project") else { return };
    let folder = nvcc::root().join("kernels");
    let mut count = 0;
    for file in std::fs::read_dir(&folder).expect("kernels/") {
        let path = file.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "cu") {
            continue;
        }
        for arch in ["80", "90a"] {
            let include = format!("-I{}", folder.display());
            let generate = format!("-gencode=arch=compute_{arch},code=compute_{arch}");
            let arguments = ["-ptx", "-lineinfo", "-O3", "-std=c++17", &include, &generate];
            let bytes = nvcc::compile(&nvcc, &path, &arguments);
            let text = String::from_utf8(bytes).expect("PTX is text");
            let module = parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(module.target, format!("sm_{arch}"));
            check(&text, &module);
            count += 1;
        }
    }
    assert!(count > 0, "kernels/ holds no kernel");
}

/// What holds for every module.
fn check(text: &str, module: &Module) {
    let entries = module.functions.iter().filter(|function| function.is_entry).count();
    assert_eq!(entries, text.matches(".entry ").count());
    for function in &module.functions {
        for &label in &function.labels {
            assert!(label <= function.body.len());
        }
        for instruction in &function.body {
            let line = text.lines().nth(instruction.line as usize - 1).expect("a line of the text");
            assert!(line.contains(&instruction.opcode.join(".")), "{line}: {instruction:?}");
            for operand in &instruction.operands {
                if let Operand::Register(register) = operand {
                    assert!(line.contains(&function.registers[*register as usize].0), "{line}");
                }
            }
            let place = instruction.place.map(|place| &function.places[place as usize]);
            assert!(place.is_none_or(|place| module.files.contains_key(&place.file)));
        }
    }
}
