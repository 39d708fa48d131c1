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

/// The memory that a compiler has, its files included, in bytes; 0 for one that has ended. Pages of files that it has mapped
/// count twice.
pub fn memory_of(pid: i32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let resident = statm.split_whitespace().nth(1);
    let pages: u64 = resident.and_then(|n| n.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64 + files_of(pid)
}

/// The bytes of the files in a process's root, where that is a tmpfs of its own: a compiler's is, from its first moments on.
fn files_of(pid: i32) -> u64 {
    // With a slash, the root itself and not the link.
    let root = format!("/proc/{pid}/root/");
    let device = |path: &str| rustix::fs::stat(path).map(|stat| stat.st_dev);
    match (device(&root), device("/"), rustix::fs::statfs(&root)) {
        (Ok(its), Ok(own), Ok(files)) if its != own && files.f_type == libc::TMPFS_MAGIC => {
            (files.f_blocks - files.f_bfree) * files.f_bsize as u64
        }
        _ => 0,
    }
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
    fn the_files_of_a_compiler_are_its_memory_and_those_of_the_node_are_not() {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        const BYTES: u64 = 64 << 20;
        let root = tempfile::tempdir().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let (measured, go_on) = std::sync::mpsc::channel();
        let path = root.path();
        let confined = move || {
            let rests = || {
                let thread = rustix::thread::gettid().as_raw_nonzero().get();
                tell.send(thread).unwrap();
                go_on.recv().unwrap();
            };
            rests();
            // The thread's own file systems, as a compiler has them.
            slipway_sys::unshare(libc::CLONE_NEWNS).unwrap();
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).unwrap();
            mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).unwrap();
            std::env::set_current_dir(path).unwrap();
            slipway_sys::pivot_to_current_dir().unwrap();
            rests();
            let file = std::fs::File::create("/object").unwrap();
            fallocate(file, FallocateFlags::empty(), 0, BYTES).unwrap();
            rests();
        };
        std::thread::scope(|scope| {
            scope.spawn(confined);
            let [before, empty, full] = [(); 3].map(|()| {
                let memory = memory_of(told.recv().unwrap());
                measured.send(()).unwrap();
                memory
            });
            assert!(before.abs_diff(empty) < BYTES / 2, "{before} {empty}");
            assert!(full >= empty + BYTES / 2, "{empty} {full}");
        });
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
