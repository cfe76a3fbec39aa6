//! Finding pictures in folders and zips, and never outside them.

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use silkie::data::pictures::{PictureError, Pictures};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

/// Files whose content is their own name.
fn folder(names: &[&str]) -> TempDir {
    let dir = TempDir::new().expect("a folder");
    for name in names {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("created");
        fs::write(path, name).expect("written");
    }
    dir
}

fn archive(names: &[&str]) -> TempDir {
    let dir = TempDir::new().expect("a folder");
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (i, name) in names.iter().enumerate() {
        let method = [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated][i % 2];
        let options = SimpleFileOptions::default().compression_method(method);
        zip.start_file(*name, options).expect("started");
        zip.write_all(name.as_bytes()).expect("written");
    }
    let bytes = zip.finish().expect("finished").into_inner();
    fs::write(dir.path().join("p.zip"), bytes).expect("written");
    dir
}

fn opened(dir: &TempDir) -> Pictures {
    let zip = dir.path().join("p.zip");
    Pictures::open(if zip.exists() { &zip } else { dir.path() }).expect("opens")
}

#[test]
fn names_are_found_wherever_the_archive_put_them() {
    // (files, img_path, id, the file that is meant)
    let cases = [
        (&["a.jpg", "b.jpg"][..], "a.jpg", "", "a.jpg"),
        (&["imgs/a.jpg"], "imgs/a.jpg", "", "imgs/a.jpg"),
        (&["merged_images/a.jpg"], "a.jpg", "", "merged_images/a.jpg"),
        (&["top/imgs/a.jpg"], "imgs/a.jpg", "", "top/imgs/a.jpg"),
        (&["a.jpg"], "some/where/a.jpg", "", "a.jpg"),
        (&["a.jpg"], "/home/me/.cache/extracted/a.jpg", "", "a.jpg"),
        (&["a.jpg"], "C:\\data\\a.jpg", "", "a.jpg"),
        (&["a.jpg"], "./a.jpg", "", "a.jpg"),
        (&["train/a.jpg", "val/a.jpg"], "data/val/a.jpg", "", "val/a.jpg"),
        (&["a.jpg", "sub/a.jpg"], "a.jpg", "", "a.jpg"),
        (&["flat/llava-17.jpg"], "imgs/x.png", "llava-17", "flat/llava-17.jpg"),
        (&["ünï/ç 1.jpg"], "ç 1.jpg", "", "ünï/ç 1.jpg"),
    ];
    for (files, img_path, id, expected) in cases {
        for dir in [folder(files), archive(files)] {
            let pictures = opened(&dir);
            assert_eq!(pictures.len(), files.len());
            let bytes = pictures.read(img_path, id);
            assert_eq!(bytes.as_deref(), Ok(expected.as_bytes()), "{img_path} among {files:?}");
        }
    }
}

#[test]
fn no_file_and_two_files_are_both_missing() {
    for dir in [folder(&["x/a.jpg", "y/a.jpg"]), archive(&["x/a.jpg", "y/a.jpg"])] {
        let pictures = opened(&dir);
        let error = pictures.read("z/a.jpg", "").expect_err("ambiguous");
        assert!(error.to_string().contains("x/a.jpg and y/a.jpg"), "{error}");
        for name in ["b.jpg", "", "/", "x"] {
            let error = pictures.read(name, "b").expect_err("missing");
            assert!(matches!(error, PictureError::Missing(_)), "{error}");
        }
    }
}

#[test]
fn names_that_lead_out_are_refused() {
    let dir = folder(&["secret.jpg", "pictures/a.jpg"]);
    let pictures = Pictures::open(dir.path().join("pictures")).expect("opens");
    for name in ["../secret.jpg", "x/../../secret.jpg", "..\\secret.jpg"] {
        let error = pictures.read(name, "").expect_err("leads out");
        assert!(matches!(error, PictureError::Unsafe(_)), "{error}");
    }
    // An absolute name that exists is looked up inside, by its last part.
    let outside = dir.path().join("secret.jpg");
    let error = pictures.read(outside.to_str().expect("UTF-8"), "").expect_err("not inside");
    assert!(matches!(error, PictureError::Missing(_)), "{error}");
}

#[test]
fn zip_entries_that_lead_out_are_refused() {
    let dir = archive(&["../evil.jpg", "/abs/root.jpg", "fine.jpg"]);
    let pictures = opened(&dir);
    let error = pictures.read("evil.jpg", "").expect_err("leads out");
    assert!(matches!(error, PictureError::Unsafe(_)), "{error}");
    // Nothing is extracted, so an absolute entry is just a name.
    assert_eq!(pictures.read("root.jpg", "").as_deref(), Ok(&b"/abs/root.jpg"[..]));
    assert!(pictures.read("fine.jpg", "").is_ok());
}

#[cfg(unix)]
#[test]
fn links_out_of_the_folder_are_refused() {
    use std::os::unix::fs::symlink;
    let dir = folder(&["secret.jpg", "pictures/a.jpg", "more/b.jpg"]);
    let root = dir.path().join("pictures");
    symlink(dir.path().join("secret.jpg"), root.join("out.jpg")).expect("linked");
    symlink(dir.path().join("more"), root.join("more")).expect("linked");
    symlink(root.join("a.jpg"), root.join("in.jpg")).expect("linked");
    symlink(root.join("gone.jpg"), root.join("dangling.jpg")).expect("linked");
    symlink(&root, root.join("loop")).expect("linked");
    let pictures = Pictures::open(&root).expect("opens");
    assert_eq!(pictures.read("in.jpg", "").as_deref(), Ok(&b"pictures/a.jpg"[..]));
    for name in ["out.jpg", "dangling.jpg"] {
        let error = pictures.read(name, "").expect_err("leads out");
        assert!(matches!(error, PictureError::Unsafe(_)), "{error}");
    }
    assert!(matches!(pictures.read("b.jpg", ""), Err(PictureError::Missing(_))));
    assert!(matches!(pictures.read("more/b.jpg", ""), Err(PictureError::Missing(_))));
}

#[test]
fn broken_archives_are_errors() {
    let dir = archive(&["a.jpg", "b.jpg"]);
    let path = dir.path().join("p.zip");
    let whole = fs::read(&path).expect("read");
    for bytes in [&b""[..], b"no zip", &whole[..whole.len() / 2]] {
        fs::write(&path, bytes).expect("written");
        let error = Pictures::open(&path).err().expect("refused").to_string();
        assert!(error.contains("p.zip: is neither a folder nor a readable zip"), "{error}");
    }
    // A wrong byte in the data is found by the entry's checksum.
    let mut altered = whole;
    let at = altered.windows(5).position(|w| w == b"a.jpg").expect("the name") + 5;
    altered[at] ^= 1;
    fs::write(&path, &altered).expect("written");
    let error = opened(&dir).read("a.jpg", "").expect_err("damaged");
    assert!(matches!(error, PictureError::Unreadable(_)), "{error}");
    assert!(Pictures::open(Path::new("no/such/folder")).is_err());
}
