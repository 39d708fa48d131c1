//! The namespaces that a guest joins and makes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use slipway_protocol::Launch;

/// Joins and makes the namespaces of the plan. New ones of pids and mounts came with the process; one of pids that is joined
/// is for its child.
pub fn enter(launch: &Launch, container: Option<BorrowedFd<'_>>) -> Result<(), String> {
    for (ns, kind) in &launch.join {
        let file = open(ns, container)?;
        slipway_sys::setns(file.as_fd(), *kind)
            .map_err(|e| format!("linux.namespaces: join {ns}: {e}"))?;
    }
    unshare(launch.unshare & !libc::CLONE_NEWCGROUP)?;
    if launch.unshare & libc::CLONE_NEWNET != 0 {
        slipway_sys::set_loopback_up().map_err(|e| format!("loopback interface: {e}"))?;
    }
    if launch.unshare & libc::CLONE_NEWUTS != 0 && !launch.hostname.is_empty() {
        rustix::system::sethostname(launch.hostname.as_bytes())
            .map_err(|e| format!("hostname {:?}: {e}", launch.hostname))?;
    }
    Ok(())
}

/// A namespace's file; an exec's is found from its container's process.
pub fn open(path: &str, container: Option<BorrowedFd<'_>>) -> Result<OwnedFd, String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(container.unwrap_or(CWD), path, flags, Mode::empty())
        .map_err(|e| format!("linux.namespaces: {path}: {e}"))
}

/// New ones of these kinds (`CLONE_NEW…`), if any.
pub fn unshare(namespaces: i32) -> Result<(), String> {
    if namespaces == 0 {
        return Ok(());
    }
    slipway_sys::unshare(namespaces)
        .map_err(|e| format!("linux.namespaces: make {namespaces:#x}: {e}"))
}
