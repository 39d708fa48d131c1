//! This process and its children: descriptors, limits, signals, ends.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::check;

/// Makes a closed reader end this process, as programs of a shell's pipe are expected to: Rust starts with SIGPIPE
/// ignored.
pub fn end_at_closed_pipes() {
    // SAFETY: a disposition, set before there is a second thread.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Takes a descriptor that whoever started this process has left open for it. Each can be taken once.
///
/// # Errors
/// EBADF where the number is not open, or is one that this process has opened or taken itself.
pub fn inherit(fd: RawFd) -> io::Result<OwnedFd> {
    // What came through execve(2) is not closed by it, and what is opened here, by Rust's library or by rustix, is.
    // SAFETY: integers only.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    check(flags)?;
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: integers only.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, it was not this process's before, and from now on the flag keeps it from being taken again.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The null device, to be read and written: a standard stream of a process that needs none.
///
/// # Errors
/// open's.
pub fn open_null() -> io::Result<OwnedFd> {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null");
    file.map(OwnedFd::from)
}

/// A descriptor whose events tokio tells. Within a runtime.
///
/// # Errors
/// epoll's, for example for a regular file.
#[cfg(feature = "tokio")]
pub fn async_fd(
    fd: OwnedFd,
    interest: tokio::io::Interest,
) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd refers to one open file until it is dropped, and AsyncFd takes it from epoll before.
    unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, interest) }
        .map_err(io::Error::from)
}

/// The user at the other end of a Unix socket, when it was connected (SO_PEERCRED). The process may be one that this one's pid
/// namespace has no number for.
///
/// # Errors
/// getsockopt's.
pub fn peer_user(socket: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: a structure of integers, for which zero is a value.
    let mut peer: libc::ucred = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes as much as there is room for.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    check(done).map(|()| peer.uid)
}

/// Ends the process without its exit handlers (_exit(2)). Async-signal-safe.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: takes an integer.
    unsafe { libc::_exit(status) }
}

/// setrlimit(2).
///
/// # Errors
/// The system call's.
pub fn set_rlimit(resource: i32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: a local by pointer. The cast is the C library's type for the same number.
    check(unsafe { libc::setrlimit(resource as _, &raw const limit) })
}

/// Waits for a child's end without blocking; `None` while it runs. The status is a shell's: code, or 128 + signal.
///
/// # Errors
/// ECHILD where the process is not a child.
pub fn reap(pid: i32) -> io::Result<Option<u32>> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    match unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        _ if libc::WIFSIGNALED(status) => Ok(Some(128 + libc::WTERMSIG(status) as u32)),
        _ => Ok(Some(libc::WEXITSTATUS(status) as u32)),
    }
}

/// Takes the children of a process group that was killed off the kernel's table, within a second.
pub fn reap_group(group: i32) {
    for _ in 0..1000 {
        // SAFETY: takes integers; no status is asked for.
        match unsafe { libc::waitpid(-group, std::ptr::null_mut(), libc::WNOHANG) } {
            // There is none (left).
            -1 => return,
            0 => std::thread::sleep(std::time::Duration::from_millis(1)),
            _ => {}
        }
    }
}

/// Sends a signal (any number that kill(2) takes) to the process behind a pidfd.
///
/// # Errors
/// ESRCH once it ended, EINVAL for a number that is no signal.
pub fn pidfd_kill(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no siginfo is passed.
    let r = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(r as i32)
}

/// kill(2).
///
/// # Errors
/// The system call's.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::kill(pid, signal) })
}
