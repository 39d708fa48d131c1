//! A container's cgroup on version 1, version 2 and hybrid hosts: make, limit, join, measure, kill, remove.
//!
//! Own code, for one reason: the libraries at hand look for the hierarchies in /proc/self/mountinfo for every
//! container and every controller, so a pod start slows down with the number of mounts on its node. Here the
//! hierarchies are the directories below `/sys/fs/cgroup`, told by statfs, whatever else is mounted.

mod beside;
mod metrics;
mod oom;
mod systemd;

pub use metrics::{Cpu, Io, Memory, Metrics};
pub use oom::{OomKill, OomWatch};
pub use systemd::Registration;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};
use slipway_spec::{CgroupPath, Resources, Throttle};
use slipway_sys::CgroupEntry;

/// statfs(2) `f_type` of cgroup2, linux/magic.h.
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;
/// statfs(2) `f_type` of cgroup version 1, linux/magic.h.
const CGROUP_SUPER_MAGIC: i64 = 0x0027_e0eb;
/// How long processes that were sent SIGKILL may take to leave: uninterruptible I/O can hold one.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// A cgroup operation that failed, with its file.
#[derive(Debug, thiserror::Error)]
#[error("cgroup {path}: {action}: {source}")]
pub struct Error {
    path: String,
    action: &'static str,
    source: io::Error,
}

fn fail(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |source| Error {
        path,
        action,
        source,
    }
}

/// The host's hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Layout {
    /// One unified tree.
    V2(PathBuf),
    /// (controller, its mount point); a hybrid host's unified tree is not used.
    V1(Vec<(&'static str, PathBuf)>),
}

/// Controllers of version 1 that containers use.
const V1: [&str; 9] = [
    "memory", "cpu", "cpuacct", "cpuset", "pids", "freezer", "blkio", "devices", "hugetlb",
];

fn file_system(path: &Path) -> Option<i64> {
    rustix::fs::statfs(path).ok().map(|s| s.f_type)
}

fn layout(root: &Path) -> Layout {
    if file_system(root) == Some(CGROUP2_SUPER_MAGIC) {
        return Layout::V2(root.into());
    }
    let found = V1
        .iter()
        .map(|name| (*name, root.join(name)))
        .filter(|(_, path)| file_system(path) == Some(CGROUP_SUPER_MAGIC));
    Layout::V1(found.collect())
}

/// The layout of this host.
fn host() -> &'static Layout {
    // No host changes it while a process runs, and ten calls for each container are 0.08 ms.
    static HOST: OnceLock<Layout> = OnceLock::new();
    HOST.get_or_init(|| layout(Path::new("/sys/fs/cgroup")))
}

fn open_tasks(files: impl IntoIterator<Item = PathBuf>) -> Result<Vec<OwnedFd>, Error> {
    let open = |path: PathBuf| {
        let file = fs::File::options().write(true).open(&path);
        file.map(OwnedFd::from).map_err(fail(&path, "open"))
    };
    files.into_iter().map(open).collect()
}

/// One cgroup in all hierarchies.
#[derive(Debug, Clone)]
pub struct Cgroup {
    layout: Layout,
    /// Below each hierarchy's root, without a leading slash.
    path: PathBuf,
}

/// `a-b.slice` lies in `a.slice` (systemd.slice(5)).
fn expand_slice(slice: &str) -> PathBuf {
    let mut path = PathBuf::new();
    let name = slice.strip_suffix(".slice").unwrap_or(slice);
    if name == "-" || name.is_empty() {
        return path;
    }
    let mut prefix = String::new();
    for part in name.split('-') {
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    path
}

impl Cgroup {
    /// The cgroup of a spec; nothing is made yet.
    pub fn new(path: &CgroupPath) -> Self {
        let path = match path {
            CgroupPath::Cgroupfs(path) => PathBuf::from(path.trim_start_matches('/')),
            CgroupPath::Systemd {
                slice,
                prefix,
                name,
            } => expand_slice(slice).join(systemd::unit(prefix, name)),
        };
        Self {
            layout: host().clone(),
            path,
        }
    }

    /// True on a host with one unified hierarchy.
    pub fn is_v2(&self) -> bool {
        matches!(self.layout, Layout::V2(_))
    }

    /// Path below the hierarchies' roots, with a leading slash.
    pub fn path(&self) -> String {
        format!("/{}", self.path.display())
    }

    fn directories(&self) -> Vec<PathBuf> {
        match &self.layout {
            Layout::V2(root) => vec![root.join(&self.path)],
            Layout::V1(controllers) => controllers
                .iter()
                .map(|(_, root)| root.join(&self.path))
                .collect(),
        }
    }

    fn controller(&self, name: &str) -> Option<PathBuf> {
        match &self.layout {
            Layout::V2(root) => Some(root.join(&self.path)),
            Layout::V1(controllers) => controllers
                .iter()
                .find(|(c, _)| *c == name)
                .map(|(_, root)| root.join(&self.path)),
        }
    }

    /// Makes the directories with their parents, and writes the limits.
    ///
    /// # Errors
    /// The first write that fails, with its file.
    pub fn create(&self, resources: &Resources) -> Result<(), Error> {
        match &self.layout {
            Layout::V2(root) => self.make_v2(root)?,
            Layout::V1(controllers) => {
                for (name, root) in controllers {
                    let directory = root.join(&self.path);
                    fs::create_dir_all(&directory).map_err(fail(&directory, "create"))?;
                    if *name == "cpuset" {
                        inherit_cpuset(root, &self.path)?;
                    }
                }
            }
        }
        self.apply(resources)
    }

    /// Enables in every ancestor what its children need; a controller that is not there is left out.
    fn make_v2(&self, root: &Path) -> Result<(), Error> {
        let mut directory = root.to_path_buf();
        for part in &self.path {
            let available =
                fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
            for controller in ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"] {
                if available.split_whitespace().any(|c| c == controller) {
                    // Refused where processes sit in an inner node: then the limit below fails, by name.
                    let _ = fs::write(
                        directory.join("cgroup.subtree_control"),
                        format!("+{controller}"),
                    );
                }
            }
            directory.push(part);
            match fs::create_dir(&directory) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(fail(&directory, "create")(e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes limits; those that are not given stay as they are.
    ///
    /// # Errors
    /// The first write that fails, with its file and value.
    pub fn apply(&self, r: &Resources) -> Result<(), Error> {
        match &self.layout {
            Layout::V2(_) => self.apply_v2(r),
            Layout::V1(_) => self.apply_v1(r),
        }
    }

    fn set(&self, controller: &str, file: &str, value: impl ToString) -> Result<(), Error> {
        let Some(directory) = self.controller(controller) else {
            return Ok(());
        };
        let path = directory.join(file);
        fs::write(&path, value.to_string()).map_err(fail(&path, "write limit"))
    }

    /// The first of these files that the kernel has here: the name of some depends on the scheduler of block devices.
    fn first<'a>(&self, controller: &str, files: [&'a str; 2]) -> &'a str {
        let directory = self.controller(controller).unwrap_or_default();
        let found = files.into_iter().find(|f| directory.join(f).exists());
        found.unwrap_or(files[1])
    }

    /// The limit of huge pages in use, and, where the kernel knows it, of those reserved.
    fn set_hugepages(&self, r: &Resources, file: &str) -> Result<(), Error> {
        for (size, limit) in &r.hugepages {
            self.set("hugetlb", &format!("hugetlb.{size}.{file}"), limit)?;
            let reserved = format!("hugetlb.{size}.rsvd.{file}");
            let directory = self.controller("hugetlb");
            if directory.is_some_and(|d| d.join(&reserved).exists()) {
                self.set("hugetlb", &reserved, limit)?;
            }
        }
        Ok(())
    }

    fn apply_v1(&self, r: &Resources) -> Result<(), Error> {
        if let Some(file) = r.unified.keys().next() {
            let what = "linux.resources.unified on a host with cgroup version 1";
            return Err(fail(Path::new(file), what)(
                io::ErrorKind::Unsupported.into(),
            ));
        }
        if let Some(limit) = r.memory_limit.filter(|l| *l != 0) {
            self.set_v1_memory(limit, r.memory_swap)?;
        }
        if let Some(soft) = r.memory_reservation.filter(|l| *l != 0) {
            self.set("memory", "memory.soft_limit_in_bytes", soft)?;
        }
        if let Some(swappiness) = r.swappiness {
            self.set("memory", "memory.swappiness", swappiness)?;
        }
        if let Some(shares) = shares(r) {
            self.set("cpu", "cpu.shares", shares)?;
        }
        if let Some(idle) = r.cpu_idle {
            self.set("cpu", "cpu.idle", idle)?;
        }
        if let Some(period) = r.cpu_period.filter(|p| *p != 0) {
            self.set("cpu", "cpu.cfs_period_us", period)?;
        }
        if let Some(quota) = r.cpu_quota.filter(|q| *q != 0) {
            self.set("cpu", "cpu.cfs_quota_us", quota)?;
        }
        if let Some(burst) = r.cpu_burst {
            self.set("cpu", "cpu.cfs_burst_us", burst)?;
        }
        if let Some(cpus) = &r.cpuset_cpus {
            self.set("cpuset", "cpuset.cpus", cpus)?;
        }
        if let Some(mems) = &r.cpuset_mems {
            self.set("cpuset", "cpuset.mems", mems)?;
        }
        if let Some(limit) = r.pids_limit.filter(|l| *l != 0) {
            self.set(
                "pids",
                "pids.max",
                if limit < 0 {
                    "max".into()
                } else {
                    limit.to_string()
                },
            )?;
        }
        if let Some(weight) = r.io_weight {
            let file = self.first("blkio", ["blkio.bfq.weight", "blkio.weight"]);
            self.set("blkio", file, weight)?;
        }
        for (device, weight) in &r.io_device_weights {
            let files = ["blkio.bfq.weight_device", "blkio.weight_device"];
            let file = self.first("blkio", files);
            self.set("blkio", file, format!("{device} {weight}"))?;
        }
        for (what, device, rate) in &r.io_throttles {
            let file = match what {
                Throttle::ReadBytes => "blkio.throttle.read_bps_device",
                Throttle::WriteBytes => "blkio.throttle.write_bps_device",
                Throttle::Reads => "blkio.throttle.read_iops_device",
                Throttle::Writes => "blkio.throttle.write_iops_device",
            };
            self.set("blkio", file, format!("{device} {rate}"))?;
        }
        self.set_hugepages(r, "limit_in_bytes")
    }

    /// memory and memory+swap must never cross on their way: raise the outer first, lower the inner first.
    fn set_v1_memory(&self, limit: i64, swap: Option<i64>) -> Result<(), Error> {
        let Some(directory) = self.controller("memory") else {
            return Ok(());
        };
        let swap =
            swap.filter(|s| *s != 0 && directory.join("memory.memsw.limit_in_bytes").exists());
        let Some(swap) = swap else {
            return self.set("memory", "memory.limit_in_bytes", limit);
        };
        let now = fs::read_to_string(directory.join("memory.memsw.limit_in_bytes")).ok();
        let now: i64 = now.and_then(|s| s.trim().parse().ok()).unwrap_or(i64::MAX);
        if swap < 0 || swap > now {
            self.set("memory", "memory.memsw.limit_in_bytes", swap)?;
            self.set("memory", "memory.limit_in_bytes", limit)
        } else {
            self.set("memory", "memory.limit_in_bytes", limit)?;
            self.set("memory", "memory.memsw.limit_in_bytes", swap)
        }
    }

    fn apply_v2(&self, r: &Resources) -> Result<(), Error> {
        if r.swappiness.is_some() {
            let what = "linux.resources.memory.swappiness on a host with cgroup version 2";
            let file = Path::new("memory.swappiness");
            return Err(fail(file, what)(io::ErrorKind::Unsupported.into()));
        }
        let or_max = |n: i64| {
            if n < 0 {
                "max".to_string()
            } else {
                n.to_string()
            }
        };
        if let Some(limit) = r.memory_limit.filter(|l| *l != 0) {
            self.set("memory", "memory.max", or_max(limit))?;
            if let Some(swap) = r.memory_swap.filter(|s| *s != 0) {
                // Version 2 counts swap alone.
                let swap = if swap < 0 { -1 } else { (swap - limit).max(0) };
                if self
                    .controller("memory")
                    .is_some_and(|d| d.join("memory.swap.max").exists())
                {
                    self.set("memory", "memory.swap.max", or_max(swap))?;
                }
            }
        }
        if let Some(low) = r.memory_reservation.filter(|l| *l != 0) {
            self.set("memory", "memory.low", or_max(low))?;
        }
        if let Some(shares) = shares(r) {
            self.set("cpu", "cpu.weight", weight(shares))?;
        }
        if let Some(idle) = r.cpu_idle {
            self.set("cpu", "cpu.idle", idle)?;
        }
        if let Some(quota) = r.cpu_quota.filter(|q| *q != 0) {
            self.set(
                "cpu",
                "cpu.max",
                format!(
                    "{} {}",
                    or_max(quota),
                    r.cpu_period.filter(|p| *p != 0).unwrap_or(100_000)
                ),
            )?;
        }
        if let Some(burst) = r.cpu_burst {
            self.set("cpu", "cpu.max.burst", burst)?;
        }
        if let Some(cpus) = &r.cpuset_cpus {
            self.set("cpuset", "cpuset.cpus", cpus)?;
        }
        if let Some(mems) = &r.cpuset_mems {
            self.set("cpuset", "cpuset.mems", mems)?;
        }
        if let Some(limit) = r.pids_limit.filter(|l| *l != 0) {
            self.set("pids", "pids.max", or_max(limit))?;
        }
        let file = self.first("io", ["io.bfq.weight", "io.weight"]);
        let scaled = |weight| match file {
            "io.weight" => io_weight(weight),
            _ => weight,
        };
        if let Some(weight) = r.io_weight {
            self.set("io", file, scaled(weight))?;
        }
        for (device, weight) in &r.io_device_weights {
            self.set("io", file, format!("{device} {}", scaled(*weight)))?;
        }
        for (what, device, rate) in &r.io_throttles {
            let key = match what {
                Throttle::ReadBytes => "rbps",
                Throttle::WriteBytes => "wbps",
                Throttle::Reads => "riops",
                Throttle::Writes => "wiops",
            };
            self.set("io", "io.max", format!("{device} {key}={rate}"))?;
        }
        self.set_hugepages(r, "max")?;
        for (file, value) in &r.unified {
            self.set("unified", file, value)?;
        }
        Ok(())
    }

    /// How a child is born into the cgroup.
    ///
    /// # Errors
    /// The file that cannot be opened.
    pub fn entry(&self) -> Result<CgroupEntry, Error> {
        match &self.layout {
            Layout::V2(root) => {
                let path = root.join(&self.path);
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(CWD, &path, flags, Mode::empty())
                    .map_err(|e| fail(&path, "open")(e.into()))?;
                Ok(CgroupEntry {
                    v2: Some(fd),
                    v1: Vec::new(),
                })
            }
            Layout::V1(_) => Ok(CgroupEntry {
                v2: None,
                v1: self.join()?,
            }),
        }
    }

    /// The files into which a process of one thread writes `0` to move itself here, open.
    ///
    /// # Errors
    /// The file that cannot be opened.
    pub fn join(&self) -> Result<Vec<OwnedFd>, Error> {
        open_tasks(self.join_files())
    }

    fn join_files(&self) -> Vec<PathBuf> {
        let file = if self.is_v2() {
            "cgroup.procs"
        } else {
            "tasks"
        };
        let directories = self.directories().into_iter();
        directories.map(|d| d.join(file)).collect()
    }

    /// Stops all processes where they are, or lets them go on; returns when they do.
    ///
    /// # Errors
    /// A write that fails, or processes that do not stop within some seconds.
    pub fn freeze(&self, freeze: bool) -> Result<(), Error> {
        let Some(directory) = self.controller("freezer") else {
            return Err(fail(&self.path, "freeze")(
                io::ErrorKind::Unsupported.into(),
            ));
        };
        let (file, value, state, done) = match (self.is_v2(), freeze) {
            (true, true) => ("cgroup.freeze", "1", "cgroup.events", "frozen 1"),
            (true, false) => ("cgroup.freeze", "0", "cgroup.events", "frozen 0"),
            (false, true) => ("freezer.state", "FROZEN", "freezer.state", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED", "freezer.state", "THAWED"),
        };
        let path = directory.join(file);
        let started = Instant::now();
        loop {
            // On version 1 a process that forks may escape the first attempt.
            fs::write(&path, value).map_err(fail(&path, "freeze"))?;
            let now = fs::read_to_string(directory.join(state)).unwrap_or_default();
            if now.lines().any(|l| l == done) {
                return Ok(());
            }
            if started.elapsed() > KILL_PATIENCE {
                let _ = freeze.then(|| fs::write(&path, if self.is_v2() { "0" } else { "THAWED" }));
                return Err(fail(&path, "freeze")(io::ErrorKind::TimedOut.into()));
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// What version 1 has frozen cannot end, not even by SIGKILL.
    fn thaw_v1(&self) {
        if let Some(freezer) = self.controller("freezer").filter(|_| !self.is_v2()) {
            let _ = fs::write(freezer.join("freezer.state"), "THAWED");
        }
    }

    /// Memory in use that cannot be had back by dropping caches, in bytes. What lies in a tmpfs stays.
    pub fn memory_usage(&self) -> u64 {
        let Some(directory) = self.controller("memory") else {
            return 0;
        };
        let (usage, [file, shmem]) = match self.is_v2() {
            true => ("memory.current", ["file", "shmem"]),
            false => ("memory.usage_in_bytes", ["total_cache", "total_shmem"]),
        };
        let stat = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
        let [file, shmem] = [file, shmem].map(|key| metrics::keyed(&stat, key));
        let usage = metrics::number(&directory.join(usage));
        usage.saturating_sub(file.saturating_sub(shmem))
    }

    /// The memory limit in bytes; `None`: there is none.
    pub fn memory_limit(&self) -> Option<u64> {
        /// Version 1 writes "unlimited" as the largest number of whole pages.
        const UNLIMITED: u64 = 1 << 62;
        let file = match self.is_v2() {
            true => "memory.max",
            false => "memory.limit_in_bytes",
        };
        let limit = fs::read_to_string(self.controller("memory")?.join(file)).ok()?;
        limit.trim().parse().ok().filter(|bytes| *bytes < UNLIMITED)
    }

    /// Processes in the cgroup itself, not below it.
    pub fn pids(&self) -> Vec<i32> {
        let Some(directory) = self.directories().into_iter().next() else {
            return Vec::new();
        };
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|l| l.parse().ok()).collect()
    }

    /// What the cgroup has used so far.
    pub fn metrics(&self) -> Metrics {
        match &self.layout {
            Layout::V2(root) => metrics::read_v2(&root.join(&self.path)),
            Layout::V1(_) => metrics::read_v1(&|name| self.controller(name)),
        }
    }

    /// Times that the kernel's OOM killer has killed in this cgroup.
    pub fn oom_kills(&self) -> u64 {
        let Some(directory) = self.controller("memory") else {
            return 0;
        };
        let file = if self.is_v2() {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
        metrics::keyed(&text, "oom_kill")
    }

    /// Kills whatever is in the cgroup and removes it. Nothing left to remove is success.
    ///
    /// # Errors
    /// A directory that stays, for example because a process in uninterruptible I/O does not go.
    pub fn remove(&self) -> Result<(), Error> {
        if self.path.as_os_str().is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let mut directories = self.directories();
        if !self.is_v2() {
            // runc joins systemd's hierarchy, which has no controller, too; after a crash its containers are removed here.
            directories.push(Path::new("/sys/fs/cgroup/systemd").join(&self.path));
        }
        for directory in directories {
            loop {
                match fs::remove_dir(&directory) {
                    Ok(()) => break,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                    Err(e) if started.elapsed() > KILL_PATIENCE => {
                        return Err(fail(&directory, "remove")(e));
                    }
                    Err(_) => {
                        self.thaw_v1();
                        empty(&directory);
                    }
                }
                // A killed process leaves its cgroup a moment after it can be waited for; no event tells of it on v1.
                std::thread::sleep(Duration::from_micros(500));
            }
        }
        Ok(())
    }
}

/// Removes cgroups that somebody made below, and kills what is in the directory.
fn empty(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            empty(&entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in text
        .lines()
        .filter_map(|l| l.parse().ok())
        .filter_map(rustix::process::Pid::from_raw)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// A new cpuset of version 1 has no CPUs and takes no process until it has.
fn inherit_cpuset(root: &Path, path: &Path) -> Result<(), Error> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut directory = root.to_path_buf();
        let mut value =
            fs::read_to_string(directory.join(file)).map_err(fail(&directory, "read"))?;
        for part in path {
            directory.push(part);
            let target = directory.join(file);
            let own = fs::read_to_string(&target).map_err(fail(&target, "read"))?;
            if own.trim().is_empty() {
                fs::write(&target, value.trim()).map_err(fail(&target, "write"))?;
            } else {
                value = own;
            }
        }
    }
    Ok(())
}

/// An idle cgroup has no shares: the kernel refuses to set them.
fn shares(r: &Resources) -> Option<u64> {
    r.cpu_shares.filter(|s| *s != 0 && r.cpu_idle != Some(1))
}

/// blkio.weight (10 to 1000) as io.weight (1 to 10000), as other runtimes do it.
fn io_weight(weight: u16) -> u16 {
    let scaled = 1 + u32::from(weight.saturating_sub(10)) * 9999 / 990;
    u16::try_from(scaled).unwrap_or(10_000)
}

/// cpu.shares (2 to 262144) as cpu.weight (1 to 10000), by the formula of today's runc, crun and kubelet: the quadratic
/// function of logarithms that takes the ends to the ends and 1024, one CPU, to 100, the kernel's default
/// (kubernetes/kubernetes#131216).
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use rustix::event::{PollFd, PollFlags};

    /// Waits for a child's end: its cgroup may go a moment before the kernel tells of it.
    fn end(child: &slipway_sys::Child) -> Option<u32> {
        let mut end = [PollFd::new(&child.pidfd, PollFlags::IN)];
        rustix::event::poll(&mut end, None).unwrap();
        slipway_sys::reap(child.pid).unwrap()
    }

    #[test]
    fn slices_nest_as_systemd_nests_them() {
        assert_eq!(
            expand_slice("kubepods-besteffort-podx.slice"),
            Path::new("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podx.slice")
        );
        assert_eq!(expand_slice("-.slice"), Path::new(""));
        let path = CgroupPath::Systemd {
            slice: "a.slice".into(),
            prefix: "cri-containerd".into(),
            name: "id".into(),
        };
        assert_eq!(
            Cgroup::new(&path).path(),
            "/a.slice/cri-containerd-id.scope"
        );
    }

    #[test]
    fn shares_become_the_weight_that_other_runtimes_give() {
        let pairs = [
            (0, 1),
            (2, 1),
            (102, 17),
            (512, 59),
            (1024, 100),
            (262_143, 10_000),
            (u64::MAX, 10_000),
        ];
        for (shares, expected) in pairs {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    #[test]
    fn a_frozen_cgroup_is_removed_with_its_processes() {
        let cgroup = Cgroup::new(&CgroupPath::Cgroupfs(format!(
            "/slipway-frozen-{}",
            std::process::id()
        )));
        cgroup
            .create(&Resources::default())
            .expect("a cgroup is made: these tests run as root");
        let (program, mut runs) = sleeper();
        let child = slipway_sys::spawn(program, 0, &cgroup.entry().unwrap()).unwrap();
        runs.read_exact(&mut [0]).unwrap();
        cgroup.freeze(true).unwrap();
        cgroup.remove().unwrap();
        assert_eq!(end(&child), Some(137));
    }

    /// A program that sleeps, and says when it does.
    fn sleeper() -> (slipway_sys::Exec, std::io::PipeReader) {
        let (runs, out) = std::io::pipe().unwrap();
        let null = || fs::File::open("/dev/null").unwrap().into();
        let program = slipway_sys::Exec {
            program: c"/bin/sh".into(),
            argv: vec![c"sh".into(), c"-c".into(), c"echo && exec sleep 100".into()],
            envp: Vec::new(),
            fds: vec![null(), out.into()],
            directory: None,
            read_only: None,
            with_parent: true,
        };
        (program, runs)
    }

    #[test]
    fn each_limit_has_its_file_on_both_versions() {
        let resources = Resources {
            cpu_quota: Some(50_000),
            cpu_burst: Some(20_000),
            cpu_shares: Some(512),
            cpu_idle: Some(1),
            io_weight: Some(1000),
            io_device_weights: vec![("8:0".into(), 10)],
            io_throttles: vec![(Throttle::Writes, "8:0".into(), 7)],
            hugepages: vec![("2MB".into(), 4096)],
            ..Resources::default()
        };
        // Directories in the place of hierarchies: what is written stays to be read.
        let root = std::env::temp_dir().join(format!("slipway-files-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("hugetlb.2MB.rsvd.max"), "").unwrap();
        let check = |layout, resources: &Resources, files: &[(&str, &str)]| {
            let path = PathBuf::new();
            Cgroup { layout, path }.apply(resources).unwrap();
            for (file, value) in files {
                assert_eq!(fs::read_to_string(root.join(file)).unwrap(), *value);
            }
        };
        let v2 = [
            ("cpu.max.burst", "20000"),
            ("cpu.idle", "1"),
            ("io.weight", "8:0 1"),
            ("io.max", "8:0 wiops=7"),
            ("hugetlb.2MB.max", "4096"),
            ("hugetlb.2MB.rsvd.max", "4096"),
        ];
        check(Layout::V2(root.clone()), &resources, &v2);
        assert!(
            !root.join("cpu.weight").exists(),
            "an idle cgroup has no weight"
        );
        let v1 = [
            ("cpu.cfs_burst_us", "20000"),
            ("cpu.idle", "1"),
            ("memory.swappiness", "7"),
            ("blkio.weight", "1000"),
            ("blkio.weight_device", "8:0 10"),
            ("blkio.throttle.write_iops_device", "8:0 7"),
            ("hugetlb.2MB.limit_in_bytes", "4096"),
        ];
        let controllers = V1.iter().map(|name| (*name, root.clone())).collect();
        let swappiness = Some(7);
        let resources = Resources {
            swappiness,
            ..resources
        };
        check(Layout::V1(controllers), &resources, &v1);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!([io_weight(10), io_weight(1000)], [1, 10_000]);
    }

    #[test]
    fn caches_can_be_had_back_and_a_tmpfs_cannot() {
        let d = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(d.path().join(file), text).unwrap();
        write("memory.current", "100\n");
        write("memory.usage_in_bytes", "100\n");
        write(
            "memory.stat",
            "file 60\nshmem 20\ncache 1\ntotal_cache 60\ntotal_shmem 20\n",
        );
        let root = d.path().to_path_buf();
        for layout in [
            Layout::V2(root.clone()),
            Layout::V1(vec![("memory", root.clone())]),
        ] {
            let path = PathBuf::new();
            let cgroup = Cgroup { layout, path };
            assert_eq!(cgroup.memory_usage(), 60);
            assert_eq!(cgroup.memory_limit(), None);
            let file = if cgroup.is_v2() {
                "memory.max"
            } else {
                "memory.limit_in_bytes"
            };
            for (text, limit) in [
                ("max\n", None),
                ("9223372036854771712\n", None),
                ("4096\n", Some(4096)),
            ] {
                write(file, text);
                assert_eq!(cgroup.memory_limit(), limit, "{text}");
            }
        }
    }

    #[test]
    fn a_cgroup_holds_its_processes_and_goes_with_them() {
        let cgroup = Cgroup::new(&CgroupPath::Cgroupfs(format!(
            "/slipway-test-{}/c",
            std::process::id()
        )));
        let resources = Resources {
            memory_limit: Some(64 << 20),
            pids_limit: Some(10),
            cpu_shares: Some(2),
            ..Resources::default()
        };
        cgroup
            .create(&resources)
            .expect("a cgroup is made: these tests run as root");
        let (program, mut runs) = sleeper();
        let child = slipway_sys::spawn(program, 0, &cgroup.entry().unwrap()).unwrap();
        runs.read_exact(&mut [0]).unwrap();
        assert_eq!(cgroup.pids(), [child.pid]);
        for file in cgroup.join_files() {
            let inside = fs::read_to_string(&file).unwrap();
            assert_eq!(inside.trim(), child.pid.to_string(), "{}", file.display());
        }
        let metrics = cgroup.metrics();
        assert_eq!((metrics.pids_current, metrics.memory.limit), (1, 64 << 20));
        cgroup.remove().unwrap();
        assert_eq!(end(&child), Some(137));
        assert!(cgroup.directories().iter().all(|d| !d.exists()));
        cgroup.remove().unwrap();
        let parent = Cgroup {
            path: cgroup.path.parent().unwrap().into(),
            ..cgroup
        };
        parent.remove().unwrap();
    }
}
