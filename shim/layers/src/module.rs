use std::io::{self, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use slipway_image::{
    Descriptor, ImageError, ImageKind, Index, MAX_JSON_BYTES, ModuleWriter, oci_digest,
};
use slipway_module::{Digest, Hasher, MAX_MODULE_BYTES};

use crate::{Image, LayersError, MAX_INDEX_DEPTH, choose};

/// Blobs by digest.
pub trait ContentStore {
    /// Hands the blob from its first byte to its last to `sink`, in pieces, and ends early with an error of `sink`. Whether
    /// the bytes match the digest is the caller's concern.
    ///
    /// # Errors
    /// [`LayersError::Missing`], that of `sink`, or the store's own.
    fn read(
        &mut self,
        digest: Digest,
        sink: impl FnMut(&[u8]) -> Result<(), LayersError>,
    ) -> impl Future<Output = Result<(), LayersError>>;
}

/// The layer that is an artefact's module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Module {
    /// The layer's digest.
    #[serde(with = "oci_digest")]
    pub digest: Digest,
    /// The layer's media type.
    pub media_type: String,
    /// The layer's length in bytes, at most [`MAX_MODULE_BYTES`].
    pub size: u64,
    /// The digest of the manifest that refers to it.
    #[serde(with = "oci_digest")]
    pub manifest: Digest,
}

/// Finds the image's module. `entrypoint`, the container's command, matters only where the image has several.
///
/// # Errors
/// [`LayersError::NotWasm`] for an ordinary image.
pub async fn find_module(
    store: &mut impl ContentStore,
    image: &Image,
    entrypoint: Option<&str>,
) -> Result<Module, LayersError> {
    let manifest = &image.manifest;
    // Its config's `architecture` is no criterion: the layers of an artefact that is named for a machine are not unpacked
    // either, so that there is nothing else to run.
    if manifest.kind() != ImageKind::Artifact {
        return Err(LayersError::NotWasm {
            config: manifest.config.media_type.clone(),
        });
    }
    // containerd has made the container's spec from the config; a damaged one must not go unnoticed.
    copy(
        store,
        "config",
        &manifest.config,
        MAX_JSON_BYTES,
        &mut io::sink(),
    )
    .await?;
    let layer = choose::module(manifest, entrypoint)?;
    bound("module", layer, MAX_MODULE_BYTES)?;
    Ok(Module {
        digest: layer.digest,
        media_type: layer.media_type.clone(),
        size: layer.size,
        manifest: image.descriptor.digest,
    })
}

/// Copies the module to `out`, unpacked where its builder has compressed it. The content of `out` is of use only when this succeeds.
///
/// # Errors
/// [`LayersError::Damaged`] where other bytes arrived, [`LayersError::Unpack`], [`LayersError::Write`].
pub async fn copy_module(
    store: &mut impl ContentStore,
    module: &Module,
    out: &mut impl Write,
) -> Result<(), LayersError> {
    let layer = Descriptor::new(module.media_type.clone(), module.digest, module.size);
    let mut writer = ModuleWriter::new(out);
    copy(store, "module", &layer, MAX_MODULE_BYTES, &mut writer).await?;
    writer.finish().map_err(|e| match e {
        ImageError::Io { source, .. } => LayersError::Write(source),
        e => LayersError::Unpack(e),
    })
}

pub(crate) async fn find_manifest(
    store: &mut impl ContentStore,
    image: Descriptor,
) -> Result<Descriptor, LayersError> {
    let mut descriptor = image;
    for _ in 0..=MAX_INDEX_DEPTH {
        if descriptor.is_manifest() {
            return Ok(descriptor);
        }
        if !descriptor.is_index() {
            return Err(LayersError::NotAnImage {
                digest: descriptor.digest,
                media_type: descriptor.media_type,
            });
        }
        let index: Index = read_json(store, "index", &descriptor).await?;
        descriptor = choose::manifest(&index, &descriptor)?;
    }
    Err(LayersError::TooDeep)
}

pub(crate) async fn read_json<T: DeserializeOwned>(
    store: &mut impl ContentStore,
    what: &'static str,
    blob: &Descriptor,
) -> Result<T, LayersError> {
    let mut json = Vec::new();
    copy(store, what, blob, MAX_JSON_BYTES, &mut json).await?;
    serde_json::from_slice(&json).map_err(|source| LayersError::Json {
        what,
        digest: blob.digest,
        source,
    })
}

/// Copies a blob and then says whether it was the one described, in full.
async fn copy(
    store: &mut impl ContentStore,
    what: &'static str,
    blob: &Descriptor,
    limit: u64,
    out: &mut impl Write,
) -> Result<(), LayersError> {
    bound(what, blob, limit)?;
    let damaged = |found| LayersError::Damaged {
        digest: blob.digest,
        found,
    };
    let mut received = 0;
    let mut hasher = Hasher::default();
    store
        .read(blob.digest, |piece| {
            received += piece.len() as u64;
            // Here, not at the end: a blob must not grow past the bound either.
            if received > blob.size {
                return Err(damaged(format!("it has more than {} bytes", blob.size)));
            }
            hasher.update(piece);
            out.write_all(piece).map_err(LayersError::Write)
        })
        .await?;
    blob.compare(hasher.finish(), received).map_err(damaged)
}

fn bound(what: &'static str, blob: &Descriptor, limit: u64) -> Result<(), LayersError> {
    if blob.size > limit {
        return Err(LayersError::TooLarge {
            what,
            digest: blob.digest,
            size: blob.size,
            limit,
        });
    }
    Ok(())
}
