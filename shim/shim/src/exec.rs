//! Exec: a further process of a container that runs.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use containerd_shim_protos::api;
use containerd_shim_protos::events::task::TaskExecAdded;
use slipway_launch::{Compiler, Helpers, LaunchOptions, StartError};
use slipway_spec::Role;

use crate::container::{self, Container};
use crate::error::{self, Result};
use crate::execs::Exec;
use crate::new_cgroup::NewCgroup;
use crate::pod::Pod;
use crate::process::{OsProcess, Process};
use crate::stdio::{self, Paths};
use crate::{count, oom_score};

/// Exec: notes a further process of a running container; Start makes it.
pub fn add(pod: &Pod, container: &Container, request: &api::ExecProcessRequest) -> Result<()> {
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
    container.execs.add(Exec {
        process: Process::new(&request.exec_id, paths, request.terminal),
        plan,
    })?;
    pod.events.publish(&TaskExecAdded {
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
pub async fn start(
    pod: &Pod,
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
        let started = run(pod, container, exec).await;
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
        pod.events.clone(),
        pod.log.clone(),
    ));
    if let Err(e) = container.loaded(&exec.process).await {
        // It waits for its end; nobody else would end it.
        let _ = exec.process.kill(libc::SIGKILL.unsigned_abs());
        return Err(e);
    }
    // The cgroup is others', too.
    exec.process
        .transition(api::Status::CREATED, api::Status::RUNNING)?;
    exec.process.run(None)?;
    count::exec_started(&pod.counters, asked, exec.process.pid());
    container::exec_started(container, exec, &pod.events);
    Ok(())
}

async fn run(
    pod: &Pod,
    container: &Arc<Container>,
    exec: &Arc<Exec>,
) -> std::result::Result<(), StartError> {
    let plan = &exec.plan;
    let compiler = Compiler::Queue(pod.queue(&plan.tenant));
    let mut cgroup = NewCgroup::existing(container.cgroup.clone());
    let guest = pod.new_guest(plan, &mut cgroup)?;
    let process = container.main.directory()?;
    oom_score::raise_exec(guest.pid(), container.main.pid());
    let budget = container.new_share()?;
    let options = LaunchOptions {
        bundle: Path::new(&container.bundle),
        root_mounts: Vec::new(),
        cache_dir: &pod.cache_dir,
        cache_bytes: pod.cache_bytes,
        is_exec: true,
    };
    let helpers = Helpers {
        budget: &budget,
        process: Some(process.as_fd()),
        module: None,
        enter: || cgroup.enter(plan),
        layer: Some(pod.layer(&container.id, plan)),
        compiler: &compiler,
        counters: &pod.counters,
        patience: None,
    };
    let launch = slipway_launch::launch(&pod.install, plan, options);
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
    let streams = stdio::open(&exec.process.paths, exec.process.terminal, plan.host_uid())
        .map_err(StartError::Refused)?;
    exec.process
        .attach(OsProcess::Guest(guest), Some(budget), streams);
    Ok(())
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
