//! What can take as long as a stranger likes, on a thread of its own.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// Closes descriptors of a stranger's, on a thread of its own: it can take as long as he likes, of a socket (`SO_LINGER`) as of a file on a
/// file system of his (`FUSE_FLUSH`), and no signal ends it.
pub fn discard(fds: Vec<OwnedFd>) {
    if !fds.is_empty() {
        beside(move || drop(fds));
    }
}

/// Does what can take long on a thread of its own, or here where there can be none: a limit of threads must not end the process.
pub fn beside(work: impl FnOnce() + Send + 'static) {
    // A thread that cannot be started takes what it was given with it.
    let work = Arc::new(Mutex::new(Some(work)));
    let given = Arc::clone(&work);
    let take = |work: &Mutex<Option<_>>| work.lock().unwrap_or_else(PoisonError::into_inner).take();
    let thread = std::thread::Builder::new().spawn(move || take(&given).map(|work| work()));
    if thread.is_err()
        && let Some(work) = take(&work)
    {
        work();
    }
}
