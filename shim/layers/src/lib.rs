//! Reads the module of a Wasm artefact from containerd.
//!
//! The layer of a Wasm artefact *is* the module. containerd keeps it as a blob and unpacks nothing: a container of such an
//! image gets an empty root file system, so that the module is only to be had through containerd's own API. That
//! speaks gRPC, whose code and buffers would cost every resident shim memory for a few calls per container; hence this
//! crate and its short-lived program.
//!
//! In order: [`Containerd`] says what it noted of the container's image; [`find_image`] goes from there through index to manifest,
//! [`find_module`] through the config to one layer; [`copy_module`] copies it. These read from any [`ImageStore`].
//!
//! Every blob is hostile input: it has a bound ([`slipway_image::MAX_JSON_BYTES`], [`slipway_module::MAX_MODULE_BYTES`]), and must have the size and digest by which it is referred to.

mod choose;
mod containerd;
mod error;
mod image;
mod module;
#[cfg(test)]
mod tests;

pub use containerd::Containerd;
pub use error::LayersError;
pub use image::{ContainerImage, Image, ImageStore, find_image, read_image};
pub use module::{ContentStore, Module, copy_module, find_module};

/// The most indexes on the way to a manifest: an index may name others.
pub const MAX_INDEX_DEPTH: usize = 4;
