//! The few fields of the OCI runtime spec (`config.json`) that the null shim obeys.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rustix::thread::LinkNameSpaceType;
use serde::Deserialize;

use crate::{Error, Result, io};

/// The hierarchies a container joins on cgroup v1: the ones that the figures of a pod come from.
const V1_HIERARCHIES: [&str; 3] = ["cpu", "memory", "pids"];
const CGROUPS: &str = "/sys/fs/cgroup";

/// `config.json`, see <https://github.com/opencontainers/runtime-spec/blob/main/config.md>.
#[derive(Deserialize)]
pub struct Spec {
    #[serde(default)]
    pub hostname: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
    linux: Linux,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    cgroups_path: String,
    #[serde(default)]
    namespaces: Vec<Namespace>,
}

#[derive(Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    path: Option<PathBuf>,
}

/// Where a container's process shall live.
#[derive(Default)]
pub struct Namespaces {
    /// Namespaces to make, as flags of clone(2).
    pub new: libc::c_int,
    /// Namespaces to enter.
    pub join: Vec<(PathBuf, LinkNameSpaceType)>,
}

impl Spec {
    /// Reads `config.json` of a bundle.
    pub fn read(bundle: &Path) -> Result<Self> {
        let file = bundle.join("config.json");
        let name = file.to_string_lossy();
        let bytes = std::fs::read(&file).map_err(io(&*name))?;
        serde_json::from_slice(&bytes).map_err(|e| Error::Invalid(format!("{name}: {e}")))
    }

    /// The pod this container belongs to, as CRI says it; all of a pod's containers share one shim.
    pub fn sandbox_id(&self) -> Option<&str> {
        self.annotations
            .get("io.kubernetes.cri.sandbox-id")
            .map(String::as_str)
    }

    /// The container's directories below [`CGROUPS`]: one on cgroup v2, one per hierarchy on v1.
    pub fn cgroups(&self) -> Result<Vec<PathBuf>> {
        let path = &self.linux.cgroups_path;
        let Some(relative) = path.strip_prefix('/') else {
            return Err(Error::Invalid(format!(
                "linux.cgroupsPath {path:?}: want an absolute path (cgroupfs driver)"
            )));
        };
        let root = Path::new(CGROUPS);
        if root.join("cgroup.controllers").exists() {
            return Ok(vec![root.join(relative)]);
        }
        Ok(V1_HIERARCHIES
            .iter()
            .map(|hierarchy| root.join(hierarchy).join(relative))
            .collect())
    }

    /// The namespaces of `linux.namespaces`.
    pub fn namespaces(&self) -> Result<Namespaces> {
        let mut all = Namespaces::default();
        for Namespace { kind, path } in &self.linux.namespaces {
            let (new, join) = match kind.as_str() {
                "cgroup" => (libc::CLONE_NEWCGROUP, LinkNameSpaceType::ControlGroup),
                "ipc" => (
                    libc::CLONE_NEWIPC,
                    LinkNameSpaceType::InterProcessCommunication,
                ),
                "mount" => (libc::CLONE_NEWNS, LinkNameSpaceType::Mount),
                "network" => (libc::CLONE_NEWNET, LinkNameSpaceType::Network),
                "pid" => (libc::CLONE_NEWPID, LinkNameSpaceType::ProcessID),
                "uts" => (
                    libc::CLONE_NEWUTS,
                    LinkNameSpaceType::HostNameAndNISDomainName,
                ),
                other => {
                    return Err(Error::Invalid(format!(
                        "linux.namespaces: type {other:?} is not supported"
                    )));
                }
            };
            match path {
                // setns(2) moves only the caller's children into a pid namespace.
                Some(_) if kind == "pid" => {
                    return Err(Error::Invalid(
                        "linux.namespaces: joining a pid namespace is not supported".into(),
                    ));
                }
                Some(path) => all.join.push((path.clone(), join)),
                None => all.new |= new,
            }
        }
        Ok(all)
    }
}
