//! The store as a whole: listing it, removing from it, keeping it within its bound and clean.

use std::fs::File;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, Stat, flock};
use rustix::io::Errno;

use crate::dir::{ARTEFACT, Dir, REFUSED, SEEN};
use crate::lock::LOCK;
use crate::write::TEMPORARY;
use crate::{Error, MAX_ENTRIES, MIN_PREFIX, Meta, Store, entry};

/// Space on disk is taken in blocks of this many bytes.
const BLOCK_BYTES: u64 = 4096;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Native code.
    Artefact,
    /// The compiler's refusal.
    Refusal,
}

/// An entry, as `slipway cache ls` shows it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key's name: 64 hexadecimal digits.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its own description; `None` where it is damaged, which the next lookup will find.
    pub meta: Option<Meta>,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// When it was last looked up, or made; to the minute.
    pub last_used: SystemTime,
    /// Whether a container is running it.
    pub in_use: bool,
    /// Whether its checksum was compared since boot. Refusals are compared each time.
    pub verified: bool,
}

/// What a removal did.
#[derive(Debug, Clone, Default)]
pub struct Removed {
    /// Gone.
    pub removed: Vec<Entry>,
    /// Left alone.
    pub in_use: Vec<Entry>,
}

/// An entry's file, not yet opened.
struct Found {
    name: String,
    kind: Kind,
    file_name: String,
    stat: Stat,
    last_used: SystemTime,
}

impl Found {
    /// What the entry counts for against the bound: its blocks, and one for what is written down about it.
    fn charge(&self) -> u64 {
        (self.stat.st_size as u64).next_multiple_of(BLOCK_BYTES) + BLOCK_BYTES
    }
}

impl Store {
    /// All entries, the most recently used first.
    ///
    /// # Errors
    /// [`Error::Io`] where the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let mut found = self.scan()?;
        found.sort_by_key(|entry| std::cmp::Reverse(entry.last_used));
        Ok(found
            .iter()
            .filter_map(|found| self.describe(found))
            .collect())
    }

    /// Removes the entries whose name or module's sha256 (with or without `sha256:`) begins with `prefix`, except those
    /// in use.
    ///
    /// # Errors
    /// [`Error::BadPrefix`] unless it has at least [`MIN_PREFIX`] hexadecimal digits; [`Error::Io`] where the directory
    /// cannot be read.
    pub fn remove(&self, prefix: &str) -> Result<Removed, Error> {
        let digits = prefix
            .strip_prefix("sha256:")
            .unwrap_or(prefix)
            .to_ascii_lowercase();
        if digits.len() < MIN_PREFIX || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::BadPrefix(prefix.into()));
        }
        self.remove_where(|entry| {
            let module = entry.meta.as_ref().map(Meta::module).unwrap_or_default();
            entry.name.starts_with(&digits) || module.starts_with(&digits)
        })
    }

    /// Removes all entries that are not in use.
    ///
    /// # Errors
    /// [`Error::Io`] where the directory cannot be read.
    pub fn remove_all(&self) -> Result<Removed, Error> {
        self.remove_where(|_| true)
    }

    fn remove_where(&self, wanted: impl Fn(&Entry) -> bool) -> Result<Removed, Error> {
        let _lock = self.dir.lock()?;
        let mut result = Removed::default();
        for found in self.scan()? {
            let Some(entry) = self.describe(&found).filter(&wanted) else {
                continue;
            };
            if self.remove_entry(&found) {
                result.removed.push(entry);
            } else {
                result.in_use.push(Entry {
                    in_use: true,
                    ..entry
                });
            }
        }
        Ok(result)
    }

    /// Removes the least recently used entries until the store is within its bounds, except the one of `keep` and those
    /// in use. Where that is not enough, the one of `keep` becomes the first to go. The store's lock is held meanwhile.
    pub(crate) fn evict(&self, keep: &str) {
        // An insert does not fail for what comes after it: the next one tries again.
        let Ok(mut found) = self.scan() else { return };
        let mut bytes: u64 = found.iter().map(Found::charge).sum();
        let mut entries = found.len();
        let within = |bytes, entries| bytes <= self.options.max_bytes && entries <= MAX_ENTRIES;
        found.sort_by_key(|entry| entry.last_used);
        for entry in found.iter().filter(|entry| entry.file_name != keep) {
            if within(bytes, entries) {
                return;
            }
            if self.remove_entry(entry) {
                bytes -= entry.charge();
                entries -= 1;
            }
        }
        if !within(bytes, entries) {
            self.dir.make_oldest(keep);
        }
    }

    /// Whether the entries in use alone fill the store: what is inserted now makes it larger than its bound.
    ///
    /// # Errors
    /// [`Error::Io`] where the directory cannot be read.
    pub fn is_filled_by_use(&self) -> Result<bool, Error> {
        let found = self.scan()?;
        let total: u64 = found.iter().map(Found::charge).sum();
        if total < self.options.max_bytes {
            return Ok(false);
        }
        // A look at an entry locks it: nobody removes it meanwhile. Who removes makes room.
        let Some(_lock) = self.dir.try_lock() else {
            return Ok(false);
        };
        let used = found.iter().filter(|entry| {
            let file = self.dir.open_entry(&entry.file_name);
            file.as_ref().is_ok_and(is_in_use)
        });
        Ok(used.map(Found::charge).sum::<u64>() >= self.options.max_bytes)
    }

    /// Removes what processes that were killed have left: files half written, locks that no one holds, notes about
    /// entries that are gone. Left to the next one where another process is changing the store.
    pub(crate) fn sweep(&self) {
        let Some(_lock) = self.dir.try_lock() else {
            return;
        };
        let Ok(names) = self.dir.names() else { return };
        for name in &names {
            if name.starts_with(TEMPORARY) || is_entry(name, LOCK) {
                self.dir.remove_unused(name);
            } else if let Some(entry) = name.strip_suffix(SEEN)
                && !names.contains(&format!("{entry}{ARTEFACT}"))
            {
                self.dir.unlink(name);
            }
        }
    }

    fn remove_entry(&self, found: &Found) -> bool {
        let removed = self.dir.remove_unused(&found.file_name);
        if removed {
            self.dir.unlink(&format!("{}{SEEN}", found.name));
        }
        removed
    }

    fn scan(&self) -> Result<Vec<Found>, Error> {
        let names = self.dir.names()?;
        Ok(names
            .iter()
            .filter_map(|file_name| self.dir.find(file_name))
            .collect())
    }

    /// The whole of an entry; `None` when it is gone by now.
    fn describe(&self, found: &Found) -> Option<Entry> {
        let bytes = found.stat.st_size as u64;
        let (meta, in_use) = match self.dir.open_entry(&found.file_name) {
            Ok(file) => (
                entry::read(&file, bytes).ok().map(|sealed| sealed.meta),
                is_in_use(&file),
            ),
            Err(Errno::NOENT) => return None,
            Err(_) => (None, false),
        };
        Some(Entry {
            name: found.name.clone(),
            kind: found.kind,
            meta,
            bytes,
            last_used: found.last_used,
            in_use,
            verified: found.kind == Kind::Artefact
                && self.dir.seen(&found.name, &found.stat, false),
        })
    }
}

impl Dir {
    /// An entry by the name of its file; `None` for other files.
    fn find(&self, file_name: &str) -> Option<Found> {
        let kinds = [(ARTEFACT, Kind::Artefact), (REFUSED, Kind::Refusal)];
        let (suffix, kind) = kinds
            .into_iter()
            .find(|(suffix, _)| is_entry(file_name, suffix))?;
        let name = file_name.strip_suffix(suffix)?.to_string();
        let stat = self.stat(file_name).ok()?;
        let seen = self.stat(&format!("{name}{SEEN}"));
        let used = seen.as_ref().unwrap_or(&stat);
        let last_used =
            UNIX_EPOCH + Duration::new(used.st_mtime.max(0) as u64, used.st_mtime_nsec as u32);
        Some(Found {
            name,
            kind,
            file_name: file_name.into(),
            stat,
            last_used,
        })
    }

    /// Removes a file, unless it is in use: then `false`. Locked when its name goes, so that whoever opened it just
    /// before notices. The store's lock is held meanwhile.
    fn remove_unused(&self, file_name: &str) -> bool {
        // What cannot be opened, such as a symbolic link, is nothing that anyone uses.
        let file = self.open_entry(file_name);
        if file.as_ref().is_ok_and(is_in_use) {
            return false;
        }
        self.unlink(file_name);
        true
    }
}

/// Whether someone else has locked the file; if not, this descriptor has now.
fn is_in_use(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
}

/// Whether it is the name of an entry's file with that suffix.
fn is_entry(file_name: &str, suffix: &str) -> bool {
    file_name
        .strip_suffix(suffix)
        .is_some_and(|name| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()))
}
