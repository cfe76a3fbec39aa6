//! Reader of `qwen.tiktoken`: a line `base64 rank` per token, LF or CRLF.
//!
//! A rank file lists which byte strings are tokens, and in which order they were learned; a
//! byte-level BPE wants the merges. The merge that made a token is found by running BPE over the
//! token's own bytes with the earlier ranks only: the last two parts standing are the pair.

use std::collections::HashMap;

use rayon::prelude::*;

/// Longest token accepted; Qwen's longest has 128 bytes. Bounds the work on a hostile file.
const MAX_TOKEN_BYTES: usize = 1024;

/// The byte strings of all tokens, by rank. Errors name the line.
pub fn parse(file: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut ranks: Vec<Option<Vec<u8>>> = Vec::new();
    let lines: Vec<&[u8]> = file.split(|&b| b == b'\n').collect();
    for (i, line) in lines.iter().enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let at = || format!("line {}", i + 1);
        let (token, rank) = parse_line(line)
            .ok_or_else(|| format!("{}: expected `base64 rank`; the file is damaged", at()))?;
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Err(format!("{}: a token of {} bytes, expected 1 to 1024", at(), token.len()));
        }
        // Ranks are dense, so none can exceed the number of lines.
        if rank >= lines.len() {
            return Err(format!("{}: rank {rank} in a file of {} lines", at(), lines.len()));
        }
        ranks.resize(ranks.len().max(rank + 1), None);
        if ranks[rank].replace(token).is_some() {
            return Err(format!("{}: rank {rank} occurs twice", at()));
        }
    }
    let count = ranks.len();
    let missing = ranks.iter().position(Option::is_none);
    if let Some(rank) = missing {
        return Err(format!("rank {rank} of {count} is missing; the copy is incomplete"));
    }
    Ok(ranks.into_iter().flatten().collect())
}

fn parse_line(line: &[u8]) -> Option<(Vec<u8>, usize)> {
    let space = line.iter().position(|&b| b == b' ')?;
    let rank = std::str::from_utf8(&line[space + 1..]).ok()?.parse().ok()?;
    Some((base64(&line[..space])?, rank))
}

/// Standard alphabet, padded.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.strip_suffix(b"==").or(text.strip_suffix(b"=")).unwrap_or(text);
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for &c in digits {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(digit)) & 0xffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    text.len().is_multiple_of(4).then_some(bytes)
}

/// The merges, earliest first, as pairs of ranks. A token that no merge of earlier tokens can
/// make (a single byte, or an unreachable one) has none.
pub fn merges(tokens: &[Vec<u8>]) -> Vec<[u32; 2]> {
    let ranks: HashMap<&[u8], u32> =
        tokens.iter().enumerate().map(|(rank, token)| (token.as_slice(), rank as u32)).collect();
    let pairs = tokens.par_iter().enumerate().with_min_len(256);
    let pairs = pairs.map(|(rank, token)| last_merge(&ranks, token, rank as u32));
    pairs.collect::<Vec<_>>().into_iter().flatten().collect()
}

fn last_merge(ranks: &HashMap<&[u8], u32>, token: &[u8], rank: u32) -> Option<[u32; 2]> {
    // Part k is token[cuts[k]..cuts[k + 1]]; joined[k] is the rank of parts k and k + 1 as one.
    let mut cuts: Vec<usize> = (0..=token.len()).collect();
    let join = |cuts: &[usize], k: usize| {
        let joined = cuts.get(k + 2).and_then(|&end| ranks.get(&token[cuts[k]..end]));
        joined.copied().filter(|&joined| joined < rank)
    };
    let mut joined: Vec<Option<u32>> = (0..token.len()).map(|k| join(&cuts, k)).collect();
    while cuts.len() > 3 {
        let best = (0..cuts.len() - 2).filter_map(|k| joined[k].map(|rank| (rank, k))).min();
        let (_, k) = best?;
        cuts.remove(k + 1);
        joined.remove(k + 1);
        joined[k] = join(&cuts, k);
        if k > 0 {
            joined[k - 1] = join(&cuts, k - 1);
        }
    }
    let [start, middle, end] = cuts[..] else { return None };
    Some([*ranks.get(&token[start..middle])?, *ranks.get(&token[middle..end])?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_the_standard() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo")] {
            assert_eq!(base64(text.as_bytes()).as_deref(), Some(bytes.as_bytes()));
        }
        assert_eq!(base64(b"/+8="), Some(vec![0xff, 0xef]));
        assert!(base64(b"Zg=").is_none() && base64(b"Z!==").is_none());
    }

    #[test]
    fn a_merge_joins_the_last_two_parts() {
        let tokens: Vec<Vec<u8>> =
            ["a", "b", "c", "ab", "abc", "zz"].map(|t| t.as_bytes().to_vec()).to_vec();
        assert_eq!(merges(&tokens), [[0, 1], [3, 2]], "zz cannot be made");
    }
}
