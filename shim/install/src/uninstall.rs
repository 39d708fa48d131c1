//! Taking Slipway away again, step by step. Each can be the last one before a power cut.

use std::path::Path;

use crate::cri::Cri;
use crate::error::{Error, Result, file};
use crate::files;
use crate::journal::{self, Change, Found, Journal, Phase, remove_directories};
use crate::layout::{Layout, remove_tree};
use crate::node::Node;
use crate::plan::without;
use crate::report::Report;
use crate::restart::{restart_containerd, wait};
use crate::{HANDLER, Options, Removal};

/// Takes Slipway away from this node.
///
/// # Errors
/// Pods run, or the node could not be changed back; what is not done yet, the next call does.
pub fn uninstall(options: &Options, removal: Removal, report: &mut Report) -> Result<()> {
    let done = uninstall_logged(options, removal, report);
    report.end(done)
}

fn uninstall_logged(options: &Options, removal: Removal, report: &mut Report) -> Result<()> {
    let layout = Layout::new(&options.install_dir);
    let own = Journal::load(&layout)?;
    let node = serving(options, own.as_ref());
    let effective = node.as_ref().map(|node| node.containerd.dump(&node.config));
    let known = effective.as_ref().and_then(|dump| dump.as_ref().ok());
    let elsewhere = Found::elsewhere(&layout, own.as_ref(), known)?;
    if !layout.has_traces() && elsewhere.is_empty() {
        report.say(format!("{}: nothing is installed", layout.root().display()));
        return Ok(());
    }
    let layouts: Vec<&Layout> = [&layout]
        .into_iter()
        .chain(elsewhere.iter().map(|found| &found.layout))
        .collect();
    let locks = match options.dry_run {
        true => None,
        false => {
            let own = journal::locked(&layout, "uninstall", report)?;
            Some((own, journal::others_locked(&elsewhere, "uninstall")?))
        }
    };
    let pods: Vec<_> = layouts.iter().flat_map(|layout| layout.pods()).collect();
    if !pods.is_empty() && !removal.force {
        return Err(Error::Refused(vec![format!(
            "pods of Slipway run on this node ({}): delete them first, or leave them without a runtime with --force",
            pods.join(", ")
        )]));
    }
    let installations = own.as_ref().map(|journal| (&layout, journal));
    let others = elsewhere
        .iter()
        .filter_map(|found| Some((&found.layout, found.journal.as_ref()?)));
    let installations: Vec<_> = installations.into_iter().chain(others).collect();
    // What is in force still works: a restart with a configuration that containerd refuses would be its end. And where no journal
    // is found, the configuration would have told of an installation in another directory.
    if let (Some(node), Some(Err(refused))) = (&node, &effective) {
        let listed = || Cri::ask(&node.address).is_ok_and(|cri| cri.handlers.contains(HANDLER));
        if !installations.is_empty() || listed() {
            return Err(Error::Refused(vec![format!(
                "{refused}: mend it first; nothing was changed"
            )]));
        }
    }
    match installations.is_empty() {
        false => restore(&installations, node.as_ref(), options, report)?,
        true => report
            .say("no journal: containerd's configuration was not changed by `slipway install`"),
    }
    if options.dry_run {
        return Ok(());
    }
    // Else it would go on for nobody, count, and make a part of the cache anew.
    let stopped = match pods.is_empty() {
        true => Some(
            slipway_queue::stop(&options.cache_dir)
                .map_err(file(&options.cache_dir, "end the compile queue's worker"))?,
        ),
        false => None,
    };
    if pods.is_empty() {
        // Nobody counts any more.
        remove_tree(Path::new(slipway_counters::DIR))?;
    }
    if removal.purge {
        purge(&layouts, options, report)?;
        drop(locks);
    }
    drop(stopped);
    report.say("uninstalled");
    Ok(())
}

/// The containerd that an installation was made for, where it runs. By its unit, where it has one: its address may be in the
/// configuration alone, which may be broken now.
fn serving(options: &Options, journal: Option<&Journal>) -> Option<Node> {
    let unit = options.containerd_unit.clone();
    let unit = unit.or_else(|| journal?.unit.clone());
    let address = options.containerd_address.clone();
    let address = address.or_else(|| Some(journal?.address.clone()));
    let options = Options {
        containerd_address: address.filter(|_| unit.is_none()),
        containerd_unit: unit,
        ..options.clone()
    };
    Node::find(&options).ok()
}

/// The configuration as it was before these installations, and containerd with it.
fn restore(
    installations: &[(&Layout, &Journal)],
    node: Option<&Node>,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let journals = || installations.iter().map(|(_, journal)| *journal);
    let ours = journal::ours(journals());
    let mut changes: Vec<(&Change, Option<String>, Option<String>)> = Vec::new();
    for change in journals().flat_map(|journal| journal.files.iter().rev()) {
        if changes.iter().any(|(other, ..)| other.path == change.path) {
            continue;
        }
        let current = files::read(&change.path)?;
        let mut recorded = journals().filter_map(|journal| journal.change(&change.path));
        let written = recorded.find(|c| [&Some(c.after.clone()), &c.pristine].contains(&&current));
        let wanted = match (&current, written) {
            (None, _) => None,
            (Some(_), Some(written)) => written.pristine.clone(),
            (Some(text), None) => {
                report.say(format!(
                    "{} was changed by somebody else: only what is Slipway's is removed",
                    change.path.display()
                ));
                without(text, change.kind, &ours).map_err(|reason| Error::Config {
                    path: change.path.clone(),
                    reason,
                })?
            }
        };
        changes.push((change, current, wanted));
    }
    let paths: Vec<_> = changes
        .iter()
        .map(|(change, ..)| change.path.clone())
        .collect();
    changes.retain(|(_, current, wanted)| wanted != current);
    if options.dry_run {
        for (change, current, wanted) in &changes {
            let (old, new) = (
                current.as_deref().unwrap_or_default(),
                wanted.as_deref().unwrap_or_default(),
            );
            let name = change.path.display().to_string();
            let diff = similar::TextDiff::from_lines(old, new);
            let to = if wanted.is_some() {
                name.as_str()
            } else {
                "/dev/null"
            };
            report.say(diff.unified_diff().header(&name, to).to_string().trim_end());
        }
        return Ok(());
    }
    let restart = !changes.is_empty() || journals().any(|j| j.phase != Phase::Installed);
    for (layout, journal) in installations {
        Journal {
            phase: Phase::Uninstalling,
            ..(*journal).clone()
        }
        .save(layout)?;
    }
    for (change, _, wanted) in &changes {
        report.say(format!("restore {}", change.path.display()));
        files::put(&change.path, wanted.as_deref())?;
    }
    for path in &paths {
        // Of a run that was killed.
        files::remove(&files::beside(path, "new"))?;
    }
    for journal in journals() {
        remove_directories(&journal.directories);
    }
    if restart && options.restart {
        let [(_, journal), ..] = installations else {
            return Ok(());
        };
        // k0s sees by itself that its drop-in is gone.
        if !paths
            .iter()
            .all(|path| path.starts_with("/etc/k0s/containerd.d"))
        {
            restart_containerd(journal, report)?;
        }
        wait(&journal.address, |cri| {
            // A handler of the same name may have been somebody else's before.
            let now = node.and_then(|node| node.containerd.dump(&node.config).ok());
            let program = |name: &str| now.as_ref().and_then(|dump| dump.program(name));
            let others =
                |name: &str| program(name).is_some_and(|p| !ours.shims.iter().any(|s| s == p));
            let mut listed = ours
                .names
                .iter()
                .filter(|name| cri.handlers.contains(*name));
            listed.all(|name| others(name))
        })
        .map_err(|reason| {
            Error::Containerd(format!("containerd still has the handlers: {reason}"))
        })?;
    } else if restart {
        report.say("restart containerd: until then it still has the handlers");
    }
    for (layout, _) in installations {
        layout.select(None)?;
        Journal::remove(layout)?;
    }
    Ok(())
}

/// The trees, the cache and the state.
fn purge(layouts: &[&Layout], options: &Options, report: &mut Report) -> Result<()> {
    let own = std::env::current_exe().unwrap_or_default();
    let mut used = false;
    for layout in layouts {
        let pods = !layout.pods().is_empty();
        used |= pods;
        for name in layout.retire()? {
            // This very program runs from one, too.
            let tree = layout.tree(&name);
            if pods || !own.starts_with(&tree) || remove_tree(&tree).is_err() {
                report.say(format!("version {name} stays: processes run from it"));
            }
        }
        remove_tree(&layout.state())?;
        remove_directories(&[layout.root().join("versions"), layout.root().to_owned()]);
    }
    if !used {
        remove_tree(&options.cache_dir)?;
        let parent = options.cache_dir.parent().map(Path::to_owned);
        remove_directories(&parent.into_iter().collect::<Vec<_>>());
    }
    Ok(())
}
