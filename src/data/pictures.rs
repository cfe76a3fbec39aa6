//! The pictures of a data set, in a folder or in a zip, found by what records call them.
//!
//! `img_path` is rarely the path below the folder that a user has: archives put everything under
//! one top folder, loaders make paths absolute, converters keep only the last part. So a name is
//! matched by its end: of all files with the same last part, the one that agrees in most parts
//! from the end wins, then the one nearest to the root; two equally good ones are an error, not a
//! guess. When nothing matches, `<id>.jpg` is tried. Nothing outside the folder or archive is
//! ever read: names with `..` and links that lead out are refused.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use zip::ZipArchive;

use crate::error::{Error, Result};

/// Largest picture file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

/// Folders below the root that are searched.
const MAX_DEPTH: usize = 32;

/// Why there is no picture for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PictureError {
    /// No file matches, or several match equally well.
    Missing(String),
    /// The name or the file leads out of the folder or archive.
    Unsafe(String),
    /// The file is there and cannot be read.
    Unreadable(String),
}

impl fmt::Display for PictureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (PictureError::Missing(message)
        | PictureError::Unsafe(message)
        | PictureError::Unreadable(message)) = self;
        f.write_str(message)
    }
}

impl std::error::Error for PictureError {}

/// An opened folder or zip. Reading takes `&self`, so all cores can read at once.
pub struct Pictures {
    root: PathBuf,
    archive: Option<ZipArchive<Cursor<Mapped>>>,
    /// Files by the last part of their name.
    files: HashMap<Box<str>, Vec<Entry>>,
    count: usize,
}

struct Entry {
    /// As in the archive, or relative to the root; parts separated by `/`.
    name: Box<str>,
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    File,
    Zipped(usize),
    /// Leads out; kept to say so.
    Outside,
}

/// A mapped archive that clones of a reader share.
#[derive(Clone)]
struct Mapped(Arc<Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Pictures {
    /// Opens a folder, or a zip file, and lists what is in it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |e| Error::io(path, "open the pictures", e);
        let root = path.canonicalize().map_err(io)?;
        let mut pictures = Pictures { root, archive: None, files: HashMap::new(), count: 0 };
        if pictures.root.is_dir() {
            pictures.list_folder(&pictures.root.clone(), "", 0)?;
        } else {
            let file = File::open(&pictures.root).map_err(io)?;
            // SAFETY: the map is read-only and private; an archive that is overwritten while we
            // read it can give wrong bytes, which decoders treat as any broken picture.
            let map = unsafe { Mmap::map(&file) }.map_err(io)?;
            pictures.list_archive(map).map_err(|e| {
                let message = format!("is neither a folder nor a readable zip: {e}");
                Error::file(path, "", message)
            })?;
        }
        // Sorted, so that messages do not depend on the order of the directory.
        pictures.files.values_mut().for_each(|same| same.sort_by(|a, b| a.name.cmp(&b.name)));
        Ok(pictures)
    }

    /// The folder or archive, as an absolute path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Number of files found.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no file at all.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The bytes of the picture that a record with this `id` calls `img_path`.
    pub fn read(&self, img_path: &str, id: &str) -> std::result::Result<Vec<u8>, PictureError> {
        let entry = self.find(img_path, id)?;
        let unreadable = |why: String| {
            PictureError::Unreadable(format!("{}: cannot be read: {why}", entry.name))
        };
        let (bytes, whole) = match (entry.place, &self.archive) {
            (Place::File, _) => self.read_file(&entry.name),
            (Place::Zipped(index), Some(archive)) => read_zipped(archive.clone(), index),
            (Place::Outside, _) | (Place::Zipped(_), None) => {
                let message = format!("{}: leads out of the pictures", entry.name);
                return Err(PictureError::Unsafe(message));
            }
        }
        .map_err(unreadable)?;
        match whole {
            true => Ok(bytes),
            false => Err(unreadable(format!("more than {MAX_FILE_BYTES} bytes"))),
        }
    }

    fn find(&self, img_path: &str, id: &str) -> std::result::Result<&Entry, PictureError> {
        if parts(img_path).any(|part| part == "..") {
            let message = format!("{img_path}: a name with \"..\" could lead anywhere");
            return Err(PictureError::Unsafe(message));
        }
        let missing = || PictureError::Missing(format!("{img_path}: no such picture"));
        let Some(same) = parts(img_path).next_back().and_then(|last| self.files.get(last)) else {
            let by_id = self.files.get(format!("{id}.jpg").as_str()).filter(|_| !id.is_empty());
            return match by_id.map(Vec::as_slice) {
                Some([entry]) => Ok(entry),
                _ => Err(missing()),
            };
        };
        // More agreeing parts are better, then fewer parts in all.
        let rank = |entry: &Entry| {
            let agree = parts(&entry.name).rev().zip(parts(img_path).rev());
            let agree = agree.take_while(|(a, b)| a == b).count();
            (agree, usize::MAX - parts(&entry.name).count())
        };
        let best = same.iter().map(rank).max();
        let mut found = same.iter().filter(|entry| Some(rank(entry)) == best);
        match (found.next(), found.next()) {
            (Some(a), Some(b)) => Err(PictureError::Missing(format!(
                "{img_path}: {} and {} match equally well",
                a.name, b.name
            ))),
            (entry, _) => entry.ok_or_else(missing),
        }
    }

    fn add(&mut self, name: &str, place: Place) {
        if let Some(last) = parts(name).next_back() {
            let last = Box::from(last);
            self.files.entry(last).or_default().push(Entry { name: name.into(), place });
            self.count += 1;
        }
    }

    fn list_folder(&mut self, folder: &Path, prefix: &str, depth: usize) -> Result<()> {
        let io = |e| Error::io(folder, "list the pictures", e);
        for entry in fs::read_dir(folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            // A name that is no UTF-8 cannot stand in a JSON record either.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let name = format!("{prefix}{name}");
            let kind = entry.file_type().map_err(io)?;
            if kind.is_dir() && depth < MAX_DEPTH {
                self.list_folder(&entry.path(), &format!("{name}/"), depth + 1)?;
            } else if kind.is_file() {
                self.add(&name, Place::File);
            } else if kind.is_symlink() {
                // Linked folders are not walked: what is inside the root is found anyway.
                let target = entry.path().canonicalize();
                match target.is_ok_and(|t| t.starts_with(&self.root) && t.is_file()) {
                    true => self.add(&name, Place::File),
                    false => self.add(&name, Place::Outside),
                }
            }
        }
        Ok(())
    }

    fn list_archive(&mut self, map: Mmap) -> zip::result::ZipResult<()> {
        let archive = ZipArchive::new(Cursor::new(Mapped(Arc::new(map))))?;
        let mut names = Vec::with_capacity(archive.len());
        for index in 0..archive.len() {
            let Some(Ok(name)) = archive.name_for_index(index) else { continue };
            let leads_out = parts(&name).any(|part| part == "..");
            let place = if leads_out { Place::Outside } else { Place::Zipped(index) };
            if !name.ends_with('/') {
                names.push((name.into_owned(), place));
            }
        }
        names.iter().for_each(|(name, place)| self.add(name, *place));
        self.archive = Some(archive);
        Ok(())
    }

    fn read_file(&self, name: &str) -> std::result::Result<(Vec<u8>, bool), String> {
        let path = self.root.join(name);
        let mut file = File::open(path).map_err(|e| e.to_string())?;
        read_limited(&mut file)
    }
}

fn read_zipped(
    mut archive: ZipArchive<Cursor<Mapped>>,
    index: usize,
) -> std::result::Result<(Vec<u8>, bool), String> {
    let mut file = archive.by_index(index).map_err(|e| e.to_string())?;
    read_limited(&mut file)
}

/// The bytes, and whether they are all.
fn read_limited(reader: &mut impl Read) -> std::result::Result<(Vec<u8>, bool), String> {
    let mut bytes = Vec::new();
    reader.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    let whole = bytes.len() as u64 <= MAX_FILE_BYTES;
    Ok((bytes, whole))
}

/// The parts of a name, whichever slash separates them; a leading slash or drive is no part that
/// any file has, so absolute names match by their last parts.
fn parts(name: &str) -> impl DoubleEndedIterator<Item = &str> {
    name.split(['/', '\\']).filter(|part| !part.is_empty() && *part != ".")
}
