//! From the image that a program hands to `cuModuleLoadData` to the PTX text in it.
//!
//! A fat binary (as nvcc 12 and 13 write it; NVIDIA documents none of this) is a header of 16 bytes or more: magic u32, version
//! u16, size of the header u16, bytes of entries u64. Entries follow one another, each a header and a payload: at byte 0 of the
//! header its kind u16, at 4 the header's size u32, at 8 the payload's size u64, at 16 the compressed bytes u32, at 28 the
//! architecture u32 (80), at 40 flags u64, at 56 the uncompressed bytes u64. All is little-endian.

use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::io::Read;

use ruzstd::decoding::StreamingDecoder;

const FATBIN: [u8; 4] = 0xBA55_ED50u32.to_le_bytes();
/// `__fatBinC_Wrapper_t`, whose pointer to the fat binary is at byte 8.
const WRAPPER: [u8; 4] = 0x4662_43B1u32.to_le_bytes();
const ELF: [u8; 4] = *b"\x7fELF";

const HEADER: usize = 16;
const ENTRY_HEADER: usize = 64;
const KIND_PTX: u16 = 1;
const KIND_ELF: u16 = 2;
const FLAG_LZ4: u64 = 0x2000;
const FLAG_ZSTD: u64 = 0x8000;
/// Of an `a` target, which runs on its very architecture only.
const FLAG_EXACT: u64 = 0x10_0000;

/// No program's kernels are larger.
const MAX_BYTES: u64 = 1 << 32;

/// Why there is no PTX text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Neither a fat binary nor its wrapper nor text.
    NotAnImage(String),
    /// A size or a payload that cannot be.
    Damaged(String),
    /// Intact, without PTX that the device could run.
    NoPtx(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotAnImage(text) | Error::Damaged(text) | Error::NoPtx(text) => {
                f.write_str(text)
            }
        }
    }
}

impl std::error::Error for Error {}

/// The PTX text that a device of `capability` (80: sm_80) runs, out of `image`: of the highest
/// architecture that is not above it; of `a` targets, its very own.
///
/// # Safety
/// `image` is null or points to a fat binary, to a wrapper of one, or to text that a NUL ends.
pub unsafe fn ptx(image: *const c_void, capability: u32) -> Result<String, Error> {
    if image.is_null() {
        return Err(Error::NotAnImage("module image: the pointer is null".into()));
    }
    // SAFETY: the caller's promise; each arm reads what its magic says is there.
    unsafe {
        if starts_with(image, FATBIN) {
            from_fatbin(whole(image)?, capability)
        } else if starts_with(image, WRAPPER) {
            let inner = image.byte_add(8).cast::<*const c_void>().read_unaligned();
            if inner.is_null() || !starts_with(inner, FATBIN) {
                let text = "module image: the wrapper (magic 0x466243b1) points to no fat binary";
                return Err(Error::NotAnImage(text.into()));
            }
            from_fatbin(whole(inner)?, capability)
        } else if starts_with(image, ELF) {
            from_bytes(&ELF, capability)
        } else {
            from_text(CStr::from_ptr(image.cast::<c_char>()).to_bytes())
        }
    }
}

/// The same out of the bytes of a file: a fat binary, or text.
pub fn from_bytes(bytes: &[u8], capability: u32) -> Result<String, Error> {
    if bytes.starts_with(&FATBIN) {
        from_fatbin(bytes, capability)
    } else if bytes.starts_with(&ELF) {
        Err(Error::NoPtx(
            "module image: a cubin, which is machine code only; expected a fat binary with PTX: \
             compile with nvcc -fatbin -gencode arch=compute_80,code=[compute_80,sm_80]"
                .into(),
        ))
    } else {
        from_text(bytes)
    }
}

/// The same out of the bytes of a fat binary.
pub fn from_fatbin(bytes: &[u8], capability: u32) -> Result<String, Error> {
    let entries = entries(bytes)?;
    let chosen = entries
        .iter()
        .filter(|entry| entry.kind == KIND_PTX)
        .filter(|entry| match entry.flags & FLAG_EXACT {
            0 => entry.arch <= capability,
            _ => entry.arch == capability,
        })
        .max_by_key(|entry| (entry.arch, entry.flags & FLAG_EXACT));
    let Some(entry) = chosen else {
        let found: Vec<String> = entries.iter().map(Entry::to_string).collect();
        let found = if found.is_empty() { "nothing".into() } else { found.join(", ") };
        return Err(Error::NoPtx(format!(
            "fat binary: expected PTX for sm_{capability} or older, got {found}; compile with nvcc \
             -gencode arch=compute_{capability},code=[compute_{capability},sm_{capability}]"
        )));
    };
    match entry.flags & (FLAG_LZ4 | FLAG_ZSTD) {
        0 => from_text(entry.payload),
        FLAG_ZSTD => from_text(&entry.decompress()?),
        _ => Err(Error::NoPtx(format!(
            "fat binary: {entry} is compressed with LZ4, expected zstd or none; compile with nvcc 13, \
             or with -no-compress"
        ))),
    }
}

struct Entry<'a> {
    kind: u16,
    arch: u32,
    flags: u64,
    compressed: u64,
    plain: u64,
    payload: &'a [u8],
}

impl fmt::Display for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.flags & FLAG_EXACT == 0 { "" } else { "a" };
        match self.kind {
            KIND_PTX => write!(f, "PTX for compute_{}{suffix}", self.arch),
            KIND_ELF => write!(f, "machine code for sm_{}{suffix}", self.arch),
            kind => write!(f, "an entry of unknown kind {kind}"),
        }
    }
}

impl Entry<'_> {
    fn decompress(&self) -> Result<Vec<u8>, Error> {
        let damaged = |what: String| Error::Damaged(format!("fat binary: {self}: {what}"));
        let compressed = usize::try_from(self.compressed).ok();
        let Some(compressed) = compressed.and_then(|bytes| self.payload.get(..bytes)) else {
            return Err(damaged(format!(
                "{} compressed bytes, but a payload of {}",
                self.compressed,
                self.payload.len()
            )));
        };
        if self.plain > MAX_BYTES {
            return Err(damaged(format!("{} bytes of text, expected at most 2^32", self.plain)));
        }
        let mut text = Vec::new();
        StreamingDecoder::new(compressed)
            .map_err(|e| e.to_string())
            .and_then(|decoder| {
                decoder.take(self.plain + 1).read_to_end(&mut text).map_err(|e| e.to_string())
            })
            .map_err(|e| damaged(format!("zstd: {e}")))?;
        if text.len() as u64 != self.plain {
            let (got, expected) = (text.len(), self.plain);
            return Err(damaged(format!("expected {expected} bytes of text, got {got}")));
        }
        Ok(text)
    }
}

fn entries(bytes: &[u8]) -> Result<Vec<Entry<'_>>, Error> {
    let extent = extent(bytes)?;
    let Some(bytes) = bytes.get(..extent) else {
        let got = bytes.len();
        return Err(Error::Damaged(format!("fat binary: expected {extent} bytes, got {got}")));
    };
    let mut entries = Vec::new();
    let mut at = u16_at(bytes, 6) as usize;
    while at < extent {
        let damaged =
            |what: String| Error::Damaged(format!("fat binary: entry at byte {at}: {what}"));
        let rest = &bytes[at..];
        if rest.len() < ENTRY_HEADER {
            let got = rest.len();
            return Err(damaged(format!("expected a header of {ENTRY_HEADER} bytes, got {got}")));
        }
        let (header, payload) = (u64::from(u32_at(rest, 4)), u64_at(rest, 8));
        let end = header.checked_add(payload).filter(|&end| end <= rest.len() as u64);
        let Some(end) = end.filter(|_| header >= ENTRY_HEADER as u64) else {
            return Err(damaged(format!(
                "a header of {header} bytes and a payload of {payload}, where {} are left",
                rest.len()
            )));
        };
        entries.push(Entry {
            kind: u16_at(rest, 0),
            arch: u32_at(rest, 28),
            flags: u64_at(rest, 40),
            compressed: u32_at(rest, 16).into(),
            plain: u64_at(rest, 56),
            payload: &rest[header as usize..end as usize],
        });
        at += end as usize;
    }
    Ok(entries)
}

/// All bytes, by what the header says.
fn extent(header: &[u8]) -> Result<usize, Error> {
    if header.len() < HEADER || !header.starts_with(&FATBIN) {
        return Err(Error::NotAnImage("fat binary: its magic 0xba55ed50 is missing".into()));
    }
    let (own, entries) = (u64::from(u16_at(header, 6)), u64_at(header, 8));
    if own < HEADER as u64 || entries > MAX_BYTES {
        return Err(Error::Damaged(format!(
            "fat binary: a header of {own} bytes and {entries} bytes of entries, expected at least \
             {HEADER} and at most 2^32"
        )));
    }
    Ok((own + entries) as usize)
}

/// PTX without the NULs that pad it.
fn from_text(bytes: &[u8]) -> Result<String, Error> {
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    match std::str::from_utf8(text) {
        Ok(text) if text.contains(".version") => Ok(text.to_owned()),
        _ => {
            let found = &text[..text.len().min(16)];
            Err(Error::NotAnImage(format!(
                "module image: expected a fat binary or PTX, which has a `.version`; it starts with \"{}\"",
                found.escape_ascii()
            )))
        }
    }
}

/// # Safety
/// `image` points to bytes that start with `magic`, or to some that differ from it before they end.
unsafe fn starts_with(image: *const c_void, magic: [u8; 4]) -> bool {
    // SAFETY: the caller's promise: `all` stops at the first byte that differs.
    (0..4).all(|i| unsafe { image.cast::<u8>().add(i).read() } == magic[i])
}

/// # Safety
/// `image` points to a fat binary that is as long as its header says.
unsafe fn whole<'a>(image: *const c_void) -> Result<&'a [u8], Error> {
    // SAFETY: a fat binary has a header, and then as many bytes as it says.
    unsafe {
        let extent = extent(std::slice::from_raw_parts(image.cast(), HEADER))?;
        Ok(std::slice::from_raw_parts(image.cast(), extent))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// Of bytes whose length was checked.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}
