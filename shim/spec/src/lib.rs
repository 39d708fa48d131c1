//! The OCI runtime spec (config.json), read once and turned into a typed plan. Pure: no system calls but the read.
//!
//! `oci` has the fields as the JSON names them, only those that Slipway acts on; `plan` puts together what they mean, each part of
//! which is read by a file of its own: `process`, `namespaces`, `cgroups`, `volumes`, `annotations`; `mount` knows the mount options, `seccomp` makes a filter of its profile, `user` has the ids of a pod's
//! user namespace, `refused` what a Wasm container cannot have: an error that names the field. docs/oci.md says for every
//! field of the spec what becomes of it.

mod annotations;
mod cgroups;
mod mount;
mod namespaces;
mod oci;
mod plan;
mod process;
mod refused;
mod seccomp;
mod sysctl;
mod user;
mod volumes;

pub use cgroups::{CgroupPath, Resources, Throttle};
pub use mount::parse_options;
pub use namespaces::Namespace;
pub use plan::{Plan, Role};
pub use sysctl::Sysctl;
pub use user::{UserNamespace, parse_root};

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
    let bytes = read_bounded(&file).map_err(read)?;
    if bytes.len() as u64 > MAX_CONFIG_BYTES {
        return Err(Error::TooLarge { path });
    }
    let spec: oci::Spec =
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { path, source })?;
    plan::plan(spec)
}

/// The file's bytes, one over the limit where it is too large.
fn read_bounded(file: &Path) -> std::io::Result<Vec<u8>> {
    let file = std::fs::File::open(file)?;
    let size = file.metadata()?.len().min(MAX_CONFIG_BYTES);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
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

/// Parses linux.resources alone, as Update sends them.
///
/// # Errors
/// [`Error::Json`] and [`Error::Field`].
pub fn parse_resources(json: &[u8]) -> Result<Resources, Error> {
    let resources = serde_json::from_slice(json).map_err(|source| Error::Json {
        path: "linux.resources".into(),
        source,
    })?;
    cgroups::resources(resources)
}

/// What a shim has to know of a spec on the way to its socket, where nothing else of it matters.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Preview {
    /// The pod that the bundle belongs to, from the annotations of CRI; `None` for a container of its own.
    pub pod: Option<String>,
    /// The spec is a sandbox's that the CRI plugin of containerd 2 has written: an annotation tells, which that of 1.7 does
    /// not write.
    pub by_containerd_2: bool,
    /// `namespace/name` of the pod, for people.
    pub pod_name: Option<String>,
    /// The container's name in its pod.
    pub container_name: Option<String>,
}

/// Reads that part. Nothing where there is no readable spec: Create will say why.
pub fn preview(bundle: &Path) -> Preview {
    let read = || {
        let bytes = read_bounded(&bundle.join("config.json")).ok()?;
        serde_json::from_slice::<oci::Preview>(&bytes).ok()
    };
    let spec: oci::Preview = read().unwrap_or_default();
    let annotation = |name| spec.annotations.get(name).cloned();
    Preview {
        pod: annotation(plan::SANDBOX_ID),
        by_containerd_2: spec.annotations.contains_key(plan::SANDBOX_IMAGE),
        pod_name: annotation(plan::SANDBOX_NAMESPACE)
            .zip(annotation(plan::SANDBOX_NAME))
            .map(|(namespace, name)| format!("{namespace}/{name}")),
        container_name: annotation(plan::CONTAINER_NAME),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preview_of(json: &str) -> Preview {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::write(bundle.path().join("config.json"), json).unwrap();
        preview(bundle.path())
    }

    #[test]
    fn a_preview_tells_the_pod_and_who_wrote_the_spec() {
        let spec = |more: &str| {
            format!(r#"{{"annotations": {{"io.kubernetes.cri.sandbox-id": "s"{more}}}}}"#)
        };
        let pod = Some("s".to_string());
        assert_eq!(
            preview_of(&spec(
                r#", "io.kubernetes.cri.podsandbox.image-name": "pause""#
            )),
            Preview {
                pod: pod.clone(),
                by_containerd_2: true,
                ..Preview::default()
            }
        );
        assert_eq!(
            preview_of(&spec("")),
            Preview {
                pod,
                ..Preview::default()
            }
        );
        assert_eq!(preview_of("{"), Preview::default());
        assert_eq!(preview(Path::new("/nonexistent")), Preview::default());
    }
}
