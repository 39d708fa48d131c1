//! What is chosen where an image offers several: a manifest by platform, a module by the entrypoint.

use std::fmt;

use slipway_image::{Descriptor, Index, Manifest, Platform};

use crate::LayersError;

/// The annotation with a layer's file name.
const TITLE: &str = "org.opencontainers.image.title";

/// The manifest that containerd unpacks on this host, or else the one for Wasm (`wasi/wasm`, `wasip1/wasm`, …), or else one
/// that is for no platform in particular. `described` is the index's own description.
pub(crate) fn manifest(index: &Index, described: &Descriptor) -> Result<Descriptor, LayersError> {
    let host = Platform::host();
    let first = |suits: &dyn Fn(Option<&Platform>) -> bool| {
        index
            .manifests
            .iter()
            .find(|manifest| suits(manifest.platform.as_ref()))
    };
    first(&|platform| platform == Some(&host))
        .or_else(|| {
            first(&|platform| platform.is_some_and(|platform| platform.architecture == "wasm"))
        })
        .or_else(|| first(&|platform| platform.is_none()))
        .cloned()
        .ok_or_else(|| LayersError::NoPlatform {
            digest: described.digest,
            host: host.to_string(),
            found: list(
                index
                    .manifests
                    .iter()
                    .filter_map(|manifest| manifest.platform.as_ref()),
            ),
        })
}

/// The layer that is the module: the first with the title of `entrypoint` (`/dir/app.wasm` or `app.wasm`, with or without
/// `#function`), or else the only one.
pub(crate) fn module<'a>(
    manifest: &'a Manifest,
    entrypoint: Option<&str>,
) -> Result<&'a Descriptor, LayersError> {
    let modules: Vec<&Descriptor> = manifest.wasm_layers().collect();
    let path = entrypoint
        .unwrap_or_default()
        .split('#')
        .next()
        .unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    let titled =
        |module: &&&Descriptor| title(module).is_some_and(|title| title == path || title == name);
    match (modules.iter().find(titled), modules.as_slice()) {
        (Some(module), _) | (None, [module]) => Ok(module),
        (None, []) => Err(LayersError::NoModule {
            found: list(manifest.layers.iter().map(|layer| &layer.media_type)),
        }),
        (None, _) => Err(LayersError::WhichModule {
            titles: list(modules.iter().map(|module| {
                title(module).map_or_else(|| format!("{:?}", module.digest), str::to_owned)
            })),
            entrypoint: path.to_owned(),
        }),
    }
}

fn title(layer: &Descriptor) -> Option<&str> {
    layer.annotations.get(TITLE).map(String::as_str)
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
