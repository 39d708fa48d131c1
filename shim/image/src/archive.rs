use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use slipway_module::{Digest, MAX_MODULE_BYTES};

use crate::build::blob_path;
use crate::meter::{Allowance, Metered};
use crate::oci::{IMAGE_NAME, parse};
use crate::unpack::{Unpacked, Unpacker};
use crate::{
    Descriptor, ImageConfig, ImageError, ImageKind, Index, MAX_ARCHIVE_FILES, MAX_BLOB_BYTES,
    MAX_HEADER_BYTES, MAX_JSON_BYTES, MAX_LAYERS, MAX_MANIFESTS, Manifest, ModuleWriter, Platform,
};

/// One image of an OCI archive: the one for Wasm, or else for this host.
#[derive(Debug)]
pub struct Archive<R> {
    files: Files<R>,
    name: Option<String>,
    manifest: Manifest,
    config: ImageConfig,
}

/// Opens an OCI archive (not compressed) and chooses the image in it: of several platforms one whose architecture is
/// `wasm`, or else linux on this host's processor. Index, manifest and config are read and verified; layers later.
pub fn open_archive<R: Read + Seek>(reader: R) -> Result<Archive<R>, ImageError> {
    let mut files = Files::open(reader)?;
    let index: Index = parse("index.json", &files.json("index.json")?)?;
    let name = only_name(&index)?;
    let chosen = choose(manifests(&mut files, index)?)?;
    let manifest = Manifest::parse(&files.blob(&chosen, MAX_JSON_BYTES)?)?;
    ImageError::bound(
        "the number of layers",
        manifest.layers.len() as u64,
        MAX_LAYERS as u64,
    )?;
    let config = ImageConfig::parse(&files.blob(&manifest.config, MAX_JSON_BYTES)?)?;
    let platform = config.platform();
    if manifest.kind() == ImageKind::Image && rank(&platform).is_none() {
        return Err(ImageError::NoPlatform {
            wanted: Platform::host().to_string(),
            found: platform.to_string(),
        });
    }
    Ok(Archive {
        files,
        name,
        manifest,
        config,
    })
}

impl<R: Read + Seek> Archive<R> {
    /// The image's full name, if the archive gives one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// How the image carries its module.
    pub fn kind(&self) -> ImageKind {
        self.manifest.kind()
    }

    /// The image's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The image's config.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// The module of an artefact. All layers are verified, also those that are something else.
    pub fn artifact_module(&mut self) -> Result<Vec<u8>, ImageError> {
        let wasm = self.manifest.wasm_layer()?;
        let layer = self.files.blob(wasm, MAX_MODULE_BYTES)?;
        let mut module = Vec::new();
        let mut writer = ModuleWriter::new(&mut module);
        writer
            .write_all(&layer)
            .map_err(ImageError::io("reading the module"))?;
        writer.finish()?;
        for layer in self
            .manifest
            .layers
            .iter()
            .filter(|layer| layer.digest != wasm.digest)
        {
            self.files.verify(layer)?;
        }
        Ok(module)
    }

    /// Unpacks an ordinary image's layers into `dir`, where they may take `room` bytes of the disk, and
    /// [`MAX_UNPACKED_BYTES`](crate::MAX_UNPACKED_BYTES) at most. It must exist, be empty, and be changed by nobody else
    /// meanwhile (a private temporary directory). After an error `dir` holds a part of the image.
    ///
    /// No path or link leads out of `dir`. Not kept: set-user-ID and set-group-ID bits (nothing in a Wasm container can
    /// execute a file, but others on the host could), device nodes, FIFOs and extended attributes. Owners are kept where the
    /// caller may give files away (root); otherwise all files belong to the caller.
    pub fn unpack(&mut self, dir: &Path, room: u64) -> Result<Unpacked, ImageError> {
        if self.kind() != ImageKind::Image {
            return Err(ImageError::WrongKind(
                "the image is a Wasm artefact and has no files to unpack".to_owned(),
            ));
        }
        let mut unpacker = Unpacker::new(dir, room);
        for layer in &self.manifest.layers {
            self.files.verify(layer)?;
            unpacker.delete(&layer.media_type, self.files.reader(layer)?)?;
            unpacker.extract(&layer.media_type, self.files.reader(layer)?)?;
        }
        Ok(unpacker.done())
    }
}

/// The name that the index gives to its image; several names are several images.
fn only_name(index: &Index) -> Result<Option<String>, ImageError> {
    let names: BTreeSet<&String> = index
        .manifests
        .iter()
        .filter_map(|image| image.annotations.get(IMAGE_NAME))
        .collect();
    if names.len() > 1 {
        let names: Vec<_> = names.into_iter().map(String::as_str).collect();
        return Err(ImageError::SeveralImages(names.join(", ")));
    }
    Ok(names.into_iter().next().cloned())
}

/// The manifests of an index and of those that it refers to. Both kinds count towards the bound: indexes that refer to
/// each other's parts many times over would multiply otherwise.
fn manifests<R: Read + Seek>(
    files: &mut Files<R>,
    index: Index,
) -> Result<Vec<Descriptor>, ImageError> {
    let mut pending = VecDeque::from(index.manifests);
    let mut manifests = Vec::new();
    let mut count = pending.len();
    while let Some(descriptor) = pending.pop_front() {
        if descriptor.is_index() {
            let index = Index::parse(&files.blob(&descriptor, MAX_JSON_BYTES)?)?;
            count += index.manifests.len();
            pending.extend(index.manifests);
        } else if descriptor.is_manifest() {
            manifests.push(descriptor);
        }
        ImageError::bound("the number of manifests", count as u64, MAX_MANIFESTS)?;
    }
    Ok(manifests)
}

/// The manifest for Wasm, for this host, or for no platform in particular, in this order.
fn choose(manifests: Vec<Descriptor>) -> Result<Descriptor, ImageError> {
    let platforms: Vec<_> = manifests
        .iter()
        .filter_map(|manifest| Some(manifest.platform.as_ref()?.to_string()))
        .collect();
    let ranked = manifests.into_iter().filter_map(|manifest| {
        let rank = manifest.platform.as_ref().map_or(Some(2), rank)?;
        Some((rank, manifest))
    });
    match ranked.min_by_key(|(rank, _)| *rank) {
        Some((_, manifest)) => Ok(manifest),
        None if platforms.is_empty() => Err(ImageError::NotAnArchive(
            "index.json names no image".to_owned(),
        )),
        None => Err(ImageError::NoPlatform {
            wanted: Platform::host().to_string(),
            found: platforms.join(", "),
        }),
    }
}

/// How well a platform suits: lower is better, `None` not at all.
fn rank(platform: &Platform) -> Option<u8> {
    if platform.architecture == "wasm" {
        Some(0)
    } else if *platform == Platform::host() {
        Some(1)
    } else {
        None
    }
}

/// The files of an archive: where each begins, and its length.
#[derive(Debug)]
struct Files<R> {
    reader: R,
    places: BTreeMap<String, (u64, u64)>,
}

impl<R: Read + Seek> Files<R> {
    fn open(reader: R) -> Result<Files<R>, ImageError> {
        let unreadable = |error: std::io::Error| {
            ImageError::NotAnArchive(format!("it does not read as a tar file: {error}"))
        };
        let allowance = Allowance::new();
        let mut tar = tar::Archive::new(Metered {
            inner: reader,
            allowance: allowance.clone(),
        });
        let mut places = BTreeMap::new();
        allowance.set(MAX_HEADER_BYTES);
        for entry in tar.entries_with_seek().map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            if entry.header().entry_type().is_file() {
                let path = String::from_utf8_lossy(&entry.path_bytes())
                    .trim_start_matches("./")
                    .to_owned();
                places.insert(path, (entry.raw_file_position(), entry.size()));
                ImageError::bound(
                    "the number of files",
                    places.len() as u64,
                    MAX_ARCHIVE_FILES as u64,
                )?;
            }
            allowance.set(MAX_HEADER_BYTES);
        }
        if !places.contains_key("oci-layout") || !places.contains_key("index.json") {
            return Err(ImageError::NotAnArchive(
                "it has no oci-layout and index.json".to_owned(),
            ));
        }
        Ok(Files {
            reader: tar.into_inner().inner,
            places,
        })
    }

    /// Reads a document that no digest protects.
    fn json(&mut self, path: &str) -> Result<Vec<u8>, ImageError> {
        let &(start, length) = self
            .places
            .get(path)
            .ok_or_else(|| ImageError::NotAnArchive(format!("it has no {path}")))?;
        self.read(path, start, length, MAX_JSON_BYTES)
    }

    /// Reads a blob of at most `limit` bytes and verifies it.
    fn blob(&mut self, blob: &Descriptor, limit: u64) -> Result<Vec<u8>, ImageError> {
        let (start, length) = self.place(blob)?;
        let bytes = self.read(&blob_path(blob), start, length, limit)?;
        blob.verify(&bytes)?;
        Ok(bytes)
    }

    fn read(
        &mut self,
        path: &str,
        start: u64,
        length: u64,
        limit: u64,
    ) -> Result<Vec<u8>, ImageError> {
        ImageError::bound(&format!("{path} (bytes)"), length, limit)?;
        let mut bytes = Vec::new();
        self.section(path, start, length)?
            .read_to_end(&mut bytes)
            .map_err(ImageError::io(format!("reading {path}")))?;
        Ok(bytes)
    }

    /// Verifies a blob without keeping it.
    fn verify(&mut self, blob: &Descriptor) -> Result<(), ImageError> {
        ImageError::bound("a layer (bytes)", blob.size, MAX_BLOB_BYTES)?;
        let (digest, size) = Digest::read(self.reader(blob)?)
            .map_err(ImageError::io(format!("reading {}", blob_path(blob))))?;
        blob.verify_digest(digest, size)
    }

    fn reader(&mut self, blob: &Descriptor) -> Result<impl Read + use<'_, R>, ImageError> {
        let (start, length) = self.place(blob)?;
        self.section(&blob_path(blob), start, length)
    }

    fn place(&self, blob: &Descriptor) -> Result<(u64, u64), ImageError> {
        self.places
            .get(&blob_path(blob))
            .copied()
            .ok_or(ImageError::MissingBlob(blob.digest))
    }

    fn section(
        &mut self,
        path: &str,
        start: u64,
        length: u64,
    ) -> Result<impl Read + use<'_, R>, ImageError> {
        self.reader
            .seek(SeekFrom::Start(start))
            .map_err(ImageError::io(format!("reading {path}")))?;
        Ok(self.reader.by_ref().take(length))
    }
}
