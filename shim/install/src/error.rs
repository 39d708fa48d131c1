//! What can go wrong, with the remedy.

use std::io;
use std::path::{Path, PathBuf};

/// Why a node was not changed, or was changed back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checks, all that failed.
    #[error("{}", listed(.0))]
    Refused(Vec<String>),
    /// A file.
    #[error("{}: {doing}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was done with it.
        doing: &'static str,
        /// The kernel's word.
        source: io::Error,
    },
    /// A configuration that cannot be changed.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// containerd, in its own words.
    #[error("{0}")]
    Containerd(String),
    /// Somebody else is at work.
    #[error("{} is locked by {holder}: wait until it has ended", path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
        /// Who holds it.
        holder: String,
    },
    /// The change did not work and was taken back.
    #[error("{reason}; the node is as it was before")]
    RolledBack {
        /// Why.
        reason: String,
    },
    /// The change did not work, and neither did taking it back.
    #[error(
        "{reason}; and taking it back failed: {rollback}. `slipway uninstall` tries again, the bytes before are in {}", journal.display()
    )]
    Stuck {
        /// Why.
        reason: String,
        /// Why not back.
        rollback: String,
        /// Where the bytes are.
        journal: PathBuf,
    },
}

/// The result of most of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Names the file that an operation failed on.
pub fn file(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        path,
        doing,
        source,
    }
}

fn listed(problems: &[String]) -> String {
    match problems {
        [one] => one.clone(),
        many => format!("this node is not ready:\n  - {}", many.join("\n  - ")),
    }
}
