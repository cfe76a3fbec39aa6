//! A `tokenizer.json` of any content.

use silkie::data::tokenizer::{Tokenizer, train};

/// A trained file.
pub fn seeds() -> Vec<Vec<u8>> {
    let text = (0..9).map(|i| format!("abc abcd abcde {i}"));
    vec![train(text, 270).expect("a vocabulary of 270")]
}

/// What opens also encodes; ids are below its vocabulary's size.
pub fn run(input: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_json(input, 4) else { return };
    let ids = tokenizer.encode("abc  \u{0}<|im_end|><img>x</img>").expect("any text encodes");
    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    tokenizer.decode(&ids, true).expect("its own ids");
}
