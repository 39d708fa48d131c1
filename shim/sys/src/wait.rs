//! Waiting for descriptors without a runtime.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Which of these descriptors can be read, or have come to their end, once one of them does; none of them: it is past the
/// deadline. A signal does not end the wait.
///
/// # Errors
/// poll's.
pub fn readable_until<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    deadline: Instant,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut polled, Some(&left)) {
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(_) => return Ok(polled.map(|fd| !fd.revents().is_empty())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[test]
    fn what_can_be_read_is_told_and_nothing_at_the_deadline() {
        let (silent, _its_writer) = rustix::pipe::pipe().unwrap();
        let (ended, writer) = rustix::pipe::pipe().unwrap();
        let within = |time| readable_until([silent.as_fd(), ended.as_fd()], Instant::now() + time);
        assert_eq!(within(Duration::from_millis(1)).unwrap(), [false, false]);
        drop(writer);
        assert_eq!(within(Duration::from_secs(60)).unwrap(), [false, true]);
    }

    #[test]
    fn a_signal_does_not_end_the_wait() {
        static CAME: AtomicBool = AtomicBool::new(false);
        extern "C" fn came(_: libc::c_int) {
            CAME.store(true, Ordering::SeqCst);
        }
        let handler = came as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: no other test of this crate has to do with this signal, and its handler sets a flag.
        unsafe { libc::signal(libc::SIGURG, handler) };
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let waits = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid()).unwrap();
            readable_until([read.as_fd()], Instant::now() + Duration::from_secs(60))
        });
        let thread = told.recv().unwrap().as_raw_nonzero().get();
        // From here on it sleeps nowhere else.
        let sleeps = || {
            let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
            stat.unwrap().contains(") S ")
        };
        while !sleeps() {
            std::thread::yield_now();
        }
        let own = rustix::process::getpid().as_raw_nonzero().get();
        // SAFETY: integers only; the thread has not ended, for nothing can be read yet.
        unsafe { libc::syscall(libc::SYS_tgkill, own, thread, libc::SIGURG) };
        while !(CAME.load(Ordering::SeqCst) && sleeps()) {
            std::thread::yield_now();
        }
        rustix::io::write(&write, b"x").unwrap();
        assert_eq!(waits.join().unwrap().unwrap(), [true]);
    }
}
