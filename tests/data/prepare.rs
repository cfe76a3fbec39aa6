//! Preparing: what goes in comes out, whatever the threads, interruptions and damage.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageFormat, RgbImage};
use serde_json::{Value, json};
use silkie::data::atomic;
use silkie::data::lock::Lock;
use silkie::data::pictures::Pictures;
use silkie::data::prepare::{self, Job, Lengths, Options, Reason, Summary};
use silkie::data::shard::{Dataset, ImageRef, Pair, flags};
use silkie::data::template::{Limits, Truncation};
use silkie::data::tokenizer::Tokenizer;
use silkie::error::{Error, Result};
use tempfile::TempDir;

use super::tokenizer;
use crate::support;

const SIDE: usize = 14;

/// A folder with `records.jsonl`, pictures and room for shards.
struct Site {
    dir: TempDir,
    out: PathBuf,
    tokenizer: Tokenizer,
    options: Options,
}

impl Site {
    fn new(lines: &[Value]) -> Self {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        Self::of_text(&text)
    }

    fn of_text(text: &str) -> Self {
        let dir = TempDir::new().expect("a folder");
        fs::write(dir.path().join("records.jsonl"), text).expect("written");
        fs::create_dir(dir.path().join("pictures")).expect("created");
        for i in 0..6u8 {
            let picture = RgbImage::from_fn(9 + u32::from(i), 20, |x, y| {
                image::Rgb([i * 40, (x * 20) as u8, (y * 10) as u8])
            });
            let mut png = Cursor::new(Vec::new());
            DynamicImage::from(picture).write_to(&mut png, ImageFormat::Png).expect("encoded");
            fs::write(dir.path().join(format!("pictures/{i}.png")), png.into_inner())
                .expect("written");
        }
        let copy = dir.path().join("pictures/0-again.png");
        fs::copy(dir.path().join("pictures/0.png"), copy).expect("copied");
        fs::write(dir.path().join("pictures/broken.png"), "no picture").expect("written");
        let out = dir.path().join("shards");
        Site { dir, out, tokenizer: tokenizer::small(), options: Options::DEFAULT }
    }

    fn run_with(
        &self,
        change: impl FnOnce(&mut Job<'_>),
        stop: &dyn Fn() -> bool,
    ) -> Result<Summary> {
        let pictures = Pictures::open(self.dir.path().join("pictures")).expect("pictures");
        let records = [self.dir.path().join("records.jsonl")];
        let mut job = Job {
            records: &records,
            pictures: Some(&pictures),
            tokenizer: &self.tokenizer,
            model: self.dir.path(),
            image_size: SIDE,
            vocab_size: 1000,
            out: &self.out,
            options: self.options,
            strict: false,
            force: false,
        };
        change(&mut job);
        prepare::run(&job, stop, |_| ())
    }

    fn run(&self) -> Result<Summary> {
        self.run_with(|_| (), &|| false)
    }

    fn data(&self) -> Dataset {
        let data = Dataset::open(&self.out).expect("opens");
        data.verify(|_| ()).expect("intact");
        data
    }

    fn rejects(&self) -> Vec<Value> {
        tokenizer::lines(&self.out.join("rejects.jsonl"))
    }

    /// Everything the run left that its input decides.
    fn bytes(&self) -> Vec<(String, Vec<u8>)> {
        let entries = fs::read_dir(&self.out).expect("a folder");
        let mut files: Vec<_> = entries
            .map(|entry| entry.expect("an entry").path())
            .map(|path| (path.file_name().expect("a name").to_string_lossy().into_owned(), path))
            .filter(|(name, _)| name.ends_with(".shard") || name == "rejects.jsonl")
            .map(|(name, path)| (name, fs::read(path).expect("read")))
            .collect();
        files.sort();
        files
    }
}

fn rated(picture: Option<&str>, prompt: &str, answers: &[(&str, &str)]) -> Value {
    let completion = |(text, rating): &(&str, &str)| {
        json!({ "model": format!("m{rating}"), "response": text,
                "annotations": { "Helpfulness": { "Rating": rating } } })
    };
    let completions: Vec<Value> = answers.iter().map(completion).collect();
    json!({ "id": prompt, "prompt": prompt, "img_path": picture, "completions": completions })
}

/// Records of every kind of trouble among many good ones.
fn mixed(n: usize) -> Vec<Value> {
    let record = |i: usize| {
        let picture = format!("{}.png", i % 6);
        let answer = format!("a red cube number {i}");
        match i % 11 {
            7 => rated(Some("none.png"), "lost", &[("a", "1"), ("b", "2")]),
            8 => rated(Some("broken.png"), "broken", &[("a", "1"), ("b", "2")]),
            9 => rated(Some(&picture), "tied", &[("a", "3"), ("b", "3")]),
            10 => rated(None, &format!("text {i}"), &[(&answer, "5"), ("", "2"), ("b", "1")]),
            _ => {
                rated(Some(&picture), &format!("question {i}"), &[(&answer, "4"), ("blue", "2.5")])
            }
        }
    };
    (0..n).map(record).collect()
}

#[test]
fn a_record_goes_in_and_comes_out() {
    let answers = [("red", "4"), ("blue", "2"), ("red", "5"), ("green", "N/A")];
    let site = Site::new(&[
        rated(Some("data/0.png"), " What colour? ", &answers),
        rated(Some("0-again.png"), "And now?", &[("a", "1"), ("b", "2")]),
        rated(None, "No picture", &[("a", "2"), ("b", "1")]),
    ]);
    let summary = site.run().expect("prepared");
    let counts = (summary.records, summary.images, summary.distinct_images, summary.responses);
    assert_eq!(counts, (3, 2, 1, 8));
    // (0,1), (0,2), (1,2) differ, three pairs have an unrated response, no ties.
    assert_eq!((summary.branches, summary.pairs, summary.ties, summary.unrated), (7, 5, 0, 3));
    let data = site.data();
    let record = data.record(0);
    assert_eq!((record.line, record.file, record.id), (1, "records.jsonl", " What colour? "));
    let slots = site.tokenizer.n_image_slots();
    let offset = record.images[0].offset as usize;
    let pad = site.tokenizer.specials().img_pad;
    assert_eq!(record.trunk[offset..offset + slots], vec![pad; slots]);
    assert_eq!(record.trunk[offset - 1], site.tokenizer.specials().img_start);
    assert_eq!(record.trunk[offset + slots], site.tokenizer.specials().img_end);
    // The two "red" are one branch with the mean of their scores; their pair is (0, 0).
    assert_eq!(record.branches.len(), 3);
    assert_eq!((record.branches[0].score, record.branches[0].model), (4.5, "m4"));
    assert!(record.branches[2].score.is_nan());
    let pair = |chosen, rejected| Pair { chosen, rejected };
    assert_eq!(record.pairs, [pair(0, 1), pair(0, 0), pair(0, 1)]);
    // Equal files are one image, however they are called.
    assert_eq!(data.record(1).images[0].image, ImageRef(0));
    assert_eq!(data.images(), 1);
    let file = fs::read(site.dir.path().join("pictures/0.png")).expect("read");
    let rgb = silkie::data::image::decode(&file, 1000).expect("decodes");
    assert_eq!(data.image(ImageRef(0)), silkie::data::image::resize_bicubic(&rgb, SIDE));
    assert!(data.record(2).images.is_empty());
}

#[test]
fn pairs_and_instructions_come_out() {
    let line = json!({"prompt": "p", "images": ["0.png", "1.png"], "chosen": "a", "rejected": "b"});
    let site = Site::new(&[line, json!({"prompt": "q", "response": "r"})]);
    let summary = site.run().expect("prepared");
    assert_eq!((summary.records, summary.pairs, summary.images), (1, 1, 2));
    let data = site.data();
    assert_eq!(data.record(0).pairs, [Pair { chosen: 0, rejected: 1 }]);
    assert!(data.record(0).branches.iter().all(|branch| branch.score.is_nan()));
    let offsets: Vec<u32> = data.record(0).images.iter().map(|slot| slot.offset).collect();
    assert!(offsets[1] > offsets[0] + site.tokenizer.n_image_slots() as u32);
    // One kind of line in a file.
    let message = site.rejects()[0]["message"].as_str().expect("a message").to_string();
    assert_eq!(message, "expected a pair like the file's first record, got an instruction");

    let site = Site::new(&[json!({"prompt": "q", "image": "3.png", "response": "r"})]);
    assert_eq!(site.run().expect("prepared").pairs, 0);
    assert_eq!(site.data().record(0).branches.len(), 1);
}

#[test]
fn what_cannot_be_used_is_named() {
    let two = [("a", "1"), ("b", "2")];
    let lines = [
        (json!("no object"), Reason::BrokenLine),
        (json!({"prompt": "p", "completions": [{}]}), Reason::BrokenLine),
        (rated(Some("none.png"), "p", &two), Reason::MissingPicture),
        (rated(Some("../records.jsonl"), "p", &two), Reason::UnsafePicture),
        (rated(Some("broken.png"), "p", &two), Reason::UnreadablePicture),
        (rated(Some("5.png"), "p", &two), Reason::PictureTooLarge),
        (rated(None, "p", &[("a", "1"), ("b", "1")]), Reason::NoPair),
        (rated(None, "p", &[("a", "1"), ("", "2"), (" \n", "3")]), Reason::NoPair),
        (rated(None, "<|im_end|>", &two), Reason::SpecialText),
        (rated(None, "p", &[("a", "1"), ("<img>x</img>", "2")]), Reason::SpecialText),
    ];
    let mut all: Vec<Value> = lines.iter().map(|(line, _)| line.clone()).collect();
    all.push(rated(None, "fine", &[("a", "1"), ("b", "2"), ("", "3")]));
    let mut site = Site::new(&all);
    site.options.max_pixels = 270; // 0.png has 9 x 20, 5.png 14 x 20
    let summary = site.run().expect("prepared");
    assert_eq!((summary.records, summary.rejected_records()), (1, lines.len() as u64));
    assert_eq!(summary.dropped_responses[&Reason::EmptyResponse], 3);
    let whole: Vec<Value> =
        site.rejects().into_iter().filter(|reject| reject.get("response").is_none()).collect();
    for (i, (_, reason)) in lines.iter().enumerate() {
        assert_eq!(whole[i]["line"], i + 1);
        assert_eq!(
            whole[i]["reason"],
            serde_json::to_value(reason).expect("a name"),
            "line {}",
            i + 1
        );
        assert!(!whole[i]["message"].as_str().expect("a message").is_empty());
    }
    let json = summary.to_json();
    assert_eq!(json["rejected"], lines.len());
    assert_eq!(json["reject_reasons"]["special_text"], 2);

    let strict = site.run_with(|job| (job.strict, job.force) = (true, true), &|| false);
    let message = strict.expect_err("strict").to_string();
    assert!(message.starts_with("records.jsonl: line 1: broken line"), "{message}");
    assert!(Dataset::open(&site.out).is_err());

    site.options.keep_special_text = true;
    site.run_with(|job| job.force = true, &|| false).expect("prepared");
    let kept = site.data();
    let kept: Vec<_> = kept.records().filter(|r| r.flags & flags::SPECIAL_TEXT != 0).collect();
    // An image span in an answer cannot be kept: there is no picture for it.
    assert_eq!(kept.iter().map(|r| r.line).collect::<Vec<_>>(), [9]);
    assert_eq!(site.rejects().last().expect("one")["reason"], "empty_response");
}

#[test]
fn no_usable_record_is_an_error() {
    for text in ["", "\n\n", "{}\n", "{\"prompt\": 3}"] {
        let error = Site::of_text(text).run().expect_err("nothing to train on").to_string();
        assert!(error.contains("can be used; rejects.jsonl"), "{error}");
    }
}

#[test]
fn long_records_are_cut_as_asked() {
    let long = "red ".repeat(60);
    let lines = [
        rated(Some("0.png"), &long, &[("a", "1"), ("b", "2")]),
        rated(Some("1.png"), "short", &[("a", "1"), (&long, "2")]),
        rated(Some("2.png"), "short", &[("a", "1"), ("b", "2")]),
    ];
    let with = |truncation, max_length, max_prompt_length| {
        let mut site = Site::new(&lines);
        site.options.limits = Limits { max_length, max_prompt_length, truncation };
        let summary = site.run().expect("prepared");
        (site, summary)
    };
    let short = {
        let (site, summary) = with(Truncation::KeepImage, 4000, 1000);
        assert_eq!((summary.truncated_prompts, summary.truncated_responses), (0, 0));
        site.data().record(2).trunk.len()
    };
    let max = short + 40;
    let (site, summary) = with(Truncation::KeepImage, max, short + 4);
    assert_eq!((summary.records, summary.truncated_prompts), (3, 1));
    assert!(summary.truncated_responses >= 1);
    let data = site.data();
    assert_eq!(data.record(0).flags, flags::PROMPT_CUT);
    assert_eq!(data.record(1).flags, flags::RESPONSE_CUT);
    assert_eq!(data.record(2).flags, 0);
    for record in data.records() {
        assert_eq!(record.images.len(), 1);
        let longest = record.branches.iter().map(|b| b.tokens.len()).max().expect("branches");
        assert!(record.trunk.len() + longest <= max);
    }
    let (site, summary) = with(Truncation::Drop, max, short + 4);
    assert_eq!((summary.records, summary.rejected[&Reason::TooLong]), (1, 2));
    assert_eq!(site.data().record(0).line, 3);

    let (site, summary) = with(Truncation::Published, max, 20);
    assert_eq!(summary.lost_images, 2);
    let data = site.data();
    assert_eq!(data.record(0).flags, flags::PROMPT_CUT | flags::IMAGE_LOST);
    assert_eq!((data.record(0).images.len(), data.record(0).trunk.len()), (0, 20));
    // The pictures of the first two are not shown, so they are not stored either.
    assert_eq!((data.images(), data.record(2).images[0].image), (1, ImageRef(0)));
}

#[test]
fn the_same_bytes_with_any_number_of_threads() {
    let lines = mixed(300);
    let prepared = |threads: usize| {
        let mut site = Site::new(&lines);
        site.options.shard_records = 37;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        let summary = pool.install(|| site.run()).expect("prepared");
        (site.bytes(), Summary { seconds: 0.0, ..summary })
    };
    let one = prepared(1);
    assert!(one.0.len() > 5, "several shards");
    for threads in [2, 3] {
        let more = prepared(threads);
        assert!(one == more, "{threads} threads");
    }
}

#[test]
fn an_interrupted_run_goes_on() {
    let lines = mixed(700);
    let site_of = || {
        let mut site = Site::new(&lines);
        site.options.shard_records = 50;
        site
    };
    let straight = site_of();
    let expected = straight.run().expect("prepared");

    let site = site_of();
    for asked in [3, 2, 1] {
        let count = std::cell::Cell::new(0);
        let stop = || count.replace(count.get() + 1) >= asked;
        let error = site.run_with(|_| (), &stop).expect_err("stopped");
        assert!(matches!(error, Error::Interrupted(_)) && error.exit_code() == 130, "{error}");
        let names: Vec<String> = site.bytes().into_iter().map(|(name, _)| name).collect();
        assert!(!names.iter().any(|name| name.contains("partial")), "{names:?}");
        let unfinished = Dataset::open(&site.out).err().expect("refused").to_string();
        assert!(unfinished.contains("is unfinished") || unfinished.contains("no dataset.json"));
    }
    // A crash leaves a temporary file, a shard that the manifest does not know, and extra rejects.
    fs::write(site.out.join(".00009.shard.1-1.partial"), "half").expect("written");
    fs::write(site.out.join("00013.shard"), "unknown").expect("written");
    let rejects = site.out.join("rejects.jsonl");
    let more = fs::read_to_string(&rejects).expect("read") + "{\"line\": 1}\n";
    fs::write(&rejects, more).expect("written");

    let summary = site.run().expect("goes on");
    assert!(summary.resumed_records > 0 && summary.resumed_records % 50 == 0);
    assert!(!site.out.join(".00009.shard.1-1.partial").exists());
    let known = |site: &Site| -> Vec<_> {
        let shards = site.data().shards().len();
        let named = |name: &str| name[..5].parse::<usize>().is_ok_and(|n| n >= shards);
        site.bytes().into_iter().filter(|(name, _)| !named(name)).collect()
    };
    assert!(known(&site) == known(&straight), "the same bytes as in one go");
    let plain = |s: &Summary| Summary { seconds: 0.0, resumed_records: 0, ..s.clone() };
    assert_eq!(plain(&summary), plain(&expected));

    // Done: nothing is written again.
    let before = fs::metadata(site.out.join("00000.shard")).expect("there").modified().ok();
    let again = site.run().expect("skips");
    assert_eq!(again.resumed_records, again.records);
    let after = fs::metadata(site.out.join("00000.shard")).expect("there").modified().ok();
    assert_eq!(before, after);
}

#[test]
fn other_settings_and_other_records_are_refused() {
    let site = Site::new(&mixed(20));
    site.run().expect("prepared");
    let refused = |change: &dyn Fn(&mut Job<'_>), expected: &str| {
        let error = site.run_with(|job| change(job), &|| false).expect_err("refused").to_string();
        assert!(error.contains(expected) && error.contains("--force"), "{error}");
    };
    refused(&|job| job.options.max_pixels = 5, "max_pixels was 100000000, is 5");
    refused(&|job| job.options.limits.max_length = 99_999, "the truncation");
    refused(&|job| job.image_size = 28, "the model, its tokenizer");
    refused(&|job| job.pictures = None, "images was");
    // Where the model lies is not part of the content.
    site.run_with(|job| job.model = Path::new("elsewhere"), &|| false).expect("skips");
    let records = site.dir.path().join("records.jsonl");
    let text = fs::read_to_string(&records).expect("read") + "\n";
    fs::write(&records, text).expect("written");
    refused(&|_| (), "records was");
    let summary = site.run_with(|job| job.force = true, &|| false).expect("starts over");
    assert_eq!(summary.resumed_records, 0);

    let error = site.run_with(|job| job.vocab_size = 300, &|| false).expect_err("ids beyond");
    assert!(error.to_string().contains("the model's vocab_size is 300"), "{error}");
}

#[test]
fn one_run_in_a_folder() {
    let mut site = Site::new(&mixed(20));
    let lock = Lock::acquire(&site.out).expect("locked");
    let error = site.run().expect_err("busy").to_string();
    assert!(error.contains("another run is writing to this folder"), "{error}");
    drop(lock);
    site.run().expect("prepared");
    site.out = site.dir.path().join("a file");
    atomic::write_bytes(&site.out, b"").expect("written");
    let error = site.run().expect_err("no folder").to_string();
    assert!(error.contains("a file: cannot"), "{error}");
}

#[test]
fn images_of_several_records_survive_the_loss_of_one() {
    // The first record shows a good picture and a broken one; others need the good one.
    let pair =
        |images: &[&str]| json!({"prompt": "p", "images": images, "chosen": "a", "rejected": "b"});
    let lines = [
        pair(&["0.png", "broken.png"]),
        pair(&["1.png", "none.png"]),
        pair(&["0.png"]),
        pair(&["1.png", "0-again.png", "1.png"]),
    ];
    let site = Site::new(&lines);
    let summary = site.run().expect("prepared");
    assert_eq!((summary.records, summary.distinct_images, summary.images), (2, 2, 4));
    // The same when the batch of the rejected ones is long gone.
    let mut far = lines[..2].to_vec();
    far.extend((0..300).map(|_| json!({"prompt": "p", "chosen": "a", "rejected": "b"})));
    far.extend(lines[2..].to_vec());
    let summary = Site::new(&far).run().expect("prepared");
    assert_eq!((summary.records, summary.distinct_images, summary.images), (302, 2, 4));
}

#[test]
fn the_pairs_of_real_preferences_are_exact() {
    let (Some(shared), Some((_, tokenizer))) = (support::shared(), tokenizer::golden()) else {
        return;
    };
    let folder = shared.join("data/real-preferences");
    let pictures = Pictures::open(&folder).expect("pictures");
    for name in ["preferences", "with-unrated"] {
        let records = [folder.join(format!("{name}.jsonl"))];
        let out = TempDir::new().expect("a folder");
        let job = Job {
            records: &records,
            pictures: Some(&pictures),
            tokenizer: &tokenizer,
            model: &folder,
            image_size: SIDE,
            vocab_size: 151_936,
            out: out.path(),
            options: Options::DEFAULT,
            strict: false,
            force: false,
        };
        let summary = prepare::run(&job, &|| false, |_| ()).expect("prepared");
        let expected = fs::read(folder.join(format!("{name}.pairs.json"))).expect("read");
        let expected: Value = serde_json::from_slice(&expected).expect("JSON");
        assert_eq!(expected["pairs"], summary.pairs, "{name}");
        assert_eq!(expected["ties"], summary.ties, "{name}");
        assert_eq!(expected["pairs_skipped_for_a_non_numeric_rating"], summary.unrated, "{name}");
        let by_record = expected["by_record"].as_array().expect("a list");
        let expected: Vec<(&Value, &Value)> = by_record
            .iter()
            .flat_map(|r| r["pairs"].as_array().expect("pairs").iter().map(|pair| (&r["id"], pair)))
            .collect();
        let lines = tokenizer::lines(&records[0]);
        let data = Dataset::open(out.path()).expect("opens");
        let mut next = expected.iter();
        for record in data.records() {
            let source = &lines[record.line as usize - 1];
            for pair in record.pairs {
                let (id, expected) = next.next().expect("a pair");
                assert_eq!(*id, record.id);
                for (side, branch) in [("chosen", pair.chosen), ("rejected", pair.rejected)] {
                    let position = expected[side].as_u64().expect("a position") as usize;
                    let text = source["completions"][position]["response"].as_str().expect("text");
                    let template =
                        format!("<|im_start|>assistant\n{text}<|im_end|>\n<|endoftext|>");
                    let tokens = tokenizer.encode(&template).expect("encodes");
                    assert_eq!(record.branches[branch as usize].tokens, tokens, "{}", record.id);
                }
            }
        }
        assert!(next.next().is_none());
    }
}

#[test]
fn lengths_are_counted_exactly() {
    let mut lengths = Lengths::default();
    assert_eq!(lengths.spread(), prepare::Spread::default());
    (1..=100).for_each(|n| lengths.add(n));
    let s = lengths.spread();
    assert_eq!((s.mean, s.median, s.p99, s.max), (50.5, 50, 99, 100));
    assert_eq!((lengths.count(), lengths.sum()), (100, 5050));
}
