//! One container of the pod whose process is our own: the sandbox's holder, or a Wasm guest.
//!
//! ```text
//! Created ──start──▶ Running ──end of the process──▶ Stopped ──delete──▶ (gone)
//!    └───────────────end of the process──────────────▶┘
//! ```
//! All changes of state happen in functions without an await, on the shim's one thread, and publish their event
//! there: a TaskExit cannot overtake its TaskStart, and a TaskOOM precedes its TaskExit.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use containerd_shim_protos::api::Status;
use containerd_shim_protos::events::task::{TaskExit, TaskOOM, TaskStart};
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use slipway_cgroup::Cgroup;
use slipway_launch::Guest;
use slipway_protocol::End;
use slipway_sys::Child;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::error::{self, Result};
use crate::events::{Events, now};
use crate::log::Log;
use crate::stdio::{Kept, Paths};

/// The process behind a container.
pub enum Process {
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

impl Process {
    /// Wraps a holder. Within the runtime.
    pub fn holder(child: Child) -> std::io::Result<Self> {
        Ok(Self::Holder {
            pid: child.pid,
            pidfd: slipway_sys::watch(child.pidfd, Interest::READABLE)?,
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
                End {
                    status: u8::try_from(status).unwrap_or(255),
                    reason: String::new(),
                    out_of_memory: false,
                }
            }
        }
    }
}

/// How and when the process ended.
#[derive(Debug, Clone)]
pub struct Exit {
    /// Status as containers report it.
    pub status: u32,
    /// When.
    pub at: Timestamp,
}

/// What stays the same for a container's life.
pub struct Container {
    /// containerd's id.
    pub id: String,
    /// Its bundle.
    pub bundle: String,
    /// Its streams, as containerd named them.
    pub paths: Paths,
    /// Where it is accounted; `None` where the spec names no cgroup.
    pub cgroup: Option<Cgroup>,
    /// Host file that tells the kubelet why a container ended.
    pub termination_message: Option<String>,
    process: Process,
    /// OOM kills in the cgroup before the process began: a cgroup may be older than its container.
    oom_kills_before: u64,
    life: Mutex<Life>,
    exit: watch::Sender<Option<Exit>>,
}

struct Life {
    status: Status,
    /// The program's streams, until it runs.
    streams: Option<[OwnedFd; 3]>,
    kept: Kept,
}

/// What a new container is made from.
pub struct Parts {
    /// See [`Container`].
    pub id: String,
    /// See [`Container`].
    pub bundle: String,
    /// See [`Container`].
    pub paths: Paths,
    /// See [`Container`].
    pub cgroup: Option<Cgroup>,
    /// See [`Container`].
    pub termination_message: Option<String>,
    /// The process, created and not started.
    pub process: Process,
    /// The program's streams; the sandbox has none.
    pub streams: Option<[OwnedFd; 3]>,
    /// The shim's ends of them.
    pub kept: Kept,
}

impl Container {
    /// A container in state Created, watched to its end.
    pub fn new(parts: Parts, events: Events, log: Log) -> Arc<Self> {
        let container = Arc::new(Self {
            oom_kills_before: parts.cgroup.as_ref().map_or(0, Cgroup::oom_kills),
            id: parts.id,
            bundle: parts.bundle,
            paths: parts.paths,
            cgroup: parts.cgroup,
            termination_message: parts.termination_message,
            process: parts.process,
            life: Mutex::new(Life {
                status: Status::CREATED,
                streams: parts.streams,
                kept: parts.kept,
            }),
            exit: watch::Sender::new(None),
        });
        tokio::spawn(watch_end(container.clone(), events, log));
        container
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        // Never held across an await or a call that can panic.
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Process id on the host.
    pub fn pid(&self) -> u32 {
        self.process.pid().unsigned_abs()
    }

    /// containerd's word for the state.
    pub fn status(&self) -> Status {
        self.life().status
    }

    /// The end, once there is one.
    pub fn exited(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    /// Lets a created process run, as soon as its module is loaded.
    pub async fn start(&self, events: &Events, log: &Log) -> Result<()> {
        if let Process::Guest(guest) = &self.process {
            let steps = guest.loaded().await.map_err(|e| error::start(&e))?;
            log.debug(&format!("started {}: microseconds: {steps}", self.id));
        }
        let mut life = self.life();
        if life.status != Status::CREATED {
            return Err(error::precondition(format!(
                "container {} is {:?}, not created",
                self.id, life.status
            )));
        }
        if let (Process::Guest(guest), Some(streams)) = (&self.process, life.streams.take()) {
            guest.start(&streams).map_err(|e| {
                error::precondition(format!("container {}: the guest is gone: {e}", self.id))
            })?;
        }
        life.status = Status::RUNNING;
        events.publish(&TaskStart {
            container_id: self.id.clone(),
            pid: self.pid(),
            ..TaskStart::default()
        });
        Ok(())
    }

    /// Sends a signal to the process.
    pub fn kill(&self, signal: u32) -> Result<()> {
        if self.status() == Status::STOPPED {
            return Err(error::not_found("process already finished"));
        }
        let number = i32::try_from(signal)
            .map_err(|_| error::invalid(format!("signal {signal} does not exist")))?;
        match self.process.kill(number) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {
                Err(error::not_found("process already finished"))
            }
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                Err(error::invalid(format!("signal {signal} does not exist")))
            }
            other => other.map_err(|e| error::internal(format!("kill {}: {e}", self.id))),
        }
    }

    /// Processes of the container: all in its cgroup.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = match (&self.process, &self.cgroup) {
            (Process::Guest(_), Some(cgroup)) => {
                cgroup.pids().into_iter().map(i32::unsigned_abs).collect()
            }
            _ => Vec::new(),
        };
        if pids.is_empty() && self.status() != Status::STOPPED {
            pids.push(self.pid());
        }
        pids
    }

    /// The program's stdin ends.
    pub fn close_stdin(&self) {
        self.life().kept.close_stdin();
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

    /// Ends what is left of the container, and removes its cgroup.
    pub async fn destroy(&self) -> std::result::Result<Exit, slipway_cgroup::Error> {
        let _ = self.process.kill(libc::SIGKILL);
        let exit = self.wait().await;
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove()?;
        }
        Ok(exit)
    }
}

/// The one task that moves a container to Stopped.
async fn watch_end(container: Arc<Container>, events: Events, log: Log) {
    let mut end = container.process.wait().await;
    let killed =
        container.cgroup.as_ref().map_or(0, Cgroup::oom_kills) > container.oom_kills_before;
    if killed && end.status == 137 && !end.out_of_memory {
        end.out_of_memory = true;
        end.reason = "killed by the kernel: the container's memory limit was reached".into();
    }
    if !end.reason.is_empty() {
        log.info(&format!(
            "container {} ended with status {}: {}",
            container.id, end.status, end.reason
        ));
        if let Some(file) = &container.termination_message {
            write_termination_message(file, &end.reason);
        }
    }
    let exit = Exit {
        status: end.status.into(),
        at: now(),
    };
    let mut life = container.life();
    life.status = Status::STOPPED;
    life.streams = None;
    life.kept.finish();
    if end.out_of_memory {
        events.publish(&TaskOOM {
            container_id: container.id.clone(),
            ..TaskOOM::default()
        });
    }
    events.publish(&TaskExit {
        container_id: container.id.clone(),
        id: container.id.clone(),
        pid: container.pid(),
        exit_status: exit.status,
        exited_at: Some(exit.at.clone()).into(),
        ..TaskExit::default()
    });
    container.exit.send_replace(Some(exit));
}

/// What the kubelet reads of a termination message, in bytes.
const MAX_TERMINATION_MESSAGE: usize = 4096;

/// Explains an abnormal end where the program has not explained it itself.
fn write_termination_message(file: &str, reason: &str) {
    let empty = std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.len() == 0);
    if empty {
        let end = reason.floor_char_boundary(MAX_TERMINATION_MESSAGE);
        let _ = std::fs::write(file, &reason[..end]);
    }
}
