//! CUDA_EMULATOR_SCHEDULE, and how a race arrives.

use super::*;
use crate::process::run_test;

const RACE: &str = "driver::schedule::a_race_ends_its_launch";

#[test]
fn a_race_ends_its_launch() {
    let _driver = driver();
    let (words, races) = (Words::new(&[0; 64]), function(kernels(), "races"));
    for _ in 0..5 {
        let code = launch(races, 1, 64, 0, 0, &[param(&words.address)]);
        assert_eq!(code, CUresult::ILLEGAL_ADDRESS);
        let report = report();
        assert!(report.starts_with("race in races, "), "{report}");
        let (_, schedule) = report.rsplit_once(". Schedule ").expect("it names the schedule");
        println!("schedule {schedule}");
    }
}

#[test]
fn schedules_are_chosen_by_the_environment() {
    let order = vec!["order"; 5];
    let random = ["random:7, launch 0", "random:7, launch 1", "random:7, launch 4"].to_vec();
    let varied =
        ["random:0, launch 0", "random:0, launch 2", "last:", "random:0, launch 4"].to_vec();
    let last = vec!["last:1"; 5];
    for (variable, value, expected) in [
        ("CUDA_EMULATOR_SCHEDULE", "order", order),
        ("CUDA_EMULATOR_SCHEDULE", "random:7", random),
        ("CUDA_EMULATOR_SCHEDULE", "last:1", last),
        ("CUDA_EMULATOR_QUIET", "0", varied),
    ] {
        let said = run_test(RACE, &[(variable, value)]);
        let mut rest = said.as_str();
        for schedule in expected {
            let found = rest.split_once(&format!("schedule {schedule}"));
            rest = found.unwrap_or_else(|| panic!("{value}, {schedule}: {said}")).1;
        }
    }
}
