//! What must hold before the first change to a node.

use std::path::Path;

use toml_edit::Value;

use crate::config::{self, Effective, Handlers, Ours};
use crate::containerd::version;
use crate::cri::Cri;
use crate::error::{Error, Result, file};
use crate::files;
use crate::journal::{Found, Journal};
use crate::layout::{Layout, Tree};
use crate::node::Node;
use crate::plan::{Plan, Planner};
use crate::{HANDLER, Options};

/// The oldest containerd that is known to work.
const CONTAINERD: (u32, u32) = (1, 7);
/// Room that is left on the disk beside the tree.
const MARGIN: u64 = 64 << 20;

/// What was found on the node, all checks passed.
pub(crate) struct Ready {
    pub node: Node,
    pub tree: Tree,
    pub handlers: Handlers,
    pub plan: Plan,
    /// Whether containerd lists the handlers now.
    pub listed: bool,
    /// Installations in other directories, whose place this one takes.
    pub elsewhere: Vec<Found>,
    /// Handlers that are wanted no more, but that pods run by.
    pub in_use: Vec<String>,
}

/// Everything that must hold before the first change; what does not is told at once.
pub(crate) fn check(
    options: &Options,
    layout: &Layout,
    journal: Option<&Journal>,
) -> Result<Ready> {
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
