//! The worker: one process of a node, which compiles what its shims ask for, and what others have asked for before.
//!
//! One thread has all state and waits for everything at once. Threads of their own copy modules, for a module can lie on a
//! volume that does not answer, and wait for compilers; they tell the one thread what has happened by [`Event`]s.

mod clients;
mod job;
mod jobs;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use slipway_compile::CompileError;
use slipway_counters::Counters;

use self::job::{Arrival, Event, Job, Listener, Of, Running, State, Teller};
use crate::directory::Directory;
use crate::room::Room;
use crate::schedule::LONG;
use crate::wire::FromWorker;

/// How long the worker stays when there is nothing to do: pods come in groups.
const LINGER: Duration = Duration::from_secs(5);
/// How often it is seen whether those that have run for long leave room to those that wait.
const LOOK: Duration = Duration::from_secs(5);
/// The node's worker.
pub struct Worker {
    /// The first to go: whoever has the lock next makes a cgroup of the same name.
    room: Room,
    directory: Arc<Directory>,
    listener: OwnedFd,
    teller: Teller,
    events: Receiver<(Of, Event)>,
    woken: OwnedFd,
    jobs: BTreeMap<String, Job>,
    clients: BTreeMap<u64, OwnedFd>,
    /// The next number of a client or a job.
    count: u64,
    at_once: usize,
    counters: Counters,
    cache: String,
    is_stopped: bool,
    /// The last to go.
    _lock: File,
}

impl Worker {
    /// The worker of a cache's queue, with the jobs that lie there; `None`: there is one.
    ///
    /// # Errors
    /// A directory that cannot be used, with its path.
    pub fn new(cache: &str) -> Result<Option<Self>, String> {
        let named = |e: io::Error| format!("compile queue of {cache}: {e}");
        // Who started it has made it. Where it is missing by now, it was taken away, and is not to come back.
        let directory = Directory::open(Path::new(cache)).map_err(named)?;
        let Some(lock) = directory.lock().map_err(named)? else {
            return Ok(None);
        };
        directory.sweep().map_err(named)?;
        let cgroup = cgroup_name(&directory).map_err(named)?;
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Room::remove_left(&cgroup, &directory.last_cgroup());
        directory.keep_cgroup(&own);
        let (woken, wake) = rustix::pipe::pipe_with(
            rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK,
        )
        .map_err(|e| named(e.into()))?;
        let (sender, events) = channel();
        let mut worker = Self {
            listener: directory.listen().map_err(named)?,
            _lock: lock,
            teller: Teller {
                events: sender,
                wake: Arc::new(wake),
            },
            events,
            woken,
            jobs: BTreeMap::new(),
            clients: BTreeMap::new(),
            count: 0,
            room: Room::new(&cgroup, &own),
            at_once: std::thread::available_parallelism().map_or(1, usize::from),
            counters: Counters::new(Path::new(slipway_counters::DIR)),
            cache: cache.into(),
            is_stopped: false,
            directory: Arc::new(directory),
        };
        let mut jobs = worker.directory.jobs().map_err(named)?;
        jobs.sort_by_key(|job| job.since);
        for job in jobs {
            let arrival = worker.number();
            let left = Job::new(job.record, arrival, State::Waiting);
            worker.jobs.insert(job.name, left);
        }
        Ok(Some(worker))
    }

    /// Works until there has been nothing to do for a while, or it is stopped.
    ///
    /// # Errors
    /// poll's.
    pub fn run(mut self) -> io::Result<()> {
        let mut idle_since = Instant::now();
        loop {
            if !self.is_stopped {
                self.schedule();
            }
            if !self.jobs.is_empty() {
                idle_since = Instant::now();
            }
            let left = (idle_since + LINGER).saturating_duration_since(Instant::now());
            if self.is_stopped || self.jobs.is_empty() && left.is_zero() {
                self.directory.stop_listening();
                if self.room.close() {
                    self.directory.forget_cgroup();
                }
                // Who has connected just now sees its connection closed, and starts another worker.
                return Ok(());
            }
            let until = self.jobs.is_empty().then_some(left);
            self.wait(until.or_else(|| self.next_look()))?;
            self.lower_long();
            self.look_elsewhere();
        }
    }

    /// Gives way to others with what has run for long by now.
    fn lower_long(&mut self) {
        for job in self.jobs.values_mut() {
            if job.running().is_some_and(Running::is_to_be_lowered) {
                job.set_priority();
            }
        }
    }

    /// Has those who wait for a module whose copy takes long ask again: the volume of the one who gave it may not answer, and they
    /// have files of their own.
    fn look_elsewhere(&mut self) {
        for job in self.jobs.values_mut().filter(|job| job.is_stuck()) {
            let giver = job.giver;
            let others = |l: &mut Listener| l.purpose.is_some() && Some(l.client) != giver;
            for listener in job.listeners.extract_if(.., others) {
                if let Some(socket) = self.clients.remove(&listener.client) {
                    let _ = slipway_protocol::send(socket.as_fd(), &FromWorker::Again, &[]);
                }
            }
        }
    }

    /// When something is to be looked at of which no event tells: that a compile or a copy has taken long, and how much memory is
    /// taken by compiles that have.
    fn next_look(&self) -> Option<Duration> {
        let left = |since: Instant| LONG.saturating_sub(since.elapsed());
        let becomes_long = self.jobs.values().flat_map(|job| match &job.state {
            State::Running(running) => [Some(left(running.since)), running.urgent_for()],
            State::Arriving(since) => [Some(left(*since)), None],
            State::Waiting => [None, None],
        });
        let waits = self
            .jobs
            .values()
            .any(|job| matches!(job.state, State::Waiting));
        let look = waits.then_some(LOOK);
        becomes_long
            .flatten()
            .filter(|left| !left.is_zero())
            .chain(look)
            .min()
    }

    /// Waits for the next thing to happen, and takes it.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(Timespec::try_from).transpose();
        let timeout = timeout.map_err(io::Error::other)?;
        let own = [&self.listener, &self.woken];
        let polled = own.into_iter().chain(self.clients.values());
        let mut fds: Vec<_> = polled.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        match poll(&mut fds, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            polled => polled?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let clients: Vec<u64> = self.clients.keys().copied().collect();
        for (client, _) in clients.iter().zip(&ready[2..]).filter(|(_, ready)| **ready) {
            self.hear(*client);
        }
        if ready[1] {
            let _ = rustix::io::read(&self.woken, &mut [0u8; 512]);
            while let Ok((of, event)) = self.events.try_recv() {
                self.take(of, event);
            }
        }
        if ready[0] {
            self.accept();
        }
        Ok(())
    }

    fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn take(&mut self, (name, thread): Of, event: Event) {
        let job = self.jobs.get_mut(&name);
        let Some(job) = job.filter(|job| job.thread == thread) else {
            // A copy took so long that others gave theirs.
            if let Event::Arrived(Arrival::Copied) = event {
                self.directory.drop_copy(&name, thread);
            }
            return;
        };
        match event {
            Event::Arrived(arrival) => self.arrived(&name, arrival),
            Event::Started(pid, pidfd) => {
                if let Some(running) = job.running() {
                    running.compiler = Some((pid, pidfd));
                    if running.stopped {
                        running.stop();
                    }
                }
                job.set_priority();
            }
            Event::Said(text) => self.say(&name, text),
            Event::Ended(result) => self.ended(&name, result),
        }
    }

    /// Starts a thread for a job, which fails where there can be none.
    fn start(&mut self, job: &str, work: impl FnOnce() + Send + 'static) {
        if let Err(e) = std::thread::Builder::new().spawn(work) {
            let text = format!("the compile queue's worker cannot start a thread: {e}");
            self.finish(job, Err(CompileError::Failed(text)));
        }
    }
}

/// The name of the cgroup of a queue's compiles. It is the queue's own, as its lock is: the next worker finds what a killed one has
/// left, and no other's.
fn cgroup_name(directory: &Directory) -> io::Result<String> {
    let stat = rustix::fs::fstat(directory)?;
    Ok(format!("slipway-compile-{:x}-{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests;
