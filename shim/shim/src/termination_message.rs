//! A container's termination message: a file that the kubelet mounts and reads.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

use rustix::fs::{FileType, Mode, OFlags};

/// What the kubelet reads of a termination message, in bytes.
const MAX_TERMINATION_MESSAGE: usize = 4096;

/// What is no file is nobody's message: it is not even opened, for to open a device can do something.
pub fn open(path: &str) -> Option<File> {
    // Not by `custom_flags`: it leaves out what O_ACCMODE has, which is O_PATH, too, in musl.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let is_file = rustix::fs::fstat(&place)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    let name = format!("/proc/self/fd/{}", place.as_raw_fd());
    let open = || File::options().write(true).open(name);
    is_file.then(open)?.ok()
}

/// Explains an abnormal end where the program has not explained it itself.
pub fn write(mut file: &File, reason: &str) {
    if file.metadata().is_ok_and(|m| m.len() == 0) {
        let end = reason.floor_char_boundary(MAX_TERMINATION_MESSAGE);
        let _ = file.write_all(&reason.as_bytes()[..end]);
    }
}
