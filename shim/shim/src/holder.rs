//! The pod's own container: a process that holds the pod's namespaces. No root file system, no program.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use slipway_spec::{Namespace, Plan};
use slipway_sys::{CgroupEntry, Child, Holding};

/// Starts the holder and waits until its namespaces are as the plan says, and it has given up all power: what comes into
/// the pod later may see and trace it.
///
/// The holder is a fork of the shim without an exec: it shares all its memory, and costs 10 KiB.
///
/// # Errors
/// A text that names the namespace, host name or sysctl.
pub fn hold(plan: &Plan, cgroup: &CgroupEntry) -> Result<Child, String> {
    let kinds = [
        (&plan.pid, libc::CLONE_NEWPID, "pid"),
        (&plan.network, libc::CLONE_NEWNET, "net"),
        (&plan.ipc, libc::CLONE_NEWIPC, "ipc"),
        (&plan.uts, libc::CLONE_NEWUTS, "uts"),
    ];
    let mut new = libc::CLONE_NEWNS;
    let mut joins = Vec::new();
    for (ns, flag, kind) in kinds {
        match ns {
            Namespace::Host => {}
            Namespace::New => new |= flag,
            Namespace::Path(path) => {
                let file =
                    File::open(path).map_err(|e| format!("linux.namespaces: {path}: {e}"))?;
                if let Some(sysctl) = plan.sysctls.iter().find(|sysctl| sysctl.namespace == flag)
                    && is_own(&file, kind)
                {
                    return Err(format!(
                        "linux.sysctl[{}]: {path} is the node's own namespace, so it would be set for the whole node",
                        sysctl.file
                    ));
                }
                joins.push((file.into(), flag));
            }
        }
    }
    let text = |s: String, field: &str| {
        CString::new(s).map_err(|_| format!("{field} contains a NUL byte"))
    };
    let hostname = match plan.uts {
        Namespace::New => text(plan.hostname.clone(), "hostname")?,
        _ => CString::default(),
    };
    let mut writes = Vec::new();
    for sysctl in &plan.sysctls {
        writes.push((
            text(format!("/proc/sys/{}", sysctl.file), "linux.sysctl")?,
            text(sysctl.value.clone(), "linux.sysctl")?,
        ));
    }
    let (read, ready) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| format!("pipe: {e}"))?;
    let holding = Holding {
        new,
        joins,
        hostname,
        writes,
        ready,
    };
    let child = match &plan.user {
        None => slipway_sys::fork_holder(cgroup, &holding),
        Some(user) => {
            let path = &user.path;
            let user = File::open(path).map_err(|e| format!("linux.namespaces: {path}: {e}"))?;
            slipway_sys::fork_holder_as_user(user.as_fd(), cgroup, &holding)
        }
    };
    let child = child.map_err(|e| format!("start the holder: {e}"))?;
    drop(holding);
    let mut code = [u8::MAX];
    let ready = becomes_readable(&read, START_PATIENCE);
    if ready {
        // End of file without a byte: the holder was killed.
        let _ = File::from(read).read(&mut code);
    }
    if code == [0] {
        return Ok(child);
    }
    let _ = slipway_sys::pidfd_kill(child.pidfd.as_fd(), libc::SIGKILL);
    becomes_readable(&child.pidfd, END_PATIENCE);
    let _ = slipway_sys::reap(child.pid);
    match ready {
        true => Err(explain(code[0], plan)),
        false => Err(format!(
            "the holder of the pod's namespaces was not ready within {} s",
            START_PATIENCE.as_secs()
        )),
    }
}

/// How long a holder may take: it writes sysctls and makes a mount, in a few milliseconds.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// How long one that was killed may take: the kernel may hold it.
const END_PATIENCE: Duration = Duration::from_secs(1);

fn becomes_readable(fd: &OwnedFd, within: Duration) -> bool {
    slipway_sys::readable_until([fd.as_fd()], Instant::now() + within).is_ok_and(|[ready]| ready)
}

/// Whether a namespace's file is that of this process's own namespace of its kind.
fn is_own(file: &File, kind: &str) -> bool {
    let own = rustix::fs::stat(format!("/proc/self/ns/{kind}"));
    let inode = |stat: rustix::io::Result<rustix::fs::Stat>| stat.map(|stat| stat.st_ino).ok();
    inode(own) == inode(rustix::fs::fstat(file))
}

/// The holder's one-byte report, see `slipway_sys::hold`.
fn explain(code: u8, plan: &Plan) -> String {
    match code {
        1 => "linux.namespaces: one of the paths cannot be joined".into(),
        2 => format!("hostname {:?} cannot be set", plan.hostname),
        3 => "linux.cgroupsPath: the kernel did not let the holder in".into(),
        4 => "linux.namespaces: the loopback interface of the new network cannot be set up".into(),
        5 => "the holder of the pod's namespaces could not give up its root, user and capabilities: mounting a tmpfs, pivot_root(2) and setresuid(2) must be allowed to the shim".into(),
        16.. if usize::from(code - 16) < plan.sysctls.len() => {
            let sysctl = &plan.sysctls[usize::from(code - 16)];
            format!(
                "linux.sysctl {}: the kernel does not take {:?} in this pod's namespaces",
                sysctl.file.replace('/', "."),
                sysctl.value
            )
        }
        _ => "the holder of the pod's namespaces was killed while it started".into(),
    }
}
