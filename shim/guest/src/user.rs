//! The pod's user namespace: the container's files have its ids, and the program runs in it.
//!
//! The guest joins it as the last thing before it drops its privileges. Until then it is the host's root, and what it
//! mounts belongs to the host: nobody inside can change it.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{UnmountFlags, move_mount, unmount};
use slipway_protocol::{Launch, Mount, UserNamespace};
use slipway_sys::FileOwner;

use crate::mounts::{self, FROM_DESCRIPTOR};
use crate::{namespaces, paths};

/// The pod's user namespace, open.
pub struct User<'a> {
    of: &'a UserNamespace,
    namespace: OwnedFd,
}

impl<'a> User<'a> {
    /// That of the launch, where it has one; an exec's is found from its container's process.
    pub fn open(
        launch: &'a Launch,
        container: Option<BorrowedFd<'_>>,
    ) -> Result<Option<Self>, String> {
        let open = |of: &'a UserNamespace| {
            let namespace = namespaces::open(&of.path, container)?;
            Ok(Self { of, namespace })
        };
        launch.user_namespace.as_ref().map(open).transpose()
    }

    /// While the result lives, files that the guest makes belong to the root inside: on a mapped mount there is no other.
    pub fn own_files(&self) -> Result<FileOwner, String> {
        FileOwner::set(self.of.root_uid, self.of.root_gid)
            .map_err(|e| format!("the owner of new files: {e}"))
    }

    /// Maps the ids of a tree that was cloned from `source`.
    pub fn map(&self, tree: &OwnedFd, source: &str) -> Result<(), String> {
        slipway_sys::map_ids(tree.as_fd(), self.namespace.as_fd()).map_err(|e| {
            let kernel = rustix::system::uname();
            format!(
                "{source}: its ids cannot be mapped for a user namespace: Linux {}, file system {}: {e}; mapped mounts need Linux 5.19, ext4, xfs, btrfs, or tmpfs on Linux 6.3; or set hostUsers: true",
                kernel.release().to_string_lossy(),
                file_system(tree)
            )
        })
    }

    /// One of the snapshotter's mounts whose ids are mapped: of an overlay, those of its layers.
    pub fn mount_root(&self, m: &Mount, rootfs: &str, skeleton: &str) -> Result<(), String> {
        let error = |e: rustix::io::Errno| format!("rootfs: mount {} at {rootfs}: {e}", m.kind);
        if m.kind != "overlay" {
            let tree = self.cloned(&m.source)?;
            mounts::set_attributes(&tree, m)?;
            return move_mount(&tree, "", CWD, rootfs, FROM_DESCRIPTOR).map_err(error);
        }
        let mut layers = Vec::new();
        let mut data = Vec::new();
        for option in m.data.split(',') {
            match option.strip_prefix("lowerdir=") {
                None => data.push(option.to_string()),
                Some(lower) => {
                    layers = lower
                        .split(':')
                        .map(|layer| self.cloned(layer))
                        .collect::<Result<_, _>>()?;
                    let names: Vec<String> = layers.iter().map(paths::proc_path).collect();
                    data.push(format!("lowerdir={}", names.join(":")));
                }
            }
        }
        // An overlay takes layers of its mount namespace only: they lie on each other for as long as it is made, and it keeps
        // mounts of its own.
        let place = format!("{skeleton}/layers");
        fs::create_dir(&place).map_err(|e| format!("skeleton: {e}"))?;
        for layer in &layers {
            move_mount(layer, "", CWD, place.as_str(), FROM_DESCRIPTOR).map_err(error)?;
        }
        let overlay = Mount {
            data: data.join(","),
            ..m.clone()
        };
        let mounted = mounts::mount_layer(&overlay, rootfs, "");
        for _ in &layers {
            unmount(place.as_str(), UnmountFlags::DETACH).map_err(error)?;
        }
        fs::remove_dir(&place).map_err(|e| format!("skeleton: {e}"))?;
        mounted
    }

    /// A mount of its own of what a path leads to, with mapped ids.
    fn cloned(&self, source: &str) -> Result<OwnedFd, String> {
        let tree = mounts::clone_tree(CWD, source, false)
            .map_err(|e| format!("rootfs: layer {source}: {e}"))?;
        self.map(&tree, &format!("rootfs: {source}"))?;
        Ok(tree)
    }

    /// The guest runs inside from now on, with all capabilities there and none outside.
    pub fn enter(&self) -> Result<(), String> {
        slipway_sys::setns(self.namespace.as_fd(), libc::CLONE_NEWUSER)
            .map_err(|e| format!("linux.namespaces: join {}: {e}", self.of.path))
    }
}

/// The name of a tree's file system, by its device.
fn file_system(tree: &OwnedFd) -> String {
    let device = rustix::fs::fstat(tree).map_or(0, |s| s.st_dev);
    let device = format!(
        "{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    // mountinfo: id, parent, major:minor, …, -, type, …
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let found = mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        (left.split(' ').nth(2)? == device).then(|| right.split(' ').next())?
    });
    found.unwrap_or("unknown").to_string()
}
