//! A container's cgroup on version 1, version 2 and hybrid hosts: make, limit, join, measure, kill, remove.
//!
//! Own code, for one reason: the libraries at hand look for the hierarchies in /proc/self/mountinfo for every
//! container and every controller, so a pod start slows down with the number of mounts on its node. Here the
//! hierarchies are the directories below `/sys/fs/cgroup`, told by statfs, whatever else is mounted.

mod beside;
mod layout;
mod metrics;
mod oom;
mod systemd;
mod v1;
mod v2;

pub use metrics::{Cpu, Io, Memory, Metrics};
pub use oom::{OomKill, OomWatch};
pub use systemd::Registration;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};
use slipway_spec::{CgroupPath, Resources, Throttle};
use slipway_sys::CgroupEntry;

use crate::layout::Layout;

/// How long processes that were sent SIGKILL may take to leave: uninterruptible I/O can hold one.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether they have: the kernel has no event for it on version 1.
const LOOK: Duration = Duration::from_micros(500);

/// What failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on a cgroup's directory or file.
    #[error("cgroup {path}: {action}: {source}")]
    Operation {
        /// Of the directory or the file.
        path: String,
        /// A verb.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A limit that the kernel does not take.
    #[error("linux.resources.{field}: {value} cannot be written to {path}: {source}")]
    Limit {
        /// Below `linux.resources`.
        field: String,
        /// In the form of the file.
        value: String,
        /// Of the file.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A limit that there is not on this node.
    #[error("linux.resources.{field}: {why}")]
    Unsupported {
        /// Below `linux.resources`.
        field: String,
        /// What the node has.
        why: String,
    },
}

fn fail(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |source| Error::Operation {
        path,
        action,
        source,
    }
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
            layout: Layout::host().clone(),
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
        self.layout.directories(&self.path)
    }

    fn controller(&self, name: &str) -> Option<PathBuf> {
        self.layout.controller(name, &self.path)
    }

    /// Makes the directories with their parents, and writes the limits.
    ///
    /// # Errors
    /// The first write that fails, with its file.
    pub fn create(&self, resources: &Resources) -> Result<(), Error> {
        match &self.layout {
            Layout::V2(root) => v2::create(&self.path, root)?,
            Layout::V1(controllers) => v1::create(&self.path, controllers)?,
        }
        self.apply(resources)
    }

    /// Writes limits; those that are not given stay as they are.
    ///
    /// # Errors
    /// The first write that fails, with its file and value.
    pub fn apply(&self, r: &Resources) -> Result<(), Error> {
        match &self.layout {
            Layout::V2(_) => v2::apply(self, r),
            Layout::V1(_) => v1::apply(self, r),
        }
    }

    /// Writes the limit of a field below `linux.resources`. A file's name begins with its controller's.
    fn set(&self, field: &str, file: &str, value: impl ToString) -> Result<(), Error> {
        let controller = file.split('.').next().unwrap_or_default();
        let Some(directory) = self.controller(controller) else {
            return Err(Error::Unsupported {
                field: field.into(),
                why: format!("this node's kernel has no cgroup controller {controller}"),
            });
        };
        let (path, value) = (directory.join(file), value.to_string());
        fs::write(&path, &value).map_err(|source| Error::Limit {
            field: field.into(),
            value,
            path: path.display().to_string(),
            source,
        })
    }

    /// The first of these files that the kernel has here: the name of some depends on the scheduler of block devices.
    fn first<'a>(&self, controller: &str, files: [&'a str; 2]) -> &'a str {
        let directory = self.controller(controller).unwrap_or_default();
        let found = files.into_iter().find(|f| directory.join(f).exists());
        found.unwrap_or(files[1])
    }

    /// The limits whose files both versions call the same.
    fn set_cpuset_and_pids(&self, r: &Resources) -> Result<(), Error> {
        if let Some(cpus) = &r.cpuset_cpus {
            self.set("cpu.cpus", "cpuset.cpus", cpus)?;
        }
        if let Some(mems) = &r.cpuset_mems {
            self.set("cpu.mems", "cpuset.mems", mems)?;
        }
        if let Some(limit) = r.pids_limit.filter(|l| *l != 0) {
            self.set("pids.limit", "pids.max", or_max(limit))?;
        }
        Ok(())
    }

    /// The limit of huge pages in use, and, where the kernel knows it, of those reserved. A guest never uses one, so the limit holds on
    /// a node of version 1 that counts none.
    fn set_hugepages(&self, r: &Resources, file: &str) -> Result<(), Error> {
        const FIELD: &str = "hugepageLimits";
        if self.controller("hugetlb").is_none() {
            return Ok(());
        }
        for (size, limit) in &r.hugepages {
            self.set(FIELD, &format!("hugetlb.{size}.{file}"), limit)?;
            let reserved = format!("hugetlb.{size}.rsvd.{file}");
            let directory = self.controller("hugetlb");
            if directory.is_some_and(|d| d.join(&reserved).exists()) {
                self.set(FIELD, &reserved, limit)?;
            }
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
        let file = self.layout.files().join;
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
        let freezer = &self.layout.files().freezer;
        let (value, done) = match freeze {
            true => (freezer.freeze, freezer.frozen),
            false => (freezer.thaw, freezer.thawed),
        };
        let path = directory.join(freezer.file);
        let started = Instant::now();
        loop {
            // On version 1 a process that forks may escape the first attempt.
            fs::write(&path, value).map_err(fail(&path, "freeze"))?;
            let now = fs::read_to_string(directory.join(freezer.state)).unwrap_or_default();
            if now.lines().any(|l| l == done) {
                return Ok(());
            }
            if started.elapsed() > KILL_PATIENCE {
                let _ = freeze.then(|| fs::write(&path, freezer.thaw));
                return Err(fail(&path, "freeze")(io::ErrorKind::TimedOut.into()));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Memory in use that cannot be had back by dropping caches, in bytes. What lies in a tmpfs stays.
    pub fn memory_usage(&self) -> u64 {
        let Some(directory) = self.controller("memory") else {
            return 0;
        };
        let files = self.layout.files();
        let stat = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
        let [file, shmem] = files.caches.map(|key| metrics::keyed(&stat, key));
        let usage = metrics::number(&directory.join(files.memory_usage));
        usage.saturating_sub(file.saturating_sub(shmem))
    }

    /// The memory limit in bytes; `None`: there is none.
    pub fn memory_limit(&self) -> Option<u64> {
        /// Version 1 writes "unlimited" as the largest number of whole pages.
        const UNLIMITED: u64 = 1 << 62;
        let file = self
            .controller("memory")?
            .join(self.layout.files().memory_limit);
        let limit = fs::read_to_string(file).ok()?;
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
        let file = directory.join(self.layout.files().oom_kills);
        let text = fs::read_to_string(file).unwrap_or_default();
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
                        if !self.is_v2() {
                            v1::thaw(self);
                        }
                        empty(&directory);
                    }
                }
                // A killed process leaves its cgroup a moment after it can be waited for; no event tells of it on v1.
                std::thread::sleep(LOOK);
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

/// A limit as the kernel reads it; below 0 there is none.
fn or_max(limit: i64) -> String {
    match limit {
        ..0 => "max".into(),
        limit => limit.to_string(),
    }
}

/// The field of a limit of a block device.
fn throttle_field(throttle: &Throttle) -> &'static str {
    match throttle {
        Throttle::ReadBytes => "blockIO.throttleReadBpsDevice",
        Throttle::WriteBytes => "blockIO.throttleWriteBpsDevice",
        Throttle::Reads => "blockIO.throttleReadIOPSDevice",
        Throttle::Writes => "blockIO.throttleWriteIOPSDevice",
    }
}

/// An idle cgroup has no shares: the kernel refuses to set them.
fn shares(r: &Resources) -> Option<u64> {
    r.cpu_shares.filter(|s| *s != 0 && r.cpu_idle != Some(1))
}

#[cfg(test)]
mod tests;
