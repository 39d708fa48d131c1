//! A cgroup's counters as containerd's metrics messages, version 1 or 2 as the host has it.

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, Message};
use slipway_cgroup::{Cgroup, Io, Metrics};
use slipway_protocol::Usage;

/// The reply to Stats. Another type than these two would fail the node's whole list of container statistics.
pub fn read(cgroup: &Cgroup, memory: Option<Usage>) -> Result<Any, String> {
    let metrics = cgroup.metrics();
    let (type_url, value) = match cgroup.is_v2() {
        true => (
            "io.containerd.cgroups.v2.Metrics",
            encode(version2(&metrics), memory),
        ),
        false => (
            "io.containerd.cgroups.v1.Metrics",
            encode(version1(&metrics), memory),
        ),
    };
    Ok(Any {
        type_url: type_url.into(),
        value: value.map_err(|e| e.to_string())?,
        ..Any::default()
    })
}

/// The message, and the memory budget in fields of its own.
fn encode(mut metrics: impl Message, memory: Option<Usage>) -> protobuf::Result<Vec<u8>> {
    if let Some(memory) = memory {
        let [limit, used, peak, refused, held] = Usage::METRICS_FIELDS;
        let own = metrics.mut_unknown_fields();
        if let Some(bytes) = memory.limit {
            own.add_varint(limit, bytes);
        }
        own.add_varint(used, memory.used);
        own.add_varint(peak, memory.peak);
        own.add_varint(refused, memory.refused);
        own.add_varint(held, memory.held);
    }
    metrics.write_to_bytes()
}

fn version1(m: &Metrics) -> v1::Metrics {
    let entry = |usage, max, failcnt, limit| v1::MemoryEntry {
        usage,
        max,
        failcnt,
        limit,
        ..Default::default()
    };
    let memory = v1::MemoryStat {
        cache: m.memory.file,
        rss: m.memory.anon,
        mapped_file: m.memory.mapped_file,
        pg_fault: m.memory.pgfault,
        pg_maj_fault: m.memory.pgmajfault,
        inactive_anon: m.memory.inactive_anon,
        active_anon: m.memory.active_anon,
        inactive_file: m.memory.inactive_file,
        active_file: m.memory.active_file,
        total_cache: m.memory.file,
        total_rss: m.memory.anon,
        total_mapped_file: m.memory.mapped_file,
        total_pg_fault: m.memory.pgfault,
        total_pg_maj_fault: m.memory.pgmajfault,
        total_inactive_anon: m.memory.inactive_anon,
        total_active_anon: m.memory.active_anon,
        total_inactive_file: m.memory.inactive_file,
        total_active_file: m.memory.active_file,
        hierarchical_memory_limit: m.memory.limit,
        usage: Some(entry(
            m.memory.usage,
            m.memory.max_usage,
            m.memory.failcnt,
            m.memory.limit,
        ))
        .into(),
        swap: Some(entry(m.memory.swap_usage, 0, 0, m.memory.swap_limit)).into(),
        kernel: Some(entry(m.memory.kernel, 0, 0, 0)).into(),
        ..Default::default()
    };
    let usage = v1::CPUUsage {
        total: m.cpu.total,
        kernel: m.cpu.kernel,
        user: m.cpu.user,
        per_cpu: m.cpu.per_cpu.clone(),
        ..Default::default()
    };
    let throttling = v1::Throttle {
        periods: m.cpu.periods,
        throttled_periods: m.cpu.throttled_periods,
        throttled_time: m.cpu.throttled,
        ..Default::default()
    };
    let cpu = v1::CPUStat {
        usage: Some(usage).into(),
        throttling: Some(throttling).into(),
        ..Default::default()
    };
    let pids = v1::PidsStat {
        current: m.pids_current,
        limit: m.pids_limit,
        ..Default::default()
    };
    v1::Metrics {
        pids: Some(pids).into(),
        cpu: Some(cpu).into(),
        memory: Some(memory).into(),
        ..Default::default()
    }
}

fn version2(m: &Metrics) -> v2::Metrics {
    let stat = |key: &str| m.memory.stat.get(key).copied().unwrap_or(0);
    let memory = v2::MemoryStat {
        anon: m.memory.anon,
        file: m.memory.file,
        file_mapped: m.memory.mapped_file,
        inactive_anon: m.memory.inactive_anon,
        active_anon: m.memory.active_anon,
        inactive_file: m.memory.inactive_file,
        active_file: m.memory.active_file,
        pgfault: m.memory.pgfault,
        pgmajfault: m.memory.pgmajfault,
        usage: m.memory.usage,
        usage_limit: m.memory.limit,
        max_usage: m.memory.max_usage,
        swap_usage: m.memory.swap_usage,
        swap_limit: m.memory.swap_limit,
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        unevictable: stat("unevictable"),
        pgrefill: stat("pgrefill"),
        pgscan: stat("pgscan"),
        pgsteal: stat("pgsteal"),
        pgactivate: stat("pgactivate"),
        pgdeactivate: stat("pgdeactivate"),
        pglazyfree: stat("pglazyfree"),
        pglazyfreed: stat("pglazyfreed"),
        thp_fault_alloc: stat("thp_fault_alloc"),
        thp_collapse_alloc: stat("thp_collapse_alloc"),
        ..Default::default()
    };
    let event = |key: &str| m.memory.events.get(key).copied().unwrap_or(0);
    let memory_events = v2::MemoryEvents {
        low: event("low"),
        high: event("high"),
        max: event("max"),
        oom: event("oom"),
        oom_kill: event("oom_kill"),
        oom_group_kill: event("oom_group_kill"),
        ..Default::default()
    };
    let entry = |io: &Io| v2::IOEntry {
        major: io.device.0,
        minor: io.device.1,
        rbytes: io.bytes.0,
        wbytes: io.bytes.1,
        rios: io.operations.0,
        wios: io.operations.1,
        ..Default::default()
    };
    let io = v2::IOStat {
        usage: m.io.iter().map(entry).collect(),
        ..Default::default()
    };
    let cpu = v2::CPUStat {
        usage_usec: m.cpu.total / 1000,
        user_usec: m.cpu.user / 1000,
        system_usec: m.cpu.kernel / 1000,
        nr_periods: m.cpu.periods,
        nr_throttled: m.cpu.throttled_periods,
        throttled_usec: m.cpu.throttled / 1000,
        ..Default::default()
    };
    let pids = v2::PidsStat {
        current: m.pids_current,
        limit: m.pids_limit,
        ..Default::default()
    };
    v2::Metrics {
        pids: Some(pids).into(),
        cpu: Some(cpu).into(),
        memory: Some(memory).into(),
        memory_events: Some(memory_events).into(),
        io: Some(io).into(),
        ..Default::default()
    }
}
