//! Kills of the kernel's OOM killer in a cgroup: each is told once, with the limit that was reached.
//!
//! Both versions count the kills in a cgroup (`oom_kill`), whoever's limit they were for, and version 2 counts for each cgroup
//! how often *its* limit was the one without room (`oom` of memory.events.local). Version 1 has no such counter, and
//! memory.failcnt counts page cache that was dropped, too. It has an event instead, which a limit's cgroup and all below it
//! get: what a container's cgroup got and its parent's did not was for the container's own limit.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::EventfdFlags;

use crate::{Cgroup, metrics};

/// A kill, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomKill {
    /// The container's own limit was reached; in bytes, where it is known.
    Container(Option<u64>),
    /// The limit of the cgroup above it, its pod's, was reached; in bytes, where it is known.
    Pod(Option<u64>),
    /// Neither was: a limit further up, or the node has no memory left.
    Node,
}

impl fmt::Display for OomKill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whose, bytes) = match self {
            Self::Container(bytes) => ("the container's", bytes),
            Self::Pod(bytes) => ("the pod's", bytes),
            Self::Node => {
                return f.write_str(
                    "killed by the kernel: the node has no memory left; neither the container's memory limit nor the pod's was reached",
                );
            }
        };
        write!(f, "killed by the kernel: {whose} memory limit ")?;
        match bytes {
            Some(bytes) => write!(f, "of {bytes} bytes was reached"),
            None => f.write_str("was reached"),
        }
    }
}

/// Tells the kills in a container's cgroup from the moment on that it is made: a cgroup may be older than its container.
#[derive(Debug)]
pub struct OomWatch {
    cgroup: Cgroup,
    pod: Option<Cgroup>,
    own_limit: Reached,
    pod_limit: Reached,
    /// Kills that have been told.
    told: u64,
    /// Kills whose cause is known: several processes may be killed for one limit.
    known: u64,
    cause: OomKill,
}

impl OomWatch {
    /// Watches a cgroup that is there.
    pub fn new(cgroup: &Cgroup) -> Self {
        let parent = cgroup.path.parent().filter(|p| !p.as_os_str().is_empty());
        let pod = parent.map(|path| Cgroup {
            path: path.into(),
            ..cgroup.clone()
        });
        let kills = cgroup.oom_kills();
        Self {
            own_limit: Reached::watch(cgroup),
            pod_limit: pod.as_ref().map_or(Reached::Unknown, Reached::watch),
            cgroup: cgroup.clone(),
            pod,
            told: kills,
            known: kills,
            cause: OomKill::Node,
        }
    }

    /// A kill that has not been told yet.
    pub fn next_kill(&mut self) -> Option<OomKill> {
        let kills = self.cgroup.oom_kills();
        if kills <= self.told {
            return None;
        }
        if self.told >= self.known {
            self.cause = self.cause_since();
            self.known = kills;
        }
        self.told += 1;
        Some(self.cause)
    }

    /// Which limit was reached since the last cause was looked for.
    fn cause_since(&mut self) -> OomKill {
        let (own, above) = (self.own_limit.times(), self.pod_limit.times());
        let above = above.unwrap_or(0);
        let own = match self.cgroup.is_v2() {
            true => own,
            // The container's cgroup gets the events of those above it, too.
            false => own.map(|all| all.saturating_sub(above)),
        };
        let container = self.cgroup.memory_limit();
        let pod = self.pod.as_ref().and_then(Cgroup::memory_limit);
        let is_own = own.map_or(container.is_some(), |times| times > 0);
        let is_pods = pod.is_some() && (above > 0 || own.is_none());
        match (is_own, is_pods) {
            (true, _) => OomKill::Container(container),
            (false, true) => OomKill::Pod(pod),
            (false, false) => OomKill::Node,
        }
    }
}

/// How often there was no room below a limit.
#[derive(Debug)]
enum Reached {
    /// Version 1: an eventfd.
    Event(OwnedFd),
    /// Version 2: a counter, and what it had when it was looked at last.
    Counter(PathBuf, u64),
    /// The kernel does not tell.
    Unknown,
}

impl Reached {
    fn watch(cgroup: &Cgroup) -> Self {
        let Some(directory) = cgroup.controller("memory") else {
            return Self::Unknown;
        };
        if cgroup.is_v2() {
            let file = directory.join("memory.events.local");
            return ooms(&file).map_or(Self::Unknown, |seen| Self::Counter(file, seen));
        }
        event(&directory).map_or(Self::Unknown, Self::Event)
    }

    /// Times since it was asked last.
    fn times(&mut self) -> Option<u64> {
        match self {
            Self::Event(event) => {
                let mut count = [0; 8];
                // EAGAIN: none.
                let read = rustix::io::read(event, &mut count[..]);
                Some(read.map_or(0, |_| u64::from_ne_bytes(count)))
            }
            Self::Counter(file, seen) => {
                let now = ooms(file)?;
                Some(now.saturating_sub(std::mem::replace(seen, now)))
            }
            Self::Unknown => None,
        }
    }
}

fn ooms(file: &Path) -> Option<u64> {
    Some(metrics::keyed(&fs::read_to_string(file).ok()?, "oom"))
}

/// A counter of the times that a limit was reached and something had to be killed (cgroup-v1/memory.rst, section 10).
fn event(directory: &Path) -> io::Result<OwnedFd> {
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let control = fs::File::open(directory.join("memory.oom_control"))?;
    let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
    fs::write(directory.join("cgroup.event_control"), line)?;
    Ok(event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    /// Files in the place of a pod's cgroup of version 2 with its container's.
    struct Files(tempfile::TempDir);

    impl Files {
        fn new(container: &str, pod: &str) -> Self {
            let files = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(files.0.path().join("pod/c")).unwrap();
            files.write("pod/memory.max", pod);
            files.write("pod/c/memory.max", container);
            files.happened(0, 0, 0);
            files
        }

        fn write(&self, file: &str, text: &str) {
            fs::write(self.0.path().join(file), text).unwrap();
        }

        /// So many kills in the container, and so often each limit was reached.
        fn happened(&self, kills: u64, container: u64, pod: u64) {
            self.write("pod/c/memory.events", &format!("oom 9\noom_kill {kills}\n"));
            self.write(
                "pod/c/memory.events.local",
                &format!("max 7\noom {container}\n"),
            );
            self.write("pod/memory.events.local", &format!("max 7\noom {pod}\n"));
        }

        fn cgroup(&self) -> Cgroup {
            Cgroup {
                layout: Layout::V2(self.0.path().into()),
                path: "pod/c".into(),
            }
        }
    }

    #[test]
    fn a_kill_is_told_once_with_the_limit_that_was_reached() {
        let files = Files::new("100\n", "200\n");
        let mut watch = OomWatch::new(&files.cgroup());
        assert_eq!(watch.next_kill(), None);
        files.happened(1, 3, 0);
        assert_eq!(watch.next_kill(), Some(OomKill::Container(Some(100))));
        assert_eq!(watch.next_kill(), None);
        files.happened(2, 3, 1);
        assert_eq!(watch.next_kill(), Some(OomKill::Pod(Some(200))));
        files.happened(3, 3, 1);
        assert_eq!(watch.next_kill(), Some(OomKill::Node));
        assert_eq!(watch.next_kill(), None);
    }

    #[test]
    fn all_that_are_killed_for_one_limit_hear_of_it() {
        let files = Files::new("100", "max");
        files.happened(5, 5, 5);
        let mut watch = OomWatch::new(&files.cgroup());
        assert_eq!(watch.next_kill(), None, "of a container before");
        files.happened(7, 6, 5);
        let told: Vec<_> = std::iter::from_fn(|| watch.next_kill()).collect();
        assert_eq!(told, [OomKill::Container(Some(100)); 2]);
    }

    #[test]
    fn a_limit_above_the_pods_is_not_the_pods() {
        let files = Files::new("100", "max");
        let mut watch = OomWatch::new(&files.cgroup());
        files.happened(1, 0, 1);
        assert_eq!(watch.next_kill(), Some(OomKill::Node));
    }

    #[test]
    fn where_the_kernel_does_not_tell_it_is_the_nearest_limit() {
        for (container, pod, cause) in [
            ("100", "200", OomKill::Container(Some(100))),
            ("max", "200", OomKill::Pod(Some(200))),
            ("max", "max", OomKill::Node),
        ] {
            let files = Files::new(container, pod);
            fs::remove_file(files.0.path().join("pod/c/memory.events.local")).unwrap();
            let mut watch = OomWatch::new(&files.cgroup());
            files.write("pod/c/memory.events", "oom_kill 1\n");
            assert_eq!(watch.next_kill(), Some(cause), "{container} {pod}");
        }
    }

    #[test]
    fn a_kill_says_whose_limit_it_was_and_how_much() {
        let text = OomKill::Pod(Some(7)).to_string();
        assert_eq!(
            text,
            "killed by the kernel: the pod's memory limit of 7 bytes was reached"
        );
        assert!(
            OomKill::Container(None)
                .to_string()
                .ends_with("the container's memory limit was reached")
        );
        assert!(
            OomKill::Node
                .to_string()
                .contains("the node has no memory left")
        );
    }
}
