//! Modules that files take the place of.

use std::env::temp_dir;
use std::fs;

use super::*;
use crate::process::run_test;

#[test]
fn add_adds() {
    let _driver = driver();
    let words = Words::new(&[1]);
    assert_eq!(add(function(kernels(), "add"), words.address, 2, 1, 0), OK);
    println!("1 + 2 = {}", words.read()[0]);
}

#[test]
fn a_file_takes_the_place_of_a_module() {
    let folder = temp_dir().join(format!("modules.{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("subtracts.ptx");
    let changed = include_str!("kernels.ptx").replace("add.s32 %r2", "sub.s32 %r2");
    let run = || {
        let folder = folder.to_string_lossy();
        run_test("driver::replacement::add_adds", &[("CUDA_EMULATOR_MODULES", &folder)])
    };
    assert!(run().stdout.contains("1 + 2 = 3"), "an empty folder changes nothing");
    fs::write(&path, changed).unwrap();
    let said = run();
    let line = format!("cuda-emulator: {} takes the place of a module\n", path.display());
    assert!(said.stdout.contains("1 + 2 = 4294967295"), "{}", said.stdout);
    assert!(said.stderr.contains(&line), "{}", said.stderr);
    fs::remove_dir_all(folder).unwrap();
}
