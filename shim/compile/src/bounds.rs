//! What a compile may take of the node.

/// Most memory of a compile in bytes, however much the node has. The largest module tried (39 MB, unoptimised) took 6.6 GB.
const MAX_MEMORY: u64 = 16 << 30;

/// The bound of compiles' memory in bytes on a node with so much available. A quarter is left for their files, which are
/// memory too, and for others.
pub fn memory_bound(available: u64) -> u64 {
    (available / 4 * 3).min(MAX_MEMORY)
}

/// MemAvailable of /proc/meminfo in bytes; 0 where it cannot be read.
pub fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The memory that a compiler has, its files included, in bytes; 0 for one that has ended.
pub fn memory_of(pid: i32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let resident = statm.split_whitespace().nth(1);
    let pages: u64 = resident.and_then(|n| n.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// Whether a process that has ended, and waits to be reaped, had used as much CPU time as its limit allows.
pub(crate) fn has_used_up_its_cpu_time(pid: i32) -> bool {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let used = read("stat").and_then(|stat| cpu_seconds(&stat));
    let limit = read("limits").and_then(|limits| cpu_limit(&limits));
    matches!((used, limit), (Some(used), Some(limit)) if used + 1 >= limit)
}

/// User and system time of /proc/PID/stat, in whole seconds.
fn cpu_seconds(stat: &str) -> Option<u64> {
    // The name may have spaces and brackets; what follows the last one are numbers: state is the third field.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) / rustix::param::clock_ticks_per_second())
}

/// The hard limit of CPU time in /proc/PID/limits, in seconds.
fn cpu_limit(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max cpu time"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compile_gets_three_quarters_of_the_available_memory_up_to_a_maximum() {
        assert_eq!(memory_bound(0), 0);
        assert_eq!(memory_bound(2 << 30), 3 << 29);
        assert_eq!(memory_bound(u64::MAX), MAX_MEMORY);
    }

    #[test]
    fn cpu_time_is_read_as_the_kernel_writes_it() {
        let ticks = rustix::param::clock_ticks_per_second();
        let stat = format!(
            "7 (a ) b) Z 1 7 7 0 -1 4 0 0 0 0 {} {} 0 0 20",
            3 * ticks,
            4 * ticks
        );
        assert_eq!(cpu_seconds(&stat), Some(7));
        assert_eq!(cpu_seconds("7 (a"), None);
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax cpu time              600                  600                  seconds\n";
        assert_eq!(cpu_limit(limits), Some(600));
        assert_eq!(
            cpu_limit("Max cpu time  unlimited  unlimited  seconds"),
            None
        );
    }
}
