//! The spec's meaning, checked once.

use slipway_protocol::{Mount, Program};

use crate::annotations::{self, Annotations};
use crate::cgroups::{self, CgroupPath, Resources};
use crate::namespaces::{self, Namespace};
use crate::sysctl::{self, Holders, Sysctl};
use crate::user::UserNamespace;
use crate::{Error, oci, process, refused, seccomp, volumes};

#[cfg(test)]
mod tests;

pub(crate) const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
pub(crate) const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
pub(crate) const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
pub(crate) const SANDBOX_IMAGE: &str = "io.kubernetes.cri.podsandbox.image-name";
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// What the container is to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// The pod's own container: it holds the namespaces and runs nothing.
    Sandbox,
    /// A container, in a pod or alone.
    #[default]
    Container,
}

/// Everything that Slipway does for a container, decided.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Sandbox or container.
    pub role: Role,
    /// The pod's id, for a container of a pod.
    pub sandbox_id: Option<String>,
    /// Whose pod it is, for what pods of a node share: its Kubernetes namespace; empty without CRI.
    pub tenant: String,
    /// What the container runs. Bounds of its annotations (`slipway.dev/cpu-time`, `slipway.dev/stop`, `slipway.dev/compile`) and
    /// of linux.seccomp included.
    pub program: Program,
    /// A terminal is asked for.
    pub terminal: bool,
    /// Annotation `slipway.dev/ca-certificates: node`: the node's CA certificates, where the image has none.
    pub ca_certificates: bool,
    /// For the guest's /proc/self/oom_score_adj.
    pub oom_score_adj: Option<i32>,
    /// root.path; relative to the bundle.
    pub root_path: String,
    /// root.readonly.
    pub root_readonly: bool,
    /// Host name of a new uts namespace.
    pub hostname: String,
    /// Volumes, in order.
    pub mounts: Vec<Mount>,
    /// linux.mountLabel; volumes of tmpfs have it in their data.
    pub mount_label: String,
    /// Namespaces by kind.
    pub pid: Namespace,
    /// Network.
    pub network: Namespace,
    /// System V IPC and POSIX queues.
    pub ipc: Namespace,
    /// Host name.
    pub uts: Namespace,
    /// cgroup root.
    pub cgroup_ns: Namespace,
    /// The pod's user namespace; `None`: the host's.
    pub user: Option<UserNamespace>,
    /// linux.sysctl.
    pub sysctls: Vec<Sysctl>,
    /// Where the cgroup is; `None`: the caller's own.
    pub cgroup: Option<CgroupPath>,
    /// linux.resources.
    pub resources: Resources,
    /// Host path of the termination message's file, where the container has one mounted.
    pub termination_message: Option<String>,
    /// The first thing in the spec that a Wasm container cannot have. Not an error yet: the entrypoint may turn out to
    /// be a program for Linux, which goes to another runtime with its spec as it is.
    pub unsupported: Option<String>,
}

pub(crate) fn refuse(field: &str, reason: impl Into<String>) -> Error {
    Error::Field {
        field: field.into(),
        reason: reason.into(),
    }
}

impl Plan {
    /// The host's id of the program's user, who gets the terminal.
    pub fn host_uid(&self) -> u32 {
        let own = self.program.uid;
        let mapped = self.user.as_ref().and_then(|user| user.host_uid(own));
        mapped.unwrap_or(own)
    }

    /// The plan of a further process in this running container. Its namespaces' paths are relative to the directory in `/proc`
    /// of the container's own process: by then the number of one that has ended may be another's.
    ///
    /// # Errors
    /// [`Error::Json`] and [`Error::Field`].
    pub fn exec(&self, process: &[u8]) -> Result<Self, Error> {
        let process: oci::Process =
            serde_json::from_slice(process).map_err(|source| Error::Json {
                path: "the process to exec".into(),
                source,
            })?;
        process::check(&process)?;
        refused::in_process(&process)?;
        let own = &self.program;
        if own.apparmor_profile.is_empty() && !process.apparmor_profile.is_empty() {
            // The container's root is not where a profile's paths begin: that is seen to when a container is made.
            return Err(refuse(
                "process.apparmorProfile",
                "the container runs under no profile, and so do its execs; give it the profile when it is created",
            ));
        }
        let or_own = |given: &str, own: &str| match given {
            "" => own.to_string(),
            given => given.to_string(),
        };
        let rlimits = process.rlimits.iter().enumerate();
        let rlimits = rlimits
            .map(|(i, l)| process::rlimit(i, l))
            .collect::<Result<_, _>>()?;
        let join = |ns: &Namespace, name: &str| match ns {
            Namespace::Host => Namespace::Host,
            _ => Namespace::Path(format!("ns/{name}")),
        };
        let user = match &self.user {
            Some(user) => Some(user.of_exec(&process.user)?),
            None => None,
        };
        Ok(Self {
            terminal: process.terminal,
            program: Program {
                cpu_time: own.cpu_time,
                seccomp: own.seccomp.clone(),
                // As runc has it.
                apparmor_profile: or_own(&process.apparmor_profile, &own.apparmor_profile),
                selinux_label: or_own(&process.selinux_label, &own.selinux_label),
                with_parent: own.with_parent,
                compile_mode: own.compile_mode,
                // The container's stop is for its own program.
                drain: false,
                ..process::program(process, rlimits, self.ca_certificates)
            },
            mounts: Vec::new(),
            pid: join(&self.pid, "pid"),
            network: join(&self.network, "net"),
            ipc: join(&self.ipc, "ipc"),
            uts: join(&self.uts, "uts"),
            cgroup_ns: join(&self.cgroup_ns, "cgroup"),
            user,
            ..self.clone()
        })
    }
}

pub(crate) fn plan(mut spec: oci::Spec) -> Result<Plan, Error> {
    let annotation = |name: &str| spec.annotations.get(name).cloned();
    let role = match annotation(CONTAINER_TYPE).as_deref() {
        Some("sandbox") => Role::Sandbox,
        _ => Role::Container,
    };
    let process = spec.process.take().unwrap_or_default();
    if role == Role::Container {
        process::check(&process)?;
    }
    let mut unsupported = Unsupported(unsupported(&spec.hooks));
    unsupported.note(refused::in_process(&process));
    unsupported.note(refused::in_spec(&spec));
    let namespaces = namespaces::read(&spec.linux.namespaces, &mut unsupported);
    let [pid, network, ipc, uts, cgroup_ns, user] = namespaces;
    let holders = Holders {
        network: &network,
        ipc: &ipc,
        uts: &uts,
    };
    let sysctls = match role {
        Role::Sandbox => sysctl::read(&spec.linux.sysctl, &holders)?,
        Role::Container => {
            unsupported.note(sysctl::none(&spec.linux.sysctl));
            Vec::new()
        }
    };
    let user = unsupported
        .note(UserNamespace::of(user, &spec.linux))
        .flatten();
    if let Some(user) = &user {
        unsupported.note(user.check_ids(&process.user));
    }
    let mount_label = spec.linux.mount_label;
    let mounts: Vec<Mount> = spec
        .mounts
        .iter()
        .enumerate()
        .filter(|(_, m)| !volumes::is_kernel_mount(m))
        .filter_map(|(i, m)| unsupported.note(volumes::read(i, m, user.as_ref())))
        .map(|m| volumes::labelled(m, &mount_label))
        .collect();
    // The last one is what the program sees. Where it cannot write, nobody writes for it.
    let termination_message = mounts
        .iter()
        .rfind(|m| m.destination == "/dev/termination-log")
        .filter(|m| m.flags & libc::MS_RDONLY == 0)
        .map(|m| m.source.clone());
    let rlimits = process.rlimits.iter().enumerate();
    let rlimits = rlimits
        .filter_map(|(i, l)| unsupported.note(process::rlimit(i, l)))
        .collect();
    let Annotations {
        compile_mode,
        cpu_time,
        drain,
        ca_certificates,
    } = annotations::read(&spec.annotations, &mut unsupported)?;
    Ok(Plan {
        role,
        sandbox_id: annotation(SANDBOX_ID),
        tenant: annotation(SANDBOX_NAMESPACE).unwrap_or_default(),
        terminal: process.terminal,
        oom_score_adj: process.oom_score_adj,
        program: Program {
            cpu_time,
            drain,
            // A sandbox's holder runs no program.
            seccomp: match role {
                Role::Sandbox => None,
                Role::Container => unsupported
                    .note(seccomp::filter(&spec.linux.seccomp))
                    .flatten(),
            },
            compile_mode,
            ..process::program(process, rlimits, ca_certificates)
        },
        ca_certificates,
        root_path: spec.root.path,
        root_readonly: spec.root.readonly,
        hostname: spec.hostname,
        mounts,
        mount_label,
        pid,
        network,
        ipc,
        uts,
        cgroup_ns,
        user,
        sysctls,
        cgroup: cgroups::path(&spec.linux.cgroups_path)?,
        resources: unsupported
            .note(cgroups::resources(spec.linux.resources))
            .unwrap_or_default(),
        termination_message,
        unsupported: unsupported.0.map(|e| e.to_string()),
    })
}

/// Collects the first refusal.
pub(crate) struct Unsupported(Option<Error>);

impl Unsupported {
    /// What was read; a refusal is kept where it is the first.
    pub(crate) fn note<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        result.map_err(|e| self.0.get_or_insert(e)).ok()
    }
}

fn unsupported(hooks: &Option<serde_json::Value>) -> Option<Error> {
    if hooks
        .as_ref()
        .and_then(|h| h.as_object())
        .is_some_and(|h| !h.is_empty())
    {
        return Some(refuse(
            "hooks",
            "hooks run programs of the node inside the container; a Wasm container has no place for them. Remove them (device plugins and CDI devices add them)",
        ));
    }
    None
}
