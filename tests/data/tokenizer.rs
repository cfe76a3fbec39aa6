//! The tokenizer against the original's ids, a direct BPE over ranks, and itself.

use std::collections::HashMap;
use std::path::Path;

use proptest::prelude::*;
use serde_json::Value;
use silkie::data::tokenizer::{self, Specials, Tokenizer};
use unicode_normalization::UnicodeNormalization;

use crate::support;

/// The golden tokenizer with the published 256 image slots.
pub fn golden() -> Option<(std::path::PathBuf, Tokenizer)> {
    let dir = support::goldens()?.join("tokenizer");
    let tokenizer = Tokenizer::open(&dir, 256).unwrap();
    Some((dir, tokenizer))
}

/// The objects of a JSONL file.
pub fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A JSON list of token ids.
pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A small trained vocabulary.
pub fn small() -> Tokenizer {
    let json = tokenizer::train(corpus(), 400).unwrap();
    Tokenizer::from_json(&json, 16).unwrap()
}

fn corpus() -> impl Iterator<Item = String> + Send {
    (0..200).map(|i| format!("The red cube number {i} stands left of the naïve blue ball.\n\n"))
}

#[test]
fn ids_are_the_originals() {
    let Some((dir, tokenizer)) = golden() else { return };
    for case in lines(&dir.join("cases.jsonl")) {
        let text = case["text"].as_str().unwrap();
        let got = tokenizer.encode(text);
        let Some(message) = case["message"].as_str() else {
            assert_eq!(got.unwrap(), ids(&case["ids"]), "case {}", case["n"]);
            continue;
        };
        let reason = match (case["error"].as_str().unwrap(), message) {
            ("ValueError", m) if m.starts_with("Unclosed") => "is not closed",
            ("ValueError", m) if m.contains("too long") => "an image name of",
            ("TypeError", _) => "holds the special token",
            other => panic!("case {}: an unknown reason {other:?}", case["n"]),
        };
        let got = got.unwrap_err().to_string();
        assert!(got.contains(reason), "case {}: {got}", case["n"]);
    }
}

#[test]
fn text_is_the_originals() {
    let Some((dir, tokenizer)) = golden() else { return };
    for case in lines(&dir.join("decode_cases.jsonl")) {
        let ids = ids(&case["ids"]);
        let got = tokenizer.decode(&ids, case["skip_special_tokens"] == true);
        match (case["error"].as_str(), got) {
            (None, got) => assert_eq!(got.unwrap(), case["text"].as_str().unwrap()),
            (Some("KeyError"), Err(e)) => {
                assert!(e.to_string().contains("the vocabulary has"), "{e}");
            }
            (Some("ValueError"), Err(e)) => {
                assert!(e.to_string().contains("<img") || e.to_string().contains("image"), "{e}");
            }
            (Some(error), got) => panic!("expected {error}, got {got:?} for {ids:?}"),
        }
    }
}

#[test]
fn special_ids_follow_the_ranks() {
    let Some((dir, tokenizer)) = golden() else { return };
    let file = std::fs::read_to_string(dir.join("special_tokens.json")).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    assert_eq!(tokenizer.vocab_size() as u64, file["n_vocab"].as_u64().unwrap());
    for (text, id) in file["special_tokens"].as_object().unwrap() {
        let id = id.as_u64().unwrap() as u32;
        assert!(tokenizer.is_special(id) && tokenizer.has_special_text(&format!("a{text}b")));
        assert_eq!(tokenizer.token_bytes(id), Some(text.as_bytes()));
        if text != "<img>" {
            assert_eq!(tokenizer.encode(text).unwrap(), [id], "{text}");
        }
        assert_ne!(tokenizer.encode_ordinary(text).unwrap(), [id], "{text} taken literally");
    }
    assert!(!tokenizer.has_special_text("<|im_starT|> < img> <|extra_205|>"));
    let Specials { img_start, img_end, img_pad, .. } = tokenizer.specials();
    assert_eq!([img_end, img_pad], [img_start + 1, img_start + 2]);
}

#[test]
fn both_line_endings_open() {
    let Some((dir, tokenizer)) = golden() else { return };
    let lf = std::fs::read_to_string(dir.join("qwen.tiktoken")).unwrap();
    let lf = lf.replace("\r\n", "\n");
    for file in [lf.replace('\n', "\r\n"), lf] {
        let other = Tokenizer::from_tiktoken(file.as_bytes(), 256).unwrap();
        assert_eq!(other.fingerprint(), tokenizer.fingerprint());
    }
}

/// BPE straight from the ranks, as tiktoken does it: join the adjacent parts whose joint bytes
/// have the lowest rank, until none have one.
fn by_ranks(ranks: &HashMap<&[u8], u32>, word: &[u8]) -> Vec<u32> {
    if let Some(&rank) = ranks.get(word) {
        return vec![rank];
    }
    let mut cuts: Vec<usize> = (0..=word.len()).collect();
    loop {
        let joint = |k: usize| ranks.get(&word[cuts[k]..cuts[k + 2]]).map(|&rank| (rank, k));
        match (0..cuts.len().saturating_sub(2)).filter_map(joint).min() {
            Some((_, k)) => cuts.remove(k + 1),
            None => break,
        };
    }
    cuts.windows(2).map(|part| ranks[&word[part[0]..part[1]]]).collect()
}

#[test]
fn merges_give_what_ranks_give() {
    let Some((_, tokenizer)) = golden() else { return };
    let n_ranks = tokenizer.specials().endoftext;
    let bytes: Vec<&[u8]> = (0..n_ranks).map(|id| tokenizer.token_bytes(id).unwrap()).collect();
    let ranks: HashMap<&[u8], u32> = bytes.iter().copied().zip(0..).collect();
    let letter = prop_oneof!["[a-zA-Z]", "[а-яё]", "[\u{4e00}-\u{9fff}]", "\\p{L}"];
    let word = proptest::collection::vec(letter, 1..24).prop_map(|letters| letters.concat());
    let mut runner = support::runner(2000);
    runner
        .run(&word, |word| {
            let word: String = word.nfc().collect();
            prop_assert_eq!(
                tokenizer.encode(&word).unwrap(),
                by_ranks(&ranks, word.as_bytes()),
                "{}",
                word
            );
            Ok(())
        })
        .unwrap();
}

#[test]
fn names_fill_the_slots() {
    let tokenizer = small();
    let Specials { img_start, img_end, img_pad, .. } = tokenizer.specials();
    let encoded = tokenizer.encode_with_images("a<img>\u{65}\u{301}</img><img></img>").unwrap();
    let mut expected = tokenizer.encode("a").unwrap();
    assert_eq!(encoded.images, [expected.len() as u32 + 1, expected.len() as u32 + 19]);
    expected.extend([img_start, 0xc3, 0xa9]);
    expected.extend([img_pad; 14]);
    expected.extend([img_end, img_start]);
    expected.extend([img_pad; 16]);
    expected.push(img_end);
    assert_eq!(encoded.tokens, expected);
    assert_eq!(tokenizer.decode(&expected, false).unwrap(), "a<img>é</img><img></img>");
    assert!(tokenizer.encode(&format!("<img>{}</img>", "x".repeat(16))).is_ok());
    for text in ["<img>x", "<img><img></img>", "<img>12345678901234567</img>"] {
        assert!(tokenizer.encode(text).is_err(), "{text}");
    }
}

#[test]
fn training_is_deterministic_and_specials_come_last() {
    let json = tokenizer::train(corpus(), 400).unwrap();
    assert_eq!(json, tokenizer::train(corpus(), 400).unwrap());
    let tokenizer = Tokenizer::from_json(&json, 16).unwrap();
    let n = tokenizer.vocab_size() as u32;
    assert!(n > 300 && n <= 400, "{n} tokens");
    let Specials { endoftext, im_start, im_end, img_start, img_end, img_pad } =
        tokenizer.specials();
    let ids = [endoftext, im_start, im_end, img_start, img_end, img_pad];
    assert_eq!(ids, std::array::from_fn(|i| n - 6 + i as u32));
    assert!(tokenizer.encode("The red cube").unwrap().len() <= 4, "common words are learned");
    assert!(tokenizer::train(corpus(), 261).is_err());
}

#[test]
fn the_trained_file_means_the_same_to_its_inventors() {
    let json = tokenizer::train(corpus(), 400).unwrap();
    let (ours, theirs) = (
        Tokenizer::from_json(&json, 16).unwrap(),
        tokenizers::Tokenizer::from_bytes(&json).unwrap(),
    );
    for text in ["The red cube", "naive\u{308} 12 <|im_end|>\n\n  x", "图 🐶 \u{0}"] {
        let expected = theirs.encode_fast(text, false).unwrap();
        assert_eq!(ours.encode(text).unwrap(), expected.get_ids(), "{text:?}");
    }
}

#[test]
fn damaged_files_are_errors() {
    let json = String::from_utf8(tokenizer::train(corpus(), 300).unwrap()).unwrap();
    let damage = [
        ("\"BPE\"", "\"Unigram\"", "no BPE"),
        ("\"NFC\"", "\"NFKC\"", "NFC"),
        ("<imgpad>", "<pad>", "<imgpad>"),
        ("|\\\\p{N}|", "|\\\\p{N}{1,3}|", "pattern"),
        ("\"dropout\": null", "\"dropout\": 0.5", "dropout"),
        ("\"Ċ\":", "\"ĊĊĊĊĊ\":", "byte 0x0a"),
        ("\"!\": 0", "\"!\": 4000000000", "at most"),
        ("\"!\": 0", "\"!\": 1", "same id"),
        ("{", "[", ""),
    ];
    for (from, to, reason) in damage {
        assert!(json.contains(from), "{from}");
        let Err(message) = Tokenizer::from_json(json.replacen(from, to, 1).as_bytes(), 16) else {
            panic!("{from} -> {to} went unnoticed");
        };
        assert!(message.contains(reason), "{from}: {message}");
    }
    for (file, reason) in [
        ("", "byte 0x00"),
        ("IQ== 0\nIg==1\n", "line 2"),
        ("IQ== 0\nI!== 1\n", "line 2"),
        ("IQ== 0\nIg== 0\n", "twice"),
        ("IQ== 0\nIg== 2\nIw==", "line 3"),
        ("IQ== 0\nIg== 99\n", "rank 99"),
        ("IQ== 1\n", "missing"),
        ("IQ== 0\nIQ== 1\n", "same bytes"),
    ] {
        let Err(message) = Tokenizer::from_tiktoken(file.as_bytes(), 16) else {
            panic!("{file:?} went unnoticed");
        };
        assert!(message.contains(reason), "{file:?}: {message}");
    }
    let empty = tempfile::tempdir().unwrap();
    let error = Tokenizer::open(empty.path(), 16).err().unwrap().to_string();
    assert!(error.contains("no qwen.tiktoken and no tokenizer.json"), "{error}");
}

fn round_trip(tokenizer: &Tokenizer) {
    let text = prop_oneof!["\\PC{0,40}", "(?s).{0,40}", "[ \t\r\n'sa1é]{0,40}"];
    support::runner(1000)
        .run(&text, |text| {
            let ids = tokenizer.encode_ordinary(&text).unwrap();
            prop_assert!(ids.iter().all(|&id| !tokenizer.is_special(id)));
            prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text.nfc().collect::<String>());
            if !tokenizer.has_special_text(&text) {
                prop_assert_eq!(tokenizer.encode(&text).unwrap(), ids);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn json_text_comes_back() {
    round_trip(&small());
}

#[test]
fn tiktoken_text_comes_back() {
    let Some((_, tokenizer)) = golden() else { return };
    round_trip(&tokenizer);
}
