//! Byte strings as printable text, GPT-2's way: one character per byte. Printable Latin-1
//! characters stand for themselves, the other 68 bytes for the characters from U+0100 on.

/// `bytes` as text.
pub fn byte_text(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| BYTE_CHARS[usize::from(b)]).collect()
}

/// The bytes that [`byte_text`] wrote; `None` for other text.
pub fn text_bytes(text: &str) -> Option<Vec<u8>> {
    let byte = |c: char| match c as u32 {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(c as u8),
        // The others follow from 256 in order: 0..=0x20, 0x7f..=0xa0, 0xad.
        n @ 0x100..=0x120 => Some((n - 0x100) as u8),
        n @ 0x121..=0x142 => Some((n - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    };
    text.chars().map(byte).collect()
}

/// The character of every byte.
pub const BYTE_CHARS: [char; 256] = {
    let mut chars = ['\0'; 256];
    let (mut byte, mut next) = (0, 0x100u32);
    while byte < 256 {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable { byte as u32 } else { next };
        chars[byte] = match char::from_u32(code) {
            Some(c) => c,
            None => panic!("below the surrogates"),
        };
        next += !printable as u32;
        byte += 1;
    }
    chars
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    pub fn byte_text_and_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(text_bytes(&byte_text(&all)), Some(all));
        assert_eq!(byte_text(b" a\n"), "ĠaĊ");
        assert_eq!(text_bytes("a b"), None);
    }
}
