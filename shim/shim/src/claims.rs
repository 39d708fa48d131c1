//! Ids that are taken by a Create that goes on, with the cgroups that it has made.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use slipway_cgroup::Cgroup;

/// Those of one pod.
#[derive(Clone, Default)]
pub struct Claims(Arc<Mutex<HashMap<String, Option<Cgroup>>>>);

/// The Create of a member, for as long as it goes on, and what it has begun is taken back.
pub struct Claim(Claims, String);

impl Claims {
    /// Takes an id, unless it is taken.
    pub fn take(&self, id: &str) -> Option<Arc<Claim>> {
        let free = self.with(|ids| {
            let is_free = !ids.contains_key(id);
            if is_free {
                ids.insert(id.into(), None);
            }
            is_free
        });
        free.then(|| Arc::new(Claim(self.clone(), id.into())))
    }

    /// The cgroups of those that go on. When the shim ends, nobody else knows of them.
    pub fn cgroups(&self) -> Vec<Cgroup> {
        self.with(|ids| ids.values().flatten().cloned().collect())
    }

    fn with<T>(&self, change: impl FnOnce(&mut HashMap<String, Option<Cgroup>>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Claim {
    /// Its Create makes this cgroup.
    pub fn makes(&self, cgroup: &Cgroup) {
        self.0
            .with(|ids| ids.insert(self.1.clone(), Some(cgroup.clone())));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.with(|ids| ids.remove(&self.1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_once_and_until_all_who_hold_it_are_done() {
        let claims = Claims::default();
        let claim = claims.take("a").unwrap();
        assert!(claims.take("a").is_none());
        assert!(claims.take("b").is_some());
        let removal = claim.clone();
        drop(claim);
        assert!(claims.take("a").is_none());
        drop(removal);
        assert!(claims.take("a").is_some());
    }

    #[test]
    fn a_cgroup_is_known_until_its_create_is_over() {
        let claims = Claims::default();
        let claim = claims.take("a").unwrap();
        let path = slipway_spec::CgroupPath::Cgroupfs("/a".into());
        assert!(claims.cgroups().is_empty());
        claim.makes(&Cgroup::new(&path));
        assert_eq!(claims.cgroups().len(), 1);
        drop(claim);
        assert!(claims.cgroups().is_empty());
    }
}
