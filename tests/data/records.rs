//! Records and pairs against the published rule, and lines that are no records.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use silkie::data::records::{self, Line, SourceRecord};
use silkie::data::template;

use super::tokenizer::lines;
use crate::support;

fn parse(text: &str) -> Result<SourceRecord, String> {
    let line = Line { number: 7, bytes: text.as_bytes().to_vec() };
    records::parse(Path::new("r.jsonl"), &line).map_err(|e| e.to_string())
}

#[test]
fn pairs_are_the_originals() {
    let Some(dir) = support::goldens().map(|dir| dir.join("pairs")) else { return };
    let expected = lines(&dir.join("expected.jsonl"));
    for file in ["records_rows.jsonl", "records_columnar.jsonl"] {
        let records = records::read(dir.join(file)).unwrap();
        let mut count = 0;
        for (record, expected) in records.zip(&expected) {
            let id = &expected["id"];
            // The typed table of the columns has null where the rows lack an aspect.
            let record = match record {
                Err(e) => {
                    let source = &lines(&dir.join(file))[count];
                    assert!(
                        source["completions"]["annotations"].to_string().contains(":null"),
                        "{id}: {e}"
                    );
                    assert!(e.to_string().contains("got null"), "{id}: {e}");
                    count += 1;
                    continue;
                }
                Ok(record) => record,
            };
            count += 1;
            assert_eq!(record.line, count as u64);
            assert_eq!(record.id, id.as_str().unwrap());
            let prompt = template::prompt_text(&record.images, &record.prompt);
            assert_eq!(prompt, expected["prompt"].as_str().unwrap(), "{id}");
            let scores: Vec<_> = record.responses.iter().map(|r| r.score).collect();
            let means = expected["mean_scores"].as_array().unwrap();
            assert_eq!(scores, means.iter().map(Value::as_f64).collect::<Vec<_>>(), "{id}");
            assert_eq!(json!(record.pairs), expected["pairs_chosen_rejected_index"], "{id}");
            for (side, key) in ["chosen", "rejected"].iter().enumerate() {
                let texts = record.pairs.iter().map(|pair| &record.responses[pair[side]].text);
                assert_eq!(json!(texts.collect::<Vec<_>>()), expected[key], "{id}");
            }
        }
        assert_eq!(count, expected.len(), "{file}");
    }
}

#[test]
fn real_preferences_give_the_published_pairs() {
    let Some(dir) = support::shared().map(|dir| dir.join("data/real-preferences")) else { return };
    for name in ["preferences", "with-unrated"] {
        let file = std::fs::read_to_string(dir.join(format!("{name}.pairs.json"))).unwrap();
        let expected: Value = serde_json::from_str(&file).unwrap();
        let records = records::read(dir.join(format!("{name}.jsonl"))).unwrap();
        let records: Vec<SourceRecord> = records.map(Result::unwrap).collect();
        let sum = |f: fn(&SourceRecord) -> usize| records.iter().map(f).sum::<usize>();
        assert_eq!(json!(records.len()), expected["records"]);
        assert_eq!(json!(sum(|r| r.responses.len())), expected["completions"]);
        assert_eq!(json!(sum(|r| r.pairs.len())), expected["pairs"]);
        assert_eq!(json!(sum(|r| r.ties)), expected["ties"]);
        assert_eq!(json!(sum(|r| r.unrated)), expected["pairs_skipped_for_a_non_numeric_rating"]);
        let paired: Vec<_> = records.iter().filter(|r| !r.pairs.is_empty()).collect();
        assert_eq!(json!(paired.len()), expected["records_with_a_pair"]);
        for (record, expected) in paired.iter().zip(expected["by_record"].as_array().unwrap()) {
            assert_eq!(record.id, expected["id"].as_str().unwrap());
            let pairs = record.pairs.iter().map(|&[chosen, rejected]| {
                let score = |i: usize| record.responses[i].score.unwrap();
                let gap = ((score(chosen) - score(rejected)) * 1e6).round() / 1e6;
                json!({"chosen": chosen, "rejected": rejected, "gap": gap})
            });
            assert_eq!(json!(pairs.collect::<Vec<_>>()), expected["pairs"], "{}", record.id);
        }
    }
}

#[test]
fn pair_and_instruction_lines() {
    let pair = parse(r#"{"prompt":" q ","images":["a","b"],"chosen":"x","rejected":""}"#).unwrap();
    assert_eq!((pair.line, pair.prompt.as_str(), pair.pairs.as_slice()), (7, " q ", &[[0, 1]][..]));
    assert_eq!(pair.images, ["a", "b"]);
    assert_eq!([&pair.responses[0].text, &pair.responses[1].text], ["x", ""]);
    let sft = parse(r#"{"id":3,"prompt":"q","image":null,"response":"r"}"#).unwrap();
    assert_eq!((sft.id.as_str(), sft.images.len(), sft.pairs.len()), ("3", 0, 0));
    assert_eq!((sft.responses.len(), sft.responses[0].score), (1, None));
}

#[test]
fn ratings_may_be_numbers() {
    let text = r#"{"prompt":"q","img_path":null,"completions":[
        {"response":"a","annotations":{"H":{"Rating":4},"V":{"Rating":"1_0"}}},
        {"response":"b","annotations":{"H":{"Rating":7.0}}},
        {"response":"c","annotations":{}}]}"#;
    let record = parse(&text.replace('\n', "")).unwrap();
    let scores: Vec<_> = record.responses.iter().map(|r| r.score).collect();
    assert_eq!(scores, [Some(7.0), Some(7.0), None]);
    assert_eq!((record.pairs.len(), record.ties, record.unrated), (0, 1, 2));
}

#[test]
fn bad_lines_name_line_and_field() {
    let cases = [
        ("{", "line 7: no JSON"),
        ("[1]", "expected a JSON object, got a list"),
        ("{}", "field prompt is missing"),
        (r#"{"prompt":3,"response":""}"#, "field prompt: expected a string, got a number"),
        (r#"{"prompt":"q"}"#, "none is there"),
        (r#"{"prompt":"q","chosen":"x"}"#, "field rejected is missing"),
        (r#"{"prompt":"q","response":["x"]}"#, "field response: expected a string, got a list"),
        (r#"{"prompt":"q","image":"","response":"x"}"#, "field image: expected the path"),
        (r#"{"prompt":"q","images":"x","response":"x"}"#, "field images: expected a list"),
        (r#"{"prompt":"q","images":[3],"response":"x"}"#, "field images: expected the path"),
        (r#"{"prompt":"q","completions":[]}"#, "img_path is missing"),
        (r#"{"prompt":"q","img_path":"a","completions":3}"#, "field completions: expected a list"),
        (
            r#"{"prompt":"q","img_path":"a","completions":[3]}"#,
            "field completions[0]: expected an object",
        ),
        (
            r#"{"prompt":"q","img_path":"a","completions":[{"response":"x"}]}"#,
            "field completions[0].annotations is missing",
        ),
        (
            r#"{"prompt":"q","img_path":"a","completions":[{"response":"x","annotations":{"H":null}}]}"#,
            "field completions[0].annotations.H: expected an object, got null",
        ),
        (
            r#"{"prompt":"q","img_path":"a","completions":[{"response":"x","annotations":{"H":{"Rating":null}}}]}"#,
            "field completions[0].annotations.H.Rating: expected a string or a number, got null",
        ),
        (
            r#"{"prompt":"q","img_path":"a","completions":{"response":["x"],"annotations":[]}}"#,
            "different lengths",
        ),
        (
            r#"{"prompt":"q","img_path":"a","completions":{"response":["x"]}}"#,
            "completions.annotations",
        ),
    ];
    for (text, reason) in cases {
        let error = parse(text).unwrap_err();
        assert!(
            error.starts_with("r.jsonl: line 7: ") && error.contains(reason),
            "{text}: {error}"
        );
    }
    let many = vec![json!({"response": "x", "annotations": {}}); 1025];
    let error = parse(&json!({"prompt": "q", "img_path": "a", "completions": many}).to_string());
    assert!(error.unwrap_err().contains("at most 1024"));
}

#[test]
fn reading_goes_on_behind_a_bad_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.jsonl");
    let good = r#"{"prompt":"q","response":"r"}"#;
    let long = format!("{{\"prompt\":\"{}\"}}", "x".repeat(16 << 20));
    let text = format!("\u{feff}{good}\r\n\n  \n{{broken\n{long}\n{good}");
    let bytes = [text.as_bytes(), b"\n\xff\n", good.as_bytes()].concat();
    std::fs::write(&path, bytes).unwrap();
    let got = records::read(&path).unwrap().map(|record| match record {
        Ok(record) => (record.line, String::new()),
        Err(error) => (0, error.to_string().split(": ").nth(1).unwrap().to_string()),
    });
    let bad = |line: &str| (0, line.to_string());
    let good = |line: u64| (line, String::new());
    let expected = [good(1), bad("line 4"), bad("line 5"), good(6), bad("line 7"), good(8)];
    assert_eq!(got.collect::<Vec<_>>(), expected);
    assert!(records::read(dir.path().join("absent")).is_err());
}

/// The rule, said again: a combination is a pair, a tie or unrated; rows and columns agree.
#[test]
fn every_combination_is_counted_once() {
    let rating = prop_oneof!["[1-5]", Just("N/A".into()), Just("nan".into()), Just(" 3.5 ".into())];
    let input = proptest::collection::vec(proptest::collection::vec(rating, 1..4), 0..7);
    support::runner(500)
        .run(&input, |ratings| {
            let annotations: Vec<Value> = ratings
                .iter()
                .map(|aspects| {
                    let aspects = aspects.iter().enumerate();
                    let aspects = aspects.map(|(i, r)| (i.to_string(), json!({ "Rating": r })));
                    Value::Object(aspects.collect())
                })
                .collect();
            let rows: Vec<Value> = annotations
                .iter()
                .map(|a| json!({"model": "m", "response": "r", "annotations": a}))
                .collect();
            let n = rows.len();
            let record = |completions: Value| {
                let record = json!({"prompt": "q", "img_path": "i", "completions": completions});
                parse(&record.to_string()).unwrap()
            };
            let by_rows = record(json!(rows));
            let by_columns = record(json!({
                "model": vec!["m"; n], "response": vec!["r"; n], "annotations": annotations
            }));
            prop_assert_eq!(&by_rows, &by_columns);
            let all = by_rows.pairs.len() + by_rows.ties + by_rows.unrated;
            prop_assert_eq!(all, n * n.saturating_sub(1) / 2);
            for &[chosen, rejected] in &by_rows.pairs {
                prop_assert!(by_rows.responses[chosen].score > by_rows.responses[rejected].score);
            }
            Ok(())
        })
        .unwrap();
}
