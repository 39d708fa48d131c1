//! The documents of the OCI image specification, as far as they matter here.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use slipway_module::Digest;

use crate::{ImageError, MAX_JSON_BYTES};

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const WASM_LAYER: &str = "application/wasm";
/// The annotation by which containerd names an imported image.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";
/// The annotation by which others choose an image in an archive: the tag, as Docker writes it.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Whether a layer of this media type is a Wasm module rather than files: the CNCF's type, and those of earlier
/// tools (runwasi, wasm-to-oci). Whether it is compressed is for [`crate::ModuleWriter`] to see: most builders do not say.
pub fn is_wasm_layer(media_type: &str) -> bool {
    let plain = ["+gzip", "+zstd"]
        .iter()
        .find_map(|suffix| media_type.strip_suffix(suffix));
    matches!(
        plain.unwrap_or(media_type),
        WASM_LAYER
            | "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"
            | "application/vnd.wasm.content.layer.v1+wasm"
            | "application/vnd.module.wasm.content.layer.v1+wasm"
    )
}

/// How an image carries its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// As a file in an ordinary image's root file system, named by its entrypoint.
    Image,
    /// As a layer that is the module itself.
    Artifact,
}

/// A reference to a blob by its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub media_type: String,
    /// The blob's SHA-256 digest; other algorithms are refused.
    #[serde(with = "oci_digest")]
    pub digest: Digest,
    /// The blob's length in bytes.
    pub size: u64,
    /// For which platform, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free text by key.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// An operating system and processor, in Go's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`, `wasm`.
    #[serde(default)]
    pub architecture: String,
    /// `linux`, `wasip1`.
    #[serde(default)]
    pub os: String,
}

/// A list of manifests, by platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2; read as 0 where it is missing, since nothing depends on it.
    #[serde(default)]
    pub schema_version: u32,
    /// The index's own media type.
    #[serde(default)]
    pub media_type: String,
    /// Manifests, and possibly further indexes.
    pub manifests: Vec<Descriptor>,
}

/// An image's config and layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2; read as 0 where it is missing, since nothing depends on it.
    #[serde(default)]
    pub schema_version: u32,
    /// The manifest's own media type.
    #[serde(default)]
    pub media_type: String,
    /// The image's config.
    pub config: Descriptor,
    /// The layers, lowest first.
    #[serde(deserialize_with = "null_as_default")]
    pub layers: Vec<Descriptor>,
}

/// An image's config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When it was built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// For which processor; empty in artefacts of some builders.
    #[serde(default)]
    pub architecture: String,
    /// For which operating system.
    #[serde(default)]
    pub os: String,
    /// The artefact specification's list of the layers' digests, in `sha256:` form.
    #[serde(
        default,
        rename = "layerDigests",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub layer_digests: Vec<String>,
    /// What to run.
    #[serde(default, rename = "config", deserialize_with = "null_as_default")]
    pub process: ProcessConfig,
    /// The layers' uncompressed digests.
    #[serde(default, deserialize_with = "null_as_default")]
    pub rootfs: RootFs,
}

/// What an image runs unless told otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ProcessConfig {
    /// The user, as `uid[:gid]` or names of the image's `/etc/passwd` and `/etc/group`.
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub user: String,
    /// `NAME=value`.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub env: Vec<String>,
    /// The command, which a pod's `command` replaces.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub entrypoint: Vec<String>,
    /// Arguments, which a pod's `args` (or `command`) replace.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub cmd: Vec<String>,
    /// The directory to start in; empty means `/`.
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub working_dir: String,
}

/// The `rootfs` of an image's config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the uncompressed layers, in `sha256:` form.
    #[serde(deserialize_with = "null_as_default")]
    pub diff_ids: Vec<String>,
}

impl Default for RootFs {
    fn default() -> RootFs {
        RootFs {
            kind: "layers".to_owned(),
            diff_ids: Vec::new(),
        }
    }
}

impl Index {
    /// Reads an index.
    pub fn parse(json: &[u8]) -> Result<Index, ImageError> {
        parse("the image's index", json)
    }
}

impl Manifest {
    /// Reads a manifest.
    pub fn parse(json: &[u8]) -> Result<Manifest, ImageError> {
        parse("the image's manifest", json)
    }

    /// Whether the image is an artefact: its config or one of its layers says so.
    pub fn kind(&self) -> ImageKind {
        if self.config.media_type == WASM_CONFIG || self.wasm_layers().next().is_some() {
            ImageKind::Artifact
        } else {
            ImageKind::Image
        }
    }

    /// The artefact's module: the one layer that is Wasm. (The specification allows further layers of other types.)
    pub fn wasm_layer(&self) -> Result<&Descriptor, ImageError> {
        let mut layers = self.wasm_layers();
        match (layers.next(), layers.next()) {
            (Some(layer), None) => Ok(layer),
            (None, _) => Err(ImageError::WrongKind(
                "the image has no layer that is a Wasm module; build it with `slipway image build --artifact`".to_owned(),
            )),
            (Some(_), Some(_)) => Err(ImageError::WrongKind(
                "the image has several Wasm layers, and which to run is not said; build it with one".to_owned(),
            )),
        }
    }

    /// The layers that are Wasm modules.
    pub fn wasm_layers(&self) -> impl Iterator<Item = &Descriptor> {
        self.layers
            .iter()
            .filter(|layer| is_wasm_layer(&layer.media_type))
    }
}

impl ImageConfig {
    /// Reads a config, of an ordinary image or an artefact.
    pub fn parse(json: &[u8]) -> Result<ImageConfig, ImageError> {
        parse("the image's config", json)
    }

    /// The platform that the config names.
    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
        }
    }
}

impl ProcessConfig {
    /// The command line: entrypoint, then arguments.
    pub fn argv(&self) -> Vec<String> {
        [self.entrypoint.as_slice(), &self.cmd].concat()
    }
}

impl Descriptor {
    /// Describes a blob that no document refers to.
    pub fn new(media_type: String, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type,
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Describes `blob`.
    pub(crate) fn of(media_type: &str, blob: &[u8]) -> Descriptor {
        Descriptor::new(media_type.to_owned(), Digest::of(blob), blob.len() as u64)
    }

    /// Whether this refers to an [`Index`].
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), INDEX | DOCKER_INDEX)
    }

    /// Whether this refers to a [`Manifest`].
    pub fn is_manifest(&self) -> bool {
        matches!(self.media_type.as_str(), MANIFEST | DOCKER_MANIFEST)
    }

    /// Whether `blob` is the one described, in full.
    pub fn verify(&self, blob: &[u8]) -> Result<(), ImageError> {
        self.verify_digest(Digest::of(blob), blob.len() as u64)
    }

    pub(crate) fn verify_digest(&self, digest: Digest, size: u64) -> Result<(), ImageError> {
        self.compare(digest, size)
            .map_err(|found| ImageError::DamagedBlob {
                digest: self.digest,
                found,
            })
    }

    /// Whether a blob of this digest and size is the one described; the error says what it is instead.
    pub fn compare(&self, digest: Digest, size: u64) -> Result<(), String> {
        if size != self.size {
            Err(format!("it has {size} bytes instead of {}", self.size))
        } else if digest != self.digest {
            Err(format!("its digest is {digest:?}"))
        } else {
            Ok(())
        }
    }
}

impl Platform {
    /// This machine's.
    pub fn host() -> Platform {
        Platform::linux(match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        })
    }

    pub(crate) fn linux(architecture: &str) -> Platform {
        Platform {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// Reads a document of bounded size.
pub(crate) fn parse<'a, T: Deserialize<'a>>(what: &str, json: &'a [u8]) -> Result<T, ImageError> {
    ImageError::bound(
        &format!("{what} (bytes)"),
        json.len() as u64,
        MAX_JSON_BYTES,
    )?;
    serde_json::from_slice(json).map_err(|source| ImageError::Json {
        what: what.to_owned(),
        source,
    })
}

/// Go writes an empty list or map as `null`.
fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A digest with its algorithm, as OCI documents have it: for `#[serde(with = "oci_digest")]`.
pub mod oci_digest {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use slipway_module::Digest;

    /// Writes `sha256:` and the digits.
    pub fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("sha256:{digest}"))
    }

    /// Reads what [`serialize`] writes; other algorithms are refused.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        Digest::from_oci(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
