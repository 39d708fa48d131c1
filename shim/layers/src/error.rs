use slipway_image::ImageError;
use slipway_module::Digest;

use crate::MAX_INDEX_DEPTH;

/// Why there is no module.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// containerd's socket is not there or refuses.
    #[error(
        "cannot connect to containerd at {address}: {reason}; check that containerd runs and that -address is its gRPC socket"
    )]
    Connect {
        /// The socket's path.
        address: String,
        /// The system's text.
        reason: String,
    },
    /// The image was removed, or its tag has moved.
    #[error(
        "containerd no longer has the image that the container was made from, by none of the names {names}; pull or import it again"
    )]
    ImageGone {
        /// Those that it may have had.
        names: String,
    },
    /// No such image or container.
    #[error(
        "containerd's namespace {namespace} has no {what} {name:?}; list what it has with `ctr -n {namespace} {what}s ls`"
    )]
    NotFound {
        /// `image` or `container`.
        what: &'static str,
        /// Its name.
        name: String,
        /// containerd's namespace.
        namespace: String,
    },
    /// The container was made from no image.
    #[error("the record of container {0:?} names no image; create the container from an image")]
    NoImage(String),
    /// The image refers to a blob that containerd does not have.
    #[error(
        "blob {0:?} of the image is missing from containerd's content store; remove the image and pull or import it again"
    )]
    Missing(Digest),
    /// The blob has another length or digest than its description says.
    #[error(
        "blob {digest:?} of the image is damaged: {found}; remove the image and pull or import it again"
    )]
    Damaged {
        /// As described.
        digest: Digest,
        /// What arrived instead.
        found: String,
    },
    /// More bytes than read at most.
    #[error(
        "the image's {what} {digest:?} has {size} bytes, more than the {limit} allowed; use a smaller one"
    )]
    TooLarge {
        /// `index`, `manifest`, `config` or `module`.
        what: &'static str,
        /// The blob's.
        digest: Digest,
        /// In bytes.
        size: u64,
        /// In bytes.
        limit: u64,
    },
    /// The document does not say what it should.
    #[error("the image's {what} {digest:?} is not valid: {source}; build the image anew")]
    Json {
        /// `index` or `manifest`.
        what: &'static str,
        /// The blob's.
        digest: Digest,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Neither an index nor a manifest.
    #[error(
        "blob {digest:?} has media type {media_type:?}, which is neither an image index nor a manifest; pull or import an OCI image"
    )]
    NotAnImage {
        /// The blob's.
        digest: Digest,
        /// As its description has it.
        media_type: String,
    },
    /// Indexes within indexes.
    #[error(
        "the image's indexes are nested more than {MAX_INDEX_DEPTH} deep; build the image with one index"
    )]
    TooDeep,
    /// The image is for other machines.
    #[error(
        "index {digest:?} of the image has no manifest for {host} or Wasm, only for {found}; build the image for one of these"
    )]
    NoPlatform {
        /// The index's.
        digest: Digest,
        /// This machine's, in Go's names.
        host: String,
        /// Those of the index.
        found: String,
    },
    /// An ordinary image.
    #[error(
        "the image is no Wasm artefact: its config is {config:?} and none of its layers is a Wasm module; its program must be a file in the image"
    )]
    NotWasm {
        /// The config's media type.
        config: String,
    },
    /// An artefact without a module.
    #[error(
        "the image's config says that it is a Wasm artefact, but none of its layers has a Wasm media type, only {found}; push the module as application/wasm"
    )]
    NoModule {
        /// The layers' media types.
        found: String,
    },
    /// Several modules, and none is named.
    #[error(
        "the image has several modules ({titles}) and the entrypoint {entrypoint:?} is not the org.opencontainers.image.title of one; set the container's command to one"
    )]
    WhichModule {
        /// The layers' titles, or their digests.
        titles: String,
        /// What was asked for.
        entrypoint: String,
    },
    /// The module is compressed and cannot be unpacked.
    #[error(transparent)]
    Unpack(ImageError),
    /// The module's destination.
    #[error("cannot write the module: {0}; check -out and the space left")]
    Write(std::io::Error),
    /// containerd answers too slowly.
    #[error(
        "containerd at {address} did not deliver the module within {seconds} s; see its load and its log"
    )]
    Late {
        /// The socket's path.
        address: String,
        /// The deadline.
        seconds: u64,
    },
    /// Any other answer of containerd.
    #[error("containerd cannot {call}: {code}: {message}; see containerd's log")]
    Call {
        /// What was asked for.
        call: String,
        /// gRPC's name for the kind of error.
        code: String,
        /// containerd's text.
        message: String,
    },
}
