//! A picture file of any content.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, RgbImage, RgbaImage};
use silkie::data::image::{decode, resize_bicubic};

/// One small picture in each format, with and without alpha.
pub fn seeds() -> Vec<Vec<u8>> {
    let rgb = RgbImage::from_fn(9, 7, |x, y| image::Rgb([x as u8 * 20, y as u8 * 30, 5]));
    let rgba = RgbaImage::from_fn(5, 6, |x, y| image::Rgba([x as u8, y as u8, 99, 40 * x as u8]));
    let encode = |picture: DynamicImage, format| {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).expect("encodes");
        bytes.into_inner()
    };
    let formats = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Bmp];
    let mut seeds = formats.map(|format| encode(rgb.clone().into(), format)).to_vec();
    seeds.push(encode(rgba.clone().into(), ImageFormat::Gif));
    seeds.push(encode(rgba.into(), ImageFormat::Png));
    seeds.push(encode(DynamicImage::from(rgb).into_luma16().into(), ImageFormat::Png));
    seeds
}

/// What decodes has the pixels it says, no more than allowed, and can be resized.
pub fn run(input: &[u8]) {
    const MAX_PIXELS: u64 = 1 << 12;
    let Ok(rgb) = decode(input, MAX_PIXELS) else { return };
    assert!((rgb.width * rgb.height) as u64 <= MAX_PIXELS);
    assert_eq!(rgb.pixels.len(), rgb.width * rgb.height * 3);
    assert_eq!(resize_bicubic(&rgb, 8).len(), 8 * 8 * 3);
}
