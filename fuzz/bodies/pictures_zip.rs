//! A zip of pictures of any content.

use std::io::{Cursor, Write};

use silkie::data::pictures::Pictures;
use zip::write::SimpleFileOptions;

thread_local! {
    static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a folder");
}

/// Stored and deflated entries, a folder, a name that leads out.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let methods = [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated];
    for (i, name) in ["a.jpg", "top/b.jpg", "../c.jpg", "top/a.jpg"].into_iter().enumerate() {
        let options = SimpleFileOptions::default().compression_method(methods[i % 2]);
        zip.start_file(name, options).expect("an entry");
        zip.write_all(&name.repeat(5 * i).into_bytes()).expect("written");
    }
    zip.add_directory("empty/", SimpleFileOptions::default()).expect("a folder");
    vec![zip.finish().expect("a zip").into_inner()]
}

/// What opens answers for any name.
pub fn run(input: &[u8]) {
    let path = FOLDER.with(|folder| folder.path().join("p.zip"));
    std::fs::remove_file(&path).ok();
    std::fs::write(&path, input).expect("written");
    let Ok(pictures) = Pictures::open(&path) else { return };
    for name in ["a.jpg", "b.jpg", "c.jpg", "top/a.jpg", "empty", ""] {
        let _ = pictures.read(name, "a");
    }
}
