//! What a pod's shim knows from its start.

use std::path::PathBuf;

use crate::log::Log;

/// What `start` knows.
pub struct Settings {
    /// Bound of the cache, from the handler's options.
    pub cache_bytes: Option<u64>,
    /// containerd's namespace.
    pub namespace: String,
    /// The pod's id.
    pub group: String,
    /// containerd's ttrpc address.
    pub ttrpc: String,
    /// containerd's gRPC address.
    pub grpc: String,
    /// The bundle of the container that started the shim: the sandbox's.
    pub bundle: PathBuf,
    /// The shim's log.
    pub log: Log,
}
