//! The steps, in their order. Each can be the last one before a power cut.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use slipway_systemd::Systemd;
use toml_edit::Value;

use crate::config::{self, Effective, Handlers};
use crate::containerd::version;
use crate::cri::Cri;
use crate::error::{Error, Result, file};
use crate::files;
use crate::journal::{Change, Journal, Lock, Phase, remove_directories};
use crate::layout::{Layout, Tree, remove_tree};
use crate::node::Node;
use crate::plan::{Plan, Planner, without};
use crate::report::Report;
use crate::{Options, Removal};

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
    /// The handlers that containerd lists now.
    listed: bool,
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
    let stale = stale(&ready.plan, journal.as_ref());
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
        directories: directories(&ready.plan, journal.as_ref()),
        files: ready
            .plan
            .changes
            .iter()
            .cloned()
            .chain(stale.iter().cloned())
            .collect(),
    };
    if !restart && layout.current().as_ref() == Some(&ready.tree.name) && ready.listed {
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
    Journal {
        phase: Phase::Installed,
        restart_pending: !seen,
        files: ready.plan.changes,
        ..journal
    }
    .save(&layout)?;
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
    let handlers = handlers(options, layout, &effective);
    let known = |shim: &str| {
        shim.ends_with("/containerd-shim-slipway-v1") || shim == "io.containerd.slipway.v1"
    };
    for name in &handlers.names {
        if let Some(other) = effective.program(name).filter(|shim| !known(shim)) {
            problems.push(format!(
                "handler {name} is {other}'s already: leave out --alias {name}"
            ));
        }
    }
    let planner = Planner {
        node: &node,
        major: number.map_or(0, |v| v.0),
        handlers: &handlers,
        effective: &effective,
        journal,
    };
    let plan = planner.plan().and_then(|plan| {
        validate(&plan, &node, layout, &effective, &handlers)?;
        Ok(plan)
    });
    match plan {
        Ok(plan) if problems.is_empty() => Ok(Ready {
            listed: handlers.names.iter().all(|h| cri.handlers.contains(h)),
            node,
            tree,
            handlers,
            plan,
        }),
        plan => {
            problems.extend(plan.err().map(|e| e.to_string()));
            Err(Error::Refused(problems))
        }
    }
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
        text = config::remove(&text, &handlers.shim, &[], path).map_err(wrong)?;
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
    match effective.difference(&after, handlers) {
        Some(difference) if !plan.noticed => Err(Error::Containerd(format!(
            "{}: adding the handlers would change something else: {difference}",
            node.config.display()
        ))),
        _ => Ok(()),
    }
}

/// Files that an earlier run has changed and that are not part of the plan any more.
fn stale(plan: &Plan, journal: Option<&Journal>) -> Vec<Change> {
    let planned = |path: &Path| plan.changes.iter().any(|c| c.path == path);
    let earlier = journal.into_iter().flat_map(|j| &j.files);
    earlier
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
fn directories(plan: &Plan, journal: Option<&Journal>) -> Vec<PathBuf> {
    let parents = plan.changes.iter().filter_map(|c| c.path.parent());
    let missing = parents.flat_map(|p| p.ancestors().take_while(|p| !p.exists()));
    let mut all: Vec<_> = missing.map(Path::to_owned).collect();
    all.extend(journal.into_iter().flat_map(|j| j.directories.clone()));
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
    if !options.dry_run && !layout.state().exists() {
        report.say(format!("{}: nothing is installed", layout.root().display()));
        return Ok(());
    }
    let lock = match options.dry_run {
        true => None,
        false => Some(locked(&layout, "uninstall", report)?),
    };
    let pods = layout.pods();
    if !pods.is_empty() && !removal.force {
        return Err(Error::Refused(vec![format!(
            "pods of Slipway run on this node ({}): delete them first, or leave them without a runtime with --force",
            pods.join(", ")
        )]));
    }
    match Journal::load(&layout)? {
        Some(journal) => restore(&journal, &layout, options, report)?,
        None => report
            .say("no journal: containerd's configuration was not changed by `slipway install`"),
    }
    if pods.is_empty() && !options.dry_run {
        // Nobody counts any more.
        remove_tree(Path::new(slipway_counters::DIR))?;
    }
    if removal.purge && !options.dry_run {
        purge(&layout, options, report)?;
        drop(lock);
    }
    if !options.dry_run {
        report.say("uninstalled");
    }
    Ok(())
}

/// The configuration as it was, and containerd with it.
fn restore(
    journal: &Journal,
    layout: &Layout,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let mut changes = Vec::new();
    for change in journal.files.iter().rev() {
        let current = files::read(&change.path)?;
        let wanted = match &current {
            None => None,
            Some(text) if *text == change.after => change.pristine.clone(),
            Some(text) if Some(text) == change.pristine.as_ref() => change.pristine.clone(),
            Some(text) => {
                report.say(format!(
                    "{} was changed by somebody else: only what is Slipway's is removed",
                    change.path.display()
                ));
                without(
                    text,
                    change.kind,
                    &journal.shim,
                    &journal.handlers,
                    journal.import(),
                )
                .map_err(|reason| Error::Config {
                    path: change.path.clone(),
                    reason,
                })?
            }
        };
        if wanted != current {
            changes.push((change, current, wanted));
        }
    }
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
    let restart = !changes.is_empty() || journal.phase != Phase::Installed;
    let journal = Journal {
        phase: Phase::Uninstalling,
        ..journal.clone()
    };
    journal.save(layout)?;
    for (change, _, wanted) in &changes {
        report.say(format!("restore {}", change.path.display()));
        put(&change.path, wanted.as_deref())?;
    }
    for change in &journal.files {
        // Of a run that was killed.
        files::remove(&files::beside(&change.path, "new"))?;
    }
    remove_directories(&journal.directories);
    if restart && options.restart {
        // k0s sees by itself that its drop-in is gone.
        if !journal
            .files
            .iter()
            .all(|c| c.path.starts_with("/etc/k0s/containerd.d"))
        {
            restart_containerd(&journal, report)?;
        }
        wait(&journal.address, HANDLERS, |cri| {
            !journal.handlers.iter().any(|h| cri.handlers.contains(h))
        })
        .map_err(|reason| {
            Error::Containerd(format!("containerd still has the handlers: {reason}"))
        })?;
    } else if restart {
        report.say("restart containerd: until then it still has the handlers");
    }
    layout.select(None)?;
    Journal::remove(layout)
}

/// The trees, the cache and the state. Trees that pods run from stay.
fn purge(layout: &Layout, options: &Options, report: &mut Report) -> Result<()> {
    layout.select(None)?;
    let own = std::env::current_exe().unwrap_or_default();
    let busy: Vec<_> = layout.prune(None)?;
    // This very program runs from one, too.
    let busy = busy.into_iter().filter(|name| {
        let tree = layout.tree(name);
        match own.starts_with(&tree) && layout.pods().is_empty() {
            true => remove_tree(&tree).is_err(),
            false => true,
        }
    });
    for name in busy {
        report.say(format!("version {name} stays: processes run from it"));
    }
    if layout.pods().is_empty() {
        remove_tree(&options.cache_dir)?;
        remove_directories(
            &options
                .cache_dir
                .parent()
                .map(Path::to_owned)
                .into_iter()
                .collect::<Vec<_>>(),
        );
    }
    remove_tree(&layout.state())?;
    remove_directories(&[layout.root().join("versions"), layout.root().to_owned()]);
    Ok(())
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
