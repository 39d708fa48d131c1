//! Who this process is, and what it may do.

use std::io;

use crate::check;
use crate::spawn::single_threaded;

/// While it lives, files that this process makes are another user's; what it may do stays the same.
#[derive(Debug)]
pub struct FileOwner(());

impl FileOwner {
    /// For a process with one thread that is root.
    ///
    /// # Errors
    /// prctl's; a process with several threads, of which it would hold for one.
    pub fn set(uid: u32, gid: u32) -> io::Result<Self> {
        single_threaded()?;
        // Without it, the next call would take away the capabilities over files.
        // SAFETY: integers only.
        check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, libc::SECBIT_NO_SETUID_FIXUP) })?;
        set_file_ids(uid, gid);
        Ok(Self(()))
    }
}

impl Drop for FileOwner {
    fn drop(&mut self) {
        set_file_ids(0, 0);
        // SAFETY: integers only.
        unsafe { libc::prctl(libc::PR_SET_SECUREBITS, 0) };
    }
}

fn set_file_ids(uid: u32, gid: u32) {
    // SAFETY: integers only; they cannot fail for who has CAP_SETUID and CAP_SETGID.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    }
}

/// The most supplementary groups of a process, as limits.h of Linux has it (NGROUPS_MAX).
const MAX_GROUPS: usize = 65_536;

/// Becomes a user for good: groups, gid, uid, no capability left in any set. Another process of this user cannot trace it, nor
/// read or write its memory, even where it has been this user's before. [`set_no_new_privs`] has to follow.
///
/// For single-threaded processes: the calls are the kernel's, which change one thread.
///
/// # Errors
/// The first call that fails, named.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Result<(), String> {
    use rustix::process::{Gid, Uid};
    clear_bounding_set();
    let all: Vec<Gid> = groups.iter().map(|g| Gid::from_raw(*g)).collect();
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&all).map_err(|e| match groups.len() > MAX_GROUPS {
        true => format!(
            "{} supplementary groups, the kernel takes {MAX_GROUPS}",
            groups.len()
        ),
        false => format!("supplementary groups {groups:?}: {e}"),
    })?;
    rustix::thread::set_thread_res_gid(group, group, group)
        .map_err(|e| format!("group {gid}: {e}"))?;
    rustix::thread::set_thread_res_uid(user, user, user).map_err(|e| format!("user {uid}: {e}"))?;
    drop_capabilities().map_err(|e| format!("capabilities: {e}"))?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|e| format!("not dumpable: {e}"))
}

/// No file that this process executes gives it more than it has.
///
/// # Errors
/// prctl's.
pub fn set_no_new_privs() -> Result<(), String> {
    rustix::thread::set_no_new_privs(true).map_err(|e| format!("no_new_privs: {e}"))
}

pub(crate) fn clear_bounding_set() {
    for capability in 0..u64::BITS {
        // Fails past the last one that the kernel knows.
        let bit = rustix::thread::CapabilitySet::from_bits_retain(1 << capability);
        if rustix::thread::remove_capability_from_bounding_set(bit).is_err() {
            break;
        }
    }
}

pub(crate) fn drop_capabilities() -> rustix::io::Result<()> {
    use rustix::thread::{CapabilitySet, CapabilitySets};
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none)
}

/// A session keyring of this process's own, with nothing in it (keyctl(2)). Async-signal-safe.
///
/// # Errors
/// The system call's: ENOSYS where the kernel has no keys, EDQUOT where the user may have no more.
pub fn join_new_session_keyring() -> io::Result<()> {
    let nameless = std::ptr::null::<libc::c_char>();
    // SAFETY: integers, and no name.
    let r = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            nameless,
        )
    };
    check(if r < 0 { -1 } else { 0 })
}
