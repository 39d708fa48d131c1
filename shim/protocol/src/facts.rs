//! What `slipway-aot` is asked about a module before it compiles it, and what it answers. Both are one packet on the
//! compiler's control socket, postcard-encoded as those between host and guest.

use serde::{Deserialize, Serialize};

/// Exit statuses of `slipway-aot` besides 0; with any other, its text is the compiler's failure.
pub mod aot_status {
    /// The module is not one that runs here; the text says why.
    pub const REFUSED: u8 = 3;
    /// The artefact cannot be written; the text is the system's reason.
    pub const UNWRITTEN: u8 = 4;
    /// The module runs here, but does not suit its purpose; the text says why.
    pub const UNFIT: u8 = 5;
    /// The file is not the module of the digest.
    pub const CHANGED: u8 = 6;
}

/// What the module is compiled for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purpose {
    /// The call that waits for it; `None`: nobody waits.
    pub call: Option<Call>,
    /// Bytes that its memories may have together; `None` for no limit.
    pub memory_limit: Option<u64>,
}

/// The call that an entrypoint means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The function's name.
    pub function: String,
    /// Number of arguments that the command has for it.
    pub arguments: usize,
}

/// What is known of a module without loading it. The compiler says it before it compiles; the cache keeps it with the
/// artefact.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Bytes that each memory begins with, in the order in which the engine makes them.
    pub memories: Vec<u64>,
    /// Bytes of the table of its functions' names ([`crate::encode_names`]), with which the artefact's file ends; 0 for
    /// none.
    pub names: u64,
}

impl Facts {
    /// Compares the memories' beginning with a limit in bytes.
    ///
    /// # Errors
    /// A text with both numbers, where a program could never start under it.
    pub fn fit(&self, limit: Option<u64>) -> Result<(), String> {
        let needed = self
            .memories
            .iter()
            .fold(0u64, |all, m| all.saturating_add(*m));
        match limit {
            Some(limit) if needed > limit => Err(format!(
                "the module needs at least {needed} bytes of memory, the container's limit is {limit} bytes; raise resources.limits.memory or build the module with a smaller initial memory"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_memories_together_must_fit_the_limit() {
        let facts = Facts {
            memories: vec![40, 0, 60],
            names: 0,
        };
        assert_eq!(facts.fit(None), Ok(()));
        assert_eq!(facts.fit(Some(100)), Ok(()));
        let text = facts.fit(Some(99)).unwrap_err();
        assert!(
            text.contains("at least 100 bytes") && text.contains("limit is 99 bytes"),
            "{text}"
        );
        let huge = Facts {
            memories: vec![u64::MAX, 1],
            names: 0,
        };
        assert!(huge.fit(Some(u64::MAX - 1)).is_err());
    }
}
