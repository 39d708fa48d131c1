//! Files that are always ready for poll_oneoff: regular files and directories, of which epoll(7) knows nothing and the
//! engine then waits for ever.

use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

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
pub fn control(
    epoll: c_int,
    operation: c_int,
    fd: c_int,
    event: Option<libc::epoll_event>,
) -> bool {
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
pub fn subscribe(epoll: c_int, fd: c_int, event: libc::epoll_event) {
    always_ready().push(Subscribed { epoll, fd, event });
}

/// A descriptor that is closed is in no epoll any more.
pub fn forget(fd: c_int) {
    always_ready().retain(|s| s.fd != fd);
}

/// Events of at most `room` files that are always ready.
pub fn ready(epoll: c_int, room: usize) -> Vec<libc::epoll_event> {
    const BOTH: u32 = (libc::EPOLLIN | libc::EPOLLOUT) as u32;
    let subscribed = always_ready();
    let of_this = subscribed.iter().filter(|s| s.epoll == epoll);
    let event = |s: &Subscribed| libc::epoll_event {
        events: s.event.events & BOTH,
        u64: s.event.u64,
    };
    of_this.take(room).map(event).collect()
}
