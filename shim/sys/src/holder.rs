//! A pod's holder: a process that keeps the pod's namespaces, and has nothing else.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::check;
use crate::namespaces::{set_loopback_up, setns};
use crate::process::exit_now;
use crate::spawn::{CgroupEntry, Child, CloneArgs, Cloned, clone3, enter_tasks, reset_signals};
use crate::user::{clear_bounding_set, drop_capabilities, join_new_session_keyring};

/// Nobody's number, of most systems and of user namespaces as Kubernetes makes them.
const NOBODY: u32 = 65534;

/// A pod's holder: a forked copy of the caller, born in new namespaces and a cgroup.
///
/// # Errors
/// clone3's. What goes wrong in the holder itself is said by [`Holding::ready`].
pub fn fork_holder(cgroup: &CgroupEntry, holding: &Holding) -> io::Result<Child> {
    let tasks = cgroup.tasks();
    // SAFETY: the child makes system calls only, on memory that was allocated before: the caller may have other threads.
    match unsafe { clone3(holding.new, cgroup.v2.as_ref().map(AsFd::as_fd)) }? {
        Cloned::Parent(child) => Ok(child),
        Cloned::Child => {
            reset_signals();
            let status = run_holder(enter_tasks(&tasks), holding);
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(status) }
        }
    }
}

/// Like [`fork_holder`], in a user namespace to which the new ones belong: as its root, whom the host does not know.
///
/// # Errors
/// clone3's, or setns's of the user namespace.
pub fn fork_holder_as_user(
    user: BorrowedFd<'_>,
    cgroup: &CgroupEntry,
    holding: &Holding,
) -> io::Result<Child> {
    use std::io::Read;
    let tasks = cgroup.tasks();
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // A namespace belongs to the user namespace of who makes it, and a new pid namespace begins with a child: one process
    // joins the first, and its own child, which the kernel gives to its parent, is the holder.
    // SAFETY: both branches make system calls only, on memory that was allocated before, and so does the holder.
    let between = match unsafe { clone3(0, cgroup.v2.as_ref().map(AsFd::as_fd)) }? {
        Cloned::Parent(child) => child,
        Cloned::Child => {
            reset_signals();
            let in_cgroup = enter_tasks(&tasks);
            let args = CloneArgs {
                flags: (holding.new | libc::CLONE_PARENT) as u64,
                ..CloneArgs::default()
            };
            // SAFETY: see above; without CLONE_VM the child runs on a copy of this stack.
            unsafe {
                let joined = become_root_of(user);
                let pid = match joined {
                    Ok(()) => {
                        libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>())
                    }
                    Err(_) => -1,
                };
                if pid == 0 {
                    libc::_exit(run_holder(in_cgroup, holding));
                }
                let told = match pid {
                    -1 => -io::Error::last_os_error()
                        .raw_os_error()
                        .unwrap_or(libc::EIO),
                    pid => pid as i32,
                };
                libc::write(
                    write.as_raw_fd(),
                    (&raw const told).cast(),
                    size_of::<i32>(),
                );
                libc::_exit(0)
            }
        }
    };
    drop(write);
    let mut told = [0; size_of::<i32>()];
    let heard = std::fs::File::from(read).read_exact(&mut told);
    // SAFETY: takes integers; the child has said all it had to, and ends.
    unsafe { libc::waitpid(between.pid, std::ptr::null_mut(), 0) };
    heard?;
    match i32::from_ne_bytes(told) {
        error @ ..0 => Err(io::Error::from_raw_os_error(-error)),
        // A child of this process from here on: its number is not another's before it is reaped.
        pid => Ok(Child {
            pid,
            // SAFETY: takes integers.
            pidfd: match unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } {
                -1 => return Err(io::Error::last_os_error()),
                // SAFETY: a new descriptor, which nothing else owns.
                fd => unsafe { OwnedFd::from_raw_fd(fd as RawFd) },
            },
        }),
    }
}

/// Enters a user namespace as its root, without groups. Async-signal-safe; of a process with one thread.
fn become_root_of(user: BorrowedFd<'_>) -> io::Result<()> {
    setns(user, libc::CLONE_NEWUSER)?;
    // SAFETY: integers and an empty list. The system calls themselves: the C library's functions speak to other threads.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) as i32)?;
        check(libc::syscall(libc::SYS_setresgid, 0, 0, 0) as i32)?;
        check(libc::syscall(libc::SYS_setresuid, 0, 0, 0) as i32)
    }
}

/// Makes an empty file system the root of this process, which has a mount namespace of its own. No path is needed for it: the
/// root of a user namespace may enter few of the node's directories.
fn enter_empty_root() -> rustix::io::Result<()> {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
        UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change,
        move_mount, unmount,
    };
    mount_change(
        c"/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let tmpfs = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (option, value) in [(c"size", c"4k"), (c"nr_inodes", c"2"), (c"mode", c"555")] {
        fsconfig_set_string(&tmpfs, option, value)?;
    }
    fsconfig_create(&tmpfs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let over = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&root, c"", rustix::fs::CWD, c"/", over)?;
    rustix::process::fchdir(&root)?;
    rustix::process::pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

/// Gives up all that a holder was made with: its root becomes an empty file system, its user nobody, its capabilities none.
/// Its neighbours in a shared pid namespace may trace it. Async-signal-safe: neither allocates nor locks.
fn give_up_everything() -> rustix::io::Result<()> {
    use rustix::process::{Gid, Uid};
    enter_empty_root()?;
    // One without a keyring of its own has the shim's. A kernel without keys has none.
    let _ = join_new_session_keyring();
    clear_bounding_set();
    rustix::thread::set_thread_groups(&[])?;
    for number in [NOBODY, 0] {
        let (user, group) = (Uid::from_raw(number), Gid::from_raw(number));
        let set = rustix::thread::set_thread_res_gid(group, group, group)
            .and_then(|()| rustix::thread::set_thread_res_uid(user, user, user));
        match set {
            Ok(()) => break,
            // A user namespace that has no such number: its root, who is nobody outside.
            Err(rustix::io::Errno::INVAL) if number == NOBODY => {}
            Err(e) => return Err(e),
        }
    }
    drop_capabilities()?;
    rustix::thread::set_no_new_privs(true)
}

/// What a pod's holder makes of the namespaces that it is born in.
#[derive(Debug)]
pub struct Holding {
    /// The new namespaces (`CLONE_NEW…` flags), one of mounts among them.
    pub new: i32,
    /// Namespaces to join, and their kinds.
    pub joins: Vec<(OwnedFd, i32)>,
    /// Host name; empty keeps what there is.
    pub hostname: CString,
    /// Files to write (sysctls): path and text.
    pub writes: Vec<(CString, CString)>,
    /// Where one byte says how it went: 0 well, 1 a namespace, 2 the host name, 3 the cgroup, 4 the loopback interface,
    /// 5 its own root and user, 16 + i the i-th write.
    pub ready: OwnedFd,
}

/// Body of a pod's holder: makes its namespaces what they are to be, gives up all power, and then sleeps and reaps until it
/// is killed.
///
/// It is pid 1 of a shared pid namespace, so it must reap; SIGTERM ends it as it ends a pause container.
fn run_holder(in_cgroup: bool, holding: &Holding) -> i32 {
    let ready = holding.ready.as_raw_fd();
    // SAFETY: system calls on memory that was allocated before the clone; runs in its own process.
    unsafe {
        libc::setsid();
        if !in_cgroup {
            return report(ready, 3);
        }
        for (fd, kind) in &holding.joins {
            if libc::setns(fd.as_raw_fd(), *kind) != 0 {
                return report(ready, 1);
            }
        }
        let name = &holding.hostname;
        if !name.is_empty() && libc::sethostname(name.as_ptr(), name.count_bytes()) != 0 {
            return report(ready, 2);
        }
        if holding.new & libc::CLONE_NEWNET != 0 && set_loopback_up().is_err() {
            return report(ready, 4);
        }
        for (i, (path, value)) in holding.writes.iter().enumerate() {
            let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            let n = value.count_bytes();
            if fd < 0 || libc::write(fd, value.as_ptr().cast(), n) != n as isize {
                return report(
                    ready,
                    16u8.saturating_add(u8::try_from(i).unwrap_or(u8::MAX)),
                );
            }
            libc::close(fd);
        }
        if give_up_everything().is_err() {
            return report(ready, 5);
        }
        // Of a shim that was killed before containerd had spoken to it, nobody would end what it has left. A change of user
        // takes this away, so not before.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::signal(libc::SIGTERM, on_stop as *const () as libc::sighandler_t);
        libc::signal(libc::SIGINT, on_stop as *const () as libc::sighandler_t);
        report(ready, 0);
        // `ready` must close, else its reader would wait for the holder's whole life.
        libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0u32);
        libc::prctl(libc::PR_SET_NAME, c"slipway-holder".as_ptr());
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        loop {
            libc::sigwaitinfo(&raw const set, std::ptr::null_mut());
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
        }
    }
}

extern "C" fn on_stop(_signal: libc::c_int) {
    exit_now(0)
}

fn report(fd: RawFd, code: u8) -> i32 {
    // SAFETY: one byte of a local; the descriptor is the caller's.
    unsafe { libc::write(fd, (&raw const code).cast(), 1) };
    i32::from(code)
}
