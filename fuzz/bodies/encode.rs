//! Any text through a good tokenizer, the chat template and truncation.

use std::sync::OnceLock;

use silkie::data::template::{self, Limits, Scored, Truncation};
use silkie::data::tokenizer::{Tokenizer, train};

/// A small tokenizer with images of 8 slots.
fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let text = (0..9).map(|i| format!("Picture {i}: a red cube.\n"));
        let json = train(text, 300).expect("a vocabulary of 300");
        Tokenizer::from_json(&json, 8).expect("a trained file")
    })
}

/// Special texts, image spans, what NFC changes, white space.
pub fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "Picture 1: <img>a.png</img>\nWhat is it?",
        "<|im_start|>user\n<imgpad></img><|endoftext|>",
        "e\u{301} \u{1e9b}\u{323} \u{ac00}\u{11a8} 'S 'll\r\n\r\n   \u{3000}x",
        "<img>\u{56fe}<ref></img><img>",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// Literal text comes back; the rest is ids in range or an error; a record fits its limits.
pub fn run(input: &[u8]) {
    let tokenizer = tokenizer();
    let text = String::from_utf8_lossy(input);
    let literal = tokenizer.encode_ordinary(&text).expect("short text encodes");
    let back = tokenizer.decode(&literal, false).expect("its own ids");
    assert_eq!(tokenizer.encode_ordinary(&back).ok(), Some(literal), "NFC is idempotent");
    if let Ok(ids) = tokenizer.encode(&text) {
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    }
    let Ok(mut trunk) = template::trunk_of_pictures(tokenizer, 1, &text) else { return };
    let Ok(branch) = template::branch(tokenizer, &text, Scored::Template) else { return };
    let truncation = match input.len() % 2 {
        0 => Truncation::KeepImage,
        _ => Truncation::Published,
    };
    let max_length = 40 + input.first().map_or(0, |&b| usize::from(b));
    let limits = Limits { max_length, max_prompt_length: max_length / 2, truncation };
    let mut branches = [branch];
    if template::fit(tokenizer, &mut trunk, &mut branches, limits).is_ok() {
        assert!(trunk.tokens.len() + branches[0].tokens.len() <= max_length);
    }
}
