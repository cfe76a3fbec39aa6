//! Picture files → RGB, as PIL's `convert("RGB")` does it.

use std::fmt;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ::image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::Rgb;

/// Default limit on the pixels of one picture: about the size at which PIL warns of a
/// decompression bomb (2^28 / 3), 300 MB decoded.
pub const MAX_PIXELS: u64 = 100_000_000;

/// Why a picture could not be decoded. Messages speak of "the picture"; the caller names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The header promises more pixels than allowed; nothing was decoded.
    TooLarge {
        /// Pixels per row.
        width: u32,
        /// Rows.
        height: u32,
        /// The limit.
        max_pixels: u64,
    },
    /// Not a picture of a known format, or broken inside; the decoder's words.
    Unreadable(String),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageError::TooLarge { width, height, max_pixels } => write!(
                f,
                "the picture has {width} x {height} pixels: expected at most {max_pixels}; \
                 shrink it or raise --max-pixels"
            ),
            ImageError::Unreadable(why) => write!(f, "the picture cannot be decoded: {why}"),
        }
    }
}

impl std::error::Error for ImageError {}

/// Decodes a JPEG, PNG, WebP, GIF (first frame) or BMP file; the content decides, not a name.
/// The size is read from the header and held against `max_pixels` before anything is allocated.
pub fn decode(bytes: &[u8], max_pixels: u64) -> Result<Rgb, ImageError> {
    // A decoder that panics on some broken file must cost that file, not the run.
    let decoded = catch_unwind(AssertUnwindSafe(|| decode_inner(bytes, max_pixels)));
    decoded.unwrap_or_else(|_| Err(ImageError::Unreadable("the decoder gave up on it".into())))
}

fn decode_inner(bytes: &[u8], max_pixels: u64) -> Result<Rgb, ImageError> {
    let unreadable = |e: ::image::ImageError| ImageError::Unreadable(e.to_string());
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| ImageError::Unreadable(e.to_string()))?;
    if reader.format() == Some(ImageFormat::Jpeg) && !jpeg_is_complete(bytes) {
        return Err(ImageError::Unreadable("the JPEG file is truncated (no end marker)".into()));
    }
    // Twice 16-bit RGBA of the largest picture: room for a codec's own tables as well.
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(max_pixels.saturating_mul(16).saturating_add(1 << 26));
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(unreadable)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(ImageError::TooLarge { width, height, max_pixels });
    }
    if width == 0 || height == 0 {
        return Err(ImageError::Unreadable(format!("it has {width} x {height} pixels")));
    }
    let picture = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    let pixels = to_rgb(picture);
    Ok(Rgb { width: width as usize, height: height as usize, pixels })
}

/// PIL's rules per mode: grey is repeated, alpha dropped, 16-bit colour keeps its high byte,
/// 16-bit grey (PIL's mode "I") is clipped to 0..=255, not scaled.
fn to_rgb(picture: DynamicImage) -> Vec<u8> {
    let high = |v: u16| (v >> 8) as u8;
    match picture {
        DynamicImage::ImageRgb8(p) => p.into_raw(),
        DynamicImage::ImageLuma8(p) => p.into_raw().iter().flat_map(|&v| [v; 3]).collect(),
        DynamicImage::ImageLumaA8(p) => p.pixels().flat_map(|p| [p[0]; 3]).collect(),
        DynamicImage::ImageRgba8(p) => p.pixels().flat_map(|p| [p[0], p[1], p[2]]).collect(),
        DynamicImage::ImageLuma16(p) => {
            p.into_raw().iter().flat_map(|&v| [v.min(255) as u8; 3]).collect()
        }
        DynamicImage::ImageLumaA16(p) => p.pixels().flat_map(|p| [high(p[0]); 3]).collect(),
        DynamicImage::ImageRgb16(p) => p.into_raw().into_iter().map(high).collect(),
        DynamicImage::ImageRgba16(p) => {
            p.pixels().flat_map(|p| [high(p[0]), high(p[1]), high(p[2])]).collect()
        }
        other => other.into_rgb8().into_raw(), // float formats, whose codecs we do not build
    }
}

/// Whether an end marker follows the first scan. PIL refuses truncated files; the decoder we use
/// would fill them up with grey. (An end marker before the scan belongs to a thumbnail.)
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xDA;
    const END: [u8; 2] = [0xFF, 0xD9];
    let mut at = 2; // after the start marker
    while let Some(&[0xFF, marker, high, low]) = bytes.get(at..at + 4) {
        if marker == START_OF_SCAN {
            return bytes[at..].windows(2).rev().any(|pair| pair == END);
        }
        // Fill bytes and markers without a length are skipped one byte at a time.
        let standalone = matches!(marker, 0xFF | 0x01 | 0xD0..=0xD8);
        at += if standalone { 1 } else { 2 + usize::from(u16::from_be_bytes([high, low])) };
    }
    // No scan was found by this simple walk: the decoder's own words are better than ours.
    true
}
