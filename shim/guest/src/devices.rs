//! `/dev` of a Wasm container: a small tmpfs with the devices that programs expect and that do no harm.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Dev, FileType, Mode, makedev, mkdirat, mknodat};

/// (name, major, minor) of linux/Documentation/admin-guide/devices.txt
const DEVICES: [(&str, u32, u32); 5] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
];

/// Fills a fresh tmpfs.
pub fn populate(dev: BorrowedFd<'_>) -> rustix::io::Result<()> {
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
