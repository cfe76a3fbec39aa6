//! Ctrl-C and SIGTERM: the first asks a command to save and stop, the second ends it at once.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// The exit code of a command that was told to stop.
const EXIT: i32 = 130;

/// From now on the first signal only sets [`requested`].
pub fn install() {
    let handler = || {
        if REQUESTED.swap(true, Ordering::Relaxed) {
            std::process::exit(EXIT);
        }
        eprintln!("stopping; press Ctrl-C again to stop at once");
    };
    // A second handler in one process is refused; the first does the same.
    let _ = ctrlc::set_handler(handler);
}

/// Whether somebody asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}
