//! What who administers a node asks of its worker.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::directory::Directory;
use crate::wire::{FromWorker, ToWorker};

/// How long a worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at one that does not listen yet, or any more.
const ATTEMPT: Duration = Duration::from_millis(10);

/// A cache that has no worker, and gets none as long as this is held.
#[derive(Debug)]
pub struct Stopped {
    _lock: Option<File>,
}

/// Ends the worker of a cache, its compilers and its cgroup. What is kept in the queue stays there.
///
/// # Errors
/// A directory that cannot be used; a worker that does not answer within ten seconds.
pub fn stop(cache_dir: &Path) -> io::Result<Stopped> {
    let Some(directory) = existing(cache_dir)? else {
        return Ok(Stopped { _lock: None });
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match reach(&directory, deadline)? {
            Reached::Nobody(lock) => return Ok(Stopped { _lock: Some(lock) }),
            Reached::Worker(socket) => {
                match slipway_protocol::send(socket.as_fd(), &ToWorker::Stop, &[]) {
                    // It was about to end by itself.
                    Ok(()) | Err(slipway_protocol::Error::Closed) => {}
                    Err(e) => return Err(io::Error::other(e)),
                }
                while hear(&socket, deadline)?.is_some() {}
            }
        }
    }
}

/// Takes jobs, by their names, out of the queue of a cache; the result are those that stay, because starts wait for them.
///
/// # Errors
/// A directory that cannot be used; a worker that does not answer within ten seconds.
pub fn forget(cache_dir: &Path, names: &[&str]) -> io::Result<Vec<String>> {
    let Some(directory) = existing(cache_dir)?.filter(|_| !names.is_empty()) else {
        return Ok(Vec::new());
    };
    let deadline = Instant::now() + PATIENCE;
    let mut kept = Vec::new();
    let mut left = names.iter();
    'reached: while left.len() > 0 {
        match reach(&directory, deadline)? {
            Reached::Nobody(_lock) => left.by_ref().for_each(|name| directory.remove(name)),
            Reached::Worker(socket) => {
                while let Some(name) = left.as_slice().first() {
                    let message = ToWorker::Forget((*name).to_string());
                    let sent = slipway_protocol::send(socket.as_fd(), &message, &[]);
                    match sent.map(|()| hear(&socket, deadline)) {
                        Ok(answer) => match answer? {
                            Some(FromWorker::Forgotten(true)) => {}
                            Some(_) => kept.push((*name).to_string()),
                            None => continue 'reached,
                        },
                        Err(slipway_protocol::Error::Closed) => continue 'reached,
                        Err(e) => return Err(io::Error::other(e)),
                    }
                    left.next();
                }
            }
        }
    }
    Ok(kept)
}

fn existing(cache_dir: &Path) -> io::Result<Option<Directory>> {
    match Directory::open(cache_dir) {
        Ok(directory) => Ok(Some(directory)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

enum Reached {
    Worker(OwnedFd),
    /// There is none, and none begins as long as this is open.
    Nobody(File),
}

fn reach(directory: &Directory, deadline: Instant) -> io::Result<Reached> {
    loop {
        match directory.connect() {
            Ok(socket) => return Ok(Reached::Worker(socket)),
            Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN) => {}
            Err(e) => return Err(e.into()),
        }
        if let Some(lock) = directory.lock()? {
            return Ok(Reached::Nobody(lock));
        }
        if Instant::now() >= deadline {
            return Err(silent());
        }
        std::thread::sleep(ATTEMPT);
    }
}

/// What the worker says next; `None`: it has hung up.
fn hear(socket: &OwnedFd, deadline: Instant) -> io::Result<Option<FromWorker>> {
    let [said] = slipway_sys::readable_until([socket.as_fd()], deadline)?;
    if !said {
        return Err(silent());
    }
    match slipway_protocol::recv(socket.as_fd()) {
        Ok((message, _)) => Ok(Some(message)),
        Err(slipway_protocol::Error::Closed) => Ok(None),
        Err(e) => Err(io::Error::other(e)),
    }
}

fn silent() -> io::Error {
    io::Error::other(format!(
        "the compile queue's worker, a process slipway-queue, does not answer within {} seconds: end it, and try again",
        PATIENCE.as_secs()
    ))
}
