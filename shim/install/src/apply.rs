//! Installing: the steps, in their order. Each can be the last one before a power cut.

use std::path::{Path, PathBuf};

use crate::Options;
use crate::check::{Ready, check};
use crate::error::{Error, Result};
use crate::files;
use crate::journal::{self, Change, Journal, Phase, remove_directories};
use crate::layout::Layout;
use crate::plan::Plan;
use crate::report::Report;
use crate::restart::{last_words, restart_containerd, wait};

/// Installs Slipway on this node.
///
/// # Errors
/// Nothing was changed, or it was changed back; the error says which.
pub fn install(options: &Options, report: &mut Report) -> Result<()> {
    let done = install_logged(options, report);
    report.end(done)
}

fn install_logged(options: &Options, report: &mut Report) -> Result<()> {
    let layout = Layout::new(&options.install_dir);
    let _lock = match options.dry_run {
        true => None,
        false => Some(journal::locked(&layout, "install", report)?),
    };
    let journal = Journal::load(&layout)?;
    let ready = check(options, &layout, journal.as_ref())?;
    let changed = ready
        .plan
        .changes
        .iter()
        .any(|c| c.before.as_ref() != Some(&c.after));
    let interrupted = journal
        .as_ref()
        .is_some_and(|j| j.phase != Phase::Installed);
    let pending = journal
        .as_ref()
        .is_some_and(|j| j.restart_pending && !ready.listed);
    let restart = changed || interrupted || pending;
    if options.dry_run {
        tell(&ready, &layout, restart && options.restart, report);
        return Ok(());
    }
    let _locks = journal::others_locked(&ready.elsewhere, "install")?;
    for name in &ready.in_use {
        report.say(format!("handler {name} stays until its pods have ended"));
    }
    let earlier: Vec<&Journal> = journal
        .iter()
        .chain(
            ready
                .elsewhere
                .iter()
                .filter_map(|found| found.journal.as_ref()),
        )
        .collect();
    let stale = stale(&ready.plan, &earlier);
    let mut replaces: Vec<_> = ready
        .elsewhere
        .iter()
        .map(|f| f.layout.root().to_owned())
        .collect();
    let journal = Journal {
        phase: Phase::Installing,
        tree: ready.tree.name.clone(),
        tree_before: match &journal {
            Some(j) if j.phase == Phase::Installing => j.tree_before.clone(),
            _ => layout.current(),
        },
        handlers: ready.handlers.names.clone(),
        shim: ready.handlers.shim.clone(),
        unit: ready.node.unit.clone(),
        address: ready.node.address.clone(),
        restart_pending: restart,
        directories: directories(&ready.plan, &earlier),
        replaces: replaces.clone(),
        files: ready
            .plan
            .changes
            .iter()
            .cloned()
            .chain(stale.iter().cloned())
            .collect(),
    };
    let same = layout.current().as_ref() == Some(&ready.tree.name) && ready.elsewhere.is_empty();
    if !restart && same && ready.listed {
        // As the journal of the last run says.
        Journal {
            phase: Phase::Installed,
            restart_pending: false,
            ..journal
        }
        .save(&layout)?;
        report.say(format!("{} is installed already", ready.tree.name));
        return Ok(());
    }
    journal.save(&layout)?;
    report.say(format!("tree {}", layout.tree(&ready.tree.name).display()));
    layout.add(&ready.tree)?;
    let done = carry_out(
        &journal,
        &stale,
        &layout,
        &ready,
        restart && options.restart,
        report,
    );
    let seen = match done {
        Ok(seen) => seen,
        Err(reason) => {
            return Err(roll_back(
                &journal,
                &layout,
                options.restart,
                &reason,
                report,
            ));
        }
    };
    let journal = Journal {
        phase: Phase::Installed,
        restart_pending: !seen,
        files: ready.plan.changes,
        ..journal
    };
    journal.save(&layout)?;
    // This journal has all now that is needed to take them back; a containerd that was not restarted still starts their shims.
    if seen && !ready.elsewhere.is_empty() {
        for found in &ready.elsewhere {
            let root = found.layout.root();
            report.say(format!("takes the place of {}", root.display()));
            Journal::remove(&found.layout)?;
            let busy = found.layout.retire()?;
            replaces.retain(|other| other != root || !busy.is_empty());
        }
        Journal {
            replaces,
            ..journal
        }
        .save(&layout)?;
    }
    for busy in layout.prune(Some(&ready.tree.name))? {
        report.say(format!("version {busy} stays until its pods have ended"));
    }
    report.say(match seen {
        true => format!("installed: {}", ready.handlers.names.join(", ")),
        false => {
            "installed: restart containerd, and run this again to see that it knows the handlers"
                .into()
        }
    });
    Ok(())
}

/// Changes the node; whether containerd was seen with the handlers.
fn carry_out(
    journal: &Journal,
    stale: &[Change],
    layout: &Layout,
    ready: &Ready,
    restart: bool,
    report: &mut Report,
) -> Result<bool> {
    layout.select(Some(&journal.tree))?;
    for change in &ready.plan.changes {
        if files::read(&change.path)?.as_ref() != Some(&change.after) {
            report.say(format!("write {}", change.path.display()));
            if let Some(directory) = change.path.parent() {
                files::make_directory(directory)?;
            }
            files::write(&change.path, &change.after)?;
        }
    }
    for change in stale {
        report.say(format!("restore {}", change.path.display()));
        files::put(&change.path, change.pristine.as_deref())?;
    }
    if restart && !ready.plan.noticed {
        restart_containerd(journal, report)?;
    }
    if restart || (ready.listed && !journal.restart_pending) {
        wait(&journal.address, |cri| {
            journal.handlers.iter().all(|h| cri.handlers.contains(h))
        })
        .map_err(|reason| Error::Containerd(format!("the handlers did not appear: {reason}")))?;
        return Ok(true);
    }
    Ok(false)
}

/// Files that earlier runs have changed and that are not part of the plan any more.
fn stale(plan: &Plan, earlier: &[&Journal]) -> Vec<Change> {
    let planned = |path: &Path| plan.changes.iter().any(|c| c.path == path);
    let files = earlier.iter().flat_map(|journal| &journal.files);
    files
        .filter(|c| {
            !planned(&c.path) && files::read(&c.path).is_ok_and(|t| t.as_ref() == Some(&c.after))
        })
        .map(|c| Change {
            before: Some(c.after.clone()),
            ..c.clone()
        })
        .collect()
}

/// The directories that are made, by this run or an earlier one.
fn directories(plan: &Plan, earlier: &[&Journal]) -> Vec<PathBuf> {
    let parents = plan.changes.iter().filter_map(|c| c.path.parent());
    let missing = parents.flat_map(|p| p.ancestors().take_while(|p| !p.exists()));
    let mut all: Vec<_> = missing.map(Path::to_owned).collect();
    all.extend(earlier.iter().flat_map(|j| j.directories.clone()));
    all.sort();
    all.dedup();
    all.reverse();
    all
}

/// What a dry run prints.
fn tell(ready: &Ready, layout: &Layout, restart: bool, report: &mut Report) {
    let Ready {
        node, tree, plan, ..
    } = ready;
    report.say(format!(
        "containerd: {} with {}",
        node.containerd.program().display(),
        node.config.display()
    ));
    if !layout.has(&tree.name) {
        report.say(format!(
            "would copy {} to {}, {} MiB",
            tree.source.display(),
            layout.tree(&tree.name).display(),
            tree.bytes >> 20
        ));
    }
    if layout.current().as_ref() != Some(&tree.name) {
        report.say(format!(
            "would link {} to versions/{}",
            layout.root().join("current").display(),
            tree.name
        ));
    }
    for change in &plan.changes {
        let before = change.before.as_deref().unwrap_or_default();
        let name = change.path.display().to_string();
        let diff = similar::TextDiff::from_lines(before, &change.after);
        let old = match change.before {
            Some(_) => name.as_str(),
            None => "/dev/null",
        };
        let text = diff.unified_diff().header(old, &name).to_string();
        if !text.is_empty() {
            report.say(text.trim_end());
        }
    }
    report.say(match (restart, &node.unit) {
        (true, Some(unit)) => format!("would restart {unit}"),
        _ => "would restart nothing".into(),
    });
}

/// Everything back to the beginning of this run; the error to give.
fn roll_back(
    journal: &Journal,
    layout: &Layout,
    restart: bool,
    reason: &Error,
    report: &mut Report,
) -> Error {
    let mut reason = reason.to_string();
    let words = journal.unit.as_deref().map(last_words).unwrap_or_default();
    if !words.is_empty() {
        reason = format!("{reason}\n{words}");
    }
    report.say(format!("failed, taking it back: {reason}"));
    let back = || {
        for change in journal.files.iter().rev() {
            files::put(&change.path, change.before.as_deref())?;
        }
        layout.select(journal.tree_before.as_deref())?;
        if restart && journal.restart_pending {
            restart_containerd(journal, &mut Report::default())?;
            wait(&journal.address, |_| true).map_err(Error::Containerd)?;
        }
        match journal.tree_before {
            // What was installed before, still is.
            Some(_) => {
                let files = journal.files.iter().filter_map(|c| {
                    Some(Change {
                        after: c.before.clone()?,
                        ..c.clone()
                    })
                });
                Journal {
                    phase: Phase::Installed,
                    tree: journal.tree_before.clone().unwrap_or_default(),
                    files: files
                        .filter(|c| c.pristine.as_ref() != Some(&c.after))
                        .collect(),
                    ..journal.clone()
                }
                .save(layout)
            }
            None => {
                remove_directories(&journal.directories);
                Journal::remove(layout)
            }
        }
    };
    match back() {
        Ok(()) => Error::RolledBack { reason },
        Err(e) => Error::Stuck {
            reason,
            rollback: e.to_string(),
            journal: Journal::path(layout),
        },
    }
}
