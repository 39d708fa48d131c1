//! A cgroup of this process's own making, beside the one that it is in.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use slipway_spec::Resources;

use crate::layout::Layout;
use crate::{Cgroup, Error, fail};

/// Controllers of version 1 that such a cgroup has: those that bound and count what its processes take.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "cpuacct"];

impl Cgroup {
    /// The cgroup of that name beside the one of a process whose /proc/PID/cgroup has this text; below it where that is the root.
    /// `None` where the text does not say. Nothing is made yet.
    pub fn beside(own: &str, name: &str) -> Option<Self> {
        Self::beside_on(Layout::host(), own, name)
    }

    fn beside_on(host: &Layout, own: &str, name: &str) -> Option<Self> {
        let layout = match host {
            Layout::V2(root) => Layout::V2(root.join(parent(own, "")?)),
            Layout::V1(controllers) => {
                let ours = controllers.iter().filter(|(c, _)| CONTROLLERS.contains(c));
                let places = ours.map(|(c, root)| Some((*c, root.join(parent(own, c)?))));
                Layout::V1(places.collect::<Option<_>>()?)
            }
        };
        Some(Self {
            layout,
            path: name.into(),
        })
    }

    /// Makes it with a memory limit in bytes. Its parent is left as it is: who keeps order there would undo what is changed.
    ///
    /// # Errors
    /// A directory that cannot be made, or no memory controller there. Nothing is left then.
    pub fn make_limited(&self, bytes: u64) -> Result<(), Error> {
        // What another process has left, which was killed.
        self.remove()?;
        let make = || {
            for directory in self.directories() {
                fs::create_dir(&directory).map_err(fail(&directory, "create"))?;
            }
            self.limit_memory(bytes)
        };
        make().inspect_err(|_| drop(self.remove()))
    }

    /// Sets its memory limit in bytes.
    ///
    /// # Errors
    /// The write that fails.
    pub fn limit_memory(&self, bytes: u64) -> Result<(), Error> {
        if self.controller("memory").is_none() {
            return Err(fail(&self.path, "find the memory controller of")(
                io::ErrorKind::NotFound.into(),
            ));
        }
        self.apply(&Resources {
            memory_limit: i64::try_from(bytes).ok(),
            ..Resources::default()
        })
    }

    /// Sets its part of the processors, as cpu.shares of version 1.
    ///
    /// # Errors
    /// The write that fails.
    pub fn share_processors(&self, shares: u64) -> Result<(), Error> {
        self.apply(&Resources {
            cpu_shares: Some(shares),
            ..Resources::default()
        })
    }

    /// Memory in bytes that the limits of the cgroups above it leave; `None`: none of them has a limit.
    pub fn headroom(&self) -> Option<u64> {
        let directory = self.controller("memory")?;
        let above = directory.ancestors().skip(1).map(|at| Self {
            layout: match &self.layout {
                Layout::V2(_) => Layout::V2(at.into()),
                Layout::V1(_) => Layout::V1(vec![("memory", at.into())]),
            },
            path: PathBuf::new(),
        });
        let left = |above: Self| {
            let limit = above.memory_limit()?;
            Some(limit.saturating_sub(above.memory_usage()))
        };
        above.filter_map(left).min()
    }
}

/// Where this process's cgroup lies in the hierarchy of a controller, "" for version 2, below the hierarchy's root.
fn parent(own: &str, controller: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let named = controllers.split(',').any(|c| c == controller);
        named.then_some(path)
    })?;
    let path = Path::new(path.trim_start_matches('/'));
    // Outside of a cgroup namespace that this process has entered.
    let inside = path.components().all(|c| matches!(c, Component::Normal(_)));
    inside.then(|| path.parent().unwrap_or(path).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lies_beside_the_own_one_in_each_hierarchy() {
        let own = "4:memory:/a/b\n2:cpu,cpuacct:/c\n1:pids:/x\n0::/d/e/f\n";
        let root = |name: &str| PathBuf::from("/r").join(name);
        let v1 = ["memory", "cpu", "cpuacct", "pids"].map(|c| (c, root(c)));
        let beside = Cgroup::beside_on(&Layout::V1(v1.to_vec()), own, "n").unwrap();
        let found = beside.directories();
        let wanted = ["memory/a/n", "cpu/n", "cpuacct/n"].map(root);
        assert_eq!(found, wanted);
        let v2 = Layout::V2("/r".into());
        let found = Cgroup::beside_on(&v2, own, "n").unwrap().directories();
        assert_eq!(found, [root("d/e/n")]);
        let found = Cgroup::beside_on(&v2, "0::/\n", "n").unwrap().directories();
        assert_eq!(found, [root("n")]);
        for hidden in ["0::/../x\n", "1:pids:/x\n", ""] {
            assert!(Cgroup::beside_on(&v2, hidden, "n").is_none(), "{hidden:?}");
        }
    }

    #[test]
    fn the_tightest_limit_above_counts() {
        let d = tempfile::tempdir().unwrap();
        let inner = d.path().join("inner");
        fs::create_dir(&inner).unwrap();
        for (at, limit, usage) in [(d.path(), "100", "10"), (&inner, "80", "20")] {
            fs::write(at.join("memory.max"), limit).unwrap();
            fs::write(at.join("memory.current"), usage).unwrap();
        }
        let layout = Layout::V2(inner.clone());
        let path = "n".into();
        let cgroup = Cgroup { layout, path };
        assert_eq!(cgroup.headroom(), Some(60));
        fs::write(inner.join("memory.max"), "max").unwrap();
        assert_eq!(cgroup.headroom(), Some(90));
    }
}
