//! The queue's directory, in the cache's, which is root's alone. Only the worker writes to it.
//!
//! ```text
//! queue-2/KEY.job    a job's record; it is there when its module is
//! queue-2/KEY.wasm   the module, copied
//! queue-2/tmp-…      being written
//! queue-2/lock       held by the worker
//! queue-2/socket     where it listens
//! queue-2/cgroup     the /proc/self/cgroup of the worker
//! ```
//! KEY is the artefact's name in the cache. The number in the directory's name is the version of records and messages: an
//! installation with another one has a worker of its own beside this one.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, fstat, openat, unlinkat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::record::{MAX_RECORD_BYTES, Record};

/// Its name, with the version.
pub(crate) const NAME: &str = "queue-2";
const RECORD: &str = ".job";
const MODULE: &str = ".wasm";
const TEMPORARY: &str = "tmp-";
/// Bound of what is read of a /proc/self/cgroup: at most a path for each of some twelve hierarchies.
const MAX_CGROUP_BYTES: u64 = 64 << 10;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// A record, and where it was found.
#[derive(Debug)]
pub struct Found {
    pub name: String,
    pub record: Record,
    pub since: SystemTime,
}

/// The directory. All files are named relative to its descriptor.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens the queue of a cache, whose directory is known to be root's alone.
    pub fn open(cache_dir: &Path) -> io::Result<Self> {
        let path = cache_dir.join(NAME);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(CWD, &path, flags, Mode::empty())?;
        let stat = fstat(&fd)?;
        if stat.st_uid != 0 || stat.st_mode & 0o077 != 0 {
            let text = format!(
                "{} is not root's alone: remove it with `rm -r`, it is made anew",
                path.display()
            );
            return Err(io::Error::other(text));
        }
        Ok(Self { fd, path })
    }

    /// As [`Directory::open`], and makes it where it is missing.
    pub fn make(cache_dir: &Path) -> io::Result<Self> {
        match rustix::fs::mkdir(cache_dir.join(NAME), Mode::RWXU) {
            Err(e) if e != Errno::EXIST => Err(e.into()),
            _ => Self::open(cache_dir),
        }
    }

    /// The right to be the queue's worker, until the file is closed; `None` while another has it.
    pub fn lock(&self) -> io::Result<Option<File>> {
        let file = self.create("lock", OFlags::CREATE | OFlags::RDWR)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Where the last worker's cgroup was, where that did not end by itself; else empty.
    pub fn last_cgroup(&self) -> String {
        let read = |file: File| {
            let mut text = String::new();
            file.take(MAX_CGROUP_BYTES).read_to_string(&mut text)?;
            Ok(text)
        };
        self.open_file("cgroup").and_then(read).unwrap_or_default()
    }

    /// Says where this worker's is. On a full disk it works all the same; if it is killed then, the cgroup may stay.
    pub fn keep_cgroup(&self, own: &str) {
        let _ = self.write("cgroup", own.as_bytes());
    }

    /// Takes that back, for a worker that leaves no cgroup.
    pub fn forget_cgroup(&self) {
        self.unlink("cgroup");
    }

    /// The socket's address. By the descriptor: a path may be longer than an address.
    fn address(&self) -> rustix::io::Result<SocketAddrUnix> {
        SocketAddrUnix::new(format!("/proc/self/fd/{}/socket", self.fd.as_raw_fd()))
    }

    /// Listens, for who holds the lock.
    pub fn listen(&self) -> io::Result<OwnedFd> {
        self.stop_listening();
        let socket = socket()?;
        bind(&socket, &self.address()?)?;
        listen(&socket, BACKLOG)?;
        Ok(socket)
    }

    /// Takes the socket's name away.
    pub fn stop_listening(&self) {
        self.unlink("socket");
    }

    /// Connects to the worker, without waiting for it.
    pub fn connect(&self) -> rustix::io::Result<OwnedFd> {
        let socket = socket()?;
        connect(&socket, &self.address()?)?;
        Ok(socket)
    }

    /// Copies a module. The number tells the copy from another of its name; it is none of the queue's yet.
    pub fn copy(
        &self,
        name: &str,
        number: u64,
        record: &Record,
        module: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let size = record.module.size;
        let copied = self.create_new(&copy_name(name, number));
        copied
            .and_then(|mut file| copy(module, &mut file, size))
            .inspect_err(|_| self.drop_copy(name, number))
    }

    /// Removes a copy that does not serve.
    pub fn drop_copy(&self, name: &str, number: u64) {
        self.unlink(&copy_name(name, number));
    }

    /// Keeps a job: its copy, and its record.
    pub fn keep(&self, name: &str, number: u64, record: &Record) -> io::Result<()> {
        let from = copy_name(name, number);
        rustix::fs::renameat(&self.fd, &from, &self.fd, format!("{name}{MODULE}"))
            .inspect_err(|_| self.unlink(&from))?;
        self.keep_record(name, record)
            .inspect_err(|_| self.remove(name))
    }

    /// Keeps another job of the same module.
    pub fn keep_again(&self, name: &str, new: &str, record: &Record) -> io::Result<()> {
        let [from, to] = [name, new].map(|name| format!("{name}{MODULE}"));
        rustix::fs::renameat(&self.fd, from, &self.fd, to)?;
        self.withdraw(name);
        self.keep_record(new, record)
            .inspect_err(|_| self.remove(new))
    }

    /// Keeps what a job is, in place of what was kept of it.
    pub fn keep_record(&self, name: &str, record: &Record) -> io::Result<()> {
        let bytes = record.encode();
        self.write(&format!("{name}{RECORD}"), &bytes)
    }

    /// For people: what has failed here, and what to do about it.
    pub fn explain(&self, e: &io::Error) -> String {
        format!("{}: {e}{}", self.path.display(), slipway_cache::remedy(e))
    }

    /// The copy of a job's module.
    pub fn module(&self, name: &str) -> io::Result<OwnedFd> {
        Ok(self.open_file(&format!("{name}{MODULE}"))?.into())
    }

    /// Forgets a job.
    pub fn remove(&self, name: &str) {
        // In this order: a record is there only when its module is.
        self.withdraw(name);
        self.unlink(&format!("{name}{MODULE}"));
    }

    /// Takes a job off the list; the copy of its module stays for the worker, and goes with the next one.
    pub fn withdraw(&self, name: &str) {
        self.unlink(&format!("{name}{RECORD}"));
    }

    /// All jobs that are whole.
    pub fn jobs(&self) -> io::Result<Vec<Found>> {
        let names = self.names()?;
        let names = names.iter().filter_map(|name| name.strip_suffix(RECORD));
        Ok(names.filter_map(|name| self.job(name)).collect())
    }

    /// Removes what belongs to no job that is whole, for who holds the lock.
    pub fn sweep(&self) -> io::Result<()> {
        for name in self.names()? {
            let job = name
                .strip_suffix(RECORD)
                .or_else(|| name.strip_suffix(MODULE));
            if name.starts_with(TEMPORARY) || job.is_some_and(|job| self.job(job).is_none()) {
                self.unlink(&name);
            }
        }
        Ok(())
    }

    /// A job, where its record and its module are root's, and whole as far as that can be told without reading the module.
    fn job(&self, name: &str) -> Option<Found> {
        let file = self.open_file(&format!("{name}{RECORD}")).ok()?;
        let since = fstat(&file).ok()?.st_mtime;
        let mut bytes = Vec::new();
        let length = file
            .take(MAX_RECORD_BYTES as u64)
            .read_to_end(&mut bytes)
            .ok()?;
        let record = Record::decode(&bytes[..length])?;
        let module = self.open_file(&format!("{name}{MODULE}")).ok()?;
        let whole = module.metadata().ok()?.len() == record.module.size;
        (whole && record.key().file_name() == name).then(|| Found {
            name: name.into(),
            record,
            since: UNIX_EPOCH + Duration::from_secs(since.max(0) as u64),
        })
    }

    /// Opens one of root's files for reading.
    fn open_file(&self, name: &str) -> io::Result<File> {
        // Does not wait for the other end of what should be a file but is a FIFO.
        let file = self.create(name, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let metadata = file.metadata()?;
        match metadata.is_file() && fstat(&file)?.st_uid == 0 {
            true => Ok(file),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn create(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(fd.into())
    }

    /// Writes a file that appears when it is whole.
    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let temporary = format!("{TEMPORARY}{name}");
        let written = self
            .create_new(&temporary)
            .and_then(|mut file| file.write_all(content))
            .and_then(|()| Ok(rustix::fs::renameat(&self.fd, &temporary, &self.fd, name)?));
        written.inspect_err(|_| self.unlink(&temporary))
    }

    fn create_new(&self, name: &str) -> io::Result<File> {
        self.create(name, OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            if let Ok(name) = entry?.file_name().to_str() {
                names.push(name.to_string());
            }
        }
        Ok(names)
    }

    fn unlink(&self, name: &str) {
        let _ = unlinkat(&self.fd, name, AtFlags::empty());
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn copy_name(name: &str, number: u64) -> String {
    format!("{TEMPORARY}{number}-{name}{MODULE}")
}

fn socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// Copies that many bytes from the file's beginning, fewer where it is shorter: the compiler will see that it is another
/// file. The position of the descriptor, which others share, is not used.
fn copy(from: BorrowedFd<'_>, to: &mut File, bytes: u64) -> io::Result<()> {
    let mut at = 0;
    while at < bytes {
        let left = usize::try_from(bytes - at).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut at), &*to, None, left) {
            Ok(0) => break,
            Ok(_) => {}
            // Two file systems, or one that has no such call.
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                return copy_by_reading(from, to, at, bytes);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn copy_by_reading(from: BorrowedFd<'_>, to: &mut File, mut at: u64, bytes: u64) -> io::Result<()> {
    let mut chunk = vec![0; 128 << 10];
    while at < bytes {
        let want = chunk
            .len()
            .min(usize::try_from(bytes - at).unwrap_or(usize::MAX));
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(from, &mut chunk[..want], at))?;
        if read == 0 {
            break;
        }
        to.write_all(&chunk[..read])?;
        at += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::record;
    use slipway_cache::Tier;
    use std::fs;

    fn queue() -> (tempfile::TempDir, Directory) {
        let cache = tempfile::tempdir().unwrap();
        let directory = Directory::make(cache.path()).unwrap();
        (cache, directory)
    }

    fn keep(directory: &Directory, text: &str, tier: Tier) -> String {
        let mut module = tempfile::tempfile().unwrap();
        module.write_all(text.as_bytes()).unwrap();
        let record = record(text, text.len() as u64, tier);
        let name = record.key().file_name();
        let copied = directory.copy(&name, 1, &record, module.as_fd());
        copied.unwrap();
        directory.keep(&name, 1, &record).unwrap();
        name
    }

    fn names(directory: &Directory) -> Vec<String> {
        let jobs = directory.jobs().unwrap();
        jobs.into_iter().map(|job| job.name).collect()
    }

    #[test]
    fn a_job_is_kept_with_its_module_until_it_is_removed() {
        let (_cache, directory) = queue();
        let name = keep(&directory, "module", Tier::Quick);
        assert_eq!(names(&directory), [name.as_str()]);
        let mut text = String::new();
        let module = File::from(directory.module(&name).unwrap());
        (&module).read_to_string(&mut text).unwrap();
        assert_eq!(text, "module");
        let full = record("module", 6, Tier::Full);
        let new = full.key().file_name();
        directory.keep_again(&name, &new, &full).unwrap();
        assert_eq!(names(&directory), [new.as_str()]);
        directory.remove(&new);
        assert_eq!(fs::read_dir(&directory.path).unwrap().count(), 0);
    }

    #[test]
    fn what_is_not_whole_or_not_roots_is_swept_away() {
        let (_cache, directory) = queue();
        let path = |name: &str, suffix: &str| directory.path.join(format!("{name}{suffix}"));
        let good = keep(&directory, "good", Tier::Full);
        let [torn, foreign, short, renamed, lost, replaced] =
            ["torn", "foreign", "short", "renamed", "lost", "replaced"]
                .map(|text| keep(&directory, text, Tier::Full));
        let bytes = fs::read(path(&torn, RECORD)).unwrap();
        fs::write(path(&torn, RECORD), &bytes[..bytes.len() - 1]).unwrap();
        std::os::unix::fs::chown(path(&foreign, RECORD), Some(1000), None).unwrap();
        fs::write(path(&short, MODULE), "").unwrap();
        let other = "0".repeat(64);
        fs::rename(path(&renamed, RECORD), path(&other, RECORD)).unwrap();
        fs::copy(path(&good, MODULE), path(&other, MODULE)).unwrap();
        fs::remove_file(path(&lost, MODULE)).unwrap();
        fs::remove_file(path(&replaced, MODULE)).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path(&replaced, MODULE)).unwrap();
        fs::write(path("x", RECORD), vec![0xff; 1 << 20]).unwrap();
        fs::write(directory.path.join("tmp-left"), "").unwrap();
        assert_eq!(names(&directory), [good.as_str()]);
        directory.sweep().unwrap();
        assert_eq!(fs::read_dir(&directory.path).unwrap().count(), 2);
        assert_eq!(names(&directory), [good]);
    }

    #[test]
    fn there_is_one_worker() {
        let (cache, directory) = queue();
        let lock = directory.lock().unwrap();
        assert!(lock.is_some());
        let other = Directory::open(cache.path()).unwrap();
        assert!(other.lock().unwrap().is_none());
        assert_eq!(other.connect().unwrap_err(), Errno::NOENT);
        let listener = directory.listen().unwrap();
        assert!(other.connect().is_ok());
        drop(listener);
        assert_eq!(other.connect().unwrap_err(), Errno::CONNREFUSED);
        drop(lock);
        assert!(other.lock().unwrap().is_some());
        assert!(other.listen().is_ok());
    }

    #[test]
    fn a_directory_that_others_may_enter_is_none() {
        use std::os::unix::fs::PermissionsExt;
        let (cache, directory) = queue();
        fs::set_permissions(&directory.path, fs::Permissions::from_mode(0o755)).unwrap();
        let refused = Directory::open(cache.path()).unwrap_err();
        assert!(refused.to_string().contains("root's alone"), "{refused}");
    }
}
