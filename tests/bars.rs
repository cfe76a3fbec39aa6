//! `silkie bench kernels`: results as on the CPU, and what kernels do held to kernels/counters.json.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;
use silkie::device::kernels;

use crate::support;

/// What a row of the table and a row that was counted must agree in.
const BARS: [&str; 6] = ["dram", "bytes", "sectors", "wavefronts", "ldmatrix", "mma"];

/// The most that a row may have of a bar.
const LIMITS: [(&str, f64); 6] = [
    ("dram", 1.05),
    ("bytes", 1.05),
    ("sectors", 1.0),
    ("wavefronts", 1.0),
    ("ldmatrix", 1.0),
    ("mma", 1.05),
];

/// Of rows whose name begins so, a bar that may be more, how much, and why.
const EXCEPTIONS: [(&str, &str, f64, &str); 11] = [
    (
        "sampling nucleus",
        "bytes",
        f64::INFINITY,
        "a selection without a sort passes over a row of logits many times, all but the first in L2",
    ),
    ("sampling nucleus", "dram", 2.0, "its scratch is as large as the logits, and stays in L2"),
    (
        "attention",
        "bytes",
        f64::INFINITY,
        "bound by products: every tile of queries reads the keys and values that it sees, from L2",
    ),
    (
        "attention backward",
        "dram",
        9.0 / 8.0 * 1.05,
        "of q, k, v, o, dO, dQ, dK and dV, two launches both read dO: one for delta, one for the rest",
    ),
    ("attention forward group mask", "mma", 1.10, "four branches end and begin amid tiles"),
    ("attention backward group mask", "mma", 1.10, "four branches end and begin amid tiles"),
    (
        "attention backward group mask",
        "sectors",
        1.001,
        "branches begin amid a sector of lse and of delta",
    ),
    ("attention forward bidirectional", "sectors", 230.0 / 208.0, ROWS_OF_208_BYTES),
    ("attention backward bidirectional", "sectors", 230.0 / 208.0, ROWS_OF_208_BYTES),
    (
        "patch_embed",
        "bytes",
        f64::INFINITY,
        "bound by products: every block of patches reads the weights, from L2",
    ),
    (
        "log_ratio gradients",
        "bytes",
        1.5,
        "what a block cannot hold of its row of logits, three quarters, it reads again, from L2",
    ),
];

/// 13 pieces of 16 bytes: 6 sectors and a half. Of 32 rows, which are 13 accesses of 32 pieces and 208 sectors, each has a
/// sector that is half a stranger's, which makes 224, and 6 sectors are split between two accesses.
const ROWS_OF_208_BYTES: &str = "a head of 104, one of several, ends amid a sector";

fn bench(words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_silkie"));
    command.args(["bench", "kernels"]).args(words.split_whitespace());
    command
}

fn report(command: &mut Command) -> Value {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn rows(report: &Value) -> &[Value] {
    report["rows"].as_array().unwrap()
}

fn name(row: &Value) -> String {
    format!("{} {} {}", row["kernel"], row["shape"], row["dtype"]).replace('"', "")
}

/// The rows that the program was built with: without a GPU it prints them.
fn recorded() -> Value {
    report(&mut bench("--json"))
}

/// `worse` bars, and whether any is better: rows of the table against rows just counted.
fn compare(recorded: &[Value], counted: &[Value]) -> (Vec<String>, Vec<String>) {
    let (mut worse, mut better) = (Vec::new(), Vec::new());
    for row in counted {
        let name = name(row);
        let Some(held) = recorded.iter().find(|held| self::name(held) == name) else {
            worse.push(format!("{name} is not in the table"));
            continue;
        };
        for bar in BARS {
            let [got, held] = [row, held].map(|row| row["bars"][bar].as_f64());
            match (got, held) {
                (Some(got), Some(held)) if got > held * (1.0 + 1e-9) => {
                    worse.push(format!("{name}: {bar} {got:.4}, recorded {held:.4}"));
                }
                (Some(got), Some(held)) if got < held * (1.0 - 1e-9) => {
                    better.push(format!("{name}: {bar} {got:.4}, recorded {held:.4}"));
                }
                (Some(got), None) => worse.push(format!("{name}: {bar} {got:.4}, recorded none")),
                _ => {}
            }
        }
    }
    let gone = recorded.iter().filter(|held| counted.iter().all(|row| name(row) != name(held)));
    worse.extend(gone.map(|held| format!("{} is in the table, and no row any more", name(held))));
    (worse, better)
}

#[test]
fn kernels_do_no_more_than_is_recorded() {
    let mut command = bench("--json");
    let Some(command) = support::with_cuda(&mut command) else { return };
    if !support::is_emulated() {
        return support::skip("a GPU counts nothing; it is timed");
    }
    let (counted, recorded) = (report(command), recorded());
    let (worse, better) = compare(rows(&recorded), rows(&counted));
    assert!(
        worse.is_empty(),
        "more work than kernels/counters.json allows; mend the kernel, or run tools/record-counters and \
         say in the commit why it is right:\n{}",
        worse.join("\n")
    );
    if !better.is_empty() {
        support::say(format_args!(
            "kernels do less than kernels/counters.json says: please run tools/record-counters\n{}",
            better.join("\n")
        ));
    }
}

#[test]
fn recorded_rows_are_at_their_floors() {
    if support::has_real_gpu() {
        return support::skip("where there is a GPU the table is not printed");
    }
    let recorded = recorded();
    assert!(!rows(&recorded).is_empty());
    for row in rows(&recorded) {
        let (name, kernel) = (name(row), row["kernel"].as_str().unwrap());
        for bar in ["dram", "bytes", "sectors"] {
            assert!(row["bars"][bar].is_f64(), "{name} has no {bar}");
        }
        for bar in BARS {
            let (got, limit) = (row["bars"][bar].as_f64().unwrap_or(0.0), limit(kernel, bar));
            assert!(got <= limit, "{name}: {bar} is {got:.4}, at most {limit:.4} is allowed");
        }
        assert_eq!(row["counters"]["local_bytes"], 0, "{name} spills");
    }
    // by hand: 256 x 4096 bf16 read and written, a weight read, and 256 rstd written
    let row = rows(&recorded).iter().find(|row| name(row) == "rms_norm forward [256,4096] bf16");
    assert_eq!(row.unwrap()["bytes"], 2 * 2 * 256 * 4096 + 2 * 4096 + 4 * 256);
}

/// The most that rows of a name may have of a bar: what the last exception says of them, or the limit of all.
fn limit(kernel: &str, bar: &str) -> f64 {
    let exceptions = EXCEPTIONS.iter().map(|&(name, of, limit, _)| (name, of, limit));
    let limits = LIMITS.iter().map(|&(of, limit)| ("", of, limit));
    let mut meant =
        limits.chain(exceptions).filter(|(name, of, _)| kernel.starts_with(name) && *of == bar);
    meant.next_back().unwrap().2
}

/// Each exception is of rows there are, once their op has a kernel.
#[test]
fn exceptions_have_rows() {
    let recorded = recorded();
    for (name, ..) in EXCEPTIONS {
        let op = name.split(' ').next().unwrap();
        let mut symbols = kernels::modules().iter().flat_map(|module| module.kernels);
        let has_kernel = symbols.any(|kernel| kernel.symbol.starts_with(op));
        let has_row =
            rows(&recorded).iter().any(|row| row["kernel"].as_str().unwrap().starts_with(name));
        assert!(has_row || !has_kernel, "{name} is no row");
    }
}

#[test]
fn limits_are_those_of_the_row() {
    assert_eq!(limit("rms_norm forward", "bytes"), 1.05);
    assert_eq!(limit("rms_norm forward", "sectors"), 1.0);
    assert_eq!(limit("attention forward causal", "dram"), 1.05);
    assert_eq!(limit("attention forward causal", "mma"), 1.05);
    assert_eq!(limit("attention backward group mask", "mma"), 1.10);
    assert_eq!(limit("attention backward group mask", "bytes"), f64::INFINITY);
    assert_eq!(limit("attention backward group mask", "ldmatrix"), 1.0);
}

#[test]
fn every_kernel_has_a_row() {
    if support::has_real_gpu() || kernels::modules().is_empty() {
        return support::skip(
            "needs embedded kernels, and the table, which is printed without a GPU",
        );
    }
    let recorded = recorded();
    let launched: BTreeSet<&str> = rows(&recorded)
        .iter()
        .flat_map(|row| row["counters"]["kernels"].as_array().unwrap())
        .map(|kernel| kernel.as_str().unwrap())
        .collect();
    let embedded: BTreeSet<&str> = kernels::modules()
        .iter()
        .flat_map(|module| module.kernels)
        .map(|kernel| kernel.symbol)
        .collect();
    assert_eq!(launched, embedded, "kernels of the table, and kernels of this program");
}

#[test]
fn a_worse_number_is_seen_and_a_better_one_told() {
    let row = |bytes: f64, mma: Option<f64>| {
        serde_json::json!({
            "kernel": "k", "shape": [1, 2], "dtype": "f32",
            "bars": { "dram": 1.0, "bytes": bytes, "sectors": 1.0, "wavefronts": null, "mma": mma },
        })
    };
    let compare = |held, got| compare(&[held], &[got]);
    assert_eq!(compare(row(1.03, None), row(1.03, None)), (vec![], vec![]));
    let (worse, better) = compare(row(1.03, None), row(1.04, None));
    assert_eq!(
        (worse, better.len()),
        (vec!["k [1,2] f32: bytes 1.0400, recorded 1.0300".into()], 0)
    );
    let (worse, better) = compare(row(1.03, Some(1.0)), row(1.02, Some(1.0)));
    assert_eq!((worse.len(), better.len()), (0, 1));
    assert_eq!(compare(row(1.03, None), row(1.03, Some(1.0))).0.len(), 1);
    let mut other = row(1.03, None);
    other["dtype"] = "bf16".into();
    assert_eq!(compare(row(1.03, None), other).0.len(), 2);
}

#[test]
fn a_gpu_is_timed() {
    let mut command = bench("--json");
    if !support::has_real_gpu() || support::is_emulated() {
        return support::skip("needs a GPU");
    }
    let report = report(&mut command);
    let rate = |key: &str| report[key].as_f64().unwrap();
    for row in rows(&report) {
        let number = |key: &str| row[key].as_f64().unwrap();
        let [bytes, macs] =
            [("bytes", "gb_per_s"), ("macs", "gmac_per_s")].map(|(of, per)| number(of) / rate(per));
        let floor = bytes.max(macs) / 1e3;
        assert!((number("floor_us") - floor).abs() < 1e-6 * floor, "{row}");
        assert!(number("flop") > 0.0 && number("us") > 0.0, "{row}");
        assert!((number("percent_of_floor") - 100.0 * floor / number("us")).abs() < 1e-3, "{row}");
    }
}

#[test]
fn what_cannot_be_done_is_one_sentence() {
    let refused = |words: &str| {
        let output = bench(words).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, message) = refused("--device cpu");
    assert_eq!(code, Some(2));
    assert!(message.contains("kernels run on cuda or cuda:N"), "{message}");
    let (code, message) = refused("no_such_kernel");
    assert_eq!(code, Some(2));
    assert!(message.contains("no_such_kernel: no row has this in its name"), "{message}");
    if support::has_real_gpu() {
        return support::skip("this machine has a driver");
    }
    let (code, message) = refused("--device cuda");
    assert_eq!(code, Some(1));
    assert!(message.starts_with("silkie: cuda: ") && message.lines().count() == 1, "{message}");
}
