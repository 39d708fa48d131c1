//! Puts Slipway on a node and takes it away again: the versioned tree, containerd's configuration, its restart.
//!
//! Everything is done under one lock, is in a journal before it is done, and can be killed and run again at any step.

mod apply;
mod check;
mod cluster;
mod config;
mod containerd;
mod cri;
mod error;
mod files;
mod host;
mod installer;
mod journal;
mod layout;
mod metrics;
mod node;
mod plan;
mod report;
mod restart;
mod status;
mod uninstall;
mod wish;

pub use apply::install;
pub use cluster::ConfigMap;
pub use config::{imports, without_secrets};
pub use cri::Cri;
pub use error::Error;
pub use host::Host;
pub use installer::{Installer, Uninstaller};
pub use layout::Layout;
pub use metrics::Metrics;
pub use node::Distribution;
pub use report::Report;
pub use status::{Status, status};
pub use uninstall::uninstall;

use std::path::PathBuf;

/// The handler that every installation has.
pub const HANDLER: &str = "slipway";
/// Where Slipway is on a node.
pub const INSTALL_DIR: &str = "/opt/slipway";
/// The annotations that reach the shim.
pub const ANNOTATIONS: &str = "slipway.dev/*";

/// How to install or uninstall.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory of trees, link and state.
    pub install_dir: PathBuf,
    /// The tree to install: has bin, libexec, lib and share.
    pub source: PathBuf,
    /// The node's kind of Kubernetes; found out where not given.
    pub distribution: Option<Distribution>,
    /// containerd's configuration; else as the running containerd was told.
    pub containerd_config: Option<PathBuf>,
    /// The systemd unit that runs containerd; else the running containerd's.
    pub containerd_unit: Option<String>,
    /// containerd's socket; else the running containerd's.
    pub containerd_address: Option<PathBuf>,
    /// More names of the handler.
    pub aliases: Vec<String>,
    /// The pods' annotations that containerd passes on.
    pub annotations: Vec<String>,
    /// Bound of the artefact cache in bytes.
    pub cache_size: Option<u64>,
    /// The artefact cache, which a purge removes.
    pub cache_dir: PathBuf,
    /// Restart containerd where its configuration changes.
    pub restart: bool,
    /// Tell what would be done, and do nothing.
    pub dry_run: bool,
}

impl Options {
    /// All names of the handler.
    fn handlers(&self) -> Vec<String> {
        let mut names = vec![HANDLER.to_owned()];
        names.extend(self.aliases.iter().cloned());
        names.sort();
        names.dedup();
        names
    }
}

/// How to uninstall.
#[derive(Debug, Clone, Copy, Default)]
pub struct Removal {
    /// Even while pods of Slipway's run.
    pub force: bool,
    /// The trees and the artefact cache, too.
    pub purge: bool,
}
