//! linux.sysctl: what a pod may set of the kernel's parameters. Those that no namespace of its own holds are the node's.

use std::collections::BTreeMap;

use crate::Error;
use crate::namespaces::Namespace;
use crate::plan::refuse;

/// A kernel parameter of the pod's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// Below `/proc/sys`.
    pub file: String,
    /// What is written there.
    pub value: String,
    /// The kind of namespace that holds it, as clone(2)'s flag.
    pub namespace: i32,
}

/// Parameters of an IPC namespace (ipc_namespaces(7)), beside those below [`MESSAGE_QUEUES`].
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];
const MESSAGE_QUEUES: &str = "fs/mqueue/";
const NETWORK: &str = "net/";
/// In a network namespace, and a switch of the whole kernel's.
const TUNNEL_HOOKS: &str = "net/netfilter/nf_hooks_lwtunnel";
const DOMAIN: &str = "kernel/domainname";

/// The pod's namespaces that hold sysctls.
pub(crate) struct Holders<'a> {
    pub network: &'a Namespace,
    pub ipc: &'a Namespace,
    pub uts: &'a Namespace,
}

/// Reads linux.sysctl.
///
/// # Errors
/// The first that is no name, or is not the pod's.
pub(crate) fn read(
    map: &BTreeMap<String, String>,
    holders: &Holders<'_>,
) -> Result<Vec<Sysctl>, Error> {
    let one = |(name, value): (&String, &String)| {
        let refused = |why: &str| Err(refuse(&format!("linux.sysctl[{name}]"), why));
        let file = file(name);
        if file.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return refused("is not the name of a sysctl");
        }
        let (namespace, holder, field) = match file.as_str() {
            file if file.starts_with(NETWORK) && file != TUNNEL_HOOKS => {
                (libc::CLONE_NEWNET, holders.network, "hostNetwork")
            }
            file if IPC.contains(&file) || file.starts_with(MESSAGE_QUEUES) => {
                (libc::CLONE_NEWIPC, holders.ipc, "hostIPC")
            }
            DOMAIN => (libc::CLONE_NEWUTS, holders.uts, "hostNetwork"),
            _ => {
                return refused(
                    "is the whole node's, for no namespace holds it: set it on the node",
                );
            }
        };
        if *holder == Namespace::Host {
            return refused(&format!(
                "is the node's in a pod with the host's namespace: leave out {field}, or set it on the node"
            ));
        }
        Ok(Sysctl {
            file,
            value: value.clone(),
            namespace,
        })
    };
    map.iter().map(one).collect()
}

/// A container of a pod shares the namespaces that sysctls belong to; the kubelet gives them to the sandbox.
///
/// # Errors
/// There is one.
pub(crate) fn none(map: &BTreeMap<String, String>) -> Result<(), Error> {
    match map.keys().next() {
        Some(name) => Err(refuse(
            &format!("linux.sysctl[{name}]"),
            "only a pod has sysctls; set it in the pod's securityContext.sysctls",
        )),
        None => Ok(()),
    }
}

/// The file below `/proc/sys`. Dots and slashes can both divide a name, and the other of the two is then part of one, as in
/// net/ipv4/conf/eth0.1/forwarding and net.ipv4.conf.eth0/1.forwarding: which it is tells the first of them (sysctl(8)).
fn file(name: &str) -> String {
    let swapped = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    match name.chars().find(|c| matches!(c, '.' | '/')) {
        Some('.') => name.chars().map(swapped).collect(),
        _ => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, holder: &Namespace) -> Result<Vec<Sysctl>, String> {
        let map = BTreeMap::from([(name.to_string(), "1".to_string())]);
        let holders = Holders {
            network: holder,
            ipc: holder,
            uts: holder,
        };
        read(&map, &holders).map_err(|e| e.to_string())
    }

    #[test]
    fn those_of_the_pods_namespaces_become_files() {
        for (name, file, namespace) in [
            (
                "net.ipv4.ip_unprivileged_port_start",
                "net/ipv4/ip_unprivileged_port_start",
                libc::CLONE_NEWNET,
            ),
            (
                "net/ipv4/conf/eth0.1/forwarding",
                "net/ipv4/conf/eth0.1/forwarding",
                libc::CLONE_NEWNET,
            ),
            (
                "net.ipv4.conf.eno2/100.rp_filter",
                "net/ipv4/conf/eno2.100/rp_filter",
                libc::CLONE_NEWNET,
            ),
            (
                "kernel.shm_rmid_forced",
                "kernel/shm_rmid_forced",
                libc::CLONE_NEWIPC,
            ),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max", libc::CLONE_NEWIPC),
            ("kernel.domainname", "kernel/domainname", libc::CLONE_NEWUTS),
        ] {
            let sysctl = Sysctl {
                file: file.into(),
                value: "1".into(),
                namespace,
            };
            for holder in [Namespace::New, Namespace::Path("/run/netns/a".into())] {
                assert_eq!(of(name, &holder), Ok(vec![sysctl.clone()]));
            }
            let refused = of(name, &Namespace::Host).unwrap_err();
            assert!(refused.contains(name) && refused.contains("leave out host"));
        }
    }

    #[test]
    fn the_nodes_are_refused() {
        for name in [
            "kernel.core_pattern",
            "kernel/core_pattern",
            "vm.overcommit_memory",
            "fs.file-max",
            "kernel.hostname",
            "kernel.shm_next_id",
            "user.max_user_namespaces",
            "network.x",
            "net.netfilter.nf_hooks_lwtunnel",
        ] {
            let refused = of(name, &Namespace::New).unwrap_err();
            assert!(
                refused.contains(&format!("linux.sysctl[{name}]: is the whole node's")),
                "{refused}"
            );
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for name in [
            "net..x",
            "net/../kernel/core_pattern",
            "net/./x",
            "net.ipv4.//.x",
            "net/",
            "",
        ] {
            let refused = of(name, &Namespace::New).unwrap_err();
            assert!(refused.contains("is not the name of a sysctl"), "{refused}");
        }
    }
}
