//! Version 1: a hierarchy for each controller.

use std::fs;
use std::path::{Path, PathBuf};

use slipway_spec::{Resources, Throttle};

use crate::layout::{Files, Freezer};
use crate::{Cgroup, Error, fail, shares, throttle_field};

/// Controllers that containers use.
pub(crate) const CONTROLLERS: [&str; 9] = [
    "memory", "cpu", "cpuacct", "cpuset", "pids", "freezer", "blkio", "devices", "hugetlb",
];

pub(crate) const FILES: Files = Files {
    join: "tasks",
    memory_usage: "memory.usage_in_bytes",
    caches: ["total_cache", "total_shmem"],
    memory_limit: "memory.limit_in_bytes",
    oom_kills: "memory.oom_control",
    freezer: Freezer {
        file: "freezer.state",
        freeze: "FROZEN",
        thaw: "THAWED",
        state: "freezer.state",
        frozen: "FROZEN",
        thawed: "THAWED",
    },
};

/// Makes the cgroup's directory, with its parents, in each of these hierarchies.
pub(crate) fn create(path: &Path, controllers: &[(&str, PathBuf)]) -> Result<(), Error> {
    for (name, root) in controllers {
        let directory = root.join(path);
        fs::create_dir_all(&directory).map_err(fail(&directory, "create"))?;
        if *name == "cpuset" {
            inherit_cpuset(root, path)?;
        }
    }
    Ok(())
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

/// Writes limits; those that are not given stay as they are.
pub(crate) fn apply(cgroup: &Cgroup, r: &Resources) -> Result<(), Error> {
    if let Some(file) = r.unified.keys().next() {
        return Err(Error::Unsupported {
            field: format!("unified.{file}"),
            why: "this node has cgroup version 1, which has no such file".into(),
        });
    }
    if let Some(limit) = r.memory_limit.filter(|l| *l != 0) {
        set_memory(cgroup, limit, r.memory_swap)?;
    }
    if let Some(soft) = r.memory_reservation.filter(|l| *l != 0) {
        cgroup.set("memory.reservation", "memory.soft_limit_in_bytes", soft)?;
    }
    if let Some(swappiness) = r.swappiness {
        cgroup.set("memory.swappiness", "memory.swappiness", swappiness)?;
    }
    if let Some(shares) = shares(r) {
        cgroup.set("cpu.shares", "cpu.shares", shares)?;
    }
    if let Some(idle) = r.cpu_idle {
        cgroup.set("cpu.idle", "cpu.idle", idle)?;
    }
    if let Some(period) = r.cpu_period.filter(|p| *p != 0) {
        cgroup.set("cpu.period", "cpu.cfs_period_us", period)?;
    }
    if let Some(quota) = r.cpu_quota.filter(|q| *q != 0) {
        cgroup.set("cpu.quota", "cpu.cfs_quota_us", quota)?;
    }
    if let Some(burst) = r.cpu_burst {
        cgroup.set("cpu.burst", "cpu.cfs_burst_us", burst)?;
    }
    cgroup.set_cpuset_and_pids(r)?;
    if let Some(weight) = r.io_weight {
        let file = cgroup.first("blkio", ["blkio.bfq.weight", "blkio.weight"]);
        cgroup.set("blockIO.weight", file, weight)?;
    }
    for (device, weight) in &r.io_device_weights {
        let files = ["blkio.bfq.weight_device", "blkio.weight_device"];
        let file = cgroup.first("blkio", files);
        cgroup.set("blockIO.weightDevice", file, format!("{device} {weight}"))?;
    }
    for (what, device, rate) in &r.io_throttles {
        let file = match what {
            Throttle::ReadBytes => "blkio.throttle.read_bps_device",
            Throttle::WriteBytes => "blkio.throttle.write_bps_device",
            Throttle::Reads => "blkio.throttle.read_iops_device",
            Throttle::Writes => "blkio.throttle.write_iops_device",
        };
        cgroup.set(throttle_field(what), file, format!("{device} {rate}"))?;
    }
    cgroup.set_hugepages(r, "limit_in_bytes")
}

/// memory and memory+swap must never cross on their way: raise the outer first, lower the inner first.
fn set_memory(cgroup: &Cgroup, limit: i64, swap: Option<i64>) -> Result<(), Error> {
    let accounted = cgroup
        .controller("memory")
        .map(|d| d.join("memory.memsw.limit_in_bytes"));
    let accounted = accounted.filter(|file| file.exists());
    let Some((swap, accounted)) = swap.filter(|s| *s != 0).zip(accounted) else {
        return cgroup.set("memory.limit", "memory.limit_in_bytes", limit);
    };
    let now = fs::read_to_string(accounted).ok();
    let now: i64 = now.and_then(|s| s.trim().parse().ok()).unwrap_or(i64::MAX);
    if swap < 0 || swap > now {
        cgroup.set("memory.swap", "memory.memsw.limit_in_bytes", swap)?;
        cgroup.set("memory.limit", "memory.limit_in_bytes", limit)
    } else {
        cgroup.set("memory.limit", "memory.limit_in_bytes", limit)?;
        cgroup.set("memory.swap", "memory.memsw.limit_in_bytes", swap)
    }
}

/// What is frozen cannot end, not even by SIGKILL.
pub(crate) fn thaw(cgroup: &Cgroup) {
    if let Some(freezer) = cgroup.controller("freezer") {
        let _ = fs::write(freezer.join(FILES.freezer.file), FILES.freezer.thaw);
    }
}
