//! Which image a container was made from. A name is not enough to tell: a pod writes it in short, the tag may have moved since, and
//! images with one config share CRI's id.

use serde::Deserialize;
use slipway_image::{Descriptor, Manifest, full_name};
use slipway_module::Digest;

use crate::module::{find_manifest, read_json};
use crate::{ContentStore, LayersError};

/// Images by name.
pub trait ImageStore: ContentStore {
    /// The index or manifest of the image that is registered as `name`: a full reference (`docker.io/library/app:1`), or,
    /// for CRI's images, their id (`sha256:…`).
    ///
    /// # Errors
    /// [`LayersError::NotFound`], or the store's own.
    fn image(&mut self, name: &str) -> impl Future<Output = Result<Descriptor, LayersError>>;
}

/// What is noted of the image that a container was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerImage {
    /// Its name in the container's record. For a container of CRI's it is one of those that the image's id has.
    pub recorded: String,
    /// CRI's id of it: the digest of its config.
    pub id: Option<Digest>,
    /// As the pod wrote it.
    pub written: Option<String>,
}

/// An image of one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What refers to the manifest.
    pub descriptor: Descriptor,
    /// Its config and layers.
    pub manifest: Manifest,
}

/// CRI's extension of a container's record, as far as it matters here: containerd's
/// `internal/cri/store/container/metadata.go`.
#[derive(Deserialize)]
struct CriExtension {
    #[serde(rename = "Metadata")]
    metadata: CriMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CriMetadata {
    image_ref: String,
    #[serde(default)]
    config: CriConfig,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct CriConfig {
    image: CriImage,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct CriImage {
    user_specified_image: String,
}

impl ContainerImage {
    /// From the name in the container's record and CRI's extension of it, where it has one.
    pub(crate) fn new(recorded: String, extension: Option<&[u8]>) -> ContainerImage {
        let cri = extension.and_then(|json| serde_json::from_slice::<CriExtension>(json).ok());
        let (id, written) = cri
            .map(|CriExtension { metadata }| {
                let written = metadata.config.image.user_specified_image;
                let written = Some(written).filter(|name| !name.is_empty());
                (Digest::from_oci(&metadata.image_ref).ok(), written)
            })
            .unwrap_or_default();
        ContainerImage {
            recorded,
            id,
            written,
        }
    }

    /// For messages: as the pod wrote it, or else as containerd knows it.
    pub fn name(&self) -> &str {
        self.written.as_deref().unwrap_or(&self.recorded)
    }

    /// The names under which it may be registered, the likeliest first.
    fn candidates(&self) -> Vec<String> {
        let written = self.written.as_deref();
        let full = written.map(|name| full_name(name).unwrap_or_else(|_| name.to_owned()));
        let id = self.id.map(|id| format!("{id:?}"));
        let mut names: Vec<String> = full
            .into_iter()
            .chain([self.recorded.clone()])
            .chain(id)
            .filter(|name| !name.is_empty())
            .collect();
        names.dedup();
        names
    }
}

/// Finds the image that a container was made from: the first with one of its names that has CRI's id, where there is one.
///
/// # Errors
/// [`LayersError::ImageGone`] where containerd has it no more; the first other error where none is whole.
pub async fn find_image(
    store: &mut impl ImageStore,
    container: &ContainerImage,
) -> Result<Image, LayersError> {
    let names = container.candidates();
    let mut problem = None;
    for name in &names {
        let read = async {
            let image = store.image(name).await?;
            read_image(store, image).await
        };
        match read.await {
            Ok(image)
                if container
                    .id
                    .is_none_or(|id| image.manifest.config.digest == id) =>
            {
                return Ok(image);
            }
            Ok(_) | Err(LayersError::NotFound { .. }) => {}
            Err(e) => problem = problem.or(Some(e)),
        }
    }
    Err(problem.unwrap_or_else(|| LayersError::ImageGone {
        names: names.join(", "),
    }))
}

/// Reads the image that starts with the index or manifest `image`.
///
/// # Errors
/// Those of reading an index or a manifest.
pub async fn read_image(
    store: &mut impl ContentStore,
    image: Descriptor,
) -> Result<Image, LayersError> {
    let descriptor = find_manifest(store, image).await?;
    let manifest = read_json(store, "manifest", &descriptor).await?;
    Ok(Image {
        descriptor,
        manifest,
    })
}
