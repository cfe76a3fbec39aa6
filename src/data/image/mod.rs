//! Pictures: file bytes → RGB → the model's square input, byte for byte as the original sees it.
//!
//! The original is PIL's `Image.open(f).convert("RGB")` and torchvision's
//! `Resize((S, S), BICUBIC)` on Pillow 10.1: aspect ratio not kept, EXIF orientation ignored, alpha
//! dropped (not composited), palette transparency ignored. Normalisation belongs to the model.

mod decode;
mod resize;

pub use decode::{ImageError, MAX_PIXELS, decode};
pub use resize::resize_bicubic;

use std::path::Path;

use crate::data::atomic;
use crate::error::{Error, Result};

/// A decoded picture: `height` rows of `width` pixels of three bytes, without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes, R G B.
    pub pixels: Vec<u8>,
}

/// Reads the picture `path` and resizes it to `[size, size, 3]` bytes.
/// Errors name the file: unreadable, no picture, or more than [`MAX_PIXELS`].
pub fn load(path: impl AsRef<Path>, size: usize) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read the picture", e))?;
    let rgb = decode(&bytes, MAX_PIXELS).map_err(|e| Error::file(path, "", e.to_string()))?;
    Ok(resize_bicubic(&rgb, size))
}

/// Writes `picture` as a PNG file.
pub fn write_png(path: impl AsRef<Path>, picture: &Rgb) -> Result<()> {
    use ::image::{ColorType, ImageEncoder, codecs::png::PngEncoder};
    let path = path.as_ref();
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(
            &picture.pixels,
            picture.width as u32,
            picture.height as u32,
            ColorType::Rgb8.into(),
        )
        .map_err(|e| Error::file(path, "", format!("cannot be encoded: {e}")))?;
    atomic::write_bytes(path, &png)
}
