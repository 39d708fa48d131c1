//! What `slipway doctor` tells of an installation.

use std::path::PathBuf;

use crate::cri::Cri;
use crate::error::Result;
use crate::files;
use crate::journal::{Journal, Kind, Phase};
use crate::layout::Layout;

/// An installation as it is.
#[derive(Debug)]
pub struct Status {
    /// The tree that is current.
    pub tree: String,
    /// How far the last run came, as people read it.
    pub phase: &'static str,
    /// It came to its end.
    pub complete: bool,
    /// Files that are not as they were written.
    pub changed: Vec<PathBuf>,
    /// containerd's configuration, where the installation has changed it.
    pub config: Option<PathBuf>,
    /// The unit that runs containerd, where it is systemd's.
    pub unit: Option<String>,
    /// containerd's socket.
    pub address: PathBuf,
    /// The handlers.
    pub handlers: Vec<String>,
    /// Those that containerd does not list; its words where it does not answer.
    pub missing: std::result::Result<Vec<String>, String>,
}

/// Looks at an installation; `None` where there is none.
///
/// # Errors
/// The journal cannot be read.
pub fn status(layout: &Layout) -> Result<Option<Status>> {
    let Some(journal) = Journal::load(layout)? else {
        return Ok(None);
    };
    let mut changed = Vec::new();
    for change in &journal.files {
        if files::read(&change.path)?.as_ref() != Some(&change.after) {
            changed.push(change.path.clone());
        }
    }
    let missing = Cri::ask(&journal.address).map(|cri| {
        let missing = journal
            .handlers
            .iter()
            .filter(|h| !cri.handlers.contains(*h));
        missing.cloned().collect()
    });
    Ok(Some(Status {
        tree: layout.current().unwrap_or_default(),
        phase: journal.phase.word(),
        complete: journal.phase == Phase::Installed,
        changed,
        config: journal
            .files
            .iter()
            .find(|change| change.kind == Kind::Config)
            .map(|change| change.path.clone()),
        unit: journal.unit,
        address: journal.address,
        handlers: journal.handlers,
        missing,
    }))
}
