//! The life of a job: it arrives, waits, runs, and ends.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use slipway_cache::{Lookup, Options, Store, Tier};
use slipway_compile::{CompileError, Install, Job as Compile, Limits, Step};
use slipway_counters::{Counter, Histogram};
use slipway_module::MAX_MODULE_BYTES;
use slipway_protocol::discard;

use super::Worker;
use super::job::{Arrival, Event, Job, Listener, Running, State};
use crate::directory::Directory;
use crate::record::Record;
use crate::schedule::{Next, Rank, Turn, expected, next, ranks};
use crate::wire::{FromWorker, Order};

/// Most jobs, and most bytes of their modules; each tenant as much as is left to others. Beyond that starts ask again, and what nobody waits
/// for is not taken.
const MAX_KEPT: usize = 256;
const MAX_KEPT_BYTES: u64 = 1 << 30;

impl Worker {
    pub(super) fn submit(&mut self, client: u64, order: Order, module: OwnedFd) {
        let name = order.record.key().file_name();
        match self.jobs.contains_key(&name) {
            true => self.join(&name, client, order, module),
            false => self.add(name, client, order, module),
        }
    }

    /// One more for a job that there is.
    fn join(&mut self, name: &str, client: u64, order: Order, module: OwnedFd) {
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        let Order {
            record,
            damaged,
            purpose,
        } = order;
        let waits = purpose.is_some();
        job.wanted |= !waits;
        job.record.full_afterwards |= record.full_afterwards;
        job.record.cache_bytes = record.cache_bytes;
        if !matches!(job.state, State::Running(_)) {
            // That of a job that was left may be gone.
            job.record.install = record.install;
            job.damaged = damaged.or(job.damaged.take());
        }
        let listener = Listener::new(client, purpose, &record.tenant);
        job.listeners.push(listener);
        if let Some(running) = job.running().filter(|_| waits) {
            running.waited_since.get_or_insert_with(Instant::now);
        }
        job.set_priority();
        if waits && job.is_stuck() {
            self.copy(name, client, module);
            return;
        }
        discard(vec![module]);
        let is_waiting = matches!(job.state, State::Waiting);
        self.keep_record(name);
        if is_waiting {
            let text = self.queued(name);
            self.send(client, &FromWorker::Said(text));
        }
    }

    /// Lets the next worker know what a job has become since it was kept.
    fn keep_record(&mut self, name: &str) {
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        let has_copy = !matches!(job.state, State::Arriving(_));
        if has_copy && job.kept.as_ref() != Some(&job.record) {
            // Not worth failing for: the next worker would do what was asked for first.
            let kept = self.directory.keep_record(name, &job.record);
            job.kept = kept.is_ok().then(|| job.record.clone());
        }
    }

    /// A new job.
    fn add(&mut self, name: String, client: u64, order: Order, module: OwnedFd) {
        let Order {
            record,
            damaged,
            purpose,
        } = order;
        let arrival = self.number();
        let listener = Listener::new(client, purpose, &record.tenant);
        let mut job = Job::new(record, arrival, State::Arriving(Instant::now()));
        job.damaged = damaged;
        job.wanted = listener.purpose.is_none();
        job.listeners.push(listener);
        self.jobs.insert(name.clone(), job);
        self.copy(&name, client, module);
    }

    /// Has a thread copy the module that a client gives, unless the cache has its artefact by now. The volume where it lies may never answer:
    /// nothing but that thread touches it, and it holds nothing that others wait for.
    fn copy(&mut self, name: &str, giver: u64, module: OwnedFd) {
        let thread = self.number();
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        job.giver = Some(giver);
        job.thread = thread;
        job.state = State::Arriving(Instant::now());
        let record = job.record.clone();
        let has_place = self.has_place(name, &record);
        let (directory, teller, cache) = (
            self.directory.clone(),
            self.teller.clone(),
            self.cache.clone(),
        );
        let of = (name.to_string(), thread);
        let work = move || {
            let arrival = match known(&cache, &record) {
                Some(result) => Arrival::Known(result),
                None if record.module.size > MAX_MODULE_BYTES => Arrival::Failed(format!(
                    "the module has {} bytes, more than the {MAX_MODULE_BYTES} allowed",
                    record.module.size
                )),
                None if !has_place => Arrival::Full,
                None => match directory.copy(&of.0, thread, &record, module.as_fd()) {
                    Ok(()) => Arrival::Copied,
                    Err(e) => {
                        Arrival::Failed(format!("copy the module to {}", directory.explain(&e)))
                    }
                },
            };
            // Before the module is closed, which can take as long as the copy.
            teller.tell(&of, Event::Arrived(arrival));
        };
        self.start(name, work);
    }

    /// Whether there is a place for this job beside all others. Who has much in the queue finds it full before others do: who comes
    /// first may have half of it, the next one half of the rest, and so on.
    pub(super) fn has_place(&self, name: &str, new: &Record) -> bool {
        let (mut jobs, mut bytes) = (1, new.module.size);
        let (mut own_jobs, mut own_bytes) = (jobs, bytes);
        let others = self.jobs.iter().filter(|(other, _)| *other != name);
        for (_, Job { record, .. }) in others {
            let size = record.module.size;
            jobs += 1;
            bytes = bytes.saturating_add(size);
            if record.tenant == new.tenant {
                own_jobs += 1;
                own_bytes = own_bytes.saturating_add(size);
            }
        }
        jobs + own_jobs <= MAX_KEPT && bytes.saturating_add(own_bytes) <= MAX_KEPT_BYTES
    }

    pub(super) fn arrived(&mut self, name: &str, arrival: Arrival) {
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        job.state = State::Waiting;
        let (thread, record) = (job.thread, job.record.clone());
        match arrival {
            Arrival::Known(result) => {
                // There is no copy. The next start has it compiled in full.
                job.record.full_afterwards = false;
                self.finish(name, result);
                return;
            }
            Arrival::Copied if !job.waited() && !job.wanted => {
                self.directory.drop_copy(name, thread);
                self.finish(name, Err(unwanted()));
                return;
            }
            Arrival::Copied => match self.directory.keep(name, thread, &record) {
                Ok(()) => job.kept = Some(record),
                Err(e) => {
                    let why = CompileError::Failed(self.directory.explain(&e));
                    self.give_back(name, &why);
                    return;
                }
            },
            Arrival::Failed(why) => {
                self.give_back(name, &CompileError::Failed(why));
                return;
            }
            Arrival::Full => {
                self.turn_away(name);
                return;
            }
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

    /// Forgets a job for which there is no place: starts ask again, and what nobody waits for is not taken.
    fn turn_away(&mut self, name: &str) {
        let Some(job) = self.jobs.remove(name) else {
            return;
        };
        for listener in &job.listeners {
            let message = match listener.purpose {
                Some(_) => FromWorker::Full,
                None => {
                    let text = "too many modules of its namespace are in the compile queue";
                    FromWorker::Ended(Err(CompileError::Failed(text.into())))
                }
            };
            self.send(listener.client, &message);
            self.clients.remove(&listener.client);
        }
    }

    /// How many are before a job that waits, for the log.
    fn queued(&self, name: &str) -> String {
        let Some(job) = self.jobs.get(name) else {
            return String::new();
        };
        let jobs: Vec<_> = self.jobs.values().map(|job| (job, job.tenants())).collect();
        let turns: Vec<Turn<'_>> = jobs.iter().map(|(job, of)| job.turn(of)).collect();
        let ranks = ranks(&turns);
        let own = turns
            .iter()
            .zip(&ranks)
            .find(|(turn, _)| turn.arrival == job.arrival);
        let is_before = |(turn, rank): &(&Turn<'_>, &Rank)| {
            turn.running.is_some() || own.is_some_and(|(_, own)| *rank < own)
        };
        let others = turns.iter().zip(&ranks).filter(is_before).count();
        format!(
            "{} waits to be compiled for {others} other{}",
            job.record.module.path,
            if others == 1 { "" } else { "s" }
        )
    }

    /// Begins what there is room for.
    pub(super) fn schedule(&mut self) {
        self.begin_what_fits();
        // What has run for long gives way to other compiles only: on a busy node it would never be done.
        let is_waited_for = |job: &Job| job.waited() && matches!(job.state, State::Running(_));
        self.room.weigh(self.jobs.values().any(is_waited_for));
    }

    fn begin_what_fits(&mut self) {
        loop {
            let jobs = self.jobs.iter();
            let jobs = jobs.filter(|(_, job)| !matches!(job.state, State::Arriving(_)));
            let jobs: Vec<_> = jobs.map(|(name, job)| (name, job, job.tenants())).collect();
            let turns = jobs.iter().map(|(_, job, of)| job.turn(of));
            let turns: Vec<_> = turns.enumerate().collect();
            let names: Vec<String> = jobs.iter().map(|(name, ..)| (*name).clone()).collect();
            let none_runs = turns.iter().all(|(_, turn)| turn.running.is_none());
            let measured = match names.is_empty() || !none_runs {
                true => Ok(()),
                false => self.room.measure(),
            };
            let next = next(&turns, self.at_once, self.room.bound);
            if let Err(why) = measured {
                self.say_to_somebody(why);
            }
            match next {
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
        let thread = self.number();
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
        let asked = asked.map(|l| l.client);
        job.state = State::Running(Running::new(asked, beside, job.waited()));
        job.thread = thread;
        let limits = Limits {
            memory: bound,
            background: !job.waited(),
            cgroup: self.room.entry(),
        };
        let install = Install::at(&job.record.install);
        let teller = self.teller.clone();
        let of = (name.to_string(), thread);
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

    pub(super) fn ended(&mut self, name: &str, result: Result<Option<Duration>, CompileError>) {
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
                self.give_back(name, &CompileError::Changed);
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

    /// What was given is not the module, or cannot be copied: its giver hears so. The others have looked at files of their own, which they
    /// give when they ask again.
    fn give_back(&mut self, name: &str, why: &CompileError) {
        let Some(job) = self.jobs.remove(name) else {
            return;
        };
        self.directory.remove(name);
        for listener in &job.listeners {
            let message = match job.giver == Some(listener.client) {
                true => FromWorker::Ended(Err(why.clone())),
                false => FromWorker::Again,
            };
            self.send(listener.client, &message);
            self.clients.remove(&listener.client);
        }
    }

    /// Tells everybody how a job has ended, and forgets it, or goes on with the same module in full.
    pub(super) fn finish(&mut self, name: &str, result: Result<(), CompileError>) {
        let Some(mut job) = self.jobs.remove(name) else {
            return;
        };
        for listener in &job.listeners {
            self.send(listener.client, &FromWorker::Ended(result.clone()));
        }
        let quick = job.record.tier == Tier::Quick;
        if result.is_ok()
            && quick
            && job.record.full_afterwards
            && self.go_on_in_full(name, &mut job)
        {
            return;
        }
        self.directory.remove(name);
        for listener in &job.listeners {
            self.clients.remove(&listener.client);
        }
    }

    /// Puts the module of a job that has ended into the queue once more, to be compiled in full; nobody waits for it.
    fn go_on_in_full(&mut self, name: &str, job: &mut Job) -> bool {
        let record = Record {
            tier: Tier::Full,
            full_afterwards: false,
            ..job.record.clone()
        };
        let new = record.key().file_name();
        if self.jobs.contains_key(&new) {
            return false;
        }
        if let Err(e) = self.directory.keep_again(name, &new, &record) {
            let failed = Err(CompileError::Failed(self.directory.explain(&e)));
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
}

/// For those who only listen.
pub(super) fn unwanted() -> CompileError {
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
    let file = directory.module(name)?;
    let mut compile = Compile::new(file, job.record.module.clone(), job.record.tier);
    compile.damaged.clone_from(&job.damaged);
    let waits = job.listeners.iter().find_map(|l| l.purpose.clone());
    compile.purpose = waits.unwrap_or_default();
    Ok((store, compile))
}
