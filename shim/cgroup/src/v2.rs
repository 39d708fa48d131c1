//! Version 2: one tree for all controllers.

use std::fs;
use std::io;
use std::path::Path;

use slipway_spec::{Resources, Throttle};

use crate::layout::{Files, Freezer};
use crate::{Cgroup, Error, fail, or_max, shares, throttle_field};

pub(crate) const FILES: Files = Files {
    join: "cgroup.procs",
    memory_usage: "memory.current",
    caches: ["file", "shmem"],
    memory_limit: "memory.max",
    oom_kills: "memory.events",
    freezer: Freezer {
        file: "cgroup.freeze",
        freeze: "1",
        thaw: "0",
        state: "cgroup.events",
        frozen: "frozen 1",
        thawed: "frozen 0",
    },
};

/// Makes the cgroup's directory with its parents. Enables in every ancestor what its children need; a controller that is not there
/// is left out.
pub(crate) fn create(path: &Path, root: &Path) -> Result<(), Error> {
    let mut directory = root.to_path_buf();
    for part in path {
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
pub(crate) fn apply(cgroup: &Cgroup, r: &Resources) -> Result<(), Error> {
    if r.swappiness.is_some() {
        return Err(Error::Unsupported {
            field: "memory.swappiness".into(),
            why: "this node has cgroup version 2, which has no such limit".into(),
        });
    }
    if let Some(limit) = r.memory_limit.filter(|l| *l != 0) {
        cgroup.set("memory.limit", "memory.max", or_max(limit))?;
        if let Some(swap) = r.memory_swap.filter(|s| *s != 0) {
            // Version 2 counts swap alone.
            let swap = if swap < 0 { -1 } else { (swap - limit).max(0) };
            let directory = cgroup.controller("memory");
            if directory.is_some_and(|d| d.join("memory.swap.max").exists()) {
                cgroup.set("memory.swap", "memory.swap.max", or_max(swap))?;
            }
        }
    }
    if let Some(low) = r.memory_reservation.filter(|l| *l != 0) {
        cgroup.set("memory.reservation", "memory.low", or_max(low))?;
    }
    if let Some(shares) = shares(r) {
        cgroup.set("cpu.shares", "cpu.weight", weight(shares))?;
    }
    if let Some(idle) = r.cpu_idle {
        cgroup.set("cpu.idle", "cpu.idle", idle)?;
    }
    if let Some(quota) = r.cpu_quota.filter(|q| *q != 0) {
        cgroup.set(
            "cpu.quota",
            "cpu.max",
            format!(
                "{} {}",
                or_max(quota),
                r.cpu_period.filter(|p| *p != 0).unwrap_or(100_000)
            ),
        )?;
    }
    if let Some(burst) = r.cpu_burst {
        cgroup.set("cpu.burst", "cpu.max.burst", burst)?;
    }
    cgroup.set_cpuset_and_pids(r)?;
    let file = cgroup.first("io", ["io.bfq.weight", "io.weight"]);
    let scaled = |weight| match file {
        "io.weight" => io_weight(weight),
        _ => weight,
    };
    if let Some(weight) = r.io_weight {
        cgroup.set("blockIO.weight", file, scaled(weight))?;
    }
    for (device, weight) in &r.io_device_weights {
        cgroup.set(
            "blockIO.weightDevice",
            file,
            format!("{device} {}", scaled(*weight)),
        )?;
    }
    for (what, device, rate) in &r.io_throttles {
        let key = match what {
            Throttle::ReadBytes => "rbps",
            Throttle::WriteBytes => "wbps",
            Throttle::Reads => "riops",
            Throttle::Writes => "wiops",
        };
        cgroup.set(
            throttle_field(what),
            "io.max",
            format!("{device} {key}={rate}"),
        )?;
    }
    cgroup.set_hugepages(r, "max")?;
    for (file, value) in &r.unified {
        cgroup.set(&format!("unified.{file}"), file, value)?;
    }
    Ok(())
}

/// blkio.weight (10 to 1000) as io.weight (1 to 10000), as other runtimes do it.
pub(crate) fn io_weight(weight: u16) -> u16 {
    let scaled = 1 + u32::from(weight.saturating_sub(10)) * 9999 / 990;
    u16::try_from(scaled).unwrap_or(10_000)
}

/// cpu.shares (2 to 262144) as cpu.weight (1 to 10000), by the formula of today's runc, crun and kubelet: the quadratic
/// function of logarithms that takes the ends to the ends and 1024, one CPU, to 100, the kernel's default
/// (kubernetes/kubernetes#131216).
pub(crate) fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}
