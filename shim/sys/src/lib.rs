//! The system calls that safe libraries do not offer, and nothing else.
//!
//! Everything here is Linux; what `rustix` offers as a safe function is called from there directly.
//! This crate is the only place (besides the guest's engine hook) that may say `unsafe`.

mod shared;

pub use shared::{SharedWords, lock_byte, locked_bytes};

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

/// Makes a closed reader end this process, as programs of a shell's pipe are expected to: Rust starts with SIGPIPE
/// ignored.
pub fn end_at_closed_pipes() {
    // SAFETY: a disposition, set before there is a second thread.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// `CLONE_INTO_CGROUP` of clone3(2): the child starts in the cgroup v2 directory given by descriptor.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child process: its pid as this process sees it, and a descriptor that becomes readable when it ends.
#[derive(Debug)]
pub struct Child {
    /// Process id in the caller's pid namespace.
    pub pid: i32,
    /// pidfd_open(2)-like descriptor, close-on-exec.
    pub pidfd: OwnedFd,
}

/// What a child does between clone and exec: only what is async-signal-safe, all memory allocated before.
#[derive(Debug)]
pub struct Exec {
    /// Program; absolute path.
    pub program: CString,
    /// argv, the first being the program's name.
    pub argv: Vec<CString>,
    /// Environment as `NAME=value`.
    pub envp: Vec<CString>,
    /// Descriptors of the child: `fds[i]` becomes descriptor `i`; everything above is closed.
    pub fds: Vec<OwnedFd>,
    /// Working directory; the caller's where there is none.
    pub directory: Option<CString>,
    /// For a program that processes of a pod may see, with a mount namespace of its own: the directory with all its files. It
    /// becomes a read-only mount in there first, and no mount in there reaches the caller's. `/proc/PID/exe` and `map_files` lead to the mounts that a process's files
    /// were opened on, and a neighbour could write to the node's.
    pub read_only: Option<CString>,
    /// It is killed when the thread that starts it ends, until it changes its user (prctl(2), PR_SET_PDEATHSIG).
    pub with_parent: bool,
}

/// How a child gets into its cgroup before it runs anything; the default is the parent's.
///
/// Never by a write of the child's pid into `cgroup.procs`: after a quiet moment that waits for an RCU grace period,
/// 10 ms p50. Born inside (version 2) or moving itself as a single thread (version 1), the kernel needs no such lock.
#[derive(Debug, Default)]
pub struct CgroupEntry {
    /// Version 2: the directory to be born in.
    pub v2: Option<OwnedFd>,
    /// Version 1: the `tasks` file of each hierarchy, open for writing.
    pub v1: Vec<OwnedFd>,
}

impl CgroupEntry {
    fn tasks(&self) -> Vec<RawFd> {
        self.v1.iter().map(AsRawFd::as_raw_fd).collect()
    }
}

/// Moves the calling thread, the only one of its process. Async-signal-safe.
fn enter_tasks(tasks: &[RawFd]) -> bool {
    tasks.iter().all(|fd| {
        // SAFETY: one byte of a constant; the descriptors were opened before the clone.
        unsafe { libc::write(*fd, c"0".as_ptr().cast(), 1) == 1 }
    })
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// What clone3 made: the parent's view, or "you are the child".
enum Cloned {
    Parent(Child),
    Child,
}

/// clone3(2) without CLONE_VM: the child gets a copy of the caller's memory.
///
/// # Safety
/// The caller is single-threaded, or the child calls only async-signal-safe functions until it execs or ends.
unsafe fn clone3(namespaces: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let args = CloneArgs {
        flags: namespaces as u64
            | libc::CLONE_PIDFD as u64
            | if cgroup.is_some() {
                CLONE_INTO_CGROUP
            } else {
                0
            },
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    // SAFETY: `args` and `pidfd` outlive the call; without CLONE_VM the child runs on a copy of this stack.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => Ok(Cloned::Parent(Child {
            pid: pid as i32,
            // SAFETY: the kernel has just stored a new descriptor there, which nothing else owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        })),
    }
}

/// Restores what a shim changes for itself and a new program must not inherit: signal mask and dispositions.
fn reset_signals() {
    // SAFETY: plain calls on a local set; dispositions are reset to the default, which needs no handler to stay valid.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Starts a program in new namespaces (`CLONE_NEW…` flags) and in a cgroup.
///
/// # Errors
/// clone3's. That the cgroup could not be entered is seen as the child's end with status 126, a failed exec with 127.
pub fn spawn(exec: Exec, namespaces: i32, cgroup: &CgroupEntry) -> io::Result<Child> {
    let tasks = cgroup.tasks();
    let argv = pointers(&exec.argv);
    let envp = pointers(&exec.envp);
    let mut fds: Vec<RawFd> = exec.fds.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: the child branch below only makes system calls on memory that was allocated before.
    let cloned = unsafe { clone3(namespaces, cgroup.v2.as_ref().map(AsFd::as_fd)) };
    if let Ok(Cloned::Child) = cloned {
        reset_signals();
        if exec.with_parent {
            // SAFETY: integers only.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        }
        if !enter_tasks(&tasks) {
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(126) }
        }
        // SAFETY: descriptors and strings live in this copy of the parent's memory until exec or _exit.
        unsafe {
            libc::setsid();
            // First out of the way of the targets, then onto them.
            let above = fds.len() as RawFd;
            for fd in &mut fds {
                *fd = libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, above);
            }
            for (target, fd) in fds.iter().enumerate() {
                if libc::dup2(*fd, target as RawFd) < 0 {
                    libc::_exit(127);
                }
            }
            libc::syscall(libc::SYS_close_range, above as u32, u32::MAX, 0u32);
            if exec
                .directory
                .as_ref()
                .is_some_and(|d| libc::chdir(d.as_ptr()) != 0)
            {
                libc::_exit(127);
            }
            let read_only = exec.read_only.as_deref().map(make_read_only);
            if read_only.is_some_and(|made| made.is_err()) {
                libc::_exit(127);
            }
            libc::execve(exec.program.as_ptr(), argv.as_ptr(), envp.as_ptr());
            libc::_exit(127)
        }
    }
    match cloned? {
        Cloned::Parent(child) => Ok(child),
        Cloned::Child => unreachable!("the child has left through exec or _exit"),
    }
}

/// Puts a read-only mount of a directory over it, in a mount namespace that was just made. Async-signal-safe: neither allocates
/// nor locks.
fn make_read_only(directory: &CStr) -> io::Result<()> {
    use rustix::mount::{
        MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree,
    };
    // Slave, not private: a volume with mountPropagation HostToContainer gets the host's later mounts.
    mount_change(
        c"/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(rustix::fs::CWD, directory, flags)?;
    let attributes = MountAttributes {
        set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        ..MountAttributes::default()
    };
    set_mount_attributes(tree.as_fd(), attributes, true)?;
    let over = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    move_mount(&tree, c"", rustix::fs::CWD, directory, over)?;
    Ok(())
}

/// What [`go_on_in_child`] returned in.
#[derive(Debug)]
pub enum Place {
    /// The old process, which is to end. The new one goes on when a byte is written to the pipe, and ends when the pipe is
    /// closed without one.
    Parent(Child, OwnedFd),
    /// The new process.
    Child,
}

/// Lets a child of this process's parent go on where this one is, born in the pid namespace that was chosen by setns(2)
/// before: a process cannot change its own. The child leads a session of its own from when it goes on; before, it is in this
/// process's group, where the parent finds one that it was never told of.
///
/// # Errors
/// clone3's: EAGAIN where a limit of processes has no room for two; a process with several threads.
pub fn go_on_in_child() -> io::Result<Place> {
    single_threaded()?;
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut pidfd: RawFd = -1;
    let args = CloneArgs {
        // The signal at its end is that of its parent's other children.
        flags: (libc::CLONE_PARENT | libc::CLONE_PIDFD) as u64,
        pidfd: &raw mut pidfd as u64,
        ..CloneArgs::default()
    };
    // SAFETY: `args` and `pidfd` outlive the call; the process has one thread, as was just seen, so its copy is whole.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(write);
            let told = rustix::io::retry_on_intr(|| rustix::io::read(&read, &mut [0u8; 1]));
            if told != Ok(1) || rustix::process::setsid().is_err() {
                // SAFETY: ends a process that nobody waits for.
                unsafe { libc::_exit(1) }
            }
            Ok(Place::Child)
        }
        pid => {
            let child = Child {
                pid: pid as i32,
                // SAFETY: the kernel has just stored a new descriptor there, which nothing else owns.
                pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
            };
            Ok(Place::Parent(child, write))
        }
    }
}

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
            let status = hold(enter_tasks(&tasks), holding);
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
                    libc::_exit(hold(in_cgroup, holding));
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

/// While it lives, files that this process makes are another user's; what it may do stays the same.
#[derive(Debug)]
pub struct FileOwner(());

impl FileOwner {
    /// For a process with one thread that is root.
    ///
    /// # Errors
    /// prctl's; a process with several threads, of which it would hold for one.
    pub fn set(uid: u32, gid: u32) -> io::Result<Self> {
        single_threaded()?;
        // Without it, the next call would take away the capabilities over files.
        // SAFETY: integers only.
        check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, libc::SECBIT_NO_SETUID_FIXUP) })?;
        set_file_ids(uid, gid);
        Ok(Self(()))
    }
}

impl Drop for FileOwner {
    fn drop(&mut self) {
        set_file_ids(0, 0);
        // SAFETY: integers only.
        unsafe { libc::prctl(libc::PR_SET_SECUREBITS, 0) };
    }
}

fn set_file_ids(uid: u32, gid: u32) {
    // SAFETY: integers only; they cannot fail for who has CAP_SETUID and CAP_SETGID.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    }
}

/// Forks; `Ok(true)` in the child.
///
/// # Errors
/// fork's; a process with several threads, of which the child would lack all but one.
pub fn fork() -> io::Result<bool> {
    single_threaded()?;
    // SAFETY: the process has one thread, so its copy is whole and may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid == 0),
    }
}

/// An error unless the calling thread is the only one of its process.
fn single_threaded() -> io::Result<()> {
    // Takes nothing apart, and is refused to who shares it: unshare(2). It needs no /proc.
    // SAFETY: integers only.
    match check(unsafe { libc::unshare(libc::CLONE_THREAD) }) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Err(io::Error::other(
            "the process has several threads, and this is for one that has one",
        )),
        single => single,
    }
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

/// A descriptor whose events tokio tells. Within a runtime.
///
/// # Errors
/// epoll's, for example for a regular file.
#[cfg(feature = "tokio")]
pub fn watch(
    fd: OwnedFd,
    interest: tokio::io::Interest,
) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd refers to one open file until it is dropped, and AsyncFd takes it from epoll before.
    unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, interest) }
        .map_err(io::Error::from)
}

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

/// The most supplementary groups of a process, as limits.h of Linux has it (NGROUPS_MAX).
const MAX_GROUPS: usize = 65_536;

/// Becomes a user for good: groups, gid, uid, no capability left in any set. Another process of this user cannot trace it, nor
/// read or write its memory, even where it has been this user's before. [`set_no_new_privs`] has to follow.
///
/// For single-threaded processes: the calls are the kernel's, which change one thread.
///
/// # Errors
/// The first call that fails, named.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Result<(), String> {
    use rustix::process::{Gid, Uid};
    clear_bounding_set();
    let all: Vec<Gid> = groups.iter().map(|g| Gid::from_raw(*g)).collect();
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&all).map_err(|e| match groups.len() > MAX_GROUPS {
        true => format!(
            "{} supplementary groups, the kernel takes {MAX_GROUPS}",
            groups.len()
        ),
        false => format!("supplementary groups {groups:?}: {e}"),
    })?;
    rustix::thread::set_thread_res_gid(group, group, group)
        .map_err(|e| format!("group {gid}: {e}"))?;
    rustix::thread::set_thread_res_uid(user, user, user).map_err(|e| format!("user {uid}: {e}"))?;
    drop_capabilities().map_err(|e| format!("capabilities: {e}"))?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|e| format!("not dumpable: {e}"))
}

/// No file that this process executes gives it more than it has.
///
/// # Errors
/// prctl's.
pub fn set_no_new_privs() -> Result<(), String> {
    rustix::thread::set_no_new_privs(true).map_err(|e| format!("no_new_privs: {e}"))
}

fn clear_bounding_set() {
    for capability in 0..u64::BITS {
        // Fails past the last one that the kernel knows.
        let bit = rustix::thread::CapabilitySet::from_bits_retain(1 << capability);
        if rustix::thread::remove_capability_from_bounding_set(bit).is_err() {
            break;
        }
    }
}

fn drop_capabilities() -> rustix::io::Result<()> {
    use rustix::thread::{CapabilitySet, CapabilitySets};
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none)
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

/// Nobody's number, of most systems and of user namespaces as Kubernetes makes them.
const NOBODY: u32 = 65534;

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

/// Lets a filter decide about each further system call of this thread, and of what it starts (seccomp(2)). Needs
/// no_new_privs.
///
/// # Errors
/// The system call's: EINVAL for a program or flags that the kernel does not take.
pub fn set_seccomp_filter(flags: u64, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let filter = program.as_mut_ptr();
    let program = libc::sock_fprog { len, filter };
    // SAFETY: the kernel copies and checks the program, which lives during the call.
    let r = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    check(r as i32)
}

/// A system call that a filter has answered with a signal (`SECCOMP_RET_TRAP`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrappedCall {
    /// Its number; −1 where the signal was sent by a process.
    pub number: i32,
    /// What the filter says of it, 16 bits.
    pub data: i32,
}

/// Who hears of a trapped call.
static ON_TRAPPED_CALL: OnceLock<fn(TrappedCall) -> !> = OnceLock::new();

/// `si_code` of a filter's signal.
const SYS_SECCOMP: i32 = 1;

/// The beginning of what the kernel tells of a SIGSYS (sigaction(2)).
#[repr(C)]
struct SigSys {
    signal: i32,
    data: i32,
    code: i32,
    _address: *mut libc::c_void,
    number: i32,
}

extern "C" fn trapped(_signal: i32, info: *const SigSys, _context: *mut libc::c_void) {
    // SAFETY: the kernel's own structure, or another's of the same size where somebody sends the signal himself.
    let SigSys {
        code, number, data, ..
    } = unsafe { info.read() };
    // Of one that somebody has sent, nothing is known.
    let call = match code {
        SYS_SECCOMP => TrappedCall { number, data },
        _ => TrappedCall {
            number: -1,
            data: 0,
        },
    };
    if let Some(tell) = ON_TRAPPED_CALL.get() {
        tell(call);
    }
}

/// Lets `tell` say which system call a filter has trapped, and end the process. It runs at the call: what it does may be anything
/// that the caller does not do at that moment, too.
///
/// # Errors
/// sigaction's.
pub fn on_trapped_call(tell: fn(TrappedCall) -> !) -> io::Result<()> {
    let _ = ON_TRAPPED_CALL.set(tell);
    // SAFETY: a structure of integers, for which zero is a value; the handler has the signature that SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = trapped as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        check(libc::sigaction(
            libc::SIGSYS,
            &raw const action,
            std::ptr::null_mut(),
        ))
    }
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

/// A session keyring of this process's own, with nothing in it (keyctl(2)). Async-signal-safe.
///
/// # Errors
/// The system call's: ENOSYS where the kernel has no keys, EDQUOT where the user may have no more.
pub fn join_new_session_keyring() -> io::Result<()> {
    let nameless = std::ptr::null::<libc::c_char>();
    // SAFETY: integers, and no name.
    let r = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            nameless,
        )
    };
    check(if r < 0 { -1 } else { 0 })
}

/// Makes the current directory the root of this process and lets go of the old one. For a private mount namespace.
///
/// # Errors
/// The first call that fails.
pub fn pivot_to_current_dir() -> io::Result<()> {
    // The new root is stacked over the old one, which is then taken from under it: no directory for it is needed.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")
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

/// What [`set_mount_attributes`] changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttributes {
    /// `MOUNT_ATTR_…` to set.
    pub set: u64,
    /// `MOUNT_ATTR_…` to clear before.
    pub clear: u64,
    /// `MS_PRIVATE` or one of its like; 0: as it is.
    pub propagation: u64,
}

/// Changes a mount, attached or not, alone or with all mounts below it (mount_setattr(2), Linux 5.12).
///
/// # Errors
/// The system call's.
pub fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    attributes: MountAttributes,
    recursive: bool,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    mount_setattr(mount, &attributes, recursive)
}

/// Maps the ids of a mount's files by a user namespace: 0 inside is 0 in the file system. Only of a mount that was cloned
/// and is attached nowhere yet (Linux 5.12, of an overlay's layers 5.19).
///
/// # Errors
/// The system call's; EINVAL where the file system has no such mounts.
pub fn map_ids(mount: BorrowedFd<'_>, user: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user.as_raw_fd() as u64,
    };
    mount_setattr(mount, &attributes, false)
}

fn mount_setattr(
    mount: BorrowedFd<'_>,
    attributes: &libc::mount_attr,
    recursive: bool,
) -> io::Result<()> {
    let below = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: path and attributes live during the call, and the size is the structure's.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | below,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    check(r as i32)
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
fn hold(in_cgroup: bool, holding: &Holding) -> i32 {
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

/// errno of a system call that returns -1, as a `Result`.
fn check(r: i32) -> io::Result<()> {
    if r < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of the calling thread's session keyring.
    fn session_keyring() -> io::Result<i64> {
        const SESSION: i64 = libc::KEY_SPEC_SESSION_KEYRING as i64;
        // SAFETY: integers only; no keyring is made.
        let id =
            unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_GET_KEYRING_ID, SESSION, 0) };
        check(if id < 0 { -1 } else { 0 }).map(|()| id)
    }

    #[test]
    fn a_new_session_keyring_is_another_and_the_threads_own() {
        if session_keyring().is_err_and(|e| e.raw_os_error() == Some(libc::ENOSYS)) {
            let joined = join_new_session_keyring().map_err(|e| e.raw_os_error());
            assert_eq!(joined, Err(Some(libc::ENOSYS)));
            return;
        }
        let first = std::thread::spawn(|| {
            join_new_session_keyring().unwrap();
            session_keyring().unwrap()
        });
        let second = std::thread::spawn(|| {
            join_new_session_keyring().unwrap();
            session_keyring().unwrap()
        });
        assert_ne!(first.join().unwrap(), second.join().unwrap());
    }

    #[test]
    fn what_is_for_a_process_with_one_thread_is_refused_to_others() {
        // Those of the test's own harness.
        let several = "several threads";
        assert!(fork().unwrap_err().to_string().contains(several));
        assert!(go_on_in_child().unwrap_err().to_string().contains(several));
        assert!(
            FileOwner::set(0, 0)
                .unwrap_err()
                .to_string()
                .contains(several)
        );
    }

    #[test]
    fn a_descriptor_is_inherited_once_and_no_other_is() {
        let own = std::fs::File::open("/dev/null").unwrap();
        let bad = |fd| inherit(fd).unwrap_err().raw_os_error() == Some(libc::EBADF);
        assert!(bad(own.as_raw_fd()));
        assert!(bad(-1) && bad(i32::MAX));
        // SAFETY: a new descriptor, which nothing owns: as if it had come through execve.
        let left = unsafe { libc::dup(own.as_raw_fd()) };
        let taken = inherit(left).unwrap();
        assert_eq!(taken.as_raw_fd(), left);
        assert!(bad(left));
    }
}
