//! The worker: one process of a node, which compiles what its shims ask for, and what others have asked for before.
//!
//! One thread has all state and waits for everything at once. Threads of their own copy modules, for a module can lie on a
//! volume that does not answer, and wait for compilers; they tell the one thread what has happened by [`Event`]s.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use slipway_cache::{Lookup, Options, Store, Tier};
use slipway_compile::{CompileError, Install, Job as Compile, Limits, Step};
use slipway_counters::{Counter, Counters, Histogram};
use slipway_module::MAX_MODULE_BYTES;
use slipway_protocol::Purpose;

use crate::directory::Directory;
use crate::record::Record;
use crate::room::Room;
use crate::schedule::{LONG, Next, Run, Turn, expected, next};
use crate::wire::{FromWorker, Order, ToWorker};

/// How long the worker stays when there is nothing to do: pods come in groups.
const LINGER: Duration = Duration::from_secs(5);
/// Most jobs that are kept in files, and most bytes of their modules. Beyond that, what a start waits for is compiled from the
/// shim's own descriptor, and does not outlive the worker; what nobody waits for is not taken.
const MAX_KEPT: usize = 256;
const MAX_KEPT_BYTES: u64 = 1 << 30;

/// How often it is seen whether those that have run for long leave room to those that wait.
const LOOK: Duration = Duration::from_secs(5);
/// Between two attempts to take a connection while there is no descriptor for it.
const WITHOUT_DESCRIPTORS: Duration = Duration::from_millis(20);

/// What the other threads tell.
enum Event {
    /// Its module is in the queue, or its artefact in the cache.
    Arrived(Arrival),
    /// Its compiler runs: its pid, and a pidfd.
    Started(i32, OwnedFd),
    /// Something for the log of whoever listens to it.
    Said(String),
    /// Its compile has ended.
    Ended(Result<Option<Duration>, CompileError>),
}

enum Arrival {
    /// The cache has it by now.
    Known(Result<(), CompileError>),
    Kept,
    /// It could not be kept: the module itself, and why.
    Unkept(OwnedFd, String),
}

/// Of which job an event is: its name, and its arrival, for another of the name may have come after it.
type Of = (String, u64);

/// The other threads' end.
#[derive(Clone)]
struct Teller {
    events: Sender<(Of, Event)>,
    wake: Arc<OwnedFd>,
}

impl Teller {
    fn tell(&self, of: &Of, event: Event) {
        // The one thread ends with the process.
        let _ = self.events.send((of.clone(), event));
        let _ = rustix::io::write(&*self.wake, &[0]);
    }
}

/// Someone who is told about a job.
#[derive(Debug)]
struct Listener {
    client: u64,
    /// What it waits for; `None`: it only listens.
    purpose: Option<Purpose>,
}

struct Job {
    record: Record,
    damaged: Option<String>,
    /// The client that has given the module; `None` for one that was left.
    giver: Option<u64>,
    /// The module, where it has no copy.
    unkept: Option<OwnedFd>,
    state: State,
    /// In the order in which they have come. The first is told what happens.
    listeners: Vec<Listener>,
    /// To be compiled though nobody waits.
    wanted: bool,
    /// It failed for want of memory beside others.
    alone: bool,
    arrival: u64,
    since: Instant,
}

enum State {
    Arriving,
    Waiting,
    Running(Running),
}

struct Running {
    since: Instant,
    /// Its process, from when it has one.
    compiler: Option<(i32, OwnedFd)>,
    /// The client whose purpose it was told.
    asked: Option<u64>,
    /// Others ran at the same time.
    beside: bool,
    /// Its compiler is killed: others come first, or nobody wants it any more.
    stopped: bool,
    /// It has run for long, and has the lowest priority.
    lowered: bool,
}

impl Job {
    fn waited(&self) -> bool {
        self.listeners.iter().any(|l| l.purpose.is_some())
    }

    /// Its module is being copied, and that takes long.
    fn is_stuck(&self) -> bool {
        matches!(self.state, State::Arriving) && self.since.elapsed() >= LONG
    }

    fn running(&mut self) -> Option<&mut Running> {
        match &mut self.state {
            State::Running(running) => Some(running),
            _ => None,
        }
    }

    fn turn(&self) -> Turn {
        Turn {
            waited: self.waited(),
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
    fn set_priority(&mut self) {
        let waited = self.waited();
        let background = !waited || self.running().is_some_and(|running| running.run().long);
        let compiler = self.running().and_then(|r| r.compiler.as_ref());
        // The number of one that has ended may be another's.
        if let Some((pid, pidfd)) = compiler
            && slipway_sys::pidfd_kill(pidfd.as_fd(), 0).is_ok()
        {
            slipway_compile::set_background(*pid, background);
        }
    }
}

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
        let stat = rustix::fs::fstat(directory.as_fd()).map_err(|e| named(e.into()))?;
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
            // The name is the queue's own, as its lock is: the next worker finds what a killed one has left, and no other's.
            room: Room::new(&format!(
                "slipway-compile-{:x}-{}",
                stat.st_dev, stat.st_ino
            )),
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
            self.schedule();
            if !self.jobs.is_empty() {
                idle_since = Instant::now();
            }
            let left = (idle_since + LINGER).saturating_duration_since(Instant::now());
            if self.is_stopped || self.jobs.is_empty() && left.is_zero() {
                self.directory.stop_listening();
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
            let lowers = job.running().is_some_and(|running| {
                let newly = running.run().long && !running.lowered;
                running.lowered |= newly;
                newly
            });
            if lowers {
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
        let becomes_long = self.jobs.values().filter_map(|job| match &job.state {
            State::Running(running) => Some(left(running.since)),
            State::Arriving => Some(left(job.since)),
            State::Waiting => None,
        });
        let waits = self
            .jobs
            .values()
            .any(|job| matches!(job.state, State::Waiting));
        let look = waits.then_some(LOOK);
        becomes_long
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

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(&self.listener, flags) {
            Ok(socket) => socket,
            Err(Errno::MFILE | Errno::NFILE) => {
                // The connection stays where it is until one of the others goes, which has no event of its own.
                std::thread::sleep(WITHOUT_DESCRIPTORS);
                return;
            }
            Err(_) => return,
        };
        // The directory lets nobody else in; this holds although somebody may open it one day.
        if slipway_sys::peer_user(socket.as_fd()).is_ok_and(|user| user == 0) {
            let number = self.number();
            self.clients.insert(number, socket);
        }
    }

    fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn hear(&mut self, client: u64) {
        let Some(socket) = self.clients.get(&client) else {
            return;
        };
        match slipway_protocol::recv(socket.as_fd()) {
            Ok((ToWorker::Submit(order), fds)) => match fds.into_iter().next() {
                Some(module) => self.submit(client, *order, module),
                None => {
                    let text = "the compile queue's worker has no descriptor left for the module";
                    let failed = Err(CompileError::Failed(text.into()));
                    self.send(client, &FromWorker::Ended(failed));
                    self.hang_up(client);
                }
            },
            Ok((ToWorker::Leave, _)) => self.leave(client, true),
            Ok((ToWorker::Forget(name), _)) => {
                let forgotten = self.forget(&name);
                self.send(client, &FromWorker::Forgotten(forgotten));
            }
            Ok((ToWorker::Stop, _)) => self.is_stopped = true,
            Err(slipway_protocol::Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.hang_up(client),
        }
    }

    fn hang_up(&mut self, client: u64) {
        self.clients.remove(&client);
        self.leave(client, false);
    }

    /// A client does not wait any longer; it may go on listening.
    fn leave(&mut self, client: u64, listens: bool) {
        let mut abandoned = Vec::new();
        for (name, job) in &mut self.jobs {
            let Some(at) = job.listeners.iter().position(|l| l.client == client) else {
                continue;
            };
            let waited = job.listeners[at].purpose.take().is_some();
            if !listens {
                job.listeners.remove(at);
            }
            if waited {
                // The next start finds it done. But a file of a pod's that goes is not held on to.
                job.wanted = job.unkept.is_none();
                job.set_priority();
                if !job.wanted && !job.waited() {
                    abandoned.push(name.clone());
                }
            }
        }
        for name in abandoned {
            self.abandon(&name);
        }
    }

    /// Takes a job out of the queue, unless a start waits for it.
    fn forget(&mut self, name: &str) -> bool {
        let Some(job) = self.jobs.get_mut(name) else {
            return true;
        };
        if job.waited() {
            return false;
        }
        job.wanted = false;
        // Its compiler takes a moment to end. A worker that is killed until then leaves the job to nobody.
        self.directory.withdraw(name);
        self.abandon(name);
        true
    }

    /// Ends what nobody wants, now or when its thread tells of it.
    fn abandon(&mut self, name: &str) {
        match self.jobs.get_mut(name).map(|job| &mut job.state) {
            Some(State::Running(running)) => running.stop(),
            Some(State::Waiting) => self.finish(name, Err(unwanted())),
            Some(State::Arriving) | None => {}
        }
    }

    fn submit(&mut self, client: u64, order: Order, module: OwnedFd) {
        let Order {
            record,
            damaged,
            purpose,
        } = order;
        let name = record.key().file_name();
        let listener = Listener { client, purpose };
        let waits = listener.purpose.is_some();
        if let Some(job) = self.jobs.get_mut(&name) {
            job.wanted |= !waits;
            job.record.improves |= record.improves;
            job.record.cache_bytes = record.cache_bytes;
            if !matches!(job.state, State::Running(_)) {
                // That of a job that was left may be gone.
                job.record.install = record.install;
                job.damaged = damaged.or(job.damaged.take());
            }
            job.listeners.push(listener);
            job.set_priority();
            if waits && job.is_stuck() {
                job.giver = Some(client);
                job.unkept = Some(module);
                job.state = State::Waiting;
            }
            if let State::Waiting = job.state {
                let text = self.queued(&name);
                self.send(client, &FromWorker::Said(text));
            }
            return;
        }
        let size = record.module.size;
        let kept = self.jobs.values().filter(|job| job.unkept.is_none());
        let bytes: u64 = kept.clone().map(|job| job.record.module.size).sum();
        // What is larger is refused by the compiler, which says so.
        let keeps = kept.count() < MAX_KEPT
            && size <= MAX_MODULE_BYTES
            && bytes.saturating_add(size) <= MAX_KEPT_BYTES;
        let arrival = self.number();
        let mut job = Job::new(record.clone(), arrival, State::Arriving);
        job.giver = Some(client);
        job.damaged = damaged;
        job.wanted = !waits;
        job.listeners.push(listener);
        self.jobs.insert(name.clone(), job);
        let (directory, teller, cache) = (
            self.directory.clone(),
            self.teller.clone(),
            self.cache.clone(),
        );
        let of = (name.clone(), arrival);
        let begun = name.clone();
        let work = move || {
            let arrived = match known(&cache, &record) {
                Some(result) => Arrival::Known(result),
                None if !keeps => Arrival::Unkept(module, "the compile queue is full".into()),
                None => match directory.keep(&name, arrival, &record, module.as_fd()) {
                    Ok(()) => Arrival::Kept,
                    Err(e) => {
                        Arrival::Unkept(module, format!("{}: {e}", directory.path().display()))
                    }
                },
            };
            teller.tell(&of, Event::Arrived(arrived));
        };
        self.start(&begun, work);
    }

    /// Starts a thread for a job, which fails where there can be none.
    fn start(&mut self, job: &str, work: impl FnOnce() + Send + 'static) {
        if let Err(e) = std::thread::Builder::new().spawn(work) {
            let text = format!("the compile queue's worker cannot start a thread: {e}");
            self.finish(job, Err(CompileError::Failed(text)));
        }
    }

    fn take(&mut self, (name, arrival): Of, event: Event) {
        let Some(job) = self.jobs.get_mut(&name) else {
            // A copy took so long that others gave theirs, and are done.
            if let Event::Arrived(_) = event {
                self.directory.remove(&name);
            }
            return;
        };
        if job.arrival != arrival {
            return;
        }
        match event {
            Event::Arrived(Arrival::Known(result)) => {
                // There is no copy. The next start has it compiled in full.
                job.record.improves = false;
                self.finish(&name, result);
            }
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

    fn arrived(&mut self, name: &str, arrival: Arrival) {
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        if !matches!(job.state, State::Arriving) {
            // Another one's module was taken instead.
            return;
        }
        job.state = State::Waiting;
        if !job.waited() && !job.wanted {
            self.finish(name, Err(unwanted()));
            return;
        }
        if let Arrival::Unkept(module, why) = arrival {
            if !job.waited() {
                self.finish(name, Err(CompileError::Failed(why)));
                return;
            }
            job.unkept = Some(module);
        }
        self.schedule();
        if let Some(Job {
            state: State::Waiting,
            ..
        }) = self.jobs.get(name)
        {
            let text = self.queued(name);
            self.say(name, text);
        }
    }

    /// How many are before a job that waits, for the log.
    fn queued(&self, name: &str) -> String {
        let Some(job) = self.jobs.get(name) else {
            return String::new();
        };
        let turn = job.turn();
        let before = |other: &Turn| other.running.is_some() || other.rank() < turn.rank();
        let others = self.jobs.values().map(Job::turn).filter(before).count();
        format!(
            "{} waits to be compiled for {others} other{}",
            job.record.module.path,
            if others == 1 { "" } else { "s" }
        )
    }

    /// Begins what there is room for.
    fn schedule(&mut self) {
        self.begin_what_fits();
        // What has run for long gives way to other compiles only: on a busy node it would never be done.
        let turns = self.jobs.values().map(Job::turn);
        let waited = turns.filter(|turn| turn.waited && turn.running.is_some());
        self.room.weigh(waited.count() > 0);
    }

    fn begin_what_fits(&mut self) {
        loop {
            let jobs = self.jobs.iter();
            let jobs = jobs.filter(|(_, job)| !matches!(job.state, State::Arriving));
            let (names, turns): (Vec<_>, Vec<_>) =
                jobs.map(|(name, job)| (name.clone(), job.turn())).unzip();
            let turns: Vec<_> = turns.into_iter().enumerate().collect();
            let Some((head, _)) = turns.iter().min_by_key(|(_, turn)| turn.rank()) else {
                return;
            };
            if turns.iter().all(|(_, turn)| turn.running.is_none())
                && let Err(why) = self.room.measure()
            {
                self.say(&names[*head], why);
            }
            match next(&turns, self.at_once, self.room.bound) {
                Next::Begin(at) => self.begin(&names[at]),
                Next::GiveWay(at) => {
                    let job = self.jobs.get_mut(&names[at]);
                    if let Some(running) = job.and_then(Job::running) {
                        running.stop();
                    }
                    return;
                }
                Next::Nothing => return,
            }
        }
    }

    fn begin(&mut self, name: &str) {
        let beside = self.mark_beside();
        let bound = self.room.bound;
        let available = self.room.available;
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        let prepared = prepare(job, &self.cache, &self.directory, name, available);
        let (store, compile) = match prepared {
            Ok(prepared) => prepared,
            Err(e) => {
                self.finish(name, Err(e));
                return;
            }
        };
        let asked = job.listeners.iter().find(|l| l.purpose.is_some());
        job.state = State::Running(Running {
            since: Instant::now(),
            compiler: None,
            asked: asked.map(|l| l.client),
            beside,
            stopped: false,
            lowered: false,
        });
        let limits = Limits {
            memory: bound,
            background: !job.waited(),
            cgroup: self.room.entry(),
        };
        let install = Install::at(&job.record.install);
        let teller = self.teller.clone();
        let of = (name.to_string(), job.arrival);
        let work = move || {
            let told = |step: Step<'_>| match step {
                Step::Said(text) => teller.tell(&of, Event::Said(text)),
                Step::Started(child) => {
                    if let Ok(pidfd) = child.pidfd.try_clone() {
                        teller.tell(&of, Event::Started(child.pid, pidfd));
                    }
                }
            };
            let result = slipway_compile::compile(&store, &install, &compile, &limits, told);
            // It has room for what comes next, before it is told.
            drop((store, compile, limits));
            teller.tell(&of, Event::Ended(result));
        };
        self.start(name, work);
    }

    /// Whether a compile that begins now has others beside it, who are told.
    fn mark_beside(&mut self) -> bool {
        let mut any = false;
        for running in self.jobs.values_mut().filter_map(Job::running) {
            running.beside = true;
            any = true;
        }
        any
    }

    fn ended(&mut self, name: &str, result: Result<Option<Duration>, CompileError>) {
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        let state = std::mem::replace(&mut job.state, State::Waiting);
        let State::Running(running) = state else {
            return;
        };
        match &result {
            // No verdict on the module: others may mean something else.
            Err(CompileError::Unfit(_)) => {
                let asked = running.asked;
                job.listeners.retain(|l| Some(l.client) != asked);
                let is_over = !job.waited() && !job.wanted;
                if let Some(client) = asked {
                    self.send(client, &FromWorker::Ended(result.clone().map(drop)));
                    self.clients.remove(&client);
                }
                if is_over {
                    self.finish(name, result.map(drop));
                }
                return;
            }
            Err(_) if running.stopped => {
                if !job.waited() && !job.wanted {
                    self.finish(name, Err(unwanted()));
                }
                return;
            }
            Err(CompileError::Changed) => {
                self.changed(name);
                return;
            }
            Err(CompileError::OutOfMemory(why)) if running.beside && !job.alone => {
                job.alone = true;
                let path = &job.record.module.path;
                let text = format!("{path}: {why}; it is tried once more alone");
                self.say(name, text);
                return;
            }
            Err(_) => self.counters.count(Counter::CompileFailures),
            Ok(Some(took)) => {
                let histogram = match job.record.tier {
                    Tier::Quick => Histogram::CompileQuick,
                    Tier::Full => Histogram::CompileFull,
                };
                self.counters.observe(histogram, *took);
            }
            Ok(None) => {}
        }
        self.finish(name, result.map(drop));
    }

    /// What was copied is not the module: its giver hears so. The others have looked at files of their own, which they give when
    /// they ask again.
    fn changed(&mut self, name: &str) {
        let Some(job) = self.jobs.remove(name) else {
            return;
        };
        self.directory.remove(name);
        if let Some(giver) = job.giver {
            self.send(giver, &FromWorker::Ended(Err(CompileError::Changed)));
        }
        for listener in &job.listeners {
            self.send(listener.client, &FromWorker::Again);
            self.clients.remove(&listener.client);
        }
    }

    /// Tells everybody how a job has ended, and forgets it, or goes on with the same module in full.
    fn finish(&mut self, name: &str, result: Result<(), CompileError>) {
        let Some(mut job) = self.jobs.remove(name) else {
            return;
        };
        for listener in &job.listeners {
            self.send(listener.client, &FromWorker::Ended(result.clone()));
        }
        let quick = job.record.tier == Tier::Quick && job.unkept.is_none();
        if result.is_ok() && quick && job.record.improves && self.improve(name, &mut job) {
            return;
        }
        self.directory.remove(name);
        for listener in &job.listeners {
            self.clients.remove(&listener.client);
        }
    }

    /// Puts the module of a job that has ended into the queue once more, to be compiled in full; nobody waits for it.
    fn improve(&mut self, name: &str, job: &mut Job) -> bool {
        let record = Record {
            tier: Tier::Full,
            improves: false,
            ..job.record.clone()
        };
        let new = record.key().file_name();
        if self.jobs.contains_key(&new) {
            return false;
        }
        if let Err(e) = self.directory.keep_again(name, &new, &record) {
            let path = self.directory.path().display();
            let failed = Err(CompileError::Failed(format!("{path}: {e}")));
            for listener in &job.listeners {
                self.send(listener.client, &FromWorker::Ended(failed.clone()));
            }
            return false;
        }
        let arrival = self.number();
        let mut full = Job::new(record, arrival, State::Waiting);
        full.listeners = std::mem::take(&mut job.listeners);
        for listener in &mut full.listeners {
            listener.purpose = None;
        }
        self.jobs.insert(new, full);
        true
    }

    /// Tells the first who listens to a job: one log of a node is enough.
    fn say(&mut self, name: &str, text: String) {
        let listeners = self.jobs.get(name).map(|job| &job.listeners);
        if let Some(client) = listeners.and_then(|l| l.first()).map(|l| l.client) {
            self.send(client, &FromWorker::Said(text));
        }
    }

    /// Never waits. Who does not read what is said misses it; who misses the end sees the connection closed, and asks again.
    fn send(&mut self, client: u64, message: &FromWorker) {
        let Some(socket) = self.clients.get(&client) else {
            return;
        };
        let sent = slipway_protocol::send(socket.as_fd(), message, &[]);
        if sent.is_err() && matches!(message, FromWorker::Ended(_)) {
            self.clients.remove(&client);
        }
    }
}

impl Job {
    /// A job that is wanted though nobody waits.
    fn new(record: Record, arrival: u64, state: State) -> Self {
        Self {
            record,
            giver: None,
            damaged: None,
            unkept: None,
            state,
            listeners: Vec::new(),
            wanted: true,
            alone: false,
            arrival,
            since: Instant::now(),
        }
    }
}

impl Running {
    fn run(&self) -> Run {
        let long = self.since.elapsed() >= LONG;
        let compiler = self.compiler.as_ref().filter(|_| long);
        Run {
            long,
            memory: compiler.map_or(0, |(pid, _)| slipway_compile::memory_of(*pid)),
        }
    }

    /// Kills its compiler, where there is one by now; else it is done when there is one.
    fn stop(&mut self) {
        self.stopped = true;
        if let Some((_, pidfd)) = &self.compiler {
            let _ = slipway_sys::pidfd_kill(pidfd.as_fd(), libc::SIGKILL);
        }
    }
}

/// For those who only listen.
fn unwanted() -> CompileError {
    CompileError::Failed("it is not wanted any more".into())
}

/// What the cache has of a job by now.
fn known(cache: &str, record: &Record) -> Option<Result<(), CompileError>> {
    let store = open(cache, record).ok()?;
    match store.lookup(&record.key()) {
        Ok(Lookup::Hit(_)) => Some(Ok(())),
        Ok(Lookup::Refused(why)) => Some(Err(CompileError::Refused(why))),
        // An error is the compile's to tell.
        Ok(Lookup::Miss { .. }) | Err(_) => None,
    }
}

fn open(cache: &str, record: &Record) -> Result<Store, CompileError> {
    let max_bytes = record.cache_bytes;
    Ok(Store::open(cache, Options { max_bytes })?)
}

/// What a job's compile needs.
///
/// # Errors
/// Its module is not to be had, or nobody waits for it and it would be to the node's harm.
fn prepare(
    job: &Job,
    cache: &str,
    directory: &Directory,
    name: &str,
    available: u64,
) -> Result<(Store, Compile), CompileError> {
    let store = open(cache, &job.record)?;
    if !job.waited() {
        let needed = expected(job.record.module.size);
        if available / 2 < needed {
            return Err(CompileError::Failed(format!(
                "it may take {needed} bytes of memory, and the node has {available} available; `slipway compile --tier full` does it anyway"
            )));
        }
        if store.is_filled_by_use()? {
            return Err(CompileError::Failed(
                "artefacts in use fill the cache up to its bound; a larger bound makes room".into(),
            ));
        }
    }
    let file = match &job.unkept {
        Some(module) => module.try_clone()?,
        None => directory.module(name)?,
    };
    let mut compile = Compile::new(file, job.record.module.clone(), job.record.tier);
    compile.damaged.clone_from(&job.damaged);
    let waits = job.listeners.iter().find_map(|l| l.purpose.clone());
    compile.purpose = waits.unwrap_or_default();
    Ok((store, compile))
}
