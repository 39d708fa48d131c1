//! One process of a container: its own, or one that was added by Exec.
//!
//! ```text
//! Created ──start──▶ Running ──end of the process──▶ Stopped ──delete──▶ (gone)
//!    └───────────────end of the process──────────────▶┘
//! ```
//! A container whose module takes long to compile is Running before its program runs ([`Process::is_compiling`]).
//!
//! All changes of state happen in functions without an await, on the shim's one thread, and publish their event
//! there: a TaskExit cannot overtake its TaskStart, and a TaskOOM precedes its TaskExit.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api::Status;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use slipway_cgroup::Cgroup;
use slipway_launch::Guest;
use slipway_protocol::{Cause, End, HostShare, Refusal, Timeline};
use slipway_sys::Child;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};

use crate::error::{self, Result};
use crate::events::now;
use crate::stdio::{LOOK, Paths, ShimStreams, Streams};

/// The operating system's process behind a container's.
pub enum OsProcess {
    /// The pod's namespaces.
    Holder {
        /// Its pid.
        pid: i32,
        /// Readable when it has ended.
        pidfd: AsyncFd<OwnedFd>,
    },
    /// A program.
    Guest(Guest),
}

impl OsProcess {
    /// Wraps a holder. Within the runtime.
    pub fn holder(child: Child) -> std::io::Result<Self> {
        Ok(Self::Holder {
            pid: child.pid,
            pidfd: slipway_sys::async_fd(child.pidfd, Interest::READABLE)?,
        })
    }

    fn pid(&self) -> i32 {
        match self {
            Self::Holder { pid, .. } => *pid,
            Self::Guest(guest) => guest.pid(),
        }
    }

    fn kill(&self, signal: i32) -> std::io::Result<()> {
        match self {
            Self::Holder { pidfd, .. } => slipway_sys::pidfd_kill(pidfd.get_ref().as_fd(), signal),
            Self::Guest(guest) => guest.kill(signal),
        }
    }

    async fn wait(&self) -> End {
        match self {
            Self::Guest(guest) => guest.wait().await,
            Self::Holder { pid, pidfd } => {
                let _ = pidfd.readable().await;
                let status = slipway_sys::reap(*pid).ok().flatten().unwrap_or(137);
                End::new(u8::try_from(status).unwrap_or(255), Cause::Status, "")
            }
        }
    }
}

/// How long an end, and Delete, wait for a reader of output that nobody has read.
const HANDOVER: Duration = Duration::from_secs(2);

/// How and when a process ended.
#[derive(Debug, Clone)]
pub struct Exit {
    /// Status as containers report it.
    pub status: u32,
    /// When.
    pub at: Timestamp,
}

/// A process as containerd knows it.
pub struct Process {
    /// containerd's id: the container's, or the exec's.
    pub id: String,
    /// Its streams, as containerd named them.
    pub paths: Paths,
    /// It has a terminal in place of three streams.
    pub terminal: bool,
    /// Unset for an exec that was not started.
    os_process: OnceLock<OsProcess>,
    /// The guest's share of the memory budget; kept for as long as the process is known.
    budget: OnceLock<HostShare>,
    /// Refused growths that have been counted.
    refused: AtomicU64,
    /// Why the kernel's OOM killer has ended it.
    oom_kill: OnceLock<String>,
    life: Mutex<Life>,
    /// Told of a signal to one that is being started and has no process yet.
    doom: Notify,
    exit: watch::Sender<Option<Exit>>,
}

/// The one Start of an exec. Dropped before it is [`Claim::kept`], for it has failed or its client has given up, it has ended.
pub struct Claim<'a>(Option<&'a Process>);

impl Claim<'_> {
    /// It has its process, and somebody waits for its end.
    pub fn kept(mut self) {
        self.0 = None;
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some(process) = self.0 {
            process.fail();
        }
    }
}

struct Life {
    status: Status,
    /// A Start has come for it.
    claimed: bool,
    /// The program's streams, until it runs.
    streams: Option<[OwnedFd; 3]>,
    /// It was let run.
    ran: bool,
    shim_streams: ShimStreams,
}

impl Process {
    /// A process in state Created, of which there is nothing yet.
    pub fn new(id: &str, paths: Paths, terminal: bool) -> Self {
        Self {
            id: id.into(),
            paths,
            terminal,
            os_process: OnceLock::new(),
            budget: OnceLock::new(),
            refused: AtomicU64::new(0),
            oom_kill: OnceLock::new(),
            life: Mutex::new(Life {
                status: Status::CREATED,
                claimed: false,
                streams: None,
                ran: false,
                shim_streams: ShimStreams::default(),
            }),
            doom: Notify::new(),
            exit: watch::Sender::new(None),
        }
    }

    /// Takes an exec for the one Start that it may have.
    ///
    /// # Errors
    /// Another Start has it, or had it.
    pub fn claim(&self) -> Result<Claim<'_>> {
        let mut life = self.life();
        if life.claimed || life.status != Status::CREATED {
            return Err(error::precondition(format!(
                "process {} has been started already",
                self.id
            )));
        }
        life.claimed = true;
        Ok(Claim(Some(self)))
    }

    /// It is being started, and has no process yet.
    pub fn is_being_started(&self) -> bool {
        let life = self.life();
        life.claimed && life.status == Status::CREATED && self.os_process.get().is_none()
    }

    /// Waits for a signal that comes while it is being started.
    pub async fn doomed(&self) {
        self.doom.notified().await;
    }

    /// Gives it the process behind it, once.
    pub fn attach(&self, os_process: OsProcess, budget: Option<HostShare>, streams: Streams) {
        let mut life = self.life();
        if self.os_process.set(os_process).is_ok() {
            let _ = budget.map(|share| self.budget.set(share));
            (life.streams, life.shim_streams) = streams;
        }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        // Never held across an await or a call that can panic.
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Process id on the host; 0 before there is a process.
    pub fn pid(&self) -> u32 {
        self.os_process.get().map_or(0, |b| b.pid().unsigned_abs())
    }

    /// Its directory in `/proc`, which stays that of this process when its number is another's.
    ///
    /// # Errors
    /// It has ended.
    pub fn directory(&self) -> std::io::Result<OwnedFd> {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(format!("/proc/{}", self.pid()), flags, Mode::empty())?;
        // Until it is taken off the kernel's table, which this thread does, nobody else has its number.
        match self.is_gone() {
            true => Err(rustix::io::Errno::SRCH.into()),
            false => Ok(directory),
        }
    }

    /// containerd's word for the state.
    pub fn status(&self) -> Status {
        self.life().status
    }

    /// The end, once there is one.
    pub fn exited(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    /// Moves from one state to another.
    ///
    /// # Errors
    /// It is in a third one.
    pub fn transition(&self, from: Status, to: Status) -> Result<()> {
        let mut life = self.life();
        if life.status != from {
            return Err(error::precondition(format!(
                "process {} is {:?}, not {from:?}",
                self.id, life.status
            )));
        }
        life.status = to;
        Ok(())
    }

    /// Waits until the module is loaded; the steps that it took.
    pub async fn loaded(&self) -> Result<Option<Timeline>> {
        match self.os_process.get() {
            Some(OsProcess::Guest(guest)) => {
                Ok(Some(guest.loaded().await.map_err(|e| error::start(&e))?))
            }
            _ => Ok(None),
        }
    }

    /// Its module was not compiled within Create's patience, and is not loaded yet.
    pub fn is_compiling(&self) -> bool {
        matches!(self.os_process.get(), Some(OsProcess::Guest(guest)) if guest.is_compiling())
    }

    /// Its program runs, or has run.
    pub fn has_run(&self) -> bool {
        self.life().ran
    }

    /// Lets a loaded process run. What is held for it by now comes off its memory budget; `cgroup` is where nobody else is
    /// charged.
    pub fn run(&self, cgroup: Option<&Cgroup>) -> Result<()> {
        let streams = {
            let mut life = self.life();
            if ![Status::RUNNING, Status::PAUSED].contains(&life.status) {
                return Err(error::precondition(format!(
                    "process {} has ended",
                    self.id
                )));
            }
            life.streams.take()
        };
        match (self.os_process.get(), streams) {
            (Some(OsProcess::Guest(guest)), Some(streams)) => {
                let share = self.budget.get();
                let budget = share.and_then(|share| share.budget().limit());
                share
                    .map_or(Ok(()), |share| share.set_held(guest.held(cgroup)))
                    .map_err(|e| error::internal(format!("memory budget of {}: {e}", self.id)))?;
                guest.start(&streams, self.terminal, budget).map_err(|e| {
                    error::precondition(format!("process {}: the guest is gone: {e}", self.id))
                })?;
                self.life().ran = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Moves the memory limit of a running guest in bytes; one that does not run yet finds it in its budget's page.
    pub fn limit_memory(&self, limit: Option<u64>) {
        match self.os_process.get() {
            Some(OsProcess::Guest(guest)) if self.has_run() => guest.limit_data(limit),
            _ => {}
        }
    }

    /// Growths of memory that were refused since the last call.
    pub fn newly_refused(&self) -> u64 {
        let usage = self.budget.get().and_then(|share| share.read().ok());
        let refused = usage.map_or(0, |usage| usage.refused);
        refused.saturating_sub(self.refused.swap(refused, Relaxed))
    }

    /// Sends a signal.
    pub fn kill(&self, signal: u32) -> Result<()> {
        let number = i32::try_from(signal)
            .map_err(|_| error::invalid(format!("signal {signal} does not exist")))?;
        // Whatever signal it is, there is no program yet that could do something else about it than end.
        if self.is_being_started() {
            self.doom.notify_one();
            return Ok(());
        }
        let os_process = self
            .os_process
            .get()
            .filter(|_| self.status() != Status::STOPPED);
        let Some(os_process) = os_process else {
            return Err(error::not_found("process already finished"));
        };
        match os_process.kill(number) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {
                Err(error::not_found("process already finished"))
            }
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                Err(error::invalid(format!("signal {signal} does not exist")))
            }
            other => other.map_err(|e| error::internal(format!("kill {}: {e}", self.id))),
        }
    }

    /// The program's stdin ends.
    pub fn close_stdin(&self) {
        self.life().shim_streams.close_stdin();
    }

    /// The terminal's size in characters.
    ///
    /// # Errors
    /// There is no terminal.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        match self.life().shim_streams.terminal() {
            Some(terminal) => terminal
                .resize(width, height)
                .map_err(|e| error::internal(format!("terminal of {}: {e}", self.id))),
            None => Err(error::precondition(format!(
                "process {} has no terminal",
                self.id
            ))),
        }
    }

    /// Waits for the end.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await;
        let exit = ended.ok().and_then(|exit| exit.clone());
        // The sender lives as long as `self`.
        exit.unwrap_or_else(|| Exit {
            status: 255,
            at: now(),
        })
    }

    /// Waits for the end of the process behind it, and takes that off the kernel's table. What it had of the memory budget is the others'.
    pub async fn reaped(&self) -> Option<End> {
        let end = self.os_process.get()?.wait().await;
        if let Some(share) = self.budget.get() {
            share.give_back();
        }
        Some(end)
    }

    /// The last growth of memory that it was refused, if any was.
    pub fn refusal(&self) -> Option<Refusal> {
        self.budget.get()?.refusal()
    }

    /// There was a process, and it has been taken off the kernel's table.
    pub fn is_gone(&self) -> bool {
        let gone = |p: &OsProcess| p.kill(0).is_err();
        self.os_process.get().is_some_and(gone)
    }

    /// It was killed for a memory limit: notes the reason.
    pub fn note_oom_kill(&self, reason: &str) {
        let _ = self.oom_kill.set(reason.into());
    }

    /// Why it was killed, where that was for a memory limit.
    pub fn oom_kill(&self) -> Option<&str> {
        self.oom_kill.get().map(String::as_str)
    }

    /// Waits, for a bounded time, until somebody has taken the output of a program that has ended. A client that hears of
    /// the end gives up ends that it has not opened yet (`io.Cancel` of containerd's `task.Delete`), with all that is in them.
    pub async fn output_taken(&self) {
        let taken = async {
            while self.life().shim_streams.is_unread() {
                tokio::time::sleep(LOOK).await;
            }
        };
        let _ = tokio::time::timeout(HANDOVER, taken).await;
    }

    /// Moves to Stopped. Those who wait are told by [`Process::announce`], after the events.
    pub fn stop(&self) {
        let mut life = self.life();
        life.status = Status::STOPPED;
        life.streams = None;
        life.shim_streams.finish();
    }

    /// An exec that could not be started: it has ended without an event, for nothing of it ever ran.
    fn fail(&self) {
        self.stop();
        self.announce(Exit {
            status: 255,
            at: now(),
        });
    }

    /// Waits, for a bounded time, until all output has been read, and lets go of the rest: a client gives up its ends as soon as Delete
    /// has answered, even those that it has not opened yet.
    pub async fn handed_over(&self) {
        let remains = self.life().shim_streams.take_remains();
        let all = async {
            for remain in &remains {
                remain.taken().await;
            }
        };
        let _ = tokio::time::timeout(HANDOVER, all).await;
    }

    /// Tells those who wait.
    pub fn announce(&self, exit: Exit) {
        self.exit.send_replace(Some(exit));
    }
}
