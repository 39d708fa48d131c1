//! The system calls of a guest that need `unsafe`, and what hangs on them: the page of the budget, handlers of signals.

pub mod budget;
pub mod drain;
pub mod signals;

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use slipway_protocol::{CONTROL_FD, Cause, End, FromGuest};

use crate::devices::is_null;

/// The connection to the host.
static CONTROL: OnceLock<OwnedFd> = OnceLock::new();

/// The connection to the host, with which this process was started.
///
/// # Errors
/// It was not.
pub fn take_control() -> io::Result<BorrowedFd<'static>> {
    let control = slipway_sys::inherit(CONTROL_FD)?;
    Ok(CONTROL.get_or_init(|| control).as_fd())
}

/// Ends a program that cannot have what it cannot run without.
pub fn end_without_memory(reason: String) -> ! {
    end(End::new(137, Cause::OutOfMemory, reason))
}

/// Ends the program here and now.
pub fn end(end: End) -> ! {
    if !end.reason.is_empty() {
        write_line(2, &format!("slipway: {}", end.reason));
    }
    let status = c_int::from(end.status);
    if let Some(control) = CONTROL.get() {
        let _ = slipway_protocol::send(control.as_fd(), &FromGuest::Ended(end), &[]);
    }
    exit(status)
}

/// Puts three descriptors onto 0, 1 and 2.
pub fn set_standard_streams([stdin, stdout, stderr]: &[OwnedFd; 3]) -> io::Result<()> {
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    Ok(rustix::stdio::dup2_stderr(stderr)?)
}

/// Puts a null device of the container's own in the place of the node's where that is a standard stream: its mode and owner
/// are for everybody on the node, and root can change them through a descriptor.
pub fn give_up_nodes_null(own: &OwnedFd) -> io::Result<()> {
    if is_null(rustix::stdio::stdin()) {
        rustix::stdio::dup2_stdin(own)?;
    }
    if is_null(rustix::stdio::stdout()) {
        rustix::stdio::dup2_stdout(own)?;
    }
    if is_null(rustix::stdio::stderr()) {
        rustix::stdio::dup2_stderr(own)?;
    }
    Ok(())
}

/// Writes a line in one call, and ignores a reader that is gone.
pub fn write_line(fd: c_int, text: &str) {
    let line = format!("{text}\n");
    // SAFETY: the buffer lives during the call.
    unsafe { libc::write(fd, line.as_ptr().cast(), line.len()) };
}

/// Ends the process without destructors: the engine's would take milliseconds, and the kernel frees it all.
pub fn exit(status: c_int) -> ! {
    slipway_sys::exit_now(status)
}
