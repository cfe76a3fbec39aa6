//! Text to token ids and back, as the tokenizer of Qwen-VL does it.
//!
//! Text is NFC-normalised; the text of a special token, anywhere, becomes that token (there is no
//! escaping); `<img>NAME</img>` becomes the image start, a fixed number of slots (the bytes of the
//! name as ids 0..255, then `<imgpad>`) and the image end; what remains is cut into words by
//! Qwen's pattern and encoded by byte-level BPE. Source: the public `tokenization_qwen.py`.
//!
//! Two files hold such a vocabulary: `qwen.tiktoken` (`tiktoken`, special tokens implied) and
//! a Hugging Face `tokenizer.json` (`json`), which [`train`] also writes.

mod bytes;
mod json;
mod tiktoken;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::utils::SysRegex;
use unicode_normalization::{UnicodeNormalization, is_nfc};

use crate::error::{Error, Result};

pub use json::train;

use bytes::{BYTE_CHARS, byte_text};

/// Qwen's pre-tokenizer; each match is one word, and the matches cover any text.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Longest text encoded at once. The longest useful one is some 20 kB; beyond 10 MB of white
/// space the regular expression engine would give up.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// Largest token id accepted from a file; tables are indexed by it.
const MAX_ID: u32 = 1 << 20;

/// Ids of the special tokens that the chat template and the model rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Specials {
    /// `<|endoftext|>`: ends a sequence, pads a batch.
    pub endoftext: u32,
    /// `<|im_start|>`: opens a turn.
    pub im_start: u32,
    /// `<|im_end|>`: closes a turn.
    pub im_end: u32,
    /// `<img>`
    pub img_start: u32,
    /// `</img>`
    pub img_end: u32,
    /// `<imgpad>`: fills the image slots.
    pub img_pad: u32,
}

impl Specials {
    /// Their texts, in the order of the fields.
    pub const TEXTS: [&str; 6] =
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>"];

    fn from_ids(ids: [u32; 6]) -> Self {
        let [endoftext, im_start, im_end, img_start, img_end, img_pad] = ids;
        Specials { endoftext, im_start, im_end, img_start, img_end, img_pad }
    }
}

/// Token ids of a text, and where its images are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The ids.
    pub tokens: Vec<u32>,
    /// For every `<img>` span, the index of its first slot in `tokens`.
    pub images: Vec<u32>,
}

/// A byte-level BPE vocabulary with Qwen's special tokens.
pub struct Tokenizer {
    bpe: BPE,
    words: SysRegex,
    /// Bytes of token `id`: `bytes[ends[id - 1]..ends[id]]`.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    /// Text and id of every special token.
    added: Vec<(String, u32)>,
    /// The first bytes of their texts.
    openers: [bool; 256],
    specials: Specials,
    n_image_slots: usize,
}

/// What either file says: a vocabulary of byte strings by id, the merges, the special tokens.
struct Vocabulary {
    tokens: Vec<(u32, Vec<u8>)>,
    /// Pairs of byte strings as [`byte_text`], earliest first.
    merges: Vec<(String, String)>,
    added: Vec<(String, u32)>,
    /// Whether a word that is a token is that token whatever the merges say.
    ignore_merges: bool,
}

impl Tokenizer {
    /// Opens `qwen.tiktoken`, else `tokenizer.json`, of a model directory. `n_image_slots` is the
    /// number of tokens an image takes: the model's `visual.n_queries`, 256 as published.
    pub fn open(model_dir: impl AsRef<Path>, n_image_slots: usize) -> Result<Self> {
        let dir = model_dir.as_ref();
        let names = ["qwen.tiktoken", "tokenizer.json"].map(|name| dir.join(name));
        let Some(path) = names.iter().find(|path| path.exists()) else {
            let message = "no qwen.tiktoken and no tokenizer.json; copy the tokenizer's file here";
            return Err(Error::file(dir, "", message));
        };
        let file = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        let opened = match path == &names[0] {
            true => Self::from_tiktoken(&file, n_image_slots),
            false => Self::from_json(&file, n_image_slots),
        };
        opened.map_err(|message| Error::file(path, "", message))
    }

    /// Reads the content of a `qwen.tiktoken` file. The error is a sentence about it.
    pub fn from_tiktoken(file: &[u8], n_image_slots: usize) -> std::result::Result<Self, String> {
        let tokens = tiktoken::parse(file)?;
        let first = tokens.len() as u32;
        let extra = (0..205).map(|i| format!("<|extra_{i}|>"));
        let (turns, images) = Specials::TEXTS.split_at(3);
        let marks = ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"];
        let texts = turns.iter().map(|t| t.to_string()).chain(extra);
        let texts = texts.chain(marks.iter().chain(images).map(|t| t.to_string()));
        let text = |rank: u32| byte_text(&tokens[rank as usize]);
        let merges = tiktoken::merges(&tokens).into_iter().map(|[a, b]| (text(a), text(b)));
        Self::new(
            Vocabulary {
                merges: merges.collect(),
                added: texts.zip(first..).collect(),
                ignore_merges: true,
                tokens: (0..).zip(tokens).collect(),
            },
            n_image_slots,
        )
    }

    /// Reads the content of a `tokenizer.json` file. The error is a sentence about it.
    pub fn from_json(file: &[u8], n_image_slots: usize) -> std::result::Result<Self, String> {
        Self::new(json::parse(file)?, n_image_slots)
    }

    fn new(mut from: Vocabulary, n_image_slots: usize) -> std::result::Result<Self, String> {
        let vocab: Vocab = from.tokens.iter().map(|(id, bytes)| (byte_text(bytes), *id)).collect();
        if vocab.len() != from.tokens.len() {
            return Err("two tokens stand for the same bytes; the file is damaged".into());
        }
        if let Some(byte) = (0..=255).find(|&b| !vocab.contains_key(&byte_text(&[b]))) {
            return Err(format!(
                "byte {byte:#04x} is no token, so some text could not be encoded; \
                 a byte-level BPE vocabulary is needed"
            ));
        }
        // Longest first, should one special text begin another.
        from.added.retain(|(text, _)| !text.is_empty());
        from.added.sort_by_key(|(text, id)| (std::cmp::Reverse(text.len()), *id));
        let find = |text: &&str| from.added.iter().find(|(t, _)| t == text).map(|&(_, id)| id);
        let absent: Vec<&str> =
            Specials::TEXTS.into_iter().filter(|text| find(text).is_none()).collect();
        if !absent.is_empty() {
            return Err(format!("special tokens {} are missing", absent.join(", ")));
        }
        let specials =
            Specials::from_ids(Specials::TEXTS.map(|text| find(&text).unwrap_or_default()));
        let (bytes, ends) = table(&from)?;
        let mut openers = [false; 256];
        from.added.iter().for_each(|(text, _)| openers[usize::from(text.as_bytes()[0])] = true);
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, from.merges)
            .ignore_merges(from.ignore_merges)
            .build()
            .map_err(|e| e.to_string())?;
        let words = SysRegex::new(WORDS).map_err(|e| e.to_string())?;
        let added = from.added;
        Ok(Tokenizer { bpe, words, bytes, ends, added, openers, specials, n_image_slots })
    }

    /// Ids of the special tokens in use.
    pub fn specials(&self) -> Specials {
        self.specials
    }

    /// Number of tokens an image takes between `<img>` and `</img>`.
    pub fn n_image_slots(&self) -> usize {
        self.n_image_slots
    }

    /// One more than the largest id; the model's tables may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.ends.len()
    }

    /// A number that differs between vocabularies: of every token's bytes and special text.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(bytemuck::cast_slice(&self.ends));
        hash.update(&self.bytes);
        for (text, id) in &self.added {
            hash.update(&id.to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash.digest()
    }

    /// Whether the text of a special token occurs in `text`, so that [`Self::encode`] would not
    /// take it literally.
    pub fn has_special_text(&self, text: &str) -> bool {
        self.next_special(&nfc(text), 0).is_some()
    }

    /// Ids of `text`; special tokens and `<img>NAME</img>` spans as told above.
    ///
    /// Errors: an `<img>` without `</img>`, another special token inside a name, a name of more
    /// bytes than an image has slots (256; the original model can use 254), text over 1 MiB.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encode_with_images(text)?.tokens)
    }

    /// As [`Self::encode`], with the places of the images.
    pub fn encode_with_images(&self, text: &str) -> Result<Encoded> {
        let text = nfc(text);
        let mut out = Encoded::default();
        let mut at = 0;
        while let Some((start, end, id)) = self.next_special(&text, at) {
            self.encode_words(&text[at..start], &mut out.tokens)?;
            out.tokens.push(id);
            at = end;
            if id == self.specials.img_start {
                let (name, after) = self.image_name(&text, at)?;
                out.images.push(out.tokens.len() as u32);
                out.tokens.extend(name.bytes().map(u32::from));
                out.tokens.extend((name.len()..self.n_image_slots).map(|_| self.specials.img_pad));
                out.tokens.push(self.specials.img_end);
                at = after;
            }
        }
        self.encode_words(&text[at..], &mut out.tokens)?;
        Ok(out)
    }

    /// Ids of `text` taken literally: special texts are ordinary characters. Errors: over 1 MiB.
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_words(&nfc(text), &mut ids)?;
        Ok(ids)
    }

    fn encode_words(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if text.len() > MAX_TEXT_BYTES {
            let message = format!("text of {} bytes, at most {MAX_TEXT_BYTES}", text.len());
            return Err(Error::argument("tokenizer::encode", message));
        }
        let mut word = String::new();
        for (start, end) in self.words.find_iter(text) {
            word.clear();
            word.extend(text.as_bytes()[start..end].iter().map(|&b| BYTE_CHARS[usize::from(b)]));
            // Four words in five are tokens; asking first saves the crate's allocations.
            if let Some(id) = self.bpe.token_to_id(&word).filter(|_| self.bpe.ignore_merges) {
                ids.push(id);
                continue;
            }
            let tokens = self.bpe.tokenize(&word);
            let tokens = tokens.map_err(|e| Error::argument("tokenizer::encode", e.to_string()))?;
            ids.extend(tokens.iter().map(|token| token.id));
        }
        Ok(())
    }

    /// The name of an image whose `<img>` ends at `at`, and where its `</img>` ends.
    fn image_name<'t>(&self, text: &'t str, at: usize) -> Result<(&'t str, usize)> {
        let fail = |message: String| Err(Error::argument("tokenizer::encode", message));
        let (mut from, mut inside) = (at, None);
        let (close, after) = loop {
            match self.next_special(text, from) {
                None => return fail("an <img> is not closed by </img>".into()),
                Some((start, end, id)) if id == self.specials.img_end => break (start, end),
                Some((start, end, _)) => {
                    inside.get_or_insert(&text[start..end]);
                    from = end;
                }
            }
        };
        if let Some(special) = inside {
            return fail(format!("an image name holds the special token {special}"));
        }
        let (name, slots) = (&text[at..close], self.n_image_slots);
        if name.len() > slots {
            return fail(format!("an image name of {} bytes, at most {slots}", name.len()));
        }
        Ok((name, after))
    }

    /// Start, end and id of the first special text at or after byte `from`.
    fn next_special(&self, text: &str, from: usize) -> Option<(usize, usize, u32)> {
        let bytes = text.as_bytes();
        (from..bytes.len()).filter(|&i| self.openers[usize::from(bytes[i])]).find_map(|i| {
            let matches = |(text, _): &&(String, u32)| bytes[i..].starts_with(text.as_bytes());
            self.added.iter().find(matches).map(|(text, id)| (i, i + text.len(), *id))
        })
    }

    /// Text of `ids`; invalid UTF-8 becomes U+FFFD, image spans turn back into their names.
    /// `skip_special` drops special tokens.
    ///
    /// Errors: an id beyond the vocabulary, an unclosed or damaged image span.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let fail = |message: String| Err(Error::argument("tokenizer::decode", message));
        let Specials { img_start, img_end, img_pad, .. } = self.specials;
        let mut text = Vec::new();
        let mut rest = ids;
        while let Some((&id, tail)) = rest.split_first() {
            let Some(bytes) = self.token_bytes(id) else {
                return fail(format!("token {id}, the vocabulary has {}", self.vocab_size()));
            };
            if !skip_special || !self.is_special(id) {
                text.extend_from_slice(bytes);
            }
            rest = tail;
            if id == img_start {
                let Some(close) = rest.iter().position(|&id| id == img_end) else {
                    return fail("an <img> is not closed by </img>".into());
                };
                let slots = &rest[..close];
                let Some(pad) = slots.iter().position(|&id| id == img_pad) else {
                    return fail("an image span without <imgpad>".into());
                };
                let name: Option<Vec<u8>> =
                    slots[..pad].iter().map(|&id| u8::try_from(id).ok()).collect();
                let Some(name) = name.and_then(|name| String::from_utf8(name).ok()) else {
                    return fail("an image name that is no UTF-8".into());
                };
                text.extend_from_slice(name.as_bytes());
                rest = &rest[close..];
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The bytes that token `id` stands for (the text of a special token); `None` beyond the
    /// vocabulary. Generated text is decoded with it token by token.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let start =
            id.checked_sub(1).map_or(0, |before| self.ends.get(before).copied().unwrap_or(0));
        Some(&self.bytes[start as usize..*self.ends.get(id)? as usize])
    }

    /// Whether `id` is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.added.iter().any(|&(_, special)| special == id)
    }
}

/// All token bytes in the order of their ids, one after another, and where each ends.
fn table(from: &Vocabulary) -> std::result::Result<(Vec<u8>, Vec<u32>), String> {
    let texts = from.added.iter().map(|(text, id)| (*id, text.as_bytes()));
    let by_id: HashMap<u32, &[u8]> =
        from.tokens.iter().map(|(id, bytes)| (*id, bytes.as_slice())).chain(texts).collect();
    let largest = by_id.keys().copied().max().unwrap_or_default();
    if largest > MAX_ID {
        return Err(format!("token id {largest}, at most {MAX_ID}"));
    }
    let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(largest as usize + 1));
    for id in 0..=largest {
        bytes.extend_from_slice(by_id.get(&id).copied().unwrap_or_default());
        ends.push(u32::try_from(bytes.len()).map_err(|_| "tokens of over 4 GiB")?);
    }
    Ok((bytes, ends))
}

fn nfc(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfc(text) {
        text.into()
    } else {
        text.nfc().collect::<String>().into()
    }
}
