//! Chat template, labels and truncation against the original's samples.

use proptest::prelude::*;
use serde_json::Value;
use silkie::data::template::{self, Branch, Cuts, Limits, Scored, Truncation};
use silkie::data::tokenizer::{Encoded, Tokenizer};

use super::tokenizer::{golden, ids, lines, small};
use crate::support;

/// The two paths of a golden sample as the original collates it, and what was cut.
fn sample(tokenizer: &Tokenizer, case: &Value) -> (Encoded, Vec<Branch>, Cuts) {
    let text = |key: &str| case[key].as_str().unwrap();
    let prompt = template::prompt_text(&[text("img_path")], text("raw_prompt"));
    assert_eq!(prompt, text("prompt"));
    let mut trunk = template::trunk(tokenizer, &prompt).unwrap();
    let mut branches = ["chosen", "rejected"]
        .map(|key| template::branch(tokenizer, text(key), Scored::Template).unwrap());
    let limits = Limits {
        max_length: case["max_length"].as_u64().unwrap() as usize,
        max_prompt_length: 1024,
        truncation: Truncation::Published,
    };
    let cuts = template::fit(tokenizer, &mut trunk, &mut branches, limits).unwrap();
    (trunk, branches.to_vec(), cuts)
}

fn labels(trunk: &Encoded, branch: &Branch) -> Vec<i64> {
    let scored = branch.tokens.iter().zip(&branch.scored);
    let labels = scored.map(|(&id, &scored)| if scored { i64::from(id) } else { -100 });
    trunk.tokens.iter().map(|_| -100).chain(labels).collect()
}

fn integers(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|x| x.as_i64().unwrap()).collect()
}

#[test]
fn samples_are_the_originals() {
    let Some((dir, tokenizer)) = golden() else { return };
    for case in lines(&dir.join("chat_template.jsonl")) {
        let n = &case["n"];
        let (trunk, branches, cuts) = sample(&tokenizer, &case);
        assert_eq!(trunk.tokens, ids(&case["prompt_input_ids"]), "sample {n}");
        let image_kept = trunk.tokens.contains(&tokenizer.specials().img_start);
        assert_eq!(cuts.images_gone == 0, image_kept, "sample {n}");
        assert_eq!(trunk.images.len(), usize::from(image_kept), "sample {n}");
        for (branch, key) in branches.iter().zip(["chosen", "rejected"]) {
            let path: Vec<u32> = [&trunk.tokens[..], &branch.tokens].concat();
            assert_eq!(path, ids(&case[format!("{key}_input_ids")]), "sample {n}, {key}");
            let expected = integers(&case[format!("{key}_labels")]);
            assert_eq!(labels(&trunk, branch), expected, "sample {n}, {key}");
            let mask = template::attended(&tokenizer, &trunk.tokens, branch);
            let mask: Vec<i64> = mask.into_iter().map(i64::from).collect();
            let expected = integers(&case[format!("{key}_attention_mask")]);
            assert_eq!(mask, expected, "sample {n}, {key}");
        }
    }
}

/// The original pads a batch on the right: ids with endoftext, labels with -100, and the mask with
/// the pad id, which its model takes for 0.
#[test]
fn a_batch_is_its_padded_samples() {
    let Some((dir, tokenizer)) = golden() else { return };
    let cases = lines(&dir.join("chat_template.jsonl"));
    let file = std::fs::read_to_string(dir.join("collated_batch.json")).unwrap();
    let batch: Value = serde_json::from_str(&file).unwrap();
    let pad = i64::from(tokenizer.specials().endoftext);
    for (row, n) in ids(&batch["samples"]).into_iter().enumerate() {
        let case = cases.iter().find(|case| case["n"] == n).unwrap();
        let (trunk, branches, _) = sample(&tokenizer, case);
        for (branch, key) in branches.iter().zip(["chosen", "rejected"]) {
            let padded = |mut values: Vec<i64>, with: i64, name: &str| {
                let expected = integers(&batch[format!("{key}_{name}")][row]);
                values.resize(expected.len(), with);
                assert_eq!(values, expected, "sample {n}, {key}_{name}");
            };
            let path = trunk.tokens.iter().chain(&branch.tokens).map(|&id| id.into());
            padded(path.collect(), pad, "input_ids");
            padded(labels(&trunk, branch), -100, "labels");
            let mask = template::attended(&tokenizer, &trunk.tokens, branch);
            padded(mask.into_iter().map(i64::from).collect(), pad, "attention_mask");
        }
    }
}

#[test]
fn generation_prompts_are_the_originals() {
    let Some((dir, tokenizer)) = golden() else { return };
    for case in lines(&dir.join("generation_prompt.jsonl")) {
        let text = |value: &Value| value.as_str().unwrap().to_string();
        let turns = case["history"].as_array().into_iter().flatten();
        let history: Vec<_> = turns.map(|turn| (text(&turn[0]), text(&turn[1]))).collect();
        let query = text(&case["query"]);
        let got = template::generation_prompt(&tokenizer, &history, &query).unwrap();
        assert_eq!(got.tokens, ids(&case["ids"]), "{query}");
    }
}

#[test]
fn pictures_without_names_take_the_same_places() {
    let tokenizer = small();
    let named = template::trunk(&tokenizer, &template::prompt_text(&["a", "b/c"], " Why? \n"));
    let (named, blank) =
        (named.unwrap(), template::trunk_of_pictures(&tokenizer, 2, " Why? \n").unwrap());
    assert_eq!(named.images, blank.images);
    assert_eq!(blank.images.len(), 2);
    let pad = tokenizer.specials().img_pad;
    for (i, (a, b)) in named.tokens.iter().zip(&blank.tokens).enumerate() {
        let slot = blank.images.iter().any(|&at| (at as usize..at as usize + 16).contains(&i));
        assert!(if slot { *b == pad } else { a == b }, "token {i}");
    }
    assert!(template::trunk_of_pictures(&tokenizer, 1, "<img>x</img>").is_err());
    assert!(template::branch(&tokenizer, "see <img>x</img>", Scored::Template).is_err());
}

#[test]
fn scoring_the_answer_alone() {
    let tokenizer = small();
    let of = |scored| template::branch(&tokenizer, "red", scored).unwrap();
    let (template, answer) = (of(Scored::Template), of(Scored::Answer));
    assert_eq!(template.tokens, answer.tokens);
    let n = answer.tokens.len();
    let header = 1 + tokenizer.encode("assistant").unwrap().len() + 1;
    for i in 0..n {
        assert_eq!(template.scored[i], i == 0 || i >= header, "token {i} of {n}");
        assert_eq!(answer.scored[i], (header..n - 2).contains(&i), "token {i} of {n}");
    }
}

fn record(
    tokenizer: &Tokenizer,
    images: usize,
    question: usize,
    answers: &[usize],
) -> (Encoded, Vec<Branch>) {
    let branch =
        |&n: &usize| template::branch(tokenizer, &"5".repeat(n), Scored::Template).unwrap();
    let trunk = template::trunk_of_pictures(tokenizer, images, &"7".repeat(question)).unwrap();
    (trunk, answers.iter().map(branch).collect())
}

#[test]
fn keep_image_cuts_the_question_then_the_answers() {
    let tokenizer = small();
    let (full, whole) = record(&tokenizer, 1, 100, &[10, 90]);
    let longest = whole[1].tokens.len();
    let (mut trunk, mut branches) = (full.clone(), whole.clone());
    let mut limits = Limits {
        max_length: full.tokens.len() + longest - 30,
        max_prompt_length: full.tokens.len() - 20,
        truncation: Truncation::KeepImage,
    };
    let cuts = template::fit(&tokenizer, &mut trunk, &mut branches, limits).unwrap();
    assert_eq!(cuts, Cuts { prompt_tokens: 20, trimmed_responses: 1, images_gone: 0 });
    assert_eq!(trunk.images, full.images);
    let (at, n) = (full.images[0] as usize + 17, full.tokens.len());
    assert_eq!(trunk.tokens, [&full.tokens[..at], &full.tokens[at + 20..n]].concat());
    assert_eq!((&branches[0], branches[1].tokens.len()), (&whole[0], longest - 10));
    assert!(branches[1].trimmed);

    // A prompt is not cut below what the answers leave it.
    limits.max_prompt_length = 1;
    let (mut trunk, mut branches) = (full.clone(), whole.clone());
    let cuts = template::fit(&tokenizer, &mut trunk, &mut branches, limits).unwrap();
    assert_eq!(cuts, Cuts { prompt_tokens: 30, ..Cuts::default() });

    limits.truncation = Truncation::Drop;
    let (mut trunk, mut branches) = (full.clone(), whole.clone());
    let error = template::fit(&tokenizer, &mut trunk, &mut branches, limits).unwrap_err();
    assert!(error.to_string().contains("at most"), "{error}");
    assert_eq!((trunk, branches), (full, whole));
}

#[test]
fn whatever_the_lengths_a_record_fits_or_is_refused() {
    let tokenizer = small();
    let rule = prop_oneof![Just(Truncation::KeepImage), Just(Truncation::Published)];
    let answers = proptest::collection::vec(0usize..120, 0..4);
    let input = (0usize..3, 0usize..150, answers, 2usize..260, 0usize..260, rule);
    support::runner(2000)
        .run(&input, |(images, question, answers, max_length, max_prompt_length, truncation)| {
            let (full, whole) = record(&tokenizer, images, question, &answers);
            let (mut trunk, mut branches) = (full.clone(), whole.clone());
            let limits = Limits { max_length, max_prompt_length, truncation };
            let Ok(cuts) = template::fit(&tokenizer, &mut trunk, &mut branches, limits) else {
                return Ok(());
            };
            let longest = branches.iter().map(|b| b.tokens.len()).max().unwrap_or(0);
            prop_assert!(trunk.tokens.len() + longest <= max_length);
            prop_assert_eq!(trunk.tokens.len() + cuts.prompt_tokens, full.tokens.len());
            prop_assert_eq!(trunk.images.len() + cuts.images_gone, images);
            prop_assert_eq!(cuts.trimmed_responses, branches.iter().filter(|b| b.trimmed).count());
            if truncation == Truncation::KeepImage {
                prop_assert_eq!(cuts.images_gone, 0);
            }
            for &at in &trunk.images {
                let at = at as usize;
                let special = tokenizer.specials();
                prop_assert_eq!(trunk.tokens[at - 1], special.img_start);
                prop_assert!(trunk.tokens[at..at + 16].iter().all(|&id| id == special.img_pad));
                prop_assert_eq!(trunk.tokens[at + 16], special.img_end);
            }
            for (cut, whole) in branches.iter().zip(&whole) {
                prop_assert!(whole.tokens.starts_with(&cut.tokens));
                prop_assert!(cut.scored.contains(&true));
            }
            Ok(())
        })
        .unwrap();
}
