//! The steps, in their order. Each can be the last one before a power cut.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use slipway_systemd::Systemd;
use toml_edit::Value;

use crate::config::{self, Effective, Handlers, Ours};
use crate::containerd::version;
use crate::cri::Cri;
use crate::error::{Error, Result, file};
use crate::files;
use crate::journal::{self, Change, Found, Journal, Lock, Phase, remove_directories};
use crate::layout::{Layout, Tree, remove_tree};
use crate::node::Node;
use crate::plan::{Plan, Planner, without};
use crate::report::Report;
use crate::{HANDLER, Options, Removal};

/// The oldest containerd that is known to work.
const CONTAINERD: (u32, u32) = (1, 7);
/// Room that is left on the disk beside the tree.
const MARGIN: u64 = 64 << 20;
/// How long a restart may take: k3s is a whole cluster.
const RESTART: Duration = Duration::from_secs(180);
/// How long containerd may take to answer CRI with the handlers, once its unit is active.
const HANDLERS: Duration = Duration::from_secs(30);
/// How often it is asked.
const INTERVAL: Duration = Duration::from_millis(200);

/// What was found on the node, all checks passed.
struct Ready {
    node: Node,
    tree: Tree,
    handlers: Handlers,
    plan: Plan,
    /// Whether containerd lists the handlers now.
    listed: bool,
    /// Installations in other directories, whose place this one takes.
    elsewhere: Vec<Found>,
    /// Handlers that are wanted no more, but that pods run by.
    in_use: Vec<String>,
}

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
        false => Some(locked(&layout, "install", report)?),
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
    let _locks = others_locked(&ready.elsewhere, "install")?;
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
        put(&change.path, change.pristine.as_deref())?;
    }
    if restart && !ready.plan.noticed {
        restart_containerd(journal, report)?;
    }
    if restart || (ready.listed && !journal.restart_pending) {
        wait(&journal.address, HANDLERS, |cri| {
            journal.handlers.iter().all(|h| cri.handlers.contains(h))
        })
        .map_err(|reason| Error::Containerd(format!("the handlers did not appear: {reason}")))?;
        return Ok(true);
    }
    Ok(false)
}

/// Everything that must hold before the first change; what does not is told at once.
fn check(options: &Options, layout: &Layout, journal: Option<&Journal>) -> Result<Ready> {
    let mut problems = host_problems();
    problems.extend(options_problems(options));
    let tree = Tree::read(&options.source);
    match &tree {
        Ok(tree) if !layout.has(&tree.name) => {
            problems.extend(space_problem(layout.root(), tree.bytes))
        }
        Ok(_) => {}
        Err(e) => problems.push(e.to_string()),
    }
    let node = Node::find(options);
    let found = node.as_ref().map_err(Clone::clone).and_then(|node| {
        if node.unit.is_none() && options.restart {
            problems.push(
                "containerd is no service of systemd's: restart it yourself, with --no-restart"
                    .into(),
            );
        }
        Ok((
            Cri::ask(&node.address),
            node.containerd
                .dump(&node.config)
                .map_err(|e| e.to_string())?,
        ))
    });
    let (cri, effective) = match found {
        Ok((cri, effective)) => {
            if let Some(name) = effective.disabled_cri() {
                problems.push(format!("`disabled_plugins` of containerd's configuration has {name:?}: take it out, or no kubelet can use this containerd"));
            }
            (
                cri.map_err(|e| problems.push(format!("containerd's CRI does not answer: {e}")))
                    .ok(),
                Some(effective),
            )
        }
        Err(problem) => {
            problems.push(problem);
            (None, None)
        }
    };
    let (Ok(tree), Ok(node), Some(cri), Some(effective)) = (tree, node, cri, effective) else {
        return Err(Error::Refused(problems));
    };
    let number = version(&cri.version);
    if number.is_none_or(|v| v < CONTAINERD) {
        problems.push(format!(
            "containerd {} is too old: {}.{} or newer is needed",
            cri.version, CONTAINERD.0, CONTAINERD.1
        ));
    }
    let mut handlers = handlers(options, layout, &effective);
    let elsewhere = Found::elsewhere(layout, journal, Some(&effective))?;
    let in_use = in_use(&handlers, journal, &elsewhere, &node, &cri);
    let in_use = in_use.unwrap_or_else(|problem| {
        problems.push(problem);
        Vec::new()
    });
    handlers.names.extend(in_use.iter().cloned());
    let known = |shim: &str| {
        shim.ends_with("/containerd-shim-slipway-v1") || shim == "io.containerd.slipway.v1"
    };
    for name in &handlers.names {
        if let Some(other) = effective.program(name).filter(|shim| !known(shim)) {
            let remedy = match name == HANDLER {
                true => format!(
                    "take it out of {}, or give it another name there",
                    node.config.display()
                ),
                false => format!("leave out --alias {name}"),
            };
            problems.push(format!("handler {name} is {other}'s already: {remedy}"));
        }
    }
    let planner = Planner {
        node: &node,
        major: number.map_or(0, |v| v.0),
        handlers: &handlers,
        effective: &effective,
        journal,
        elsewhere: elsewhere
            .iter()
            .filter_map(|found| found.journal.as_ref())
            .collect(),
    };
    let plan = planner.plan().and_then(|plan| {
        validate(&plan, &node, layout, &effective, &handlers, &planner.ours())?;
        Ok(plan)
    });
    match plan {
        Ok(plan) if problems.is_empty() => Ok(Ready {
            listed: handlers.names.iter().all(|h| cri.handlers.contains(h)),
            node,
            tree,
            handlers,
            plan,
            elsewhere,
            in_use,
        }),
        plan => {
            problems.extend(plan.err().map(|e| e.to_string()));
            Err(Error::Refused(problems))
        }
    }
}

/// The handlers of earlier installations that are wanted no more, but that pods run by: without them containerd would not
/// start a container of theirs again.
fn in_use(
    wanted: &Handlers,
    journal: Option<&Journal>,
    elsewhere: &[Found],
    node: &Node,
    cri: &Cri,
) -> std::result::Result<Vec<String>, String> {
    let earlier = journal
        .into_iter()
        .chain(elsewhere.iter().filter_map(|found| found.journal.as_ref()));
    let mut dropped: Vec<String> = earlier
        .flat_map(|journal| journal.handlers.iter().cloned())
        .filter(|name| !wanted.names.contains(name) && cri.handlers.contains(name))
        .collect();
    if !dropped.is_empty() {
        let used = Cri::handlers_in_use(&node.address)
            .map_err(|e| format!("containerd does not list its pods: {e}"))?;
        dropped.retain(|name| used.contains(name));
        dropped.sort();
        dropped.dedup();
    }
    Ok(dropped)
}

fn handlers(options: &Options, layout: &Layout, effective: &Effective) -> Handlers {
    let mut delegate = effective.runc_options();
    if let Some(bytes) = options.cache_size {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        delegate.push(("CacheBytes".into(), Value::from(bytes)));
    }
    Handlers {
        names: options.handlers(),
        shim: layout.shim().to_string_lossy().into_owned(),
        annotations: options.annotations.clone(),
        options: delegate,
    }
}

fn host_problems() -> Vec<String> {
    let mut problems = Vec::new();
    if !rustix::process::geteuid().is_root() {
        problems.push("not root: run it with sudo".into());
    }
    let uname = rustix::system::uname();
    let machine = uname.machine().to_string_lossy();
    if machine != std::env::consts::ARCH {
        problems.push(format!(
            "this node is {machine}, this Slipway is for {}",
            std::env::consts::ARCH
        ));
    }
    problems
}

/// Names of handlers are labels of DNS; annotations end up between quotes.
fn options_problems(options: &Options) -> Vec<String> {
    let label = |name: &String| {
        let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        (1..=63).contains(&name.len())
            && name.bytes().all(|b| letter(b) || b == b'-')
            && [name.bytes().next(), name.bytes().last()]
                .into_iter()
                .flatten()
                .all(letter)
    };
    let bad = options.handlers().into_iter().filter(|name| !label(name));
    let mut problems: Vec<_> = bad
        .map(|name| {
            format!("--alias {name}: a handler's name has small letters, digits and dashes only")
        })
        .collect();
    if !options.install_dir.is_absolute() {
        problems.push(format!(
            "--install-dir {}: must be absolute, containerd looks there",
            options.install_dir.display()
        ));
    }
    problems
}

fn space_problem(root: &Path, needed: u64) -> Option<String> {
    let existing = root.ancestors().find(|p| p.exists())?;
    let space = rustix::fs::statvfs(existing).ok()?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    (free < needed + MARGIN).then(|| {
        format!(
            "{}: {} MiB free, {} MiB are needed",
            existing.display(),
            free >> 20,
            (needed + MARGIN) >> 20
        )
    })
}

/// Lets the node's own containerd read what it would be given: it must understand it, and nothing else may change.
fn validate(
    plan: &Plan,
    node: &Node,
    layout: &Layout,
    effective: &Effective,
    handlers: &Handlers,
    ours: &Ours,
) -> Result<()> {
    // Below the state: what a run leaves that was killed goes with it.
    let temporary = match layout.state() {
        state if state.is_dir() => tempfile::tempdir_in(state),
        _ => tempfile::tempdir(),
    };
    let directory = temporary.map_err(file(layout.root(), "make a temporary directory"))?;
    let main = directory.path().join("config.toml");
    let drop_in = directory.path().join("drop-in.toml");
    let wrong = |reason| Error::Config {
        path: node.config.clone(),
        reason,
    };
    let mut text = plan.main.clone();
    if let Some((path, content)) = &plan.drop_in {
        files::write(&drop_in, content)?;
        let import = Ours {
            imports: vec![path.clone()],
            ..Ours::default()
        };
        text = config::remove(&text, &import).map_err(wrong)?;
        text = config::add_import(&text, &drop_in).map_err(wrong)?;
    }
    text = config::absolute_imports(&text, node.directory()).map_err(wrong)?;
    files::write(&main, &text)?;
    let after = node.containerd.dump(&main)?;
    if let Some(name) = handlers
        .names
        .iter()
        .find(|name| after.program(name).is_none())
    {
        return Err(Error::Containerd(format!(
            "containerd would not take the handler {name} from {}",
            node.config.display()
        )));
    }
    match effective.difference(&after, &handlers.names, ours) {
        Some(difference) if !plan.noticed => Err(Error::Containerd(format!(
            "{}: adding the handlers would change something else: {difference}",
            node.config.display()
        ))),
        _ => Ok(()),
    }
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
            put(&change.path, change.before.as_deref())?;
        }
        layout.select(journal.tree_before.as_deref())?;
        if restart && journal.restart_pending {
            restart_containerd(journal, &mut Report::default())?;
            wait(&journal.address, HANDLERS, |_| true).map_err(Error::Containerd)?;
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
            let own = locked(&layout, "uninstall", report)?;
            Some((own, others_locked(&elsewhere, "uninstall")?))
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
        put(&change.path, wanted.as_deref())?;
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
        wait(&journal.address, HANDLERS, |cri| {
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

/// The locks of installations in other directories.
fn others_locked(elsewhere: &[Found], doing: &str) -> Result<Vec<Lock>> {
    let there = elsewhere.iter().filter(|found| found.layout.has_traces());
    there
        .map(|found| Lock::take(&found.layout, doing))
        .collect()
}

/// The lock, and from then on the log.
fn locked(layout: &Layout, doing: &str, report: &mut Report) -> Result<Lock> {
    files::make_directory(&layout.state())?;
    report.log_to(&layout.log())?;
    Lock::take(layout, doing)
}

/// A file with this text, or none.
fn put(path: &Path, text: Option<&str>) -> Result<()> {
    match text {
        Some(text) => files::write(path, text),
        None => files::remove(path),
    }
}

fn restart_containerd(journal: &Journal, report: &mut Report) -> Result<()> {
    let Some(unit) = &journal.unit else {
        return Err(Error::Containerd(
            "containerd is no service of systemd's: restart it yourself, with --no-restart".into(),
        ));
    };
    report.say(format!("restart {unit}"));
    let socket = Path::new(slipway_systemd::SOCKET);
    let systemd = Systemd::connect().map_err(file(socket, "connect"))?;
    let mut systemd = systemd
        .ok_or_else(|| Error::Containerd(format!("{}: no systemd runs here", socket.display())))?;
    systemd
        .restart(unit, RESTART)
        .map_err(|e| Error::Containerd(format!("restart {unit}: {e}")))
}

/// Waits until containerd answers, and as wanted.
fn wait(
    address: &Path,
    patience: Duration,
    wanted: impl Fn(&Cri) -> bool,
) -> std::result::Result<(), String> {
    let started = Instant::now();
    loop {
        let reason = match Cri::ask(address) {
            Ok(cri) if wanted(&cri) => return Ok(()),
            Ok(cri) => {
                let handlers: Vec<_> = cri.handlers.into_iter().filter(|h| !h.is_empty()).collect();
                format!("containerd lists {}", handlers.join(", "))
            }
            Err(e) => e,
        };
        if started.elapsed() > patience {
            return Err(format!(
                "{reason}, {} s after it was restarted",
                patience.as_secs()
            ));
        }
        std::thread::sleep(INTERVAL);
    }
}

/// What a unit said last, where there is a journal.
fn last_words(unit: &str) -> String {
    let output = Command::new("journalctl")
        .args(["--no-pager", "--output=cat", "--lines=10", "--unit", unit])
        .output();
    output.map_or_else(
        |_| String::new(),
        |o| String::from_utf8_lossy(&o.stdout).trim().to_owned(),
    )
}
