//! The operating system's process behind a guest: ended, reaped, measured.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use slipway_sys::Child;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub struct Process {
    pub pid: i32,
    pub pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    pub fn new(child: Child) -> io::Result<Self> {
        Ok(Self {
            pid: child.pid,
            pidfd: slipway_sys::async_fd(child.pidfd, Interest::READABLE)?,
        })
    }

    /// Ends it, where it has not ended: then it is to be taken off the kernel's table.
    pub fn kill(&self) -> Option<Dying> {
        let pidfd = self.pidfd.get_ref();
        slipway_sys::pidfd_kill(pidfd.as_fd(), libc::SIGKILL).ok()?;
        Some(Dying {
            pid: self.pid,
            pidfd: pidfd.try_clone().ok()?,
        })
    }

    /// Waits for its end, and takes it off the kernel's table; the status, where it was not reaped before.
    pub async fn end(&self) -> Option<u32> {
        let _ = self.pidfd.readable().await;
        slipway_sys::reap(self.pid).ok().flatten()
    }
}

/// A child of this process that was killed.
pub struct Dying {
    pid: i32,
    pidfd: OwnedFd,
}

impl Dying {
    /// Takes it off the kernel's table. It ends at once; one that the kernel holds is waited for a second.
    pub fn reap(&self) {
        let second = Instant::now() + Duration::from_secs(1);
        let _ = slipway_sys::readable_until([self.pidfd.as_fd()], second);
        let _ = slipway_sys::reap(self.pid);
    }
}

/// What RLIMIT_DATA counts of a process, in bytes: statm's sixth field.
pub fn data(pid: i32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: Option<u64> = statm.split(' ').nth(5).and_then(|n| n.parse().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// What a process has that is no page of a file, in bytes, with its page tables.
pub fn anonymous(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kilobytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|rest| rest.split_whitespace().next());
        number.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    };
    let fields = ["RssAnon:", "RssShmem:", "VmPTE:"];
    fields.iter().map(|key| kilobytes(key) << 10).sum()
}
