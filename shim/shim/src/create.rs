//! Create: from a bundle to a container of the pod.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use slipway_counters::Counter;
use slipway_launch::{Compiler, Guest, Helpers, LaunchOptions, StartError};
use slipway_protocol::{Budget, Mount, Timeline};
use slipway_spec::{Namespace, Plan, Role};

use crate::claims::Claim;
use crate::container::Container;
use crate::count::StartTimer;
use crate::error::{self, Result};
use crate::new_cgroup::NewCgroup;
use crate::pod::{Member, Pod};
use crate::process::{OsProcess, Process};
use crate::stdio::{self, Paths};
use crate::{delegate, oom_score, sandbox};

/// How long Create waits for a compile. Nobody can take back a start that the kubelet waits for, so a longer compile goes on
/// in a container that runs, and can be stopped.
const COMPILE_PATIENCE: Duration = Duration::from_secs(5);

/// Create: the sandbox, a Wasm container, or, where the entrypoint turns out to be a Linux program, the delegate's.
pub async fn create(
    pod: &Arc<Pod>,
    request: &api::CreateTaskRequest,
    context: &TtrpcContext,
) -> Result<u32> {
    let claim = pod.claim(&request.id)?;
    if !Path::new(&request.bundle).is_absolute() {
        return Err(error::invalid(format!(
            "bundle {:?} of container {:?}: must be an absolute path",
            request.bundle, request.id
        )));
    }
    let early = pod.take_early();
    let created = match early.filter(|_| request.id == pod.group) {
        Some(made) => sandbox::create(pod, request, made).await,
        None => create_read(pod, request, &claim).await,
    };
    let container = match created {
        Ok(container) => container,
        Err(StartError::NotWasm(what)) => {
            pod.log
                .debug(&format!("container {}: {what}: runc's", request.id));
            let over = pod.clone();
            let gone = move || over.end_if_over();
            let pid = pod.delegate.create(request, context, gone).await?;
            pod.add(&request.id, Member::Linux);
            return Ok(pid);
        }
        Err(e) => {
            pod.counters.count(Counter::StartFailures);
            return Err(error::start(&e));
        }
    };
    let pid = container.main.pid();
    publish(pod, request, pid);
    pod.add(&request.id, Member::Own(container));
    Ok(pid)
}

fn publish(pod: &Pod, request: &api::CreateTaskRequest, pid: u32) {
    let io = TaskIO {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
        ..TaskIO::default()
    };
    pod.events.publish(&TaskCreate {
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
    pod: &Pod,
    request: &api::CreateTaskRequest,
    claim: &Arc<Claim>,
) -> std::result::Result<Arc<Container>, StartError> {
    let refused = |e: &dyn std::fmt::Display| StartError::Refused(e.to_string());
    let asked = Instant::now();
    let steps = Timeline::begin();
    let plan = slipway_spec::read(Path::new(&request.bundle)).map_err(|e| refused(&e))?;
    check_target(pod, &plan).map_err(StartError::Refused)?;
    match plan.role {
        Role::Sandbox => {
            let made = sandbox::make(pod, &request.id, plan, steps);
            sandbox::create(pod, request, made).await
        }
        Role::Container => match create_wasm(pod, request, &plan, claim, steps, asked).await {
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
fn check_target(pod: &Pod, plan: &Plan) -> std::result::Result<(), String> {
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
    let members = pod.members();
    let mut own = members.iter().filter_map(|member| match member {
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

async fn create_wasm(
    pod: &Pod,
    request: &api::CreateTaskRequest,
    plan: &Plan,
    claim: &Arc<Claim>,
    mut steps: Timeline,
    asked: Instant,
) -> std::result::Result<Arc<Container>, StartError> {
    let mut cgroup = NewCgroup::new(pod.cgroup_of(&request.id, plan), Some(claim.clone()));
    steps.mark("spec");
    match lead_guest(pod, request, plan, &mut cgroup, steps, asked).await {
        Ok((main, guest)) => Ok(pod.new_container(request, plan, cgroup.keep(), main, Some(guest))),
        Err(e) => {
            cgroup.remove().await;
            Err(e)
        }
    }
}

/// Leads a guest to the container's module: the container's process, its memory budget and what is counted of its start.
async fn lead_guest(
    pod: &Pod,
    request: &api::CreateTaskRequest,
    plan: &Plan,
    cgroup: &mut NewCgroup,
    mut steps: Timeline,
    asked: Instant,
) -> std::result::Result<(Process, (Arc<Budget>, StartTimer)), StartError> {
    let compiler = Compiler::Queue(pod.queue(&plan.tenant));
    let guest = match spare(pod, plan) {
        Some(spare) => spare,
        None => pod.new_guest(plan, cgroup)?,
    };
    steps.mark("guest");
    let budget = Budget::new(plan.resources.memory_budget())?;
    let share = budget.share()?;
    let options = LaunchOptions {
        bundle: Path::new(&request.bundle),
        root_mounts: root_mounts(request, plan)?,
        cache_dir: &pod.cache_dir,
        cache_bytes: pod.cache_bytes,
        is_exec: false,
    };
    let helpers = Helpers {
        budget: &share,
        process: None,
        module: None,
        enter: || cgroup.enter(plan),
        layer: Some(pod.layer(&request.id, plan)),
        compiler: &compiler,
        counters: &pod.counters,
        patience: Some(COMPILE_PATIENCE),
    };
    let launch = slipway_launch::launch(&pod.install, plan, options);
    let resolved = slipway_launch::resolve(&guest, &launch, helpers)
        .await
        .map_err(|e| e.explained(|| cgroup.oom.as_mut()?.next_kill()))?;
    steps.append(resolved.steps);
    steps.mark("resolved");
    if let Some(why) = &plan.unsupported {
        return Err(StartError::Refused(why.clone()));
    }
    let streams = stdio::open(&Paths::of(request), request.terminal, plan.host_uid())
        .map_err(StartError::Refused)?;
    steps.mark("streams");
    pod.log_steps(request, &steps);
    let main = Process::new(&request.id, Paths::of(request), request.terminal);
    main.attach(OsProcess::Guest(guest), Some(share), streams);
    let start_timer = StartTimer::created(&pod.counters, asked, resolved.missed);
    Ok((main, (budget, start_timer)))
}

/// The guest that was started with the pod, where it fits.
fn spare(pod: &Pod, plan: &Plan) -> Option<Guest> {
    // Taken in any case: a pod whose first container cannot use it will not use it later.
    let spare = pod.take_spare();
    let spare = spare.filter(|_| plan.pid == Namespace::New)?;
    oom_score::set(plan, spare.pid());
    Some(spare)
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
