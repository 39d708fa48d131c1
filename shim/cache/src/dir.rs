//! The store's directory and the files in it.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, fstat, futimens, openat,
    statat, unlinkat,
};
use rustix::io::Errno;

use crate::Error;

/// Suffixes of an entry's files.
pub(crate) const ARTEFACT: &str = ".so";
pub(crate) const REFUSED: &str = ".refused";
pub(crate) const SEEN: &str = ".seen";

/// A use is written down at most this often, so that starting a pod does not write to disk.
const USE_INTERVAL_SECONDS: u64 = 60;
/// Random for each boot; see proc_sys_kernel_random(5).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Bound of a `.seen` file in bytes.
const MAX_SEEN_BYTES: usize = 256;
/// Length of a boot's id, a UUID.
const BOOT_ID_BYTES: usize = 36;

/// The store's directory. All files are named relative to its descriptor, so it cannot be exchanged once it is checked.
#[derive(Debug)]
pub(crate) struct Dir {
    pub(crate) fd: OwnedFd,
    pub(crate) path: PathBuf,
    /// Read at first need; `None` where it cannot be known, and nothing counts as verified.
    boot: OnceLock<Option<String>>,
}

impl Dir {
    /// Opens and checks the directory; makes it where it is missing.
    pub(crate) fn at(dir: &Path) -> Result<Self, Error> {
        // Without a trailing slash, which would follow a symbolic link.
        let path: PathBuf = dir.components().collect();
        let unusable = |why: String, remedy: String| Error::Unusable {
            dir: path.clone(),
            why,
            remedy,
        };
        let name = path.display();
        let open = || {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(CWD, &path, flags, Mode::empty())
        };
        let fd = match open() {
            Err(Errno::NOENT) => {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&path)
                    .map_err(|e| {
                        unusable(
                            format!("cannot be made: {e}"),
                            format!("make it with `install -d -m 700 {name}`"),
                        )
                    })?;
                open()
            }
            opened => opened,
        };
        let fd = fd.map_err(|e| match e {
            Errno::LOOP | Errno::NOTDIR if path.is_symlink() => unusable(
                "a symbolic link".into(),
                "name the directory that it leads to".into(),
            ),
            Errno::NOTDIR => unusable("not a directory".into(), "name another path".into()),
            Errno::ACCESS => unusable(e.to_string(), "run as root".into()),
            _ => unusable(e.to_string(), format!("check it with `stat {name}`")),
        })?;
        let stat = fstat(&fd).map_err(Error::io("stat", &path))?;
        let mode = stat.st_mode & 0o7777;
        if stat.st_uid != 0 {
            return Err(unusable(
                format!("belongs to user {}, not to root", stat.st_uid),
                format!(
                    "its entries cannot be trusted: remove it with `rm -r {name}`; it is made anew"
                ),
            ));
        }
        if mode & 0o077 != 0 {
            return Err(unusable(
                format!("open to other users (mode {mode:04o})"),
                format!("`chmod 700 {name}`, or `rm -r {name}` if others may have written to it"),
            ));
        }
        Ok(Self {
            fd,
            path,
            boot: OnceLock::new(),
        })
    }

    pub(crate) fn join(&self, file_name: &str) -> PathBuf {
        self.path.join(file_name)
    }

    pub(crate) fn open(
        &self,
        file_name: &str,
        flags: OFlags,
        mode: Mode,
    ) -> rustix::io::Result<File> {
        openat(
            &self.fd,
            file_name,
            flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            mode,
        )
        .map(File::from)
    }

    /// Opens for reading; does not wait for the other end of what should be a file but is a FIFO.
    pub(crate) fn open_entry(&self, file_name: &str) -> rustix::io::Result<File> {
        self.open(file_name, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())
    }

    /// The names of all files.
    pub(crate) fn names(&self) -> Result<BTreeSet<String>, Error> {
        let error = |e| Error::io("read", &self.path)(e);
        let entries = rustix::fs::Dir::read_from(&self.fd).map_err(error)?;
        let mut names = BTreeSet::new();
        for entry in entries {
            if let Ok(name) = entry.map_err(error)?.file_name().to_str() {
                names.insert(name.to_string());
            }
        }
        Ok(names)
    }

    pub(crate) fn stat(&self, file_name: &str) -> rustix::io::Result<Stat> {
        statat(&self.fd, file_name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Removes a file; that it is gone already is as good.
    pub(crate) fn unlink(&self, file_name: &str) {
        let _ = unlinkat(&self.fd, file_name, AtFlags::empty());
    }

    /// Whether the open file is still the one of that name.
    pub(crate) fn is_named(&self, file: &File, file_name: &str) -> bool {
        matches!((fstat(file), self.stat(file_name)), (Ok(open), Ok(named)) if same_file(&open, &named))
    }

    /// Whether this very artefact was verified in this boot; `used` writes the use down, too.
    pub(crate) fn seen(&self, name: &str, artefact: &Stat, used: bool) -> bool {
        let Ok(file) = self.open(&format!("{name}{SEEN}"), OFlags::RDONLY, Mode::empty()) else {
            return false;
        };
        let mut text = [0; MAX_SEEN_BYTES];
        let same = matches!(
            (file.read_at(&mut text, 0), self.identity(artefact)),
            (Ok(length), Some(identity)) if text[..length] == *identity.as_bytes()
        );
        if same
            && used
            && let Ok(stat) = fstat(&file)
        {
            touch(&file, &stat);
        }
        same
    }

    /// Writes down that this very artefact was verified in this boot, and used now. Where that fails, the next lookup
    /// hashes again. A reader that meets half a line takes it for another file's and hashes, too.
    pub(crate) fn mark_seen(&self, name: &str, artefact: &Stat) {
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY;
        if let Some(identity) = self.identity(artefact)
            && let Ok(mut file) =
                self.open(&format!("{name}{SEEN}"), flags, Mode::RUSR | Mode::WUSR)
        {
            let _ = file.write_all(identity.as_bytes());
        }
    }

    /// Makes an entry, by the name of its file, the least recently used.
    pub(crate) fn make_oldest(&self, file_name: &str) {
        let noted = match file_name.strip_suffix(ARTEFACT) {
            Some(name) => format!("{name}{SEEN}"),
            None => file_name.into(),
        };
        // Not of the entry itself: that would move its ctime.
        if let Ok(file) = self.open_entry(&noted) {
            set_times(&file, 0);
        }
    }

    /// A file as it is in this boot: every change of its bytes moves the ctime.
    fn identity(&self, stat: &Stat) -> Option<String> {
        let boot = self.boot.get_or_init(boot_id).as_deref()?;
        Some(format!(
            "boot {} inode {} size {} mtime {}.{} ctime {}.{}\n",
            boot,
            stat.st_ino,
            stat.st_size,
            stat.st_mtime,
            stat.st_mtime_nsec,
            stat.st_ctime,
            stat.st_ctime_nsec
        ))
    }
}

pub(crate) fn same_file(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

fn boot_id() -> Option<String> {
    let mut id = vec![0; BOOT_ID_BYTES];
    let file = openat(
        CWD,
        BOOT_ID,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    File::from(file).read_exact_at(&mut id, 0).ok()?;
    String::from_utf8(id).ok()
}

/// Writes the time of use down in the file's mtime, now and then.
pub(crate) fn touch(file: &File, stat: &Stat) {
    let age = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
        .abs_diff(stat.st_mtime as u64);
    if age >= USE_INTERVAL_SECONDS {
        set_times(file, UTIME_NOW);
    }
}

/// Sets a file's times to 1970, or to now with `UTIME_NOW`.
fn set_times(file: &File, tv_nsec: i64) {
    let time = Timespec { tv_sec: 0, tv_nsec };
    let _ = futimens(
        file,
        &Timestamps {
            last_access: time,
            last_modification: time,
        },
    );
}
