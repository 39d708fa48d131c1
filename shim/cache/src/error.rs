use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

const FREE_SPACE: &str =
    "; free space on that file system (`slipway cache rm` removes artefacts that are not in use)";

/// The end of an error about a file beside the store's entries: what to do, where that is known.
pub fn remedy(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FREE_SPACE,
        _ => "",
    }
}

/// Why the store cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory is not one to keep native code in, or not to be had.
    #[error("artefact cache {dir}: {why}; {remedy}")]
    Unusable {
        /// The store's directory.
        dir: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What to do.
        remedy: String,
    },
    /// An entry could not be written. The store is as it was before.
    #[error(
        "artefact cache {dir}: cannot store an entry of {needed} bytes or more: {source}{FREE_SPACE}"
    )]
    Write {
        /// The store's directory.
        dir: PathBuf,
        /// Size of the entry in bytes, as far as it is known.
        needed: u64,
        /// The cause.
        source: io::Error,
    },
    /// What the compiler left is no shared object.
    #[error(
        "the compiler left {bytes} bytes that are no ELF file; try again, and report this if it stays"
    )]
    NotAnArtefact {
        /// Size in bytes.
        bytes: u64,
    },
    /// A bound of this crate is exceeded.
    #[error("{what}: {size} bytes, the limit is {limit}; use a smaller module")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
        /// The bound in bytes.
        limit: u64,
    },
    /// A prefix that is too short or no hexadecimal number.
    #[error("{0:?} names no entry: give at least {min} hexadecimal digits of its name or of its module's sha256", min = crate::MIN_PREFIX)]
    BadPrefix(String),
    /// Any other failure of a system call.
    #[error("artefact cache: {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err` on a system call.
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> Self {
        let path = path.into();
        move |errno| Self::Io {
            what,
            path,
            source: errno.into(),
        }
    }
}
