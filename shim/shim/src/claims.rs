//! Ids that are taken by a Create that goes on.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Those of one pod.
#[derive(Clone, Default)]
pub struct Claims(Arc<Mutex<HashSet<String>>>);

/// The Create of a member, for as long as it goes on, and what it has begun is taken back.
pub struct Claim(Claims, String);

impl Claims {
    /// Takes an id, unless it is taken.
    pub fn take(&self, id: &str) -> Option<Arc<Claim>> {
        let free = self.with(|ids| ids.insert(id.into()));
        free.then(|| Arc::new(Claim(self.clone(), id.into())))
    }

    fn with<T>(&self, change: impl FnOnce(&mut HashSet<String>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
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
}
