//! `wasi_snapshot_preview1` without any library between: paths are bytes, errors are numbers with names.

use std::fmt;

use wasip1::wasi_snapshot_preview1 as raw;
pub use wasip1::{
    CLOCKID_MONOTONIC, CLOCKID_PROCESS_CPUTIME_ID, CLOCKID_REALTIME, CLOCKID_THREAD_CPUTIME_ID,
    Event, FDFLAGS_APPEND, FDFLAGS_DSYNC, FDFLAGS_NONBLOCK, FDFLAGS_RSYNC, FDFLAGS_SYNC, Fdstat,
    Filestat, LOOKUPFLAGS_SYMLINK_FOLLOW as FOLLOW, OFLAGS_CREAT as CREAT,
    OFLAGS_DIRECTORY as DIRECTORY, OFLAGS_EXCL as EXCL, OFLAGS_TRUNC as TRUNC, RIGHTS_FD_READ,
    RIGHTS_FD_WRITE, Subscription, SubscriptionClock, SubscriptionFdReadwrite, SubscriptionU,
    SubscriptionUU,
};

pub type Fd = u32;

/// Of files and directories.
const ALL_RIGHTS: u64 = 0x1FFF_FFFF;
/// Those that a directory can have: all but data to be written.
pub const DIRECTORY_RIGHTS: u64 = ALL_RIGHTS & !(1 | 1 << 6 | 1 << 8 | 1 << 22);

/// An error of WASI; zero is success.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub u16);

macro_rules! errnos {
    ($($name:ident)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, dead_code)] // the standard's own names, all of them
        enum Names { $($name),* }
        #[allow(dead_code)] // likewise
        impl Errno { $(pub const $name: Errno = Errno(Names::$name as u16);)* }
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}
// In the standard's order.
errnos! {
    SUCCESS TOO_BIG ACCES ADDRINUSE ADDRNOTAVAIL AFNOSUPPORT AGAIN ALREADY BADF BADMSG BUSY CANCELED CHILD CONNABORTED
    CONNREFUSED CONNRESET DEADLK DESTADDRREQ DOM DQUOT EXIST FAULT FBIG HOSTUNREACH IDRM ILSEQ INPROGRESS INTR INVAL IO
    ISCONN ISDIR LOOP MFILE MLINK MSGSIZE MULTIHOP NAMETOOLONG NETDOWN NETRESET NETUNREACH NFILE NOBUFS NODEV NOENT
    NOEXEC NOLCK NOLINK NOMEM NOMSG NOPROTOOPT NOSPC NOSYS NOTCONN NOTDIR NOTEMPTY NOTRECOVERABLE NOTSOCK NOTSUP NOTTY
    NXIO OVERFLOW OWNERDEAD PERM PIPE PROTO PROTONOSUPPORT PROTOTYPE RANGE ROFS SPIPE SRCH STALE TIMEDOUT TXTBSY XDEV
    NOTCAPABLE
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(usize::from(self.0)) {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

pub type Result<T> = std::result::Result<T, Errno>;

fn check(code: i32) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(Errno(code as u16)),
    }
}

/// A call that fills in one value.
fn fill<T: Default>(call: impl FnOnce(i32) -> i32) -> Result<T> {
    let mut value = T::default();
    check(call(&raw mut value as i32)).map(|()| value)
}

/// The same for structures without a default.
fn fill_zeroed<T: Copy>(call: impl FnOnce(i32) -> i32) -> Result<T> {
    // SAFETY: used for structures of numbers, for which zero is a value.
    let mut value: T = unsafe { std::mem::zeroed() };
    check(call(&raw mut value as i32)).map(|()| value)
}

// SAFETY of all calls below: the host reads and writes what it is given, which lives during the call.

macro_rules! on_fd {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {
        $(pub fn $name(fd: Fd, $($argument: $type),*) -> Result<()> {
            check(unsafe { raw::$name(fd as i32, $($argument as _),*) })
        })*
    };
}
on_fd! {
    fd_advise(offset: u64, len: u64, advice: u8);
    fd_allocate(offset: u64, len: u64);
    fd_close();
    fd_datasync();
    fd_fdstat_set_flags(flags: u16);
    fd_fdstat_set_rights(base: u64, inheriting: u64);
    fd_filestat_set_size(size: u64);
    fd_filestat_set_times(atim: u64, mtim: u64, flags: u16);
    fd_renumber(to: Fd);
    fd_sync();
    sock_shutdown(how: u8);
}

macro_rules! on_path {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {
        $(pub fn $name(fd: Fd, $($argument: $type,)* path: impl AsRef<[u8]>) -> Result<()> {
            let path = path.as_ref();
            check(unsafe { raw::$name(fd as i32, $($argument as _,)* path.as_ptr() as i32, path.len() as i32) })
        })*
    };
}
on_path! {
    path_create_directory();
    path_remove_directory();
    path_unlink_file();
}

pub fn fd_fdstat_get(fd: Fd) -> Result<Fdstat> {
    fill_zeroed(|out| unsafe { raw::fd_fdstat_get(fd as i32, out) })
}

pub fn fd_filestat_get(fd: Fd) -> Result<Filestat> {
    fill_zeroed(|out| unsafe { raw::fd_filestat_get(fd as i32, out) })
}

#[repr(C)]
struct Buffer(*const u8, usize);

pub fn fd_read(fd: Fd, buffer: &mut [u8]) -> Result<usize> {
    let iov = Buffer(buffer.as_mut_ptr(), buffer.len());
    fill(|out| unsafe { raw::fd_read(fd as i32, &raw const iov as i32, 1, out) })
}

pub fn fd_pread(fd: Fd, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let iov = Buffer(buffer.as_mut_ptr(), buffer.len());
    fill(|out| unsafe { raw::fd_pread(fd as i32, &raw const iov as i32, 1, offset as i64, out) })
}

pub fn fd_write(fd: Fd, bytes: impl AsRef<[u8]>) -> Result<usize> {
    fd_writev(fd, &[bytes.as_ref()])
}

pub fn fd_writev(fd: Fd, pieces: &[&[u8]]) -> Result<usize> {
    let iovs: Vec<Buffer> = pieces.iter().map(|p| Buffer(p.as_ptr(), p.len())).collect();
    fill(|out| unsafe { raw::fd_write(fd as i32, iovs.as_ptr() as i32, iovs.len() as i32, out) })
}

pub fn fd_pwrite(fd: Fd, bytes: impl AsRef<[u8]>, offset: u64) -> Result<usize> {
    let bytes = bytes.as_ref();
    let iov = Buffer(bytes.as_ptr(), bytes.len());
    fill(|out| unsafe { raw::fd_pwrite(fd as i32, &raw const iov as i32, 1, offset as i64, out) })
}

pub fn fd_seek(fd: Fd, offset: i64, whence: u8) -> Result<u64> {
    fill(|out| unsafe { raw::fd_seek(fd as i32, offset, whence.into(), out) })
}

pub fn fd_tell(fd: Fd) -> Result<u64> {
    fill(|out| unsafe { raw::fd_tell(fd as i32, out) })
}

pub fn fd_readdir(fd: Fd, buffer: &mut [u8], cookie: u64) -> Result<usize> {
    let (at, len) = (buffer.as_mut_ptr() as i32, buffer.len() as i32);
    fill(|out| unsafe { raw::fd_readdir(fd as i32, at, len, cookie as i64, out) })
}

/// The name of a preopened directory.
pub fn preopen(fd: Fd) -> Result<Vec<u8>> {
    let stat: (u32, u32) = fill(|out| unsafe { raw::fd_prestat_get(fd as i32, out) })?;
    let mut name = vec![0; stat.1 as usize];
    let at = name.as_mut_ptr() as i32;
    check(unsafe { raw::fd_prestat_dir_name(fd as i32, at, name.len() as i32) })?;
    Ok(name)
}

pub fn path_open(
    fd: Fd,
    lookup: u32,
    path: impl AsRef<[u8]>,
    oflags: u16,
    rights: u64,
    fdflags: u16,
) -> Result<Fd> {
    let path = path.as_ref();
    // As libraries do it: what is opened below a directory may be used for all.
    let inheriting = if oflags & DIRECTORY == 0 {
        0
    } else {
        ALL_RIGHTS
    };
    fill(|out| unsafe {
        raw::path_open(
            fd as i32,
            lookup as i32,
            path.as_ptr() as i32,
            path.len() as i32,
            oflags.into(),
            rights as i64,
            inheriting as i64,
            fdflags.into(),
            out,
        )
    })
}

pub fn path_filestat_get(fd: Fd, lookup: u32, path: impl AsRef<[u8]>) -> Result<Filestat> {
    let path = path.as_ref();
    let (at, len) = (path.as_ptr() as i32, path.len() as i32);
    fill_zeroed(|out| unsafe { raw::path_filestat_get(fd as i32, lookup as i32, at, len, out) })
}

pub fn path_filestat_set_times(
    fd: Fd,
    lookup: u32,
    path: impl AsRef<[u8]>,
    (atim, mtim): (u64, u64),
    flags: u16,
) -> Result<()> {
    let path = path.as_ref();
    let (at, len) = (path.as_ptr() as i32, path.len() as i32);
    check(unsafe {
        raw::path_filestat_set_times(
            fd as i32,
            lookup as i32,
            at,
            len,
            atim as i64,
            mtim as i64,
            flags.into(),
        )
    })
}

pub fn path_link(fd: Fd, lookup: u32, old: impl AsRef<[u8]>, new: impl AsRef<[u8]>) -> Result<()> {
    let (old, new) = (old.as_ref(), new.as_ref());
    let (to, to_len) = (new.as_ptr() as i32, new.len() as i32);
    check(unsafe {
        let (at, len) = (old.as_ptr() as i32, old.len() as i32);
        raw::path_link(fd as i32, lookup as i32, at, len, fd as i32, to, to_len)
    })
}

pub fn path_readlink(fd: Fd, path: impl AsRef<[u8]>, buffer: &mut [u8]) -> Result<usize> {
    let path = path.as_ref();
    let (at, len) = (path.as_ptr() as i32, path.len() as i32);
    let (to, size) = (buffer.as_mut_ptr() as i32, buffer.len() as i32);
    fill(|out| unsafe { raw::path_readlink(fd as i32, at, len, to, size, out) })
}

pub fn path_rename(fd: Fd, old: impl AsRef<[u8]>, new: impl AsRef<[u8]>) -> Result<()> {
    let (old, new) = (old.as_ref(), new.as_ref());
    let (at, len) = (old.as_ptr() as i32, old.len() as i32);
    let (to, to_len) = (new.as_ptr() as i32, new.len() as i32);
    check(unsafe { raw::path_rename(fd as i32, at, len, fd as i32, to, to_len) })
}

pub fn path_symlink(target: impl AsRef<[u8]>, fd: Fd, path: impl AsRef<[u8]>) -> Result<()> {
    let (target, path) = (target.as_ref(), path.as_ref());
    let (at, len) = (target.as_ptr() as i32, target.len() as i32);
    let (to, to_len) = (path.as_ptr() as i32, path.len() as i32);
    check(unsafe { raw::path_symlink(at, len, fd as i32, to, to_len) })
}

pub fn clock_res_get(clock: u32) -> Result<u64> {
    fill(|out| unsafe { raw::clock_res_get(clock as i32, out) })
}

pub fn clock_time_get(clock: u32) -> Result<u64> {
    fill(|out| unsafe { raw::clock_time_get(clock as i32, 1, out) })
}

pub fn random_get(buffer: &mut [u8]) -> Result<()> {
    check(unsafe { raw::random_get(buffer.as_mut_ptr() as i32, buffer.len() as i32) })
}

pub fn sched_yield() -> Result<()> {
    check(unsafe { raw::sched_yield() })
}

pub fn poll_oneoff(subscriptions: &[Subscription], events: &mut Vec<Event>) -> Result<()> {
    // SAFETY: an event is numbers, for which zero is a value.
    events.resize_with(subscriptions.len().max(1), || unsafe { std::mem::zeroed() });
    let (from, to) = (subscriptions.as_ptr() as i32, events.as_mut_ptr() as i32);
    let count: usize =
        fill(|out| unsafe { raw::poll_oneoff(from, to, subscriptions.len() as i32, out) })?;
    events.truncate(count);
    Ok(())
}

pub fn sock_accept(fd: Fd) -> Result<Fd> {
    fill(|out| unsafe { raw::sock_accept(fd as i32, 0, out) })
}

pub fn sock_recv(fd: Fd, buffer: &mut [u8]) -> Result<usize> {
    let iov = Buffer(buffer.as_mut_ptr(), buffer.len());
    let mut flags = 0u16;
    let flags = &raw mut flags as i32;
    fill(|out| unsafe { raw::sock_recv(fd as i32, &raw const iov as i32, 1, 0, out, flags) })
}

pub fn sock_send(fd: Fd, bytes: &[u8]) -> Result<usize> {
    let iov = Buffer(bytes.as_ptr(), bytes.len());
    fill(|out| unsafe { raw::sock_send(fd as i32, &raw const iov as i32, 1, 0, out) })
}

/// (count, bytes) of the arguments, and of the environment.
pub fn sizes() -> Result<[(usize, usize); 2]> {
    let (mut arguments, mut environment) = ((0, 0), (0, 0));
    let at = |value: &mut usize| &raw mut *value as i32;
    check(unsafe { raw::args_sizes_get(at(&mut arguments.0), at(&mut arguments.1)) })?;
    check(unsafe { raw::environ_sizes_get(at(&mut environment.0), at(&mut environment.1)) })?;
    Ok([arguments, environment])
}
