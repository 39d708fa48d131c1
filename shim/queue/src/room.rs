//! The memory that compiles of a node may take together, and the cgroup that holds them to it.

use slipway_cgroup::Cgroup;
use slipway_compile::{available_memory, memory_bound};
use slipway_sys::CgroupEntry;

/// cpu.shares of a cgroup that nobody has set, and a quarter of it: on a busy node less would be for ever.
const DEFAULT_SHARES: u64 = 1024;
const FEW_SHARES: u64 = 256;

/// What compiles may take. Measured whenever none runs, and kept as long as one does.
#[derive(Debug)]
pub struct Room {
    /// `None` where this process cannot have one.
    cgroup: Option<Cgroup>,
    /// Whether it was made.
    made: bool,
    /// Whether a start waits for a compile in it.
    waited: Option<bool>,
    /// Bytes that the node has available, by its own account and by the limits of the cgroups above.
    pub available: u64,
    /// What compiles may take together, and each of them, in bytes.
    pub bound: u64,
}

impl Room {
    /// The cgroup of this name, beside that of this process, whose /proc/self/cgroup is `own`.
    pub fn new(name: &str, own: &str) -> Self {
        Self {
            cgroup: Cgroup::beside(own, name),
            made: false,
            waited: None,
            available: 0,
            bound: 0,
        }
    }

    /// Removes what a worker has left that was killed, and had been started from another cgroup: `own` was its /proc/self/cgroup.
    pub fn remove_left(name: &str, own: &str) {
        if let Some(left) = Cgroup::beside(own, name) {
            let _ = left.remove();
        }
    }

    /// Measures it, while no compile runs.
    ///
    /// # Errors
    /// Why there is no cgroup: each compile is held to the bound by its RLIMIT_DATA alone, and their number by what they are
    /// expected to take. Told once.
    pub fn measure(&mut self) -> Result<(), String> {
        let headroom = self.cgroup.as_ref().and_then(Cgroup::headroom);
        self.available = available_memory().min(headroom.unwrap_or(u64::MAX));
        self.bound = memory_bound(self.available);
        let Some(cgroup) = &self.cgroup else {
            return Ok(());
        };
        // Files are memory too. What is left is for all others.
        let limit = self.available - self.available / 8;
        let set = match self.made {
            true => cgroup.limit_memory(limit),
            false => cgroup.make_limited(limit),
        };
        self.made = set.is_ok();
        self.waited = None;
        set.map_err(|e| {
            if let Some(cgroup) = self.cgroup.take() {
                let _ = cgroup.remove();
            }
            format!("compiles have no cgroup of their own: {e}")
        })
    }

    /// Gives compiles as much of the processors as a cgroup has by default where a start waits for one, else a quarter of that: the
    /// nice values of processes order them among each other only.
    pub fn weigh(&mut self, waited: bool) {
        let Some(cgroup) = self.cgroup.as_ref().filter(|_| self.made) else {
            return;
        };
        if self.waited != Some(waited) {
            self.waited = Some(waited);
            // On version 2 it may have no such controller: the compiles' own priority is left.
            let _ = cgroup.share_processors(if waited { DEFAULT_SHARES } else { FEW_SHARES });
        }
    }

    /// Ends what is in its cgroup, and removes that; whether it is gone.
    pub fn close(&mut self) -> bool {
        let made = self.cgroup.as_ref().filter(|_| self.made);
        let is_gone = made.is_none_or(|cgroup| cgroup.remove().is_ok());
        self.made = !is_gone;
        is_gone
    }

    /// How a compiler is born there.
    pub fn entry(&self) -> CgroupEntry {
        let cgroup = self.cgroup.as_ref().filter(|_| self.made);
        let entry = cgroup.and_then(|cgroup| cgroup.entry().ok());
        entry.unwrap_or_default()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.close();
    }
}
