//! Any token ids to text.

use std::sync::OnceLock;

use silkie::data::tokenizer::{Tokenizer, train};

/// A small tokenizer with images of 4 slots.
fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let json = train(std::iter::once("abc abc".into()), 270).expect("a vocabulary of 270");
        Tokenizer::from_json(&json, 4).expect("a trained file")
    })
}

/// Two bytes an id: text, a turn, an image span.
pub fn seeds() -> Vec<Vec<u8>> {
    let texts = ["abc \u{56fe}", "<|im_start|>a<|im_end|>", "a<img>b</img>c"];
    let encode = |text| tokenizer().encode(text).expect("a good text");
    let bytes = |ids: Vec<u32>| ids.iter().flat_map(|&id| (id as u16).to_le_bytes()).collect();
    texts.map(|text| bytes(encode(text))).to_vec()
}

/// Ids in range and outside of spans always decode; an id beyond the vocabulary never does.
pub fn run(input: &[u8]) {
    let tokenizer = tokenizer();
    let id = |pair: &[u8]| u32::from(u16::from_le_bytes([pair[0], pair[1]]));
    let ids: Vec<u32> = input.chunks_exact(2).map(id).collect();
    let beyond = ids.iter().any(|&id| tokenizer.token_bytes(id).is_none());
    let image = ids.contains(&tokenizer.specials().img_start);
    for skip_special in [false, true] {
        let text = tokenizer.decode(&ids, skip_special);
        assert!(image || text.is_ok() != beyond, "{ids:?}");
    }
}
