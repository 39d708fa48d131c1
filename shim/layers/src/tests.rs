//! Images in a store that is a map, and containerd's part played by nobody: what is chosen, and what is refused.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use slipway_image::{Descriptor, MAX_JSON_BYTES};
use slipway_module::{Digest, MAX_MODULE_BYTES};

use crate::{
    ContainerImage, ContentStore, Image, ImageStore, LayersError, Module, copy_module, find_image,
    find_module, read_image,
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
const WASM: &str = "application/wasm";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const MODULE: &[u8] = b"\0asm\x01\0\0\0";

#[derive(Default)]
struct Store {
    images: BTreeMap<String, Descriptor>,
    blobs: BTreeMap<Digest, Vec<u8>>,
    read: Vec<Digest>,
}

impl ImageStore for Store {
    async fn image(&mut self, name: &str) -> Result<Descriptor, LayersError> {
        self.images
            .get(name)
            .cloned()
            .ok_or_else(|| LayersError::NotFound {
                what: "image",
                name: name.to_owned(),
                namespace: "k8s.io".to_owned(),
            })
    }
}

impl ContentStore for Store {
    async fn read(
        &mut self,
        digest: Digest,
        mut sink: impl FnMut(&[u8]) -> Result<(), LayersError>,
    ) -> Result<(), LayersError> {
        self.read.push(digest);
        let blob = self
            .blobs
            .get(&digest)
            .ok_or(LayersError::Missing(digest))?;
        blob.chunks(5).try_for_each(&mut sink)
    }
}

impl Store {
    fn add(&mut self, blob: &[u8]) -> Digest {
        let digest = Digest::of(blob);
        self.blobs.insert(digest, blob.to_vec());
        digest
    }

    /// Adds a blob and gives the JSON that refers to it.
    fn refer(&mut self, media_type: &str, blob: &[u8]) -> Value {
        json!({ "mediaType": media_type, "digest": format!("sha256:{}", self.add(blob)), "size": blob.len() })
    }

    fn module(&mut self, media_type: &str, title: &str) -> Value {
        let mut layer = self.refer(media_type, &[MODULE, title.as_bytes()].concat());
        if !title.is_empty() {
            layer["annotations"] = json!({ "org.opencontainers.image.title": title });
        }
        layer
    }

    fn manifest(&mut self, config_type: &str, layers: &[Value]) -> Value {
        let config = self.refer(config_type, br#"{"architecture":"wasm","os":"wasip1"}"#);
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
        self.refer(MANIFEST, manifest.to_string().as_bytes())
    }

    fn index(&mut self, manifests: &[Value]) -> Value {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        self.refer(INDEX, index.to_string().as_bytes())
    }

    fn find(&mut self, image: &Value, entrypoint: Option<&str>) -> Result<Module, LayersError> {
        let image = wait(read_image(self, described(image)))?;
        wait(find_module(self, &image, entrypoint))
    }

    /// The image that containerd's notes of a container mean.
    fn find_image(&mut self, container: &ContainerImage) -> Result<Image, LayersError> {
        wait(find_image(self, container))
    }

    /// Registers an artefact whose module has a title and whose config is `config`, as CRI does: by name and by id.
    fn register(&mut self, name: &str, title: &str, config: &[u8]) -> Digest {
        let layer = self.module(WASM, title);
        let config = self.refer(WASM_CONFIG, config);
        let id = described(&config).digest;
        let manifest = json!({ "mediaType": MANIFEST, "config": config, "layers": [layer] });
        let manifest = self.refer(MANIFEST, manifest.to_string().as_bytes());
        for name in [name.to_owned(), format!("{id:?}")] {
            self.images.insert(name, described(&manifest));
        }
        id
    }

    /// Finds the module and copies it.
    fn fetch(&mut self, image: &Value) -> Result<Vec<u8>, LayersError> {
        let module = self.find(image, None)?;
        let mut out = Vec::new();
        wait(copy_module(self, &module, &mut out)).map(|()| out)
    }

    /// An index, manifest, config and module.
    fn artefact(&mut self) -> Value {
        let layer = self.module(WASM, "");
        let manifest = self.manifest(WASM_CONFIG, &[layer]);
        self.index(&[on(manifest, "linux", host())])
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

fn described(reference: &Value) -> Descriptor {
    serde_json::from_value(reference.clone()).unwrap()
}

fn on(mut manifest: Value, os: &str, architecture: &str) -> Value {
    manifest["platform"] = json!({ "os": os, "architecture": architecture });
    manifest
}

fn host() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    }
}

#[test]
fn the_module_of_an_artefact_arrives_byte_for_byte_and_is_described() {
    let mut store = Store::default();
    let image = store.artefact();
    assert_eq!(store.fetch(&image).unwrap(), MODULE);
    let module = json!(store.find(&image, None).unwrap());
    assert_eq!(module["digest"], format!("sha256:{}", Digest::of(MODULE)));
    assert_eq!(module["media_type"], WASM);
    assert_eq!(module["size"], 8);
    assert!(
        module["manifest"]
            .as_str()
            .unwrap()
            .parse::<Digest>()
            .is_ok()
    );
}

/// What containerd notes of a container: a record's image and CRI's extension of it.
fn noted(recorded: &str, id: Digest, written: &str) -> ContainerImage {
    let extension = json!({ "Version": "v1", "Metadata": { "ID": "c", "ImageRef": format!("{id:?}"),
        "Config": { "metadata": { "name": "c" }, "image": { "image": "x", "user_specified_image": written } } } });
    ContainerImage::new(recorded.to_owned(), Some(extension.to_string().as_bytes()))
}

fn titles(image: &Image) -> Vec<&str> {
    let layers = image.manifest.layers.iter();
    layers
        .map(|layer| layer.annotations["org.opencontainers.image.title"].as_str())
        .collect()
}

#[test]
fn what_cri_notes_of_a_container_is_read_and_what_is_not_cris_is_left_out() {
    let id = Digest::of(b"config");
    let expected = ContainerImage {
        recorded: "a:1".to_owned(),
        id: Some(id),
        written: Some("team/app".to_owned()),
    };
    assert_eq!(noted("a:1", id, "team/app"), expected);
    let nothing = ContainerImage {
        recorded: "a:1".to_owned(),
        id: None,
        written: None,
    };
    for extension in [
        None,
        Some(&b"{}"[..]),
        Some(b"\x0a\x00"),
        Some(br#"{"Metadata":{"ImageRef":"sha512:00"}}"#),
    ] {
        assert_eq!(ContainerImage::new("a:1".to_owned(), extension), nothing);
    }
}

#[test]
fn a_containers_image_is_found_by_the_name_that_the_pod_wrote() {
    for written in ["team/app:1", "docker.io/team/app:1", ""] {
        let mut store = Store::default();
        let id = store.register("docker.io/team/app:1", "it", b"{}");
        let image = store.find_image(&noted("docker.io/team/app:1", id, written));
        assert_eq!(titles(&image.unwrap()), ["it"], "{written}");
    }
}

#[test]
fn of_two_images_with_one_id_the_named_one_is_the_containers() {
    let mut store = Store::default();
    store.register("docker.io/team/a:1", "a", b"{}");
    let id = store.register("docker.io/team/b:1", "b", b"{}");
    // CRI notes the first name of the id.
    for name in ["a", "b"] {
        let image = store.find_image(&noted("docker.io/team/a:1", id, &format!("team/{name}:1")));
        assert_eq!(titles(&image.unwrap()), [name]);
    }
}

#[test]
fn an_image_whose_tag_has_moved_is_found_by_its_id_even_if_the_new_one_is_broken() {
    let mut store = Store::default();
    let name = "docker.io/team/app:1";
    let id = store.register(name, "old", b"{}");
    store.register(name, "new", b"{ }");
    let container = noted(name, id, "team/app:1");
    assert_eq!(titles(&store.find_image(&container).unwrap()), ["old"]);
    let manifest = store.images[name].digest;
    store.blobs.remove(&manifest);
    assert_eq!(titles(&store.find_image(&container).unwrap()), ["old"]);
}

#[test]
fn an_image_that_is_gone_is_told_with_the_names_that_it_had() {
    let mut store = Store::default();
    let id = Digest::of(b"config");
    let problem = store
        .find_image(&noted("docker.io/team/a:1", id, "team/b"))
        .unwrap_err()
        .to_string();
    for name in [
        "docker.io/team/b:latest",
        "docker.io/team/a:1",
        &format!("sha256:{id}"),
    ] {
        assert!(problem.contains(name), "{problem}");
    }
}

#[test]
fn a_damaged_image_is_told_rather_than_that_there_is_none() {
    let mut store = Store::default();
    let id = store.register("docker.io/team/app:1", "it", b"{}");
    store.blobs.clear();
    let problem = store.find_image(&noted("docker.io/team/other:1", id, "team/app:1"));
    assert!(matches!(problem, Err(LayersError::Missing(_))));
}

#[test]
fn without_cri_the_records_image_is_the_containers() {
    let mut store = Store::default();
    store.register("example.com/app:1", "it", b"{}");
    let image = store.find_image(&ContainerImage::new("example.com/app:1".to_owned(), None));
    assert_eq!(titles(&image.unwrap()), ["it"]);
}

#[test]
fn a_manifest_without_an_index_is_an_image() {
    let mut store = Store::default();
    let layer = store.module(WASM, "");
    let manifest = store.manifest(WASM_CONFIG, &[layer]);
    assert_eq!(store.fetch(&manifest).unwrap(), MODULE);
}

#[test]
fn every_layer_type_of_a_module_makes_an_artefact_whatever_its_config() {
    for media_type in [
        WASM,
        "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
        "application/vnd.wasm.content.layer.v1+wasm",
        "application/vnd.module.wasm.content.layer.v1+wasm",
    ] {
        let mut store = Store::default();
        let layers = [store.refer(TAR, b"files"), store.module(media_type, "")];
        let manifest = store.manifest(CONFIG, &layers);
        assert_eq!(store.find(&manifest, None).unwrap().media_type, media_type);
    }
}

#[test]
fn a_compressed_module_arrives_unpacked_and_a_damaged_one_is_told() {
    // One block, not compressed, in a frame of Zstandard.
    let zstd = [&b"\x28\xb5\x2f\xfd\x20\x08\x41\x00\x00"[..], MODULE].concat();
    for (layer, expected) in [(&zstd[..], Some(MODULE)), (&zstd[..12], None)] {
        let mut store = Store::default();
        let layer = store.refer(WASM, layer);
        let image = store.manifest(WASM_CONFIG, &[layer]);
        match (store.fetch(&image), expected) {
            (Ok(module), Some(expected)) => assert_eq!(module, expected),
            (Err(e), None) => assert!(e.to_string().contains("compressed with zstd"), "{e}"),
            (unexpected, _) => panic!("{unexpected:?}"),
        }
    }
}

#[test]
fn an_ordinary_image_is_no_artefact() {
    let mut store = Store::default();
    let layer = store.refer(TAR, b"files");
    let manifest = store.manifest(CONFIG, &[layer]);
    assert!(
        matches!(store.find(&manifest, None), Err(LayersError::NotWasm { config }) if config == CONFIG)
    );
}

#[test]
fn an_artefact_whose_layers_are_of_other_types_is_refused_with_these() {
    let mut store = Store::default();
    let layer = store.refer(TAR, b"files");
    let manifest = store.manifest(WASM_CONFIG, &[layer]);
    assert!(
        matches!(store.find(&manifest, None), Err(LayersError::NoModule { found }) if found == TAR)
    );
}

#[test]
fn layers_written_as_null_are_none() {
    let mut store = Store::default();
    let config = store.refer(WASM_CONFIG, b"{}");
    let manifest = store.refer(
        MANIFEST,
        json!({ "config": config, "layers": null })
            .to_string()
            .as_bytes(),
    );
    assert!(matches!(
        store.find(&manifest, None),
        Err(LayersError::NoModule { .. })
    ));
}

#[test]
fn an_index_gives_the_hosts_manifest_then_that_for_wasm_then_that_for_none() {
    let mut store = Store::default();
    let [for_host, for_wasm, for_none] = ["host", "wasm", "none"].map(|title| {
        let layer = store.module(WASM, title);
        store.manifest(WASM_CONFIG, &[layer])
    });
    let other = on(for_none.clone(), "linux", "s390x");
    let attestation = on(for_none.clone(), "unknown", "unknown");
    let all = [
        other,
        attestation,
        for_none.clone(),
        on(for_wasm.clone(), "wasip1", "wasm"),
        on(for_host.clone(), "linux", host()),
    ];
    for (manifests, expected) in [
        (&all[..], for_host),
        (&all[..4], for_wasm),
        (&all[..3], for_none),
    ] {
        let index = store.index(manifests);
        assert_eq!(
            store.find(&index, None).unwrap().manifest,
            described(&expected).digest
        );
    }
    let index = store.index(&all[..2]);
    let problem = store.find(&index, None).unwrap_err();
    assert!(
        matches!(&problem, LayersError::NoPlatform { found, .. } if found == "linux/s390x, unknown/unknown"),
        "{problem}"
    );
}

#[test]
fn nested_indexes_are_followed_to_a_bounded_depth() {
    let mut store = Store::default();
    let mut image = store.artefact();
    for _ in 1..crate::MAX_INDEX_DEPTH {
        image = store.index(&[image]);
    }
    assert_eq!(store.fetch(&image).unwrap(), MODULE);
    image = store.index(&[image]);
    assert!(matches!(
        store.find(&image, None),
        Err(LayersError::TooDeep)
    ));
}

#[test]
fn the_only_module_is_the_one_whatever_the_entrypoint() {
    let mut store = Store::default();
    let layer = store.module(WASM, "app.wasm");
    let manifest = store.manifest(WASM_CONFIG, &[layer]);
    assert!(store.find(&manifest, Some("/other.wasm")).is_ok());
}

#[test]
fn of_several_modules_the_entrypoint_names_one_by_its_title() {
    let mut store = Store::default();
    let layers = ["a.wasm", "b.wasm", "bin/c.wasm"].map(|title| store.module(WASM, title));
    let manifest = store.manifest(WASM_CONFIG, &layers);
    for (entrypoint, layer) in [
        ("a.wasm", 0),
        ("/b.wasm", 1),
        ("/opt/b.wasm", 1),
        ("b.wasm#serve", 1),
        ("bin/c.wasm", 2),
    ] {
        let module = store.find(&manifest, Some(entrypoint)).unwrap();
        assert_eq!(
            module.digest,
            described(&layers[layer]).digest,
            "{entrypoint}"
        );
    }
}

#[test]
fn several_modules_of_which_none_is_named_are_refused_with_their_titles() {
    let mut store = Store::default();
    let layers = ["a.wasm", "b.wasm"].map(|title| store.module(WASM, title));
    let manifest = store.manifest(WASM_CONFIG, &layers);
    for entrypoint in [None, Some(""), Some("/"), Some("#run"), Some("c.wasm")] {
        let problem = store.find(&manifest, entrypoint).unwrap_err();
        assert!(
            matches!(&problem, LayersError::WhichModule { titles, .. } if titles == "a.wasm, b.wasm"),
            "{problem}"
        );
    }
}

#[test]
fn a_damaged_or_missing_blob_anywhere_is_an_error_that_names_its_digest() {
    let mut healthy = Store::default();
    let image = healthy.artefact();
    healthy.fetch(&image).unwrap();
    assert_eq!(healthy.blobs.len(), 4, "index, manifest, config, module");
    for (digest, blob) in healthy.blobs.clone() {
        let mut flipped = blob.clone();
        flipped[0] ^= 1;
        for wrong in [
            Some(flipped),
            Some(blob[1..].to_vec()),
            Some([&blob[..], b"x"].concat()),
            Some(Vec::new()),
            None,
        ] {
            let mut store = Store {
                blobs: healthy.blobs.clone(),
                ..Store::default()
            };
            match wrong {
                Some(wrong) => store.blobs.insert(digest, wrong),
                None => store.blobs.remove(&digest),
            };
            let problem = store.fetch(&image).unwrap_err();
            assert!(
                matches!(
                    problem,
                    LayersError::Damaged { .. } | LayersError::Missing(_)
                ),
                "{problem}"
            );
            assert!(
                problem.to_string().contains(&format!("sha256:{digest}")),
                "{problem}"
            );
        }
    }
}

#[test]
fn a_size_that_is_not_the_blobs_is_an_error_even_where_the_digest_is_right() {
    for (size, expected) in [
        (7, "it has more than 7 bytes"),
        (9, "it has 8 bytes instead of 9"),
    ] {
        let mut store = Store::default();
        let mut layer = store.module(WASM, "");
        layer["size"] = json!(size);
        let manifest = store.manifest(WASM_CONFIG, &[layer]);
        let problem = store.fetch(&manifest).unwrap_err();
        assert!(problem.to_string().contains(expected), "{problem}");
    }
}

#[test]
fn a_blob_over_its_bound_is_refused_before_it_is_read() {
    let mut store = Store::default();
    let mut layer = store.module(WASM, "");
    layer["size"] = json!(MAX_MODULE_BYTES + 1);
    let manifest = store.manifest(WASM_CONFIG, &[layer.clone()]);
    assert!(matches!(
        store.find(&manifest, None),
        Err(LayersError::TooLarge { what: "module", .. })
    ));
    assert!(!store.read.contains(&described(&layer).digest));

    let mut huge = manifest;
    huge["size"] = json!(MAX_JSON_BYTES + 1);
    store.read.clear();
    assert!(matches!(
        store.find(&huge, None),
        Err(LayersError::TooLarge {
            what: "manifest",
            ..
        })
    ));
    assert!(store.read.is_empty());
}

#[test]
fn a_document_that_is_no_json_or_of_another_type_is_named() {
    let mut store = Store::default();
    let manifest = store.refer(MANIFEST, b"{\"config\":");
    assert!(matches!(
        store.find(&manifest, None),
        Err(LayersError::Json {
            what: "manifest",
            ..
        })
    ));
    let index = store.refer(INDEX, b"[]");
    assert!(matches!(
        store.find(&index, None),
        Err(LayersError::Json { what: "index", .. })
    ));
    let text = store.refer("text/plain", b"{}");
    assert!(
        matches!(store.find(&text, None), Err(LayersError::NotAnImage { media_type, .. }) if media_type == "text/plain")
    );
}
