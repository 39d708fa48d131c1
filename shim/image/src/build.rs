use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Component, Path};

use serde::Serialize;
use slipway_module::{Entrypoint, Kind};

use crate::oci::{CONFIG, IMAGE_NAME, INDEX, LAYER, MANIFEST, REF_NAME, WASM_CONFIG, WASM_LAYER};
use crate::tree::{Copied, Node, Tree};
use crate::{
    Descriptor, ImageConfig, ImageError, ImageKind, Index, Manifest, Platform, ProcessConfig,
    Reference, RootFs,
};

/// An image to build. Nothing else goes into it, no time either: the same options and files give the same bytes.
#[derive(Debug, Clone)]
pub struct BuildOptions<'a> {
    /// The module, in binary or text form. Not validated here beyond its kind: see `slipway_module::prepare`.
    pub module: &'a [u8],
    /// The image's name.
    pub reference: Reference,
    /// How it carries the module.
    pub kind: ImageKind,
    /// The module's absolute path in the image, with `#function` for another export than `_start`: `/app.wasm`. In an
    /// artefact, which has no files, it is only the program's name.
    pub entrypoint: &'a str,
    /// Arguments after the entrypoint, which a pod's `args` replace.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// The directory to start in, absolute; `None` is `/`.
    pub workdir: Option<String>,
    /// Files beside the module; an ordinary image's only.
    pub copies: Vec<Copied>,
}

/// The architectures of an ordinary image: those of Kubernetes nodes.
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];
/// A fixed time of creation: the same input gives the same digest.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// Writes an image as an OCI archive (a tar file in OCI layout, with Docker's `manifest.json` beside it for ordinary
/// images). `out` is not buffered and not flushed here.
pub fn build(options: &BuildOptions<'_>, out: impl Write) -> Result<(), ImageError> {
    check(options)?;
    let mut blobs = Blobs::default();
    let (mut image, docker) = match options.kind {
        ImageKind::Image => ordinary(options, &mut blobs)?,
        ImageKind::Artifact => (artifact(options, &mut blobs)?, None),
    };
    image.annotations = BTreeMap::from([
        (IMAGE_NAME.to_owned(), options.reference.to_string()),
        (REF_NAME.to_owned(), options.reference.tag().to_owned()),
    ]);
    let index = Index {
        schema_version: 2,
        media_type: INDEX.to_owned(),
        manifests: vec![image],
    };

    let mut tar = Tar(tar::Builder::new(out));
    tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    for (path, blob) in &blobs.0 {
        tar.file(path, 0o644, blob)?;
    }
    tar.file("index.json", 0o644, &json(&index)?)?;
    if let Some(docker) = docker {
        tar.file("manifest.json", 0o644, &json(&[docker])?)?;
    }
    tar.finish().map(drop)
}

fn check(options: &BuildOptions<'_>) -> Result<(), ImageError> {
    let fail = |option, reason: String| Err(ImageError::Option { option, reason });
    let kind = Kind::sniff(options.module);
    if !kind.is_wasm() {
        return fail(
            "module",
            format!("it is no Wasm module but: {kind}; see `slipway inspect`"),
        );
    }
    let path = Entrypoint::parse(options.entrypoint).path;
    if !is_plain_absolute(&path) {
        return fail(
            "entrypoint",
            format!("{path:?} is not an absolute path to a file; write it like /app.wasm"),
        );
    }
    if let Some(entry) = options
        .env
        .iter()
        .find(|entry| entry.find('=').is_none_or(|at| at == 0))
    {
        return fail("env", format!("{entry:?} is not of the form NAME=value"));
    }
    if let Some(workdir) = options
        .workdir
        .as_ref()
        .filter(|workdir| !workdir.starts_with('/'))
    {
        return fail(
            "workdir",
            format!("{workdir:?} is not absolute; write it like /data"),
        );
    }
    if options.kind == ImageKind::Artifact && !options.copies.is_empty() {
        return fail(
            "copy",
            "an artefact is the module and no files; build an ordinary image (no --artifact)"
                .to_owned(),
        );
    }
    Ok(())
}

/// Whether `path` is `/` and then nothing but names.
fn is_plain_absolute(path: &str) -> bool {
    let mut components = Path::new(path).components();
    components.next() == Some(Component::RootDir)
        && Path::new(path).file_name().is_some()
        && !path.ends_with('/')
        && components.all(|component| matches!(component, Component::Normal(_)))
}

/// An ordinary image for every architecture: an index, and what Docker wants to know of it.
fn ordinary(
    options: &BuildOptions<'_>,
    blobs: &mut Blobs,
) -> Result<(Descriptor, Option<DockerImage>), ImageError> {
    let layer = blobs.add(LAYER, layer(options)?);
    let mut manifests = Vec::new();
    let mut docker = None;
    for architecture in ARCHITECTURES {
        let rootfs = RootFs {
            diff_ids: vec![format!("{:?}", layer.digest)],
            ..RootFs::default()
        };
        let config = blobs.add_json(
            CONFIG,
            &config(options, Platform::linux(architecture), Vec::new(), rootfs),
        )?;
        docker.get_or_insert_with(|| DockerImage {
            config: blob_path(&config),
            repo_tags: vec![options.reference.short()],
            layers: vec![blob_path(&layer)],
        });
        let mut manifest = blobs.add_json(MANIFEST, &manifest(config, layer.clone()))?;
        manifest.platform = Some(Platform::linux(architecture));
        manifests.push(manifest);
    }
    let index = Index {
        schema_version: 2,
        media_type: INDEX.to_owned(),
        manifests,
    };
    Ok((blobs.add_json(INDEX, &index)?, docker))
}

/// A Wasm artefact, <https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>: a manifest.
fn artifact(options: &BuildOptions<'_>, blobs: &mut Blobs) -> Result<Descriptor, ImageError> {
    let layer = blobs.add(WASM_LAYER, options.module.to_vec());
    let platform = Platform {
        architecture: "wasm".to_owned(),
        os: "wasip1".to_owned(),
    };
    let config = config(
        options,
        platform,
        vec![format!("{:?}", layer.digest)],
        RootFs::default(),
    );
    let config = blobs.add_json(WASM_CONFIG, &config)?;
    blobs.add_json(MANIFEST, &manifest(config, layer))
}

fn manifest(config: Descriptor, layer: Descriptor) -> Manifest {
    Manifest {
        schema_version: 2,
        media_type: MANIFEST.to_owned(),
        config,
        layers: vec![layer],
    }
}

fn config(
    options: &BuildOptions<'_>,
    platform: Platform,
    layer_digests: Vec<String>,
    rootfs: RootFs,
) -> ImageConfig {
    ImageConfig {
        created: Some(CREATED.to_owned()),
        architecture: platform.architecture,
        os: platform.os,
        layer_digests,
        process: ProcessConfig {
            user: String::new(),
            env: options.env.clone(),
            entrypoint: vec![options.entrypoint.to_owned()],
            cmd: options.args.clone(),
            working_dir: options.workdir.clone().unwrap_or_default(),
        },
        rootfs,
    }
}

/// The layer of an ordinary image: the module, and the files beside it, by path. Not compressed: what a compressor writes
/// depends on its version, and with it the image's digest would.
fn layer(options: &BuildOptions<'_>) -> Result<Vec<u8>, ImageError> {
    let path = Entrypoint::parse(options.entrypoint).path;
    let mut tree = Tree::default();
    tree.put(
        Path::new(path.trim_start_matches('/')),
        Node::Module(options.module),
    )?;
    for copied in &options.copies {
        tree.copy(copied)?;
    }
    let mut tar = Tar(tar::Builder::new(Vec::new()));
    for (path, node) in tree.nodes {
        match node {
            Node::Directory { mode } => tar.directory(&path, mode)?,
            // Executable, since a path lookup passes over files that are not.
            Node::Module(module) => tar.file(&path, 0o755, module)?,
            Node::File { source, mode } => {
                let contents = fs::read(&source)
                    .map_err(ImageError::io(format!("copy: {}", source.display())))?;
                tar.file(&path, mode, &contents)?;
            }
            Node::Link { target } => tar.link(&path, &target)?,
        }
    }
    tar.finish()
}

/// Blobs by their path in an archive.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    fn add(&mut self, media_type: &str, blob: Vec<u8>) -> Descriptor {
        let descriptor = Descriptor::of(media_type, &blob);
        self.0.insert(blob_path(&descriptor), blob);
        descriptor
    }

    fn add_json(
        &mut self,
        media_type: &str,
        document: &impl Serialize,
    ) -> Result<Descriptor, ImageError> {
        Ok(self.add(media_type, json(document)?))
    }
}

pub(crate) fn blob_path(descriptor: &Descriptor) -> String {
    format!("blobs/sha256/{}", descriptor.digest)
}

fn json(document: &impl Serialize) -> Result<Vec<u8>, ImageError> {
    serde_json::to_vec(document).map_err(|source| ImageError::Json {
        what: "a document".to_owned(),
        source,
    })
}

/// One image in Docker's `manifest.json`, which `docker load` reads.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// A tar file whose entries differ in path, type, mode and contents only.
struct Tar<W: Write>(tar::Builder<W>);

impl<W: Write> Tar<W> {
    fn file(
        &mut self,
        path: impl AsRef<Path>,
        mode: u32,
        contents: &[u8],
    ) -> Result<(), ImageError> {
        let path = path.as_ref();
        self.0
            .append_data(
                &mut header(tar::EntryType::Regular, mode, contents.len()),
                path,
                contents,
            )
            .map_err(writing(path))
    }

    fn directory(&mut self, path: &Path, mode: u32) -> Result<(), ImageError> {
        // With a `/` at its end.
        let path = path.join("");
        self.0
            .append_data(
                &mut header(tar::EntryType::Directory, mode, 0),
                &path,
                &[][..],
            )
            .map_err(writing(&path))
    }

    fn link(&mut self, path: &Path, target: &Path) -> Result<(), ImageError> {
        self.0
            .append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), path, target)
            .map_err(writing(path))
    }

    fn finish(self) -> Result<W, ImageError> {
        self.0
            .into_inner()
            .map_err(ImageError::io("writing the archive"))
    }
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header
}

fn writing(path: &Path) -> impl FnOnce(std::io::Error) -> ImageError {
    ImageError::io(format!("writing {}", path.display()))
}
