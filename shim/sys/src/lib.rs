//! The system calls that safe libraries do not offer, and nothing else.
//!
//! Everything here is Linux; what `rustix` offers as a safe function is called from there directly.
//! This crate is the only place (besides a guest's `sys` and the functions that stand between it and its engine) that may say `unsafe`.

mod holder;
mod mounts;
mod namespaces;
mod process;
mod seccomp;
mod shared;
mod spawn;
mod user;
mod wait;

pub use holder::{Holding, fork_holder, fork_holder_as_user};
pub use mounts::{MountAttributes, map_ids, pivot_to_current_dir, set_mount_attributes};
pub use namespaces::{set_loopback_up, setns, unshare};
#[cfg(feature = "tokio")]
pub use process::async_fd;
pub use process::{
    end_at_closed_pipes, exit_now, inherit, kill, open_null, peer_user, pidfd_kill, reap,
    reap_group, set_rlimit,
};
pub use seccomp::{TrappedCall, on_trapped_call, set_seccomp_filter};
pub use shared::{SharedWords, lock_byte, locked_bytes};
pub use spawn::{CgroupEntry, Child, Exec, Place, births_go_on, fork, go_on_in_child, spawn};
pub use user::{FileOwner, become_user, join_new_session_keyring, set_no_new_privs};
pub use wait::readable_until;

use std::ffi::CString;
use std::io;

/// errno of a system call that returns -1, as a `Result`.
pub(crate) fn check(r: i32) -> io::Result<()> {
    if r < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

pub(crate) fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

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

    #[test]
    fn a_child_is_being_born_until_it_has_closed_what_is_not_its_own() {
        let exec = Exec {
            program: c"/bin/true".into(),
            argv: vec![c"true".into()],
            envp: Vec::new(),
            fds: Vec::new(),
            directory: None,
            read_only: None,
            with_parent: false,
        };
        let child = spawn(exec, 0, &CgroupEntry::default()).unwrap();
        let ended = rustix::event::PollFd::new(&child.pidfd, rustix::event::PollFlags::IN);
        rustix::event::poll(&mut [ended], None).unwrap();
        reap(child.pid).unwrap();
        assert!(!births_go_on());
    }
}
