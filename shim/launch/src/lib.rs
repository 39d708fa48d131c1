//! The host's side of a guest: where things are installed, how a guest is spawned, how it is led to its module.
//!
//! The shim and the command line share this crate, so that a module meets the same sandbox in a pod and on a terminal.

mod compiler;
mod guest;
mod layer;
mod process;
#[cfg(test)]
mod tests;

pub use compiler::Compiler;
pub use guest::{Guest, spawn};
pub use layer::LayerSource;
pub use slipway_compile::{Direct, Install, Job, LOADER};
pub use slipway_queue::Client;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use slipway_cgroup::OomKill;
use slipway_counters::{Counter, Counters};
use slipway_module::Entrypoint;
use slipway_protocol::{
    Call, End, Error as ProtocolError, FromGuest, HostShare, Launch, Mount, Purpose, Timeline,
    ToGuest,
};
use slipway_spec::{Namespace, Plan, UserNamespace};
use tokio::time::Instant;

use crate::compiler::Wanted;

/// Why a container was not created.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The command is a program for Linux: another runtime's work.
    #[error("{0}: not a WebAssembly module")]
    NotWasm(String),
    /// No such file in the image.
    #[error("{0}")]
    NoEntrypoint(String),
    /// The module or the spec cannot be run; the text says why.
    #[error("{0}")]
    Refused(String),
    /// The guest ended without a word.
    #[error("the guest process ended with status {0} before the module was loaded{1}")]
    Died(u32, String),
    /// The host's own failure.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The handshake failed.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// The status of what SIGKILL has ended.
pub const KILLED: u8 = 137;

impl StartError {
    /// The same error with its cause, where it is the kernel's OOM killer's work. `next_kill` tells of a kill in the guest's
    /// cgroup.
    #[must_use]
    pub fn explained(self, next_kill: impl FnOnce() -> Option<OomKill>) -> Self {
        let killed = matches!(self, Self::Died(status, _) if status == u32::from(KILLED));
        match killed.then(next_kill).flatten() {
            Some(kill) => Self::Refused(format!("{kill} before its module was found")),
            None => self,
        }
    }
}

/// What a launch needs besides the plan.
#[derive(Debug, Clone)]
pub struct LaunchOptions<'a> {
    /// The bundle, for a relative root.path.
    pub bundle: &'a Path,
    /// The snapshotter's mounts of the root; empty: root.path is used as it is.
    pub root_mounts: Vec<Mount>,
    /// The artefact cache.
    pub cache_dir: &'a str,
    /// Its bound in bytes.
    pub cache_bytes: u64,
    /// It is an exec.
    pub is_exec: bool,
}

/// A guest whose module was found, and is compiled or being compiled.
#[derive(Debug)]
pub struct Resolved {
    /// The guest's steps so far.
    pub steps: Timeline,
    /// The cache had no artefact.
    pub missed: bool,
}

/// The guest's part of a plan.
pub fn launch(install: &Install, plan: &Plan, options: LaunchOptions<'_>) -> Launch {
    let kinds = [
        (&plan.network, libc::CLONE_NEWNET),
        (&plan.ipc, libc::CLONE_NEWIPC),
        (&plan.uts, libc::CLONE_NEWUTS),
        (&plan.cgroup_ns, libc::CLONE_NEWCGROUP),
    ];
    // A new pid namespace is made with the process.
    let pids = (&plan.pid, libc::CLONE_NEWPID);
    let joined = kinds.iter().chain([&pids]);
    let join = joined.filter_map(|(ns, flag)| match ns {
        Namespace::Path(path) => Some((path.clone(), *flag)),
        _ => None,
    });
    let unshare = kinds
        .iter()
        .filter(|(ns, _)| **ns == Namespace::New)
        .map(|(_, flag)| flag);
    Launch {
        program: plan.program.clone(),
        mount_points: mount_points(install, plan),
        root_mounts: options.root_mounts,
        root_path: options.bundle.join(&plan.root_path).display().to_string(),
        root_readonly: plan.root_readonly,
        mounts: plan.mounts.clone(),
        mount_label: plan.mount_label.clone(),
        join: join.collect(),
        unshare: unshare.fold(0, |all, flag| all | flag),
        hostname: plan.hostname.clone(),
        user_namespace: plan.user.as_ref().map(UserNamespace::joined),
        ca_certificates: plan.ca_certificates,
        skeleton: install.skeleton().display().to_string(),
        cache_dir: options.cache_dir.into(),
        cache_bytes: options.cache_bytes,
        is_exec: options.is_exec,
    }
}

/// What `lib/mount-points` of the installation has; CRI mounts a file on each of them in every container.
const MOUNT_POINTS: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// The directory with the mount points, where all of them are covered: a container shall see no file that neither its
/// image nor its pod has.
fn mount_points(install: &Install, plan: &Plan) -> String {
    let covered = |at: &&str| plan.mounts.iter().any(|m| m.destination == **at);
    let directory = install.mount_points();
    // In a user namespace they would belong to nobody.
    match plan.user.is_none() && MOUNT_POINTS.iter().all(covered) && directory.exists() {
        true => directory.display().to_string(),
        false => String::new(),
    }
}

/// What the host does for a guest that looks for its module.
pub struct Helpers<'a, Enter> {
    /// The guest's share of its container's memory budget.
    pub budget: &'a HostShare,
    /// For an exec: the directory in `/proc` of the process whose file systems and namespaces it shares.
    pub process: Option<BorrowedFd<'a>>,
    /// The module, where it is no file of the container.
    pub module: Option<BorrowedFd<'a>>,
    /// Makes the cgroup while the guest mounts; returns what [`ToGuest::Cgroup`] carries.
    pub enter: Enter,
    /// The image's layer, where the container has no such file.
    pub layer: Option<LayerSource<'a>>,
    /// Makes its artefact.
    pub compiler: &'a Compiler,
    /// Told whether the cache had it.
    pub counters: &'a Counters,
    /// How long that is waited for; `None`: to its end.
    pub patience: Option<Duration>,
}

/// Leads a guest from its spawn to a module that this node can run, compiled where the cache had no artefact. The guest
/// goes on to load it: [`Guest::loaded`]. So it does from within a compile that takes longer than the host's patience, unless
/// it joins a pid namespace: its process is another one afterwards.
///
/// # Errors
/// Every kind of [`StartError`]; the guest is gone then, or ends when it is dropped.
pub async fn resolve<Enter>(
    guest: &Guest,
    launch: &Launch,
    host: Helpers<'_, Enter>,
) -> Result<Resolved, StartError>
where
    Enter: FnOnce() -> Result<Vec<OwnedFd>, StartError>,
{
    let limits = &launch.program.rlimits;
    if limits.iter().any(|l| l.0 == libc::RLIMIT_DATA as i32) {
        guest.keep_data_limit();
    }
    guest.note_loading_cause(launch.program.loading_cause());
    let body = slipway_protocol::write_launch(launch)?;
    // A guest that died before reading is told by its end, below.
    let mut fds = vec![host.budget.as_fd(), body.as_fd()];
    fds.extend(host.process);
    fds.extend(host.module);
    let share = host.budget.index();
    let _ = guest.send(&ToGuest::Launch { share }, &fds);
    let tasks = (host.enter)()?;
    let _ = guest.send(&ToGuest::Cgroup, &slipway_protocol::borrow(&tasks));
    let mut missed = false;
    let mut compiled_by = None;
    let steps = loop {
        let heard = match compiled_by {
            None => guest.recv().await,
            Some(deadline) => match tokio::time::timeout_at(deadline, guest.recv()).await {
                Ok(heard) => heard,
                Err(_) => {
                    guest.note_compiling();
                    break Timeline::default();
                }
            },
        };
        match heard {
            Ok((FromGuest::Resolved(steps), _)) => break steps,
            Ok((FromGuest::Replaced { pid, steps }, fds)) if guest.may_be_replaced() => {
                let pidfd = fds.into_iter().next();
                let pidfd =
                    pidfd.ok_or_else(|| StartError::Refused("the guest sent no process".into()))?;
                guest.replaced(slipway_sys::Child { pid, pidfd }).await?;
                break steps;
            }
            Ok((FromGuest::Waiting, _)) => {}
            Ok((FromGuest::Unoptimised(module), fds)) => {
                if let Some(file) = fds.into_iter().next() {
                    host.compiler.compile_for_the_next_start(file, module);
                }
            }
            Ok((FromGuest::NotWasm(what), _)) => return Err(StartError::NotWasm(what)),
            Ok((FromGuest::NoEntrypoint(what), _)) => {
                let Some(layer) = &host.layer else {
                    return Err(StartError::NoEntrypoint(what));
                };
                let module = layer.fetch(what).await?;
                let _ = guest.send(&ToGuest::Layer, &[module.as_fd()]);
            }
            Ok((FromGuest::Failed(why), _)) => return Err(StartError::Refused(why)),
            Ok((FromGuest::Ended(end), _)) => return Err(died(&end)),
            Ok((message @ (FromGuest::Ready(_) | FromGuest::Replaced { .. }), _)) => {
                let why = format!("the guest sent {} at the wrong time", message.name());
                return Err(StartError::Refused(why));
            }
            Ok((FromGuest::NeedArtefact { module, damaged }, fds)) => {
                let file = fds
                    .into_iter()
                    .next()
                    .ok_or_else(|| StartError::Refused("the guest sent no module".into()))?;
                let wanted = Wanted {
                    file,
                    module,
                    damaged,
                    mode: launch.program.compile_mode,
                    purpose: purpose(launch, host.budget),
                };
                missed = true;
                host.counters.count(Counter::CacheMisses);
                tokio::spawn(host.compiler.clone().supply(wanted, guest.control()?));
                let patience = host.patience.filter(|_| !guest.may_be_replaced());
                compiled_by = patience.map(|patience| Instant::now() + patience);
            }
            Err(ProtocolError::Closed) => {
                return Err(died(&guest.wait().await));
            }
            Err(e) => return Err(e.into()),
        }
    };
    if !missed {
        host.counters.count(Counter::CacheHits);
    }
    Ok(Resolved { steps, missed })
}

/// What a module of this launch is compiled for.
fn purpose(launch: &Launch, budget: &HostShare) -> Purpose {
    let args = &launch.program.args;
    let entrypoint = Entrypoint::parse(args.first().map_or("", String::as_str));
    Purpose {
        call: Some(Call {
            function: entrypoint.func().into(),
            arguments: args.len().saturating_sub(1),
        }),
        memory_limit: budget.budget().limit(),
    }
}

/// A guest that ended before its module was loaded.
fn died(end: &End) -> StartError {
    let hint = match end.status {
        126 => ": it could not enter its cgroup",
        127 => ": its program could not be executed",
        KILLED => ": killed by SIGKILL",
        _ => "",
    };
    StartError::Died(end.status.into(), hint.into())
}
