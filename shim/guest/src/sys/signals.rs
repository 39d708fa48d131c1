//! Signals that end the process: the host gets a reason, and pid 1 of a namespace ends as any other process.

use std::ffi::c_int;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use slipway_protocol::{CONTROL_FD, Cause, End, FromGuest};

use super::exit;

/// Signals whose default is not to end the process (signal(7)), those that cannot be caught, those of faults, which are
/// the engine's, and SIGPIPE, which is ignored.
const NOT_ENDING: [c_int; 15] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGCONT,
    libc::SIGCHLD,
    libc::SIGURG,
    libc::SIGWINCH,
    libc::SIGPIPE,
    libc::SIGILL,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGTRAP,
];
/// The last real-time signal, and the two that the C library keeps for itself.
const LAST_SIGNAL: c_int = 64;
const RESERVED: [c_int; 2] = [32, 33];

/// What a handler says, encoded beforehand: it may not allocate.
struct Report {
    /// To the host.
    message: Vec<u8>,
    /// To the program's stderr.
    line: String,
}

static REPORTS: [AtomicPtr<Report>; LAST_SIGNAL as usize + 1] =
    [const { AtomicPtr::new(ptr::null_mut()) }; LAST_SIGNAL as usize + 1];

/// Handler of a signal that ends the process.
pub extern "C" fn on_ending(signal: c_int) {
    say(signal);
    exit(128 + signal)
}

/// Says what was prepared for a signal. Async-signal-safe.
pub fn say(signal: c_int) {
    if let Some(report) = REPORTS.get(signal as usize) {
        // SAFETY: never freed; write, send and _exit are async-signal-safe.
        unsafe {
            if let Some(Report { message, line }) = report.load(Ordering::Acquire).as_ref() {
                libc::write(2, line.as_ptr().cast(), line.len());
                libc::send(
                    CONTROL_FD,
                    message.as_ptr().cast(),
                    message.len(),
                    libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
                );
            }
        }
    }
}

/// Prepares what the handler of an ending signal says.
pub fn prepare(signal: c_int, end: End) {
    let line = match end.reason.as_str() {
        "" => String::new(),
        reason => format!("slipway: {reason}\n"),
    };
    if let Ok(message) = slipway_protocol::encode(&FromGuest::Ended(end)) {
        // The one before, if any, may be read at this moment: it stays.
        let report = Box::into_raw(Box::new(Report { message, line }));
        if let Some(place) = REPORTS.get(signal as usize) {
            place.store(report, Ordering::Release);
        }
    }
}

/// The end that RLIMIT_CPU is about to bring gets a reason.
pub fn report_cpu_time(seconds: u64) {
    let reason = format!("CPU-time budget used up: the program may compute for {seconds} s");
    prepare(
        libc::SIGXCPU,
        End::new(128 + libc::SIGXCPU as u8, Cause::CpuTime, reason),
    );
}

/// Installs handlers that report the end and end the process: pid 1 of a namespace has no default actions.
pub fn install() {
    let ending = |signal: &c_int| !NOT_ENDING.contains(signal) && !RESERVED.contains(signal);
    for signal in (1..=LAST_SIGNAL).filter(ending) {
        prepare(signal, End::new(128 + signal as u8, Cause::Status, ""));
        // SAFETY: the handler is a function of this program and only makes async-signal-safe calls.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_ending as *const () as libc::sighandler_t;
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
    }
    // SAFETY: a disposition. A closed pipe or connection must reach the program as EPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
