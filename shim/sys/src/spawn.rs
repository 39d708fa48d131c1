//! Processes that this one starts: by exec, or as a copy of itself.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use crate::mounts::{MountAttributes, set_mount_attributes};
use crate::{check, pointers};

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
    pub(crate) fn tasks(&self) -> Vec<RawFd> {
        self.v1.iter().map(AsRawFd::as_raw_fd).collect()
    }
}

/// Moves the calling thread, the only one of its process. Async-signal-safe.
pub(crate) fn enter_tasks(tasks: &[RawFd]) -> bool {
    tasks.iter().all(|fd| {
        // SAFETY: one byte of a constant; the descriptors were opened before the clone.
        unsafe { libc::write(*fd, c"0".as_ptr().cast(), 1) == 1 }
    })
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
    pub(crate) cgroup: u64,
}

/// What clone3 made: the parent's view, or "you are the child".
pub(crate) enum Cloned {
    Parent(Child),
    Child,
}

/// clone3(2) without CLONE_VM: the child gets a copy of the caller's memory.
///
/// # Safety
/// The caller is single-threaded, or the child calls only async-signal-safe functions until it execs or ends.
pub(crate) unsafe fn clone3(namespaces: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
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
pub(crate) fn reset_signals() {
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
    let birth = Birth::begin()?;
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
        Cloned::Parent(child) => {
            birth.note();
            Ok(child)
        }
        Cloned::Child => unreachable!("the child has left through exec or _exit"),
    }
}

/// Ends of pipes of which children that were just born have the other end, as they have all descriptors of this process.
static BIRTHS: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// A child that has copies of this process's descriptors, until it closes them.
struct Birth {
    read: OwnedFd,
    write: OwnedFd,
}

impl Birth {
    fn begin() -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Self { read, write })
    }

    /// The child is there, and has the only other write end.
    fn note(self) {
        drop(self.write);
        let mut births = BIRTHS.lock().unwrap_or_else(PoisonError::into_inner);
        births.retain(is_open_elsewhere);
        births.push(self.read);
    }
}

/// Whether a child that [`spawn`] has made may still have copies of this process's descriptors: what counts who has a file open counts it, too.
pub fn births_go_on() -> bool {
    let mut births = BIRTHS.lock().unwrap_or_else(PoisonError::into_inner);
    births.retain(is_open_elsewhere);
    !births.is_empty()
}

fn is_open_elsewhere(read: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut end = [PollFd::new(read, PollFlags::IN)];
    let asked = poll(&mut end, Some(&Timespec::default()));
    asked.is_ok() && !end[0].revents().contains(PollFlags::HUP)
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
pub(crate) fn single_threaded() -> io::Result<()> {
    // Takes nothing apart, and is refused to who shares it: unshare(2). It needs no /proc.
    // SAFETY: integers only.
    match check(unsafe { libc::unshare(libc::CLONE_THREAD) }) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Err(io::Error::other(
            "the process has several threads, and this is for one that has one",
        )),
        single => single,
    }
}
