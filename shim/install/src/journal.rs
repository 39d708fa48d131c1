//! What was changed on the node, with the bytes before: written before the first change, removed after the last one back.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::config::{Effective, Ours};
use crate::error::{Error, Result, file};
use crate::files;
use crate::layout::Layout;
use crate::report::Report;

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Something may be changed, something not.
    Installing,
    /// All is changed, and containerd was seen with it.
    Installed,
    /// Something may be as before, something not.
    Uninstalling,
}

impl Phase {
    /// As people read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Installing => "an installation was interrupted",
            Self::Installed => "installed",
            Self::Uninstalling => "an uninstallation was interrupted",
        }
    }
}

/// What kind of file it is: how ours is told from others' in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// containerd's configuration.
    Config,
    /// A file of our own that containerd imports.
    DropIn,
    /// A template of the configuration.
    Template,
}

/// A file that is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The file.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Without Slipway: what uninstalling restores. `None`: there was no file.
    pub pristine: Option<String>,
    /// At the beginning of this run: what a rollback restores.
    pub before: Option<String>,
    /// What is written.
    pub after: String,
}

/// The record of an installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// How far it is.
    pub phase: Phase,
    /// The tree.
    pub tree: String,
    /// The tree that was current before.
    pub tree_before: Option<String>,
    /// Names of the handlers.
    pub handlers: Vec<String>,
    /// The shim as the configuration names it.
    pub shim: String,
    /// The unit that runs containerd, where it is systemd's.
    pub unit: Option<String>,
    /// containerd's socket.
    pub address: PathBuf,
    /// containerd runs with a configuration of before the change.
    pub restart_pending: bool,
    /// The files.
    pub files: Vec<Change>,
    /// Directories that did not exist before, innermost first.
    pub directories: Vec<PathBuf>,
    /// Install directories whose place this one has taken, while something is left in them.
    #[serde(default)]
    pub replaces: Vec<PathBuf>,
}

impl Journal {
    /// Where it is.
    pub fn path(layout: &Layout) -> PathBuf {
        layout.state().join("journal.json")
    }

    /// Reads it; `None` where nothing is installed.
    pub fn load(layout: &Layout) -> Result<Option<Self>> {
        let path = Self::path(layout);
        let Some(text) = files::read(&path)? else {
            return Ok(None);
        };
        serde_json::from_str(&text).map(Some).map_err(|e| Error::Config {
            path,
            reason: format!("the journal is damaged ({e}): restore the files that it names by hand, then remove it"),
        })
    }

    /// Puts it on disk.
    pub fn save(&self, layout: &Layout) -> Result<()> {
        let path = Self::path(layout);
        let text =
            serde_json::to_string_pretty(self).map_err(|e| file(&path, "write")(e.into()))?;
        files::write(&path, &text)
    }

    /// Forgets the installation.
    pub fn remove(layout: &Layout) -> Result<()> {
        files::remove(&Self::path(layout))
    }

    /// What it has of a file.
    pub fn change(&self, path: &Path) -> Option<&Change> {
        self.files.iter().find(|c| c.path == path)
    }

    /// The file of our own that the configuration imports.
    pub fn import(&self) -> Option<&Path> {
        let own = self.files.iter().find(|c| c.kind == Kind::DropIn);
        own.map(|c| c.path.as_path())
    }
}

/// An installation as it was found.
#[derive(Debug)]
pub struct Found {
    /// Its directory.
    pub layout: Layout,
    /// Its journal; `None` where only files are left, of one whose place this one takes.
    pub journal: Option<Journal>,
}

impl Found {
    /// The installations in other directories than this one: those whose handlers containerd has, and those whose place this one
    /// takes. A handler whose directory has no journal was written by somebody else.
    pub fn elsewhere(
        layout: &Layout,
        journal: Option<&Journal>,
        effective: Option<&Effective>,
    ) -> Result<Vec<Self>> {
        let replaced: &[PathBuf] = journal.map_or(&[], |journal| &journal.replaces);
        let programs = effective.into_iter().flat_map(Effective::programs);
        let named = programs.filter_map(|(_, program)| Layout::of_shim(Path::new(program)));
        let named = named.map(|layout| layout.root().to_owned());
        let mut roots: Vec<_> = replaced.iter().cloned().chain(named).collect();
        roots.retain(|root| root != layout.root());
        roots.sort();
        roots.dedup();
        let mut found = Vec::new();
        for root in roots {
            let layout = Layout::new(&root);
            let journal = Journal::load(&layout)?;
            if journal.is_some() || replaced.contains(&root) {
                found.push(Self { layout, journal });
            }
        }
        Ok(found)
    }
}

/// By what the parts of these installations in a configuration are known.
pub fn ours<'a>(journals: impl Iterator<Item = &'a Journal>) -> Ours {
    let mut ours = Ours::default();
    for journal in journals {
        ours.shims.push(journal.shim.clone());
        ours.names.extend(journal.handlers.iter().cloned());
        ours.imports.extend(journal.import().map(Path::to_owned));
    }
    ours
}

/// The lock of everything that changes the node; held until it is dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "closing it releases the lock")] File);

impl Lock {
    /// Takes it.
    ///
    /// # Errors
    /// Somebody else has it: says who.
    pub fn take(layout: &Layout, doing: &str) -> Result<Self> {
        files::make_directory(&layout.state())?;
        let path = layout.state().join("lock");
        let mut lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(file(&path, "open"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            let _ = lock.read_to_string(&mut holder);
            let holder = holder.trim().to_owned();
            return Err(Error::Locked { path, holder });
        }
        let holder = format!("process {} (slipway {doing})\n", std::process::id());
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| lock.write_all(holder.as_bytes()))
            .map_err(file(&path, "write"))?;
        Ok(Self(lock))
    }
}

/// Removes directories that an installation has made, where nobody has put anything into them.
pub fn remove_directories(directories: &[PathBuf]) {
    for directory in directories {
        let _ = fs::remove_dir(directory);
    }
}

/// The lock, and from then on the log.
pub fn locked(layout: &Layout, doing: &str, report: &mut Report) -> Result<Lock> {
    files::make_directory(&layout.state())?;
    report.log_to(&layout.log())?;
    Lock::take(layout, doing)
}

/// The locks of installations in other directories.
pub fn others_locked(elsewhere: &[Found], doing: &str) -> Result<Vec<Lock>> {
    let there = elsewhere.iter().filter(|found| found.layout.has_traces());
    there
        .map(|found| Lock::take(&found.layout, doing))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_the_other_is_named() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let held = Lock::take(&layout, "install").unwrap();
        let error = Lock::take(&layout, "uninstall").unwrap_err().to_string();
        let holder = format!("locked by process {} (slipway install)", std::process::id());
        assert!(error.contains(&holder), "{error}");
        drop(held);
        Lock::take(&layout, "uninstall").unwrap();
    }

    #[test]
    fn a_damaged_journal_is_an_error_with_a_remedy() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        assert!(Journal::load(&layout).unwrap().is_none());
        fs::create_dir(layout.state()).unwrap();
        fs::write(Journal::path(&layout), "{").unwrap();
        let error = Journal::load(&layout).unwrap_err().to_string();
        assert!(error.contains("by hand"), "{error}");
    }
}
