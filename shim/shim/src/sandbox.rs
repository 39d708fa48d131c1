//! The pod's own container: its cgroup, the holder of its namespaces, and a spare guest.

use std::sync::Arc;

use containerd_shim_protos::api;
use slipway_cgroup::Registration;
use slipway_launch::StartError;
use slipway_protocol::Timeline;
use slipway_spec::{Namespace, Plan, Role};

use crate::container::Container;
use crate::new_cgroup::NewCgroup;
use crate::pod::{Pod, Sandbox};
use crate::process::{OsProcess, Process};
use crate::stdio::{self, Paths};
use crate::{holder, oom_score};

/// Makes the sandbox while containerd reads the answer of `start` and connects: its bundle is there before the shim
/// is. What fails is Create's to tell.
pub fn make_early(pod: &Pod) {
    let steps = Timeline::begin();
    if let Ok(plan) = slipway_spec::read(&pod.bundle)
        && plan.role == Role::Sandbox
    {
        pod.keep_early(make(pod, &pod.group, plan, steps));
    }
}

/// Makes it; nothing of it is containerd's yet.
pub fn make(
    pod: &Pod,
    id: &str,
    plan: Plan,
    mut steps: Timeline,
) -> std::result::Result<Sandbox, StartError> {
    if let Some(why) = &plan.unsupported {
        return Err(StartError::Refused(why.clone()));
    }
    let mut cgroup = NewCgroup::new(pod.cgroup_of(id, &plan), None);
    steps.mark("spec");
    cgroup.create(&plan)?;
    steps.mark("cgroup");
    let holder = holder::hold(&plan, &cgroup.entry()?).map_err(StartError::Refused)?;
    oom_score::set(&plan, holder.pid);
    let register = |path| Registration::begin(path, holder.pid, plan.resources.cpu_shares);
    let asked = plan.cgroup.as_ref().map(register).transpose();
    let asked = asked.map_err(std::io::Error::other)?.flatten();
    let holder = OsProcess::holder(holder)?;
    steps.mark("holder");
    match slipway_launch::spawn(&pod.install, &Namespace::New, &cgroup.entry()?) {
        Ok(spare) => pod.keep_spare(spare),
        // The container's own attempt will say it to the one who can mend it.
        Err(e) => pod.log.error(&format!("spare guest: {e}")),
    }
    steps.mark("spare");
    if let Some(asked) = asked {
        asked.finish().map_err(std::io::Error::other)?;
        steps.mark("systemd");
    }
    Ok(Sandbox {
        plan,
        cgroup,
        holder,
        steps,
    })
}

/// Create of it, where it was made.
pub async fn create(
    pod: &Pod,
    request: &api::CreateTaskRequest,
    sandbox: std::result::Result<Sandbox, StartError>,
) -> std::result::Result<Arc<Container>, StartError> {
    let mut sandbox = sandbox?;
    wait_for_spare(pod).await;
    sandbox.steps.mark("engine");
    pod.log_steps(request, &sandbox.steps);
    let main = Process::new(&request.id, Paths::of(request), false);
    main.attach(sandbox.holder, None, (None, stdio::ShimStreams::default()));
    Ok(pod.new_container(request, &sandbox.plan, sandbox.cgroup.keep(), main, None))
}

/// A sandbox is ready when its guest is: what loads while containerd creates the container takes one of two
/// processors from it.
async fn wait_for_spare(pod: &Pod) {
    let Some(spare) = pod.take_spare() else {
        return;
    };
    match spare.waiting().await {
        Ok(()) => pod.keep_spare(spare),
        // The container's own attempt will say it to the one who can mend it.
        Err(e) => pod.log.error(&format!("spare guest: {e}")),
    }
}
