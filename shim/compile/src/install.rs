//! Where Slipway's files are.

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The bundle's own loader, below the root: named as the architecture's programs want it.
#[cfg(target_arch = "x86_64")]
pub const LOADER: &str = "lib/runtime/ld-linux-x86-64.so.2";
/// The bundle's own loader, below the root: named as the architecture's programs want it.
#[cfg(target_arch = "aarch64")]
pub const LOADER: &str = "lib/runtime/ld-linux-aarch64.so.1";

/// The installed tree, `/opt/slipway` unless somebody put it elsewhere:
///
/// ```text
/// bin/      containerd-shim-slipway-v1, slipway (static)
/// libexec/  slipway-guest, slipway-aot, slipway-layers, slipway-queue
/// lib/runtime/    the guest's own loader and libraries
/// lib/compiler/   LLVM, for slipway-aot alone
/// lib/mount-points/  what CRI mounts on in every container: lowest layer of overlay roots
/// lib/skeleton/   empty: guests put their root together on it, each in its own mount namespace
/// ```
#[derive(Debug, Clone)]
pub struct Install {
    root: PathBuf,
}

impl Install {
    /// `$SLIPWAY_ROOT`, else the tree that this executable lies in, else `/opt/slipway`.
    pub fn locate() -> Self {
        let beside = || {
            let exe = std::env::current_exe().ok()?;
            let root = exe.parent()?.parent()?.to_path_buf();
            root.join("libexec/slipway-guest").exists().then_some(root)
        };
        let root = std::env::var_os("SLIPWAY_ROOT")
            .map(PathBuf::from)
            .or_else(beside);
        Self {
            root: root.unwrap_or_else(|| "/opt/slipway".into()),
        }
    }

    /// The tree at `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The tree's root.
    pub fn root(&self) -> &std::path::Path {
        &self.root
    }

    /// An empty directory that hides nothing when something is mounted on it.
    pub fn skeleton(&self) -> PathBuf {
        self.root.join("lib/skeleton")
    }

    /// Mount points of every pod's containers: directories and empty files.
    pub fn mount_points(&self) -> PathBuf {
        self.root.join("lib/mount-points")
    }

    /// A program of `libexec`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join("libexec").join(name)
    }

    /// argv that starts a program of `libexec` through the bundle's own loader, with these library directories
    /// (below `lib/`), whatever libc the host has.
    ///
    /// # Errors
    /// A path that is missing, with the remedy.
    pub fn command(
        &self,
        program: &str,
        libraries: &[&str],
        args: &[&str],
    ) -> io::Result<Vec<CString>> {
        let loader = self.root.join(LOADER);
        let program = self.program(program);
        for path in [&loader, &program] {
            if !path.exists() {
                let text = format!(
                    "{} is missing: install Slipway under {} or set SLIPWAY_ROOT",
                    path.display(),
                    self.root.display()
                );
                return Err(io::Error::new(io::ErrorKind::NotFound, text));
            }
        }
        let mut path = OsString::new();
        for (i, library) in libraries.iter().enumerate() {
            if i > 0 {
                path.push(":");
            }
            path.push(self.root.join("lib").join(library));
        }
        let mut argv: Vec<OsString> =
            vec![loader.into(), "--library-path".into(), path, program.into()];
        argv.extend(args.iter().map(OsString::from));
        argv.into_iter()
            .map(|a| CString::new(a.into_vec()).map_err(io::Error::other))
            .collect()
    }

    /// The engine's part of an artefact's key, asked of the compiler.
    ///
    /// # Errors
    /// A missing file, or a compiler that does not start.
    pub fn engine_version(&self) -> io::Result<String> {
        use std::ffi::OsStr;
        let argv = self.command("slipway-aot", &["compiler", "runtime"], &["version"])?;
        let argv: Vec<&OsStr> = argv
            .iter()
            .map(|a| OsStr::from_bytes(a.as_bytes()))
            .collect();
        let (program, args) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let output = std::process::Command::new(program)
            .args(args)
            .env_clear()
            .output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
            return Err(io::Error::other(format!(
                "slipway-aot version: {}: {said}",
                output.status
            )));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
    }
}

/// A path for a C API.
///
/// # Errors
/// It has a zero byte.
pub fn c_path(path: &std::path::Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}
