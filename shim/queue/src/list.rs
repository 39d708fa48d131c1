//! What is in the queue, for people.

use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::directory::Directory;
use crate::record::Record;

/// A job of the queue.
#[derive(Debug)]
pub struct Queued {
    /// The name of the artefact that it makes: 64 hexadecimal digits.
    pub name: String,
    /// What it is.
    pub record: Record,
    /// Since when.
    pub since: SystemTime,
    /// It is being compiled; else it waits.
    pub compiling: bool,
}

/// The jobs in the queue of a cache, the oldest first. A cache without a queue has none.
pub fn list(cache_dir: &Path) -> Vec<Queued> {
    let directory = Directory::open(cache_dir);
    let jobs = directory.and_then(|directory| directory.jobs());
    let mut jobs: Vec<_> = jobs
        .unwrap_or_default()
        .into_iter()
        .map(|job| Queued {
            compiling: is_locked(&cache_dir.join(format!("{}.lock", job.name))),
            name: job.name,
            record: job.record,
            since: job.since,
        })
        .collect();
    jobs.sort_by_key(|job| job.since);
    jobs
}

/// Whether somebody holds a key's lock: he compiles it.
fn is_locked(path: &Path) -> bool {
    let file = std::fs::File::open(path);
    file.is_ok_and(|file| {
        flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
    })
}
