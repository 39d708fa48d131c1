//! The file systems of a container that runs, for an exec in it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountPropagationFlags, mount_change, move_mount};
use slipway_cache::Artefact;

use super::ARTEFACT;
use super::skeleton::artefact_tree;
use super::tree::FROM_DESCRIPTOR;
use crate::namespaces;

/// The file systems of a container that runs, for an exec in it.
pub struct Shared {
    mounts: OwnedFd,
    /// The guest's root. The kernel would give what lies over it (`skeleton::lay_over`).
    skeleton: OwnedFd,
    /// The directory in `/proc` of its process; it goes with this value, for it leads to the node's.
    process: OwnedFd,
}

impl Shared {
    /// Those of the guest with this directory in `/proc`.
    pub fn of(process: OwnedFd) -> Result<Self, String> {
        let mounts = namespaces::open("ns/mnt", Some(process.as_fd()))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let skeleton = rustix::fs::openat(&process, "root", flags, Mode::empty())
            .map_err(|e| format!("the container's skeleton: {e}"))?;
        Ok(Self {
            mounts,
            skeleton,
            process,
        })
    }

    /// The container's root.
    pub fn rootfs(&self) -> Result<OwnedFd, String> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.process, "root/rootfs", flags, Mode::empty())
            .map_err(|e| format!("the container's root: {e}"))
    }

    /// Makes the container's skeleton the root of this process, with its own artefact in the place of the container's.
    pub fn enter(self, artefact: &Artefact) -> Result<(), String> {
        let error = |what: &str| {
            let what = what.to_string();
            move |e: rustix::io::Errno| format!("the container's skeleton: {what}: {e}")
        };
        // Cloned while this process is where the file was opened: elsewhere its mount could not be.
        let tree = artefact_tree(artefact)?;
        slipway_sys::setns(self.mounts.as_fd(), libc::CLONE_NEWNS)
            .map_err(|e| format!("the container's mounts: {e}"))?;
        rustix::process::fchdir(&self.skeleton)
            .and_then(|()| rustix::process::chroot("."))
            .map_err(error("root"))?;
        namespaces::unshare(libc::CLONE_NEWNS)?;
        mount_change(
            "/",
            MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        )
        .map_err(error("propagation"))?;
        move_mount(&tree, "", CWD, ARTEFACT, FROM_DESCRIPTOR).map_err(error("artefact"))
    }
}
