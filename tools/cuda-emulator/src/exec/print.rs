//! `printf` of a kernel: its format and the arguments that the compiler put in a row.

use std::ffi::{CString, c_char};

/// What a call prints, and how many arguments it took. `argument` reads so many bytes at an offset of the row of arguments, `string` the text at an
/// address; both give nothing where there is nothing to read.
pub fn text(
    format: &[u8],
    argument: impl Fn(u64, usize) -> Option<u64>,
    string: impl Fn(u64) -> Vec<u8>,
) -> (Vec<u8>, i32) {
    let mut printed = Vec::new();
    let mut count = 0;
    let (mut rest, mut offset) = (format, 0u64);
    // Every argument lies at a multiple of its size.
    let mut next = |bytes: usize| {
        let at = offset.next_multiple_of(bytes as u64);
        offset = at + bytes as u64;
        argument(at, bytes)
    };
    while let Some(at) = rest.iter().position(|&byte| byte == b'%') {
        printed.extend_from_slice(&rest[..at]);
        let end = rest[at + 1..].iter().position(|byte| !b"-+ #0123456789.*lhzjt".contains(byte));
        let Some(end) = end.map(|end| at + 1 + end) else { return (printed, count) };
        let is_long = rest[at..end].iter().any(|byte| b"lzjt".contains(byte));
        // Flags, width and precision, as they are; a `*` takes them from the arguments.
        let mut start = b"%".to_vec();
        for &byte in rest[at + 1..end].iter().filter(|byte| !b"lhzjt".contains(byte)) {
            match byte {
                b'*' => start.extend((next(4).unwrap_or(0) as i32).to_string().bytes()),
                _ => start.push(byte),
            }
        }
        let conversion = rest[end];
        count += (conversion != b'%') as i32;
        rest = &rest[end + 1..];
        let value = match conversion {
            b'%' => Some(Value::Text(b"%".to_vec())),
            b'd' | b'i' if is_long => next(8).map(|value| Value::Integer(value as i64)),
            b'd' | b'i' => next(4).map(|value| Value::Integer(value as i32 as i64)),
            b'u' | b'x' | b'X' | b'o' if is_long => {
                next(8).map(|value| Value::Integer(value as i64))
            }
            b'u' | b'x' | b'X' | b'o' | b'c' => next(4).map(|value| Value::Integer(value as i64)),
            b'f' | b'F' | b'e' | b'E' | b'g' | b'G' | b'a' | b'A' => {
                next(8).map(|value| Value::Float(f64::from_bits(value)))
            }
            b's' => next(8).map(|address| Value::Text(string(address))),
            b'p' => next(8).map(|address| Value::Text(format!("{address:#x}").into_bytes())),
            _ => None,
        };
        let Some(value) = value else { return (printed, count) };
        printed.extend(value.formatted(&start, conversion));
    }
    printed.extend_from_slice(rest);
    (printed, count)
}

enum Value {
    Integer(i64),
    Float(f64),
    Text(Vec<u8>),
}

impl Value {
    /// As C formats it: `start` is the specification without length and conversion.
    fn formatted(self, start: &[u8], conversion: u8) -> Vec<u8> {
        let ending: &[u8] = match (&self, conversion) {
            (Value::Text(_), _) => b"s",
            (Value::Integer(_), b'c') => b"c",
            (Value::Integer(_), _) => &[b'l', b'l', conversion],
            (Value::Float(_), _) => &[conversion],
        };
        // Neither holds a 0: a specification has none, and a text ends before it.
        let Ok(specification) = CString::new([start, ending].concat()) else { return Vec::new() };
        let specification = specification.as_ptr();
        let mut buffer = vec![0u8; 4096];
        let (to, size) = (buffer.as_mut_ptr().cast::<c_char>(), buffer.len());
        // SAFETY: at most `size` bytes are written; the conversion is one of an argument of this type.
        let length = unsafe {
            match self {
                Value::Integer(value) if conversion == b'c' => {
                    libc::snprintf(to, size, specification, value as i32)
                }
                Value::Integer(value) => libc::snprintf(to, size, specification, value),
                Value::Float(value) => libc::snprintf(to, size, specification, value),
                Value::Text(text) => match CString::new(text) {
                    Ok(text) => libc::snprintf(to, size, specification, text.as_ptr()),
                    Err(_) => 0,
                },
            }
        };
        buffer.truncate(length.clamp(0, size as i32 - 1) as usize);
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_c_prints() {
        let mut row = [0u8; 64];
        row[0..4].copy_from_slice(&(-7i32).to_le_bytes());
        row[8..16].copy_from_slice(&1.5f64.to_bits().to_le_bytes());
        row[16..20].copy_from_slice(&0xbeefu32.to_le_bytes());
        row[24..32].copy_from_slice(&(1u64 << 40).to_le_bytes());
        row[32..40].copy_from_slice(&77u64.to_le_bytes());
        row[40..44].copy_from_slice(&u32::from(b'!').to_le_bytes());
        let argument = |at: u64, bytes: usize| {
            let held = row.get(at as usize..at as usize + bytes)?;
            Some(held.iter().rev().fold(0, |value, &byte| value << 8 | byte as u64))
        };
        let string = |address: u64| format!("text at {address}").into_bytes();
        let print = |format: &str| {
            let (printed, count) = text(format.as_bytes(), argument, string);
            (String::from_utf8_lossy(&printed).into_owned(), count)
        };
        let line = "-7|  1.50|0xbeef|1099511627776|text at 77|!|100%\n".to_owned();
        assert_eq!(print("%d|%6.2f|%#x|%llu|%s|%c|100%%\n"), (line, 6));
        assert_eq!(print("%-5d| %e"), ("-7   | 1.500000e+00".to_owned(), 2));
        assert_eq!(print("plain"), ("plain".to_owned(), 0));
        assert_eq!(print("ends in %").0, "ends in ");
        assert_eq!(print("not known: %y, %d").0, "not known: ");
    }
}
