//! Inserting. What is published is a copy that only this process could ever write: the compiler, which may still hold
//! its descriptor, cannot change what was hashed.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    FlockOperation, Mode, OFlags, Uid, fchmod, fchown, flock, fstat, fsync, renameat,
};
use rustix::io::Errno;

use slipway_protocol::Facts;

use crate::dir::{ARTEFACT, Dir, REFUSED, SEEN};
use crate::list::Kind;
use crate::{
    Artefact, Error, KeyLock, MAX_ARTEFACT_BYTES, MAX_REFUSAL_BYTES, Meta, Store, cut, entry,
};

/// Prefix of files that are being written.
pub(crate) const TEMPORARY: &str = "tmp-";
/// Everyone may read an artefact, for the guest opens it when it has dropped its privileges.
const MODE: Mode = Mode::from_raw_mode(0o444);
/// Owner of artefacts: a user that no container can be (Kubernetes allows up to 2³¹−1). A guest that runs as user 0,
/// without capabilities, would otherwise own the file behind its descriptor and could make it writable.
const OWNER: u32 = u32::MAX - 1;

/// Space in the store for the compiler to write to. The file has no name: it is gone with its last descriptor.
#[derive(Debug)]
pub struct PendingArtefact {
    file: File,
}

impl PendingArtefact {
    /// The empty file, open for reading and writing; a descriptor of it may go to an unprivileged process.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Store {
    /// Makes space for the locked key's artefact.
    ///
    /// # Errors
    /// [`Error::Write`] where no file can be made in the store.
    pub fn pending(&self, _lock: &KeyLock) -> Result<PendingArtefact, Error> {
        let least = entry::sealed_bytes(0, &[]);
        let temporary = self.temporary(least)?;
        // Dropping it takes the name away.
        let file = temporary
            .file
            .try_clone()
            .map_err(|source| self.write_error(least, source))?;
        Ok(PendingArtefact { file })
    }

    /// Publishes what the compiler wrote, under the locked key, and removes the least recently used entries beyond
    /// [`Options::max_bytes`](crate::Options::max_bytes). `origin` is what the module is called, for people; `facts` are
    /// what the compiler said of it.
    ///
    /// # Errors
    /// [`Error::NotAnArtefact`], [`Error::TooLarge`], and [`Error::Write`] on a full disk or the like; the store is
    /// then as it was before.
    pub fn insert(
        &self,
        lock: &KeyLock,
        pending: PendingArtefact,
        origin: &str,
        facts: Facts,
    ) -> Result<Artefact, Error> {
        let mut file = pending.file;
        let bytes = file
            .metadata()
            .map_err(|source| self.write_error(0, source))?
            .len();
        if bytes > MAX_ARTEFACT_BYTES {
            return Err(Error::TooLarge {
                what: "compiled artefact",
                size: bytes,
                limit: MAX_ARTEFACT_BYTES,
            });
        }
        let mut magic = [0; 4];
        if file.read_exact_at(&mut magic, 0).is_err() || magic != *b"\x7fELF" {
            return Err(Error::NotAnArtefact { bytes });
        }
        file.rewind()
            .map_err(|source| self.write_error(bytes, source))?;
        self.publish(lock, Kind::Artefact, file, bytes, origin, facts)
    }

    /// Publishes that the compiler refuses the locked key's module, and why, so that no one tries again. The text is
    /// cut at [`MAX_REFUSAL_BYTES`].
    ///
    /// # Errors
    /// [`Error::Write`] on a full disk or the like.
    pub fn insert_refusal(&self, lock: &KeyLock, text: &str, origin: &str) -> Result<(), Error> {
        let text = cut(text, MAX_REFUSAL_BYTES).as_bytes();
        let none = Facts::default();
        self.publish(lock, Kind::Refusal, text, text.len() as u64, origin, none)
            .map(drop)
    }

    fn publish(
        &self,
        lock: &KeyLock,
        kind: Kind,
        payload: impl Read,
        bytes: u64,
        origin: &str,
        facts: Facts,
    ) -> Result<Artefact, Error> {
        let meta = Meta::now(&lock.key, origin);
        let description = meta.encode(&facts)?;
        let needed = entry::sealed_bytes(bytes, &description);
        let mut temporary = self.temporary(needed)?;
        let failed = |source: io::Error| self.write_error(needed, source);
        entry::seal(&mut temporary.file, payload, bytes, &description).map_err(failed)?;
        fchmod(&temporary.file, MODE).map_err(|e| failed(e.into()))?;
        match fchown(&temporary.file, Some(Uid::from_raw(OWNER)), None) {
            // A node inside a user namespace may have no such user, and leaves the file to its root.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(e) => return Err(failed(e.into())),
        }
        fsync(&temporary.file).map_err(|e| failed(e.into()))?;

        let name = lock.key.file_name();
        let (suffix, superseded) = match kind {
            Kind::Artefact => (ARTEFACT, REFUSED),
            Kind::Refusal => (REFUSED, ARTEFACT),
        };
        let file_name = format!("{name}{suffix}");
        let store_lock = self.dir.lock()?;
        let file = temporary.rename(&file_name).map_err(|e| failed(e.into()))?;
        self.dir.unlink(&format!("{name}{superseded}"));
        match kind {
            // After the renaming, which moves the ctime.
            Kind::Artefact => {
                let stat = fstat(&file).map_err(|e| failed(e.into()))?;
                self.dir.mark_seen(&name, &stat);
            }
            Kind::Refusal => self.dir.unlink(&format!("{name}{SEEN}")),
        }
        self.evict(&file_name);
        drop(store_lock);
        // Where this fails, a crash may undo the renaming: a miss, nothing worse.
        let _ = fsync(&self.dir.fd);
        Ok(Artefact::new(
            self.dir.join(&file_name),
            file,
            meta,
            facts,
            bytes,
        ))
    }

    /// A new file, locked: so [`Store::sweep`] knows that its writer is alive. `needed` is for the error.
    pub(crate) fn temporary(&self, needed: u64) -> Result<Temporary, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Nobody sweeps between creation and lock.
        let _lock = self.dir.lock()?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("{TEMPORARY}{}-{number}", std::process::id());
            match self.dir.open(&name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => {
                    let temporary = Temporary {
                        dir: Arc::clone(&self.dir),
                        file,
                        name,
                    };
                    return match flock(&temporary.file, FlockOperation::NonBlockingLockExclusive) {
                        Ok(()) => Ok(temporary),
                        Err(e) => Err(self.write_error(needed, e.into())),
                    };
                }
                // Left by a dead process with the same number.
                Err(Errno::EXIST) => {}
                Err(e) => return Err(self.write_error(needed, e.into())),
            }
        }
    }

    fn write_error(&self, needed: u64, source: io::Error) -> Error {
        Error::Write {
            dir: self.dir.path.clone(),
            needed,
            source,
        }
    }
}

/// A file that is being written; removed when dropped.
pub(crate) struct Temporary {
    dir: Arc<Dir>,
    pub(crate) file: File,
    name: String,
}

impl Temporary {
    /// Gives the file its name in the store; returns it marked as in use and open for reading only. The store's lock
    /// is held meanwhile.
    fn rename(mut self, to: &str) -> rustix::io::Result<File> {
        let reader = self.dir.open_entry(&self.name)?;
        flock(&self.file, FlockOperation::Unlock)?;
        flock(&reader, FlockOperation::NonBlockingLockShared)?;
        renameat(&self.dir.fd, &self.name, &self.dir.fd, to)?;
        self.name.clear();
        Ok(reader)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            self.dir.unlink(&self.name);
        }
    }
}
