//! Behaviour of the store, seen from outside wherever that is possible. Needs root, as the store does.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use slipway_protocol::Facts;
use tempfile::TempDir;

use crate::*;

const ENGINE: &str = "wasmedge-0.0.0";
const PLENTY: Options = Options { max_bytes: 1 << 30 };

fn key(number: u8) -> Key {
    Key::new([number; 32], ENGINE, Tier::Full)
}

/// Held while a child has not executed its program yet: until then it has copies of all descriptors, and an entry of another test's counts
/// as in use, so that it is not removed.
static BIRTHS: RwLock<()> = RwLock::new(());

fn no_births() -> RwLockReadGuard<'static, ()> {
    BIRTHS.read().unwrap_or_else(PoisonError::into_inner)
}

/// A store in a directory of its own, which disappears with it.
struct Fixture {
    temp: TempDir,
    store: Store,
    no_births: Option<RwLockReadGuard<'static, ()>>,
}

impl Fixture {
    fn new(options: Options) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path().join("cache"), options).unwrap();
        let no_births = Some(no_births());
        Self {
            temp,
            store,
            no_births,
        }
    }

    /// Starts a child, when no other test is in the middle of something.
    fn spawn(&mut self, command: &mut Command) -> Child {
        self.no_births = None;
        let birth = BIRTHS.write().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn().unwrap();
        drop(birth);
        self.no_births = Some(no_births());
        child
    }

    fn dir(&self) -> PathBuf {
        self.temp.path().join("cache")
    }

    fn file(&self, key: &Key, suffix: &str) -> PathBuf {
        self.dir().join(format!("{}{suffix}", key.file_name()))
    }

    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// Makes an entry look as if it was last used so many seconds ago; returns when that was.
    fn age(&self, key: &Key, suffix: &str, seconds: u64) -> SystemTime {
        let then = SystemTime::now() - Duration::from_secs(seconds);
        let file = File::open(self.file(key, suffix)).unwrap();
        file.set_modified(then).unwrap();
        file.metadata().unwrap().modified().unwrap()
    }
}

fn payload(bytes: usize) -> Vec<u8> {
    let mut payload: Vec<u8> = (0..bytes).map(|i| (i * 7) as u8).collect();
    payload[..4].copy_from_slice(b"\x7fELF");
    payload
}

fn facts() -> Facts {
    Facts {
        memories: vec![65536, 0],
        names: 12,
    }
}

fn insert(store: &Store, key: &Key, bytes: usize) -> Result<Artefact, Error> {
    let lock = store.lock(key).unwrap();
    let pending = store.pending(&lock).unwrap();
    pending.file().write_all_at(&payload(bytes), 0).unwrap();
    store.insert(&lock, pending, "app.wasm", facts())
}

fn hit(store: &Store, key: &Key) -> Artefact {
    match store.lookup(key).unwrap() {
        Lookup::Hit(artefact) => artefact,
        other => panic!("{other:?}"),
    }
}

/// What a miss says about damage.
fn miss(store: &Store, key: &Key) -> Option<String> {
    match store.lookup(key).unwrap() {
        Lookup::Miss { damaged } => damaged,
        other => panic!("{other:?}"),
    }
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn an_artefact_is_found_by_its_key_and_by_no_other() {
    let f = Fixture::new(PLENTY);
    assert_eq!(miss(&f.store, &key(1)), None);
    insert(&f.store, &key(1), 10_000).unwrap();
    let artefact = hit(&f.store, &key(1));
    assert_eq!(
        fs::read(artefact.path()).unwrap()[..10_000],
        payload(10_000)
    );
    assert_eq!(
        (artefact.meta().key.clone(), artefact.meta().origin.as_str()),
        (key(1), "app.wasm")
    );
    assert_eq!(*artefact.facts(), facts());
    assert_eq!(artefact.payload(), 10_000);
    let others = [
        key(2),
        Key {
            tier: Tier::Quick,
            ..key(1)
        },
        Key {
            engine: "wasmedge-0.0.1".into(),
            ..key(1)
        },
        Key {
            cpu: "x86_64-0".into(),
            ..key(1)
        },
    ];
    for other in others {
        assert_eq!(miss(&f.store, &other), None, "{other:?}");
    }
}

#[test]
fn the_name_of_a_key_is_the_same_in_every_build() {
    let key = Key {
        module: [7; 32],
        engine: ENGINE.into(),
        cpu: "x86_64-ff".into(),
        tier: Tier::Quick,
    };
    assert_eq!(
        key.file_name(),
        "3b7dcebb5a6760f2af3e1532b948b938a9a1b6bc9374ecb6e81ddefa5d785d38"
    );
}

#[test]
fn an_artefact_is_readable_by_everyone_and_owned_by_no_container() {
    let f = Fixture::new(PLENTY);
    let artefact = insert(&f.store, &key(1), 5000).unwrap();
    let stat = artefact.file().metadata().unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.uid()), (0o444, u32::MAX - 1));
    assert!(
        artefact.file().write_at(b"x", 0).is_err(),
        "open for reading only"
    );
}

#[test]
fn the_compilers_descriptor_cannot_change_what_was_inserted() {
    let f = Fixture::new(PLENTY);
    let lock = f.store.lock(&key(1)).unwrap();
    let pending = f.store.pending(&lock).unwrap();
    let compiler = pending.file().try_clone().unwrap();
    compiler.write_all_at(&payload(5000), 0).unwrap();
    let artefact = f.store.insert(&lock, pending, "", facts()).unwrap();
    compiler.write_all_at(&[0; 5000], 0).unwrap();
    assert_eq!(fs::read(artefact.path()).unwrap()[..5000], payload(5000));
}

#[test]
fn what_is_no_elf_file_is_not_inserted() {
    let f = Fixture::new(PLENTY);
    let lock = f.store.lock(&key(1)).unwrap();
    for bytes in [&b""[..], b"\x7fEL", b"#!/bin/sh\n"] {
        let pending = f.store.pending(&lock).unwrap();
        pending.file().write_all_at(bytes, 0).unwrap();
        let error = f.store.insert(&lock, pending, "", facts()).unwrap_err();
        assert!(
            matches!(error, Error::NotAnArtefact { bytes: b } if b == bytes.len() as u64),
            "{error}"
        );
    }
    let pending = f.store.pending(&lock).unwrap();
    pending.file().set_len(MAX_ARTEFACT_BYTES + 1).unwrap();
    let error = f.store.insert(&lock, pending, "", facts()).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    assert_eq!(miss(&f.store, &key(1)), None);
}

#[test]
fn a_flipped_byte_anywhere_is_found_and_the_entry_removed() {
    let f = Fixture::new(PLENTY);
    let bytes = {
        insert(&f.store, &key(1), 5000).unwrap();
        fs::metadata(f.file(&key(1), ".so")).unwrap().len()
    };
    // Payload, description, checksum, length, magic.
    for at in [0, 4999, 5000, 5040, bytes - 44, bytes - 12, bytes - 1] {
        insert(&f.store, &key(1), 5000).unwrap();
        flip(&f.file(&key(1), ".so"), at);
        let damage = miss(&f.store, &key(1)).unwrap_or_else(|| panic!("byte {at} of {bytes}"));
        assert!(damage.contains(&key(1).file_name()), "{damage}");
        assert!(!f.file(&key(1), ".so").exists(), "byte {at}");
        assert_eq!(miss(&f.store, &key(1)), None, "told once");
    }
    insert(&f.store, &key(1), 5000).unwrap();
    hit(&f.store, &key(1));
}

#[test]
fn a_truncated_or_emptied_artefact_is_removed() {
    let f = Fixture::new(PLENTY);
    for length in [0, 1, 30, 4096, 5000] {
        insert(&f.store, &key(1), 5000).unwrap();
        OpenOptions::new()
            .write(true)
            .open(f.file(&key(1), ".so"))
            .unwrap()
            .set_len(length)
            .unwrap();
        assert!(miss(&f.store, &key(1)).is_some(), "{length}");
        assert!(!f.file(&key(1), ".so").exists(), "{length}");
    }
}

#[test]
fn an_artefact_of_another_module_or_a_symlink_in_its_place_is_damage() {
    let f = Fixture::new(PLENTY);
    insert(&f.store, &key(1), 5000).unwrap();
    fs::rename(f.file(&key(1), ".so"), f.file(&key(2), ".so")).unwrap();
    assert!(miss(&f.store, &key(2)).unwrap().contains("another module"));
    symlink("/bin/true", f.file(&key(3), ".so")).unwrap();
    assert!(miss(&f.store, &key(3)).unwrap().contains("symbolic link"));
    assert!(!f.file(&key(3), ".so").is_symlink());
}

#[test]
fn a_verified_artefact_is_not_hashed_again_until_it_changes() {
    let f = Fixture::new(PLENTY);
    insert(&f.store, &key(1), 5000).unwrap();
    // A change of the bytes and, as no change could, a note that this very file is verified.
    flip(&f.file(&key(1), ".so"), 100);
    let stat = f
        .store
        .dir
        .stat(&format!("{}.so", key(1).file_name()))
        .unwrap();
    f.store.dir.mark_seen(&key(1).file_name(), &stat);
    drop(hit(&f.store, &key(1)));
    // Any touch moves the ctime.
    let file = File::open(f.file(&key(1), ".so")).unwrap();
    file.set_permissions(Permissions::from_mode(0o400)).unwrap();
    assert!(miss(&f.store, &key(1)).unwrap().contains("checksum"));
}

#[test]
fn an_artefact_is_hashed_again_after_a_reboot() {
    let f = Fixture::new(PLENTY);
    insert(&f.store, &key(1), 5000).unwrap();
    let seen = f.file(&key(1), ".seen");
    let now = fs::read_to_string(&seen).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    fs::write(
        &seen,
        now.replace(boot.trim(), "11111111-2222-3333-4444-555555555555"),
    )
    .unwrap();
    assert!(!f.store.list().unwrap()[0].verified);
    hit(&f.store, &key(1));
    assert_eq!(fs::read_to_string(&seen).unwrap(), now);
    assert!(f.store.list().unwrap()[0].verified);
}

#[test]
fn a_refusal_is_remembered_until_an_artefact_takes_its_place() {
    let f = Fixture::new(PLENTY);
    let lock = f.store.lock(&key(1)).unwrap();
    let long = "é".repeat(MAX_REFUSAL_BYTES);
    f.store.insert_refusal(&lock, &long, "app.wasm").unwrap();
    let Lookup::Refused(text) = f.store.lookup(&key(1)).unwrap() else {
        panic!()
    };
    assert_eq!(text, "é".repeat(MAX_REFUSAL_BYTES / 2));
    drop(lock);
    insert(&f.store, &key(1), 5000).unwrap();
    hit(&f.store, &key(1));
    let lock = f.store.lock(&key(1)).unwrap();
    f.store.insert_refusal(&lock, "no", "").unwrap();
    flip(&f.file(&key(1), ".refused"), 0);
    assert!(miss(&f.store, &key(1)).is_some());
    drop(lock);
    assert_eq!(f.files(), ["store.lock"]);
}

#[test]
fn an_existing_directory_must_be_roots_alone_and_no_symlink() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("cache");
    let refusal = |path: &Path| Store::open(path, PLENTY).unwrap_err().to_string();

    Store::open(dir.join("a/b/"), PLENTY).unwrap();
    assert_eq!(fs::metadata(dir.join("a/b")).unwrap().mode() & 0o777, 0o700);

    for mode in [0o755, 0o710, 0o701, 0o770, 0o1777] {
        fs::set_permissions(&dir, Permissions::from_mode(mode)).unwrap();
        let text = refusal(&dir);
        assert!(
            text.contains(&format!("mode {mode:04o}")) && text.contains("`chmod 700 "),
            "{text}"
        );
    }
    fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();
    chown(&dir, Some(65534), None).unwrap();
    assert!(refusal(&dir).contains("belongs to user 65534"));
    chown(&dir, Some(0), None).unwrap();
    Store::open(&dir, PLENTY).unwrap();

    symlink(&dir, temp.path().join("link")).unwrap();
    for link in ["link", "link/"] {
        assert!(refusal(&temp.path().join(link)).contains("a symbolic link; name the directory"));
    }
    File::create(temp.path().join("file")).unwrap();
    assert!(refusal(&temp.path().join("file")).contains("not a directory"));
    assert!(refusal(&temp.path().join("file/cache")).contains("not a directory"));
    assert!(refusal(Path::new("/proc/cache")).contains("cannot be made"));
}

#[test]
fn a_directory_that_cannot_be_read_says_so() {
    let mut f = Fixture::new(PLENTY);
    fs::set_permissions(f.temp.path(), Permissions::from_mode(0o755)).unwrap();
    // As a user who is not root; for him the test program must be where he can read it.
    let program = f.temp.path().join("tests");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let mut command = helper(&program, "open", &f.dir());
    let mut child = f.spawn(command.uid(65534).gid(65534));
    let text = line(&mut child);
    assert!(child.wait().unwrap().success());
    assert!(
        text.contains(&format!(
            "artefact cache {}: Permission denied",
            f.dir().display()
        )),
        "{text}"
    );
    assert!(text.contains("run as root"), "{text}");
}

#[test]
fn the_least_recently_used_goes_first_and_what_is_in_use_stays() {
    // Each entry counts for three blocks: 5000 bytes in two, and one for its notes.
    let f = Fixture::new(Options {
        max_bytes: 3 * 3 * 4096,
    });
    for (number, age) in [(1, 400), (2, 300), (3, 200)] {
        insert(&f.store, &key(number), 5000).unwrap();
        f.age(&key(number), ".seen", age);
    }
    // A lookup is a use; the oldest becomes the youngest.
    drop(hit(&f.store, &key(1)));
    let in_use = hit(&f.store, &key(2));
    f.age(&key(2), ".seen", 300);
    insert(&f.store, &key(4), 5000).unwrap();
    let left = |numbers: &[u8]| {
        for number in 1..=5 {
            assert_eq!(
                f.file(&key(number), ".so").exists(),
                numbers.contains(&number),
                "{number}"
            );
        }
    };
    left(&[1, 2, 4]);
    drop(in_use);
    insert(&f.store, &key(5), 5000).unwrap();
    left(&[1, 4, 5]);
}

#[test]
fn a_use_is_written_down_at_most_once_a_minute() {
    let f = Fixture::new(PLENTY);
    insert(&f.store, &key(1), 5000).unwrap();
    let used = || {
        let metadata = fs::metadata(f.file(&key(1), ".seen")).unwrap();
        metadata.modified().unwrap()
    };
    let recent = f.age(&key(1), ".seen", 10);
    hit(&f.store, &key(1));
    assert_eq!(used(), recent);
    let old = f.age(&key(1), ".seen", 70);
    hit(&f.store, &key(1));
    assert!(used() > old);

    let lock = f.store.lock(&key(2)).unwrap();
    f.store.insert_refusal(&lock, "no", "").unwrap();
    let old = f.age(&key(2), ".refused", 70);
    f.store.lookup(&key(2)).unwrap();
    let list = f.store.list().unwrap();
    let refusal = list.iter().find(|e| e.kind == Kind::Refusal).unwrap();
    assert!(refusal.last_used > old);
}

#[test]
fn an_artefact_larger_than_the_bound_serves_until_the_next_insert() {
    let f = Fixture::new(Options {
        max_bytes: 16 << 10,
    });
    drop(insert(&f.store, &key(1), 5000).unwrap());
    drop(insert(&f.store, &key(2), 100_000).unwrap());
    drop(hit(&f.store, &key(2)));
    assert_eq!(miss(&f.store, &key(1)), None);
    drop(insert(&f.store, &key(3), 5000).unwrap());
    assert_eq!(miss(&f.store, &key(2)), None);
    hit(&f.store, &key(3));
}

#[test]
fn what_is_inserted_though_all_is_in_use_is_the_first_to_go() {
    let f = Fixture::new(Options {
        max_bytes: 36 << 10,
    });
    let used = insert(&f.store, &key(1), 13_000).unwrap();
    assert!(!f.store.is_filled_by_use().unwrap());
    let second = insert(&f.store, &key(2), 13_000).unwrap();
    assert!(f.store.is_filled_by_use().unwrap());
    drop(second);
    assert!(!f.store.is_filled_by_use().unwrap());
    // Used less recently than the one that found no room.
    drop(used);
    f.age(&key(1), ".seen", 1000);
    drop(insert(&f.store, &key(3), 5000).unwrap());
    assert_eq!(miss(&f.store, &key(2)), None);
    hit(&f.store, &key(1));
    hit(&f.store, &key(3));
}

#[test]
fn entries_are_bounded_by_number_too() {
    let f = Fixture::new(PLENTY);
    for number in 0..MAX_ENTRIES {
        fs::write(f.dir().join(format!("{number:064x}.refused")), "").unwrap();
    }
    drop(insert(&f.store, &key(1), 5000).unwrap());
    assert_eq!(f.store.list().unwrap().len(), MAX_ENTRIES);
    hit(&f.store, &key(1));
}

#[test]
fn an_entry_is_found_while_others_remove_it_only_if_it_stays() {
    let f = Fixture::new(PLENTY);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    if let Lookup::Hit(artefact) = f.store.lookup(&key(1)).unwrap() {
                        assert_eq!(artefact.file().metadata().unwrap().nlink(), 1);
                    }
                }
            });
        }
        for _ in 0..200 {
            if let Lookup::Miss { .. } = f.store.lookup(&key(1)).unwrap() {
                insert(&f.store, &key(1), 5000).unwrap();
            }
            f.store.remove_all().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
    });
}

#[test]
fn many_refusals_stay_within_the_bound_too() {
    let f = Fixture::new(Options {
        max_bytes: 10 * 2 * 4096,
    });
    for number in 0..30 {
        let lock = f.store.lock(&key(number)).unwrap();
        f.store.insert_refusal(&lock, "no", "").unwrap();
    }
    assert_eq!(f.store.list().unwrap().len(), 10);
}

#[test]
fn entries_are_listed_and_removed_by_prefix_except_those_in_use() {
    let f = Fixture::new(PLENTY);
    let quick = Key {
        tier: Tier::Quick,
        ..key(0xab)
    };
    drop(insert(&f.store, &key(0xab), 5000).unwrap());
    drop(insert(&f.store, &quick, 6000).unwrap());
    drop(insert(&f.store, &key(0xcd), 7000).unwrap());
    let lock = f.store.lock(&key(0xee)).unwrap();
    f.store.insert_refusal(&lock, "no", "bad.wasm").unwrap();
    f.age(&quick, ".seen", 100);
    let in_use = hit(&f.store, &key(0xab));

    let list = f.store.list().unwrap();
    assert_eq!(list.len(), 4);
    let entry = list
        .iter()
        .find(|e| e.name == key(0xab).file_name())
        .unwrap();
    let meta = entry.meta.as_ref().unwrap();
    assert_eq!(meta.module(), "ab".repeat(32));
    assert!(entry.in_use && entry.verified && entry.kind == Kind::Artefact && entry.bytes > 5000);
    assert_eq!(list[3].name, quick.file_name(), "least recently used last");
    assert!(!list[3].in_use);
    assert_eq!(list.iter().filter(|e| e.kind == Kind::Refusal).count(), 1);

    for bad in ["", "abc", "sha256:", "../x", "xyzw"] {
        assert!(
            matches!(f.store.remove(bad), Err(Error::BadPrefix(_))),
            "{bad}"
        );
    }
    let done = f.store.remove("sha256:abab").unwrap();
    assert_eq!((done.removed.len(), done.in_use.len()), (1, 1));
    assert_eq!(done.removed[0].name, quick.file_name());
    assert!(f.store.remove(&"0".repeat(64)).unwrap().removed.is_empty());
    let done = f.store.remove(&key(0xcd).file_name()[..8]).unwrap();
    assert_eq!(done.removed.len(), 1);

    let done = f.store.remove_all().unwrap();
    assert_eq!((done.removed.len(), done.in_use.len()), (1, 1));
    drop((in_use, lock));
    f.store.remove_all().unwrap();
    assert_eq!(f.files(), ["store.lock"]);
}

#[test]
fn a_damaged_entry_is_listed_and_can_be_removed() {
    let f = Fixture::new(PLENTY);
    fs::write(f.file(&key(1), ".so"), "nonsense").unwrap();
    symlink("/bin/true", f.file(&key(2), ".so")).unwrap();
    assert!(
        f.store
            .list()
            .unwrap()
            .iter()
            .all(|e| e.meta.is_none() && !e.in_use && !e.verified)
    );
    assert_eq!(f.store.remove_all().unwrap().removed.len(), 2);
    assert_eq!(f.files(), ["store.lock"]);
    assert!(Path::new("/bin/true").exists());
}

#[test]
fn a_key_lock_is_exclusive_and_leaves_no_file() {
    let f = Fixture::new(PLENTY);
    let lock = f.store.lock(&key(1)).unwrap();
    assert!(
        f.store
            .lock_until(&key(1), Instant::now())
            .unwrap()
            .is_none()
    );
    assert!(
        f.store
            .lock_until(&key(2), Instant::now())
            .unwrap()
            .is_some()
    );
    assert!(f.file(&key(1), ".lock").exists());
    drop(lock);
    assert!(!f.file(&key(1), ".lock").exists());
    assert!(
        f.store
            .lock_until(&key(1), Instant::now())
            .unwrap()
            .is_some()
    );
    assert!(
        f.files().iter().all(|name| name == "store.lock"),
        "{:?}",
        f.files()
    );
}

#[test]
fn a_lock_whose_file_was_removed_while_it_was_waited_for_is_taken_anew() {
    let f = Fixture::new(PLENTY);
    // Threads that wait for each other's files over and over; never two at once.
    let inside = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let _lock = f.store.lock(&key(1)).unwrap();
                    assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                    std::thread::yield_now();
                    inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                }
            });
        }
    });
    assert!(!f.file(&key(1), ".lock").exists());
}

#[test]
fn twenty_getters_in_four_processes_compile_once() {
    let mut f = Fixture::new(PLENTY);
    let fifo = f.temp.path().join("arrived");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    // Kept open, so that no getter waits for the one that reads.
    let _open = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&fifo)
        .unwrap();
    let program = std::env::current_exe().unwrap();
    let mut children: Vec<Child> = (0..4)
        .map(|_| {
            let mut command = helper(&program, "get", &f.dir());
            f.spawn(&mut command)
        })
        .collect();
    for child in &mut children {
        assert_eq!(line(child), "5 hits");
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(
        fs::read_to_string(f.temp.path().join("compiled")).unwrap(),
        "x"
    );
    assert!(!f.file(&key(1), ".lock").exists());
}

#[test]
fn what_a_killed_compile_leaves_is_swept_and_what_a_living_one_writes_is_not() {
    let mut f = Fixture::new(PLENTY);
    let mut command = helper(&std::env::current_exe().unwrap(), "compile", &f.dir());
    let mut child = f.spawn(&mut command);
    assert_eq!(line(&mut child), "compiling");
    let is_left = |f: &Fixture| {
        let temporary = f.files().iter().any(|name| name.starts_with("tmp-"));
        (temporary, f.file(&key(1), ".lock").exists())
    };
    fs::write(f.file(&key(9), ".seen"), "of an entry that is gone").unwrap();
    drop(f.store.lock(&key(2)).unwrap());
    assert_eq!(is_left(&f), (true, true));
    assert!(!f.file(&key(9), ".seen").exists());
    assert!(
        f.store
            .lock_until(&key(1), Instant::now())
            .unwrap()
            .is_none()
    );

    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(is_left(&f), (true, true));
    drop(f.store.lock(&key(2)).unwrap());
    assert_eq!(is_left(&f), (false, false));
    assert_eq!(f.files(), ["store.lock"]);
    insert(&f.store, &key(1), 5000).unwrap();
    hit(&f.store, &key(1));
}

#[test]
fn a_full_disk_fails_the_insert_and_nothing_else() {
    struct Mount(TempDir);
    impl Drop for Mount {
        fn drop(&mut self) {
            rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    }
    let temp = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", temp.path(), "tmpfs", flags, c"size=1m,mode=700")
        .expect("a tmpfs is mounted: these tests run as root");
    let mount = Mount(temp);
    let dir = mount.0.path();
    let store = Store::open(dir, PLENTY).unwrap();
    insert(&store, &key(1), 100_000).unwrap();
    // Room for what the compiler writes, but not for the store's copy.
    let error = insert(&store, &key(2), 600_000).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(&error, Error::Write { needed, .. } if *needed > 600_000),
        "{text}"
    );
    assert!(
        text.contains(&dir.display().to_string()) && text.contains("No space left"),
        "{text}"
    );
    assert_eq!(miss(&store, &key(2)), None);
    let names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        names
            .iter()
            .all(|name| !name.to_str().unwrap().starts_with("tmp-")),
        "{names:?}"
    );
    drop(hit(&store, &key(1)));
    drop(insert(&store, &key(3), 100_000).unwrap());
    hit(&store, &key(3));
}

/// A process that plays a role in a test: this program, running only [`role`].
fn helper(program: &Path, role: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.args([
        "--exact",
        "tests::role",
        "--ignored",
        "--nocapture",
        "--quiet",
    ]);
    command.env("ROLE", role).env("CACHE", dir).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// The next line that a helper says.
fn line(child: &mut Child) -> String {
    let stdout = child.stdout.as_mut().unwrap();
    let said = BufReader::new(stdout)
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("> ").map(String::from));
    said.expect("the helper ended without a word")
}

#[test]
#[ignore = "not a test: the other processes of the tests above"]
fn role() {
    let dir = PathBuf::from(std::env::var_os("CACHE").unwrap());
    match std::env::var("ROLE").unwrap().as_str() {
        "open" => println!("\n> {}", Store::open(dir, PLENTY).unwrap_err()),
        "get" => {
            let get = || get_or_compile(&dir);
            let hits = std::thread::scope(|scope| {
                let getters: Vec<_> = (0..5).map(|_| scope.spawn(get)).collect();
                getters
                    .into_iter()
                    .map(|getter| getter.join().unwrap())
                    .count()
            });
            println!("\n> {hits} hits");
        }
        "compile" => {
            let store = Store::open(dir, PLENTY).unwrap();
            let lock = store.lock(&key(1)).unwrap();
            let pending = store.pending(&lock).unwrap();
            pending.file().write_all_at(&payload(5000), 0).unwrap();
            let _inserting = store.temporary(0).unwrap();
            println!("\n> compiling");
            std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        }
        other => panic!("{other}"),
    }
}

/// The protocol of the crate's documentation, with a compiler that takes until all twenty getters have arrived.
fn get_or_compile(dir: &Path) {
    let beside = |name: &str| dir.parent().unwrap().join(name);
    let mut fifo = OpenOptions::new()
        .read(true)
        .write(true)
        .open(beside("arrived"))
        .unwrap();
    fifo.write_all(b"x").unwrap();
    let store = Store::open(dir, PLENTY).unwrap();
    if let Lookup::Hit(_) = store.lookup(&key(1)).unwrap() {
        return;
    }
    let lock = store.lock(&key(1)).unwrap();
    if let Lookup::Hit(_) = store.lookup(&key(1)).unwrap() {
        return;
    }
    for _ in 0..20 {
        let mut arrival = [PollFd::new(&fifo, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        assert_eq!(
            poll(&mut arrival, Some(&limit)),
            Ok(1),
            "someone else compiles, too"
        );
        fifo.read_exact(&mut [0]).unwrap();
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(beside("compiled"))
        .unwrap()
        .write_all(b"x")
        .unwrap();
    let pending = store.pending(&lock).unwrap();
    pending.file().write_all_at(&payload(100_000), 0).unwrap();
    store.insert(&lock, pending, "app.wasm", facts()).unwrap();
    hit(&store, &key(1));
}
