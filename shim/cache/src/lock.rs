//! flock(2) in the store: one compile at a time per key, and one change of the set of entries at a time.
//!
//! A key's lock file is removed by the one who holds it, so that they do not pile up. Whoever waited for a file that
//! is no longer the one of that name starts over with the one that is.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::{Errno, retry_on_intr};

use crate::dir::Dir;
use crate::{Error, Key, Store};

const STORE_LOCK: &str = "store.lock";
/// Suffix of the keys' lock files.
pub(crate) const LOCK: &str = ".lock";
/// Between two attempts at a lock that is waited for with a deadline.
const ATTEMPT: Duration = Duration::from_millis(10);

/// The right to compile and insert one key; released and its file removed when dropped.
#[derive(Debug)]
pub struct KeyLock {
    pub(crate) key: Key,
    dir: Arc<Dir>,
    file: File,
    name: String,
}

impl KeyLock {
    /// The key that is locked.
    pub fn key(&self) -> &Key {
        &self.key
    }
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        if self.dir.is_named(&self.file, &self.name) {
            self.dir.unlink(&self.name);
        }
        // Not left to close: a child that was forked for an exec a moment ago may still share the descriptor.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

impl Store {
    /// Waits, in this thread, until no other process (and no other thread) compiles the key. Look the key up again
    /// then. Removes what dead processes have left behind.
    ///
    /// # Errors
    /// [`Error::Io`] where the lock's file cannot be made.
    pub fn lock(&self, key: &Key) -> Result<KeyLock, Error> {
        loop {
            let (file, name) = self.lock_file(key)?;
            retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
                .map_err(Error::io("lock", self.dir.join(&name)))?;
            if let Some(lock) = self.locked(key, file, name) {
                return Ok(lock);
            }
        }
    }

    /// Like [`Store::lock`], but gives up at `deadline`: `None`. A deadline that has passed makes one attempt.
    ///
    /// # Errors
    /// [`Error::Io`] where the lock's file cannot be made.
    pub fn lock_until(&self, key: &Key, deadline: Instant) -> Result<Option<KeyLock>, Error> {
        loop {
            let (file, name) = self.lock_file(key)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    if let Some(lock) = self.locked(key, file, name) {
                        return Ok(Some(lock));
                    }
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() >= deadline => {
                    return Ok(None);
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(ATTEMPT),
                Err(e) => return Err(Error::io("lock", self.dir.join(&name))(e)),
            }
        }
    }

    fn lock_file(&self, key: &Key) -> Result<(File, String), Error> {
        let name = format!("{}{LOCK}", key.file_name());
        let file = self.dir.open_lock(&name)?;
        Ok((file, name))
    }

    /// The lock, unless its file was removed while it was waited for.
    fn locked(&self, key: &Key, file: File, name: String) -> Option<KeyLock> {
        if !self.dir.is_named(&file, &name) {
            return None;
        }
        let lock = KeyLock {
            key: key.clone(),
            dir: Arc::clone(&self.dir),
            file,
            name,
        };
        self.sweep();
        Some(lock)
    }
}

/// Held while entries appear or disappear. Lookups do without it.
pub(crate) struct StoreLock {
    _file: File,
}

impl Dir {
    /// Waits for the store's lock.
    pub(crate) fn lock(&self) -> Result<StoreLock, Error> {
        let file = self.open_lock(STORE_LOCK)?;
        retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
            .map_err(Error::io("lock", self.join(STORE_LOCK)))?;
        Ok(StoreLock { _file: file })
    }

    /// The store's lock, if it can be had at once.
    pub(crate) fn try_lock(&self) -> Option<StoreLock> {
        let file = self.open_lock(STORE_LOCK).ok()?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(StoreLock { _file: file })
    }

    fn open_lock(&self, name: &str) -> Result<File, Error> {
        self.open(name, OFlags::CREATE | OFlags::RDWR, Mode::RUSR | Mode::WUSR)
            .map_err(Error::io("open", self.join(name)))
    }
}
