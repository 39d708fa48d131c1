//! One container of the pod that is our own: the sandbox with its holder, or a Wasm container with its guests.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use containerd_shim_protos::api::Status;
use containerd_shim_protos::events::task::{
    TaskExecStarted, TaskExit, TaskOOM, TaskPaused, TaskResumed, TaskStart,
};
use slipway_cgroup::{Cgroup, OomKill, OomWatch, Registration};
use slipway_counters::{Counter, Counters};
use slipway_protocol::{Budget, Cause, End, HostShare, Timeline, Usage};
use slipway_spec::{Plan, Resources, Role};

use crate::count::{self, StartTimer};
use crate::error::{self, Result};
use crate::events::{Events, now};
use crate::execs::{Exec, Execs};
use crate::log::Log;
use crate::process::{Exit, Process};
use crate::termination_message;

/// A container.
pub struct Container {
    /// containerd's id.
    pub id: String,
    /// Its bundle.
    pub bundle: String,
    /// What it was made from.
    pub plan: Plan,
    /// Where it is accounted; `None` where the spec names no cgroup.
    pub cgroup: Option<Cgroup>,
    /// Its own process; when that ends, the container ends.
    pub main: Process,
    /// The kernel's kills in the cgroup.
    oom: Mutex<Option<OomWatch>>,
    /// Processes that were added to it.
    pub execs: Execs,
    /// What all its guests may take together; the sandbox has none.
    budget: Option<Arc<Budget>>,
    counters: Counters,
    /// `None` for the sandbox, which has no program.
    start_timer: Option<StartTimer>,
    /// Held while it is frozen or thawed.
    freezing: tokio::sync::Mutex<()>,
    /// Why it never ran, where that showed when it was Running already.
    unloaded: OnceLock<String>,
    /// The termination message's file, as it was when the container was made: later its path may mean another.
    termination_message: Option<File>,
}

/// What a new container is made from.
pub struct Parts {
    /// See [`Container`].
    pub id: String,
    /// See [`Container`].
    pub bundle: String,
    /// See [`Container`].
    pub plan: Plan,
    /// See [`Container`].
    pub cgroup: Option<Cgroup>,
    /// Watches it since it was made.
    pub oom: Option<OomWatch>,
    /// See [`Container`]; created and not started.
    pub main: Process,
    /// See [`Container`].
    pub budget: Option<Arc<Budget>>,
    /// The node's.
    pub counters: Counters,
    /// How it was created; the sandbox has no program.
    pub start_timer: Option<StartTimer>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Never held across an await or a call that can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Container {
    /// A container in state Created, watched to its end.
    pub fn new(parts: Parts, events: Events, log: Log) -> Arc<Self> {
        let message = parts.plan.termination_message.as_deref();
        let container = Arc::new(Self {
            termination_message: message.and_then(termination_message::open),
            oom: Mutex::new(parts.oom),
            execs: Execs::of(&parts.id),
            id: parts.id,
            bundle: parts.bundle,
            cgroup: parts.cgroup,
            main: parts.main,
            budget: parts.budget,
            plan: parts.plan,
            counters: parts.counters,
            start_timer: parts.start_timer,
            freezing: tokio::sync::Mutex::default(),
            unloaded: OnceLock::new(),
        });
        tokio::spawn(watch_main(container.clone(), events, log));
        container
    }

    /// Lets the created container run, as soon as its module is loaded. One whose module is still being compiled is Running
    /// from now on, so that it can be stopped, and its program runs later.
    pub async fn start(self: &Arc<Self>, events: &Events, log: &Log) -> Result<()> {
        if self.main.is_compiling() {
            self.main.transition(Status::CREATED, Status::RUNNING)?;
            self.publish_start(events);
            tokio::spawn(self.clone().run_when_loaded(log.clone()));
            return Ok(());
        }
        match self.loaded(&self.main).await {
            Ok(None) => {}
            Ok(Some(steps)) => {
                log.debug(&format!("started {}: microseconds: {steps}", self.id));
            }
            // To its user it is a container that needs more memory, whenever that showed: its end says so.
            Err(_) if self.main.oom_kill().is_some() => return Ok(()),
            Err(e) => {
                self.counters.count(Counter::StartFailures);
                return Err(e);
            }
        }
        self.main.transition(Status::CREATED, Status::RUNNING)?;
        self.run()?;
        self.publish_start(events);
        Ok(())
    }

    fn run(&self) -> Result<()> {
        self.main.run(self.cgroup.as_ref())?;
        if let Some(start_timer) = self.start_timer {
            start_timer.started(&self.counters, self.main.pid());
        }
        Ok(())
    }

    /// Lets the program of a running container run at last. One that cannot ends as a container that ran: with a status and
    /// a reason.
    async fn run_when_loaded(self: Arc<Self>, log: Log) {
        let loaded = self.loaded(&self.main).await;
        let ran = loaded.and_then(|steps| {
            if let Some(steps) = steps {
                log.debug(&format!("loaded {}: microseconds: {steps}", self.id));
            }
            self.run()
        });
        // One that has ended by itself, or was killed, has its own reason.
        if let Some(e) = ran.err().filter(|_| self.main.exited().is_none()) {
            self.counters.count(Counter::StartFailures);
            let _ = self.unloaded.set(error::text(&e));
            let _ = self.main.kill(libc::SIGKILL.unsigned_abs());
        }
    }

    fn publish_start(&self, events: &Events) {
        events.publish(&TaskStart {
            container_id: self.id.clone(),
            pid: self.main.pid(),
            ..TaskStart::default()
        });
    }

    /// Waits until the module of a process is loaded; the steps that it took.
    pub async fn loaded(&self, process: &Process) -> Result<Option<Timeline>> {
        let loaded = process.loaded().await;
        if loaded.is_err() && process.is_gone() {
            // Whoever watches its end finds out why it was killed.
            process.wait().await;
            if let Some(reason) = process.oom_kill() {
                return Err(error::precondition(reason));
            }
        }
        loaded
    }

    /// Stops all processes of the container where they are.
    pub async fn pause(self: &Arc<Self>, events: &Events) -> Result<()> {
        let (container, events) = (self.clone(), events.clone());
        to_its_end(async move {
            let _alone = container.freezing.lock().await;
            container.main.transition(Status::RUNNING, Status::PAUSED)?;
            if let Err(e) = container.freeze(true).await {
                let _ = container.main.transition(Status::PAUSED, Status::RUNNING);
                return Err(e);
            }
            events.publish(&TaskPaused {
                container_id: container.id.clone(),
                ..TaskPaused::default()
            });
            Ok(())
        })
        .await
    }

    /// Lets them go on.
    pub async fn resume(self: &Arc<Self>, events: &Events) -> Result<()> {
        let (container, events) = (self.clone(), events.clone());
        to_its_end(async move {
            let _alone = container.freezing.lock().await;
            container.main.transition(Status::PAUSED, Status::RUNNING)?;
            container.freeze(false).await?;
            events.publish(&TaskResumed {
                container_id: container.id.clone(),
                ..TaskResumed::default()
            });
            Ok(())
        })
        .await
    }

    /// Waits until all processes stand still, or go on, for who holds `freezing`: one that is in the kernel can take seconds, and nobody else waits for it.
    async fn freeze(&self, freeze: bool) -> Result<()> {
        let none =
            || error::precondition("linux.cgroupsPath is empty: there is nothing to freeze by");
        let cgroup = self.cgroup.clone().ok_or_else(none)?;
        let frozen = tokio::task::spawn_blocking(move || cgroup.freeze(freeze)).await;
        frozen.map_err(error::internal)?.map_err(error::internal)
    }

    /// Sends a signal to the container's own process, or to its execs too. A frozen one could not end.
    pub fn kill(self: &Arc<Self>, signal: u32, all: bool) -> Result<()> {
        if all {
            for exec in self.execs.all() {
                let _ = exec.process.kill(signal);
            }
        }
        self.main.kill(signal)?;
        let deadly = signal == libc::SIGKILL.unsigned_abs();
        if deadly && self.is_paused() {
            // After whoever freezes it at this moment.
            let container = self.clone();
            tokio::spawn(async move {
                let _alone = container.freezing.lock().await;
                container.freeze(false).await
            });
        }
        Ok(())
    }

    fn is_paused(&self) -> bool {
        self.main.status() == Status::PAUSED
    }

    /// Moves limits of the running container. The memory budget of its guests moves at once; a limit of the cgroup
    /// that is below what is in use stays where it is, for it would kill: growth is refused by the budget then.
    pub fn update(&self, resources: &Resources, log: &Log) -> Result<()> {
        let mut applied = resources.clone();
        if let (Some(limit), Some(cgroup)) =
            (resources.memory_limit.filter(|l| *l != 0), &self.cgroup)
        {
            let used = cgroup.memory_usage();
            if u64::try_from(limit).is_ok_and(|limit| limit < used) {
                log.info(&format!(
                    "container {}: {used} bytes of memory are in use, the limit is {limit} now: nothing more is granted",
                    self.id
                ));
                (applied.memory_limit, applied.memory_swap) = (None, None);
            }
            let budget = resources.memory_budget();
            if let Some(shared) = &self.budget {
                shared.set_limit(budget).map_err(error::internal)?;
            }
            self.main.limit_memory(budget);
            for exec in self.execs.all() {
                exec.process.limit_memory(budget);
            }
        }
        match &self.cgroup {
            Some(cgroup) => cgroup.apply(&applied).map_err(error::internal),
            None => Ok(()),
        }
    }

    /// The share of a further guest in the container's memory budget.
    pub fn new_share(&self) -> std::io::Result<HostShare> {
        let none = || std::io::Error::other("a sandbox has no memory budget");
        self.budget.as_ref().ok_or_else(none)?.share()
    }

    /// Processes of the container: all in its cgroup. An ended one that is not deleted yet still has its first: a
    /// containerd that comes back takes a task without processes for one that never began, and forgets its status.
    pub fn pids(&self) -> Vec<u32> {
        let cgroup = self
            .cgroup
            .as_ref()
            .filter(|_| !self.plan.program.args.is_empty());
        let mut pids: Vec<u32> = cgroup
            .map(|c| c.pids().into_iter().map(i32::unsigned_abs).collect())
            .unwrap_or_default();
        if pids.is_empty() {
            pids.push(self.main.pid());
        }
        pids
    }

    /// The process that a request means.
    pub fn process(self: &Arc<Self>, exec: &str) -> Result<ProcessRef> {
        if exec.is_empty() {
            return Ok(ProcessRef::Main(self.clone()));
        }
        self.execs.get(exec).map(ProcessRef::Exec)
    }

    /// Ends what is left of the container, and removes its cgroup.
    pub async fn destroy(self: &Arc<Self>) -> Result<Exit> {
        let _ = self.kill(libc::SIGKILL.unsigned_abs(), true);
        let exit = self.main.wait().await;
        self.main.handed_over().await;
        let cgroup = self.cgroup.clone();
        let path = self.plan.cgroup.clone();
        let registered = path.filter(|_| self.plan.role == Role::Sandbox);
        // The kernel and systemd can take seconds for it.
        let removed = tokio::task::spawn_blocking(move || {
            cgroup.as_ref().map(Cgroup::remove).transpose()?;
            registered.as_ref().map(Registration::end);
            Ok::<_, slipway_cgroup::Error>(())
        });
        let removed = removed.await.map_err(error::internal)?;
        removed.map_err(error::internal)?;
        Ok(exit)
    }

    /// How its memory budget stands: of all its guests together, the peak the highest of them. A sandbox has none.
    pub fn memory(&self) -> Option<Usage> {
        self.budget.as_ref()?.read().ok()
    }

    /// Tells the node's counters of growths that were refused since it was told last.
    pub fn count_refused(&self) {
        let count = |process: &Process| {
            let refused = process.newly_refused();
            self.counters.add(Counter::GrowthsRefused, refused);
        };
        count(&self.main);
        for exec in self.execs.all() {
            count(&exec.process);
        }
    }

    /// The kernel's next kill in the container that has not been told.
    pub fn next_oom_kill(&self) -> Option<OomKill> {
        lock(&self.oom).as_mut()?.next_kill()
    }

    /// Gives the end of a process its reason where the kernel's OOM killer was it: each of its kills is told once.
    fn explain_oom_kill(&self, process: &Process, end: &mut End) {
        if end.status != slipway_launch::KILLED || end.is_out_of_memory() {
            return;
        }
        let Some(kill) = self.next_oom_kill() else {
            return;
        };
        end.cause = Cause::OutOfMemory;
        end.reason = match (process.has_run(), process.refusal()) {
            (false, _) => format!("{kill} while its module was loaded"),
            // What a program and its engine do about a refusal takes memory, too: a trap's report some for each function.
            (_, Some(refusal)) => format!("{refusal}; then {kill}"),
            (_, None) => kill.to_string(),
        };
        process.note_oom_kill(&end.reason);
    }
}

/// Does what a client has asked for to its end, also where the client gives up meanwhile.
async fn to_its_end(work: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
    tokio::spawn(work).await.map_err(error::internal)?
}

/// The process that a request means.
pub enum ProcessRef {
    /// The container's own.
    Main(Arc<Container>),
    /// An exec.
    Exec(Arc<Exec>),
}

impl std::ops::Deref for ProcessRef {
    type Target = Process;

    fn deref(&self) -> &Process {
        match self {
            Self::Main(container) => &container.main,
            Self::Exec(exec) => &exec.process,
        }
    }
}

/// The one task that moves a container to Stopped.
async fn watch_main(container: Arc<Container>, events: Events, log: Log) {
    let Some(mut end) = container.main.reaped().await else {
        return;
    };
    container.explain_oom_kill(&container.main, &mut end);
    if let Some(why) = container.unloaded.get().filter(|_| !end.is_out_of_memory()) {
        end.status = NEVER_RAN;
        end.reason.clone_from(why);
    }
    if !end.reason.is_empty() {
        log.info(&format!(
            "container {} ended with status {}: {}",
            container.id, end.status, end.reason
        ));
        if let Some(file) = &container.termination_message {
            termination_message::write(file, &end.reason);
        }
    }
    // Its execs end with it, as they would with the first process of a pid namespace.
    for exec in container.execs.all() {
        let _ = exec.process.kill(libc::SIGKILL.unsigned_abs());
    }
    container.main.output_taken().await;
    if end.is_out_of_memory() {
        // Of an exec's end it is not told: containerd would give it as the reason of the container's own.
        events.publish(&TaskOOM {
            container_id: container.id.clone(),
            ..TaskOOM::default()
        });
    }
    ended(&container, &container.main, &end, &events);
}

/// The one task that moves an exec to Stopped.
pub async fn watch_exec(container: Arc<Container>, exec: Arc<Exec>, events: Events, log: Log) {
    let Some(mut end) = exec.process.reaped().await else {
        return;
    };
    container.explain_oom_kill(&exec.process, &mut end);
    if !end.reason.is_empty() {
        log.info(&format!(
            "exec {} of container {} ended with status {}: {}",
            exec.process.id, container.id, end.status, end.reason
        ));
    }
    exec.process.output_taken().await;
    ended(&container, &exec.process, &end, &events);
}

fn ended(container: &Container, process: &Process, end: &End, events: &Events) {
    let exit = Exit {
        status: end.status.into(),
        at: now(),
    };
    let counts = process.has_run() || end.is_out_of_memory();
    if container.start_timer.is_some() && counts {
        count::ended(&container.counters, process.pid(), end);
        container.count_refused();
    }
    process.stop();
    events.publish(&TaskExit {
        container_id: container.id.clone(),
        id: process.id.clone(),
        pid: process.pid(),
        exit_status: exit.status,
        exited_at: Some(exit.at.clone()).into(),
        ..TaskExit::default()
    });
    process.announce(exit);
}

/// Announces an exec that runs.
pub fn exec_started(container: &Container, exec: &Exec, events: &Events) {
    events.publish(&TaskExecStarted {
        container_id: container.id.clone(),
        exec_id: exec.process.id.clone(),
        pid: exec.process.pid(),
        ..TaskExecStarted::default()
    });
}

/// The status of a program that could not be run: what the kubelet has for a container that could not be started.
const NEVER_RAN: u8 = 128;
