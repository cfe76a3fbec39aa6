//! Decoding and resizing against PIL's bytes, a naive resize, and hostile files.

use std::fs;
use std::io::Cursor;

use image::{DynamicImage, ImageBuffer, ImageFormat};
use silkie::data::image::{ImageError, MAX_PIXELS, Rgb, decode, load, resize_bicubic};

use crate::support;

fn png(pixels: impl Into<DynamicImage>) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    pixels.into().write_to(&mut bytes, ImageFormat::Png).expect("encoded");
    bytes.into_inner()
}

/// Largest and mean absolute difference.
fn difference(a: &[u8], b: &[u8]) -> (u8, f64) {
    assert_eq!(a.len(), b.len());
    let each = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = each.clone().map(u64::from).sum();
    (each.max().unwrap_or(0), sum as f64 / a.len() as f64)
}

#[test]
fn golden_pictures_come_out_as_from_pil() {
    let Some(goldens) = support::goldens() else { return };
    let folder = goldens.join("image");
    let cases = fs::read(folder.join("cases.json")).expect("cases.json");
    let cases: serde_json::Value = serde_json::from_slice(&cases).expect("JSON");
    let file = |case: &serde_json::Value, key: &str| {
        case[key].as_str().map(|name| fs::read(folder.join(name)).expect("a named file"))
    };
    for case in cases["cases"].as_array().expect("cases") {
        let name = case["input"].as_str().expect("a name");
        let rgb = decode(&file(case, "input").expect("input"), MAX_PIXELS).expect("decodes");
        assert_eq!(serde_json::json!([rgb.width, rgb.height]), case["size_wh"], "{name}");
        let expected = decode(&file(case, "expected").expect("expected"), MAX_PIXELS).expect("PNG");
        assert_eq!(expected.width, expected.height, "{name}");
        let (max, mean) = difference(&resize_bicubic(&rgb, expected.width), &expected.pixels);
        let jpeg = case["format"] == "JPEG";
        let (max_bound, mean_bound) = if jpeg { (12, 0.5) } else { (0, 0.0) };
        assert!(max <= max_bound && mean <= mean_bound, "{name}: max {max}, mean {mean}");
        if let Some(bytes) = file(case, "decoded") {
            let pil = decode(&bytes, MAX_PIXELS).expect("PNG");
            assert_eq!(resize_bicubic(&pil, expected.width), expected.pixels, "{name} decoded");
        }
    }
}

/// The definition, pixel by pixel, in f64 weights rounded to 22 bits.
fn naive(picture: &Rgb, size: usize) -> Vec<u8> {
    let cubic = |x: f64| match x.abs() {
        x if x < 1.0 => 1.5 * x * x * x - 2.5 * x * x + 1.0,
        x if x < 2.0 => -0.5 * (x * x * x - 5.0 * x * x + 8.0 * x - 4.0),
        _ => 0.0,
    };
    let axis = |values: Vec<u8>| -> Vec<u8> {
        if values.len() == size {
            return values;
        }
        let scale = values.len() as f64 / size as f64;
        let wide = scale.max(1.0);
        let position = |x: f64| x.clamp(0.0, values.len() as f64) as usize;
        let at = |x: usize| {
            let center = (x as f64 + 0.5) * scale;
            let range = position(center - 2.0 * wide + 0.5)..position(center + 2.0 * wide + 0.5);
            let raw = |i: usize| cubic((i as f64 + 0.5 - center) / wide);
            let total: f64 = range.clone().map(raw).sum();
            let fixed = |i: usize| (raw(i) / total * 4194304.0).round() as i64;
            let sum: i64 = range.map(|i| fixed(i) * i64::from(values[i])).sum();
            ((sum + (1 << 21)) >> 22).clamp(0, 255) as u8
        };
        (0..size).map(at).collect()
    };
    let (w, h) = (picture.width, picture.height);
    let mut wide = vec![0; size * h * 3];
    let mut out = vec![0; size * size * 3];
    for c in 0..3 {
        for y in 0..h {
            let row = axis((0..w).map(|x| picture.pixels[(y * w + x) * 3 + c]).collect());
            (0..size).for_each(|x| wide[(y * size + x) * 3 + c] = row[x]);
        }
        for x in 0..size {
            let column = axis((0..h).map(|y| wide[(y * size + x) * 3 + c]).collect());
            (0..size).for_each(|y| out[(y * size + x) * 3 + c] = column[y]);
        }
    }
    out
}

#[test]
fn resize_equals_its_definition() {
    let sizes = [(1, 1, 7), (1, 9, 4), (5, 123, 28), (64, 36, 64), (30, 64, 64), (257, 3, 29)];
    for (width, height, size) in sizes {
        let noise = |i: usize| (i.wrapping_mul(2654435761) >> 13) as u8;
        // Full contrast: overshoot of the kernel must be clipped, not wrapped.
        let extreme = |i: usize| if noise(i) > 127 { 255 } else { 0 };
        for value in [&noise as &dyn Fn(usize) -> u8, &extreme] {
            let pixels = (0..width * height * 3).map(value).collect();
            let rgb = Rgb { width, height, pixels };
            // A weight exactly between two integers may round differently in the two formulas.
            let (max, _) = difference(&resize_bicubic(&rgb, size), &naive(&rgb, size));
            assert!(max <= 1, "{width} x {height} to {size}: {max}");
        }
    }
}

#[test]
fn colour_types_follow_pil() {
    let grey16 = ImageBuffer::from_raw(3, 1, vec![7u16, 255, 40000]).expect("fits");
    let rgb16 = ImageBuffer::from_raw(1, 1, vec![0x12ffu16, 0x3400, 0xff7f]).expect("fits");
    let rgba = ImageBuffer::from_raw(1, 1, vec![9u8, 8, 7, 0]).expect("fits");
    let grey_alpha = ImageBuffer::from_raw(1, 1, vec![5u8, 0]).expect("fits");
    let cases = [
        (png(DynamicImage::ImageLuma16(grey16)), vec![7, 7, 7, 255, 255, 255, 255, 255, 255]),
        (png(DynamicImage::ImageRgb16(rgb16)), vec![0x12, 0x34, 0xff]),
        (png(DynamicImage::ImageRgba8(rgba)), vec![9, 8, 7]),
        (png(DynamicImage::ImageLumaA8(grey_alpha)), vec![5, 5, 5]),
    ];
    for (bytes, pixels) in cases {
        assert_eq!(decode(&bytes, MAX_PIXELS).expect("decodes").pixels, pixels);
    }
}

#[test]
fn a_bomb_is_refused_from_its_header() {
    // A PNG header that promises 60000 x 60000 pixels and holds none.
    let mut bytes = png(DynamicImage::new_rgb8(2, 2));
    let side = 60_000u32.to_be_bytes();
    bytes[16..20].copy_from_slice(&side);
    bytes[20..24].copy_from_slice(&side);
    let crc = crc32(&bytes[12..29]).to_be_bytes();
    bytes[29..33].copy_from_slice(&crc);
    let error = decode(&bytes, MAX_PIXELS).expect_err("too large");
    let expected = ImageError::TooLarge { width: 60_000, height: 60_000, max_pixels: MAX_PIXELS };
    assert_eq!(error, expected);
    assert!(error.to_string().contains("raise --max-pixels"), "{error}");
    let small = png(DynamicImage::new_rgb8(10, 10));
    assert!(decode(&small, 99).is_err() && decode(&small, 100).is_ok());
}

/// The checksum of PNG chunks, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| (c >> 1) ^ (0xEDB8_8320 & (c & 1).wrapping_neg()))
    })
}

#[test]
fn broken_files_are_errors() {
    let whole = {
        let mut bytes = Cursor::new(Vec::new());
        let picture = DynamicImage::new_rgb8(64, 64);
        picture.write_to(&mut bytes, ImageFormat::Jpeg).expect("encoded");
        bytes.into_inner()
    };
    assert!(decode(&whole, MAX_PIXELS).is_ok());
    for (name, bytes) in [
        ("empty", &b""[..]),
        ("text", b"GIF or not, this is no picture"),
        ("truncated", &whole[..whole.len() - 20]),
        ("header only", &whole[..40]),
    ] {
        let error = decode(bytes, MAX_PIXELS).expect_err(name);
        assert!(matches!(error, ImageError::Unreadable(_)), "{name}: {error}");
    }
    let missing = load("no/such/picture.png", 448).expect_err("no file");
    assert!(missing.to_string().contains("no/such/picture.png: cannot read the picture"));
}
