use std::io;

use slipway_module::{Compression, Digest};

/// Why an image cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Reading or writing failed; `what` is the file or step.
    #[error("{what}: {source}")]
    Io {
        /// The file or step.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// The file is not a tar archive in OCI layout.
    #[error(
        "not an OCI archive: {0}; write one with `slipway image build`, `docker save` (25 or later) or `skopeo copy … oci-archive:FILE`"
    )]
    NotAnArchive(String),
    /// A bound of this crate is exceeded.
    #[error("{what}: {size} is more than the {limit} allowed; make the image smaller")]
    TooLarge {
        /// What is too large, with its unit.
        what: String,
        /// How large it is.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// Its files are more than whoever unpacks it has room for.
    #[error("unpacking the image takes more than there is room for")]
    NoRoom,
    /// A document is not the JSON that the OCI image specification describes.
    #[error("{what} is not as the OCI image specification says: {source}")]
    Json {
        /// Which document.
        what: String,
        /// The field, line and column.
        source: serde_json::Error,
    },
    /// A blob that is referred to is not in the archive.
    #[error("blob {0:?} is missing; the archive is incomplete, save the image again")]
    MissingBlob(Digest),
    /// A blob is not the one that is referred to.
    #[error("blob {digest:?} is damaged: {found}; copy or save the image again")]
    DamagedBlob {
        /// The digest by which it is referred to.
        digest: Digest,
        /// What it is instead.
        found: String,
    },
    /// No manifest is for this host.
    #[error(
        "the archive has no image for {wanted} or for wasm, only for {found}; build it for linux/amd64 and linux/arm64"
    )]
    NoPlatform {
        /// This host's platform.
        wanted: String,
        /// Those in the archive.
        found: String,
    },
    /// More than one image in an archive.
    #[error("the archive holds several images ({0}); save the one to run into a file of its own")]
    SeveralImages(String),
    /// The image is of the other kind, or its layers are.
    #[error("{0}")]
    WrongKind(String),
    /// The module's layer does not unpack, or to too much.
    #[error(
        "the module is compressed with {how} and cannot be unpacked: {reason}; build the image anew"
    )]
    Compressed {
        /// With what.
        how: Compression,
        /// What is wrong.
        reason: String,
    },
    /// A layer has a form that cannot be read.
    #[error(
        "layer of type {0} is not supported; build the image with gzip or zstd layers (docker buildx: compression=gzip)"
    )]
    UnsupportedLayer(String),
    /// A file in a layer leaves the root file system or contradicts another.
    #[error("layer {layer}: {path:?}: {reason}; the image is damaged or hostile, do not run it")]
    BadLayer {
        /// The layer's number, from 0.
        layer: usize,
        /// The path as the layer has it.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// An image reference is malformed.
    #[error(
        "image name {name:?}: {reason}; write it as [REGISTRY/]NAME[:TAG], as in example.com/team/app:1.0"
    )]
    Reference {
        /// The name as given.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A build option is malformed.
    #[error("{option}: {reason}")]
    Option {
        /// The field of [`crate::BuildOptions`].
        option: &'static str,
        /// What is wrong and what to write.
        reason: String,
    },
}

impl ImageError {
    /// For `map_err` around input and output.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> ImageError {
        let what = what.into();
        move |source| ImageError::Io { what, source }
    }

    /// `Ok` as long as `size` is within `limit`.
    pub(crate) fn bound(what: &str, size: u64, limit: u64) -> Result<(), ImageError> {
        if size <= limit {
            Ok(())
        } else {
            Err(ImageError::TooLarge {
                what: what.to_owned(),
                size,
                limit,
            })
        }
    }
}
