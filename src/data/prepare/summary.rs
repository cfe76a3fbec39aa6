//! What a preparation counted, and what it could not use.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a record, or one response of it, is not in the shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The line is no JSON object, or a field is missing or of the wrong kind.
    BrokenLine,
    /// No picture of that name, or several.
    MissingPicture,
    /// The picture's name or file leads out of the folder or archive.
    UnsafePicture,
    /// The picture's file cannot be read or decoded.
    UnreadablePicture,
    /// The picture has more pixels than allowed.
    PictureTooLarge,
    /// No two responses that can be compared are left.
    NoPair,
    /// A response without text. The record lives on with the others.
    EmptyResponse,
    /// Prompt or response contain the text of a special token.
    SpecialText,
    /// Prompt or response cannot be tokenised.
    Untokenizable,
    /// The record does not fit the length limits.
    TooLong,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::BrokenLine => "broken line",
            Reason::MissingPicture => "missing picture",
            Reason::UnsafePicture => "unsafe picture",
            Reason::UnreadablePicture => "unreadable picture",
            Reason::PictureTooLarge => "picture too large",
            Reason::NoPair => "no pair",
            Reason::EmptyResponse => "empty response",
            Reason::SpecialText => "special text",
            Reason::Untokenizable => "untokenizable",
            Reason::TooLong => "too long",
        })
    }
}

/// A line of `rejects.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// The record file.
    pub file: String,
    /// Line in it, counted from 1; 0 when the line could not be counted as one.
    pub line: u64,
    /// The record's id; empty when unknown.
    pub id: String,
    /// The response that was left out, counted from 0; absent when the whole record was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<usize>,
    /// The kind of trouble.
    pub reason: Reason,
    /// What exactly is wrong.
    pub message: String,
}

/// How often each length occurred; memory does not grow with the number of records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lengths(BTreeMap<u32, u64>);

/// Mean, median, 99th percentile and maximum of [`Lengths`]; zeros when there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// At least half of the lengths are at most this.
    pub median: u32,
    /// At least 99 of 100 are at most this.
    pub p99: u32,
    /// The largest.
    pub max: u32,
}

impl Lengths {
    /// Counts one length.
    pub fn add(&mut self, length: usize) {
        *self.0.entry(length.min(u32::MAX as usize) as u32).or_default() += 1;
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// Sum of all lengths.
    pub fn sum(&self) -> u64 {
        self.0.iter().map(|(&length, &n)| u64::from(length) * n).sum()
    }

    /// Their statistics.
    pub fn spread(&self) -> Spread {
        let count = self.count();
        let quantile = |percent: u64| {
            let mut left = (count * percent).div_ceil(100);
            let reached = self.0.iter().find(|&(_, &n)| {
                left = left.saturating_sub(n);
                left == 0
            });
            reached.map_or(0, |(&length, _)| length)
        };
        Spread {
            mean: self.sum() as f64 / count.max(1) as f64,
            median: quantile(50),
            p99: quantile(99),
            max: self.0.last_key_value().map_or(0, |(&length, _)| length),
        }
    }
}

/// What a preparation did. All counts are of what is in the shards, except `ties` and `unrated`
/// (of all records that could be parsed), `rejected` and `dropped_responses`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Records in the shards.
    pub records: u64,
    /// Pictures their trunks show.
    pub images: u64,
    /// Images stored.
    pub distinct_images: u64,
    /// Responses of these records.
    pub responses: u64,
    /// Responses stored: equal texts of a record are one branch.
    pub branches: u64,
    /// Pairs of responses, one preferred.
    pub pairs: u64,
    /// Pairs of responses with equal scores.
    pub ties: u64,
    /// Pairs with a response that has no score.
    pub unrated: u64,
    /// Records left out, by reason.
    pub rejected: BTreeMap<Reason, u64>,
    /// Single responses left out of records that were kept, by reason.
    pub dropped_responses: BTreeMap<Reason, u64>,
    /// Records whose prompt was cut.
    pub truncated_prompts: u64,
    /// Responses that were cut.
    pub truncated_responses: u64,
    /// Images that were cut away (published truncation).
    pub lost_images: u64,
    /// Lengths of trunks in tokens.
    pub trunk: Lengths,
    /// Lengths of branches in tokens.
    pub branch: Lengths,
    /// Shard files.
    pub shards: u64,
    /// Bytes of the shard files.
    pub bytes: u64,
    /// Records that an earlier run had already prepared.
    pub resumed_records: u64,
    /// Seconds this run took.
    pub seconds: f64,
}

impl Summary {
    /// Number of records left out.
    pub fn rejected_records(&self) -> u64 {
        self.rejected.values().sum()
    }

    /// Number of records read: in the shards or left out.
    pub fn read(&self) -> u64 {
        self.records + self.rejected_records()
    }

    /// The documented object of `--json`.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "read": self.read(),
            "records": self.records,
            "images": self.images,
            "distinct_images": self.distinct_images,
            "responses": self.responses,
            "branches": self.branches,
            "pairs": self.pairs,
            "ties": self.ties,
            "unrated": self.unrated,
            "rejected": self.rejected_records(),
            "reject_reasons": self.rejected,
            "dropped_responses": self.dropped_responses,
            "truncated": {
                "prompts": self.truncated_prompts,
                "responses": self.truncated_responses,
                "lost_images": self.lost_images,
            },
            "tokens": { "trunk": self.trunk.spread(), "branch": self.branch.spread() },
            "shards": self.shards,
            "bytes": self.bytes,
            "resumed_records": self.resumed_records,
            "seconds": self.seconds,
        })
    }
}
