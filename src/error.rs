//! One error type for the crate.
//!
//! Message style: `<op or file>: <what is wrong>: expected …, got …; <next step>`. Lower case, no
//! full stop, no debug dumps. What a user or the environment can cause is a value of [`Error`];
//! a broken promise inside the crate is a panic that says which promise.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong and is not a bug.
#[derive(Debug)]
pub enum Error {
    /// The operating system refused something.
    Io {
        /// The file or folder it was about.
        path: PathBuf,
        /// What was tried, as in "cannot {action}".
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file whose content is not what it should be.
    File {
        /// The file.
        path: PathBuf,
        /// Where in it: "line 7", "section tokens", "tensor lm_head.weight"; empty for the whole.
        at: String,
        /// What is wrong, what was expected, what to do.
        message: String,
    },
    /// An argument of an op or function that does not fit the others.
    Argument {
        /// `module::function` that checked it.
        op: &'static str,
        /// "x has shape [3, 4], expected [3, 5]".
        message: String,
    },
    /// A device that is not there, or refused something: which, what, its answer, what to do.
    Device(String),
    /// A command line or configuration value that cannot be used. Exit code 2.
    Usage(String),
    /// The run itself failed: non-finite losses, a reference that does not match, a busy folder.
    Run(String),
    /// Stopped by Ctrl-C or SIGTERM after saving; says how to resume. Exit code 130.
    Interrupted(String),
}

impl Error {
    /// An I/O error on `path`; `action` completes "cannot …".
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), action, source }
    }

    /// Something wrong in the content of `path`, at `at` (may be empty).
    pub fn file(path: impl AsRef<Path>, at: impl Into<String>, message: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_path_buf(), at: at.into(), message: message.into() }
    }

    /// An argument that does not fit, found by `op`.
    pub fn argument(op: &'static str, message: impl Into<String>) -> Self {
        Error::Argument { op, message: message.into() }
    }

    /// The process exit code that stands for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::Interrupted(_) => 130,
            _ => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { path, action, source } => {
                write!(f, "{}: cannot {action}: {source}", path.display())
            }
            Error::File { path, at, message } if at.is_empty() => {
                write!(f, "{}: {message}", path.display())
            }
            Error::File { path, at, message } => write!(f, "{}: {at}: {message}", path.display()),
            Error::Argument { op, message } => write!(f, "{op}: {message}"),
            Error::Device(message)
            | Error::Usage(message)
            | Error::Run(message)
            | Error::Interrupted(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
