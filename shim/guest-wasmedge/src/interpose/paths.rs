//! Calls of the engine's paths, as it makes them through its PLT, put right where its own code is wrong.
//!
//! The engine walks a path part by part, with a descriptor for each directory, and refuses a symlink to an absolute path,
//! of which container images are full. Such a link's target is told to the engine as a path that begins with a name no
//! directory can have: [`ROOT_NAME`]. Where the engine then asks for that name, in whatever directory, it gets the
//! container's root, and walks on from there by its own rules.

use std::ffi::{CStr, c_char, c_int, c_long};
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use slipway_guest::is_procfs;

/// 256 bytes: one more than a name may have.
const ROOT_NAME: &[u8; 256] = &[b'='; 256];
/// The container's root in the guest's own tree.
const ROOT: &CStr = c"/rootfs/.";

/// Where the call really goes: the root, or where it came for.
///
/// # Safety
/// `name` is a string.
unsafe fn place(directory: c_int, name: *const c_char) -> (c_int, *const c_char) {
    // SAFETY: the caller's promise.
    match unsafe { CStr::from_ptr(name) }.to_bytes() == ROOT_NAME {
        true => (libc::AT_FDCWD, ROOT.as_ptr()),
        false => (directory, name),
    }
}

/// What follows the root's name in the place of an absolute target. Above the root is the root: the engine would go back
/// to where the link lies.
fn below_root(target: &[u8]) -> &[u8] {
    let mut rest = target;
    while let Some(after) = rest
        .strip_prefix(b"/..")
        .filter(|a| a.first().is_none_or(|b| *b == b'/'))
    {
        rest = after;
    }
    if rest == b"/" { &[] } else { rest }
}

/// readlinkat(2) as the engine calls it: for path_readlink into the program's memory, and on its own walk into its own.
///
/// # Safety
/// readlinkat(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn readlinkat(
    directory: c_int,
    name: *const c_char,
    buffer: *mut c_char,
    size: usize,
) -> isize {
    // SAFETY: passed on as it came; what is written below lies in the buffer.
    unsafe {
        let read = libc::syscall(libc::SYS_readlinkat, directory, name, buffer, size) as isize;
        let Ok(length) = usize::try_from(read) else {
            return read;
        };
        let walking = super::memory::memory_at(buffer as usize).is_none();
        if !walking || length == 0 || buffer.read() as u8 != b'/' || size < length + ROOT_NAME.len()
        {
            return read;
        }
        let target = std::slice::from_raw_parts(buffer.cast::<u8>(), length);
        let whole = [ROOT_NAME, below_root(target)].concat();
        whole
            .as_ptr()
            .copy_to_nonoverlapping(buffer.cast(), whole.len());
        whole.len() as isize
    }
}

/// fstatat(2) as the engine calls it.
///
/// # Safety
/// fstatat(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstatat(
    directory: c_int,
    name: *const c_char,
    stat: *mut libc::stat,
    flags: c_int,
) -> c_int {
    // SAFETY: passed on as it came, or with the root's name.
    unsafe {
        let (directory, name) = place(directory, name);
        let flags = c_long::from(flags);
        libc::syscall(libc::SYS_newfstatat, directory, name, stat, flags) as c_int
    }
}

/// openat(2) as the engine calls it, always with a mode. A new file gets the mode that programs ask for where they can,
/// which the container's umask then limits.
///
/// The engine opens for writing, too, where a program that reads asks for the right to change the file's size; all of Go
/// do. A file that cannot be written is opened for reading then: a write fails when it comes.
///
/// # Safety
/// openat(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat(directory: c_int, name: *const c_char, flags: c_int) -> c_int {
    const MODE: c_long = 0o666;
    // SAFETY: passed on as it came, or with the root's name.
    let open = |flags: c_int| unsafe {
        let (directory, name) = place(directory, name);
        libc::syscall(libc::SYS_openat, directory, name, c_long::from(flags), MODE) as c_int
    };
    let mut opened = open(flags);
    let both = flags & (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) == libc::O_RDWR;
    if opened < 0 && both {
        // SAFETY: errno's location is valid for the calling thread.
        if let libc::EROFS | libc::EACCES = unsafe { *libc::__errno_location() } {
            opened = open(flags & !libc::O_ACCMODE | libc::O_RDONLY);
        }
    }
    if opened >= 0 && !is_reachable(opened) {
        // SAFETY: opened a moment ago, unknown to anyone; errno's location is valid for the calling thread.
        unsafe {
            libc::syscall(libc::SYS_close, opened);
            *libc::__errno_location() = libc::EACCES;
        }
        return -1;
    }
    opened
}

/// What `slipway_guest` checks of all mounts, for what the node has mounted below a volume since (mountPropagation
/// HostToContainer): no procfs, and no device but those of the guest's own /dev.
fn is_reachable(fd: c_int) -> bool {
    static DEV: OnceLock<Option<libc::dev_t>> = OnceLock::new();
    let own = || rustix::fs::stat("/rootfs/dev").ok().map(|dev| dev.st_dev);
    // SAFETY: it stays open for as long as this function runs.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    // newfstatat(2), as the engine's own calls: a seccomp profile need not know another.
    let file = rustix::fs::statat(fd, "", rustix::fs::AtFlags::EMPTY_PATH);
    let (Ok(false), Ok(file)) = (is_procfs(fd), file) else {
        return false;
    };
    match file.st_mode & libc::S_IFMT {
        libc::S_IFCHR | libc::S_IFBLK => *DEV.get_or_init(own) == Some(file.st_dev),
        _ => true,
    }
}

/// mkdirat(2) as the engine calls it: the same for a new directory.
///
/// # Safety
/// mkdirat(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdirat(
    directory: c_int,
    name: *const c_char,
    _mode: libc::mode_t,
) -> c_int {
    const MODE: c_long = 0o777;
    // SAFETY: passed on as it came.
    unsafe { libc::syscall(libc::SYS_mkdirat, directory, name, MODE) as c_int }
}
