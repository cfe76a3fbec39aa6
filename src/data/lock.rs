//! One run per folder.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::Path;

use crate::error::{Error, Result};

/// A run folder that this process alone writes to, until dropped or killed: the operating system
/// holds the lock, so a crash leaves nothing to clean up.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Creates `folder` if need be and locks it. Errors when another run is using it.
    pub fn acquire(folder: &Path) -> Result<Lock> {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create the folder", e))?;
        let path = folder.join("lock");
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(&path);
        let file = file.map_err(|e| Error::io(&path, "open", e))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::Run(format!(
                "{}: another run is writing to this folder; wait for it or pass another --out",
                folder.display()
            ))),
            Err(TryLockError::Error(e)) => Err(Error::io(&path, "lock", e)),
        }
    }
}
