//! The commands as a user starts them, one after the other, and on folders they cannot fill.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use silkie::demo::files::{Sizes, World};
use tempfile::TempDir;

/// A world of pictures and records, and room for what the commands make of it.
struct Site {
    dir: TempDir,
}

impl Site {
    fn new() -> Site {
        let site = Site { dir: tempfile::tempdir().unwrap() };
        let sizes = Sizes { pictures: 12, questions: 1, held_out: 4 };
        World::make(2, &sizes).write(&site.path("world")).unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts `silkie` with these words; those that name a file of the site come as its path.
    fn start(&self, words: &str) -> Output {
        self.run(Command::new(env!("CARGO_BIN_EXE_silkie")).args(self.arguments(words)))
    }

    /// The same where no file may grow beyond `blocks` of 512 bytes, as if the disk were full.
    fn start_on_full_disk(&self, blocks: u32, words: &str) -> Output {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_silkie")]);
        self.run(command.args(self.arguments(words)))
    }

    fn run(&self, command: &mut Command) -> Output {
        command.env("RAYON_NUM_THREADS", "2").output().unwrap()
    }

    fn arguments(&self, words: &str) -> Vec<std::ffi::OsString> {
        let word = |word: &str| match word.strip_prefix('@') {
            Some(name) => self.path(name).into(),
            None => OsStr::new(word).into(),
        };
        words.split_whitespace().map(word).collect()
    }

    /// Starts a command that must succeed; the object of its last line.
    fn json(&self, words: &str) -> Value {
        let output = self.start(&format!("{words} --json"));
        assert!(output.status.success(), "{words}: {}", stderr(&output));
        serde_json::from_str(stdout(&output).lines().last().unwrap()).unwrap()
    }

    /// Files and folders that were begun and never finished.
    fn partial(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.dir.path().to_path_buf()];
        let mut partial = vec![];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|extension| extension == "partial") {
                    partial.push(path.clone());
                }
                if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        partial
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const INIT: &str = "init --preset tiny --text @world/preferences.jsonl --out @model";
const PREPARE: &str = "prepare --records @world/preferences.jsonl --images @world/pictures.zip \
                       --model @model --out @shards";
const TRAIN: &str = "train --model @model --data @shards --out @run --steps 2 --batch-pairs 12 \
                     --save-every 1 --held-out 0.2";

#[test]
fn every_command_does_its_part_of_the_job() {
    let site = Site::new();
    let created = site.json(INIT);
    assert!(created["parameters"].as_u64().unwrap() > 100_000, "{created}");

    let prepared = site.json(PREPARE);
    for (key, count) in [("read", 12), ("records", 12), ("images", 12), ("responses", 48)] {
        assert_eq!(prepared[key], count, "{key} of {prepared}");
    }
    assert_eq!(
        (&prepared["rejected"], &prepared["reject_reasons"]),
        (&0.into(), &Value::Object(Default::default()))
    );

    let inspected = site.json("inspect @shards --verify --record 3 --image 2 --out @picture.png");
    assert_eq!(
        (&inspected["records"], &inspected["pairs"]),
        (&prepared["records"], &prepared["pairs"])
    );
    let shown = stdout(&site.start("inspect @shards --record 3"));
    assert!(shown.contains('⟦') && shown.contains("objects"), "{shown}");
    let mut zip =
        zip::ZipArchive::new(fs::File::open(site.path("world/pictures.zip")).unwrap()).unwrap();
    let mut original = vec![];
    std::io::Read::read_to_end(&mut zip.by_name("train/00002.png").unwrap(), &mut original)
        .unwrap();
    let pixels = |bytes: &[u8]| image::load_from_memory(bytes).unwrap().to_rgb8().into_raw();
    assert_eq!(pixels(&fs::read(site.path("picture.png")).unwrap()), pixels(&original));

    let planned = site.json(&TRAIN.replace("--out @run", "--memory-plan"));
    assert!(planned["bytes"].as_u64().unwrap() > 100_000, "{planned}");
    let trained = site.json(TRAIN);
    assert_eq!(trained["steps"], 2, "{trained}");
    let scored =
        site.json("score --model @model --adapter @run/adapter --data @shards --out @scores.jsonl");
    assert_eq!(scored["records"], 12, "{scored}");
    assert_eq!(fs::read_to_string(site.path("scores.jsonl")).unwrap().lines().count(), 12);
    let ask = "--image @picture.png --prompt What? --max-new-tokens 3";
    let asked = site.start(&format!("generate --model @model --adapter @run/adapter {ask}"));
    assert!(asked.status.success(), "{}", stderr(&asked));
    let merged = site.start("merge --model @model --adapter @run/adapter --out @merged");
    assert!(merged.status.success(), "{}", stderr(&merged));
    let asked_again = site.start(&format!("generate --model @merged {ask}"));
    assert_eq!(stdout(&asked_again), stdout(&asked));
    assert!(site.path("merged/tokenizer.json").exists());
}

/// What could not be written is named, nothing half-written stays, and with room again the same
/// command ends as if nothing had happened.
#[test]
fn a_full_disk_is_an_error_that_loses_nothing() {
    let site = Site::new();
    let fails = |blocks: u32, words: &str, folder: &str| {
        let output = site.start_on_full_disk(blocks, words);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{words}: {message}");
        assert!(
            message.contains("File too large") && message.contains(folder),
            "{words}: {message}"
        );
        assert!(site.partial().is_empty(), "{words}: {:?}", site.partial());
    };
    fails(200, INIT, "model");
    site.json(INIT);
    fails(100, PREPARE, "shards");
    let prepared = site.json(PREPARE);
    assert_eq!(prepared["records"], 12);
    site.json("inspect @shards --verify");
    // Less than the first checkpoint takes: adapter and moments.
    fails(200, TRAIN, "run");
    let trained = site.json(&format!("{TRAIN} --resume"));
    assert_eq!(trained["steps"], 2);
    site.json(&TRAIN.replace("@run", "@undisturbed"));
    let adapter =
        |run: &str| fs::read(site.path(run).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(adapter("run") == adapter("undisturbed"));
    fails(200, "merge --model @model --adapter @run/adapter --out @merged", "merged");
    fails(1, "score --model @model --data @shards --out @scores.jsonl", "scores.jsonl");
    assert!(!site.path("scores.jsonl").exists() && !site.path("merged").exists());
}

/// Nobody, not even root, makes files under /proc.
#[test]
#[cfg(target_os = "linux")]
fn a_folder_that_cannot_be_written_is_named() {
    let site = Site::new();
    site.json(INIT);
    site.json(PREPARE);
    for words in [INIT, PREPARE, TRAIN] {
        let words = words.replacen("--out @", "--out /proc/silkie/", 1);
        let output = site.start(&words);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{words}: {message}");
        assert!(message.contains("/proc/silkie"), "{words}: {message}");
    }
}
