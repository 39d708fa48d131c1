//! What the guest gives up before the first byte of anybody's code is loaded.

use std::os::fd::{AsFd, BorrowedFd};

use slipway_protocol::{FromGuest, Launch, Timeline};

use crate::Stop;
use crate::lsm::Confinement;
use crate::sys::{exit, signals};
use crate::user::User;

/// Limits, then the user: after this call the process is what the spec's user may be, without any capability.
pub fn drop_all(
    launch: &Launch,
    user: Option<User<'_>>,
    confinement: Confinement<'_>,
) -> Result<(), String> {
    for &(resource, soft, hard) in &launch.program.rlimits {
        slipway_sys::set_rlimit(resource, soft, hard).map_err(|e| {
            format!("process.rlimits: resource {resource}, soft {soft}, hard {hard}: {e}")
        })?;
    }
    if let Some(seconds) = launch.program.cpu_time {
        signals::report_cpu_time(seconds);
        // SIGXCPU at the soft limit; the hard one is for a program that is in the kernel.
        slipway_sys::set_rlimit(libc::RLIMIT_CPU as i32, seconds, seconds.saturating_add(1))
            .map_err(|e| format!("CPU-time budget of {seconds} s: {e}"))?;
    }
    if let Some(mask) = launch.program.umask {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
    }
    slipway_confine::leave_session_keyring()?;
    if let Some(user) = user {
        user.enter()?;
    }
    slipway_sys::become_user(
        launch.program.uid,
        launch.program.gid,
        &launch.program.groups,
    )
    .map_err(|e| format!("process.user: {e}"))?;
    // A profile is the program's, and need not allow what became of this process so far. With no_new_privs, one that has a profile
    // already could not change it.
    confinement.enter()?;
    slipway_sys::set_no_new_privs()
}

/// Goes on in the pid namespace that the launch names, where others are: a sidecar's, a debugging container's processes. They
/// see this one, and trace it if they may, so it comes among them when it has nothing left to take: as a new process, for
/// none can change its own pid namespace.
pub fn go_on_among_others(control: BorrowedFd<'_>, steps: Timeline) -> Result<(), Stop> {
    let place = slipway_sys::go_on_in_child().map_err(|e| {
        format!("linux.namespaces: a process in the pod's pid namespace: {e}; a limit of processes must have room for two")
    })?;
    match place {
        slipway_sys::Place::Child => Ok(()),
        slipway_sys::Place::Parent(child, told) => {
            let pid = child.pid;
            let message = FromGuest::Replaced { pid, steps };
            slipway_protocol::send(control, &message, &[child.pidfd.as_fd()])?;
            let _ = rustix::io::write(&told, b"1");
            exit(0)
        }
    }
}
