//! Mounts by descriptor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::check;

/// Makes the current directory the root of this process and lets go of the old one. For a private mount namespace.
///
/// # Errors
/// The first call that fails.
pub fn pivot_to_current_dir() -> io::Result<()> {
    // The new root is stacked over the old one, which is then taken from under it: no directory for it is needed.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")
}

/// What [`set_mount_attributes`] changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttributes {
    /// `MOUNT_ATTR_…` to set.
    pub set: u64,
    /// `MOUNT_ATTR_…` to clear before.
    pub clear: u64,
    /// `MS_PRIVATE` or one of its like; 0: as it is.
    pub propagation: u64,
}

/// Changes a mount, attached or not, alone or with all mounts below it (mount_setattr(2), Linux 5.12).
///
/// # Errors
/// The system call's.
pub fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    attributes: MountAttributes,
    recursive: bool,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    mount_setattr(mount, &attributes, recursive)
}

/// Maps the ids of a mount's files by a user namespace: 0 inside is 0 in the file system. Only of a mount that was cloned
/// and is attached nowhere yet (Linux 5.12, of an overlay's layers 5.19).
///
/// # Errors
/// The system call's; EINVAL where the file system has no such mounts.
pub fn map_ids(mount: BorrowedFd<'_>, user: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user.as_raw_fd() as u64,
    };
    mount_setattr(mount, &attributes, false)
}

fn mount_setattr(
    mount: BorrowedFd<'_>,
    attributes: &libc::mount_attr,
    recursive: bool,
) -> io::Result<()> {
    let below = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: path and attributes live during the call, and the size is the structure's.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | below,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    check(r as i32)
}
