//! Looking into shards: statistics, and one record as text with its labels marked.

use serde_json::{Value, json};

use crate::data::prepare::Lengths;
use crate::data::shard::{Branch, Dataset, ImageRef, Record, flags};
use crate::data::tokenizer::Tokenizer;

/// What the records of a data set add up to; one pass over the tables.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// Pictures that trunks show.
    pub images: u64,
    /// Distinct responses.
    pub branches: u64,
    /// Branches with a score.
    pub rated: u64,
    /// Pairs.
    pub pairs: u64,
    /// Tokens whose log-probability counts.
    pub scored_tokens: u64,
    /// Records with each of [`NAMED_FLAGS`].
    pub flagged: [u64; 4],
    /// Lengths of trunks in tokens.
    pub trunk: Lengths,
    /// Lengths of branches in tokens.
    pub branch: Lengths,
}

/// The bits of [`flags`] and what they are called.
pub const NAMED_FLAGS: [(u32, &str); 4] = [
    (flags::PROMPT_CUT, "prompt cut"),
    (flags::RESPONSE_CUT, "response cut"),
    (flags::IMAGE_LOST, "image lost"),
    (flags::SPECIAL_TEXT, "special text"),
];

impl Statistics {
    /// Counts every record.
    pub fn of(data: &Dataset) -> Self {
        let mut all = Statistics::default();
        for record in data.records() {
            all.images += record.images.len() as u64;
            all.branches += record.branches.len() as u64;
            all.pairs += record.pairs.len() as u64;
            all.trunk.add(record.trunk.len());
            for branch in &record.branches {
                all.branch.add(branch.tokens.len());
                all.rated += u64::from(!branch.score.is_nan());
                all.scored_tokens += branch.scored.iter().map(|&s| u64::from(s)).sum::<u64>();
            }
            for (count, (bit, _)) in all.flagged.iter_mut().zip(NAMED_FLAGS) {
                *count += u64::from(record.flags & bit != 0);
            }
        }
        all
    }
}

/// The names of a record's flags.
pub fn flag_names(record: &Record<'_>) -> Vec<&'static str> {
    NAMED_FLAGS.iter().filter(|(bit, _)| record.flags & bit != 0).map(|&(_, name)| name).collect()
}

/// The trunk as text, each image's slots as `[image N]`.
pub fn trunk_text(data: &Dataset, record: &Record<'_>, tokenizer: &Tokenizer) -> String {
    let mut text = String::new();
    let mut at = 0;
    for slot in record.images {
        let first = (slot.offset as usize).max(at);
        text += &lossy(tokenizer, &record.trunk[at..first]);
        text += &format!("[image {}]", slot.image.0);
        at = first + data.n_image_slots();
    }
    text + &lossy(tokenizer, record.trunk.get(at..).unwrap_or_default())
}

/// The branch as text, what is scored between ⟦ and ⟧.
pub fn branch_text(branch: &Branch<'_>, tokenizer: &Tokenizer) -> String {
    let mut text = String::new();
    let mut at = 0;
    for run in branch.scored.chunk_by(|a, b| a == b) {
        let words = lossy(tokenizer, &branch.tokens[at..at + run.len()]);
        text += &if run[0] == 1 { format!("⟦{words}⟧") } else { words };
        at += run.len();
    }
    text
}

/// Text of any ids: special tokens by their names, what is no UTF-8 as U+FFFD.
fn lossy(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let bytes = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap_or_default());
    String::from_utf8_lossy(&bytes.copied().collect::<Vec<u8>>()).into_owned()
}

/// A record as the object that `silkie inspect --record N --json` prints.
pub fn record_json(data: &Dataset, record: &Record<'_>, tokenizer: Option<&Tokenizer>) -> Value {
    let branch = |branch: &Branch<'_>| {
        json!({
            "model": branch.model,
            "score": if branch.score.is_nan() { Value::Null } else { branch.score.into() },
            "tokens": branch.tokens,
            "scored": branch.scored,
            "text": tokenizer.map(|t| branch_text(branch, t)),
        })
    };
    let image = |image: ImageRef| {
        let entry = data.image_entry(image);
        let source = [entry.width, entry.height];
        json!({ "image": image.0, "size": source, "file_bytes": entry.file_bytes })
    };
    json!({
        "file": record.file,
        "line": record.line,
        "id": record.id,
        "flags": flag_names(record),
        "images": record.images.iter().map(|slot| image(slot.image)).collect::<Vec<_>>(),
        "trunk": { "tokens": record.trunk, "text": tokenizer.map(|t| trunk_text(data, record, t)) },
        "branches": record.branches.iter().map(branch).collect::<Vec<_>>(),
        "pairs": record.pairs.iter().map(|p| [p.chosen, p.rejected]).collect::<Vec<_>>(),
    })
}
