//! The spec's meaning, checked once.

use std::collections::BTreeMap;

use slipway_protocol::{CA_CERTIFICATES, Mount, Program, Tier};

use crate::sysctl::{self, Holders, Sysctl};
use crate::user::{self, UserNamespace};
use crate::{Error, mount, oci, parse_options, refused, seccomp};

pub(crate) const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
pub(crate) const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
pub(crate) const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
pub(crate) const SANDBOX_IMAGE: &str = "io.kubernetes.cri.podsandbox.image-name";
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const COMPILE: &str = "slipway.dev/compile";
const CPU_TIME: &str = "slipway.dev/cpu-time";
const STOP: &str = "slipway.dev/stop";
const CA_ANNOTATION: &str = "slipway.dev/ca-certificates";

/// Environment variables and arguments together, in bytes: what execve(2) would take on Linux.
const MAX_ARGS_BYTES: usize = 2 << 20;

/// The file mode creation mask where the spec gives none, as other runtimes have it.
const UMASK: u32 = 0o022;

/// What the container is to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// The pod's own container: it holds the namespaces and runs nothing.
    Sandbox,
    /// A container, in a pod or alone.
    #[default]
    Container,
}

/// Where a process finds one of its namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Namespace {
    /// The host's.
    #[default]
    Host,
    /// A new one.
    New,
    /// The one behind this path.
    Path(String),
}

/// Where the container's cgroup lies, by the driver that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupPath {
    /// A path below each hierarchy's root.
    Cgroupfs(String),
    /// `slice:prefix:name`, as the systemd driver names a scope.
    Systemd {
        /// The slice, for example `kubepods-besteffort.slice`.
        slice: String,
        /// The unit's prefix.
        prefix: String,
        /// The unit's name.
        name: String,
    },
}

/// What of a block device is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Throttle {
    /// Bytes read.
    ReadBytes,
    /// Bytes written.
    WriteBytes,
    /// Reads.
    Reads,
    /// Writes.
    Writes,
}

/// Limits as the spec gives them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resources {
    /// memory.limit, bytes; `None` or negative: none.
    pub memory_limit: Option<i64>,
    /// memory.reservation (soft limit), bytes.
    pub memory_reservation: Option<i64>,
    /// memory.swap: memory and swap together, bytes.
    pub memory_swap: Option<i64>,
    /// cpu.shares.
    pub cpu_shares: Option<u64>,
    /// cpu.quota, microseconds a period; negative: none.
    pub cpu_quota: Option<i64>,
    /// cpu.period, microseconds.
    pub cpu_period: Option<u64>,
    /// cpuset.cpus.
    pub cpuset_cpus: Option<String>,
    /// cpuset.mems.
    pub cpuset_mems: Option<String>,
    /// pids.limit; 0 or negative: none.
    pub pids_limit: Option<i64>,
    /// cpu.burst, microseconds that may be saved up.
    pub cpu_burst: Option<u64>,
    /// cpu.idle; 1: runs when nothing else wants to.
    pub cpu_idle: Option<i64>,
    /// memory.swappiness; cgroup v1 alone has it.
    pub swappiness: Option<u64>,
    /// blockIO.weight, 10 to 1000.
    pub io_weight: Option<u16>,
    /// blockIO.weightDevice as (`major:minor`, weight).
    pub io_device_weights: Vec<(String, u16)>,
    /// The four lists of blockIO.throttle…Device as (what, `major:minor`, a second).
    pub io_throttles: Vec<(Throttle, String, u64)>,
    /// hugepageLimits as (page size, bytes).
    pub hugepages: Vec<(String, u64)>,
    /// Files of cgroup v2, written as they are.
    pub unified: BTreeMap<String, String>,
}

impl Resources {
    /// The memory limit as a budget: bytes, or none.
    pub fn memory_budget(&self) -> Option<u64> {
        self.memory_limit
            .and_then(|bytes| u64::try_from(bytes).ok())
            .filter(|bytes| *bytes > 0)
    }
}

/// Everything that Slipway does for a container, decided.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Sandbox or container.
    pub role: Role,
    /// The pod's id, for a container of a pod.
    pub sandbox_id: Option<String>,
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
        check_process(&process)?;
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
            .map(|(i, l)| rlimit(i, l))
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
                tier: own.tier,
                // The container's stop is for its own program.
                drain: false,
                ..program(process, rlimits, self.ca_certificates)
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
        check_process(&process)?;
    }
    let mut unsupported = Unsupported(unsupported(&spec.hooks));
    unsupported.note(refused::in_process(&process));
    unsupported.note(refused::in_spec(&spec));
    let namespaces = namespaces(&spec.linux.namespaces, &mut unsupported);
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
        .filter(|(_, m)| !is_kernel_mount(m))
        .filter_map(|(i, m)| unsupported.note(volume(i, m, user.as_ref())))
        .map(|m| labelled(m, &mount_label))
        .collect();
    // The last one is what the program sees. Where it cannot write, nobody writes for it.
    let termination_message = mounts
        .iter()
        .rfind(|m| m.destination == "/dev/termination-log")
        .filter(|m| m.flags & libc::MS_RDONLY == 0)
        .map(|m| m.source.clone());
    let ca_certificates = ca_certificates(annotation(CA_ANNOTATION).as_deref())?;
    let tier = tier(annotation(COMPILE).as_deref())?;
    let rlimits = process.rlimits.iter().enumerate();
    let rlimits = rlimits
        .filter_map(|(i, l)| unsupported.note(rlimit(i, l)))
        .collect();
    Ok(Plan {
        role,
        sandbox_id: annotation(SANDBOX_ID),
        terminal: process.terminal,
        oom_score_adj: process.oom_score_adj,
        program: Program {
            cpu_time: annotation(CPU_TIME).and_then(|text| unsupported.note(cpu_time(&text))),
            drain: annotation(STOP).is_some_and(|text| unsupported.note(drain(&text)).is_some()),
            // A sandbox's holder runs no program.
            seccomp: match role {
                Role::Sandbox => None,
                Role::Container => unsupported
                    .note(seccomp::filter(&spec.linux.seccomp))
                    .flatten(),
            },
            tier,
            ..program(process, rlimits, ca_certificates)
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
        cgroup: cgroup(&spec.linux.cgroups_path)?,
        resources: unsupported
            .note(resources(spec.linux.resources))
            .unwrap_or_default(),
        termination_message,
        unsupported: unsupported.0.map(|e| e.to_string()),
    })
}

/// A volume that is made new gets the container's label; those that are the node's have their own.
fn labelled(mut mount: Mount, label: &str) -> Mount {
    if mount.flags & libc::MS_BIND == 0 && !label.is_empty() {
        // A label has commas.
        let context = format!("context=\"{label}\"");
        mount.data = match mount.data.as_str() {
            "" => context,
            data => format!("{data},{context}"),
        };
    }
    mount
}

/// What a process's own fields say.
fn program(process: oci::Process, rlimits: Vec<(i32, u64, u64)>, ca_certificates: bool) -> Program {
    Program {
        args: process.args,
        env: environment(process.env, ca_certificates),
        cwd: match process.cwd.is_empty() {
            true => "/".into(),
            false => process.cwd,
        },
        uid: process.user.uid,
        gid: process.user.gid,
        groups: process.user.additional_gids,
        umask: Some(process.user.umask.unwrap_or(UMASK)),
        rlimits,
        apparmor_profile: process.apparmor_profile,
        selinux_label: process.selinux_label,
        ..Program::default()
    }
}

fn tier(text: Option<&str>) -> Result<Tier, Error> {
    match text {
        None | Some("auto") => Ok(Tier::Auto),
        Some("quick") => Ok(Tier::Quick),
        Some("full") => Ok(Tier::Full),
        Some(other) => Err(refuse(
            &format!("annotations[{COMPILE}]"),
            format!("{other:?} is not one of auto, quick, full"),
        )),
    }
}

/// Collects the first refusal.
struct Unsupported(Option<Error>);

impl Unsupported {
    fn note<T>(&mut self, result: Result<T, Error>) -> Option<T> {
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

/// Refuses what is no way to stop.
fn drain(text: &str) -> Result<(), Error> {
    match text {
        "drain" => Ok(()),
        _ => Err(refuse(
            &format!("annotations[{STOP}]"),
            format!("{text:?} is not drain; leave the annotation out to end at SIGTERM"),
        )),
    }
}

/// `90s`, `5m`, `2h` or a number of seconds.
fn cpu_time(text: &str) -> Result<u64, Error> {
    const UNITS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 3600), ("", 1)];
    let seconds = UNITS.iter().find_map(|(unit, seconds)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(*seconds).filter(|n| *n > 0)
    });
    seconds.ok_or_else(|| {
        refuse(
            &format!("annotations[{CPU_TIME}]"),
            format!(
                "{text:?} is no duration of whole seconds, at least one; examples: 90s, 5m, 2h"
            ),
        )
    })
}

/// Says whether the node's CA certificates are asked for.
fn ca_certificates(text: Option<&str>) -> Result<bool, Error> {
    match text {
        None => Ok(false),
        Some("node") => Ok(true),
        Some(other) => Err(refuse(
            &format!("annotations[{CA_ANNOTATION}]"),
            format!("{other:?} is not node; certificates of one's own come by a volume"),
        )),
    }
}

/// What TLS libraries ask for the file of CA certificates.
const CA_VARIABLE: &str = "SSL_CERT_FILE";

/// A program's environment; the variable names the CA certificates, unless it names others.
fn environment(mut env: Vec<String>, ca_certificates: bool) -> Vec<String> {
    let named = |v: &String| {
        v.split_once('=')
            .is_some_and(|(name, _)| name == CA_VARIABLE)
    };
    if ca_certificates && !env.iter().any(named) {
        env.push(format!("{CA_VARIABLE}={CA_CERTIFICATES}"));
    }
    env
}

fn check_process(process: &oci::Process) -> Result<(), Error> {
    if process.args.first().is_none_or(String::is_empty) {
        return Err(refuse(
            "process.args",
            "empty: the image has no entrypoint and the pod gives no command; name the module, for example command: [\"/app.wasm\"]",
        ));
    }
    if !process.cwd.is_empty() && !process.cwd.starts_with('/') {
        return Err(refuse(
            "process.cwd",
            format!("{:?} is not an absolute path", process.cwd),
        ));
    }
    let strings = process.args.iter().chain(&process.env);
    let bytes: usize = strings.clone().map(|s| s.len() + 1).sum();
    if bytes > MAX_ARGS_BYTES {
        return Err(refuse(
            "process.args and process.env",
            format!(
                "{bytes} bytes together, the limit is {MAX_ARGS_BYTES}; move large values into a ConfigMap volume"
            ),
        ));
    }
    if let Some(bad) = strings.clone().find(|s| s.contains('\0')) {
        return Err(refuse(
            "process.args and process.env",
            format!(
                "{:?} contains a NUL byte",
                bad.chars().take(40).collect::<String>()
            ),
        ));
    }
    for (field, value) in [
        ("process.apparmorProfile", &process.apparmor_profile),
        ("process.selinuxLabel", &process.selinux_label),
    ] {
        // The kernel would read no further, and find another name.
        if value.contains('\0') {
            return Err(refuse(field, format!("{value:?} contains a NUL byte")));
        }
    }
    Ok(())
}

/// Kernel file systems that every runtime adds and a WASI program must not see: whoever can write to
/// /proc/self/mem owns its engine's process. `/dev` itself is made by the guest.
fn is_kernel_mount(mount: &oci::Mount) -> bool {
    matches!(
        mount.kind.as_str(),
        "proc" | "sysfs" | "cgroup" | "cgroup2" | "devpts" | "mqueue"
    ) || (mount.destination == "/dev" && mount.kind == "tmpfs")
}

fn volume(index: usize, mount: &oci::Mount, user: Option<&UserNamespace>) -> Result<Mount, Error> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    if !mount.destination.starts_with('/') {
        return Err(refuse(
            &field("destination"),
            format!("{:?} is not an absolute path", mount.destination),
        ));
    }
    for (name, value) in [
        ("destination", &mount.destination),
        ("source", &mount.source),
    ] {
        if value.contains('\0') {
            return Err(refuse(&field(name), "contains a NUL byte"));
        }
    }
    let mut parsed = parse_options(
        &mount.kind,
        &mount.source,
        &mount.destination,
        &mount.options,
    );
    if parsed.flags & libc::MS_BIND == 0 && parsed.kind != "tmpfs" {
        return Err(refuse(
            &field("type"),
            format!(
                "{:?} at {} is not supported: bind mounts and tmpfs are",
                mount.kind, mount.destination
            ),
        ));
    }
    if let Some(option) = mount::unknown(&parsed) {
        return Err(refuse(
            &field("options"),
            format!("{option:?} at {} is not supported", mount.destination),
        ));
    }
    parsed.idmapped = user::is_mapped(index, mount, user)?;
    Ok(parsed)
}

fn namespaces(list: &[oci::Namespace], unsupported: &mut Unsupported) -> [Namespace; 6] {
    let mut found = [const { Namespace::Host }; 6];
    for (i, ns) in list.iter().enumerate() {
        let slot = match ns.kind.as_str() {
            "pid" => 0,
            "network" => 1,
            "ipc" => 2,
            "uts" => 3,
            "cgroup" => 4,
            "user" => 5,
            // A guest always has a mount namespace of its own.
            "mount" if ns.path.is_empty() => continue,
            other => {
                unsupported.note::<()>(Err(refuse(
                    &format!("linux.namespaces[{i}].type"),
                    format!("{other:?} (path {:?}) is not supported", ns.path),
                )));
                continue;
            }
        };
        found[slot] = if ns.path.is_empty() {
            Namespace::New
        } else {
            Namespace::Path(ns.path.clone())
        };
    }
    found
}

/// Names of getrlimit(2) and their numbers on Linux (asm-generic/resource.h).
const RLIMITS: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

fn rlimit(i: usize, limit: &oci::Rlimit) -> Result<(i32, u64, u64), Error> {
    let field = format!("process.rlimits[{i}].type");
    let n = RLIMITS
        .iter()
        .position(|name| *name == limit.kind)
        .ok_or_else(|| {
            refuse(
                &field,
                format!("{:?} is not a resource of getrlimit(2)", limit.kind),
            )
        })?;
    if RLIMITS[n] == "RLIMIT_AS" {
        return Err(refuse(
            &field,
            "RLIMIT_AS cannot be honoured: the engine reserves 12 GiB of address space per memory. Use the memory limit",
        ));
    }
    Ok((n as i32, limit.soft, limit.hard))
}

fn cgroup(path: &str) -> Result<Option<CgroupPath>, Error> {
    if path.is_empty() {
        return Ok(None);
    }
    let parts: Vec<&str> = path.split(':').collect();
    if let [slice, prefix, name] = parts[..] {
        let is_name = |part: &str| !part.contains('/') && !matches!(part, "." | "..");
        if !slice.ends_with(".slice")
            || ![slice, prefix, name].into_iter().all(is_name)
            || name.is_empty()
        {
            return Err(refuse(
                "linux.cgroupsPath",
                format!(
                    "{path:?} is not SLICE.slice:PREFIX:NAME, as systemd's driver has it; a path of the cgroupfs driver has no two colons"
                ),
            ));
        }
        return Ok(Some(CgroupPath::Systemd {
            slice: slice.into(),
            prefix: prefix.into(),
            name: name.into(),
        }));
    }
    if path.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(refuse(
            "linux.cgroupsPath",
            format!("{path:?} has a part that is not the name of a cgroup"),
        ));
    }
    if path.trim_matches('/').is_empty() {
        return Err(refuse(
            "linux.cgroupsPath",
            format!("{path:?} is the root of the hierarchy, where the node's own processes are"),
        ));
    }
    Ok(Some(CgroupPath::Cgroupfs(format!(
        "/{}",
        path.trim_matches('/')
    ))))
}

pub(crate) fn resources(r: oci::Resources) -> Result<Resources, Error> {
    refused::in_resources(&r)?;
    let io = r.block_io;
    let throttles = [
        (Throttle::ReadBytes, io.throttle_read_bps_device),
        (Throttle::WriteBytes, io.throttle_write_bps_device),
        (Throttle::Reads, io.throttle_read_iops_device),
        (Throttle::Writes, io.throttle_write_iops_device),
    ];
    let device = |major: i64, minor: i64| format!("{major}:{minor}");
    Ok(Resources {
        memory_limit: r.memory.limit,
        memory_reservation: r.memory.reservation,
        memory_swap: r.memory.swap,
        cpu_shares: r.cpu.shares,
        cpu_quota: r.cpu.quota,
        cpu_period: r.cpu.period,
        cpuset_cpus: r.cpu.cpus.filter(|s| !s.is_empty()),
        cpuset_mems: r.cpu.mems.filter(|s| !s.is_empty()),
        pids_limit: r.pids.limit,
        cpu_burst: r.cpu.burst,
        cpu_idle: r.cpu.idle,
        swappiness: r.memory.swappiness,
        io_weight: io.weight,
        io_device_weights: io
            .weight_device
            .iter()
            .filter_map(|d| Some((device(d.major, d.minor), d.weight?)))
            .collect(),
        io_throttles: throttles
            .iter()
            .flat_map(|(what, list)| list.iter().map(move |d| (*what, d)))
            .map(|(what, d)| (what, device(d.major, d.minor), d.rate))
            .collect(),
        hugepages: r
            .hugepage_limits
            .into_iter()
            .map(|h| (h.page_size, h.limit))
            .collect(),
        unified: r.unified,
    })
}

#[cfg(test)]
mod tests {
    use crate::{CgroupPath, Namespace, Role, parse};
    use serde_json::json;

    fn container() -> serde_json::Value {
        json!({
            "process": {"args": ["/app.wasm"], "cwd": "/", "env": ["A=1"], "user": {"uid": 1, "gid": 2, "additionalGids": [3]}},
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/data", "type": "bind", "source": "/v", "options": ["rbind", "ro"]},
                {"destination": "/dev/termination-log", "type": "bind", "source": "/k/t", "options": ["rbind"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
            ],
            "annotations": {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "s"},
            "linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/n"}, {"type": "mount"}],
                      "cgroupsPath": "/pods/a", "resources": {"memory": {"limit": 1048576}, "devices": null}, "sysctl": null}
        })
    }

    fn error(change: impl FnOnce(&mut serde_json::Value)) -> String {
        let mut spec = container();
        change(&mut spec);
        match parse(spec.to_string().as_bytes()) {
            Ok(plan) => plan.unsupported.unwrap(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn a_container_of_cri_becomes_a_plan() {
        let plan = parse(container().to_string().as_bytes()).unwrap();
        assert_eq!(
            (plan.role, plan.sandbox_id.as_deref()),
            (Role::Container, Some("s"))
        );
        assert_eq!(
            (
                plan.program.uid,
                plan.program.gid,
                plan.program.groups.as_slice()
            ),
            (1, 2, &[3][..])
        );
        assert_eq!(plan.mounts.len(), 2, "kernel file systems are left out");
        let mut spec = container();
        spec["mounts"][3] =
            json!({"destination": "/dev", "type": "bind", "source": "/v", "options": ["rbind"]});
        let plan_of_dev = parse(spec.to_string().as_bytes()).unwrap();
        assert_eq!(plan_of_dev.mounts.len(), 3, "a volume is none of them");
        assert_eq!(plan.termination_message.as_deref(), Some("/k/t"));
        assert_eq!(
            (plan.pid, plan.network),
            (Namespace::New, Namespace::Path("/n".into()))
        );
        assert_eq!(plan.resources.memory_budget(), Some(1 << 20));
        assert_eq!(plan.cgroup, Some(CgroupPath::Cgroupfs("/pods/a".into())));
    }

    #[test]
    fn profile_and_labels_are_the_programs_and_its_execs() {
        let spec = |profile: &str| {
            let mut spec = container();
            spec["process"]["apparmorProfile"] = json!(profile);
            spec["process"]["selinuxLabel"] = json!("u:r:t:s0:c1,c2");
            spec["linux"]["mountLabel"] = json!("u:r:f:s0:c1,c2");
            let tmpfs = json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=1k"]});
            spec["mounts"].as_array_mut().unwrap().push(tmpfs);
            parse(spec.to_string().as_bytes()).unwrap()
        };
        let names = |plan: &crate::Plan| {
            let program = &plan.program;
            (
                program.apparmor_profile.clone(),
                program.selinux_label.clone(),
            )
        };
        let own = ("p".to_string(), "u:r:t:s0:c1,c2".to_string());
        let plan = spec("p");
        assert_eq!(names(&plan), own);
        assert_eq!(plan.mount_label, "u:r:f:s0:c1,c2");
        let data: Vec<&str> = plan.mounts.iter().map(|m| m.data.as_str()).collect();
        assert_eq!(data, ["", "", "size=1k,context=\"u:r:f:s0:c1,c2\""]);
        let exec = |plan: &crate::Plan, process| plan.exec(process).map(|exec| names(&exec));
        assert_eq!(exec(&plan, br#"{"args": ["/a"]}"#).unwrap(), own);
        let other = br#"{"args": ["/a"], "apparmorProfile": "q", "selinuxLabel": "r"}"#;
        assert_eq!(exec(&plan, other).unwrap(), ("q".into(), "r".into()));
        let refused = exec(&spec(""), other).unwrap_err().to_string();
        assert!(refused.contains("process.apparmorProfile"), "{refused}");
        assert!(
            error(|s| s["process"]["apparmorProfile"] = json!("p\0q"))
                .contains("process.apparmorProfile")
        );
    }

    #[test]
    fn ca_certificates_are_named_unless_the_program_names_others() {
        let environment = |annotation: &str, env: &[&str]| {
            let mut spec = container();
            spec["annotations"]["slipway.dev/ca-certificates"] = json!(annotation);
            spec["process"]["env"] = json!(env);
            parse(spec.to_string().as_bytes()).map(|plan| plan.program.env)
        };
        let named = format!("SSL_CERT_FILE={}", slipway_protocol::CA_CERTIFICATES);
        assert_eq!(environment("node", &["A=b"]).unwrap(), ["A=b", &named]);
        let own = ["SSL_CERT_FILE=/own"];
        assert_eq!(environment("node", &own).unwrap(), own);
        let plan = crate::Plan {
            ca_certificates: true,
            ..crate::Plan::default()
        };
        let exec = plan.exec(br#"{"args": ["/app.wasm"]}"#).unwrap();
        assert_eq!(exec.program.env, [named]);
        assert!(environment("other", &[]).is_err());
    }

    #[test]
    fn refusals_name_their_field() {
        assert!(error(|s| s["process"]["args"] = json!([])).contains("process.args"));
        assert!(error(|s| s["process"]["cwd"] = json!("x")).contains("process.cwd"));
        assert!(
            error(|s| s["mounts"][1]["destination"] = json!("data"))
                .contains("mounts[1].destination")
        );
        assert!(
            error(|s| s["mounts"][1] = json!({"destination": "/x", "type": "nfs", "source": "h"}))
                .contains("mounts[1].type")
        );
        assert!(
            error(|s| s["linux"]["namespaces"][0]["type"] = json!("time2"))
                .contains("namespaces[0]")
        );
        assert!(error(|s| s["linux"]["sysctl"] = json!({"net..x": "1"})).contains("sysctl"));
        for path in [
            "/a/../b",
            "/a/./b",
            ".",
            "/",
            "//",
            "/tmp/x:a:b",
            "a.slice:../b:c",
            "a.slice:b:c/d",
            "a.slice:b:",
            "x:b:c",
        ] {
            assert!(
                error(|s| s["linux"]["cgroupsPath"] = json!(path)).contains("linux.cgroupsPath: "),
                "{path}"
            );
        }
        assert!(
            error(|s| s["annotations"]["slipway.dev/compile"] = json!("O9"))
                .contains("slipway.dev/compile")
        );
        assert!(
            error(
                |s| s["process"]["rlimits"] = json!([{"type": "RLIMIT_AS", "soft": 1, "hard": 1}])
            )
            .contains("rlimits[0]")
        );
        assert!(
            error(|s| s["process"]["env"] = json!(["A=".to_string() + &"x".repeat(3 << 20)]))
                .contains("limit")
        );
        assert!(error(|s| s["process"] = json!(7)).contains("line 1"));
    }

    #[test]
    fn an_option_that_would_be_lost_is_refused() {
        for (kind, option, lost) in [
            ("bind", "idmap", true),
            ("bind", "size=64k", true),
            ("bind", "noatime", false),
            ("tmpfs", "tmpcopyup", true),
            ("tmpfs", "size=64k", false),
        ] {
            let mut spec = container();
            spec["mounts"][1] = json!({"destination": "/x", "type": kind, "source": "/v", "options": ["ro", option]});
            let plan = parse(spec.to_string().as_bytes()).unwrap();
            let error = plan.unsupported.unwrap_or_default();
            assert_eq!(
                error.contains("mounts[1].options"),
                lost,
                "{option}: {error}"
            );
            assert_eq!(error.contains(option), lost, "{option}: {error}");
        }
    }

    #[test]
    fn a_stop_drains_where_the_annotation_says_so_but_not_in_execs() {
        let stop = |value: &str| {
            let mut spec = container();
            spec["annotations"]["slipway.dev/stop"] = json!(value);
            parse(spec.to_string().as_bytes()).unwrap()
        };
        let drained = stop("drain");
        assert!(drained.program.drain);
        let exec = drained.exec(br#"{"args": ["/a"], "cwd": "/"}"#).unwrap();
        assert!(!exec.program.drain);
        let refused = stop("later");
        assert!(!refused.program.drain);
        assert!(refused.unsupported.unwrap().contains("slipway.dev/stop"));
    }

    #[test]
    fn an_exec_has_a_umask_and_refusals_of_its_own() {
        let plan = parse(container().to_string().as_bytes()).unwrap();
        let exec = |process: serde_json::Value| plan.exec(process.to_string().as_bytes());
        let umask = |user: serde_json::Value| exec(json!({"args": ["/a"], "user": user})).unwrap();
        assert_eq!(umask(json!({"umask": 63})).program.umask, Some(63));
        assert_eq!(umask(json!({})).program.umask, Some(0o022));
        let refused = exec(json!({"args": ["/a"], "execCPUAffinity": {"initial": "0"}}));
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("process.execCPUAffinity")
        );
    }

    #[test]
    fn no_spec_makes_the_reader_panic() {
        let text = container().to_string();
        for end in 0..text.len() {
            assert!(parse(&text.as_bytes()[..end]).is_err());
        }
    }

    #[test]
    fn both_cgroup_drivers_are_told_apart() {
        let mut spec = container();
        spec["linux"]["cgroupsPath"] = json!("kubepods.slice:cri-containerd:abc");
        assert!(matches!(
            parse(spec.to_string().as_bytes()).unwrap().cgroup,
            Some(CgroupPath::Systemd { .. })
        ));
    }
}
