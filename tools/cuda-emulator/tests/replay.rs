//! The emulator does what a real GPU did.

use std::collections::HashMap;
use std::fs;

use crate::cases::{Case, list};
use crate::device::CHECKED;
use crate::recordings::{Recording, fingerprint, folder, parse};
use crate::run::run;

#[test]
fn recorded_outputs() {
    let cases: HashMap<String, Case> =
        list().into_iter().map(|case| (case.name.clone(), case)).collect();
    let mut failures = Vec::new();
    let mut count = 0;
    let files = fs::read_dir(folder()).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in files.filter(|path| path.extension().is_some_and(|extension| extension == "tsv")) {
        let text = fs::read_to_string(&path).expect("a recording can be read");
        let recordings = parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for recording in recordings {
            count += 1;
            let group = path.file_stem().unwrap_or_default().to_string_lossy();
            if let Err(message) = replay(&cases, &group, &recording) {
                failures.push(format!("{}: {}: {message}", path.display(), recording.name));
            }
        }
    }
    if count == 0 {
        eprintln!(
            "recorded_outputs: skipped: {} holds no recordings; on a machine with a GPU, \
             tools/gpu-check makes them",
            folder().display()
        );
    } else if count < cases.len() {
        let missing = cases.len() - count;
        eprintln!("recorded_outputs: {missing} of {} cases are not recorded", cases.len());
    }
    assert!(failures.is_empty(), "{} differ:\n{}", failures.len(), failures.join("\n"));
}

fn replay(cases: &HashMap<String, Case>, group: &str, recording: &Recording) -> Result<(), String> {
    let again = "delete the line, or record again with tools/gpu-check";
    let case = cases.get(&recording.name).filter(|case| case.group == group);
    let case = case.ok_or(format!("there is no such case; {again}"))?;
    if fingerprint(case) != recording.fingerprint {
        return Err(format!("recorded of another text or of other inputs; {again}"));
    }
    case.check(&recording.output).map_err(|e| format!("the GPU does not what we expect: {e}"))?;
    let output = run(case, &CHECKED)?;
    case.check_recorded(&output, &recording.output)
}
