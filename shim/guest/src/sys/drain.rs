//! A stop that lets a server finish (annotation `slipway.dev/stop: drain`): SIGTERM shuts the sockets down that listen, so
//! that loops around accept end by themselves. What goes on then ends by SIGKILL, when the grace period is over.

use std::ffi::c_int;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// Sockets that listen; the signal handler reads it. A program has one or a few: further ones stay open at the stop.
static LISTENING: [AtomicI32; 64] = [const { AtomicI32::new(NONE) }; 64];
const NONE: i32 = -1;
static DRAINING: AtomicBool = AtomicBool::new(false);

/// A socket listens now. An engine tells it.
pub fn listening(fd: c_int) {
    if let Some(slot) = slot_of(fd).or_else(|| slot_of(NONE)) {
        slot.store(fd, Ordering::Relaxed);
    }
    if DRAINING.load(Ordering::Relaxed) {
        shut_down(fd);
    }
}

/// The program's one thread alone writes: no exchange is needed, which each close would pay for.
fn slot_of(fd: c_int) -> Option<&'static AtomicI32> {
    let mut slots = LISTENING.iter();
    slots.find(|slot| slot.load(Ordering::Relaxed) == fd)
}

/// A descriptor is closed: it listens no more.
pub fn closed(fd: c_int) {
    if let Some(slot) = slot_of(fd) {
        slot.store(NONE, Ordering::Relaxed);
    }
}

fn shut_down(fd: c_int) {
    // SAFETY: async-signal-safe; a descriptor that is no socket any more is refused.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// The first SIGTERM drains where something listens; where nothing does, and at the second, the program ends at once.
extern "C" fn on_stop(signal: c_int) {
    let open = LISTENING.iter().map(|slot| slot.load(Ordering::Relaxed));
    let mut open = open.filter(|fd| *fd != NONE).peekable();
    if open.peek().is_none() || DRAINING.swap(true, Ordering::Relaxed) {
        super::signals::on_ending(signal);
    }
    // SAFETY: errno's location is valid for the calling thread.
    let errno = unsafe { *libc::__errno_location() };
    open.for_each(shut_down);
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Makes SIGTERM drain.
pub fn on_sigterm() -> io::Result<()> {
    // SAFETY: the handler is a function of this program and only makes async-signal-safe calls.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_stop as *const () as libc::sighandler_t;
        // The program's calls go on: they are not to fail because of a signal that it cannot know.
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGTERM, &raw const action, ptr::null_mut())
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
