//! The container's root, as the snapshotter describes it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{MountFlags, move_mount};
use slipway_protocol::{Launch, Mount};
use slipway_sys::{MountAttributes, set_mount_attributes};

use super::skeleton::rootfs;
use super::tree::{DATA_ONLY, FROM_DESCRIPTOR, attributes, clone_tree};
use crate::paths::c_path;
use crate::user::User;

/// Mounts it below the skeleton: a directory that was opened, or one mount on another.
pub fn mount(
    launch: &Launch,
    directory: Option<OwnedFd>,
    user: Option<&User<'_>>,
) -> Result<(), String> {
    let rootfs = rootfs(launch);
    if let Some(directory) = directory {
        return move_mount(&directory, "", CWD, rootfs.as_str(), FROM_DESCRIPTOR)
            .map_err(|e| format!("root.path {}: {e}", launch.root_path));
    }
    for m in &launch.root_mounts {
        match user.filter(|_| m.idmapped) {
            Some(user) => user.mount_root(m, &rootfs, &launch.skeleton)?,
            None => mount_layer(m, &rootfs, &launch.mount_points)?,
        }
    }
    Ok(())
}

/// No device can be opened and no file be executed in it or in what is mounted below, and what the container mounts does not reach the node.
pub fn close(root: &OwnedFd) -> Result<(), String> {
    let attributes = MountAttributes {
        set: DATA_ONLY,
        propagation: libc::MS_SLAVE,
        ..MountAttributes::default()
    };
    set_mount_attributes(root.as_fd(), attributes, true)
        .map_err(|e| format!("rootfs: nodev, noexec and propagation: {e}"))
}

/// One of the snapshotter's mounts, as containerd's mount package does it.
pub fn mount_layer(m: &Mount, rootfs: &str, mount_points: &str) -> Result<(), String> {
    let error = |e: rustix::io::Errno| {
        format!(
            "rootfs: mount {} from {:?} ({}): {e}",
            m.kind, m.source, m.data
        )
    };
    let flags = MountFlags::from_bits_retain(m.flags as u32);
    if m.flags & libc::MS_BIND != 0 {
        let tree = clone_tree(CWD, &m.source, true).map_err(error)?;
        set_mount_attributes(tree.as_fd(), attributes(m.flags), false)
            .map_err(|e| format!("rootfs: options of {}: {e}", m.source))?;
        return move_mount(&tree, "", CWD, rootfs, FROM_DESCRIPTOR).map_err(error);
    }
    let with = |data: &str| {
        let data = c_path(data, "rootfs options")?;
        let source = m.source.as_str();
        rustix::mount::mount(
            source,
            rootfs,
            m.kind.as_str(),
            flags,
            Some(data.as_c_str()),
        )
        .map_err(error)
    };
    match with_lowest_layer(m, mount_points) {
        // The kernel bounds how deep overlays lie on each other, and the installation may lie on one.
        Some(data) => with(&data).or_else(|_| with(&m.data)),
        None => with(&m.data),
    }
}

/// Options of an overlay with one more layer below all others. Made in the upper layer, each mount point would be a
/// write to the node's disk: 0.08 ms each on ext4.
fn with_lowest_layer(m: &Mount, layer: &str) -> Option<String> {
    /// The kernel takes one page.
    const MAX_OPTIONS: usize = 4095;
    if m.kind != "overlay" || layer.is_empty() || layer.contains([':', ',', '\\']) {
        return None;
    }
    let options = m.data.split(',').map(|option| match option {
        lower if lower.starts_with("lowerdir=") => format!("{lower}:{layer}"),
        other => other.to_string(),
    });
    let data = options.collect::<Vec<_>>().join(",");
    (data.len() <= MAX_OPTIONS).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(data: &str) -> Mount {
        Mount {
            kind: "overlay".into(),
            data: data.into(),
            ..Mount::default()
        }
    }

    #[test]
    fn an_overlay_gets_its_mount_points_below_all_other_layers() {
        let m = overlay("index=off,lowerdir=/a:/b,upperdir=/u,workdir=/w");
        assert_eq!(
            with_lowest_layer(&m, "/points").as_deref(),
            Some("index=off,lowerdir=/a:/b:/points,upperdir=/u,workdir=/w")
        );
    }

    #[test]
    fn what_has_no_room_or_no_name_for_it_is_mounted_without() {
        let m = overlay("lowerdir=/a");
        assert_eq!(with_lowest_layer(&m, ""), None);
        for separator in [':', ',', '\\'] {
            assert_eq!(with_lowest_layer(&m, &format!("/points{separator}")), None);
        }
        let page = overlay(&format!("lowerdir=/{}", "a".repeat(4090)));
        assert_eq!(with_lowest_layer(&page, "/points"), None);
        let bind = Mount {
            kind: "bind".into(),
            ..m
        };
        assert_eq!(with_lowest_layer(&bind, "/points"), None);
    }
}
