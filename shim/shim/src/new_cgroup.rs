//! The cgroup of a container that does not exist yet.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use slipway_cgroup::{Cgroup, OomWatch};
use slipway_launch::StartError;
use slipway_spec::Plan;
use slipway_sys::CgroupEntry;

use crate::claims::Claim;

/// It is removed again unless the container comes to exist.
pub struct NewCgroup {
    cgroup: Option<Cgroup>,
    /// The container's id is taken until the cgroup is gone: another of that id would be born in it, and killed. A sandbox has none: there
    /// is nobody else yet.
    claim: Option<Arc<Claim>>,
    /// The kernel's kills in it, since it was made.
    pub oom: Option<OomWatch>,
    created: bool,
    /// The guest was born in it.
    pub inside: bool,
    keep: bool,
}

impl NewCgroup {
    /// Not made yet.
    pub fn new(cgroup: Option<Cgroup>, claim: Option<Arc<Claim>>) -> Self {
        Self {
            cgroup,
            claim,
            oom: None,
            created: false,
            inside: false,
            keep: false,
        }
    }

    /// Another process's already, for an exec.
    pub fn existing(cgroup: Option<Cgroup>) -> Self {
        Self {
            cgroup,
            claim: None,
            oom: None,
            created: true,
            inside: true,
            keep: true,
        }
    }

    /// Makes it, with its limits, unless it is there.
    pub fn create(&mut self, plan: &Plan) -> std::io::Result<()> {
        if let Some(cgroup) = self.cgroup.as_ref().filter(|_| !self.created) {
            self.created = true;
            if let Some(claim) = &self.claim {
                claim.makes(cgroup);
            }
            cgroup
                .create(&plan.resources)
                .map_err(std::io::Error::other)?;
            self.oom = Some(OomWatch::new(cgroup));
        }
        Ok(())
    }

    /// How a process is born in it.
    pub fn entry(&self) -> std::io::Result<CgroupEntry> {
        let entry = self.cgroup.as_ref().map(Cgroup::entry).transpose();
        Ok(entry.map_err(std::io::Error::other)?.unwrap_or_default())
    }

    /// Makes the cgroup for a guest that is not in it yet, and says how it gets there.
    pub fn enter(&mut self, plan: &Plan) -> std::result::Result<Vec<OwnedFd>, StartError> {
        self.create(plan)?;
        let cgroup = self.cgroup.as_ref().filter(|_| !self.inside);
        let files = cgroup.map(Cgroup::join).transpose();
        Ok(files.map_err(std::io::Error::other)?.unwrap_or_default())
    }

    /// The container exists.
    pub fn keep(mut self) -> (Option<Cgroup>, Option<OomWatch>) {
        self.keep = true;
        (self.cgroup.take(), self.oom.take())
    }

    /// Removes it, and returns when it is gone: runc makes that of a Linux program anew.
    pub async fn remove(mut self) {
        if let Some(removal) = self.removal() {
            let _ = removal.await;
        }
    }

    /// Its removal, beside what the shim serves: what it holds may take seconds to leave it.
    fn removal(&mut self) -> Option<tokio::task::JoinHandle<()>> {
        let cgroup = self.cgroup.take().filter(|_| !self.keep)?;
        let Some(claim) = self.claim.take() else {
            let _ = cgroup.remove();
            return None;
        };
        Some(tokio::task::spawn_blocking(move || {
            let _ = cgroup.remove();
            drop(claim);
        }))
    }
}

/// Where the client of a Create has gone, too.
impl Drop for NewCgroup {
    fn drop(&mut self) {
        drop(self.removal());
    }
}
