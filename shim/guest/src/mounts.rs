//! The file systems that a Wasm container sees, in the guest's own mount namespace: the node's never changes.
//!
//! ```text
//! /                 skeleton: a read-only tmpfs, the root of the guest process itself
//! ├── rootfs/       the container's root with its volumes; all that WASI gets, as the preopen "/"
//! ├── artefact.so   read-only bind of the cache's entry
//! └── etc/          resolv.conf and hosts of the pod, host.conf and services: for name resolution in an image that holds
//!                   nothing but a module
//! ```
//!
//! Attributes are only ever added to a mount, by mount_setattr(2). A remount by mount(2) would replace all that it has, and so
//! take `nodev` off a root that is to be read-only. [`reachable`] compares the result with the kernel's list.

mod reachable;
mod root;
mod shared;
mod skeleton;
mod tree;
mod volumes;

use std::ffi::CStr;

pub use reachable::{is_procfs, not_procfs};
pub use root::mount_layer;
pub use shared::Shared;
pub use skeleton::Skeleton;
pub use tree::{FROM_DESCRIPTOR, clone_tree, new_tmpfs, set_attributes};

/// The container's root as the guest sees it in the end. It can be a link (`skeleton::lay_over`): with `/.` it is a directory
/// for an engine, too, that follows none.
pub const ROOTFS: &str = "/rootfs";
/// The artefact as the guest sees it in the end.
pub const ARTEFACT: &CStr = c"/artefact.so";
