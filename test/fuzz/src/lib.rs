//! What Slipway makes of bytes from outside, a function for each kind of them. None may panic, hang, or use memory out
//! of proportion, and each asserts what must hold of the result.
//!
//! A fuzzer calls them (`fuzz_targets`), and `cargo test` with each of the `seeds`: inputs that reach far, and all that were
//! once found to be answered wrongly.

use std::fs::{self, File};
use std::io::{Cursor, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedOutputStream, Message};
use sha2::{Digest as _, Sha256};
use slipway_cache::{Key, Lookup, Options, Store, Tier};
use slipway_image::{ImageConfig, ImageError, Index, Manifest, open_archive};
use slipway_module::{Digest, Entrypoint, Kind};
use slipway_protocol::{Budget, Facts, FromGuest, Launch, Packet, Purpose};
use slipway_systemd::{Call, Systemd};

// Neither is public: the one is of a program, the other of a crate that has a better door. Their files are this crate's, too.
#[path = "../../../shim/install/src/config/mod.rs"]
mod config;
#[path = "../../../shim/shim/src/handler.rs"]
mod handler;

use config::{Effective, Handlers, Ours};

/// Whoever asks for more ends the process, whether it is touched or not: inputs are some kilobytes.
#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, 256 << 20);

/// What an input is given to.
pub type Target = fn(&[u8]);

/// All targets by their names, which are those of the fuzzers and of the directories of seeds.
pub const TARGETS: &[(&str, Target)] = &[
    ("archive", archive),
    ("cache_entry", cache_entry),
    ("containerd_config", containerd_config),
    ("handler_options", handler_options),
    ("image_json", image_json),
    ("layer", layer),
    ("message", message),
    ("module", module),
    ("names", names),
    ("queue_record", queue_record),
    ("reference", reference),
    ("spec", spec),
    ("systemd", systemd),
];

/// Parts of an input with several, divided by bytes that none of their formats has.
const DIVIDER: u8 = 0xff;

fn parts<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut parts = data.splitn(N, |byte| *byte == DIVIDER);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// A module of an image, as the checker sees it before any engine does.
pub fn module(data: &[u8]) {
    let info = slipway_module::inspect(data);
    let prepared = slipway_module::prepare(data);
    assert_eq!(prepared.is_ok(), info.problems.is_empty());
    if let Ok(prepared) = prepared {
        // What the engine gets is a binary module that passes again, and is stripped already.
        assert!(matches!(Kind::sniff(&prepared.stripped), Kind::CoreModule));
        let again = slipway_module::prepare(&prepared.stripped).expect("what is stripped passes");
        assert_eq!(again.stripped, prepared.stripped);
        assert_eq!(
            again.info.min_memory_bytes(),
            prepared.info.min_memory_bytes()
        );
        let _ = prepared.info.check_entry("_start", Some(0));
        names(&slipway_protocol::encode_names(
            prepared
                .names
                .iter()
                .map(|(index, name)| (*index, name.as_str())),
        ));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Entrypoint::parse(text).func();
        let _ = Digest::from_oci(text);
    }
}

/// config.json of a bundle, an exec's process, and the resources of an update.
pub fn spec(data: &[u8]) {
    let [config, process, resources] = parts(data);
    if let Ok(plan) = slipway_spec::parse(config) {
        let _ = plan.resources.memory_budget();
        if let Ok(exec) = plan.exec(process) {
            assert_eq!(
                exec.resources.memory_budget(),
                plan.resources.memory_budget()
            );
        }
    }
    let _ = slipway_spec::parse_resources(resources);
    let bundle = Scratch::new();
    bundle.write("config.json", config);
    let _ = slipway_spec::preview(bundle.path());
}

/// What a guest or a compiler says on its socket, and what a guest makes of its budget's page. Both may be under a hostile module's control.
pub fn message(data: &[u8]) {
    comes_back::<FromGuest>(data);
    comes_back::<Facts>(data);
    comes_back::<Purpose>(data);
    let _: Result<Launch, _> = slipway_protocol::read_launch(file_of(data));

    let limit = Some(1 << 30);
    let budget = Budget::new(limit).expect("a budget");
    let share = budget.share().expect("a share");
    // A guest may write to all of the page.
    rustix::io::pwrite(share.as_fd(), &data[..data.len().min(GUESTS_BYTES)], 0).expect("written");
    let usage = share.read().expect("usage");
    let all = budget.read().expect("usage");
    assert_eq!(
        (all.limit, all.used, all.peak),
        (limit, usage.used, usage.peak)
    );
    if let Some(refusal) = share.refusal() {
        assert_eq!(Some(refusal.limit), limit);
    }
}

/// What an image may unpack to in bytes.
const ROOM: u64 = 1 << 30;
/// So much of a budget's page is written, in bytes.
const GUESTS_BYTES: usize = 4096;

/// A message that is one is the same when it has been sent on.
fn comes_back<T: serde::Serialize + serde::de::DeserializeOwned>(data: &[u8]) {
    if let Ok(message) = packet(data).message::<T>() {
        let bytes =
            slipway_protocol::encode(&message).expect("what came in a packet fits into one");
        let again = packet(&bytes)
            .message::<T>()
            .expect("what is encoded is decoded");
        assert_eq!(slipway_protocol::encode(&again).expect("encoded"), bytes);
    }
}

fn packet(bytes: &[u8]) -> Packet {
    let (host, guest) = slipway_protocol::pair().expect("a pair");
    let bytes = &bytes[..bytes.len().min(slipway_protocol::MAX_PACKET)];
    // An empty packet is the end of the connection.
    let bytes = if bytes.is_empty() { &[0][..] } else { bytes };
    assert_eq!(rustix::io::write(&guest, bytes), Ok(bytes.len()));
    slipway_protocol::recv_packet(host.as_fd()).expect("a packet")
}

fn file_of(data: &[u8]) -> OwnedFd {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(data).expect("written");
    file.rewind().expect("rewound");
    file.into()
}

/// The table of functions' names behind an artefact, which a compiler under a module's control has written.
pub fn names(data: &[u8]) {
    let read = |buffer: &mut [u8], at: u64| {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let bytes = data.get(at..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    };
    for function in [0, 1, 7, u32::MAX] {
        let _ = slipway_protocol::find_name(read, function);
    }
}

/// An image's archive, byte for byte.
pub fn archive(data: &[u8]) {
    let Ok(mut archive) = open_archive(Cursor::new(data)) else {
        return;
    };
    let _ = (
        archive.name(),
        archive.kind(),
        archive.config().process.argv(),
    );
    let _ = archive.artifact_module();
    unpacks_into_its_directory(|root| archive.unpack(root, ROOM).map(drop));
}

/// A layer's tar, in an archive that is right otherwise. The first byte chooses its compression.
pub fn layer(data: &[u8]) {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    let layer = ["", "+gzip", "+zstd"][usize::from(first % 3)];
    let archive = archive_of(
        &format!("application/vnd.oci.image.layer.v1.tar{layer}"),
        data,
    );
    unpacks_into_its_directory(|root| {
        open_archive(Cursor::new(&archive))?
            .unpack(root, ROOM)
            .map(drop)
    });
}

/// Whatever an image has in it, nothing beside its directory changes: neither near it, nor where the links of the seeds lead.
fn unpacks_into_its_directory(unpack: impl FnOnce(&Path) -> Result<(), ImageError>) {
    let scratch = Scratch::new();
    let root = scratch.path().join("a/b/root");
    fs::create_dir_all(&root).expect("a directory");
    for beside in ["beside", "a/beside", "a/b/beside"] {
        scratch.write(beside, b"untouched");
    }
    let outside = Path::new(OUTSIDE);
    fs::create_dir_all(outside).expect("a directory");
    let before = (
        seen_beside(scratch.path(), &root),
        seen_beside(outside, &root),
    );
    let _ = unpack(&root);
    let after = (
        seen_beside(scratch.path(), &root),
        seen_beside(outside, &root),
    );
    assert_eq!(before, after);
}

/// Where absolute links of the seeds lead to.
const OUTSIDE: &str = "/tmp/slipway-fuzz-outside";

/// All that is below a directory, but for what is below another: path, kind and mode, owner, size, when it was changed.
fn seen_beside(directory: &Path, root: &Path) -> Vec<(PathBuf, u32, u32, u64, i64, i64)> {
    let mut seen = Vec::new();
    let mut left = vec![directory.to_path_buf()];
    while let Some(path) = left.pop() {
        if path == root {
            continue;
        }
        let stat = fs::symlink_metadata(&path).expect("it is there");
        if stat.is_dir() {
            let entries = fs::read_dir(&path).expect("readable");
            left.extend(entries.map(|entry| entry.expect("an entry").path()));
        }
        seen.push((
            path,
            stat.mode(),
            stat.uid(),
            stat.size(),
            stat.ctime(),
            stat.ctime_nsec(),
        ));
    }
    seen.sort();
    seen
}

/// An archive with these bytes as two layers: what the second one deletes, the first has made.
fn archive_of(media_type: &str, layer: &[u8]) -> Vec<u8> {
    let digest = |bytes: &[u8]| Digest::of(bytes).to_string();
    let describe = |media_type: &str, bytes: &[u8]| serde_json::json!({"mediaType": media_type, "digest": format!("sha256:{}", digest(bytes)), "size": bytes.len()});
    let architecture = slipway_image::Platform::host().architecture;
    let config = serde_json::json!({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", "0".repeat(64))]}}).to_string();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe("application/vnd.oci.image.config.v1+json", config.as_bytes()), "layers": [describe(media_type, layer), describe(media_type, layer)],
    })
    .to_string();
    let index = serde_json::json!({
        "schemaVersion": 2, "manifests": [describe("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes())],
    })
    .to_string();
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes)
            .expect("into memory");
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    add("index.json", index.as_bytes());
    for blob in [manifest.as_bytes(), config.as_bytes(), layer] {
        add(&format!("blobs/sha256/{}", digest(blob)), blob);
    }
    tar.into_inner().expect("into memory")
}

/// An image's index, manifest and config.
pub fn image_json(data: &[u8]) {
    if let Ok(index) = Index::parse(data) {
        assert_eq!(again(&index, Index::parse), index);
    }
    if let Ok(manifest) = Manifest::parse(data) {
        let _ = (
            manifest.kind(),
            manifest.wasm_layer().map(|layer| layer.verify(data)),
            manifest.wasm_layers().count(),
        );
        assert_eq!(again(&manifest, Manifest::parse), manifest);
    }
    if let Ok(config) = ImageConfig::parse(data) {
        let _ = (config.process.argv(), config.platform());
        assert_eq!(again(&config, ImageConfig::parse), config);
    }
}

/// The document, written and read once more.
fn again<T: serde::Serialize>(document: &T, parse: impl Fn(&[u8]) -> Result<T, ImageError>) -> T {
    parse(&serde_json::to_vec(document).expect("written")).expect("what is written can be read")
}

/// An image's name as a user writes it.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(full) = slipway_image::full_name(text) {
        assert_eq!(
            slipway_image::full_name(&full).expect("a full name is one"),
            full
        );
    }
    if let Ok(reference) = text.parse::<slipway_image::Reference>() {
        let _ = (reference.tag(), reference.short());
    }
}

/// An entry of the cache: payload and description, which are sealed here unless the first byte says no. The name of one processor in it is this
/// machine's.
pub fn cache_entry(data: &[u8]) {
    let _ = is_found(data);
}

/// The same; whether the entry is one that a guest would load.
pub fn is_found(data: &[u8]) -> bool {
    let Some((first, data)) = data.split_first() else {
        return false;
    };
    let dir = Scratch::new();
    let key = Key::new([7; 32], "engine", Tier::Full);
    let mut entry = data.to_vec();
    let mut described = usize::from(*first);
    if let Some(at) = data
        .windows(PROCESSOR.len())
        .position(|bytes| bytes == PROCESSOR)
    {
        let features = slipway_cache::cpu_features();
        described = (described + 1 + features.len()).saturating_sub(PROCESSOR.len());
        entry.splice(
            at..at + PROCESSOR.len(),
            [&[features.len() as u8], features.as_bytes()].concat(),
        );
    }
    if *first != 0 {
        let described = entry.len().min(described);
        entry.extend(Sha256::digest(&entry));
        entry.extend((described as u32).to_le_bytes());
        entry.extend(b"slipway\x01");
    }
    for kind in ["so", "refused"] {
        dir.write(&format!("{}.{kind}", key.file_name()), &entry);
    }
    let store = Store::open(dir.path(), Options { max_bytes: 1 << 30 }).expect("a store");
    let _ = store.list().expect("a list");
    let found = store.lookup(&key).expect("an answer");
    if let Lookup::Hit(artefact) = &found {
        assert_eq!(artefact.meta().key, key);
        assert!(artefact.payload() <= data.len() as u64);
    }
    let is_hit = matches!(found, Lookup::Hit(_));
    // What is held is in use, and stays.
    drop(found);
    store.remove_all().expect("removed");
    assert!(store.list().expect("a list").is_empty());
    is_hit
}

/// In a seed, in the place of the features of a processor: the length of the text, and the text.
const PROCESSOR: &[u8] = b"\x15x86_64-7ffbff7f003ffc";

/// A record of the compile queue. It lies where its job would, with a module of the size that it names; sealed here unless the first byte
/// says no.
pub fn queue_record(data: &[u8]) {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    let dir = Scratch::new();
    let queue = dir.path().join("queue-2");
    fs::create_dir(&queue).expect("a directory");
    fs::set_permissions(&queue, fs::Permissions::from_mode(0o700)).expect("closed");
    let record: Option<slipway_queue::Record> = postcard::from_bytes(data).ok();
    let name = record
        .as_ref()
        .map_or("0".repeat(64), |record| record.key().file_name());
    let size = record.as_ref().map_or(0, |record| record.module.size);
    let mut bytes = Vec::new();
    if *first != 0 {
        bytes.extend(Sha256::digest(data));
    }
    bytes.extend(data);
    fs::write(queue.join(format!("{name}.job")), bytes).expect("written");
    let module = File::create(queue.join(format!("{name}.wasm"))).expect("a file");
    // Not every size is one that a file can have.
    let is_whole = module.set_len(size).is_ok() && *first != 0 && record.is_some();
    let jobs = slipway_queue::list(dir.path());
    assert_eq!(jobs.len(), usize::from(is_whole));
    assert!(jobs.iter().all(|job| job.name == name && !job.compiling));
}

/// containerd's configuration, as the node's administrator has it, and what `containerd config dump` says.
pub fn containerd_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let shim = "/opt/slipway/bin/containerd-shim-slipway-v1";
    let import = Path::new("/etc/containerd/conf.d/slipway.toml");
    let ours = Ours {
        shims: vec![shim.into()],
        names: vec!["slipway".into()],
        imports: vec![import.into()],
    };
    let _ = (
        config::imports(text, Path::new("/etc")),
        config::imported_directories(text, Path::new("/etc")),
    );
    let _ = (
        config::is_drop_in(text),
        config::declares_nothing(text),
        config::is_base_template(text),
    );
    let _ = config::without_secrets(text);
    // One whose section has no end is refused.
    if let Ok(template) = config::add_block(Some(text), "[a]\n") {
        assert_eq!(
            config::add_block(Some(&template), "[a]\n").as_ref(),
            Ok(&template)
        );
        // Its last line may have had no end.
        let removed = config::remove_block(&template);
        assert!(removed.is_ok_and(|left| left.len() <= text.len() + 1));
    }
    let _ = config::absolute_imports(text, Path::new("/etc"));

    let Ok(effective) = Effective::parse(text) else {
        return;
    };
    let _ = (
        effective.address(),
        effective.disabled_cri(),
        effective.programs().count(),
    );
    let handlers = Handlers {
        names: vec!["slipway".into()],
        shim: shim.into(),
        annotations: vec!["slipway.dev/*".into()],
        options: effective.runc_options(),
    };
    if let Ok(added) = handlers.add(text, &effective, &ours) {
        let dump = Effective::parse(&added).expect("what is added to a configuration leaves one");
        assert_eq!(
            handlers
                .add(&added, &dump, &ours)
                .expect("it is added again"),
            added
        );
        assert_eq!(effective.difference(&dump, &ours.names, &ours), None);
        let schema = config::Schema::of(text).expect("the version is known");
        Effective::parse(&handlers.drop_in(schema)).expect("a file of its own is a configuration");
        let removed = config::remove(&added, &ours).expect("it is taken out again");
        assert!(!ours.are_in(&removed) || ours.are_in(text), "{removed}");
    }
    if let Ok(added) = config::add_import(text, import) {
        assert!(
            config::imports(&added, Path::new("/etc"))
                .iter()
                .any(|path| path == import)
        );
        let removed = config::remove(&added, &ours).expect("it is taken out again");
        assert!(
            !config::imports(&removed, Path::new("/etc"))
                .iter()
                .any(|path| path == import)
        );
    }
}

/// Options of a handler as containerd hands them over; the first byte chooses their type.
pub fn handler_options(data: &[u8]) {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    let any = match first % 3 {
        // Any bytes for the whole message.
        0 => match Any::parse_from_bytes(data) {
            Ok(any) => any,
            Err(_) => return,
        },
        // The TOML of a handler's table.
        1 => {
            let mut value = Vec::new();
            let mut message = CodedOutputStream::vec(&mut value);
            message.write_bytes(3, data).expect("into memory");
            drop(message);
            Any {
                type_url: "runtimeoptions.v1.Options".into(),
                value,
                ..Any::default()
            }
        }
        _ => Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: data.to_vec(),
            ..Any::default()
        },
    };
    let _ = handler::is_options(&any);
    let _ = handler::cache_bytes(&any);
    if let Ok(options) = handler::runc_options(any.clone()) {
        assert!(options.type_url.ends_with("containerd.runc.v1.Options") || options == any);
    }
}

/// systemd's side of its private socket.
pub fn systemd(data: &[u8]) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let answers = data.to_vec();
    let peer = std::thread::spawn(move || {
        let mut socket = &theirs;
        let _ = socket.write_all(&answers);
        let _ = theirs.shutdown(std::net::Shutdown::Write);
        // Else a call would meet a closed socket.
        let _ = socket.read_to_end(&mut Vec::new());
    });
    let mut systemd = Systemd::over(ours).expect("deadlines");
    let _ = systemd.state("a.service");
    let _ = systemd.main_pid("a.service");
    let _ = systemd.call(&Call::stop_unit("a.scope"));
    drop(systemd);
    peer.join().expect("the peer does not panic");
}

/// A directory that is root's alone, and goes with the value.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        // In memory where that is: a fuzzer makes many.
        let parent = Path::new("/dev/shm");
        let made = if parent.is_dir() {
            tempfile::tempdir_in(parent)
        } else {
            tempfile::tempdir()
        };
        let made = made.expect("a directory");
        fs::set_permissions(made.path(), fs::Permissions::from_mode(0o700)).expect("closed");
        Self(made)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path().join(name), bytes).expect("written");
    }
}
