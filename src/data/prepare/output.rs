//! The folder of shards being filled: lock, manifest, the open shard, rejects.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::line::{Decoded, Kept, Made, Maker, Picture, Trouble};
use super::{Job, MODEL, Options, Reason, Reject, Summary};
use crate::data::atomic;
use crate::data::lock::Lock;
use crate::data::records::Kind;
use crate::data::shard::{Dataset, ImageRef, Manifest, NewRecord, ShardWriter, Target, shard_name};
use crate::error::{Error, Result};

/// Where a preparation stands; saved in the manifest after every shard.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    /// Lines behind us, over all files.
    lines: u64,
    /// Bytes of `rejects.jsonl`.
    rejects_bytes: u64,
    /// Counts so far.
    summary: Summary,
    /// What each file holds, as its first record showed.
    kinds: BTreeMap<String, Kind>,
}

/// The number of an image, or why it could not be decoded.
type Numbered = std::result::Result<ImageRef, Trouble>;

/// Decoded pictures of a batch that have no number yet.
type Fresh = HashMap<u128, std::result::Result<Decoded, Trouble>>;

/// Writes records in order, shard by shard.
pub(super) struct Output {
    folder: PathBuf,
    options: Options,
    strict: bool,
    target: Target,
    manifest: Manifest,
    state: State,
    /// Images of all shards, and pictures known to be broken, by content hash.
    numbers: HashMap<u128, Numbered>,
    /// Images so far, with those of the open shard.
    images: u64,
    shard: Option<ShardWriter>,
    rejects: BufWriter<File>,
    started: Instant,
    _lock: Lock,
}

impl Output {
    /// Takes the folder: creates and locks it, removes leftovers of a crash, reads what is there.
    /// Errors: used by another run; holds shards made with other settings.
    pub fn open(job: &Job<'_>, target: Target, settings: Value) -> Result<Output> {
        let folder = job.out.to_path_buf();
        let lock = Lock::acquire(&folder)?;
        atomic::remove_stale(&folder)?;
        if job.force {
            clear(&folder)?;
        }
        let manifest = match Manifest::read(&folder)? {
            Some(manifest) => manifest,
            None => Manifest::new(target, settings.clone()),
        };
        let path = Manifest::path(&folder);
        let differs = if manifest.target != target {
            Some("the model, its tokenizer, the template or the truncation".to_string())
        } else {
            first_difference(&manifest.settings, &settings)
        };
        if let Some(what) = differs {
            let message = format!(
                "these shards were made with other settings: {what}; pass another --out, or --force \
                 to start over"
            );
            return Err(Error::file(path, "", message));
        }
        let mut state: State = match &manifest.progress {
            Value::Null => State::default(),
            progress => serde_json::from_value(progress.clone())
                .map_err(|e| Error::file(&path, "progress", format!("{e}; pass --force")))?,
        };
        state.summary.resumed_records = state.summary.records;
        let there = Dataset::open_shards(&folder, manifest.clone())?;
        let hash = |n: u32| {
            let [low, high] = there.image_entry(ImageRef(n)).hash;
            (u128::from(low) | u128::from(high) << 64, Ok(ImageRef(n)))
        };
        let numbers: HashMap<u128, Numbered> = (0..there.images() as u32).map(hash).collect();
        let rejects = open_rejects(&folder.join("rejects.jsonl"), state.rejects_bytes)?;
        Ok(Output {
            images: numbers.len() as u64,
            options: job.options,
            strict: job.strict,
            target,
            manifest,
            state,
            numbers,
            shard: None,
            rejects,
            started: Instant::now(),
            folder,
            _lock: lock,
        })
    }

    /// Whether an earlier run has finished the job.
    pub fn is_complete(&self) -> bool {
        self.manifest.complete
    }

    /// Lines that earlier runs have dealt with.
    pub fn lines_done(&self) -> u64 {
        self.state.lines
    }

    /// Hashes of the images already stored.
    pub fn known_images(&self) -> HashSet<u128> {
        self.numbers.keys().copied().collect()
    }

    /// Records written and rejected so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.state.summary.records, self.state.summary.rejected_records())
    }

    /// Counts so far, with the time this run took.
    pub fn summary(&self) -> Summary {
        Summary { seconds: self.started.elapsed().as_secs_f64(), ..self.state.summary.clone() }
    }

    /// Writes a batch, in order.
    pub fn write(&mut self, mut batch: Vec<Made>, maker: &Maker<'_>) -> Result<()> {
        let mut fresh: Fresh =
            batch.iter_mut().flat_map(|made| std::mem::take(&mut made.decoded)).collect();
        for made in batch {
            self.state.summary.ties += made.ties;
            self.state.summary.unrated += made.unrated;
            for reject in &made.dropped {
                self.note(reject)?;
                *self.state.summary.dropped_responses.entry(reject.reason).or_default() += 1;
            }
            match made.outcome {
                Ok(kept) => self.keep(kept, &mut fresh, maker)?,
                Err(reject) => self.reject(reject)?,
            }
            self.state.lines += 1;
            let full = |shard: &ShardWriter| {
                shard.records() >= self.options.shard_records
                    || shard.bytes() >= self.options.shard_bytes
            };
            if self.shard.as_ref().is_some_and(full) {
                self.finish_shard()?;
            }
        }
        Ok(())
    }

    /// Closes the last shard and declares the data set complete.
    pub fn finish(mut self) -> Result<Summary> {
        if self.state.summary.records == 0 {
            self.rejects.flush().map_err(|e| Error::io(&self.folder, "write rejects.jsonl", e))?;
            let rejected = self.state.summary.rejected_records();
            return Err(Error::Run(format!(
                "{}: none of {rejected} records can be used; rejects.jsonl there names each reason",
                self.folder.display()
            )));
        }
        self.manifest.complete = true;
        self.finish_shard()?;
        Ok(self.summary())
    }

    /// What to tell a user who stopped the run.
    pub fn interrupted(&self) -> Error {
        Error::Interrupted(format!(
            "stopped after {} shards in {}; run the same command again to go on",
            self.manifest.shards.len(),
            self.folder.display()
        ))
    }

    fn keep(&mut self, kept: Kept, fresh: &mut Fresh, maker: &Maker<'_>) -> Result<()> {
        let Kept { mut record, pictures, responses, cuts, kind } = kept;
        let expected = *self.state.kinds.entry(record.file.clone()).or_insert(kind);
        let mut trouble = (kind != expected).then(|| {
            let message = format!("expected {expected} like the file's first record, got {kind}");
            (Reason::BrokenLine, message)
        });
        for picture in &pictures {
            if let Err((reason, message)) = self.check(picture, &record.id, fresh, maker) {
                trouble = trouble.or(Some((reason, format!("{}: {message}", picture.name))));
            }
        }
        if let Some((reason, message)) = trouble {
            let NewRecord { id, file, line, .. } = record;
            return self.reject(Reject { file, line, id, response: None, reason, message });
        }
        for (slot, picture) in record.slots.iter_mut().zip(&pictures) {
            slot.image = self.number(picture.hash, fresh)?;
        }
        self.shard()?.push(&record)?;
        let summary = &mut self.state.summary;
        summary.records += 1;
        summary.images += record.slots.len() as u64;
        summary.distinct_images = self.images;
        summary.responses += responses;
        summary.branches += record.branches.len() as u64;
        summary.pairs += record.pairs.len() as u64;
        summary.truncated_prompts += u64::from(cuts.prompt_tokens > 0);
        summary.truncated_responses += cuts.trimmed_responses as u64;
        summary.lost_images += cuts.images_gone as u64;
        summary.trunk.add(record.trunk.len());
        record.branches.iter().for_each(|branch| summary.branch.add(branch.tokens.len()));
        Ok(())
    }

    /// Whether a picture has an image: a numbered one, or one in `fresh`.
    fn check(
        &mut self,
        picture: &Picture,
        id: &str,
        fresh: &mut Fresh,
        maker: &Maker<'_>,
    ) -> std::result::Result<(), Trouble> {
        if let Some(known) = self.numbers.get(&picture.hash) {
            return known.clone().map(|_| ());
        }
        let decoded = fresh.entry(picture.hash).or_insert_with(|| maker.decode_again(picture, id));
        let failed = decoded.as_ref().err().cloned();
        failed.map_or(Ok(()), |trouble| {
            self.numbers.insert(picture.hash, Err(trouble.clone()));
            Err(trouble)
        })
    }

    /// The number of an image that [`Output::check`] found; a fresh one is stored now.
    fn number(&mut self, hash: u128, fresh: &mut Fresh) -> Result<ImageRef> {
        if let Some(Ok(image)) = self.numbers.get(&hash) {
            return Ok(*image);
        }
        let Some(Ok(image)) = fresh.remove(&hash) else {
            panic!("an image without pixels got past the check");
        };
        let number = u32::try_from(self.images).ok().filter(|&n| n < u32::MAX);
        let number = ImageRef(number.ok_or_else(|| Error::Run("more than 2^32 images".into()))?);
        self.shard()?.push_image(image.entry, &image.pixels)?;
        self.images += 1;
        self.numbers.insert(hash, Ok(number));
        Ok(number)
    }

    fn reject(&mut self, reject: Reject) -> Result<()> {
        *self.state.summary.rejected.entry(reject.reason).or_default() += 1;
        self.note(&reject)
    }

    /// Names something left out in `rejects.jsonl`; with `--strict` it is the end.
    fn note(&mut self, reject: &Reject) -> Result<()> {
        if self.strict {
            let Reject { file, line, id, reason, message, .. } = reject;
            let message = format!("{reason}, {id:?}: {message}; without --strict it is left out");
            return Err(Error::file(file, format!("line {line}"), message));
        }
        let mut json = serde_json::to_string(reject).unwrap_or_default();
        json.push('\n');
        self.state.rejects_bytes += json.len() as u64;
        let written = self.rejects.write_all(json.as_bytes());
        written.map_err(|e| Error::io(self.folder.join("rejects.jsonl"), "write", e))
    }

    fn shard(&mut self) -> Result<&mut ShardWriter> {
        let shard = match self.shard.take() {
            Some(shard) => shard,
            None => {
                let number = self.manifest.shards.len();
                let path = self.folder.join(shard_name(number));
                let records = self.state.summary.records;
                ShardWriter::create(&path, self.target, number as u32, records, self.images)?
            }
        };
        Ok(self.shard.insert(shard))
    }

    /// Gives the open shard its name, then lets the manifest say so. A crash in between leaves a
    /// shard that the manifest does not know; the next run writes the same one again.
    fn finish_shard(&mut self) -> Result<()> {
        if let Some(shard) = self.shard.take() {
            let line = shard.finish()?;
            self.state.summary.shards += 1;
            self.state.summary.bytes += line.bytes;
            self.manifest.shards.push(line);
        }
        let flushed = self.rejects.flush().and_then(|()| self.rejects.get_ref().sync_all());
        flushed.map_err(|e| Error::io(self.folder.join("rejects.jsonl"), "write", e))?;
        self.manifest.progress = serde_json::to_value(&self.state)
            .map_err(|e| Error::file(&self.folder, "progress", e.to_string()))?;
        self.manifest.write(&self.folder)
    }
}

/// Removes what an earlier run wrote, and nothing else.
fn clear(folder: &std::path::Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, "list the folder", e))? {
        let path = entry.map_err(|e| Error::io(folder, "list the folder", e))?.path();
        let ours = path.extension().is_some_and(|e| e == "shard")
            || path.file_name().is_some_and(|n| n == "dataset.json" || n == "rejects.jsonl");
        if ours {
            fs::remove_file(&path).map_err(|e| Error::io(&path, "remove", e))?;
        }
    }
    Ok(())
}

/// Opens the rejects for appending, cut back to where the last whole shard left them.
fn open_rejects(path: &std::path::Path, bytes: u64) -> Result<BufWriter<File>> {
    let open = OpenOptions::new().create(true).write(true).truncate(false).open(path);
    let mut file = open.map_err(|e| Error::io(path, "open", e))?;
    let cut = file.set_len(bytes).and_then(|()| file.seek(SeekFrom::End(0)));
    cut.map_err(|e| Error::io(path, "write", e))?;
    Ok(BufWriter::new(file))
}

/// The first setting that is not what it was, with both values.
fn first_difference(was: &Value, is: &Value) -> Option<String> {
    let keys = |value: &Value| -> BTreeMap<String, Value> {
        value.as_object().map(|o| o.clone().into_iter().collect()).unwrap_or_default()
    };
    let (was, is) = (keys(was), keys(is));
    let differs = is.iter().find(|(key, value)| *key != MODEL && was.get(*key) != Some(value));
    differs.map(|(key, value)| {
        format!("{key} was {}, is {value}", was.get(key).unwrap_or(&Value::Null))
    })
}
