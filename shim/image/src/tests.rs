//! Archives of this crate and of others, whole, damaged and hostile.

use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::{Value, json};
use slipway_module::{Digest, MAX_MODULE_BYTES};
use tar::EntryType;

use crate::oci::{CONFIG, LAYER, MANIFEST, WASM_CONFIG, WASM_LAYER};
use crate::{
    BuildOptions, Copied, ImageConfig, ImageError, ImageKind, Manifest, ModuleWriter, Platform,
    ProcessConfig, build, is_wasm_layer, open_archive,
};

const MODULE: &[u8] = b"\0asm\x01\0\0\0";
const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn options(kind: ImageKind) -> BuildOptions<'static> {
    BuildOptions {
        module: MODULE,
        reference: "example.com/team/app:1.0".parse().unwrap(),
        kind,
        entrypoint: "/opt/app/app.wasm#run",
        args: vec!["--port".to_owned(), "80".to_owned()],
        env: vec!["A=b".to_owned()],
        workdir: Some("/data".to_owned()),
        copies: Vec::new(),
    }
}

fn built(kind: ImageKind) -> Vec<u8> {
    let mut archive = Vec::new();
    build(&options(kind), &mut archive).unwrap();
    archive
}

fn open(archive: &[u8]) -> Result<crate::Archive<Cursor<&[u8]>>, ImageError> {
    open_archive(Cursor::new(archive))
}

/// A tar entry: type, path, and the contents or link target.
type Entry<'a> = (EntryType, &'a str, &'a str);

fn file<'a>(path: &'a str, contents: &'a str) -> Entry<'a> {
    (EntryType::Regular, path, contents)
}

fn dir(path: &str) -> Entry<'_> {
    (EntryType::Directory, path, "")
}

fn link<'a>(path: &'a str, target: &'a str) -> Entry<'a> {
    (EntryType::Symlink, path, target)
}

/// A tar file whose paths are written as they are: the tar crate's builder refuses hostile ones.
fn tar_of(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, path, text) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o6755);
        header.set_mtime(1_000_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        if is_link {
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        let contents = if is_link { "" } else { text };
        header.set_size(contents.len() as u64);
        header.set_cksum();
        builder.append(&header, contents.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

/// An archive under construction: blobs, and documents made by hand.
#[derive(Default)]
struct Hand {
    files: Vec<(String, Vec<u8>)>,
}

impl Hand {
    fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = Digest::of(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()});
        self.files.push((format!("blobs/sha256/{digest}"), bytes));
        descriptor
    }

    /// A manifest of an image for linux on this host.
    fn image(&mut self, layers: &[(&str, Vec<u8>)]) -> Value {
        let host = Platform::host();
        let config = json!({"architecture": host.architecture, "os": host.os, "config": null});
        self.image_of(CONFIG, &config, layers)
    }

    fn image_of(&mut self, config_type: &str, config: &Value, layers: &[(&str, Vec<u8>)]) -> Value {
        let config = self.blob(config_type, config.to_string().into_bytes());
        let layers: Vec<_> = layers
            .iter()
            .map(|(media_type, bytes)| self.blob(media_type, bytes.clone()))
            .collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        self.blob(MANIFEST, manifest.to_string().into_bytes())
    }

    fn archive(self, manifests: &[Value]) -> Vec<u8> {
        let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        let mut tar = tar::Builder::new(Vec::new());
        let mut files = self.files;
        files.push(("oci-layout".to_owned(), b"{}".to_vec()));
        files.push(("index.json".to_owned(), index.into_bytes()));
        for (path, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, path, &bytes[..]).unwrap();
        }
        tar.into_inner().unwrap()
    }
}

/// An archive of an ordinary image with these layers, uncompressed.
fn image_of(layers: &[&[Entry<'_>]]) -> Vec<u8> {
    let layers: Vec<_> = layers
        .iter()
        .map(|entries| (LAYER, tar_of(entries)))
        .collect();
    let mut hand = Hand::default();
    let manifest = hand.image(&layers);
    hand.archive(&[manifest])
}

fn unpack(layers: &[&[Entry<'_>]]) -> (tempfile::TempDir, Result<crate::Unpacked, ImageError>) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("root")).unwrap();
    let unpacked = open(&image_of(layers))
        .unwrap()
        .unpack(&dir.path().join("root"), u64::MAX);
    (dir, unpacked)
}

/// The files below the root that `unpack` made, with their contents; directories and links with nothing.
fn listing(dir: &tempfile::TempDir) -> Vec<(String, String)> {
    fn walk(dir: &std::path::Path, prefix: &str, list: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().unwrap();
            let text = if kind.is_file() {
                fs::read_to_string(entry.path()).unwrap()
            } else {
                String::new()
            };
            list.push((name.clone(), text));
            if kind.is_dir() {
                walk(&entry.path(), &format!("{name}/"), list);
            }
        }
    }
    let mut list = Vec::new();
    walk(&dir.path().join("root"), "", &mut list);
    list.sort();
    list
}

fn pairs(list: &[(String, String)]) -> Vec<(&str, &str)> {
    list.iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect()
}

#[test]
fn a_built_image_reads_back_and_unpacks_to_its_module() {
    let archive = built(ImageKind::Image);
    let mut archive = open(&archive).unwrap();
    assert_eq!(
        (archive.kind(), archive.name()),
        (ImageKind::Image, Some("example.com/team/app:1.0"))
    );
    assert_eq!(archive.config().platform(), Platform::host());
    assert_eq!(
        archive.config().process.argv(),
        ["/opt/app/app.wasm#run", "--port", "80"]
    );
    assert_eq!(archive.config().process.env, ["A=b"]);
    assert_eq!(archive.config().process.working_dir, "/data");
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(archive.unpack(dir.path(), u64::MAX).unwrap().files, 3);
    assert_eq!(
        fs::read(dir.path().join("opt/app/app.wasm")).unwrap(),
        MODULE
    );
    assert!(matches!(
        archive.artifact_module(),
        Err(ImageError::WrongKind(_))
    ));
}

#[test]
fn a_built_artifact_reads_back_and_has_no_files() {
    let archive = built(ImageKind::Artifact);
    let mut archive = open(&archive).unwrap();
    assert_eq!(archive.kind(), ImageKind::Artifact);
    assert_eq!(archive.artifact_module().unwrap(), MODULE);
    assert_eq!(archive.manifest().config.media_type, WASM_CONFIG);
    let config = archive.config().clone();
    assert_eq!(
        (config.os.as_str(), config.architecture.as_str()),
        ("wasip1", "wasm")
    );
    assert_eq!(config.layer_digests, [format!("{:?}", Digest::of(MODULE))]);
    assert!(config.rootfs.diff_ids.is_empty());
    assert_eq!(config.process.argv()[0], "/opt/app/app.wasm#run");
    assert!(matches!(
        archive.unpack(std::path::Path::new("/nonexistent"), u64::MAX),
        Err(ImageError::WrongKind(_))
    ));
}

#[test]
fn an_image_is_for_amd64_and_arm64_with_one_layer_between_them() {
    let archive = built(ImageKind::Image);
    let mut archive = tar::Archive::new(&archive[..]);
    let mut paths: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().into_owned())
        .collect();
    paths.retain(|path| path.starts_with("blobs"));
    assert_eq!(
        paths.len(),
        6,
        "index, two manifests, two configs, one layer"
    );
}

#[test]
fn the_same_options_give_the_same_bytes() {
    for kind in [ImageKind::Image, ImageKind::Artifact] {
        assert_eq!(built(kind), built(kind));
    }
}

#[test]
fn malformed_build_options_are_refused_by_name() {
    type Break = fn(&mut BuildOptions<'static>);
    let cases: [(&str, Break); 8] = [
        ("module", |options| options.module = b"\x7fELF"),
        ("module", |options| options.module = b""),
        ("entrypoint", |options| options.entrypoint = "app.wasm"),
        ("entrypoint", |options| options.entrypoint = "/"),
        ("entrypoint", |options| options.entrypoint = "/a/../b"),
        ("entrypoint", |options| options.entrypoint = "#run"),
        ("env", |options| options.env = vec!["=x".to_owned()]),
        ("workdir", |options| {
            options.workdir = Some("data".to_owned())
        }),
    ];
    for (option, break_it) in cases {
        let mut options = options(ImageKind::Image);
        break_it(&mut options);
        let error = build(&options, std::io::sink()).unwrap_err();
        assert!(
            error.to_string().starts_with(&format!("{option}: ")),
            "{error}"
        );
    }
}

/// What building an image with `--copy SOURCE:TARGET` gives.
fn copying(copies: &[(&std::path::Path, &str)]) -> Result<Vec<u8>, ImageError> {
    let mut options = options(ImageKind::Image);
    options.copies = copies
        .iter()
        .map(|(source, target)| Copied {
            source: source.to_path_buf(),
            target: (*target).to_owned(),
        })
        .collect();
    let mut archive = Vec::new();
    build(&options, &mut archive).map(|()| archive)
}

/// A directory on the host: a file, a program, an empty directory and links that lead in, out and nowhere.
fn host_files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name);
    fs::create_dir_all(path("share/empty")).unwrap();
    fs::write(path("share/note"), "text").unwrap();
    fs::write(path("share/tool"), "#!").unwrap();
    for (name, mode) in [("note", 0o640), ("tool", 0o6755), ("empty", 0o1777)] {
        fs::set_permissions(path("share").join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    symlink("note", path("share/inside")).unwrap();
    symlink("/etc/passwd", path("share/outside")).unwrap();
    symlink("share", path("link")).unwrap();
    dir
}

#[test]
fn copied_files_keep_contents_permissions_and_links() {
    let host = host_files();
    let share = host.path().join("share");
    let archive = copying(&[(&share, "/usr/share"), (&share.join("note"), "/motd")]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("root")).unwrap();
    let root = dir.path().join("root");
    open(&archive).unwrap().unpack(&root, u64::MAX).unwrap();
    let expected = [
        ("motd", "text"),
        ("opt", ""),
        ("opt/app", ""),
        ("opt/app/app.wasm", "\0asm\x01\0\0\0"),
        ("usr", ""),
        ("usr/share", ""),
        ("usr/share/empty", ""),
        ("usr/share/inside", ""),
        ("usr/share/note", "text"),
        ("usr/share/outside", ""),
        ("usr/share/tool", "#!"),
    ];
    assert_eq!(pairs(&listing(&dir)), expected);
    let mode = |name| fs::metadata(root.join(name)).unwrap().mode() & 0o7777;
    assert_eq!(
        ["motd", "usr/share/tool", "usr/share/empty"].map(mode),
        [0o640, 0o755, 0o1777]
    );
    let link = |name| fs::read_link(root.join("usr/share").join(name)).unwrap();
    assert_eq!(link("inside").as_os_str(), "note");
    assert_eq!(link("outside").as_os_str(), "/etc/passwd");
}

#[test]
fn a_copied_directory_joins_the_root_and_others() {
    let (host, other) = (host_files(), tempfile::tempdir().unwrap());
    fs::write(other.path().join("more"), "").unwrap();
    // The link that is named is followed.
    let archive = copying(&[(&host.path().join("link"), "/"), (other.path(), "/empty/")]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("root")).unwrap();
    open(&archive)
        .unwrap()
        .unpack(&dir.path().join("root"), u64::MAX)
        .unwrap();
    let files = listing(&dir);
    assert!(pairs(&files).contains(&("note", "text")), "{files:?}");
    assert!(pairs(&files).contains(&("empty/more", "")), "{files:?}");
}

#[test]
fn copied_files_give_the_same_bytes_whenever_and_by_whomever_they_were_made() {
    let (first, second) = (host_files(), host_files());
    let note = second.path().join("share/note");
    fs::File::open(&note)
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    let of = |dir: &tempfile::TempDir| copying(&[(&dir.path().join("share"), "/share")]).unwrap();
    assert_eq!(of(&first), of(&second));
    fs::write(note, "other").unwrap();
    assert_ne!(of(&first), of(&second));
}

#[test]
fn what_cannot_be_copied_is_refused_with_its_path() {
    let host = host_files();
    let path = |name: &str| host.path().join(name);
    fs::create_dir(path("deleting")).unwrap();
    fs::write(path("deleting/.wh.note"), "").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    let (share, note, missing) = (path("share"), path("share/note"), path("missing"));
    let null = std::path::Path::new("/dev/null");
    let cases: [(&[(&std::path::Path, &str)], &str); 12] = [
        (&[(&missing, "/x")], "No such file"),
        (&[(&note, "data")], "not absolute"),
        (&[(&note, "")], "not absolute"),
        (&[(&note, "/a/../b")], "`..`"),
        (&[(&note, "/")], "add the file's name"),
        (&[(&note, "/etc/")], "add the file's name"),
        (&[(null, "/null")], "/dev/null is a device node"),
        (&[(&path("socket"), "/s")], "socket"),
        (&[(&path("deleting"), "/d")], ".wh.note"),
        (
            &[(&note, "/opt/app/app.wasm")],
            "would be the module and also the file",
        ),
        (&[(&note, "/opt")], "would be a directory and also the file"),
        (
            &[(&share, "/s"), (&note, "/s/inside/x")],
            "/s/inside would be a symbolic link to note and also a directory",
        ),
    ];
    for (copies, reason) in cases {
        let error = copying(copies).unwrap_err().to_string();
        assert!(
            error.starts_with("copy: ") && error.contains(reason),
            "{copies:?}: {error}"
        );
    }
}

#[test]
fn every_listed_layer_type_is_wasm_and_others_are_not() {
    for media_type in [
        "application/wasm",
        "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
        "application/vnd.wasm.content.layer.v1+wasm",
        "application/vnd.module.wasm.content.layer.v1+wasm",
        "application/wasm+gzip",
        "application/wasm+zstd",
    ] {
        assert!(is_wasm_layer(media_type));
        let mut hand = Hand::default();
        let config = json!({"architecture": "wasm", "os": "wasi"});
        let manifest = hand.image_of(CONFIG, &config, &[(media_type, MODULE.to_vec())]);
        assert_eq!(
            open(&hand.archive(&[manifest]))
                .unwrap()
                .artifact_module()
                .unwrap(),
            MODULE
        );
    }
    for media_type in ["", LAYER, GZIP_LAYER, "application/wasm+xz", WASM_CONFIG] {
        assert!(!is_wasm_layer(media_type), "{media_type}");
    }
}

#[test]
fn an_artifact_has_no_place_for_copied_files() {
    let mut options = options(ImageKind::Artifact);
    options.copies = vec![Copied {
        source: "/etc/hosts".into(),
        target: "/hosts".to_owned(),
    }];
    let error = build(&options, std::io::sink()).unwrap_err().to_string();
    assert!(error.starts_with("copy: an artefact"), "{error}");
}

#[test]
fn an_artifact_needs_exactly_one_wasm_layer() {
    let wasm = (WASM_LAYER, MODULE.to_vec());
    let text = ("text/plain", b"notes".to_vec());
    for (layers, good) in [
        (vec![], false),
        (vec![wasm.clone(), wasm.clone()], false),
        (vec![wasm, text], true),
    ] {
        let mut hand = Hand::default();
        let manifest = hand.image_of(WASM_CONFIG, &json!({}), &layers);
        let module = open(&hand.archive(&[manifest])).unwrap().artifact_module();
        assert_eq!(module.is_ok(), good, "{module:?}");
    }
}

#[test]
fn of_several_platforms_wasm_is_chosen_then_this_host() {
    let with_platform = |mut manifest: Value, os: &str, architecture: &str| {
        manifest["platform"] = json!({"os": os, "architecture": architecture});
        manifest
    };
    let host = Platform::host();
    let mut hand = Hand::default();
    let wasm = hand.image_of(WASM_CONFIG, &json!({}), &[(WASM_LAYER, MODULE.to_vec())]);
    let linux = hand.image(&[]);
    let unknown = with_platform(
        hand.blob(MANIFEST, b"attestation".to_vec()),
        "unknown",
        "unknown",
    );
    let foreign = with_platform(hand.blob(MANIFEST, b"foreign".to_vec()), "linux", "s390x");
    let linux = with_platform(linux, &host.os, &host.architecture);
    let wasm = with_platform(wasm, "wasip1", "wasm");
    let files = hand.files.clone();
    for (manifests, kind) in [
        (
            vec![unknown.clone(), foreign.clone(), linux.clone(), wasm],
            Some(ImageKind::Artifact),
        ),
        (
            vec![unknown.clone(), foreign.clone(), linux],
            Some(ImageKind::Image),
        ),
        (vec![unknown, foreign], None),
        (vec![], None),
    ] {
        let archive = Hand {
            files: files.clone(),
        }
        .archive(&manifests);
        assert_eq!(open(&archive).map(|archive| archive.kind()).ok(), kind);
    }
}

#[test]
fn an_archive_of_several_images_is_refused_with_their_names() {
    let mut hand = Hand::default();
    let image = hand.image(&[]);
    let named = |name: &str| {
        let mut image = image.clone();
        image["annotations"] = json!({"io.containerd.image.name": name});
        image
    };
    let archive = hand.archive(&[named("a:1"), named("b:1")]);
    assert_eq!(
        open(&archive).unwrap_err().to_string().split(';').next(),
        Some("the archive holds several images (a:1, b:1)")
    );
}

#[test]
fn indexes_that_multiply_are_bounded() {
    let mut hand = Hand::default();
    let mut below = hand.image(&[]);
    for _ in 0..8 {
        let index = json!({"schemaVersion": 2, "manifests": vec![&below; 100]}).to_string();
        below = hand.blob(crate::oci::INDEX, index.into_bytes());
    }
    let error = open(&hand.archive(&[below])).unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::TooLarge {
                limit: crate::MAX_MANIFESTS,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn any_flipped_byte_in_a_blob_is_found() {
    for kind in [ImageKind::Image, ImageKind::Artifact] {
        let whole = built(kind);
        let manifest = open(&whole).unwrap().manifest().clone();
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            let mut damaged = whole.clone();
            let content = blob_content(&whole, &blob.digest);
            damaged[content] ^= 1;
            let result = open(&damaged).and_then(|mut archive| match kind {
                ImageKind::Image => archive
                    .unpack(tempfile::tempdir().unwrap().path(), u64::MAX)
                    .map(drop),
                ImageKind::Artifact => archive.artifact_module().map(drop),
            });
            assert!(
                matches!(&result, Err(ImageError::DamagedBlob { digest, .. }) if *digest == blob.digest),
                "{result:?}"
            );
        }
    }
}

/// Where a blob's contents begin.
fn blob_content(archive: &[u8], digest: &Digest) -> usize {
    let mut archive = tar::Archive::new(archive);
    let mut entries = archive.entries().unwrap().map(Result::unwrap);
    let entry = entries
        .find(|entry| entry.path().unwrap().ends_with(digest.to_string()))
        .unwrap();
    entry.raw_file_position() as usize
}

#[test]
fn a_missing_or_shortened_blob_is_named() {
    let mut hand = Hand::default();
    let manifest = hand.image_of(WASM_CONFIG, &json!({}), &[(WASM_LAYER, MODULE.to_vec())]);
    let layer = hand
        .files
        .iter()
        .position(|(_, bytes)| bytes == MODULE)
        .unwrap();
    let mut short = Hand {
        files: hand.files.clone(),
    };
    short.files[layer].1.pop();
    let error = open(&short.archive(std::slice::from_ref(&manifest)))
        .unwrap()
        .artifact_module()
        .unwrap_err();
    assert!(
        error.to_string().contains("it has 7 bytes instead of 8"),
        "{error}"
    );
    hand.files.remove(layer);
    let error = open(&hand.archive(&[manifest]))
        .unwrap()
        .artifact_module()
        .unwrap_err();
    assert!(
        matches!(error, ImageError::MissingBlob(digest) if digest == Digest::of(MODULE)),
        "{error}"
    );
}

#[test]
fn every_truncation_of_an_archive_is_refused() {
    let whole = built(ImageKind::Artifact);
    // index.json is the last file, padded to 512, followed by two empty blocks.
    let end = whole.len() - 1024 - 512;
    for length in (0..end).step_by(97).chain([1, 511, 512, end]) {
        let result = open(&whole[..length]).and_then(|mut archive| archive.artifact_module());
        assert!(result.is_err(), "{length}");
    }
}

#[test]
fn other_files_are_no_archives() {
    let docker = tar_of(&[file("manifest.json", "[]")]);
    for bytes in [
        &b""[..],
        MODULE,
        b"PK\x03\x04",
        &gzip(&built(ImageKind::Image)),
        &docker,
    ] {
        let error = open(bytes).unwrap_err();
        assert!(matches!(error, ImageError::NotAnArchive(_)), "{error}");
    }
}

#[test]
fn an_image_takes_no_more_room_than_there_is() {
    let file = |name, text| (EntryType::Regular, name, text);
    let unpacks = |layers: &[&[Entry<'_>]], room| {
        let dir = tempfile::tempdir().unwrap();
        let unpacked = open(&image_of(layers)).unwrap().unpack(dir.path(), room);
        unpacked.map(drop).map_err(|e| e.to_string())
    };
    let none = Err("unpacking the image takes more than there is room for".to_string());
    const FILE: u64 = 16 << 10;
    let bytes: &[&[Entry<'_>]] = &[
        &[file("six", "123456"), file("four", "1234")],
        &[file("one", "1")],
    ];
    assert_eq!(unpacks(bytes, 3 * FILE + 11), Ok(()));
    assert_eq!(unpacks(bytes, 3 * FILE + 10), none);
    // What is empty takes room, too, and so does what an entry's path implies.
    let empty: &[&[Entry<'_>]] = &[&[dir("a"), (EntryType::Symlink, "b", "a"), file("c/d/e", "")]];
    assert_eq!(unpacks(empty, 5 * FILE), Ok(()));
    assert_eq!(unpacks(empty, 5 * FILE - 1), none);
    // What an upper layer deletes was there before.
    let replaced: &[&[Entry<'_>]] = &[&[file("a", "1")], &[file("a", "2")]];
    assert_eq!(unpacks(replaced, 2 * FILE + 1), none);
}

#[test]
fn documents_that_are_not_of_the_specification_are_named() {
    let mut hand = Hand::default();
    let manifest = hand.blob(MANIFEST, b"{\"schemaVersion\": 2}".to_vec());
    let error = open(&hand.archive(&[manifest])).unwrap_err().to_string();
    assert!(
        error.contains("the image's manifest") && error.contains("missing field `config`"),
        "{error}"
    );

    let mut hand = Hand::default();
    let manifest = hand.blob(MANIFEST, vec![b' '; crate::MAX_JSON_BYTES as usize + 1]);
    assert!(matches!(
        open(&hand.archive(&[manifest])).unwrap_err(),
        ImageError::TooLarge { .. }
    ));

    let md5 = json!({"mediaType": MANIFEST, "digest": "md5:00", "size": 1});
    let error = open(&Hand::default().archive(&[md5]))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("index.json") && error.contains("sha256:"),
        "{error}"
    );
}

#[test]
fn null_lists_of_a_config_are_empty() {
    let json = br#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":null,"Cmd":["a"],"Env":null},"rootfs":null}"#;
    let process = ImageConfig::parse(json).unwrap().process;
    assert_eq!(
        process,
        ProcessConfig {
            cmd: vec!["a".to_owned()],
            ..ProcessConfig::default()
        }
    );
    let digest = Digest::of(b"");
    let json = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"x","digest":"sha256:{digest}","size":0}},"layers":null}}"#
    );
    assert!(Manifest::parse(json.as_bytes()).unwrap().layers.is_empty());
}

#[test]
fn layers_lie_on_top_of_each_other() {
    let (dir, unpacked) = unpack(&[
        &[
            dir("a"),
            file("a/old", "1"),
            file("a/both", "1"),
            file("dir-to-file/x", "1"),
            file("file-to-dir", "1"),
        ],
        &[
            file("a/both", "2"),
            file("a/new", "2"),
            file("dir-to-file", "2"),
            dir("file-to-dir"),
            file("file-to-dir/y", "2"),
        ],
    ]);
    assert_eq!(unpacked.unwrap().files, 10);
    let listing = listing(&dir);
    assert_eq!(
        pairs(&listing),
        [
            ("a", ""),
            ("a/both", "2"),
            ("a/new", "2"),
            ("a/old", "1"),
            ("dir-to-file", "2"),
            ("file-to-dir", ""),
            ("file-to-dir/y", "2")
        ]
    );
}

#[test]
fn whiteouts_delete_from_lower_layers_only() {
    let (dir, unpacked) = unpack(&[
        &[
            file("a/x", "1"),
            file("a/y", "1"),
            file("b/x", "1"),
            file("b/sub/z", "1"),
            file("c", "1"),
        ],
        // The files of this layer stay, whether they come before or after the whiteout that covers them.
        &[
            file("b/new", "2"),
            file("b/.wh..wh..opq", ""),
            file("a/.wh.x", ""),
            file("c", "2"),
            file(".wh.c", ""),
            file("b/x", "2"),
        ],
    ]);
    unpacked.unwrap();
    let listing = listing(&dir);
    assert_eq!(
        pairs(&listing),
        [
            ("a", ""),
            ("a/y", "1"),
            ("b", ""),
            ("b/new", "2"),
            ("b/x", "2"),
            ("c", "2")
        ]
    );
}

#[test]
fn links_are_followed_inside_the_root_only() {
    let (dir, unpacked) = unpack(&[
        &[
            dir("usr"),
            dir("usr/bin"),
            link("bin", "usr/bin"),
            link("abs", "/usr"),
            link("up", "../../../../usr"),
            file("one", "1"),
        ],
        &[
            file("bin/tool", "2"),
            file("abs/abs", "2"),
            file("up/up", "2"),
            (EntryType::Link, "usr/two", "/one"),
        ],
    ]);
    unpacked.unwrap();
    let listing = listing(&dir);
    assert_eq!(
        pairs(&listing),
        [
            ("abs", ""),
            ("bin", ""),
            ("one", "1"),
            ("up", ""),
            ("usr", ""),
            ("usr/abs", "2"),
            ("usr/bin", ""),
            ("usr/bin/tool", "2"),
            ("usr/two", "1"),
            ("usr/up", "2"),
        ]
    );
}

#[test]
fn nothing_of_a_hostile_layer_leaves_the_root() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let outside_dir = outside.path().to_str().unwrap();
    let secret = format!("{outside_dir}/secret");
    let hostile: [(&[&[Entry<'_>]], &str); 10] = [
        (&[&[file("../evil", "x")]], "contains `..`"),
        (&[&[file("a/../../evil", "x")]], "contains `..`"),
        (&[&[file("/../evil", "x")]], "contains `..`"),
        (
            &[&[(EntryType::Link, "stolen", &secret)]],
            "which is no file",
        ),
        (
            &[&[(EntryType::Link, "stolen", "../../secret")]],
            "contains `..`",
        ),
        (&[&[(EntryType::Link, "self", "self")]], "which is no file"),
        (
            &[&[link("loop", "loop"), file("loop/x", "x")]],
            "too many symbolic links",
        ),
        (
            &[&[file("plain", "x"), file("plain/x", "x")]],
            "is not a directory",
        ),
        (&[&[], &[file("a/.wh...", "")]], "deletes no file"),
        (&[&[], &[file(".wh.", "")]], "deletes no file"),
    ];
    for (layers, says) in hostile {
        let (dir, unpacked) = unpack(layers);
        let error = unpacked.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        let around: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(around, ["root"], "{says}");
    }

    // Through links that leave the root: written and deleted inside it.
    let write = file("out/secret", "overwritten");
    for layers in [
        vec![vec![link("out", outside_dir), write]],
        vec![vec![link("out", outside_dir)], vec![write]],
        vec![
            vec![link("out", outside_dir)],
            vec![file("out/.wh.secret", ""), file("out/.wh..wh..opq", "")],
        ],
        vec![
            vec![link("secret", &secret)],
            vec![file("secret", "replaces the link")],
        ],
    ] {
        let layers: Vec<&[Entry<'_>]> = layers.iter().map(Vec::as_slice).collect();
        let (_dir, unpacked) = unpack(&layers);
        unpacked.unwrap();
        assert_eq!(
            fs::read_to_string(outside.path().join("secret")).unwrap(),
            "secret"
        );
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_link_already_in_the_directory_is_not_followed_out_of_it() {
    let outside = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    symlink(outside.path(), root.path().join("out")).unwrap();
    open(&image_of(&[&[file("out/x", "x")]]))
        .unwrap()
        .unpack(root.path(), u64::MAX)
        .unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn privileged_bits_and_devices_are_left_out() {
    let (dir, unpacked) = unpack(&[&[
        dir("d"),
        file("f", "x"),
        (EntryType::Char, "null", ""),
        (EntryType::Fifo, "pipe", ""),
        (EntryType::XGlobalHeader, "pax", ""),
    ]]);
    let unpacked = unpacked.unwrap();
    assert_eq!(
        (unpacked.files, unpacked.bytes, unpacked.skipped),
        (2, 1, 2)
    );
    for name in ["d", "f"] {
        let metadata = fs::metadata(dir.path().join("root").join(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o755, "{name}");
    }
    assert_eq!(
        fs::metadata(dir.path().join("root/f")).unwrap().mtime(),
        1_000_000_000
    );
}

#[test]
fn gzip_layers_unpack_and_other_compressions_are_refused_by_name() {
    let layer = tar_of(&[file("x", "1")]);
    let cut = gzip(&layer);
    for (media_type, bytes, says) in [
        (GZIP_LAYER, gzip(&layer), None),
        (
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            gzip(&layer),
            None,
        ),
        (
            GZIP_LAYER,
            cut[..cut.len() / 2].to_vec(),
            Some("layer 0: reading its tar file"),
        ),
        // All its files are there.
        (
            GZIP_LAYER,
            cut[..cut.len() - 1].to_vec(),
            Some("layer 0: reading its tar file"),
        ),
        (
            GZIP_LAYER,
            layer.clone(),
            Some("layer 0: reading its tar file"),
        ),
        (
            "application/vnd.oci.image.layer.v1.tar+zstd",
            zstd(&layer),
            None,
        ),
        (
            "application/vnd.oci.image.layer.v1.tar+zstd",
            layer.clone(),
            Some("layer 0: reading its tar file"),
        ),
        (
            "application/vnd.oci.image.layer.v1.tar+xz",
            layer.clone(),
            Some("compression=gzip"),
        ),
    ] {
        let mut hand = Hand::default();
        let manifest = hand.image(&[(media_type, bytes)]);
        let dir = tempfile::tempdir().unwrap();
        let unpacked = open(&hand.archive(&[manifest]))
            .unwrap()
            .unpack(dir.path(), u64::MAX);
        match says {
            None => assert_eq!(fs::read_to_string(dir.path().join("x")).unwrap(), "1"),
            Some(says) => {
                let error = unpacked.unwrap_err().to_string();
                assert!(error.contains(says), "{error}");
            }
        }
    }
}

/// What [`ModuleWriter`] makes of a layer that arrives in small pieces.
fn unpacked(layer: &[u8]) -> Result<Vec<u8>, ImageError> {
    let mut module = Vec::new();
    let mut writer = ModuleWriter::new(&mut module);
    layer
        .chunks(3)
        .try_for_each(|piece| writer.write_all(piece))
        .unwrap();
    writer.finish().map(|()| module)
}

#[test]
fn a_modules_layer_is_unpacked_if_and_as_it_was_compressed() {
    let module = [&b"\0asm\x01\0\0\0"[..], &[7; 100_000]].concat();
    let skippable = [&b"\x50\x2a\x4d\x18\x03\0\0\0abc"[..], &zstd(&module)].concat();
    let halves = module.split_at(module.len() / 2);
    for layer in [
        module.clone(),
        gzip(&module),
        [gzip(halves.0), gzip(halves.1)].concat(),
        zstd(&module),
        [zstd(halves.0), zstd(halves.1)].concat(),
        [zstd(&module), skippable[..11].to_vec()].concat(),
    ] {
        assert_eq!(unpacked(&layer).unwrap(), module);
    }
    for short in [&b""[..], b"(", b"\0as"] {
        assert_eq!(unpacked(short).unwrap(), short);
    }
}

#[test]
fn an_archives_module_may_be_compressed_whatever_its_type_says() {
    let module = b"\0asm\x01\0\0\0";
    for (media_type, layer) in [
        ("application/wasm", gzip(module)),
        ("application/wasm", zstd(module)),
        ("application/wasm+gzip", gzip(module)),
        ("application/wasm+zstd", zstd(module)),
    ] {
        let mut hand = Hand::default();
        let manifest = hand.image(&[(media_type, layer)]);
        let bytes = hand.archive(&[manifest]);
        let mut archive = open(&bytes).unwrap();
        assert_eq!(archive.kind(), ImageKind::Artifact);
        assert_eq!(archive.artifact_module().unwrap(), module);
    }
}

#[test]
fn a_modules_layer_that_does_not_unpack_or_to_too_much_is_refused() {
    let module = [7; 100_000];
    for (how, whole) in [("gzip", gzip(&module)), ("zstd", zstd(&module))] {
        let error = unpacked(&whole[..whole.len() - 3]).unwrap_err().to_string();
        assert!(error.contains(&format!("compressed with {how}")), "{error}");
    }
    // A frame of a window of 128 KiB; each block is one byte, repeated as often.
    let block = [0x02_u8, 0x00, 0x10, b'x'];
    let mut bomb = b"\x28\xb5\x2f\xfd\x00\x38".to_vec();
    bomb.extend(block.repeat((MAX_MODULE_BYTES >> 17) as usize + 4));
    let error = unpacked(&bomb).unwrap_err().to_string();
    assert!(
        error.contains("more than the 268435456 bytes allowed"),
        "{error}"
    );
}

#[test]
fn a_long_name_of_any_size_costs_bounded_memory() {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(64 << 20);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append(
            &header,
            std::io::Read::take(std::io::repeat(b'a'), 64 << 20),
        )
        .unwrap();
    let bomb = builder.into_inner().unwrap();
    let error = open(&bomb).unwrap_err().to_string();
    assert!(error.contains("more data than allowed"), "{error}");

    let mut hand = Hand::default();
    let manifest = hand.image(&[(GZIP_LAYER, gzip(&bomb))]);
    let dir = tempfile::tempdir().unwrap();
    let error = open(&hand.archive(&[manifest]))
        .unwrap()
        .unpack(dir.path(), u64::MAX)
        .unwrap_err();
    assert!(
        format!("{error:?}").contains("more data than allowed"),
        "{error:?}"
    );
}
