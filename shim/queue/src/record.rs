//! What lies in the queue for each job: `sha256 of the rest ‖ the job`. One that was written by half, or by somebody else, is
//! told by that, and dropped.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use slipway_cache::{Key, Tier};
use slipway_protocol::Module;

/// Bound of a record in bytes.
pub const MAX_RECORD_BYTES: usize = 64 << 10;
const SHA_BYTES: usize = 32;

/// A job as it outlives the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The installation whose compiler is meant.
    pub install: String,
    /// Bound of the cache in bytes.
    pub cache_bytes: u64,
    /// What is compiled.
    pub module: Module,
    /// How thoroughly.
    pub tier: Tier,
    /// Compiled without optimisation, it is compiled in full afterwards.
    pub full_afterwards: bool,
    /// Who has asked for it first: tenants share the queue.
    pub tenant: String,
}

impl Record {
    /// The key of the artefact.
    pub fn key(&self) -> Key {
        Key::new(self.module.digest, &self.module.engine, self.tier)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let body = postcard::to_stdvec(self).unwrap_or_default();
        let mut bytes = Sha256::digest(&body).to_vec();
        bytes.extend(body);
        bytes
    }

    /// `None` for what [`Record::encode`] has not made.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (sha, body) = bytes.split_first_chunk::<SHA_BYTES>()?;
        let whole = Sha256::digest(body).as_slice() == sha;
        whole.then(|| postcard::from_bytes(body).ok()).flatten()
    }
}

#[cfg(test)]
pub(crate) fn record(text: &str, size: u64, tier: Tier) -> Record {
    Record {
        install: "/opt/slipway".into(),
        cache_bytes: 1 << 30,
        module: Module {
            digest: Sha256::digest(text).into(),
            size,
            path: format!("/{text}.wasm"),
            engine: "engine-1".into(),
        },
        tier,
        full_afterwards: false,
        tenant: "team".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_not_whole_is_none() {
        let bytes = record("a", 7, Tier::Full).encode();
        let read = Record::decode(&bytes).unwrap();
        assert_eq!((read.module.size, read.tier), (7, Tier::Full));
        for length in 0..bytes.len() {
            assert!(Record::decode(&bytes[..length]).is_none(), "{length}");
        }
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert!(Record::decode(&other).is_none(), "{at}");
        }
        assert!(Record::decode(&vec![0xff; MAX_RECORD_BYTES]).is_none());
    }
}
