//! `slipway run --watch`: a change of the sources builds and runs the program again.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::args::Run;
use crate::project::{OUTPUT, PACKAGES, Project};
use crate::run::{self, Signals};
use crate::terminal;

/// A change is over when nothing was written for so long: editors and version control write several files.
const QUIET: Duration = Duration::from_millis(50);

/// What ends a build or a program from outside.
enum Cause {
    Signal(i32),
    Change(Result<(), String>),
}

impl Cause {
    async fn next(signals: &mut Signals, changes: &mut Changes) -> Self {
        tokio::select! {
            number = signals.next() => Self::Signal(number),
            change = changes.next() => Self::Change(change),
        }
    }

    /// The signal that a build or a program gets.
    fn number(&self) -> i32 {
        match self {
            Self::Signal(number) => *number,
            Self::Change(_) => libc::SIGTERM,
        }
    }
}

/// Builds and runs the program, again at every change, until a signal ends it all.
pub async fn watch(args: &Run, arguments: &[String], dir: &Path) -> Result<ExitCode, String> {
    let mut signals = Signals::new()?;
    let mut changes = Changes::new(dir)?;
    loop {
        let mut cause = None;
        let mut stop = async || {
            let next = Cause::next(&mut signals, &mut changes).await;
            let number = next.number();
            // A change while a program ends by a signal starts nothing.
            if !matches!(cause, Some(Cause::Signal(_))) {
                cause = Some(next);
            }
            number
        };
        // What the folder is may change, too: a file of C more, the first Cargo.toml.
        let end = match Project::recognise(dir) {
            Ok(project) => run::project(args, arguments, &project, &mut stop).await,
            Err(e) => Err(e),
        };
        let cause = match cause {
            Some(cause) => cause,
            None => {
                match end {
                    Ok(status) => {
                        terminal::note(&format!("the program ended with status {status}"));
                    }
                    Err(message) => terminal::error(&message),
                }
                terminal::note("waiting for a change");
                Cause::next(&mut signals, &mut changes).await
            }
        };
        match cause {
            Cause::Signal(number) => return Ok(ExitCode::from(run::ended_by(number))),
            Cause::Change(change) => change?,
        }
        terminal::note("changed");
    }
}

/// Changes of the files below a directory.
struct Changes {
    dir: PathBuf,
    inotify: AsyncFd<OwnedFd>,
    /// The watch of the directory itself.
    top: i32,
    /// Something has changed that nobody was told of yet.
    pending: bool,
}

impl Changes {
    fn new(dir: &Path) -> Result<Self, String> {
        let inotify =
            inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|e| match e {
                Errno::MFILE => format!("inotify: {e}: raise sysctl fs.inotify.max_user_instances"),
                _ => format!("inotify: {e}"),
            })?;
        let mut changes = Self {
            dir: dir.to_path_buf(),
            inotify: slipway_sys::async_fd(inotify, Interest::READABLE)
                .map_err(|e| format!("inotify: {e}"))?,
            top: 0,
            pending: false,
        };
        changes.add_all()?;
        Ok(changes)
    }

    /// Waits for a change and for its end. Who waits may give up at any time: no change is lost.
    async fn next(&mut self) -> Result<(), String> {
        while !self.pending {
            self.read().await?;
        }
        while let Ok(read) = tokio::time::timeout(QUIET, self.read()).await {
            read?;
        }
        // New directories. What was written into them before this is seen by the build, which comes after it.
        self.add_all()?;
        self.pending = false;
        Ok(())
    }

    /// Waits for events.
    async fn read(&mut self) -> Result<(), String> {
        let mut ready = self
            .inotify
            .readable()
            .await
            .map_err(|e| format!("inotify: {e}"))?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(self.inotify.get_ref(), &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    let lost = event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                    let of_a_source = event.file_name().is_some_and(|name| {
                        let name = OsStr::from_bytes(name.to_bytes());
                        !ignored(name, event.wd() == self.top)
                    });
                    self.pending |= lost || of_a_source;
                }
                Err(Errno::AGAIN) => {
                    ready.clear_ready();
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(format!("inotify: {e}")),
            }
        }
    }

    /// Watches the directory and all below it; what is watched already stays so.
    fn add_all(&mut self) -> Result<(), String> {
        self.top = self.add(&self.dir)?;
        let mut directories = vec![self.dir.clone()];
        while let Some(directory) = directories.pop() {
            // A directory that has gone meanwhile is another change.
            if !directory.is_dir() {
                continue;
            }
            // Watched before it is read: nothing comes between.
            self.add(&directory)?;
            for entry in std::fs::read_dir(&directory)
                .into_iter()
                .flatten()
                .flatten()
            {
                // Not through symlinks: they may lead anywhere.
                if entry.file_type().is_ok_and(|t| t.is_dir())
                    && !ignored(&entry.file_name(), directory == self.dir)
                {
                    directories.push(entry.path());
                }
            }
        }
        Ok(())
    }

    fn add(&self, directory: &Path) -> Result<i32, String> {
        // A file counts when it is complete, not with each write.
        let events = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::ONLYDIR;
        inotify::add_watch(self.inotify.get_ref(), directory, events).map_err(|e| {
            let remedy = match e {
                Errno::NOSPC => ": raise sysctl fs.inotify.max_user_watches",
                _ => "",
            };
            format!("watching {}: {e}{remedy}", directory.display())
        })
    }
}

/// What builds, version control and editors write beside the sources.
fn ignored(name: &OsStr, at_the_top: bool) -> bool {
    let bytes = name.as_bytes();
    bytes.starts_with(b".")
        || bytes.ends_with(b"~")
        || name == PACKAGES
        || name == "Cargo.lock"
        || (at_the_top && name == OUTPUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_build_writes_is_no_change() {
        for name in [
            ".git",
            ".main.c.swp",
            "main.c~",
            "node_modules",
            "Cargo.lock",
        ] {
            assert!(ignored(name.as_ref(), false), "{name}");
        }
        assert!(ignored("target".as_ref(), true));
        for name in ["main.c", "target", "Cargo.toml"] {
            assert!(!ignored(name.as_ref(), false), "{name}");
        }
    }

    /// Whether there is a change. The clock stands still while there is anything to do, so a slow machine finds it, too.
    async fn changed(changes: &mut Changes) -> bool {
        match tokio::time::timeout(4 * QUIET, changes.next()).await {
            Ok(change) => change.map(|()| true).unwrap(),
            Err(_) => false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_one_change_and_new_directories_are_watched() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| std::fs::write(dir.path().join(name), "x").unwrap();
        std::fs::create_dir(dir.path().join("target")).unwrap();
        let mut changes = Changes::new(dir.path()).unwrap();
        write("target/a.wasm");
        write("Cargo.lock");
        assert!(!changed(&mut changes).await);
        for name in ["a.c", "b.c", "c.c"] {
            write(name);
        }
        assert!(changed(&mut changes).await);
        assert!(!changed(&mut changes).await);
        std::fs::create_dir(dir.path().join("new")).unwrap();
        assert!(changed(&mut changes).await);
        write("new/d.c");
        assert!(changed(&mut changes).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_kept_for_who_asks_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut changes = Changes::new(dir.path()).unwrap();
        std::fs::write(dir.path().join("a.c"), "x").unwrap();
        // Given up after the event was read, before the change was over.
        assert!(
            tokio::time::timeout(QUIET / 2, changes.next())
                .await
                .is_err()
        );
        assert!(changed(&mut changes).await);
    }
}
