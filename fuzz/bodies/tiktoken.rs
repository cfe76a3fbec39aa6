//! A `qwen.tiktoken` file of any content.

use silkie::data::tokenizer::Tokenizer;

/// All 256 bytes, then a few merges; LF and CRLF.
pub fn seeds() -> Vec<Vec<u8>> {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |n: usize| char::from(digits[n % 64]);
    let byte = |b: usize| format!("{}{}== {b}\n", digit(b >> 2), digit(b << 4));
    let bytes: String = (0..256).map(byte).collect();
    let merges = "YWI= 256\nYWJj 257\nICA= 258\n";
    vec![
        format!("{bytes}{merges}").into_bytes(),
        format!("{bytes}{merges}").replace('\n', "\r\n").into(),
    ]
}

/// What opens also encodes, and gives the text back.
pub fn run(input: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_tiktoken(input, 4) else { return };
    let text = "abc  \u{0}<|im_end|>";
    let ids = tokenizer.encode(text).expect("any text encodes");
    assert_eq!(tokenizer.decode(&ids, false).as_deref().ok(), Some(text));
}
