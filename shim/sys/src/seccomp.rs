//! The filter of system calls, and what it traps.

use std::io;
use std::sync::OnceLock;

use crate::check;

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
