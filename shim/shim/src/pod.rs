//! A pod: its containers, what they share, and the shim's life.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::events::task::{TaskCreate, TaskDelete, TaskExecAdded, TaskIO};
use slipway_cgroup::{Cgroup, OomWatch, Registration};
use slipway_counters::{Counter, Counters};
use slipway_launch::{
    Client, Compiler, Guest, Helpers, Install, LayerSource, StartError, Surroundings,
};
use slipway_protocol::{Budget, Mount, Timeline};
use slipway_spec::{Namespace, Plan, Role};
use slipway_sys::CgroupEntry;
use tokio::sync::Notify;

use crate::container::{self, Container, Exec, Parts};
use crate::count::{self, Begun};
use crate::delegate::{self, Delegate};
use crate::error::{self, Result};
use crate::events::Events;
use crate::log::Log;
use crate::process::{Body, Exit, Process};
use crate::stdio::{self, Paths};
use crate::{cleanup, sandbox, service};

/// Where artefacts are cached, unless `SLIPWAY_CACHE_DIR` says otherwise.
const CACHE_DIR: &str = "/var/lib/slipway/cache";
/// Bound of the cache in bytes, unless `SLIPWAY_CACHE_BYTES` or the handler's option `CacheBytes` says otherwise.
const CACHE_BYTES: u64 = 10 << 30;
/// How long Create waits for a compile. Nobody can take back a start that the kubelet waits for, so a longer compile goes on
/// in a container that runs, and can be stopped.
const COMPILE_PATIENCE: Duration = Duration::from_secs(5);

/// What `start` knows.
pub struct Settings {
    /// Bound of the cache, from the handler's options.
    pub cache_bytes: Option<u64>,
    /// containerd's namespace.
    pub namespace: String,
    /// The pod's id.
    pub group: String,
    /// containerd's ttrpc address.
    pub ttrpc: String,
    /// containerd's gRPC address.
    pub grpc: String,
    /// The bundle of the container that started the shim: the sandbox's.
    pub bundle: PathBuf,
    /// The shim's log.
    pub log: Log,
    /// The pod's socket.
    pub listener: UnixListener,
}

/// A container by who runs it.
#[derive(Clone)]
pub enum Member {
    /// Ours.
    Own(Arc<Container>),
    /// The node's runc shim's.
    Linux,
}

/// The pod's own container, made and not yet asked for.
struct Sandbox {
    plan: Plan,
    made: Made,
    holder: Body,
    steps: Timeline,
}

/// The Create of a member, for as long as it goes on, and what it has begun is taken back.
struct Claim(Arc<Pod>, String);

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.0.creating).remove(&self.1);
    }
}

/// The pod.
pub struct Pod {
    namespace: String,
    /// Its sandbox's id.
    group: String,
    bundle: PathBuf,
    grpc: String,
    install: Install,
    cache_dir: String,
    cache_bytes: u64,
    /// Events to containerd.
    pub events: Events,
    /// The shim's log.
    pub log: Log,
    /// The node's counters.
    counters: Counters,
    members: Mutex<HashMap<String, Member>>,
    /// Ids of members that are being created.
    creating: Mutex<HashSet<String>>,
    /// The sandbox, until its Create comes for it.
    early: Mutex<Option<std::result::Result<Sandbox, StartError>>>,
    /// A guest that was started when the pod was, and has its engine loaded when the first container comes.
    spare: Mutex<Option<Guest>>,
    /// The node's runc shim, once it is needed.
    pub delegate: Delegate,
    /// Shutdown has come when the sandbox was gone and others were left.
    over: AtomicBool,
    done: Notify,
}

/// Serves a pod until containerd says that it is over.
pub fn serve(settings: Settings) -> std::result::Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|e| format!("runtime: {e}"))?;
    let served = runtime.block_on(async {
        let env = |name: &str| std::env::var(name).ok();
        let events = Events::new(&settings.ttrpc, &settings.namespace, settings.log.clone());
        let pod = Arc::new(Pod {
            delegate: Delegate::new(&settings, events.clone()),
            events,
            namespace: settings.namespace,
            group: settings.group,
            bundle: settings.bundle,
            grpc: settings.grpc,
            install: Install::locate(),
            cache_dir: env("SLIPWAY_CACHE_DIR").unwrap_or_else(|| CACHE_DIR.into()),
            cache_bytes: env("SLIPWAY_CACHE_BYTES")
                .and_then(|s| s.parse().ok())
                .or(settings.cache_bytes)
                .unwrap_or(CACHE_BYTES),
            log: settings.log,
            counters: Counters::new(Path::new(slipway_counters::DIR)),
            members: Mutex::default(),
            creating: Mutex::default(),
            early: Mutex::default(),
            spare: Mutex::default(),
            over: AtomicBool::new(false),
            done: Notify::new(),
        });
        pod.make_early();
        // What others have left in it is worked off when pods are started, whatever these wait for.
        let queue = pod.queue();
        tokio::spawn(async move { queue.resume().await });
        let mut server = service::listen(settings.listener, pod.clone()).await?;
        pod.done.notified().await;
        pod.delegate.stop().await;
        pod.events.flush().await;
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), server.shutdown()).await;
        drop(lock(&pod.spare).take());
        drop(lock(&pod.early).take());
        Ok(())
    });
    runtime.shutdown_background();
    served
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Never held across an await.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pod {
    /// A member by id.
    pub fn member(&self, id: &str) -> Result<Member> {
        let member = lock(&self.members).get(id).cloned();
        // One whose Create was given up in its last moment.
        let linux = || self.delegate.has(id).then_some(Member::Linux);
        member
            .or_else(linux)
            .ok_or_else(|| error::not_found(format!("container {id}")))
    }

    fn is_empty(&self) -> bool {
        lock(&self.members).is_empty() && self.delegate.is_empty()
    }

    /// Create: the sandbox, a Wasm container, or, where the entrypoint turns out to be a Linux program, the delegate's.
    pub async fn create(
        self: &Arc<Self>,
        request: &api::CreateTaskRequest,
        context: service::Forward<'_>,
    ) -> Result<u32> {
        let claim = self.claim(&request.id)?;
        if !Path::new(&request.bundle).is_absolute() {
            return Err(error::invalid(format!(
                "bundle {:?} of container {:?}: must be an absolute path",
                request.bundle, request.id
            )));
        }
        let early = lock(&self.early).take();
        let created = match early.filter(|_| request.id == self.group) {
            Some(sandbox) => self.create_sandbox(request, sandbox).await,
            None => self.create_read(request, &claim).await,
        };
        let container = match created {
            Ok(container) => container,
            Err(StartError::NotWasm(what)) => {
                self.log
                    .debug(&format!("container {}: {what}: runc's", request.id));
                let pod = self.clone();
                let gone = move || pod.end_if_over();
                let pid = self.delegate.create(request, context, gone).await?;
                lock(&self.members).insert(request.id.clone(), Member::Linux);
                return Ok(pid);
            }
            Err(e) => {
                self.counters.count(Counter::StartFailures);
                return Err(error::start(&e));
            }
        };
        let pid = container.main.pid();
        self.publish_create(request, pid);
        lock(&self.members).insert(request.id.clone(), Member::Own(container));
        Ok(pid)
    }

    /// Takes an id for the one Create that it may have.
    fn claim(self: &Arc<Self>, id: &str) -> Result<Arc<Claim>> {
        if lock(&self.members).contains_key(id) || !lock(&self.creating).insert(id.into()) {
            return Err(error::exists(id));
        }
        Ok(Arc::new(Claim(self.clone(), id.into())))
    }

    fn publish_create(&self, request: &api::CreateTaskRequest, pid: u32) {
        let io = TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..TaskIO::default()
        };
        self.events.publish(&TaskCreate {
            container_id: request.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: Some(io).into(),
            checkpoint: request.checkpoint.clone(),
            pid,
            ..TaskCreate::default()
        });
    }

    /// What the bundle says: a sandbox that was not made early, or a Wasm container.
    async fn create_read(
        &self,
        request: &api::CreateTaskRequest,
        claim: &Arc<Claim>,
    ) -> std::result::Result<Arc<Container>, StartError> {
        let refused = |e: &dyn std::fmt::Display| StartError::Refused(e.to_string());
        let asked = Instant::now();
        let steps = Timeline::begin();
        let plan = slipway_spec::read(Path::new(&request.bundle)).map_err(|e| refused(&e))?;
        self.check_target(&plan).map_err(StartError::Refused)?;
        match plan.role {
            Role::Sandbox => {
                let sandbox = self.make_sandbox(&request.id, plan, steps);
                self.create_sandbox(request, sandbox).await
            }
            Role::Container => match self.create_wasm(request, &plan, claim, steps, asked).await {
                // Only a pod has a delegate.
                Err(e @ StartError::NotWasm(_)) if plan.sandbox_id.is_none() => Err(refused(&e)),
                Err(StartError::NotWasm(what)) if plan.user.is_some() => {
                    let options = request.options.clone().into_option();
                    let asked =
                        tokio::task::spawn_blocking(move || delegate::maps_ids(options.as_ref()));
                    match asked.await {
                        Ok(true) => Err(StartError::NotWasm(what)),
                        _ => Err(StartError::Refused(format!(
                            "{what}: the node's runc cannot map the ids of mounts for a user namespace: install runc 1.2 or later or crun, and name it by the handler's option BinaryName; or set hostUsers: true"
                        ))),
                    }
                }
                created => created,
            },
        }
    }

    /// Refuses a container, of whatever kind, that would share the pid namespace of another (`kubectl debug --target`) whose
    /// program does not run yet: until its module is loaded, its guest has the node's root and all power, and who is beside it
    /// may trace it.
    fn check_target(&self, plan: &Plan) -> std::result::Result<(), String> {
        let Namespace::Path(path) = &plan.pid else {
            return Ok(());
        };
        let inode = |stat: rustix::io::Result<rustix::fs::Stat>| stat.map(|s| s.st_ino).ok();
        let Some(joined) = inode(rustix::fs::stat(path)) else {
            return Ok(());
        };
        let is_joined = |main: &Process| {
            let own = main.directory().ok();
            let flags = rustix::fs::AtFlags::empty();
            own.and_then(|own| inode(rustix::fs::statat(own, "ns/pid", flags))) == Some(joined)
        };
        let members = lock(&self.members);
        let mut own = members.values().filter_map(|member| match member {
            Member::Own(container) if container.plan.role == Role::Container => Some(container),
            _ => None,
        });
        match own.find(|c| !c.main.has_run() && is_joined(&c.main)) {
            Some(target) => Err(format!(
                "linux.namespaces: {path}: the module of container {} is still being compiled: share its processes when it runs",
                target.id
            )),
            None => Ok(()),
        }
    }

    /// Makes the sandbox while containerd reads the answer of `start` and connects: its bundle is there before the shim
    /// is. What fails is Create's to tell.
    fn make_early(&self) {
        let steps = Timeline::begin();
        if let Ok(plan) = slipway_spec::read(&self.bundle)
            && plan.role == Role::Sandbox
        {
            *lock(&self.early) = Some(self.make_sandbox(&self.group, plan, steps));
        }
    }

    fn make_sandbox(
        &self,
        id: &str,
        plan: Plan,
        mut steps: Timeline,
    ) -> std::result::Result<Sandbox, StartError> {
        if let Some(why) = &plan.unsupported {
            return Err(StartError::Refused(why.clone()));
        }
        let mut made = Made::new(self.cgroup_of(id, &plan), None);
        steps.mark("spec");
        made.create(&plan)?;
        steps.mark("cgroup");
        let holder = sandbox::hold(&plan, &made.entry()?).map_err(StartError::Refused)?;
        set_oom_score(&plan, holder.pid);
        let register = |path| Registration::begin(path, holder.pid, plan.resources.cpu_shares);
        let asked = plan.cgroup.as_ref().map(register).transpose();
        let asked = asked.map_err(std::io::Error::other)?.flatten();
        let holder = Body::holder(holder)?;
        steps.mark("holder");
        match slipway_launch::spawn(&self.install, &Namespace::New, &made.entry()?) {
            Ok(spare) => *lock(&self.spare) = Some(spare),
            // The container's own attempt will say it to the one who can mend it.
            Err(e) => self.log.error(&format!("spare guest: {e}")),
        }
        steps.mark("spare");
        if let Some(asked) = asked {
            asked.finish().map_err(std::io::Error::other)?;
            steps.mark("systemd");
        }
        Ok(Sandbox {
            plan,
            made,
            holder,
            steps,
        })
    }

    async fn create_sandbox(
        &self,
        request: &api::CreateTaskRequest,
        sandbox: std::result::Result<Sandbox, StartError>,
    ) -> std::result::Result<Arc<Container>, StartError> {
        let mut sandbox = sandbox?;
        self.wait_for_spare().await;
        sandbox.steps.mark("engine");
        self.log_steps(request, &sandbox.steps);
        let main = Process::new(&request.id, paths(request), false);
        main.embody(sandbox.holder, None, (None, stdio::Kept::default()));
        Ok(self.container(request, &sandbox.plan, sandbox.made.keep(), main, None))
    }

    fn log_steps(&self, request: &api::CreateTaskRequest, steps: &Timeline) {
        self.log
            .debug(&format!("created {}: microseconds: {steps}", request.id));
    }

    async fn create_wasm(
        &self,
        request: &api::CreateTaskRequest,
        plan: &Plan,
        claim: &Arc<Claim>,
        mut steps: Timeline,
        asked: Instant,
    ) -> std::result::Result<Arc<Container>, StartError> {
        let mut made = Made::new(self.cgroup_of(&request.id, plan), Some(claim.clone()));
        steps.mark("spec");
        match self
            .lead_guest(request, plan, &mut made, steps, asked)
            .await
        {
            Ok((main, guest)) => Ok(self.container(request, plan, made.keep(), main, Some(guest))),
            Err(e) => {
                made.remove().await;
                Err(e)
            }
        }
    }

    /// Leads a guest to the container's module: the container's process, its memory budget and what is counted of its start.
    async fn lead_guest(
        &self,
        request: &api::CreateTaskRequest,
        plan: &Plan,
        made: &mut Made,
        mut steps: Timeline,
        asked: Instant,
    ) -> std::result::Result<(Process, (Arc<Budget>, Begun)), StartError> {
        let compiler = Compiler::Queue(self.queue());
        let guest = match self.spare(plan) {
            Some(spare) => spare,
            None => self.guest(plan, made)?,
        };
        steps.mark("guest");
        let budget = Budget::new(plan.resources.memory_budget())?;
        let share = budget.share()?;
        let around = Surroundings {
            bundle: Path::new(&request.bundle),
            root_mounts: root_mounts(request, plan)?,
            cache_dir: &self.cache_dir,
            cache_bytes: self.cache_bytes,
            is_exec: false,
        };
        let helpers = Helpers {
            budget: &share,
            process: None,
            module: None,
            enter: || made.enter(plan),
            layer: Some(self.layer(&request.id, plan)),
            compiler: &compiler,
            counters: &self.counters,
            patience: Some(COMPILE_PATIENCE),
        };
        let launch = slipway_launch::launch(&self.install, plan, around);
        let resolved = slipway_launch::resolve(&guest, &launch, helpers)
            .await
            .map_err(|e| e.explained(|| made.oom.as_mut()?.next_kill()))?;
        steps.append(resolved.steps);
        steps.mark("resolved");
        if let Some(why) = &plan.unsupported {
            return Err(StartError::Refused(why.clone()));
        }
        let streams = stdio::open(&paths(request), request.terminal, host_uid(plan))
            .map_err(StartError::Refused)?;
        steps.mark("streams");
        self.log_steps(request, &steps);
        let main = Process::new(&request.id, paths(request), request.terminal);
        main.embody(Body::Guest(guest), Some(share), streams);
        let begun = Begun::created(&self.counters, asked, resolved.missed);
        Ok((main, (budget, begun)))
    }

    /// Where a container's module is when it is no file of the root file system.
    fn layer<'a>(&'a self, container: &'a str, plan: &'a Plan) -> LayerSource<'a> {
        LayerSource {
            install: &self.install,
            address: &self.grpc,
            namespace: &self.namespace,
            container,
            entrypoint: plan.program.args.first().map_or("", String::as_str),
        }
    }

    /// The node's compile queue, as this pod's log hears of it.
    fn queue(&self) -> Client {
        Client {
            install: self.install.clone(),
            cache_dir: self.cache_dir.clone(),
            cache_bytes: self.cache_bytes,
            progress: {
                let log = self.log.clone();
                Arc::new(move |text: &str| log.info(text))
            },
        }
    }

    fn container(
        &self,
        request: &api::CreateTaskRequest,
        plan: &Plan,
        (cgroup, oom): (Option<Cgroup>, Option<OomWatch>),
        main: Process,
        guest: Option<(Arc<Budget>, Begun)>,
    ) -> Arc<Container> {
        let (budget, begun) = guest.unzip();
        let parts = Parts {
            id: request.id.clone(),
            bundle: request.bundle.clone(),
            plan: plan.clone(),
            cgroup,
            oom,
            main,
            budget,
            counters: self.counters.clone(),
            begun,
        };
        Container::new(parts, self.events.clone(), self.log.clone())
    }

    /// Exec: notes a further process of a running container; Start makes it.
    pub fn add_exec(&self, container: &Container, request: &api::ExecProcessRequest) -> Result<()> {
        takes_execs(container)?;
        if container.plan.role == Role::Sandbox {
            return Err(error::unimplemented(
                "a sandbox has no programs and no root file system to exec in",
            ));
        }
        let plan = container
            .plan
            .exec(&request.spec.value)
            .map_err(error::invalid)?;
        let paths = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
        };
        container.add_exec(Exec {
            process: Process::new(&request.exec_id, paths, request.terminal),
            plan,
        })?;
        self.events.publish(&TaskExecAdded {
            container_id: container.id.clone(),
            exec_id: request.exec_id.clone(),
            ..TaskExecAdded::default()
        });
        Ok(())
    }

    /// Start of an exec: a new guest in the container's namespaces, cgroup and root file system.
    ///
    /// While the container's module is being compiled, a client without a deadline waits, as for a `postStart` hook. One with a
    /// deadline is told at once: a probe whose call fails does not count, and one that takes too long does.
    pub async fn start_exec(
        &self,
        container: &Arc<Container>,
        exec: &Arc<Exec>,
        deadline: bool,
    ) -> Result<()> {
        let asked = Instant::now();
        takes_execs(container)?;
        if deadline && !container.main.has_run() {
            return Err(error::precondition(format!(
                "container {}: its module is still being compiled: exec needs one that runs",
                container.id
            )));
        }
        let claim = exec.process.claim()?;
        let run = async {
            container.loaded(&container.main).await?;
            let started = self.run_exec(container, exec).await;
            started.map_err(|e| error::start(&e))
        };
        tokio::select! {
            biased;
            () = exec.process.doomed() => {
                return Err(error::precondition(format!("exec {} was killed while it was started", exec.process.id)));
            }
            started = run => started?,
        }
        claim.kept();
        tokio::spawn(container::watch_exec(
            container.clone(),
            exec.clone(),
            self.events.clone(),
            self.log.clone(),
        ));
        if let Err(e) = container.loaded(&exec.process).await {
            // It waits for its end; nobody else would end it.
            let _ = exec.process.kill(libc::SIGKILL.unsigned_abs());
            return Err(e);
        }
        // The cgroup is others', too.
        exec.process
            .turn(api::Status::CREATED, api::Status::RUNNING)?;
        exec.process.run(None)?;
        count::exec_started(&self.counters, asked, exec.process.pid());
        container::exec_started(container, exec, &self.events);
        Ok(())
    }

    async fn run_exec(
        &self,
        container: &Arc<Container>,
        exec: &Arc<Exec>,
    ) -> std::result::Result<(), StartError> {
        let plan = &exec.plan;
        let compiler = Compiler::Queue(self.queue());
        let mut made = Made::existing(container.cgroup.clone());
        let guest = self.guest(plan, &mut made)?;
        let process = container.main.directory()?;
        raise_oom_score(guest.pid(), container.main.pid());
        let budget = container.new_share()?;
        let around = Surroundings {
            bundle: Path::new(&container.bundle),
            root_mounts: Vec::new(),
            cache_dir: &self.cache_dir,
            cache_bytes: self.cache_bytes,
            is_exec: true,
        };
        let helpers = Helpers {
            budget: &budget,
            process: Some(process.as_fd()),
            module: None,
            enter: || made.enter(plan),
            layer: Some(self.layer(&container.id, plan)),
            compiler: &compiler,
            counters: &self.counters,
            patience: None,
        };
        let launch = slipway_launch::launch(&self.install, plan, around);
        let resolved = slipway_launch::resolve(&guest, &launch, helpers).await;
        resolved.map_err(|e| match e.explained(|| container.next_oom_kill()) {
            StartError::NoEntrypoint(what) => StartError::NoEntrypoint(format!(
                "exec: {what}. A Wasm container has no shell or tools: exec runs modules of its image"
            )),
            StartError::NotWasm(what) => StartError::Refused(format!(
                "exec: {what}: only modules run in a Wasm container"
            )),
            other => other,
        })?;
        let streams = stdio::open(&exec.process.paths, exec.process.terminal, host_uid(plan))
            .map_err(StartError::Refused)?;
        exec.process
            .embody(Body::Guest(guest), Some(budget), streams);
        Ok(())
    }

    /// A sandbox is ready when its guest is: what loads while containerd creates the container takes one of two
    /// processors from it.
    async fn wait_for_spare(&self) {
        let Some(spare) = lock(&self.spare).take() else {
            return;
        };
        match spare.waiting().await {
            Ok(()) => *lock(&self.spare) = Some(spare),
            // The container's own attempt will say it to the one who can mend it.
            Err(e) => self.log.error(&format!("spare guest: {e}")),
        }
    }

    /// The guest that was started with the pod, where it fits.
    fn spare(&self, plan: &Plan) -> Option<Guest> {
        // Taken in any case: a pod whose first container cannot use it will not use it later.
        let spare = lock(&self.spare).take();
        let spare = spare.filter(|_| plan.pid == Namespace::New)?;
        set_oom_score(plan, spare.pid());
        Some(spare)
    }

    /// A new guest, born in the container's cgroup: what its engine takes is the container's.
    fn guest(&self, plan: &Plan, made: &mut Made) -> std::io::Result<Guest> {
        made.create(plan)?;
        made.inside = true;
        let guest = slipway_launch::spawn(&self.install, &plan.pid, &made.entry()?)?;
        set_oom_score(plan, guest.pid());
        Ok(guest)
    }

    /// The cgroup of a container that is to be made, noted in the sandbox's bundle for `delete` after a crash: containerd
    /// calls it for the sandbox only.
    fn cgroup_of(&self, id: &str, plan: &Plan) -> Option<Cgroup> {
        let cgroup = plan.cgroup.as_ref().map(Cgroup::new);
        let path = cgroup.as_ref().map(Cgroup::path).unwrap_or_default();
        let file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.bundle.join(cleanup::MEMBERS));
        if let Err(e) = file.and_then(|mut f| f.write_all(format!("{id} {path}\n").as_bytes())) {
            self.log.error(&format!("record of {id}: {e}"));
        }
        cgroup
    }

    /// Delete: what a stopped or never started container leaves.
    pub async fn delete(&self, container: &Arc<Container>) -> Result<Exit> {
        let status = container.main.status();
        if matches!(status, api::Status::RUNNING | api::Status::PAUSED) {
            return Err(error::precondition(format!(
                "container {} is {status:?}: kill it first",
                container.id
            )));
        }
        let exit = container.destroy().await?;
        // Another Delete of the same container may have been faster and have told it, and another container have the id by now.
        let own = |m: &Member| matches!(m, Member::Own(own) if Arc::ptr_eq(own, container));
        let mut members = lock(&self.members);
        if !members.get(&container.id).is_some_and(own) {
            return Err(error::not_found(format!("container {}", container.id)));
        }
        members.remove(&container.id);
        drop(members);
        self.events.publish(&TaskDelete {
            container_id: container.id.clone(),
            pid: container.main.pid(),
            exit_status: exit.status,
            exited_at: Some(exit.at.clone()).into(),
            ..TaskDelete::default()
        });
        self.end_if_over();
        Ok(exit)
    }

    /// A Linux container is gone.
    pub fn forget(&self, id: &str) {
        lock(&self.members).remove(id);
        self.end_if_over();
    }

    /// Shutdown: only an empty pod ends. containerd 1.7 asks after every Delete, 2 after the sandbox's alone: where that
    /// went first, for its holder was killed, the last of the others ends the pod.
    pub fn shutdown(&self) {
        if self.is_empty() {
            self.done.notify_one();
        } else if !self.has_sandbox() {
            self.over.store(true, Ordering::Relaxed);
        }
    }

    fn has_sandbox(&self) -> bool {
        let sandbox = |m: &Member| matches!(m, Member::Own(c) if c.plan.role == Role::Sandbox);
        lock(&self.members).values().any(sandbox)
    }

    /// The answer to Delete is on its way before the last events are taken, for which the end waits.
    fn end_if_over(&self) {
        if self.over.load(Ordering::Relaxed) && self.is_empty() {
            self.done.notify_one();
        }
    }
}

/// A process can be added to a container that runs.
fn takes_execs(container: &Container) -> Result<()> {
    if container.main.status() != api::Status::RUNNING {
        return Err(error::precondition(format!(
            "container {} is {:?}: exec needs a running one",
            container.id,
            container.main.status()
        )));
    }
    Ok(())
}

fn paths(request: &api::CreateTaskRequest) -> Paths {
    Paths {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
    }
}

fn root_mounts(
    request: &api::CreateTaskRequest,
    plan: &Plan,
) -> std::result::Result<Vec<Mount>, StartError> {
    let mounts = request.rootfs.iter();
    mounts
        .map(|m| slipway_spec::parse_root(&m.type_, &m.source, &m.options, plan.user.as_ref()))
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| StartError::Refused(e.to_string()))
}

/// The host's id of the program's user, who gets the terminal.
fn host_uid(plan: &Plan) -> u32 {
    let mapped = plan
        .user
        .as_ref()
        .and_then(|user| user.host_uid(plan.program.uid));
    mapped.unwrap_or(plan.program.uid)
}

fn set_oom_score(plan: &Plan, pid: i32) {
    if let Some(score) = plan.oom_score_adj {
        // Lowering it needs CAP_SYS_RESOURCE, which a nested host may not have: the score is a wish then.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string());
    }
}

/// Where the kernel has to choose, an exec goes before the container's own program: a point is a thousandth of the limit, so
/// that it does whatever each of them takes, unless the program's score is above 0 already.
fn raise_oom_score(exec: i32, main: u32) {
    const MAX: i32 = 1000;
    let main = std::fs::read_to_string(format!("/proc/{main}/oom_score_adj"));
    let main: Option<i32> = main.ok().and_then(|score| score.trim().parse().ok());
    if let Some(main) = main {
        let score = main.saturating_add(MAX).min(MAX);
        // Fails only for a process that has ended.
        let _ = std::fs::write(format!("/proc/{exec}/oom_score_adj"), score.to_string());
    }
}

/// The cgroup of a container that does not exist yet: removed again unless it comes to exist.
struct Made {
    cgroup: Option<Cgroup>,
    /// The container's id is taken until the cgroup is gone: another of that id would be born in it, and killed. A sandbox has none: there
    /// is nobody else yet.
    claim: Option<Arc<Claim>>,
    /// The kernel's kills in it, since it was made.
    oom: Option<OomWatch>,
    created: bool,
    /// The guest was born in it.
    inside: bool,
    keep: bool,
}

impl Made {
    fn new(cgroup: Option<Cgroup>, claim: Option<Arc<Claim>>) -> Self {
        Self {
            cgroup,
            claim,
            oom: None,
            created: false,
            inside: false,
            keep: false,
        }
    }

    /// Another process's already, for an exec.
    fn existing(cgroup: Option<Cgroup>) -> Self {
        Self {
            cgroup,
            claim: None,
            oom: None,
            created: true,
            inside: true,
            keep: true,
        }
    }

    fn create(&mut self, plan: &Plan) -> std::io::Result<()> {
        if let Some(cgroup) = self.cgroup.as_ref().filter(|_| !self.created) {
            self.created = true;
            cgroup
                .create(&plan.resources)
                .map_err(std::io::Error::other)?;
            self.oom = Some(OomWatch::new(cgroup));
        }
        Ok(())
    }

    fn entry(&self) -> std::io::Result<CgroupEntry> {
        let entry = self.cgroup.as_ref().map(Cgroup::entry).transpose();
        Ok(entry.map_err(std::io::Error::other)?.unwrap_or_default())
    }

    /// Makes the cgroup for a guest that is not in it yet, and says how it gets there.
    fn enter(&mut self, plan: &Plan) -> std::result::Result<Vec<OwnedFd>, StartError> {
        self.create(plan)?;
        let cgroup = self.cgroup.as_ref().filter(|_| !self.inside);
        let files = cgroup.map(Cgroup::join).transpose();
        Ok(files.map_err(std::io::Error::other)?.unwrap_or_default())
    }

    fn keep(mut self) -> (Option<Cgroup>, Option<OomWatch>) {
        self.keep = true;
        (self.cgroup.take(), self.oom.take())
    }

    /// Removes it, and returns when it is gone: runc makes that of a Linux program anew.
    async fn remove(mut self) {
        if let Some(removal) = self.removal() {
            let _ = removal.await;
        }
    }

    /// Its removal, beside what the shim serves: what it holds may take seconds to leave it.
    fn removal(&mut self) -> Option<tokio::task::JoinHandle<()>> {
        let cgroup = self.cgroup.take().filter(|_| !self.keep)?;
        let Some(claim) = self.claim.take() else {
            let _ = cgroup.remove();
            return None;
        };
        Some(tokio::task::spawn_blocking(move || {
            let _ = cgroup.remove();
            drop(claim);
        }))
    }
}

/// Where the client of a Create has gone, too.
impl Drop for Made {
    fn drop(&mut self) {
        drop(self.removal());
    }
}
