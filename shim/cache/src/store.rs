//! Opening the store, and looking up: the part that every start of a container goes through.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat};
use rustix::io::Errno;

use crate::dir::{ARTEFACT, Dir, REFUSED, same_file, touch};
use slipway_protocol::Facts;

use crate::{Error, Key, Meta, entry};

/// How often a lookup tries a file that another process examines or removes at this moment, and how long it waits.
const ATTEMPTS: usize = 10;
const ATTEMPT: Duration = Duration::from_micros(100);

/// Settings of a store.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Bound of all entries in bytes. It is kept by each insert, which removes the least recently used entries. Entries
    /// in use stay, and so does the one just inserted, for a start waits for it: where that leaves the store above its
    /// bound, it is the first to go at the next insert, unless it is used again.
    pub max_bytes: u64,
}

/// The node's artefacts. Holds the directory open: drop it before running anything that is not trusted.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) dir: Arc<Dir>,
    pub(crate) options: Options,
}

/// What the store has for a key.
#[derive(Debug)]
pub enum Lookup {
    /// An artefact that matches its checksum.
    Hit(Artefact),
    /// Nothing to run: compile it.
    Miss {
        /// There was an artefact, but it was damaged: how. It has been removed, or its successor will replace it.
        damaged: Option<String>,
    },
    /// The compiler refused the module: why.
    Refused(String),
}

/// An artefact in use: as long as this value lives, in this process or one forked from it, the store keeps the file.
#[derive(Debug)]
pub struct Artefact {
    path: PathBuf,
    file: File,
    meta: Meta,
    facts: Facts,
    payload: u64,
}

impl Artefact {
    /// Where it is, for those who may enter the store.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, open for reading. Everyone may read it, so a bind mount makes it loadable without privileges.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What it is.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The same artefact, held through another path to its file: of a mount where nobody can open it for writing.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be opened and marked there, or where another file lies.
    pub fn through(self, path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let failed = |e| Error::io("open", path)(e);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?);
        // The old mark is shared, too, so nothing is in the way of this one.
        flock(&file, FlockOperation::NonBlockingLockShared).map_err(failed)?;
        let (old, new) = (
            fstat(&self.file).map_err(failed)?,
            fstat(&file).map_err(failed)?,
        );
        match same_file(&old, &new) {
            true => Ok(Self { file, ..self }),
            false => Err(failed(Errno::STALE)),
        }
    }

    /// What the compiler said of its module.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Bytes that the compiler has written, from the file's beginning on.
    pub fn payload(&self) -> u64 {
        self.payload
    }

    pub(crate) fn new(path: PathBuf, file: File, meta: Meta, facts: Facts, payload: u64) -> Self {
        Self {
            path,
            file,
            meta,
            facts,
            payload,
        }
    }
}

/// Why there is no artefact to return.
enum Gone {
    Missing,
    /// Which file it is, and what is wrong with it.
    Damaged(Stat, String),
}

impl Store {
    /// Opens the store in `dir`, an absolute path; makes the directory where it is missing.
    ///
    /// # Errors
    /// [`Error::Unusable`] unless it is a directory (no symbolic link) that is root's and closed to everyone else:
    /// whoever can write there can run native code in the pods of the node.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self, Error> {
        Ok(Self {
            dir: Arc::new(Dir::at(dir.as_ref())?),
            options,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir.path
    }

    /// Looks for the key's artefact. Once it has been verified since boot, this costs a few system calls whatever its
    /// size; before, it is hashed.
    ///
    /// # Errors
    /// [`Error::Io`] where the store itself fails; never for a damaged entry, which is a miss.
    pub fn lookup(&self, key: &Key) -> Result<Lookup, Error> {
        let name = key.file_name();
        let artefact = format!("{name}{ARTEFACT}");
        match self.find(key, &name, &artefact)? {
            Ok(artefact) => Ok(Lookup::Hit(artefact)),
            Err(Gone::Missing) => self.lookup_refusal(key, &name),
            Err(Gone::Damaged(stat, why)) => {
                self.discard(&artefact, &stat);
                Ok(Lookup::Miss {
                    damaged: Some(format!("{}: {why}", self.dir.join(&artefact).display())),
                })
            }
        }
    }

    fn find(&self, key: &Key, name: &str, artefact: &str) -> Result<Result<Artefact, Gone>, Error> {
        let (file, stat) = match self.open_shared(artefact)? {
            Ok(opened) => opened,
            Err(gone) => return Ok(Err(gone)),
        };
        let (meta, facts, payload) = match self.check(key, name, &file, &stat) {
            Ok(described) => described,
            Err(why) => return Ok(Err(Gone::Damaged(stat, why))),
        };
        Ok(Ok(Artefact::new(
            self.dir.join(artefact),
            file,
            meta,
            facts,
            payload,
        )))
    }

    /// Opens an entry and marks it as in use.
    fn open_shared(&self, file_name: &str) -> Result<Result<(File, Stat), Gone>, Error> {
        for _ in 0..ATTEMPTS {
            let file = match self.dir.open_entry(file_name) {
                Ok(file) => file,
                Err(Errno::NOENT) => return Ok(Err(Gone::Missing)),
                Err(Errno::LOOP) => {
                    let link = self
                        .dir
                        .stat(file_name)
                        .map_err(Error::io("stat", self.dir.join(file_name)))?;
                    return Ok(Err(Gone::Damaged(
                        link,
                        "a symbolic link, not a file".into(),
                    )));
                }
                Err(e) => return Err(Error::io("open", self.dir.join(file_name))(e)),
            };
            // Never waits: a program that broke out of its sandbox could hold this lock for ever.
            if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
                let stat = fstat(&file).map_err(Error::io("stat", self.dir.join(file_name)))?;
                if stat.st_nlink > 0 {
                    return Ok(Ok((file, stat)));
                }
            }
            std::thread::sleep(ATTEMPT);
        }
        Ok(Err(Gone::Missing))
    }

    /// Makes sure that the file is the key's artefact and unharmed.
    fn check(
        &self,
        key: &Key,
        name: &str,
        file: &File,
        stat: &Stat,
    ) -> Result<(Meta, Facts, u64), String> {
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err("not a regular file".into());
        }
        let sealed = entry::read(file, stat.st_size as u64)?;
        if sealed.meta.key != *key {
            return Err("it is the artefact of another module".into());
        }
        if !self.dir.seen(name, stat, true) {
            entry::verify(file, &sealed)?;
            self.dir.mark_seen(name, stat);
        }
        let facts = sealed
            .facts
            .ok_or("what the compiler said of its module is missing")?;
        Ok((sealed.meta, facts, sealed.payload))
    }

    fn lookup_refusal(&self, key: &Key, name: &str) -> Result<Lookup, Error> {
        let file_name = format!("{name}{REFUSED}");
        let (file, stat) = match self.open_shared(&file_name)? {
            Ok(opened) => opened,
            Err(_) => return Ok(Lookup::Miss { damaged: None }),
        };
        let read = || {
            let sealed = entry::read(&file, stat.st_size as u64)?;
            if sealed.meta.key != *key || sealed.payload > crate::MAX_REFUSAL_BYTES as u64 {
                return Err("it is no refusal of this module".into());
            }
            entry::verify(&file, &sealed)?;
            let mut text = String::new();
            (&file)
                .take(sealed.payload)
                .read_to_string(&mut text)
                .map_err(|e| e.to_string())?;
            Ok::<_, String>(text)
        };
        match read() {
            Ok(text) => {
                touch(&file, &stat);
                Ok(Lookup::Refused(text))
            }
            Err(why) => {
                self.discard(&file_name, &stat);
                Ok(Lookup::Miss {
                    damaged: Some(format!("{}: {why}", self.dir.join(&file_name).display())),
                })
            }
        }
    }

    /// Removes a damaged entry, unless another process is changing the store: it would not do to wait here, and the
    /// damage stays known.
    fn discard(&self, file_name: &str, damaged: &Stat) {
        if let Some(_lock) = self.dir.try_lock()
            && let Ok(now) = self.dir.stat(file_name)
            && same_file(damaged, &now)
        {
            self.dir.unlink(file_name);
        }
    }
}
