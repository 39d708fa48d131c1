//! Counters of a cgroup, in one shape for both versions.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What a container has used. Times in nanoseconds, sizes in bytes; 0 where the host has no such counter.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// CPU time.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Tasks now.
    pub pids_current: u64,
    /// Most tasks allowed; 0 for no limit.
    pub pids_limit: u64,
    /// What went to and came from block devices (version 2 only).
    pub io: Vec<Io>,
}

/// What went to and came from one block device.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Io {
    /// The device's numbers.
    pub device: (u64, u64),
    /// Bytes read and written.
    pub bytes: (u64, u64),
    /// Reads and writes.
    pub operations: (u64, u64),
}

/// CPU time.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// All of it.
    pub total: u64,
    /// In user mode.
    pub user: u64,
    /// In the kernel.
    pub kernel: u64,
    /// Time on each CPU (version 1 only).
    pub per_cpu: Vec<u64>,
    /// Periods with a quota.
    pub periods: u64,
    /// Periods in which the quota ran out.
    pub throttled_periods: u64,
    /// Time spent waiting for the next period.
    pub throttled: u64,
}

/// Memory.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Memory {
    /// In use, page cache included.
    pub usage: u64,
    /// Highest usage.
    pub max_usage: u64,
    /// The limit; the kernel's "unlimited" as it gives it.
    pub limit: u64,
    /// Times that the limit was met.
    pub failcnt: u64,
    /// Anonymous memory.
    pub anon: u64,
    /// Page cache.
    pub file: u64,
    /// Page cache that can go first; the kubelet subtracts it for the working set.
    pub inactive_file: u64,
    /// Page cache in use.
    pub active_file: u64,
    /// Inactive anonymous memory.
    pub inactive_anon: u64,
    /// Active anonymous memory.
    pub active_anon: u64,
    /// Mapped files.
    pub mapped_file: u64,
    /// Page faults.
    pub pgfault: u64,
    /// Page faults that read from disk.
    pub pgmajfault: u64,
    /// Kernel memory.
    pub kernel: u64,
    /// Swap and, on version 1, memory with it.
    pub swap_usage: u64,
    /// Its limit.
    pub swap_limit: u64,
    /// All of memory.stat, by the kernel's names (version 2 only).
    pub stat: BTreeMap<String, u64>,
    /// All of memory.events, by the kernel's names (version 2 only).
    pub events: BTreeMap<String, u64>,
}

/// The number behind a key in a "key value" file; 0 where there is none.
pub(crate) fn keyed(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.split_once(' ').filter(|(k, _)| *k == key))
        .and_then(|(_, v)| v.trim().parse().ok())
        .unwrap_or(0)
}

/// All of a "key value" file.
fn counters(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, value)| Some((key.to_string(), value.trim().parse().ok()?)))
        .collect()
}

/// A line of io.stat: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn io(line: &str) -> Option<Io> {
    let (device, counters) = line.split_once(' ')?;
    let (major, minor) = device.split_once(':')?;
    let counter = |key: &str| {
        counters
            .split(' ')
            .find_map(|pair| pair.split_once('=').filter(|(k, _)| *k == key))
            .and_then(|(_, v)| v.parse().ok())
            .unwrap_or(0)
    };
    Some(Io {
        device: (major.parse().ok()?, minor.parse().ok()?),
        bytes: (counter("rbytes"), counter("wbytes")),
        operations: (counter("rios"), counter("wios")),
    })
}

pub(crate) fn number(path: &Path) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    match text.trim() {
        "max" => u64::MAX,
        n => n.parse().unwrap_or(0),
    }
}

fn limit_or_none(path: &Path) -> u64 {
    match number(path) {
        u64::MAX => 0,
        n => n,
    }
}

/// /proc and cpuacct.stat count in ticks of USER_HZ, 100 on every architecture that containerd runs on.
const TICK_NANOSECONDS: u64 = 10_000_000;

pub(crate) fn read_v1(controller: &dyn Fn(&str) -> Option<PathBuf>) -> Metrics {
    let text = |c: &str, f: &str| {
        controller(c)
            .and_then(|d| fs::read_to_string(d.join(f)).ok())
            .unwrap_or_default()
    };
    let value = |c: &str, f: &str| controller(c).map_or(0, |d| number(&d.join(f)));
    let ticks = text("cpuacct", "cpuacct.stat");
    let throttling = text("cpu", "cpu.stat");
    let stat = text("memory", "memory.stat");
    Metrics {
        cpu: Cpu {
            total: value("cpuacct", "cpuacct.usage"),
            user: keyed(&ticks, "user") * TICK_NANOSECONDS,
            kernel: keyed(&ticks, "system") * TICK_NANOSECONDS,
            per_cpu: text("cpuacct", "cpuacct.usage_percpu")
                .split_whitespace()
                .filter_map(|n| n.parse().ok())
                .collect(),
            periods: keyed(&throttling, "nr_periods"),
            throttled_periods: keyed(&throttling, "nr_throttled"),
            throttled: keyed(&throttling, "throttled_time"),
        },
        memory: Memory {
            usage: value("memory", "memory.usage_in_bytes"),
            max_usage: value("memory", "memory.max_usage_in_bytes"),
            limit: value("memory", "memory.limit_in_bytes"),
            failcnt: value("memory", "memory.failcnt"),
            anon: keyed(&stat, "total_rss"),
            file: keyed(&stat, "total_cache"),
            inactive_file: keyed(&stat, "total_inactive_file"),
            active_file: keyed(&stat, "total_active_file"),
            inactive_anon: keyed(&stat, "total_inactive_anon"),
            active_anon: keyed(&stat, "total_active_anon"),
            mapped_file: keyed(&stat, "total_mapped_file"),
            pgfault: keyed(&stat, "total_pgfault"),
            pgmajfault: keyed(&stat, "total_pgmajfault"),
            kernel: value("memory", "memory.kmem.usage_in_bytes"),
            swap_usage: value("memory", "memory.memsw.usage_in_bytes"),
            swap_limit: value("memory", "memory.memsw.limit_in_bytes"),
            ..Memory::default()
        },
        pids_current: value("pids", "pids.current"),
        pids_limit: controller("pids").map_or(0, |d| limit_or_none(&d.join("pids.max"))),
        io: Vec::new(),
    }
}

pub(crate) fn read_v2(directory: &Path) -> Metrics {
    let text = |f: &str| fs::read_to_string(directory.join(f)).unwrap_or_default();
    let cpu = text("cpu.stat");
    let stat = counters(&text("memory.stat"));
    let events = counters(&text("memory.events"));
    let of = |map: &BTreeMap<String, u64>, key: &str| map.get(key).copied().unwrap_or(0);
    Metrics {
        cpu: Cpu {
            total: keyed(&cpu, "usage_usec") * 1000,
            user: keyed(&cpu, "user_usec") * 1000,
            kernel: keyed(&cpu, "system_usec") * 1000,
            per_cpu: Vec::new(),
            periods: keyed(&cpu, "nr_periods"),
            throttled_periods: keyed(&cpu, "nr_throttled"),
            throttled: keyed(&cpu, "throttled_usec") * 1000,
        },
        memory: Memory {
            usage: number(&directory.join("memory.current")),
            max_usage: number(&directory.join("memory.peak")),
            limit: number(&directory.join("memory.max")),
            failcnt: of(&events, "max"),
            anon: of(&stat, "anon"),
            file: of(&stat, "file"),
            inactive_file: of(&stat, "inactive_file"),
            active_file: of(&stat, "active_file"),
            inactive_anon: of(&stat, "inactive_anon"),
            active_anon: of(&stat, "active_anon"),
            mapped_file: of(&stat, "file_mapped"),
            pgfault: of(&stat, "pgfault"),
            pgmajfault: of(&stat, "pgmajfault"),
            kernel: of(&stat, "kernel"),
            swap_usage: number(&directory.join("memory.swap.current")),
            swap_limit: number(&directory.join("memory.swap.max")),
            stat,
            events,
        },
        pids_current: number(&directory.join("pids.current")),
        pids_limit: limit_or_none(&directory.join("pids.max")),
        io: text("io.stat").lines().filter_map(io).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_files_become_metrics() {
        let d = tempfile::tempdir().unwrap();
        for (file, text) in [
            (
                "cpu.stat",
                "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_throttled 2\n",
            ),
            ("memory.current", "100\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 5\ninactive_file 6\nslab 8\n"),
            ("memory.events", "max 9\noom_kill 1\n"),
            (
                "io.stat",
                "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n253:1 \n",
            ),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
        ] {
            fs::write(d.path().join(file), text).unwrap();
        }
        let m = read_v2(d.path());
        assert_eq!(
            (m.cpu.total, m.cpu.user, m.cpu.throttled_periods),
            (7000, 4000, 2)
        );
        assert_eq!(
            (
                m.memory.usage,
                m.memory.limit,
                m.memory.anon,
                m.memory.inactive_file
            ),
            (100, u64::MAX, 5, 6)
        );
        assert_eq!((m.pids_current, m.pids_limit), (3, 0));
        assert_eq!((m.memory.stat["slab"], m.memory.events["oom_kill"]), (8, 1));
        let disk = Io {
            device: (8, 0),
            bytes: (1, 2),
            operations: (3, 4),
        };
        let idle = Io {
            device: (253, 1),
            ..Io::default()
        };
        assert_eq!(m.io, [disk, idle]);
    }

    #[test]
    fn missing_files_count_as_zero() {
        assert_eq!(read_v1(&|_| None), Metrics::default());
    }
}
