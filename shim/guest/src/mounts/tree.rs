//! One mount: made or cloned, its attributes, and its place.

use std::os::fd::{AsFd, OwnedFd};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use slipway_protocol::Mount;
use slipway_sys::{MountAttributes, set_mount_attributes};

/// What the guest's own mounts have: nothing can be written through them, and no device be opened.
pub const CLOSED: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
/// What all of a container's mounts have: no device can be opened there, and no file be executed or mapped as code. The
/// artefact alone can be, all of it: the module's own bytes, which the engine reads, are a part of it.
pub const DATA_ONLY: u64 = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
/// A tree that was cloned or made goes where it is told to.
pub const FROM_DESCRIPTOR: MoveMountFlags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;

/// A mount of its own, attached nowhere yet, of what lies at a path; an empty one means the descriptor itself.
pub fn clone_tree(at: impl AsFd, path: &str, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.is_empty());
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(at, path, flags)
}

/// Adds `MOUNT_ATTR_…` to one mount; what it has stays.
pub fn add_attributes(mount: &OwnedFd, set: u64) -> std::io::Result<()> {
    let attributes = MountAttributes {
        set,
        ..MountAttributes::default()
    };
    set_mount_attributes(mount.as_fd(), attributes, false)
}

/// A tmpfs that is mounted nowhere yet; its files have an SELinux label where one is given.
pub fn new_tmpfs(
    options: &[(&str, &str)],
    label: &str,
    attributes: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (option, value) in options {
        fsconfig_set_string(&fs, *option, *value)?;
    }
    if !label.is_empty() {
        fsconfig_set_string(&fs, "context", label)?;
    }
    fsconfig_create(&fs)?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Mounts what is mounted nowhere yet.
pub fn attach(tree: &OwnedFd, target: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", flags)
}

/// A volume's own attributes, and those of everything below it.
pub fn set_attributes(mounted: &OwnedFd, m: &Mount) -> Result<(), String> {
    let error = |e: std::io::Error| format!("mounts: options of {}: {e}", m.destination);
    let mut own = attributes(m.flags);
    let mut all = MountAttributes {
        set: DATA_ONLY,
        ..MountAttributes::default()
    };
    if m.recursive_readonly {
        all.set |= libc::MOUNT_ATTR_RDONLY;
    }
    match (m.propagation & !libc::MS_REC, m.propagation & libc::MS_REC) {
        (0, _) => all.propagation = libc::MS_PRIVATE,
        (propagation, 0) => own.propagation = propagation,
        (propagation, _) => all.propagation = propagation,
    }
    set_mount_attributes(mounted.as_fd(), all, true).map_err(error)?;
    match own == MountAttributes::default() {
        true => Ok(()),
        false => set_mount_attributes(mounted.as_fd(), own, false).map_err(error),
    }
}

/// mount(2)'s flags that a single mount has, as mount_setattr(2) takes them.
pub fn attributes(flags: u64) -> MountAttributes {
    const ATTRIBUTES: [(u64, u64, u64); 8] = [
        (libc::MS_RDONLY, libc::MOUNT_ATTR_RDONLY, 0),
        (libc::MS_NOSUID, libc::MOUNT_ATTR_NOSUID, 0),
        (libc::MS_NODEV, libc::MOUNT_ATTR_NODEV, 0),
        (libc::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC, 0),
        (libc::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME, 0),
        (
            libc::MS_RELATIME,
            libc::MOUNT_ATTR_RELATIME,
            libc::MOUNT_ATTR__ATIME,
        ),
        (
            libc::MS_NOATIME,
            libc::MOUNT_ATTR_NOATIME,
            libc::MOUNT_ATTR__ATIME,
        ),
        (
            libc::MS_STRICTATIME,
            libc::MOUNT_ATTR_STRICTATIME,
            libc::MOUNT_ATTR__ATIME,
        ),
    ];
    let wanted = ATTRIBUTES.iter().filter(|(flag, ..)| flags & flag != 0);
    wanted.fold(MountAttributes::default(), |all, (_, set, clear)| {
        MountAttributes {
            set: all.set | set,
            clear: all.clear | clear,
            ..all
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_mount_are_attributes_of_mount_setattr() {
        let of = |flags| {
            let MountAttributes { set, clear, .. } = attributes(flags);
            (set, clear)
        };
        assert_eq!(of(0), (0, 0));
        assert_eq!(
            of(libc::MS_RDONLY | libc::MS_NODEV | libc::MS_BIND | libc::MS_REC),
            (libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV, 0)
        );
        // Access times are one field of several bits: what it had is cleared.
        assert_eq!(
            of(libc::MS_NOATIME),
            (libc::MOUNT_ATTR_NOATIME, libc::MOUNT_ATTR__ATIME)
        );
    }
}
