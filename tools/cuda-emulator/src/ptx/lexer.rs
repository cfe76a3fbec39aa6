//! Text to tokens.

use std::fmt;

use super::Error;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind<'a> {
    /// `%r1`, `$L__BB0_4`, and with inner dots `ld.global.v4.b32`, `%tid.x`.
    Word(&'a str),
    /// `.reg`, without the dot.
    Directive(&'a str),
    /// Starts with a digit.
    Number(&'a str),
    /// Without the quotes.
    Text(&'a str),
    Mark(char),
    End,
}

impl fmt::Display for Kind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Word(text) | Kind::Number(text) => write!(f, "`{text}`"),
            Kind::Directive(name) => write!(f, "`.{name}`"),
            Kind::Text(text) => write!(f, "\"{text}\""),
            Kind::Mark(mark) => write!(f, "`{mark}`"),
            Kind::End => f.write_str("the end of the text"),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Token<'a> {
    pub kind: Kind<'a>,
    pub line: u32,
}

/// The tokens of `text`, an [`Kind::End`] last.
pub fn tokens(text: &str) -> Result<Vec<Token<'_>>, Error> {
    let mut tokens = Vec::with_capacity(text.len() / 4);
    let mut line = 1;
    let mut rest = text;
    while let Some(&first) = rest.as_bytes().first() {
        let (kind, bytes) = match first {
            b'\n' => {
                line += 1;
                rest = &rest[1..];
                continue;
            }
            b' ' | b'\t' | b'\r' => {
                rest = &rest[1..];
                continue;
            }
            b'/' if rest.starts_with("//") => {
                rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
                continue;
            }
            b'/' if rest.starts_with("/*") => {
                let end =
                    rest.find("*/").ok_or_else(|| Error::new(line, "the comment has no end"))?;
                line += rest[..end].matches('\n').count() as u32;
                rest = &rest[end + 2..];
                continue;
            }
            b'"' => {
                let end =
                    rest[1..].find(['"', '\n']).filter(|&end| rest[1 + end..].starts_with('"'));
                let end = end.ok_or_else(|| Error::new(line, "the string has no end"))?;
                (Kind::Text(&rest[1..1 + end]), end + 2)
            }
            b'0'..=b'9' => {
                let end = number_end(rest.as_bytes());
                (Kind::Number(&rest[..end]), end)
            }
            b'.' if rest.as_bytes().get(1).copied().is_some_and(starts_word) => {
                let end = 1 + simple_word_end(&rest.as_bytes()[1..]);
                (Kind::Directive(&rest[1..end]), end)
            }
            _ if starts_word(first) => {
                let end = word_end(rest.as_bytes());
                (Kind::Word(&rest[..end]), end)
            }
            b'!'..=b'~' => (Kind::Mark(first as char), 1),
            _ => {
                let found = rest.chars().next().unwrap_or_default().escape_default();
                return Err(Error::new(
                    line,
                    format!("the character '{found}' means nothing in PTX"),
                ));
            }
        };
        tokens.push(Token { kind, line });
        rest = &rest[bytes..];
    }
    tokens.push(Token { kind: Kind::End, line });
    Ok(tokens)
}

fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'$' | b'%')
}

fn continues_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$')
}

fn simple_word_end(bytes: &[u8]) -> usize {
    1 + bytes[1..].iter().take_while(|&&byte| continues_word(byte)).count()
}

/// Past a word with its inner `.` and `::`, each of which a letter or digit must follow.
fn word_end(bytes: &[u8]) -> usize {
    let mut end = simple_word_end(bytes);
    loop {
        let joint = match bytes[end..] {
            [b'.', next, ..] if continues_word(next) => 1,
            [b':', b':', next, ..] if continues_word(next) => 2,
            _ => return end,
        };
        end += joint + simple_word_end(&bytes[end + joint..]);
    }
}

/// Past a number; the sign of an exponent belongs to it: `1.5e-3`.
fn number_end(bytes: &[u8]) -> usize {
    let mut end = 1;
    while let Some(&byte) = bytes.get(end) {
        let signs_exponent = matches!(byte, b'+' | b'-')
            && matches!(bytes[end - 1], b'e' | b'E')
            && bytes[..end - 1].iter().all(|byte| byte.is_ascii_digit() || *byte == b'.');
        if !(byte.is_ascii_alphanumeric() || byte == b'.' || signs_exponent) {
            break;
        }
        end += 1;
    }
    end
}

/// The value of a [`Kind::Number`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// Two's complement.
    Integer(i64),
    F32(u32),
    F64(u64),
}

/// `12`, `0x1F`, `0b101`, `017`, `12U`, `0f3F800000`, `0d3FF0000000000000`, `1.5e-3`.
pub fn number(text: &str) -> Option<Number> {
    let hexadecimal = |digits: &str, expected: usize| {
        let is_right = digits.len() == expected && digits.bytes().all(|b| b.is_ascii_hexdigit());
        is_right.then(|| u64::from_str_radix(digits, 16).ok())?
    };
    let prefix = text.get(..2).unwrap_or_default().to_ascii_lowercase();
    match prefix.as_str() {
        "0f" => return Some(Number::F32(hexadecimal(&text[2..], 8)? as u32)),
        "0d" => return Some(Number::F64(hexadecimal(&text[2..], 16)?)),
        "0x" | "0b" => {}
        _ if text.contains(['.', 'e', 'E']) => {
            return Some(Number::F64(text.parse::<f64>().ok()?.to_bits()));
        }
        _ => {}
    }
    let digits = text.strip_suffix('U').unwrap_or(text);
    let value = match prefix.as_str() {
        "0x" => u64::from_str_radix(&digits[2..], 16),
        "0b" => u64::from_str_radix(&digits[2..], 2),
        _ if digits.len() > 1 && digits.starts_with('0') => u64::from_str_radix(digits, 8),
        _ => digits.parse(),
    };
    Some(Number::Integer(value.ok()? as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Kind<'_>> {
        tokens(text).unwrap().into_iter().map(|token| token.kind).collect()
    }

    #[test]
    fn words_keep_their_inner_dots() {
        use Kind::*;
        assert_eq!(
            kinds("@!%p1 cp.async.cg.shared::cta.v4 [_], %tid.x; $L:.reg"),
            [
                Mark('@'),
                Mark('!'),
                Word("%p1"),
                Word("cp.async.cg.shared::cta.v4"),
                Mark('['),
                Word("_"),
                Mark(']'),
                Mark(','),
                Word("%tid.x"),
                Mark(';'),
                Word("$L"),
                Mark(':'),
                Directive("reg"),
                End
            ]
        );
        assert_eq!(
            kinds(".param.u64.ptr"),
            [Directive("param"), Directive("u64"), Directive("ptr"), End]
        );
    }

    #[test]
    fn comments_and_strings_are_skipped_over_lines() {
        let found = tokens("a // b \" \n/* c\n\n*/ \"x // y\" é").unwrap_err();
        assert_eq!(found.line, 4);
        assert_eq!(found.message, "the character '\\u{e9}' means nothing in PTX");
        assert_eq!(kinds("\"x // y\"/**/"), [Kind::Text("x // y"), Kind::End]);
        assert_eq!(tokens("/* a").unwrap_err().message, "the comment has no end");
        assert_eq!(tokens("\"a\nb\"").unwrap_err().message, "the string has no end");
    }

    #[test]
    fn numbers_of_every_kind() {
        use Number::*;
        assert_eq!(
            kinds("1.5e-3+-12"),
            [
                Kind::Number("1.5e-3"),
                Kind::Mark('+'),
                Kind::Mark('-'),
                Kind::Number("12"),
                Kind::End
            ]
        );
        assert_eq!(kinds("0x1e-3")[0], Kind::Number("0x1e"));
        for (text, value) in [
            ("0", Some(Integer(0))),
            ("12U", Some(Integer(12))),
            ("017", Some(Integer(15))),
            ("0b101", Some(Integer(5))),
            ("0xFFFFFFFFFFFFFFFF", Some(Integer(-1))),
            ("18446744073709551615", Some(Integer(-1))),
            ("18446744073709551616", None),
            ("0f3F800000", Some(F32(1f32.to_bits()))),
            ("0F7f800000", Some(F32(f32::INFINITY.to_bits()))),
            ("0f3F80000", None),
            ("0f+1234567", None),
            ("0d3FF0000000000000", Some(F64(1f64.to_bits()))),
            ("1.5e-3", Some(F64(1.5e-3f64.to_bits()))),
            ("08", None),
            ("1x", None),
        ] {
            assert_eq!(number(text), value, "{text}");
        }
    }
}
