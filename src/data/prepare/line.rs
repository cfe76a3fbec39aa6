//! One line → one record with its pictures, or the reason why not. Runs on any core.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_128;

use super::{Job, Reason, Reject, SourceLine, file_name};
use crate::data::image::{self, ImageError};
use crate::data::pictures::PictureError;
use crate::data::records::{self, Kind, SourceRecord};
use crate::data::shard::{ImageEntry, ImageRef, ImageSlot, NewBranch, NewRecord, Pair, flags};
use crate::data::template;
use crate::error::Error;

/// A line that went through.
pub(super) struct Made {
    /// The record, or why there is none.
    pub outcome: Result<Kept, Reject>,
    /// Responses that were left out.
    pub dropped: Vec<Reject>,
    /// Pictures that this line met first, by content hash, whatever became of the record.
    pub decoded: Vec<(u128, Result<Decoded, Trouble>)>,
    /// Pairs of responses with equal scores.
    pub ties: u64,
    /// Pairs of responses of which one has no score.
    pub unrated: u64,
}

/// Why something cannot be used.
pub(super) type Trouble = (Reason, String);

/// A record that can be written once its images have numbers.
pub(super) struct Kept {
    /// Its slots point to nothing yet.
    pub record: NewRecord,
    /// One for each slot.
    pub pictures: Vec<Picture>,
    /// Responses it had, equal ones counted each.
    pub responses: u64,
    /// What the length limits took.
    pub cuts: template::Cuts,
    /// Every record of a file is of one kind.
    pub kind: Kind,
}

/// A picture of a record.
pub(super) struct Picture {
    /// As the record calls it.
    pub name: String,
    /// Hash of the file's bytes: equal files are one image.
    pub hash: u128,
}

/// An image ready for the shard.
pub(super) struct Decoded {
    /// Where it came from.
    pub entry: ImageEntry,
    /// `[S, S, 3]` bytes.
    pub pixels: Vec<u8>,
}

/// Works on batches of lines.
pub(super) struct Maker<'a> {
    job: &'a Job<'a>,
    /// Pictures that somebody has decoded or is decoding.
    claimed: Mutex<HashSet<u128>>,
}

impl<'a> Maker<'a> {
    /// One that knows the images of the shards already there.
    pub fn new(job: &'a Job<'a>, known: HashSet<u128>) -> Self {
        Maker { job, claimed: Mutex::new(known) }
    }

    /// All lines of a batch, in order.
    pub fn make(&self, batch: Vec<SourceLine>) -> Vec<Made> {
        batch.into_par_iter().map(|line| self.line(line)).collect()
    }

    fn line(&self, source: SourceLine) -> Made {
        let path = &self.job.records[source.file];
        let number = source.line.as_ref().map_or_else(line_of, |line| line.number);
        let mut made = Made {
            outcome: Err(reject(path, number)),
            dropped: Vec::new(),
            decoded: Vec::new(),
            ties: 0,
            unrated: 0,
        };
        made.outcome = match source.line.and_then(|line| records::parse(path, &line)) {
            Ok(record) => {
                made.ties = record.ties as u64;
                made.unrated = record.unrated as u64;
                let about = Reject { id: record.id.clone(), ..reject(path, number) };
                self.record(record, &about, &mut made).map_err(|(reason, message)| Reject {
                    reason,
                    message,
                    ..about
                })
            }
            Err(error) => Err(Reject { message: words(error), ..reject(path, number) }),
        };
        made
    }

    fn record(
        &self,
        source: SourceRecord,
        about: &Reject,
        made: &mut Made,
    ) -> Result<Kept, Trouble> {
        let (tokenizer, options) = (self.job.tokenizer, &self.job.options);
        let texts = || source.responses.iter().map(|r| &r.text).chain([&source.prompt]);
        let special = texts().any(|text| tokenizer.has_special_text(text));
        if special && !options.keep_special_text {
            let message = "prompt or response contains the text of a special token; \
                           --special-text keep takes it as that token";
            return Err((Reason::SpecialText, message.into()));
        }

        let (mut branches, pairs, responses) = distinct(&source, about, &mut made.dropped);
        if branches.is_empty() || (pairs.is_empty() && source.kind != Kind::Instruction) {
            let message = "no two responses with text and different scores";
            return Err((Reason::NoPair, message.into()));
        }

        let untokenizable = |e| (Reason::Untokenizable, words(e));
        let mut trunk = template::trunk_of_pictures(tokenizer, source.images.len(), &source.prompt)
            .map_err(untokenizable)?;
        let mut tokens = Vec::with_capacity(branches.len());
        for branch in &branches {
            let text = &source.responses[branch.first].text;
            tokens.push(template::branch(tokenizer, text, options.scored).map_err(untokenizable)?);
        }
        let cuts = template::fit(tokenizer, &mut trunk, &mut tokens, options.limits)
            .map_err(|e| (Reason::TooLong, words(e)))?;

        // Cutting takes images from the front.
        let shown = &source.images[source.images.len() - trunk.images.len()..];
        let mut pictures = Vec::with_capacity(shown.len());
        for name in shown {
            let (bytes, hash) = self.read(name, &source.id)?;
            if self.claimed.lock().unwrap_or_else(PoisonError::into_inner).insert(hash) {
                made.decoded.push((hash, self.decode(&bytes, hash)));
            }
            pictures.push(Picture { name: name.clone(), hash });
        }

        let slot = |&offset: &u32| ImageSlot { offset, image: ImageRef(u32::MAX) };
        let new_branch = |(branch, tokens): (Merged, template::Branch)| NewBranch {
            tokens: tokens.tokens,
            scored: tokens.scored,
            model: source.responses[branch.first].model.clone(),
            score: branch.score(),
        };
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        let record = NewRecord {
            file: about.file.clone(),
            line: source.line,
            slots: trunk.images.iter().map(slot).collect(),
            trunk: trunk.tokens,
            branches: branches.drain(..).zip(tokens).map(new_branch).collect(),
            pairs,
            flags: flag(cuts.prompt_tokens > 0, flags::PROMPT_CUT)
                | flag(cuts.trimmed_responses > 0, flags::RESPONSE_CUT)
                | flag(cuts.images_gone > 0, flags::IMAGE_LOST)
                | flag(special, flags::SPECIAL_TEXT),
            id: source.id,
        };
        Ok(Kept { record, pictures, responses, cuts, kind: source.kind })
    }

    /// The image of a picture that somebody else claimed and then had no use for.
    pub fn decode_again(&self, picture: &Picture, id: &str) -> Result<Decoded, Trouble> {
        let (bytes, hash) = self.read(&picture.name, id)?;
        self.decode(&bytes, hash)
    }

    fn read(&self, name: &str, id: &str) -> Result<(Vec<u8>, u128), Trouble> {
        let Some(pictures) = self.job.pictures else {
            let message = format!("{name}: the record shows a picture; pass --images DIR or ZIP");
            return Err((Reason::MissingPicture, message));
        };
        let bytes = pictures.read(name, id).map_err(|error| {
            let reason = match error {
                PictureError::Missing(_) => Reason::MissingPicture,
                PictureError::Unsafe(_) => Reason::UnsafePicture,
                PictureError::Unreadable(_) => Reason::UnreadablePicture,
            };
            (reason, error.to_string())
        })?;
        let hash = xxh3_128(&bytes);
        Ok((bytes, hash))
    }

    /// Messages speak of "the picture": several names can have one content.
    fn decode(&self, bytes: &[u8], hash: u128) -> Result<Decoded, Trouble> {
        let rgb = image::decode(bytes, self.job.options.max_pixels).map_err(|error| {
            let reason = match error {
                ImageError::TooLarge { .. } => Reason::PictureTooLarge,
                ImageError::Unreadable(_) => Reason::UnreadablePicture,
            };
            (reason, error.to_string())
        })?;
        let entry = ImageEntry {
            hash: [hash as u64, (hash >> 64) as u64],
            file_bytes: bytes.len() as u64,
            width: rgb.width as u32,
            height: rgb.height as u32,
        };
        Ok(Decoded { entry, pixels: image::resize_bicubic(&rgb, self.job.image_size) })
    }
}

/// A distinct response text of a record.
struct Merged {
    /// The response that had it first.
    first: usize,
    /// Sum and number of the scores it got.
    sum: f64,
    rated: u32,
}

impl Merged {
    /// The mean of the scores; NaN when there is none.
    fn score(&self) -> f32 {
        (self.sum / f64::from(self.rated)) as f32
    }
}

/// One branch per distinct text, pairs in terms of branches, and the number of responses that have
/// text. Those without are named in `dropped`, their pairs go.
fn distinct(
    source: &SourceRecord,
    about: &Reject,
    dropped: &mut Vec<Reject>,
) -> (Vec<Merged>, Vec<Pair>, u64) {
    let mut branches: Vec<Merged> = Vec::new();
    let mut branch_of = Vec::with_capacity(source.responses.len());
    for (i, response) in source.responses.iter().enumerate() {
        if response.text.trim().is_empty() {
            branch_of.push(None);
            let message = "the response has no text".into();
            let reason = Reason::EmptyResponse;
            dropped.push(Reject { response: Some(i), reason, message, ..about.clone() });
            continue;
        }
        let same = |b: &Merged| source.responses[b.first].text == response.text;
        let number = branches.iter().position(same).unwrap_or_else(|| {
            branches.push(Merged { first: i, sum: 0.0, rated: 0 });
            branches.len() - 1
        });
        if let Some(score) = response.score {
            branches[number].sum += score;
            branches[number].rated += 1;
        }
        branch_of.push(Some(number as u16));
    }
    let pair = |&[chosen, rejected]: &[usize; 2]| {
        Some(Pair { chosen: branch_of[chosen]?, rejected: branch_of[rejected]? })
    };
    let responses = branch_of.iter().flatten().count() as u64;
    (branches, source.pairs.iter().filter_map(pair).collect(), responses)
}

/// An empty reject about a line of `path`.
fn reject(path: &Path, line: u64) -> Reject {
    let (id, message, reason) = (String::new(), String::new(), Reason::BrokenLine);
    Reject { file: file_name(path), line, id, response: None, reason, message }
}

/// The line number in an error about a line.
fn line_of(error: &Error) -> u64 {
    match error {
        Error::File { at, .. } => {
            at.strip_prefix("line ").and_then(|n| n.parse().ok()).unwrap_or(0)
        }
        _ => 0,
    }
}

/// The words of an error without the place, which a reject names in fields of its own.
fn words(error: Error) -> String {
    match error {
        Error::File { message, .. } | Error::Argument { message, .. } => message,
        other => other.to_string(),
    }
}
