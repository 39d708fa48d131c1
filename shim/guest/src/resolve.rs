//! From `argv[0]` to the bytes of a module.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use sha2::{Digest, Sha256};
use slipway_cache::{Key, Lookup, Store, Tier};
use slipway_protocol::{FromGuest, Launch};

/// A module's file, identified by its content.
pub struct Module {
    /// As the container names it.
    pub path: String,
    /// Open for reading, at its start.
    pub file: File,
    /// sha256 of all its bytes.
    pub digest: [u8; 32],
    /// Bytes.
    pub size: u64,
}

/// The command names no module that can run here.
pub enum Refusal {
    /// A program for Linux.
    Linux(String),
    /// There is no such file.
    Missing(String),
    /// Anything else.
    Bad(String),
}

impl From<Refusal> for FromGuest {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Linux(what) => Self::NotWasm(what),
            Refusal::Missing(what) => Self::NoEntrypoint(what),
            Refusal::Bad(what) => Self::Failed(what),
        }
    }
}

/// The largest module: the checker's bound.
const MAX_MODULE_BYTES: u64 = 256 << 20;
/// The longest name of a function, in bytes: what is said about it must fit a message, however it is escaped.
const MAX_FUNCTION_BYTES: usize = 4096;
/// The longest path that a message proposes, in bytes.
const MAX_NAMED: usize = 200;
/// PATH of a container that has none in its environment, as containerd's images default to.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Module {
    fn key(&self, tier: Tier) -> Key {
        Key::new(self.digest, &slipway_engine::version(), tier)
    }

    /// Looks for the wanted tier; with no wish, the full one wins wherever it exists. Says which it was.
    pub fn lookup(
        &self,
        store: &Store,
        wanted: slipway_protocol::Tier,
    ) -> Result<(Lookup, Tier), slipway_cache::Error> {
        use slipway_protocol::Tier as Wanted;
        let quick_is_enough = match wanted {
            Wanted::Full => false,
            Wanted::Quick => return Ok((store.lookup(&self.key(Tier::Quick))?, Tier::Quick)),
            Wanted::Auto => !wanted.is_full(self.size),
        };
        match store.lookup(&self.key(Tier::Full))? {
            Lookup::Miss { damaged: None } if quick_is_enough => {
                Ok((store.lookup(&self.key(Tier::Quick))?, Tier::Quick))
            }
            found => Ok((found, Tier::Full)),
        }
    }

    /// As the host knows it.
    pub fn description(&self) -> slipway_protocol::Module {
        slipway_protocol::Module {
            digest: self.digest,
            size: self.size,
            path: self.path.clone(),
            engine: slipway_engine::version(),
        }
    }
}

/// Finds, opens and identifies the entrypoint's module, and the function that is meant. A module that the host gives is
/// the entrypoint, whatever its name.
pub fn module(
    launch: &Launch,
    given: Option<OwnedFd>,
    root: BorrowedFd<'_>,
) -> Result<(Module, Option<String>), Refusal> {
    let argv0 = launch.program.args.first().map_or("", String::as_str);
    let (path, function) = match argv0.split_once('#') {
        Some((path, function)) => (path, Some(function.to_string()).filter(|f| !f.is_empty())),
        None => (argv0, None),
    };
    if let Some(function) = function.as_ref().filter(|f| f.len() > MAX_FUNCTION_BYTES) {
        return Err(Refusal::Bad(format!(
            "{path}: the function's name has {} bytes, the limit is {MAX_FUNCTION_BYTES}",
            function.len()
        )));
    }
    let (name, mut file) = match given {
        Some(file) => (path.to_string(), File::from(file)),
        None => open_entrypoint(launch, root, path)?,
    };
    let bad = |e: std::io::Error| Refusal::Bad(format!("{name}: {e}"));
    let size = file.metadata().map_err(bad)?.len();
    check_size(&name, size)?;
    sniff(&name, &mut file)?;
    // It may have grown, and go on to grow.
    let (digest, size) = digest(&mut file).map_err(bad)?;
    check_size(&name, size)?;
    Ok((
        Module {
            path: name,
            file,
            digest,
            size,
        },
        function,
    ))
}

/// The candidates of a command, as execvp(3) would try them, and the working directory last: images of a single
/// module are started by its bare name.
fn candidates(launch: &Launch, path: &str) -> Vec<String> {
    let cwd = launch.program.cwd.trim_end_matches('/');
    if path.starts_with('/') {
        return vec![path.to_string()];
    }
    if path.contains('/') {
        return vec![format!("{cwd}/{path}")];
    }
    let search = launch
        .program
        .env
        .iter()
        .find_map(|e| e.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    let found = search
        .split(':')
        .filter(|d| !d.is_empty())
        .map(|d| format!("{}/{path}", d.trim_end_matches('/')));
    found.chain([format!("{cwd}/{path}")]).collect()
}

fn open_entrypoint(
    launch: &Launch,
    root: BorrowedFd<'_>,
    path: &str,
) -> Result<(String, File), Refusal> {
    if path.is_empty() {
        return Err(Refusal::Missing(
            "the entrypoint names no file; write the module's path before the function, as in /app.wasm#function"
                .to_string(),
        ));
    }
    let mut reason = String::new();
    for candidate in candidates(launch, path) {
        match find(root, &candidate, OFlags::empty()) {
            Ok(found) => return open_regular(candidate, &found),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
                if find(root, &candidate, OFlags::NOFOLLOW).is_ok() {
                    reason = format!("{candidate}: a symlink to nothing inside the image");
                }
            }
            Err(rustix::io::Errno::LOOP) => {
                reason =
                    format!("{candidate}: symlinks lead in a circle, or to more than 40 others")
            }
            Err(e) => return Err(Refusal::Bad(format!("{candidate}: {e}"))),
        }
    }
    if !reason.is_empty() {
        return Err(Refusal::Bad(reason));
    }
    let missing = format!("entrypoint {path:?}: no such file in the image");
    if let Some(module) = in_shell_form(launch) {
        return Err(Refusal::Missing(format!(
            "{missing}: the image's command is in shell form, which needs a shell; write it in exec form, as in ENTRYPOINT [{module:?}], or set the pod's command: [{module:?}]"
        )));
    }
    Err(Refusal::Missing(format!(
        "{missing} (searched PATH and the working directory {:?}); name the module by its absolute path",
        launch.program.cwd
    )))
}

/// The module of `/bin/sh -c "app.wasm arguments"`, which is what Docker makes of a command that is no list. Somebody who calls a
/// shell by exec means a shell.
fn in_shell_form(launch: &Launch) -> Option<&str> {
    match launch.program.args.as_slice() {
        [shell, option, command, ..]
            if matches!(shell.as_str(), "/bin/sh" | "/bin/bash" | "/bin/ash")
                && option == "-c"
                && !launch.is_exec =>
        {
            let is_module = |word: &&str| {
                word.len() <= MAX_NAMED && (word.ends_with(".wasm") || word.ends_with(".wat"))
            };
            command
                .split_whitespace()
                .find(is_module)
                .or(Some("/app.wasm"))
        }
        _ => None,
    }
}

/// What lies at a path below the root, not opened yet.
fn find(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC | flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Opens what was found, if it is a file: to open a FIFO, a socket or a device can do something.
fn open_regular(path: String, found: &OwnedFd) -> Result<(String, File), Refusal> {
    let stat = crate::mounts::not_procfs(found).and_then(|()| rustix::fs::fstat(found));
    let stat = stat.map_err(|e| Refusal::Bad(format!("{path}: {e}")))?;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => match File::open(crate::mounts::magic(found)) {
            Ok(file) => Ok((path, file)),
            Err(e) => Err(Refusal::Bad(format!("{path}: {e}"))),
        },
        libc::S_IFDIR => Err(Refusal::Bad(format!("{path}: a directory, not a module"))),
        _ => Err(Refusal::Bad(format!(
            "{path}: neither file nor directory, so no module"
        ))),
    }
}

fn check_size(path: &str, size: u64) -> Result<(), Refusal> {
    if size > MAX_MODULE_BYTES {
        return Err(Refusal::Bad(format!(
            "{path}: {size} bytes, the limit for a module is {MAX_MODULE_BYTES}"
        )));
    }
    Ok(())
}

/// Tells a module from what else an image may start, by its first bytes.
fn sniff(path: &str, file: &mut File) -> Result<(), Refusal> {
    let bad = |e: std::io::Error| Refusal::Bad(format!("{path}: {e}"));
    let mut head = Vec::with_capacity(64);
    file.by_ref().take(64).read_to_end(&mut head).map_err(bad)?;
    file.rewind().map_err(bad)?;
    let claims_wasm = path.ends_with(".wasm") || path.ends_with(".wat");
    let text = head.iter().find(|b| !b.is_ascii_whitespace());
    match head.as_slice() {
        [] => Err(Refusal::Bad(format!("{path}: empty file, not a module"))),
        [0, b'a', b's', b'm', ..] => Ok(()),
        [0x7f, b'E', b'L', b'F', ..] | [b'#', b'!', ..] if claims_wasm => {
            Err(Refusal::Bad(format!(
                "{path}: named like a module, but it is {}; build it for wasm32-wasip1",
                if head.starts_with(b"#!") {
                    "a script"
                } else {
                    "an ELF program"
                }
            )))
        }
        [0x7f, b'E', b'L', b'F', ..] => Err(Refusal::Linux(format!("{path} is an ELF program"))),
        [b'#', b'!', ..] => Err(Refusal::Linux(format!("{path} is a script"))),
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => Err(Refusal::Bad(format!(
            "{path}: compressed with {}; put the module into the image as it was before",
            if head[0] == 0x1f { "gzip" } else { "zstd" }
        ))),
        // WebAssembly text opens with a form or a comment.
        _ if matches!(text, Some(b'(' | b';')) => Ok(()),
        _ => Err(Refusal::Bad(format!(
            "{path}: not a WebAssembly module (it starts with {:02x?}); build it for wasm32-wasip1",
            &head[..head.len().min(4)]
        ))),
    }
}

/// sha256 of the file's bytes, and how many they are, as far as a module may have them and one more.
fn digest(file: &mut File) -> std::io::Result<([u8; 32], u64)> {
    let mut hash = Sha256::new();
    let size = std::io::copy(&mut file.take(MAX_MODULE_BYTES + 1), &mut hash)?;
    file.rewind()?;
    Ok((hash.finalize().into(), size))
}
