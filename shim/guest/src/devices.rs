//! `/dev` of a Wasm container: a small tmpfs with the devices that programs expect and that do no harm.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Dev, FileType, Mode, OFlags, makedev, mkdirat, mknodat};
use rustix::mount::MountAttrFlags;

use crate::mounts::new_tmpfs;

/// Bound of the tmpfs: devices, mount points and what programs put there.
const OPTIONS: [(&str, &str); 3] = [("size", "64k"), ("nr_inodes", "256"), ("mode", "755")];

/// (name, major, minor) of linux/Documentation/admin-guide/devices.txt
const DEVICES: [(&str, u32, u32); 5] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
];

/// Fills a fresh tmpfs.
fn populate(dev: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let everyone = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH;
    for (name, major, minor) in DEVICES {
        let device: Dev = makedev(major, minor);
        mknodat(
            dev.as_fd(),
            name,
            FileType::CharacterDevice,
            everyone,
            device,
        )?;
        rustix::fs::chmodat(dev.as_fd(), name, everyone, rustix::fs::AtFlags::empty())?;
    }
    // Its mode is subject to the mask at first.
    let anyone = Mode::from_raw_mode(0o1777);
    mkdirat(dev.as_fd(), "shm", anyone)?;
    rustix::fs::chmodat(dev.as_fd(), "shm", anyone, rustix::fs::AtFlags::empty())
}

/// A /dev of its own, mounted nowhere yet; its files have an SELinux label where one is given.
pub fn make(label: &str) -> Result<OwnedFd, String> {
    let noexec = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let dev = new_tmpfs(&OPTIONS, label, noexec);
    let filled = dev.and_then(|dev| populate(dev.as_fd()).map(|()| dev));
    filled.map_err(|e| format!("/dev: {e}"))
}

/// The container's own `/dev/null`; none where its root is read-only and has no `/dev`. When its file systems are the process's.
pub fn own_null() -> Option<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let null = rustix::fs::openat(CWD, "/rootfs/dev/null", flags, Mode::empty()).ok()?;
    is_null(&null).then_some(null)
}

/// Whether a descriptor is a null device, whoever's.
pub fn is_null(fd: impl AsFd) -> bool {
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::fstat(fd)
        .is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFCHR && s.st_rdev == null)
}
