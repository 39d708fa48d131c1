//! Paths of a container. Every one is resolved below its root, by openat2(2) with RESOLVE_IN_ROOT: a symlink of an image leads nowhere else.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::mounts::not_procfs;

/// What lies at a path below the container's root, symlinks followed as if the root were `/`; not opened yet.
pub fn resolve(root: BorrowedFd<'_>, at: &str) -> rustix::io::Result<OwnedFd> {
    resolve_with(root, at, OFlags::empty())
}

/// Likewise; a symlink itself where the path ends in one.
pub fn resolve_link(root: BorrowedFd<'_>, at: &str) -> rustix::io::Result<OwnedFd> {
    resolve_with(root, at, OFlags::NOFOLLOW)
}

fn resolve_with(root: BorrowedFd<'_>, at: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    openat2(
        root,
        at,
        OFlags::PATH | OFlags::CLOEXEC | flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// A directory below the container's root, likewise; ENOTDIR where it is something else.
pub fn resolve_directory(root: BorrowedFd<'_>, at: &str) -> rustix::io::Result<OwnedFd> {
    let found = resolve(root, at)?;
    match is_directory(&found)? {
        true => not_procfs(&found).map(|()| found),
        false => Err(rustix::io::Errno::NOTDIR),
    }
}

/// Whether what was found is a directory.
pub fn is_directory(found: &OwnedFd) -> rustix::io::Result<bool> {
    Ok(rustix::fs::fstat(found)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// A mount point below the container's root, made with its parents where it is missing.
pub fn make_target(root: BorrowedFd<'_>, at: &str, directory: bool) -> Result<OwnedFd, String> {
    let mut so_far = String::from("/");
    let mut parent = resolve(root, "/").map_err(|e| format!("mounts: {at}: {e}"))?;
    let mut parts = at
        .split('/')
        .filter(|p| !p.is_empty() && *p != ".")
        .peekable();
    while let Some(part) = parts.next() {
        so_far.push_str(part);
        let is_file = parts.peek().is_none() && !directory;
        let error = |e: rustix::io::Errno| format!("mounts: make {so_far} for {at}: {e}");
        parent = match resolve(root, &so_far) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => {
                if is_file {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                    rustix::fs::openat(&parent, part, flags, Mode::from_raw_mode(0o644))
                        .map(drop)
                        .map_err(error)?;
                } else {
                    rustix::fs::mkdirat(&parent, part, Mode::from_raw_mode(0o755))
                        .map_err(error)?;
                }
                resolve(root, &so_far).map_err(error)?
            }
            Err(e) => return Err(error(e)),
        };
        so_far.push('/');
    }
    Ok(parent)
}

/// A descriptor as a path for the calls that take only paths.
pub fn proc_path(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Text as a path for the C library; one with a NUL byte can be none, and the error names its field.
pub fn c_path(text: &str, field: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("{field}: {text:?} contains a NUL byte"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_mount_point_is_made_inside_the_image_whatever_its_symlinks_say() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        fs::create_dir(&image).unwrap();
        symlink("..", image.join("above")).unwrap();
        symlink("/elsewhere", image.join("absolute")).unwrap();
        fs::create_dir(image.join("elsewhere")).unwrap();
        let root = File::open(&image).unwrap();
        make_target(root.as_fd(), "/above/made", true).unwrap();
        make_target(root.as_fd(), "absolute//./deep/file", false).unwrap();
        assert!(image.join("made").is_dir());
        assert!(image.join("elsewhere/deep/file").is_file());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_a_mount_point_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        symlink("loop", directory.path().join("loop")).unwrap();
        let root = File::open(directory.path()).unwrap();
        for (at, part) in [("/file/below", "/file/below"), ("/loop/below", "/loop")] {
            let said = make_target(root.as_fd(), at, true).unwrap_err();
            assert!(
                said.starts_with(&format!("mounts: make {part} for {at}: ")),
                "{said}"
            );
        }
    }

    #[test]
    fn a_directory_is_found_and_nothing_else_is_taken_for_one() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        let root = File::open(directory.path()).unwrap();
        let error = |at| resolve_directory(root.as_fd(), at).unwrap_err();
        assert!(resolve_directory(root.as_fd(), "/").is_ok());
        assert_eq!(error("/file"), rustix::io::Errno::NOTDIR);
        assert_eq!(error("/none"), rustix::io::Errno::NOENT);
        let node = File::open("/").unwrap();
        assert_eq!(
            resolve_directory(node.as_fd(), "/proc/self").unwrap_err(),
            rustix::io::Errno::ACCESS
        );
    }
}
