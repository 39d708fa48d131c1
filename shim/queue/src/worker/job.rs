//! A job of the queue, and what other threads tell of it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use slipway_compile::CompileError;
use slipway_protocol::Purpose;

use crate::record::Record;
use crate::schedule::{LONG, Run, Turn};

/// Someone who is told about a job.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) client: u64,
    /// What it waits for; `None`: it only listens.
    pub(super) purpose: Option<Purpose>,
    tenant: u64,
}

impl Listener {
    pub(super) fn new(client: u64, purpose: Option<Purpose>, tenant: &str) -> Self {
        Self {
            client,
            purpose,
            tenant: number_of(tenant),
        }
    }
}

pub(super) struct Job {
    pub(super) record: Record,
    /// What the directory has of it.
    pub(super) kept: Option<Record>,
    pub(super) damaged: Option<String>,
    /// The client that has given the module; `None` for one that was left.
    pub(super) giver: Option<u64>,
    /// The number of the thread that is at work for it: what others tell is of the past.
    pub(super) thread: u64,
    pub(super) state: State,
    /// In the order in which they have come. The first is told what happens.
    pub(super) listeners: Vec<Listener>,
    /// To be compiled though nobody waits.
    pub(super) wanted: bool,
    /// It failed for want of memory beside others.
    pub(super) alone: bool,
    pub(super) arrival: u64,
    pub(super) since: Instant,
}

pub(super) enum State {
    /// Its module is being copied, since then.
    Arriving(Instant),
    Waiting,
    Running(Running),
}

pub(super) struct Running {
    pub(super) since: Instant,
    /// Since when a start waits for it, or the first time that one did.
    pub(super) waited_since: Option<Instant>,
    /// Its process, from when it has one.
    pub(super) compiler: Option<(i32, OwnedFd)>,
    /// The client whose purpose it was told.
    pub(super) asked: Option<u64>,
    /// Others ran at the same time.
    pub(super) beside: bool,
    /// Its compiler is killed: others come first, or nobody wants it any more.
    pub(super) stopped: bool,
    /// It has been waited for for long, and has the lowest priority.
    pub(super) lowered: bool,
}

impl Job {
    /// Whose it is in the order, see [`Turn::tenants`].
    pub(super) fn tenants(&self) -> Vec<u64> {
        let waiting = self.listeners.iter().filter(|l| l.purpose.is_some());
        let mut tenants: Vec<u64> = waiting.map(|l| l.tenant).collect();
        if tenants.is_empty() {
            tenants.push(number_of(&self.record.tenant));
        }
        tenants.sort_unstable();
        tenants.dedup();
        tenants
    }

    pub(super) fn waited(&self) -> bool {
        self.listeners.iter().any(|l| l.purpose.is_some())
    }

    /// Its module is being copied, and that takes long.
    pub(super) fn is_stuck(&self) -> bool {
        matches!(self.state, State::Arriving(since) if since.elapsed() >= LONG)
    }

    pub(super) fn running(&mut self) -> Option<&mut Running> {
        match &mut self.state {
            State::Running(running) => Some(running),
            _ => None,
        }
    }

    /// Its turn, with what [`Job::tenants`] says.
    pub(super) fn turn<'a>(&self, tenants: &'a [u64]) -> Turn<'a> {
        Turn {
            waited: self.waited(),
            tenants,
            alone: self.alone,
            size: self.record.module.size,
            age: self.since.elapsed().as_secs(),
            arrival: self.arrival,
            running: match &self.state {
                State::Running(running) => Some(running.run()),
                _ => None,
            },
        }
    }

    /// Gives a running compiler the priority of those who wait for it, or of nobody.
    pub(super) fn set_priority(&mut self) {
        let waited = self.waited();
        let Some(running) = self.running() else {
            return;
        };
        let background = !(waited && running.is_urgent());
        // The number of one that has ended may be another's.
        if let Some((pid, pidfd)) = &running.compiler
            && slipway_sys::pidfd_kill(pidfd.as_fd(), 0).is_ok()
        {
            slipway_compile::set_background(*pid, background);
        }
    }
}

impl Job {
    /// A job that is wanted though nobody waits. One that does not arrive yet lies in the directory.
    pub(super) fn new(record: Record, arrival: u64, state: State) -> Self {
        let is_kept = matches!(state, State::Waiting);
        Self {
            kept: is_kept.then(|| record.clone()),
            record,
            giver: None,
            thread: 0,
            damaged: None,
            state,
            listeners: Vec::new(),
            wanted: true,
            alone: false,
            arrival,
            since: Instant::now(),
        }
    }
}

/// A number for a tenant. Should two have the same, they are one in the order.
fn number_of(tenant: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    tenant.hash(&mut hasher);
    hasher.finish()
}

impl Running {
    /// One that begins now.
    pub(super) fn new(asked: Option<u64>, beside: bool, waited: bool) -> Self {
        let since = Instant::now();
        Self {
            since,
            waited_since: waited.then_some(since),
            compiler: None,
            asked,
            beside,
            stopped: false,
            lowered: false,
        }
    }

    /// A start that waits for it makes haste: not for ever, and once.
    fn is_urgent(&self) -> bool {
        self.urgent_for() > Some(Duration::ZERO)
    }

    /// How much longer it does; `None`: none has waited.
    pub(super) fn urgent_for(&self) -> Option<Duration> {
        let waited_for = self.waited_since?.elapsed();
        Some(LONG.saturating_sub(waited_for))
    }

    /// Whether it has just ceased to be urgent.
    pub(super) fn is_to_be_lowered(&mut self) -> bool {
        let newly = !self.lowered && self.urgent_for() == Some(Duration::ZERO);
        self.lowered |= newly;
        newly
    }

    pub(super) fn run(&self) -> Run {
        let long = self.since.elapsed() >= LONG;
        // The number of one that has ended may be another's.
        let lives = |pidfd: &OwnedFd| slipway_sys::pidfd_kill(pidfd.as_fd(), 0).is_ok();
        let compiler = self
            .compiler
            .as_ref()
            .filter(|(_, pidfd)| long && lives(pidfd));
        Run {
            long,
            memory: compiler.map_or(0, |(pid, _)| slipway_compile::memory_of(*pid)),
        }
    }

    /// Kills its compiler, where there is one by now; else it is done when there is one.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
        if let Some((_, pidfd)) = &self.compiler {
            let _ = slipway_sys::pidfd_kill(pidfd.as_fd(), libc::SIGKILL);
        }
    }
}

/// What the other threads tell.
pub(super) enum Event {
    /// Its module is copied, or its artefact in the cache, or why not.
    Arrived(Arrival),
    /// Its compiler runs: its pid, and a pidfd.
    Started(i32, OwnedFd),
    /// Something for the log of whoever listens to it.
    Said(String),
    /// Its compile has ended.
    Ended(Result<Option<Duration>, CompileError>),
}

pub(super) enum Arrival {
    /// The cache has it by now.
    Known(Result<(), CompileError>),
    /// There is a copy, to be kept.
    Copied,
    /// It could not be copied, and why.
    Failed(String),
    /// There is no place for it.
    Full,
}

/// Of which job an event is: its name, and the number of the thread that tells it.
pub(super) type Of = (String, u64);

/// The other threads' end.
#[derive(Clone)]
pub(super) struct Teller {
    pub(super) events: Sender<(Of, Event)>,
    pub(super) wake: Arc<OwnedFd>,
}

impl Teller {
    pub(super) fn tell(&self, of: &Of, event: Event) {
        // The one thread ends with the process.
        let _ = self.events.send((of.clone(), event));
        let _ = rustix::io::write(&*self.wake, &[0]);
    }
}
