//! `float()` and `str.strip()` as Python has them: the published pipeline passes ratings through
//! the one and prompts through the other, so a reader of its data must agree with both.

use std::borrow::Cow;

/// First digit (zero) of every run of ten decimal digits in Unicode 14, Python 3.11's version.
const ZEROS: [u32; 66] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66,
    0xde6, 0xe50, 0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90,
    0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10,
    0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0, 0x11650,
    0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60, 0x16ac0, 0x16b50,
    0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0,
];

/// `text.strip()`: Unicode white space and the four ASCII separators are removed at both ends.
pub fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
}

/// `float(text)`; `None` where Python raises `ValueError`.
///
/// White space around the number, underscores between digits, digits of any script, `inf` and
/// `nan` are accepted; `""`, `"N/A"`, `"5/5"` and `"0x10"` are not.
pub fn float(text: &str) -> Option<f64> {
    let text = strip(text);
    let plain = match text.is_ascii() {
        true => Cow::Borrowed(text),
        false => Cow::Owned(text.chars().map(ascii_digit).collect()),
    };
    if !plain.contains('_') {
        return plain.parse().ok();
    }
    let bytes = plain.as_bytes();
    let digit = |i: Option<usize>| i.and_then(|i| bytes.get(i)).is_some_and(u8::is_ascii_digit);
    let between = |i: usize| digit(i.checked_sub(1)) && digit(Some(i + 1));
    let sound = (0..bytes.len()).all(|i| bytes[i] != b'_' || between(i));
    if sound { plain.replace('_', "").parse().ok() } else { None }
}

fn ascii_digit(c: char) -> char {
    let run = ZEROS.partition_point(|&zero| zero <= c as u32);
    let value = run.checked_sub(1).map(|i| c as u32 - ZEROS[i]).filter(|&v| v < 10);
    value.and_then(|v| char::from_digit(v, 10)).unwrap_or(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float_accepts_what_python_accepts() {
        let cases = [
            ("5", 5.0),
            (" 3 ", 3.0),
            ("1e0", 1.0),
            ("+5", 5.0),
            ("-.5", -0.5),
            ("4.", 4.0),
            ("1_0", 10.0),
            ("1_0.2_5e1_0", 10.25e10),
            ("\x1c4\u{a0}", 4.0),
            ("５", 5.0),
            ("٤.٥", 4.5),
            ("𝟙𝟚", 12.0),
            ("1e400", f64::INFINITY),
            ("-Infinity", f64::NEG_INFINITY),
        ];
        for (text, value) in cases {
            assert_eq!(float(text), Some(value), "{text:?}");
        }
        assert!(float("+nAn").is_some_and(f64::is_nan));
    }

    #[test]
    fn float_rejects_what_python_rejects() {
        let cases = [
            "", " ", "N/A", "5/5", "0x10", "_1", "1_", "1__0", "1_.0", "1._0", "1e_5", "+-1",
            "1 2", ".", "e5", "in_f", "²", "½", "五", "5\0",
        ];
        for text in cases {
            assert_eq!(float(text), None, "{text:?}");
        }
    }

    #[test]
    fn strip_removes_white_space_only() {
        assert_eq!(strip("\u{3000}\x1f\t a b \u{85}\r\n"), "a b");
        assert_eq!(strip("\u{200b}a\u{feff}"), "\u{200b}a\u{feff}");
    }
}
