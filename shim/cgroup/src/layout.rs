//! What the host's hierarchies are, and what they call their files.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::{v1, v2};

/// statfs(2) `f_type` of cgroup2, linux/magic.h.
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;
/// statfs(2) `f_type` of cgroup version 1, linux/magic.h.
const CGROUP_SUPER_MAGIC: i64 = 0x0027_e0eb;

/// The host's hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One unified tree.
    V2(PathBuf),
    /// (controller, its mount point); a hybrid host's unified tree is not used.
    V1(Vec<(&'static str, PathBuf)>),
}

/// What is the same in both versions but for its name.
pub(crate) struct Files {
    /// A process of one thread that writes `0` moves itself here.
    pub join: &'static str,
    /// In bytes.
    pub memory_usage: &'static str,
    /// Keys of memory.stat, with what is below the cgroup: caches, and of these what lies in a tmpfs. In bytes.
    pub caches: [&'static str; 2],
    /// In bytes.
    pub memory_limit: &'static str,
    /// Has a line `oom_kill N`.
    pub oom_kills: &'static str,
    pub freezer: Freezer,
}

pub(crate) struct Freezer {
    pub file: &'static str,
    /// What is written to it.
    pub freeze: &'static str,
    pub thaw: &'static str,
    /// Tells what has become of that, by a line.
    pub state: &'static str,
    pub frozen: &'static str,
    pub thawed: &'static str,
}

impl Layout {
    /// Of this host.
    pub fn host() -> &'static Self {
        // No host changes it while a process runs, and ten calls for each container are 0.08 ms.
        static HOST: OnceLock<Layout> = OnceLock::new();
        HOST.get_or_init(|| Self::of(Path::new("/sys/fs/cgroup")))
    }

    fn of(root: &Path) -> Self {
        if file_system(root) == Some(CGROUP2_SUPER_MAGIC) {
            return Self::V2(root.into());
        }
        let found = v1::CONTROLLERS
            .iter()
            .map(|name| (*name, root.join(name)))
            .filter(|(_, path)| file_system(path) == Some(CGROUP_SUPER_MAGIC));
        Self::V1(found.collect())
    }

    pub fn files(&self) -> &'static Files {
        match self {
            Self::V2(_) => &v2::FILES,
            Self::V1(_) => &v1::FILES,
        }
    }

    /// A cgroup's directory in each hierarchy.
    pub fn directories(&self, path: &Path) -> Vec<PathBuf> {
        match self {
            Self::V2(root) => vec![root.join(path)],
            Self::V1(controllers) => controllers
                .iter()
                .map(|(_, root)| root.join(path))
                .collect(),
        }
    }

    /// A cgroup's directory in the hierarchy of a controller.
    pub fn controller(&self, name: &str, path: &Path) -> Option<PathBuf> {
        let root = match self {
            Self::V2(root) => root,
            Self::V1(controllers) => &controllers.iter().find(|(c, _)| *c == name)?.1,
        };
        Some(root.join(path))
    }
}

fn file_system(path: &Path) -> Option<i64> {
    rustix::fs::statfs(path).ok().map(|s| s.f_type)
}
