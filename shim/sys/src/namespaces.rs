//! Namespaces of this process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::check;

/// setns(2) of the calling thread.
///
/// # Errors
/// The system call's.
pub fn setns(ns: BorrowedFd<'_>, kind: i32) -> io::Result<()> {
    // SAFETY: takes a descriptor and an integer.
    check(unsafe { libc::setns(ns.as_raw_fd(), kind) })
}

/// unshare(2) of namespaces.
///
/// # Errors
/// The system call's.
pub fn unshare(namespaces: i32) -> io::Result<()> {
    // SAFETY: takes an integer; only CLONE_NEW… flags are passed, never CLONE_FILES or CLONE_FS with threads about.
    check(unsafe { libc::unshare(namespaces) })
}

/// Sets the loopback interface of this process's network namespace up: a new one has it down. Async-signal-safe.
///
/// # Errors
/// socket's and ioctl's (netdevice(7)).
pub fn set_loopback_up() -> io::Result<()> {
    // SAFETY: a structure of integers and bytes, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    let (family, kind) = (libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC);
    // SAFETY: integers only.
    let socket = unsafe { libc::socket(family, kind, 0) };
    check(socket)?;
    // SAFETY: the descriptor is new and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: the request lives during the calls, which fill in and read its flags.
    unsafe {
        check(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCGIFFLAGS as _,
            &raw mut request,
        ))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        ))
    }
}
