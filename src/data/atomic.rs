//! Files and folders that appear whole or not at all.
//!
//! Everything is written under a temporary name beside its place (`.NAME.PID-N.partial`), flushed
//! to the disk and renamed. A crash leaves at most a `.partial`, which [`remove_stale`] clears away.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result};

/// What every temporary name ends in.
const SUFFIX: &str = ".partial";

/// Large writes: a shard is gigabytes, the default 8 KiB would be a system call per row.
const BUFFER: usize = 1 << 20;

/// Writes `path` by `body`, replacing what was there. On any error `path` is left as it was and
/// nothing else remains; an error of `body` is passed on unchanged.
pub fn write(
    path: impl AsRef<Path>,
    body: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<()> {
    let mut pending = Pending::create(path)?;
    body(&mut pending.writer)?;
    pending.commit()
}

/// Writes `bytes` as the whole of `path`.
pub fn write_bytes(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    write(path, |w| w.write_all(bytes).map_err(|e| Error::io(path, "write", e)))
}

/// A file under construction: write, then [`Pending::commit`]. Dropped before that, it disappears.
pub struct Pending {
    writer: BufWriter<File>,
    temporary: Temporary,
    target: PathBuf,
}

impl Pending {
    /// Starts the file that will become `target`.
    pub fn create(target: impl AsRef<Path>) -> Result<Self> {
        let target = target.as_ref().to_path_buf();
        let temporary = Temporary::beside(&target)?;
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary.path);
        let file = file.map_err(|e| Error::io(&target, "create the file", e))?;
        Ok(Pending { writer: BufWriter::with_capacity(BUFFER, file), temporary, target })
    }

    /// Appends `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).map_err(|e| Error::io(&self.target, "write", e))
    }

    /// Overwrites the first bytes; nothing can be appended afterwards.
    pub fn rewrite_start(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.writer.rewind().and_then(|()| self.writer.write_all(bytes));
        written.map_err(|e| Error::io(&self.target, "write", e))
    }

    /// Flushes to the disk and renames to the target, replacing what was there.
    pub fn commit(mut self) -> Result<()> {
        self.writer.flush().map_err(|e| Error::io(&self.target, "write", e))?;
        let synced = self.writer.get_ref().sync_all();
        synced.map_err(|e| Error::io(&self.target, "flush to the disk", e))?;
        self.temporary.keep_as(&self.target)
    }
}

/// A folder under construction: fill [`Folder::path`], then [`Folder::commit`]. Dropped before
/// that, it disappears.
pub struct Folder {
    temporary: Temporary,
    target: PathBuf,
}

impl Folder {
    /// Starts the folder that will become `target`, which must not exist yet at the commit.
    pub fn create(target: impl AsRef<Path>) -> Result<Self> {
        let target = target.as_ref().to_path_buf();
        let temporary = Temporary::beside(&target)?;
        fs::create_dir(&temporary.path).map_err(|e| Error::io(&target, "create the folder", e))?;
        Ok(Folder { temporary, target })
    }

    /// Where to put the files.
    pub fn path(&self) -> &Path {
        &self.temporary.path
    }

    /// Flushes every file to the disk and renames the folder to its target.
    pub fn commit(self) -> Result<()> {
        sync_tree(&self.temporary.path)?;
        self.temporary.keep_as(&self.target)
    }
}

/// Removes what crashed writers left directly in `folder`. Call it only while holding the
/// folder's lock: a live writer's temporary looks the same.
pub fn remove_stale(folder: impl AsRef<Path>) -> Result<()> {
    let folder = folder.as_ref();
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, "list the folder", e))? {
        let entry = entry.map_err(|e| Error::io(folder, "list the folder", e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(SUFFIX) {
            remove(&entry.path()).map_err(|e| Error::io(entry.path(), "remove a leftover", e))?;
        }
    }
    Ok(())
}

/// A temporary name; what stands under it is removed on drop unless kept.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn beside(target: &Path) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let Some(name) = target.file_name() else {
            return Err(Error::file(target, "", "names no file; give a path that ends in a name"));
        };
        let (process, n) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let name = format!(".{}.{process}-{n}{SUFFIX}", name.to_string_lossy());
        Ok(Temporary { path: target.with_file_name(name) })
    }

    fn keep_as(&self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target)
            .map_err(|e| Error::io(target, "put the finished file in place", e))?;
        sync_parent(target)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a successful rename nothing stands here; an error has nobody to go to.
        let _ = remove(&self.path);
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

fn sync_tree(path: &Path) -> Result<()> {
    let io = |e| Error::io(path, "flush to the disk", e);
    if fs::symlink_metadata(path).map_err(io)?.is_dir() {
        for entry in fs::read_dir(path).map_err(io)? {
            sync_tree(&entry.map_err(io)?.path())?;
        }
    }
    File::open(path).and_then(|f| f.sync_all()).map_err(io)
}

/// Makes a rename survive a power cut: on Unix the folder is a file to flush as well.
fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if cfg!(unix) {
        File::open(parent)
            .and_then(|f| f.sync_all())
            .map_err(|e| Error::io(parent, "flush the folder to the disk", e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let list = fs::read_dir(folder).expect("a folder");
        list.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_failing_writer_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.bin");
        write_bytes(&path, b"old").expect("written");
        let failed = write(&path, |w| {
            w.write_all(b"half").expect("buffered");
            Err(Error::Run("stop".into()))
        });
        assert_eq!(failed.expect_err("fails").to_string(), "stop");
        assert_eq!(fs::read(&path).expect("read"), b"old");
        assert_eq!(names(dir.path()), ["a.bin"]);
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a folder");
        let target = dir.path().join("checkpoint");
        let dropped = Folder::create(&target).expect("created");
        fs::write(dropped.path().join("x"), "1").expect("written");
        drop(dropped);
        assert!(names(dir.path()).is_empty());
        let kept = Folder::create(&target).expect("created");
        fs::write(kept.path().join("x"), "1").expect("written");
        kept.commit().expect("committed");
        assert_eq!(names(dir.path()), ["checkpoint"]);
        assert_eq!(names(&target), ["x"]);
    }

    #[test]
    fn leftovers_are_removed_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join(".a.1-0.partial"), "half").expect("written");
        fs::create_dir(dir.path().join(".b.1-1.partial")).expect("created");
        fs::write(dir.path().join("c.partial"), "a user's file").expect("written");
        remove_stale(dir.path()).expect("removed");
        assert_eq!(names(dir.path()), ["c.partial"]);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let error = write_bytes(dir.path().join("no/a.bin"), b"").expect_err("fails");
        assert!(error.to_string().contains("no/a.bin: cannot create the file"), "{error}");
    }
}
