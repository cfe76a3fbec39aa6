//! Hugging Face's `tokenizer.json`, for byte-level BPE with Qwen's pattern: read, and trained.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeTrainer, BpeTrainerBuilder};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, TokenizerBuilder};

use super::bytes::text_bytes;
use super::{Specials, Vocabulary, WORDS};
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct File {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, u32>,
    merges: Merges,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    ignore_merges: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merges {
    Pairs(Vec<(String, String)>),
    /// Older files: `"a b"`.
    Spaced(Vec<String>),
}

/// Reads the vocabulary. Only what Qwen-VL uses is understood; anything else in the file that
/// would change the ids (another pattern, normaliser or model) is an error, never ignored.
pub fn parse(file: &[u8]) -> std::result::Result<Vocabulary, String> {
    let file: File = serde_json::from_slice(file).map_err(|e| e.to_string())?;
    let model = file.model;
    let expect = |fits: bool, message: &str| if fits { Ok(()) } else { Err(message.to_string()) };
    expect(model.kind.as_deref().unwrap_or("BPE") == "BPE", "the model is no BPE")?;
    expect(model.dropout.unwrap_or(0.0) == 0.0, "BPE dropout is set, expected none")?;
    let affixes = [model.continuing_subword_prefix, model.end_of_word_suffix];
    expect(affixes.iter().flatten().all(String::is_empty), "prefixes or suffixes of sub-words")?;
    let nfc = matches!(file.normalizer["type"].as_str(), None | Some("NFC"));
    expect(nfc, "the normaliser is not NFC, as Qwen's is")?;
    expect(holds_pattern(&file.pre_tokenizer), "the pre-tokenizer's pattern is not Qwen's")?;

    // Special tokens may be listed in the vocabulary too; there they are text, not bytes.
    let added: HashMap<&str, u32> =
        file.added_tokens.iter().map(|t| (t.content.as_str(), t.id)).collect();
    let ordinary = model.vocab.into_iter().filter(|(text, _)| !added.contains_key(text.as_str()));
    let tokens = ordinary.map(|(text, id)| match text_bytes(&text) {
        Some(bytes) => Ok((id, bytes)),
        None => Err(format!("token {id} is not written byte by byte; expected a byte-level BPE")),
    });
    let tokens: Vec<_> = tokens.collect::<std::result::Result<_, _>>()?;
    let ids: HashSet<u32> = tokens.iter().map(|&(id, _)| id).collect();
    if let Some(clash) = file.added_tokens.iter().find(|t| ids.contains(&t.id)) {
        return Err(format!("id {} of {} belongs to another token", clash.id, clash.content));
    }
    expect(ids.len() == tokens.len(), "two tokens have the same id")?;
    let merges = match model.merges {
        Merges::Pairs(pairs) => pairs,
        Merges::Spaced(lines) => {
            let pair = |line: &String| line.split_once(' ').map(|(a, b)| (a.into(), b.into()));
            let pairs: Option<Vec<_>> = lines.iter().map(pair).collect();
            pairs.ok_or("a merge is no pair of tokens")?
        }
    };
    let added = file.added_tokens.into_iter().map(|t| (t.content, t.id)).collect();
    Ok(Vocabulary { tokens, merges, added, ignore_merges: model.ignore_merges })
}

/// Whether a split by Qwen's pattern is among the pre-tokenizers.
fn holds_pattern(pre_tokenizer: &Value) -> bool {
    let one = std::slice::from_ref(pre_tokenizer);
    let all = pre_tokenizer["pretokenizers"].as_array().map_or(one, Vec::as_slice);
    all.iter().any(|p| p["pattern"]["Regex"].as_str() == Some(WORDS))
}

/// Trains a vocabulary of at most `vocab_size` tokens on `text` and returns its `tokenizer.json`.
///
/// Ids: all 256 bytes, the learned tokens, then the special tokens as [`Specials::TEXTS`] lists
/// them, so that `<img>`, `</img>`, `<imgpad>` are neighbours as the model expects. The same text
/// gives the same bytes. Errors: a `vocab_size` under 262.
pub fn train(text: impl Iterator<Item = String> + Send, vocab_size: usize) -> Result<Vec<u8>> {
    let least = 256 + Specials::TEXTS.len();
    if vocab_size < least {
        let message =
            format!("vocab_size {vocab_size}, expected at least {least} (bytes, specials)");
        return Err(Error::argument("tokenizer::train", message));
    }
    let learn = || -> tokenizers::Result<String> {
        let pattern = SplitPattern::Regex(WORDS.into());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
        let byte_level = ByteLevel::new(false, false, false);
        let steps: Vec<PreTokenizerWrapper> = vec![split.into(), byte_level.into()];
        let mut tokenizer = TokenizerBuilder::new()
            .with_model(BPE::default())
            .with_normalizer(Some(NFC))
            .with_pre_tokenizer(Some(Sequence::new(steps)))
            .with_post_processor(Some(byte_level))
            .with_decoder(Some(byte_level))
            .build()?;
        let mut trainer: BpeTrainer = BpeTrainerBuilder::new()
            .vocab_size(vocab_size - Specials::TEXTS.len())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .show_progress(false)
            .build();
        tokenizer.train(&mut trainer, text)?;
        tokenizer.add_special_tokens(Specials::TEXTS.map(|text| AddedToken::from(text, true)))?;
        tokenizer.to_string(true)
    };
    let json = learn().map_err(|e| Error::argument("tokenizer::train", e.to_string()))?;
    Ok(json.into_bytes())
}
