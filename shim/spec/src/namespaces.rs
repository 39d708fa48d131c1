//! The namespaces of a container, and where each is found.

use crate::oci;
use crate::plan::{Unsupported, refuse};

/// Where a process finds one of its namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Namespace {
    /// The host's.
    #[default]
    Host,
    /// A new one.
    New,
    /// The one behind this path.
    Path(String),
}

/// Those of pids, network, ipc, uts, cgroup and user, in this order.
pub fn read(list: &[oci::Namespace], unsupported: &mut Unsupported) -> [Namespace; 6] {
    let mut found = [const { Namespace::Host }; 6];
    for (i, ns) in list.iter().enumerate() {
        let slot = match ns.kind.as_str() {
            "pid" => 0,
            "network" => 1,
            "ipc" => 2,
            "uts" => 3,
            "cgroup" => 4,
            "user" => 5,
            // A guest always has a mount namespace of its own.
            "mount" if ns.path.is_empty() => continue,
            other => {
                unsupported.note::<()>(Err(refuse(
                    &format!("linux.namespaces[{i}].type"),
                    format!("{other:?} (path {:?}) is not supported", ns.path),
                )));
                continue;
            }
        };
        found[slot] = if ns.path.is_empty() {
            Namespace::New
        } else {
            Namespace::Path(ns.path.clone())
        };
    }
    found
}
