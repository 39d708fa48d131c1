//! The OCI runtime spec (config.json), read once and turned into a typed plan. Pure: no system calls but the read.
//!
//! `oci` has the fields as the JSON names them, only those that Slipway acts on; `plan` checks them and gives them
//! their meaning; `mount` knows the mount options. What is not supported is an error that names the field.

mod mount;
mod oci;
mod plan;

pub use mount::parse_options;
pub use plan::{CgroupPath, Namespace, Plan, Resources, Role};

use std::io::Read;
use std::path::Path;

/// A config.json over this many bytes is refused. The kubelet's largest (1 MiB of environment and a thousand
/// mounts) stays under 2 MiB.
pub const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Why a spec cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// config.json's path.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is over [`MAX_CONFIG_BYTES`].
    #[error(
        "{path}: larger than {MAX_CONFIG_BYTES} bytes, the limit for a runtime spec; move large values into a ConfigMap volume"
    )]
    TooLarge {
        /// config.json's path.
        path: String,
    },
    /// Not JSON, or a field of another type; the text has line and column.
    #[error("{path}: {source}")]
    Json {
        /// config.json's path.
        path: String,
        /// serde's reason with line and column.
        source: serde_json::Error,
    },
    /// A field has a value that cannot be honoured.
    #[error("config.json: {field}: {reason}")]
    Field {
        /// The field as a path into the JSON.
        field: String,
        /// What is wrong, and the remedy.
        reason: String,
    },
}

/// Reads `<bundle>/config.json` into a plan.
///
/// # Errors
/// Every kind of [`Error`].
pub fn read(bundle: &Path) -> Result<Plan, Error> {
    let file = bundle.join("config.json");
    let path = file.display().to_string();
    let read = |source| Error::Read {
        path: path.clone(),
        source,
    };
    let mut bytes = Vec::new();
    let n = std::fs::File::open(&file)
        .map_err(read)?
        .take(MAX_CONFIG_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(read)?;
    if n as u64 > MAX_CONFIG_BYTES {
        return Err(Error::TooLarge { path });
    }
    let spec: oci::Spec =
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { path, source })?;
    plan::plan(spec)
}

/// Parses a spec that is already in memory.
///
/// # Errors
/// [`Error::Json`] and [`Error::Field`].
pub fn parse(json: &[u8]) -> Result<Plan, Error> {
    let spec = serde_json::from_slice(json).map_err(|source| Error::Json {
        path: "config.json".into(),
        source,
    })?;
    plan::plan(spec)
}

/// The pod that a bundle belongs to, from the annotations of CRI; read on the shim's way to its socket, where
/// nothing else of the spec matters. `None` for a container of its own, or where there is no readable spec.
pub fn sandbox_of(bundle: &Path) -> Option<String> {
    let bytes = std::fs::read(bundle.join("config.json")).ok()?;
    let spec: oci::Annotated = serde_json::from_slice(&bytes).ok()?;
    spec.annotations.get(plan::SANDBOX_ID).cloned()
}
