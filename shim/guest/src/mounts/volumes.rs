//! The container's volumes, and what the node lends it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MountFlags, mount};
use slipway_protocol::{CA_CERTIFICATES, Mount};

use super::reachable::{is_procfs, no_procfs};
use super::tree::{attach, clone_tree, set_attributes};
use crate::paths::{c_path, is_directory, make_target, proc_path, resolve};

/// A bind mount's source, cloned from the host's tree; tmpfs has none.
pub fn open_source(m: &Mount) -> Result<Option<OwnedFd>, String> {
    if m.flags & libc::MS_BIND == 0 {
        return Ok(None);
    }
    let error = |e| format!("mounts: source {} of {}: {e}", m.source, m.destination);
    let tree = clone_tree(CWD, &m.source, m.flags & libc::MS_REC != 0).map_err(error)?;
    // Those below it are found by `reachable::check`, when they have a place.
    match is_procfs(&tree).map_err(error)? {
        true => Err(no_procfs(&m.destination)),
        false => Ok(Some(tree)),
    }
}

/// Mounts one; a mount point that the container lacks is made.
pub fn mount_volume(
    root: BorrowedFd<'_>,
    m: &Mount,
    source: Option<OwnedFd>,
) -> Result<(), String> {
    let at = &m.destination;
    let error = |e: rustix::io::Errno| format!("mounts: {} at {at}: {e}", m.source);
    let directory = match &source {
        Some(fd) => is_directory(fd).map_err(error)?,
        None => true,
    };
    let target = make_target(root, at, directory)?;
    if is_directory(&target).map_err(error)? != directory {
        let (volume, there) = match directory {
            true => ("a directory", "a file"),
            false => ("a file", "a directory"),
        };
        return Err(format!(
            "mounts: {} at {at}: it is {volume}, and the container has {there} there: choose another path, or a part of the volume by subPath",
            m.source
        ));
    }
    if let Some(tree) = source {
        set_attributes(&tree, m)?;
        return attach(&tree, &target).map_err(error);
    }
    let flags = MountFlags::from_bits_retain(m.flags as u32);
    let data = c_path(&m.data, "mounts.options")?;
    mount(
        "tmpfs",
        proc_path(&target),
        "tmpfs",
        flags,
        Some(data.as_c_str()),
    )
    .map_err(error)?;
    // The descriptor still means what lies below the new mount.
    set_attributes(&resolve(root, at).map_err(error)?, m)
}

/// The node's CA certificates, where its distribution has them in one file: Debian, Alpine and Arch; Fedora; SUSE.
const NODE_CERTIFICATES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];

/// The first of them that the node has, cloned from its tree.
pub fn open_node_certificates() -> Result<OwnedFd, String> {
    let found = NODE_CERTIFICATES
        .iter()
        .find_map(|file| clone_tree(CWD, file, false).ok());
    found.ok_or_else(|| {
        format!(
            "annotations[slipway.dev/ca-certificates]: this node has none of {}: install its ca-certificates, or bring them by a volume",
            NODE_CERTIFICATES.join(", "),
        )
    })
}

/// Mounts the node's CA certificates where neither the image nor a volume has or hides that file.
pub fn mount_certificates(
    root: BorrowedFd<'_>,
    volumes: &[Mount],
    source: OwnedFd,
) -> Result<(), String> {
    let covered = |m: &Mount| Path::new(CA_CERTIFICATES).starts_with(&m.destination);
    if volumes.iter().any(covered) || resolve(root, CA_CERTIFICATES).is_ok() {
        return Ok(());
    }
    let m = Mount {
        destination: CA_CERTIFICATES.into(),
        source: "the node's CA certificates".into(),
        flags: libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NOEXEC,
        ..Mount::default()
    };
    mount_volume(root, &m, Some(source))
}
