//! The reader of fat binaries, on what nvcc writes and on damaged images.

use std::ffi::{CString, c_void};

use emucuda::fatbin::{Error, from_fatbin, ptx};

use crate::nvcc;
use crate::random::Random;

const TEXT: &str = ".version 7.0\n.target sm_80\n.address_size 64\n";

struct Entry {
    kind: u16,
    arch: u32,
    flags: u64,
    payload: Vec<u8>,
}

fn entry(kind: u16, arch: u32, flags: u64, payload: &str) -> Entry {
    Entry { kind, arch, flags, payload: payload.into() }
}

fn image(entries: &[Entry]) -> Vec<u8> {
    let mut body = Vec::new();
    for entry in entries {
        let mut header = [0u8; 64];
        header[..2].copy_from_slice(&entry.kind.to_le_bytes());
        header[4..8].copy_from_slice(&64u32.to_le_bytes());
        header[8..16].copy_from_slice(&(entry.payload.len() as u64).to_le_bytes());
        header[16..20].copy_from_slice(&(entry.payload.len() as u32).to_le_bytes());
        header[28..32].copy_from_slice(&entry.arch.to_le_bytes());
        header[40..48].copy_from_slice(&entry.flags.to_le_bytes());
        body.extend(header);
        body.extend(&entry.payload);
    }
    let mut image = 0xBA55_ED50u32.to_le_bytes().to_vec();
    image.extend([1, 0, 16, 0]);
    image.extend((body.len() as u64).to_le_bytes());
    image.extend(body);
    image
}

/// The pointer that a program passes, to whichever of the three images.
fn read(image: &[u8], capability: u32) -> Result<String, Error> {
    // SAFETY: the tests pass whole images, and text with its NUL.
    unsafe { ptx(image.as_ptr().cast(), capability) }
}

#[test]
fn the_highest_architecture_that_runs_is_chosen() {
    let text = |arch: &str| format!(".version 7.0 // {arch}");
    let image = image(&[
        entry(1, 70, 0, &text("70")),
        entry(2, 80, 0, "\x7fELF"),
        entry(1, 80, 0, &text("80")),
        entry(1, 90, 0x10_0000, &text("90a")),
        entry(1, 90, 0, &text("90")),
    ]);
    for (capability, chosen) in
        [(70, "70"), (75, "70"), (80, "80"), (89, "80"), (90, "90a"), (100, "90")]
    {
        assert_eq!(read(&image, capability), Ok(text(chosen)), "sm_{capability}");
    }
    let error = read(&image, 60).unwrap_err();
    assert_eq!(
        error.to_string(),
        "fat binary: expected PTX for sm_60 or older, got PTX for compute_70, machine code for sm_80, \
         PTX for compute_80, PTX for compute_90a, PTX for compute_90; compile with nvcc -gencode \
         arch=compute_60,code=[compute_60,sm_60]"
    );
    assert!(matches!(error, Error::NoPtx(_)));
}

#[test]
fn a_wrapper_leads_to_its_fat_binary() {
    let inner = image(&[entry(1, 80, 0, TEXT)]);
    let wrapper = |inner: *const c_void| {
        let mut bytes = 0x4662_43B1u32.to_le_bytes().to_vec();
        bytes.extend([1, 0, 0, 0]);
        bytes.extend((inner as u64).to_le_bytes());
        bytes.extend([0; 8]);
        bytes
    };
    assert_eq!(read(&wrapper(inner.as_ptr().cast()), 80), Ok(TEXT.to_owned()));
    let error = read(&wrapper(std::ptr::null()), 80).unwrap_err().to_string();
    assert_eq!(error, "module image: the wrapper (magic 0x466243b1) points to no fat binary");
    let error = read(&wrapper(c"text".as_ptr().cast()), 80).unwrap_err();
    assert!(matches!(error, Error::NotAnImage(_)));
}

#[test]
fn text_is_taken_as_it_is() {
    let text = CString::new(TEXT).unwrap();
    assert_eq!(read(text.as_bytes_with_nul(), 80), Ok(TEXT.to_owned()));
    for (bytes, start) in [(&b"\0"[..], ""), (b"P\0", "P"), (b"\xff\xfe\0", "\\xff\\xfe")] {
        let expected = format!(
            "module image: expected a fat binary or PTX, which has a `.version`; it starts with \"{start}\""
        );
        assert_eq!(read(bytes, 80), Err(Error::NotAnImage(expected)));
    }
    // SAFETY: null is allowed.
    let error = unsafe { ptx(std::ptr::null(), 80) }.unwrap_err().to_string();
    assert_eq!(error, "module image: the pointer is null");
}

#[test]
fn images_without_usable_ptx_say_what_they_are() {
    let error = read(b"\x7fELF\x02\x01\0", 80).unwrap_err().to_string();
    assert!(
        error.starts_with("module image: a cubin, which is machine code only; expected"),
        "{error}"
    );
    let error = read(&image(&[entry(2, 80, 0, "\x7fELF")]), 80).unwrap_err().to_string();
    assert!(error.contains("or older, got machine code for sm_80; compile with"), "{error}");
    let error = read(&image(&[entry(1, 80, 0x2000, "x")]), 80).unwrap_err().to_string();
    assert!(
        error.contains("PTX for compute_80 is compressed with LZ4, expected zstd or none"),
        "{error}"
    );
    let error = read(&image(&[]), 80).unwrap_err().to_string();
    assert!(error.contains("got nothing"), "{error}");
}

#[test]
fn sizes_are_checked() {
    let damage = |at: usize, value: u64, bytes: usize| {
        let mut image = image(&[entry(1, 80, 0, TEXT)]);
        image[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        from_fatbin(&image, 80).unwrap_err()
    };
    for (at, value, bytes, message) in [
        (0, 0, 4, "its magic 0xba55ed50 is missing"),
        (6, 8, 2, "a header of 8 bytes and 108 bytes of entries, expected at least 16"),
        (8, 1 << 33, 8, "a header of 16 bytes and 8589934592 bytes of entries, expected"),
        (8, 200, 8, "expected 216 bytes, got 124"),
        (8, 63, 8, "entry at byte 16: expected a header of 64 bytes, got 63"),
        (20, 0, 4, "entry at byte 16: a header of 0 bytes and a payload of 44, where 108"),
        (24, u64::MAX, 8, "entry at byte 16: a header of 64 bytes and a payload of 18446744"),
        (24, 45, 8, "entry at byte 16: a header of 64 bytes and a payload of 45, where 108"),
    ] {
        let error = damage(at, value, bytes).to_string();
        assert!(error.starts_with(&format!("fat binary: {message}")), "{error}");
    }
}

#[test]
fn nvcc_images_of_every_compression() {
    let Some(nvcc) = nvcc::find("nvcc_images_of_every_compression") else { return };
    let source = nvcc::root().join("kernels/rms_norm.cu");
    let include = format!("-I{}", nvcc::root().join("kernels").display());
    let compile = |arguments: &[&str]| {
        let common = ["-fatbin", "-std=c++17", &include];
        nvcc::compile(&nvcc, &source, &[&common, arguments].concat())
    };
    let both = [
        "-gencode=arch=compute_80,code=[compute_80,sm_80]",
        "-gencode=arch=compute_90a,code=[compute_90a,sm_90a]",
    ];
    let compressed = compile(&both);
    let plain = compile(&[both[0], both[1], "-no-compress"]);
    for (capability, target) in
        [(80, ".target sm_80\n"), (89, ".target sm_80\n"), (90, ".target sm_90a\n")]
    {
        let text = read(&compressed, capability).expect("nvcc's image is read");
        assert!(text.contains(target) && text.contains(".entry rms_norm_forward_f32("));
        assert!(read(&plain, capability).expect("without compression").contains(target));
    }
    let error = read(&compile(&["-gencode=arch=compute_80,code=sm_80"]), 80).unwrap_err();
    assert!(matches!(error, Error::NoPtx(_)), "{error}");

    // Damage is told or does not matter; it never panics and never reads outside.
    let mut random = Random::new(1);
    for _ in 0..300 {
        let mut image = compressed.clone();
        for _ in 0..1 + random.below(4) {
            let near_start = 16 + random.below(400);
            let anywhere = random.below(image.len());
            let at = if random.below(2) == 0 { near_start } else { anywhere };
            image[at] = random.next() as u8;
        }
        let _ = from_fatbin(&image, 80);
        let _ = from_fatbin(&image[..random.below(image.len())], 80);
    }
}
