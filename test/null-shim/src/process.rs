//! The container's process: made, held back until Start, signalled, reaped. The only `unsafe` of the shim.
//!
//! ```text
//! shim                         child
//! clone3 ───────────────────▶  cgroups, namespaces, hostname, stdio
//! Create answers  ◀─── "\0" ─  (or the text of an error)
//! Start ──────────── "\0" ──▶  exec sleeper
//! Start answers   ◀─── EOF ──  (or the text of an error): exec has closed the socket
//! ```

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{
    Signal, WaitId, WaitIdOptions, pidfd_send_signal, set_parent_process_death_signal, setsid,
    waitid,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::system::sethostname;
use rustix::thread::move_into_link_name_space;

use crate::spec::Namespaces;
use crate::{Error, Result, io};

/// What a process is made from.
pub struct Plan {
    pub program: PathBuf,
    pub namespaces: Namespaces,
    /// Existing cgroup directories to join.
    pub cgroups: Vec<PathBuf>,
    pub hostname: String,
    /// containerd's FIFOs; empty for a sandbox.
    pub stdout: String,
    pub stderr: String,
}

/// A process that waits in its namespaces and cgroups for [`Process::start`], or runs.
pub struct Process {
    pub pid: u32,
    pidfd: OwnedFd,
    /// Until Start; see the module's picture.
    control: Option<UnixStream>,
}

impl Process {
    /// Makes the process; returns when it has joined all that the plan names.
    pub fn spawn(plan: &Plan) -> Result<Self> {
        let (mut control, theirs) = UnixStream::pair().map_err(io("socketpair"))?;
        let Some((pid, pidfd)) = clone3(plan.namespaces.new).map_err(io("clone3"))? else {
            drop(control);
            run(plan, theirs);
        };
        drop(theirs);
        let process = |control| Self {
            pid,
            pidfd,
            control,
        };
        let mut answer = vec![0; 512];
        let length = control
            .read(&mut answer)
            .map_err(io("container's process"))?;
        if answer[..length] == [0] {
            return Ok(process(Some(control)));
        }
        process(None).reap()?;
        Err(Error::Invalid(
            String::from_utf8_lossy(&answer[..length]).into_owned(),
        ))
    }

    /// Lets the process exec its program; returns when it has.
    pub fn start(&mut self) -> Result<()> {
        let Some(mut control) = self.control.take() else {
            return Err(Error::Invalid("already started".into()));
        };
        let mut failure = String::new();
        control
            .write_all(&[0])
            .and_then(|()| control.read_to_string(&mut failure))
            .map_err(io("start"))?;
        if failure.is_empty() {
            Ok(())
        } else {
            Err(Error::Invalid(failure))
        }
    }

    /// Sends a signal by its number.
    pub fn kill(&self, number: u32) -> Result<()> {
        let signal = i32::try_from(number).ok().and_then(Signal::from_named_raw);
        let signal =
            signal.ok_or_else(|| Error::Invalid(format!("signal {number}: no such signal")))?;
        pidfd_send_signal(&self.pidfd, signal).map_err(io("kill"))
    }

    /// Waits for the end of the process; its exit status, or 128 plus the number of the signal that ended it.
    pub fn reap(&self) -> Result<u32> {
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED)
            .map_err(io("waitid"))?;
        let code = status.and_then(|s| {
            s.exit_status()
                .or(s.terminating_signal().map(|signal| 128 + signal))
        });
        Ok(code.unwrap_or_default().unsigned_abs())
    }
}

/// Readable when the process has ended.
impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// The child from clone3 to exec.
fn run(plan: &Plan, mut control: UnixStream) -> ! {
    let failure = match enter(plan) {
        Ok(()) => {
            let released = control
                .write_all(&[0])
                .and_then(|()| control.read_exact(&mut [0]));
            // Without a word from Start the shim is gone, and so is anybody to report to.
            if released.is_err() {
                std::process::exit(1);
            }
            Error::Io(
                plan.program.to_string_lossy().into_owned(),
                Command::new(&plan.program).env_clear().exec(),
            )
        }
        Err(e) => e,
    };
    // If this fails, the shim sees the end of the socket before an answer, which is a failure, too.
    let _ = control.write_all(failure.to_string().as_bytes());
    std::process::exit(1)
}

/// Everything between clone3 and "ready".
fn enter(plan: &Plan) -> Result<()> {
    // The container must not outlive its shim, which is the only one to reap it.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(io("prctl"))?;
    for cgroup in &plan.cgroups {
        let procs = cgroup.join("cgroup.procs");
        std::fs::write(&procs, "0").map_err(io(procs.to_string_lossy()))?;
    }
    for (path, kind) in &plan.namespaces.join {
        let name = path.to_string_lossy();
        let namespace = File::open(path).map_err(io(&*name))?;
        move_into_link_name_space(namespace.as_fd(), Some(*kind)).map_err(io(&*name))?;
    }
    if plan.namespaces.new & libc::CLONE_NEWUTS != 0 && !plan.hostname.is_empty() {
        sethostname(plan.hostname.as_bytes()).map_err(io("sethostname"))?;
    }
    setsid().map_err(io("setsid"))?;
    for (path, onto) in [
        (&plan.stdout, dup2_stdout as fn(File) -> _),
        (&plan.stderr, dup2_stderr),
    ] {
        if !path.is_empty() {
            // Opened for reading as well, the FIFO lets nobody wait for its other end.
            let fifo = OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .map_err(io(path))?;
            onto(fifo).map_err(io(path))?;
        }
    }
    Ok(())
}

/// Turns the caller into a parent, who gets `true`, and a daemon, who gets `false` and goes on in a session of
/// its own with its standard streams on `/dev/null`: containerd reads `start`'s output to its end.
pub fn daemonize() -> std::io::Result<bool> {
    // SAFETY: the process has one thread, so the child finds no lock held by a thread it lacks.
    match unsafe { libc::fork() } {
        -1 => return Err(std::io::Error::last_os_error()),
        0 => {}
        _ => return Ok(true),
    }
    setsid()?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open(Path::new("/dev/null"))?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(false)
}

/// clone3(2) as fork with new namespaces. `None` in the child, its pid and pidfd in the parent.
fn clone3(namespaces: libc::c_int) -> std::io::Result<Option<(u32, OwnedFd)>> {
    let mut pidfd: RawFd = -1;
    // SAFETY: a C struct of integers, for which zero means "not asked for".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (namespaces | libc::CLONE_PIDFD) as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM and with no other thread the child has a whole copy of the process, as after
    // fork; `args` and `pidfd` outlive the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    match u32::try_from(pid) {
        Err(_) => Err(std::io::Error::last_os_error()),
        Ok(0) => Ok(None),
        // SAFETY: the kernel has just made this descriptor, and nothing else knows of it.
        Ok(pid) => Ok(Some((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))),
    }
}
