//! Where the container's cgroup lies, and its limits.

use std::collections::BTreeMap;

use crate::plan::refuse;
use crate::{Error, oci, refused};

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

/// linux.cgroupsPath of either driver; `None` for an empty one.
pub fn path(path: &str) -> Result<Option<CgroupPath>, Error> {
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

/// linux.resources.
pub fn resources(r: oci::Resources) -> Result<Resources, Error> {
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
