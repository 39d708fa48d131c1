//! poll_oneoff: the engine's calls of epoll(7), as it makes them through its PLT, put right where its own code is wrong.
//!
//! Of regular files and directories epoll knows nothing, and the engine then waited for ever. They are always ready: kept
//! here, and told with what else is.

use std::ffi::{c_int, c_ulong, c_void};
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Subscriptions of the poll_oneoff that the engine prepares: of those that it refuses by itself, such as one of a descriptor
/// that is not open, no call comes here.
static SUBSCRIPTIONS: AtomicI32 = AtomicI32::new(0);

/// epoll_ctl(2) as the engine calls it for poll_oneoff: without EPOLLRDHUP, which it always asks for and never looks at.
/// With it, a wait for room to write returned at once, without an event, for as long as the peer had closed its half.
///
/// # Safety
/// epoll_ctl(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_ctl(
    epoll: c_int,
    operation: c_int,
    fd: c_int,
    event: *mut libc::epoll_event,
) -> c_int {
    // SAFETY: passed on as it came; the event is valid for all operations but the one that ignores it.
    unsafe {
        let wanted = (operation != libc::EPOLL_CTL_DEL).then(|| {
            (*event).events &= !(libc::EPOLLRDHUP as u32);
            event.read_unaligned()
        });
        let done = match control(epoll, operation, fd, wanted) {
            true => 0,
            false => libc::syscall(libc::SYS_epoll_ctl, epoll, operation, fd, event) as c_int,
        };
        let refused = done < 0 && *libc::__errno_location() == libc::EPERM;
        match wanted {
            Some(event) if done == 0 || refused => {
                if refused {
                    subscribe(epoll, fd, event);
                }
                SUBSCRIPTIONS.fetch_add(1, Ordering::Relaxed);
                0
            }
            _ => done,
        }
    }
}

/// epoll_wait(2) as the engine calls it for poll_oneoff: goes on where the container was frozen and thawed or stopped and
/// continued meanwhile. The kernel ends the call with EINTR then, which programs take for a failure of sleep.
///
/// The engine asks for as many events as there are subscriptions. Where it has refused some of them itself, their events
/// are there already, and it is not to wait for others.
///
/// # Safety
/// epoll_wait(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut libc::epoll_event,
    count: c_int,
    timeout: c_int,
) -> c_int {
    let at_once = ready(epoll, usize::try_from(count).unwrap_or(0));
    let refused = count > SUBSCRIPTIONS.swap(0, Ordering::Relaxed);
    // What is ready of the others is told with them, without a wait.
    let timeout = match refused || !at_once.is_empty() {
        true => 0,
        false => timeout,
    };
    let started = std::time::Instant::now();
    let mut left = timeout;
    loop {
        // No signal mask: the plain call.
        let mask = ptr::null::<libc::sigset_t>();
        // SAFETY: passed on as it came.
        let woken = unsafe { libc::epoll_pwait(epoll, events, count, left, mask) };
        let interrupted = io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
        if woken >= 0 || !interrupted {
            // SAFETY: the kernel has written this many, and there is room for `count`.
            unsafe {
                show_errors(events, woken);
                return add_events(events, woken, count, &at_once);
            }
        }
        if timeout >= 0 {
            let passed = c_int::try_from(started.elapsed().as_millis()).unwrap_or(c_int::MAX);
            left = timeout.saturating_sub(passed).max(0);
        }
    }
}

/// ioctl(2) as the engine calls it for poll_oneoff. Of FIONREAD it takes the number of bytes where the call has failed, and
/// says 1 where it has not: so success is told as failure and failure as success.
///
/// # Safety
/// ioctl(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // SAFETY: passed on as it came.
    let done = unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) } as c_int;
    match request {
        libc::FIONREAD if done == 0 => -1,
        libc::FIONREAD => 0,
        _ => done,
    }
}

/// An error alone is told as a hang-up, for the engine makes no event of it: a wait for a datagram on a socket that has
/// an ICMP error pending returned at once, without an event, until the program received anyway.
///
/// # Safety
/// The first `ready` events are valid, where it is not negative.
unsafe fn show_errors(events: *mut libc::epoll_event, ready: c_int) {
    const EVENTS: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLHUP) as u32;
    for index in 0..usize::try_from(ready).unwrap_or(0) {
        // SAFETY: the caller's promise.
        let event = unsafe { &mut *events.add(index) };
        if event.events & EVENTS == 0 && event.events & libc::EPOLLERR as u32 != 0 {
            event.events |= libc::EPOLLHUP as u32;
        }
    }
}

/// Writes `more` events behind the first `ready` as far as there is room for; returns how many there are then.
///
/// # Safety
/// There is room for `count` events.
unsafe fn add_events(
    events: *mut libc::epoll_event,
    ready: c_int,
    count: c_int,
    more: &[libc::epoll_event],
) -> c_int {
    let mut written = ready;
    for event in more {
        if (0..count).contains(&written) {
            // SAFETY: the caller's promise.
            unsafe { events.add(written as usize).write_unaligned(*event) };
            written += 1;
        }
    }
    written
}

struct Subscribed {
    epoll: c_int,
    fd: c_int,
    event: libc::epoll_event,
}

/// In the order in which they came.
static ALWAYS_READY: Mutex<Vec<Subscribed>> = Mutex::new(Vec::new());

fn always_ready() -> MutexGuard<'static, Vec<Subscribed>> {
    ALWAYS_READY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// epoll_ctl(2)'s operations on what it has refused, or would: false where the kernel has to be asked.
fn control(epoll: c_int, operation: c_int, fd: c_int, event: Option<libc::epoll_event>) -> bool {
    let mut all = always_ready();
    let known = all.iter().position(|s| (s.epoll, s.fd) == (epoll, fd));
    match (known, event) {
        (Some(index), Some(event)) if operation != libc::EPOLL_CTL_DEL => all[index].event = event,
        (Some(index), _) => drop(all.remove(index)),
        (None, _) => return false,
    }
    true
}

/// Takes a file that epoll has refused.
fn subscribe(epoll: c_int, fd: c_int, event: libc::epoll_event) {
    always_ready().push(Subscribed { epoll, fd, event });
}

/// A descriptor that is closed is in no epoll any more.
pub fn closed(fd: c_int) {
    always_ready().retain(|s| s.fd != fd);
}

/// Events of at most `room` files that are always ready.
fn ready(epoll: c_int, room: usize) -> Vec<libc::epoll_event> {
    const BOTH: u32 = (libc::EPOLLIN | libc::EPOLLOUT) as u32;
    let subscribed = always_ready();
    let of_this = subscribed.iter().filter(|s| s.epoll == epoll);
    let event = |s: &Subscribed| libc::epoll_event {
        events: s.event.events & BOTH,
        u64: s.event.u64,
    };
    of_this.take(room).map(event).collect()
}
