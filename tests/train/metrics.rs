//! Metrics and event files: read back by a decoder of our own, cut back, locked.

use std::fs;

use serde_json::Value;
use silkie::data::lock::Lock;
use silkie::train::loss::Totals;
use silkie::train::metrics::{EvaluationRow, Metrics, Position, StepRow};

fn row(step: u64) -> StepRow {
    StepRow {
        step,
        epoch: 0,
        loss: 0.5 / step as f64,
        chosen_reward: 1.0,
        rejected_reward: -1.0,
        margin: 2.0,
        accuracy: 0.75,
        grad_norm: f64::NAN,
        lr: 1e-5,
        pairs: 300,
        tokens: 1 << 40,
        packs: 2,
        seconds: 2.0,
        skipped: false,
    }
}

/// A scalar of an event file.
#[derive(Debug, PartialEq)]
struct Scalar {
    step: u64,
    tag: String,
    value: f32,
}

/// Reads a varint and moves on.
fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for i in 0.. {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            break;
        }
    }
    value
}

/// (field, payload) of a protobuf message; varints and fixed numbers as little-endian bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let take = match key & 7 {
            0 => {
                fields.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            5 => 4,
            _ => varint(&mut bytes) as usize,
        };
        fields.push((key >> 3, bytes[..take].to_vec()));
        bytes = &bytes[take..];
    }
    fields
}

/// CRC-32C bit by bit, masked as the format wants it.
fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    let crc = !crc;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

fn scalars(mut file: &[u8]) -> Vec<Scalar> {
    let mut scalars = Vec::new();
    let mut versions = 0;
    while !file.is_empty() {
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        assert_eq!(masked_crc(&file[..8]).to_le_bytes(), file[8..12]);
        let message = &file[12..12 + length];
        assert_eq!(masked_crc(message).to_le_bytes(), file[12 + length..16 + length]);
        file = &file[16 + length..];
        let mut step = 0;
        for (field, payload) in fields(message) {
            match field {
                1 => assert!(f64::from_le_bytes(payload.try_into().unwrap()) > 1.7e9),
                2 => step = u64::from_le_bytes(payload.try_into().unwrap()),
                3 => versions += usize::from(payload == b"brain.Event:2"),
                _ => scalars.extend(fields(&payload).into_iter().map(|(_, value)| {
                    let value = fields(&value);
                    let tag = String::from_utf8(value[0].1.clone()).unwrap();
                    let value = f32::from_le_bytes(value[1].1.clone().try_into().unwrap());
                    Scalar { step, tag, value }
                })),
            }
        }
    }
    assert_eq!(versions, 1, "one version record, the first");
    scalars
}

#[test]
fn a_resumed_run_cuts_both_files_back_to_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut metrics = Metrics::open(dir.path(), Position::default()).unwrap();
    (1..=3).for_each(|step| metrics.step(&row(step)).unwrap());
    let totals = Totals { count: 2, loss: 3.0, right: 1.5, ..Totals::default() };
    metrics.evaluation(&EvaluationRow::new(3, &totals)).unwrap();
    let position = metrics.position().unwrap();
    (4..=6).for_each(|step| metrics.step(&row(step)).unwrap());
    drop(metrics);
    let mut metrics = Metrics::open(dir.path(), position).unwrap();
    metrics.step(&row(4)).unwrap();
    drop(metrics);

    let lines = fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let steps: Vec<u64> = lines.iter().map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 2, 3, 3, 4]);
    assert_eq!((&lines[3]["kind"], &lines[3]["loss"]), (&"evaluation".into(), &1.5.into()));
    assert!(lines[0]["grad_norm"].is_null(), "JSON has no NaN");

    let scalars = scalars(&fs::read(dir.path().join("events.out.tfevents.silkie")).unwrap());
    let losses: Vec<(u64, f32)> =
        scalars.iter().filter(|s| s.tag == "train/loss").map(|s| (s.step, s.value)).collect();
    assert_eq!(losses, [(1, 0.5), (2, 0.25), (3, 0.5 / 3.0), (4, 0.125)]);
    let speed = scalars.iter().find(|s| s.tag == "train/pairs_per_second").unwrap();
    assert_eq!(speed.value, 150.0);
    assert!(scalars.contains(&Scalar { step: 3, tag: "evaluation/accuracy".into(), value: 0.75 }));
}

#[test]
fn two_runs_in_one_folder_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    let lock = Lock::acquire(&folder).unwrap();
    let error = Lock::acquire(&folder).err().unwrap().to_string();
    assert!(error.contains("another run is writing to this folder"), "{error}");
    drop(lock);
    Lock::acquire(&folder).unwrap();
}
