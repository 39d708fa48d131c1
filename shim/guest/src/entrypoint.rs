//! From `argv[0]` to the bytes of a module.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{BorrowedFd, OwnedFd};

use sha2::{Digest, Sha256};
use slipway_module::{Entrypoint, MAX_MODULE_BYTES};
use slipway_protocol::{FromGuest, Launch, ToGuest};

use crate::mounts::not_procfs;
use crate::{Stop, paths};

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
#[derive(Debug)]
enum Refusal {
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

/// The longest name of a function, in bytes: what is said about it must fit a message, however it is escaped.
const MAX_FUNCTION_BYTES: usize = 4096;
/// The longest path that a message proposes, in bytes.
const MAX_NAMED: usize = 200;
/// PATH of a container that has none in its environment, as containerd's images default to.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The entrypoint's module, and the function that is meant: the module is given, or a file of the container, or, where it has no such
/// file, the image's layer, which the host is asked for.
pub fn find(
    control: BorrowedFd<'_>,
    launch: &Launch,
    given: Option<OwnedFd>,
    rootfs: BorrowedFd<'_>,
) -> Result<(Module, Option<String>), Stop> {
    let found = match identify(launch, given, rootfs) {
        Err(Refusal::Missing(what)) => {
            slipway_protocol::send(control, &FromGuest::NoEntrypoint(what), &[])?;
            match slipway_protocol::recv::<ToGuest>(control)? {
                (ToGuest::Layer, fds) => identify(launch, fds.into_iter().next(), rootfs),
                _ => return Err("expected Layer".to_string().into()),
            }
        }
        found => found,
    };
    found.map_err(|refusal| Stop::Tell(refusal.into()))
}

/// Finds, opens and identifies the entrypoint's module, and the function that is meant. A module that the host gives is
/// the entrypoint, whatever its name.
fn identify(
    launch: &Launch,
    given: Option<OwnedFd>,
    root: BorrowedFd<'_>,
) -> Result<(Module, Option<String>), Refusal> {
    let argv0 = launch.program.args.first().map_or("", String::as_str);
    let Entrypoint {
        path,
        func: function,
    } = Entrypoint::parse(argv0);
    if let Some(function) = function.as_ref().filter(|f| f.len() > MAX_FUNCTION_BYTES) {
        return Err(Refusal::Bad(format!(
            "{path}: the function's name has {} bytes, the limit is {MAX_FUNCTION_BYTES}",
            function.len()
        )));
    }
    let (name, mut file) = match given {
        Some(file) => (path, File::from(file)),
        None => open_entrypoint(launch, root, &path)?,
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
        match paths::resolve(root, &candidate) {
            Ok(found) => return open_regular(candidate, &found),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
                if paths::resolve_link(root, &candidate).is_ok() {
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

/// Opens what was found, if it is a file: to open a FIFO, a socket or a device can do something.
fn open_regular(path: String, found: &OwnedFd) -> Result<(String, File), Refusal> {
    let stat = not_procfs(found).and_then(|()| rustix::fs::fstat(found));
    let stat = stat.map_err(|e| Refusal::Bad(format!("{path}: {e}")))?;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => match File::open(paths::proc_path(found)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    const MODULE: &[u8] = b"\0asm\x01\0\0\0";

    fn launch(args: &[&str]) -> Launch {
        let mut launch = Launch::default();
        launch.program.args = args.iter().map(ToString::to_string).collect();
        launch.program.cwd = "/".into();
        launch
    }

    /// A container's root with these files.
    struct Root(tempfile::TempDir);

    impl Root {
        fn of(files: &[(&str, &[u8])]) -> Self {
            let root = Self(tempfile::tempdir().unwrap());
            for (name, bytes) in files {
                let path = root.path(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, bytes).unwrap();
            }
            root
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.0.path().join(name)
        }

        fn identify(&self, launch: &Launch) -> Result<(Module, Option<String>), Refusal> {
            let root = File::open(self.0.path()).unwrap();
            super::identify(launch, None, root.as_fd())
        }

        /// The text with which a command is refused, and whether it could be the image's layer, or a program for Linux.
        fn refused(&self, args: &[&str]) -> (&'static str, String) {
            match self.identify(&launch(args)) {
                Ok((module, _)) => panic!("{args:?}: {} was found", module.path),
                Err(Refusal::Linux(text)) => ("linux", text),
                Err(Refusal::Missing(text)) => ("missing", text),
                Err(Refusal::Bad(text)) => ("bad", text),
            }
        }
    }

    #[test]
    fn a_module_is_known_by_its_bytes() {
        let root = Root::of(&[("app.wasm", MODULE)]);
        let (module, function) = root.identify(&launch(&["/app.wasm#run", "x"])).unwrap();
        assert_eq!(module.path, "/app.wasm");
        assert_eq!(module.digest, <[u8; 32]>::from(Sha256::digest(MODULE)));
        assert_eq!((module.size, function.as_deref()), (8, Some("run")));
        // Whoever compiles it reads it from its start.
        let mut bytes = Vec::new();
        (&module.file).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, MODULE);
    }

    #[test]
    fn a_bare_name_is_searched_for_in_path_and_in_the_working_directory_last() {
        let root = Root::of(&[
            ("second/app", MODULE),
            ("work/app", b"other"),
            ("work/own", MODULE),
        ]);
        let mut launch = launch(&["app"]);
        launch.program.env = vec!["PATH=/first::/second/".into()];
        launch.program.cwd = "/work".into();
        assert_eq!(root.identify(&launch).unwrap().0.path, "/second/app");
        launch.program.args = vec!["own".into()];
        assert_eq!(root.identify(&launch).unwrap().0.path, "/work/own");
        launch.program.args = vec!["./own".into()];
        assert_eq!(root.identify(&launch).unwrap().0.path, "/work/./own");
    }

    #[test]
    fn a_symlink_leads_nowhere_but_into_the_image() {
        let root = Root::of(&[("real/app.wasm", MODULE)]);
        symlink("/real/app.wasm", root.path("absolute.wasm")).unwrap();
        symlink("../../../../real/app.wasm", root.path("above.wasm")).unwrap();
        symlink("/etc/passwd", root.path("node.wasm")).unwrap();
        symlink("circle.wasm", root.path("circle.wasm")).unwrap();
        for name in ["/absolute.wasm", "/above.wasm"] {
            assert_eq!(root.identify(&launch(&[name])).unwrap().0.size, 8);
        }
        let (kind, text) = root.refused(&["/node.wasm"]);
        assert_eq!(
            (kind, text.as_str()),
            ("bad", "/node.wasm: a symlink to nothing inside the image")
        );
        assert!(root.refused(&["/circle.wasm"]).1.contains("in a circle"));
    }

    #[test]
    fn what_is_no_module_is_told_by_what_it_is() {
        let root = Root::of(&[
            ("empty.wasm", b""),
            ("elf", b"\x7fELF"),
            ("script", b"#!/bin/sh"),
            ("elf.wasm", b"\x7fELF"),
            ("packed.wasm", b"\x1f\x8b\x08"),
            ("text.wat", b"  (module)"),
            ("other", b"%PDF"),
            ("directory/file", b""),
        ]);
        rustix::fs::mkfifoat(rustix::fs::CWD, root.path("fifo"), 0o600.into()).unwrap();
        assert!(root.identify(&launch(&["/text.wat"])).is_ok());
        for (name, kind, text) in [
            ("/empty.wasm", "bad", "empty file"),
            ("/elf", "linux", "an ELF program"),
            ("/script", "linux", "a script"),
            ("/elf.wasm", "bad", "build it for wasm32-wasip1"),
            ("/packed.wasm", "bad", "compressed with gzip"),
            ("/other", "bad", "it starts with [25, 50, 44, 46]"),
            ("/directory", "bad", "a directory, not a module"),
            ("/fifo", "bad", "neither file nor directory"),
            (
                "/none.wasm",
                "missing",
                "name the module by its absolute path",
            ),
            ("", "missing", "the entrypoint names no file"),
            ("#run", "missing", "the entrypoint names no file"),
        ] {
            let refused = root.refused(&[name]);
            assert_eq!(refused.0, kind, "{name}: {}", refused.1);
            assert!(refused.1.contains(text), "{name}: {}", refused.1);
        }
    }

    #[test]
    fn bounds_are_told() {
        let root = Root::of(&[("large.wasm", MODULE), ("app.wasm", MODULE)]);
        let large = File::options()
            .write(true)
            .open(root.path("large.wasm"))
            .unwrap();
        large.set_len(MAX_MODULE_BYTES + 1).unwrap();
        assert_eq!(
            root.refused(&["/large.wasm"]).1,
            "/large.wasm: 268435457 bytes, the limit for a module is 268435456"
        );
        let name = format!("/app.wasm#{}", "f".repeat(MAX_FUNCTION_BYTES + 1));
        assert_eq!(
            root.refused(&[&name]).1,
            "/app.wasm: the function's name has 4097 bytes, the limit is 4096"
        );
    }

    #[test]
    fn a_command_in_shell_form_is_explained_to_whoever_wrote_the_image() {
        let root = Root::of(&[]);
        let said = root.refused(&["/bin/sh", "-c", "exec /srv/app.wasm --port 80"]);
        assert!(
            said.1.contains("ENTRYPOINT [\"/srv/app.wasm\"]"),
            "{}",
            said.1
        );
        let mut exec = launch(&["/bin/sh", "-c", "ls"]);
        exec.is_exec = true;
        let Err(Refusal::Missing(text)) = root.identify(&exec) else {
            panic!("a shell was found");
        };
        assert!(!text.contains("ENTRYPOINT"), "{text}");
    }

    #[test]
    fn the_host_is_asked_for_the_layer_of_an_image_without_such_a_file() {
        let root = Root::of(&[]);
        let (host, guest) = slipway_protocol::pair().unwrap();
        let layer = Root::of(&[("layer", MODULE)]);
        let layer = File::open(layer.path("layer")).unwrap();
        slipway_protocol::send(host.as_fd(), &ToGuest::Layer, &[layer.as_fd()]).unwrap();
        let directory = File::open(root.0.path()).unwrap();
        let found = find(
            guest.as_fd(),
            &launch(&["/app.wasm"]),
            None,
            directory.as_fd(),
        );
        assert!(found.is_ok_and(|(module, _)| module.path == "/app.wasm" && module.size == 8));
        let (asked, _) = slipway_protocol::recv::<FromGuest>(host.as_fd()).unwrap();
        assert!(matches!(asked, FromGuest::NoEntrypoint(_)), "{asked:?}");
    }
}
