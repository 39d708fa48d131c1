//! A guest process: spawned, spoken to, waited for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit};
use slipway_cgroup::Cgroup;
use slipway_compile::c_path;
use slipway_protocol::{
    Cause, End, Error, FromGuest, KILLED_CALL, Timeline, ToGuest, beside, discard,
};
use slipway_spec::Namespace;
use slipway_sys::{CgroupEntry, Child, Exec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::process::{Dying, Process, anonymous, data};
use crate::{Install, StartError, died};

#[cfg(test)]
mod tests;

/// A running guest. Dropping it kills it.
#[derive(Debug)]
pub struct Guest {
    /// The process that was spawned.
    spawned: Process,
    /// The one that has taken its place ([`FromGuest::Replaced`]).
    successor: OnceLock<Process>,
    /// It joins a pid namespace: the spawned process leaves loading, and all that is hostile, to a successor.
    joins_pids: bool,
    control: AsyncFd<OwnedFd>,
    /// Told by [`Guest::wait`]: the steps of loading, or why it failed.
    loaded: watch::Sender<Option<Result<Timeline, String>>>,
    /// Data of the process when its module was loaded and had no memory yet, in bytes; `None`: the spec has set a limit.
    own_data: OnceLock<Option<u64>>,
    /// What of its launch may be the cause where its module cannot be loaded.
    loading_cause: OnceLock<String>,
    /// It was left while its module was compiled: that it is resolved is still to come.
    compiling: OnceLock<()>,
}

/// What the engine may take for itself while the module runs, beyond the module's budget, in bytes: stacks of the
/// language, tables, open files. A request for more than that is refused before it is touched.
const ENGINE_DATA: u64 = 32 << 20;

/// What the kernel has for a process beside its page tables, in bytes: stacks, mounts, descriptors. 0.1 to 0.2 MiB were seen.
const KERNEL_DATA: u64 = 256 << 10;

/// Starts a guest that waits for its launch, in a new mount namespace and in a new pid namespace where the container is to
/// have one. Must be called within a tokio runtime.
///
/// Into a pid namespace that others are in, it comes by itself ([`FromGuest::Replaced`]). This is the one place that knows
/// how a guest is made.
///
/// # Errors
/// A missing file of the installation, or clone3's.
pub fn spawn(install: &Install, pid: &Namespace, cgroup: &CgroupEntry) -> io::Result<Guest> {
    let argv = install.command("slipway-guest", &["runtime"], &[])?;
    let (host, guest) = slipway_protocol::pair()?;
    let null = slipway_sys::open_null;
    let program = argv.first().cloned().unwrap_or_default();
    // No environment: engines read variables, and a pod must not steer the host's process.
    let exec = Exec {
        program,
        argv,
        envp: Vec::new(),
        fds: vec![null()?, null()?, null()?, guest],
        directory: None,
        read_only: Some(c_path(install.root())?),
        with_parent: false,
    };
    let new = match pid {
        Namespace::New => libc::CLONE_NEWPID,
        Namespace::Host | Namespace::Path(_) => 0,
    };
    let child = slipway_sys::spawn(exec, libc::CLONE_NEWNS | new, cgroup)?;
    Guest::new(child, host, matches!(pid, Namespace::Path(_)))
}

impl Guest {
    pub(crate) fn new(child: Child, control: OwnedFd, joins_pids: bool) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&control, true)?;
        Ok(Self {
            spawned: Process::new(child)?,
            successor: OnceLock::new(),
            joins_pids,
            control: slipway_sys::async_fd(control, Interest::READABLE)?,
            loaded: watch::Sender::new(None),
            own_data: OnceLock::new(),
            loading_cause: OnceLock::new(),
            compiling: OnceLock::new(),
        })
    }

    fn process(&self) -> &Process {
        self.successor.get().unwrap_or(&self.spawned)
    }

    /// The process id as the host sees it. Not the last one before [`crate::resolve`] is done.
    pub fn pid(&self) -> i32 {
        self.process().pid
    }

    /// Whether its word for a successor can be taken: what loads an artefact may name any process as one.
    pub(crate) fn may_be_replaced(&self) -> bool {
        self.joins_pids && self.successor.get().is_none()
    }

    /// Another child of this process has taken the guest's place; waits until the first one is gone.
    pub(crate) async fn replaced(&self, by: Child) -> io::Result<()> {
        let _ = self.successor.set(Process::new(by)?);
        self.spawned.end().await;
        Ok(())
    }

    /// A further descriptor of the host's end of its socket, for who is to send it something when this value may be gone.
    pub(crate) fn control(&self) -> io::Result<OwnedFd> {
        self.control.get_ref().try_clone()
    }

    /// [`crate::resolve`] does not wait for its compile any longer.
    pub(crate) fn note_compiling(&self) {
        let _ = self.compiling.set(());
    }

    /// It waits for its compile still, or its module is being loaded since.
    pub fn is_compiling(&self) -> bool {
        self.compiling.get().is_some() && self.loaded.borrow().is_none()
    }

    /// Sends a message; never blocks (the few messages of a life fit the socket's buffer).
    ///
    /// # Errors
    /// [`Error::Closed`] once the guest is gone.
    pub fn send(&self, message: &ToGuest, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        slipway_protocol::send(self.control.get_ref().as_fd(), message, fds)
    }

    /// Lets a guest that is ready run its entrypoint on these standard streams, which are a terminal or not, with a
    /// memory budget in bytes.
    ///
    /// # Errors
    /// [`Error::Closed`] once the guest is gone.
    pub fn start(
        &self,
        streams: &[OwnedFd; 3],
        terminal: bool,
        budget: Option<u64>,
    ) -> Result<(), Error> {
        if budget.is_some() {
            self.limit_data(budget);
        }
        self.send(
            &ToGuest::Start { terminal },
            &slipway_protocol::borrow(streams),
        )
    }

    /// The next message.
    ///
    /// # Errors
    /// [`Error::Closed`] once the guest is gone.
    pub async fn recv(&self) -> Result<(FromGuest, Vec<OwnedFd>), Error> {
        loop {
            let mut ready = self.control.readable().await?;
            match self.recv_now() {
                Err(Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                other => return other,
            }
        }
    }

    /// The next message of the guest's own process. Who may trace it can take its end of the socket, and would speak for it.
    fn recv_now(&self) -> Result<(FromGuest, Vec<OwnedFd>), Error> {
        let packet = slipway_protocol::recv_packet(self.control.get_ref().as_fd())?;
        let message = match packet.sender {
            Some(sender) if sender != self.pid() => Err(Error::Stranger(sender)),
            _ => packet.message(),
        };
        match message {
            Ok(message) => Ok((message, packet.fds)),
            Err(e) => {
                discard(packet.fds);
                Err(e)
            }
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// ESRCH once the guest has ended.
    pub fn kill(&self, signal: i32) -> io::Result<()> {
        slipway_sys::pidfd_kill(self.process().pidfd.get_ref().as_fd(), signal)
    }

    /// The spec limits the process's data itself: [`Guest::limit_data`] changes nothing.
    pub(crate) fn keep_data_limit(&self) {
        let _ = self.own_data.set(None);
    }

    /// What an end without a word while it loads its module may be the work of ([`slipway_protocol::Program::loading_cause`]).
    pub(crate) fn note_loading_cause(&self, cause: String) {
        let _ = self.loading_cause.set(cause);
    }

    /// Moves the fence behind the memory budget: RLIMIT_DATA, a little above it, for what the engine takes for itself.
    /// Moving another user's limit needs CAP_SYS_RESOURCE, which a nested host may not have: it is a wish then.
    pub fn limit_data(&self, budget: Option<u64>) {
        let own = *self.own_data.get_or_init(|| Some(data(self.pid())));
        let (Some(own), Some(pid)) = (own, rustix::process::Pid::from_raw(self.pid())) else {
            return;
        };
        // The number of one that was taken off the kernel's table may be another's.
        if self.kill(0).is_err() {
            return;
        }
        let limit = budget.map(|bytes| bytes.saturating_add(own + ENGINE_DATA));
        let new = Rlimit {
            current: limit,
            maximum: limit,
        };
        let _ = rustix::process::prlimit(Some(pid), Resource::Data, new);
    }

    /// What is charged for a loaded guest whose module has no memory yet, in bytes; what can be had back, as the pages of
    /// files, not included. `cgroup` is where nobody else is charged.
    pub fn held(&self, cgroup: Option<&Cgroup>) -> u64 {
        let charged = cgroup.map(Cgroup::memory_usage);
        // The kernel may be 64 pages for each processor behind with what it says of files, and then all of them seem to be
        // held. More than the process has is not.
        let has = anonymous(self.pid()).saturating_add(KERNEL_DATA);
        charged.unwrap_or(has).min(has)
    }

    /// Waits until a guest that was just spawned has its engine.
    ///
    /// # Errors
    /// [`Error::Closed`] where it ended before.
    pub async fn waiting(&self) -> Result<(), Error> {
        self.recv().await.map(drop)
    }

    /// Waits until the module is loaded, for a guest that [`crate::resolve`] has led so far. Only while somebody else
    /// awaits [`Guest::wait`].
    ///
    /// # Errors
    /// Why it could not be loaded.
    pub async fn loaded(&self) -> Result<Timeline, StartError> {
        let mut loaded = self.loaded.subscribe();
        let told = loaded.wait_for(Option::is_some).await;
        match told.ok().and_then(|told| told.clone()) {
            Some(Ok(steps)) => Ok(steps),
            Some(Err(why)) => Err(StartError::Refused(why)),
            // The sender lives as long as `self`.
            None => Err(StartError::Protocol(Error::Closed)),
        }
    }

    /// Reads what the guest says to its end, and takes the process off the kernel's table then. What the guest reported
    /// counts; the kernel's status is for ends that could not be reported.
    ///
    /// The guest is hostile from the moment it loads its artefact. What comes at the wrong time ends it, so nobody waits for
    /// a guest that says nothing sensible, and no flood of messages keeps this process busy.
    pub async fn wait(&self) -> End {
        let mut heard = Heard {
            resolved: self.compiling.get().is_none(),
            ..Heard::default()
        };
        let rubbish = loop {
            match self.recv().await {
                Ok((_, fds)) if !fds.is_empty() => {
                    discard(fds);
                    break Some("descriptors at the wrong time".into());
                }
                Ok((message, _)) => match heard.take(message) {
                    Ok(Some(loaded)) => drop(self.loaded.send_replace(Some(loaded))),
                    Ok(None) => {}
                    Err(why) => break Some(why),
                },
                Err(Error::Closed) => break None,
                Err(e) => break Some(e.to_string()),
            }
            if heard.end.is_some() {
                break None;
            }
        };
        // One that says that it has ended, or says no more, has nothing more to do, whether it ends or not. ESRCH: it has.
        let _ = self.kill(libc::SIGKILL);
        // Without a status it is not a child of this process, or was reaped before: without a report it was killed.
        let status = self.process().end().await.unwrap_or(137);
        let broke = rubbish.is_some();
        let end = match (heard.end, rubbish) {
            (Some(end), _) => end,
            (None, Some(why)) => End::new(
                137,
                Cause::Status,
                format!("killed, for its process broke the protocol between guest and shim: {why}"),
            ),
            (None, None) => unreported(status),
        };
        self.loaded.send_if_modified(|told| {
            let unknown = told.is_none();
            if unknown {
                let cause = self.loading_cause.get().map_or("", String::as_str);
                let why = match end.reason.as_str() {
                    "" => died(&end).to_string(),
                    reason if broke => reason.to_string(),
                    reason => format!("{}: {reason}", died(&end)),
                };
                *told = Some(Err(format!("{why}{cause}")));
            }
            unknown
        });
        end
    }
}

/// What a guest has said since it was led to its module, each once: that it is resolved, where that was not waited for, whether
/// it has loaded it, and how it ended.
#[derive(Debug, Default)]
struct Heard {
    resolved: bool,
    loaded: bool,
    end: Option<End>,
}

impl Heard {
    /// Takes a message; the result of loading, where it is one.
    ///
    /// # Errors
    /// It may not come now.
    fn take(&mut self, message: FromGuest) -> Result<Option<Result<Timeline, String>>, String> {
        let loaded = match message {
            FromGuest::Ended(end) => {
                self.end = Some(end);
                return Ok(None);
            }
            FromGuest::Resolved(_) if !self.resolved => {
                self.resolved = true;
                return Ok(None);
            }
            FromGuest::Ready(steps) if self.resolved && !self.loaded => Ok(steps),
            FromGuest::Failed(why) if !self.loaded => Err(why),
            other => return Err(format!("{} at the wrong time", other.name())),
        };
        self.loaded = true;
        Ok(Some(loaded))
    }
}

/// Ends without a report. The engine turns faults of compiled code into traps, but it has no stack to do so when the
/// stack itself ran out.
fn unreported(status: u32) -> End {
    const SIGSEGV: u32 = 128 + libc::SIGSEGV as u32;
    const SIGSYS: u32 = 128 + libc::SIGSYS as u32;
    match status {
        SIGSEGV => End::new(
            134,
            Cause::Trap,
            "trap: call stack exhausted, or a fault in the engine (SIGSEGV)",
        ),
        // A filter's kill, or a trap that was blocked; others are reported.
        SIGSYS => End::new(159, Cause::Status, KILLED_CALL),
        other => End::new(u8::try_from(other).unwrap_or(255), Cause::Status, ""),
    }
}

/// Most packets that are looked at when a guest is given up: the queue of a socket holds fewer.
const MAX_UNREAD: usize = 1024;

impl Drop for Guest {
    fn drop(&mut self) {
        let group = self.spawned.pid;
        // It may have a successor that nobody has heard of, which is still in its group. While it is not reaped, the number is
        // no other group's.
        let pidfd = self.spawned.pidfd.get_ref().as_fd();
        let unreaped = slipway_sys::pidfd_kill(pidfd, libc::SIGKILL).is_ok();
        if unreaped {
            let _ = slipway_sys::kill(-group, libc::SIGKILL);
        }
        let mut dying: Vec<Dying> = self.process().kill().into_iter().collect();
        // Nobody can send any more what has not been sent.
        for _ in 0..MAX_UNREAD {
            match self.recv_now() {
                Ok((FromGuest::Replaced { pid, .. }, fds)) if self.may_be_replaced() => {
                    let pidfd = fds.into_iter().next();
                    let successor = pidfd.map(|pidfd| Process::new(Child { pid, pidfd }));
                    dying.extend(successor.and_then(|s| s.ok()?.kill()));
                }
                Ok((_, fds)) => discard(fds),
                Err(Error::Closed | Error::Io(_)) => break,
                Err(Error::Stranger(_) | Error::Encoding(_)) => {}
            }
        }
        if unreaped || !dying.is_empty() {
            // The kernel decides how long that takes, and nobody waits for it.
            beside(move || {
                dying.iter().for_each(Dying::reap);
                if unreaped {
                    slipway_sys::reap_group(group);
                }
            });
        }
    }
}
