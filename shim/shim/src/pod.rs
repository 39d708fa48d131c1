//! A pod: its members, what they share, and its end.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use containerd_shim_protos::api;
use containerd_shim_protos::events::task::TaskDelete;
use slipway_cgroup::{Cgroup, OomWatch};
use slipway_counters::Counters;
use slipway_launch::{Client, Guest, Install, LayerSource, StartError};
use slipway_protocol::{Budget, Timeline};
use slipway_spec::{Plan, Role};
use tokio::sync::Notify;

use crate::claims::{Claim, Claims};
use crate::container::{Container, Parts};
use crate::count::StartTimer;
use crate::delegate::Delegate;
use crate::error::{self, Result};
use crate::events::Events;
use crate::log::Log;
use crate::new_cgroup::NewCgroup;
use crate::process::{Exit, OsProcess, Process};
use crate::settings::Settings;
use crate::{members, oom_score};

/// Where artefacts are cached, unless `SLIPWAY_CACHE_DIR` says otherwise.
const CACHE_DIR: &str = "/var/lib/slipway/cache";
/// Bound of the cache in bytes, unless `SLIPWAY_CACHE_BYTES` or the handler's option `CacheBytes` says otherwise.
const CACHE_BYTES: u64 = 10 << 30;

/// A container by who runs it.
#[derive(Clone)]
pub enum Member {
    /// Ours.
    Own(Arc<Container>),
    /// The node's runc shim's.
    Linux,
}

/// The pod's own container, made and not yet asked for.
pub struct Sandbox {
    /// What it was made from.
    pub plan: Plan,
    /// Where all of the pod is accounted.
    pub cgroup: NewCgroup,
    /// The process that holds its namespaces.
    pub holder: OsProcess,
    /// How long what took.
    pub steps: Timeline,
}

/// The pod.
pub struct Pod {
    /// containerd's namespace.
    pub namespace: String,
    /// Its sandbox's id.
    pub group: String,
    /// The sandbox's bundle.
    pub bundle: PathBuf,
    /// containerd's gRPC address.
    pub grpc: String,
    /// Where Slipway's programs are.
    pub install: Install,
    /// The directory of the cache.
    pub cache_dir: String,
    /// Its bound.
    pub cache_bytes: u64,
    /// Events to containerd.
    pub events: Events,
    /// The shim's log.
    pub log: Log,
    /// The node's counters.
    pub counters: Counters,
    members: Mutex<HashMap<String, Member>>,
    /// Ids of members that are being created.
    creating: Claims,
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Never held across an await.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pod {
    /// One without members.
    pub fn new(settings: Settings) -> Self {
        let env = |name: &str| std::env::var(name).ok();
        let events = Events::new(&settings.ttrpc, &settings.namespace, settings.log.clone());
        Self {
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
            creating: Claims::default(),
            early: Mutex::default(),
            spare: Mutex::default(),
            over: AtomicBool::new(false),
            done: Notify::new(),
        }
    }

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

    /// All of them, as they are now.
    pub fn members(&self) -> Vec<Member> {
        lock(&self.members).values().cloned().collect()
    }

    /// One more, which was created.
    pub fn add(&self, id: &str, member: Member) {
        lock(&self.members).insert(id.into(), member);
    }

    /// Takes an id for the one Create that it may have.
    pub fn claim(&self, id: &str) -> Result<Arc<Claim>> {
        let known = lock(&self.members).contains_key(id);
        let claim = (!known).then(|| self.creating.take(id)).flatten();
        claim.ok_or_else(|| error::exists(id))
    }

    /// The cgroups of Creates that go on when the shim ends, and of containers that have come to be since that was decided: nobody else
    /// knows of them.
    pub fn unfinished(&self) -> Vec<Cgroup> {
        let members = self.members();
        let own = members.iter().filter_map(|member| match member {
            Member::Own(container) => container.cgroup.clone(),
            Member::Linux => None,
        });
        own.chain(self.creating.cgroups()).collect()
    }

    /// Keeps the sandbox until its Create comes.
    pub fn keep_early(&self, sandbox: std::result::Result<Sandbox, StartError>) {
        *lock(&self.early) = Some(sandbox);
    }

    /// Takes it back.
    pub fn take_early(&self) -> Option<std::result::Result<Sandbox, StartError>> {
        lock(&self.early).take()
    }

    /// Keeps the spare guest until a container comes.
    pub fn keep_spare(&self, guest: Guest) {
        *lock(&self.spare) = Some(guest);
    }

    /// Takes it back.
    pub fn take_spare(&self) -> Option<Guest> {
        lock(&self.spare).take()
    }

    /// Where a container's module is when it is no file of the root file system.
    pub fn layer<'a>(&'a self, container: &'a str, plan: &'a Plan) -> LayerSource<'a> {
        LayerSource {
            install: &self.install,
            address: &self.grpc,
            namespace: &self.namespace,
            container,
            entrypoint: plan.program.args.first().map_or("", String::as_str),
        }
    }

    /// The node's compile queue, for pods of a Kubernetes namespace, as this pod's log hears of it.
    pub fn queue(&self, tenant: &str) -> Client {
        Client {
            install: self.install.clone(),
            cache_dir: self.cache_dir.clone(),
            cache_bytes: self.cache_bytes,
            tenant: tenant.into(),
            progress: {
                let log = self.log.clone();
                Arc::new(move |text: &str| log.info(text))
            },
        }
    }

    /// The cgroup of a container that is to be made, noted in the sandbox's bundle for `delete` after a crash: containerd
    /// calls it for the sandbox only.
    pub fn cgroup_of(&self, id: &str, plan: &Plan) -> Option<Cgroup> {
        let cgroup = plan.cgroup.as_ref().map(Cgroup::new);
        let path = cgroup.as_ref().map(Cgroup::path).unwrap_or_default();
        if let Err(e) = members::note(&self.bundle, id, &path) {
            self.log.error(&format!("record of {id}: {e}"));
        }
        cgroup
    }

    /// A container of the pod in state Created.
    pub fn new_container(
        &self,
        request: &api::CreateTaskRequest,
        plan: &Plan,
        (cgroup, oom): (Option<Cgroup>, Option<OomWatch>),
        main: Process,
        guest: Option<(Arc<Budget>, StartTimer)>,
    ) -> Arc<Container> {
        let (budget, start_timer) = guest.unzip();
        let parts = Parts {
            id: request.id.clone(),
            bundle: request.bundle.clone(),
            plan: plan.clone(),
            cgroup,
            oom,
            main,
            budget,
            counters: self.counters.clone(),
            start_timer,
        };
        Container::new(parts, self.events.clone(), self.log.clone())
    }

    /// A new guest, born in the container's cgroup: what its engine takes is the container's.
    pub fn new_guest(&self, plan: &Plan, cgroup: &mut NewCgroup) -> std::io::Result<Guest> {
        cgroup.create(plan)?;
        cgroup.inside = true;
        let guest = slipway_launch::spawn(&self.install, &plan.pid, &cgroup.entry()?)?;
        oom_score::set(plan, guest.pid());
        Ok(guest)
    }

    /// Has the log of debugging tell how long what took.
    pub fn log_steps(&self, request: &api::CreateTaskRequest, steps: &Timeline) {
        self.log
            .debug(&format!("created {}: microseconds: {steps}", request.id));
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
    pub fn end_if_over(&self) {
        if self.over.load(Ordering::Relaxed) && self.is_empty() {
            self.done.notify_one();
        }
    }

    /// Waits for its end.
    pub async fn over(&self) {
        self.done.notified().await;
    }
}
