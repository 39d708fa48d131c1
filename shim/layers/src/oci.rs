//! The documents of the OCI image specification, as far as they matter here.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use crate::LayersError;

/// The CNCF's Wasm artefact.
const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// Layers that are a module: the CNCF's type, and those of earlier tools (runwasi, wasm-to-oci).
const WASM_LAYERS: [&str; 4] = [
    "application/wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
];
/// The annotation with a layer's file name.
const TITLE: &str = "org.opencontainers.image.title";

/// A SHA-256 digest, written `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub(crate) [u8; 32]);

/// A blob by its content.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub media_type: String,
    /// The blob's digest.
    pub digest: Digest,
    /// The blob's length in bytes.
    pub size: u64,
    /// For which platform, in an index.
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    /// Free text by key.
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// An operating system and processor, in Go's names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
}

/// A list of manifests, by platform.
#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

/// An image's config and layers.
#[derive(Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) layers: Vec<Descriptor>,
}

impl Descriptor {
    /// Describes a blob that no document refers to, as an image's record in containerd does.
    pub fn new(media_type: String, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type,
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }

    pub(crate) fn is_index(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            "application/vnd.oci.image.index.v1+json"
                | "application/vnd.docker.distribution.manifest.list.v2+json"
        )
    }

    pub(crate) fn is_manifest(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            "application/vnd.oci.image.manifest.v1+json"
                | "application/vnd.docker.distribution.manifest.v2+json"
        )
    }

    fn is_wasm(&self) -> bool {
        WASM_LAYERS.contains(&self.media_type.as_str())
    }

    fn title(&self) -> Option<&str> {
        self.annotations.get(TITLE).map(String::as_str)
    }
}

impl Platform {
    /// This machine's.
    pub(crate) fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
        }
    }
}

impl Index {
    /// The manifest that containerd unpacks on `host`, or else the one for Wasm (`wasi/wasm`, `wasip1/wasm`, …), or else
    /// one that is for no platform in particular.
    pub(crate) fn choose(&self, host: &Platform) -> Option<&Descriptor> {
        let first = |suits: &dyn Fn(Option<&Platform>) -> bool| {
            self.manifests
                .iter()
                .find(|manifest| suits(manifest.platform.as_ref()))
        };
        first(&|platform| platform == Some(host))
            .or_else(|| {
                first(&|platform| platform.is_some_and(|platform| platform.architecture == "wasm"))
            })
            .or_else(|| first(&|platform| platform.is_none()))
    }

    /// The platforms, for a message.
    pub(crate) fn platforms(&self) -> String {
        list(
            self.manifests
                .iter()
                .filter_map(|manifest| manifest.platform.as_ref()),
        )
    }
}

impl Manifest {
    /// Whether the image is a Wasm artefact. Its config's `architecture` is no criterion: the layers of one that is named
    /// for a machine are not unpacked either, so that there is nothing else to run.
    pub(crate) fn is_wasm(&self) -> bool {
        self.config.media_type == WASM_CONFIG || self.layers.iter().any(Descriptor::is_wasm)
    }

    /// The layer that is the module: the first with the title of `entrypoint` (`/dir/app.wasm` or `app.wasm`, with or
    /// without `#function`), or else the only one.
    pub(crate) fn module(&self, entrypoint: Option<&str>) -> Result<&Descriptor, LayersError> {
        let modules: Vec<&Descriptor> =
            self.layers.iter().filter(|layer| layer.is_wasm()).collect();
        let path = entrypoint
            .unwrap_or_default()
            .split('#')
            .next()
            .unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        let titled = |module: &&&Descriptor| {
            module
                .title()
                .is_some_and(|title| title == path || title == name)
        };
        match (modules.iter().find(titled), modules.as_slice()) {
            (Some(module), _) | (None, [module]) => Ok(module),
            (None, []) => Err(LayersError::NoModule {
                found: list(self.layers.iter().map(|layer| &layer.media_type)),
            }),
            (None, _) => Err(LayersError::WhichModule {
                titles: list(modules.iter().map(|module| {
                    module
                        .title()
                        .map_or_else(|| module.digest.to_string(), str::to_owned)
                })),
                entrypoint: path.to_owned(),
            }),
        }
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Digest, String> {
        let problem = || {
            format!(
                "{text:?} is not a digest of the form sha256:<64 lower-case hexadecimal digits>"
            )
        };
        let hex = text
            .strip_prefix("sha256:")
            .filter(|hex| hex.len() == 64)
            .ok_or_else(problem)?;
        let mut digest = Digest([0; 32]);
        for (byte, pair) in digest.0.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            for digit in pair {
                let value = match digit {
                    b'0'..=b'9' => digit - b'0',
                    b'a'..=b'f' => digit - b'a' + 10,
                    _ => return Err(problem()),
                };
                *byte = *byte << 4 | value;
            }
        }
        Ok(digest)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// Some items for a message, which stays a line that fits one.
fn list(items: impl Iterator<Item = impl fmt::Display>) -> String {
    const MOST: usize = 10;
    let mut shown: Vec<String> = items.take(MOST + 1).map(|item| item.to_string()).collect();
    if shown.is_empty() {
        return "none".to_owned();
    }
    if shown.len() > MOST {
        shown[MOST] = "…".to_owned();
    }
    shown.join(", ")
}

/// Go writes an empty list or map as `null`.
fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
