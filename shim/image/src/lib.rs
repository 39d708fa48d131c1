//! OCI images that carry a Wasm module, as archives: one file, no registry, no container engine.
//!
//! [`build`] writes an archive that `ctr images import`, `docker load` and `skopeo` read, byte for byte the same
//! for the same input. [`open_archive`] reads those of any builder. The parts that say what an image *is*
//! ([`Manifest`], [`ImageConfig`], [`ImageKind`], [`is_wasm_layer`]) serve also for images that come from elsewhere, such
//! as containerd's content store.
//!
//! # The two kinds
//!
//! An [`ImageKind::Image`] is an ordinary image of one layer with the module as a file, beside it files of this host
//! ([`Copied`]), for linux/amd64 and linux/arm64 (a module runs on both, and containerd pulls for the node's platform only). An [`ImageKind::Artifact`] is
//! the CNCF's Wasm OCI artefact: the layer *is* the module.
//!
//! containerd treats an artefact's config as that of an image, so [`build`] puts two things into it that the artefact's
//! specification does not have: `config` with Entrypoint, Cmd, Env and WorkingDir, without which CRI refuses a
//! container without a command ("no command specified"), and a `rootfs` with no `diff_ids`: the layer's type is not one
//! that containerd unpacks, it compares the numbers of those that are and of the diff_ids, and a container of the image
//! gets an empty root file system. The manifest is named by `index.json` directly and without a platform, since
//! containerd drops descriptors of foreign platforms (wasip1/wasm) on import. Seen with containerd 1.7.24 and 2.1.9:
//! `ctr images import` without options, PullImage and ImageStatus of CRI.
//!
//! # Hostile input
//!
//! Archives are untrusted: every blob must have the size and SHA-256 digest by which it is referred to, every
//! quantity has a bound named below, and unpacking never leaves its directory.

mod archive;
mod build;
mod compressed;
mod error;
mod meter;
mod oci;
mod reference;
#[cfg(test)]
mod tests;
mod tree;
mod unpack;

pub use archive::{Archive, open_archive};
pub use build::{BuildOptions, build};
pub use compressed::ModuleWriter;
pub use error::ImageError;
pub use oci::{
    Descriptor, ImageConfig, ImageKind, Index, Manifest, Platform, ProcessConfig, RootFs,
    is_wasm_layer, oci_digest,
};
pub use reference::{Reference, full_name};
pub use tree::Copied;
pub use unpack::Unpacked;

/// The largest JSON document (index, manifest, config) read, in bytes; registries refuse more than 4 MiB, too.
pub const MAX_JSON_BYTES: u64 = 4 << 20;
/// The largest layer read, in bytes as stored.
pub const MAX_BLOB_BYTES: u64 = 16 << 30;
/// The most that the layers of an image may unpack to, in bytes: the bound on a decompression bomb.
pub const MAX_UNPACKED_BYTES: u64 = 32 << 30;
/// The most files, directories and links in the layers of an image.
pub const MAX_FILES: u64 = 1_000_000;
/// The most layers of an image, as in containerd and Docker (overlayfs takes no more).
pub const MAX_LAYERS: usize = 128;
/// The most manifests and indexes in an archive's indexes.
pub const MAX_MANIFESTS: u64 = 1_000;
/// The most files in an archive.
pub const MAX_ARCHIVE_FILES: usize = 10_000;
/// The most bytes of tar headers, long names and extended attributes before one file.
pub const MAX_HEADER_BYTES: u64 = 1 << 20;
