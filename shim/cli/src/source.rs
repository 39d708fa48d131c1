//! What a user names: a module's file, or an image archive.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use slipway_image::{Archive, ImageError, ImageKind, MAX_UNPACKED_BYTES, open_archive};
use slipway_module::Kind;

/// A module with where it runs.
pub struct Source {
    /// Root directory of the container; removed afterwards.
    pub root: tempfile::TempDir,
    /// The module, where it is not a file below the root.
    pub module: Option<PathBuf>,
    /// argv that the source itself gives.
    pub args: Vec<String>,
    /// Environment that it gives.
    pub env: Vec<String>,
    /// Working directory that it gives.
    pub workdir: String,
    /// `uid[:gid]` that it gives.
    pub user: String,
}

/// Opens a module or an image.
pub fn open(path: &Path) -> Result<Source, String> {
    let named = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let mut file = File::open(path).map_err(|e| named(&e))?;
    let mut head = Vec::new();
    file.by_ref()
        .take(Kind::SNIFF_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(|e| named(&e))?;
    file.rewind().map_err(|e| named(&e))?;
    let root = tempfile::Builder::new()
        .prefix("slipway-")
        .tempdir()
        .map_err(|e| named(&e))?;
    // "ustar" where tar(5) has it; whatever else it is, the guest says what is wrong with it.
    if head.get(257..262) != Some(b"ustar") {
        let absolute = std::path::absolute(path).map_err(|e| named(&e))?;
        let name = absolute
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        return Ok(Source {
            root,
            module: Some(absolute),
            args: vec![format!("/{name}")],
            env: Vec::new(),
            workdir: "/".into(),
            user: String::new(),
        });
    }
    let mut archive = open_archive(file).map_err(|e| named(&e))?;
    let process = archive.config().process.clone();
    let mut args = process.argv();
    let module = match archive.kind() {
        ImageKind::Artifact => {
            let bytes = archive.artifact_module().map_err(|e| named(&e))?;
            let module = root.path().join("module.wasm");
            std::fs::write(&module, bytes).map_err(|e| named(&e))?;
            if args.is_empty() {
                args.push("/module.wasm".into());
            }
            Some(module)
        }
        ImageKind::Image => {
            unpack(&mut archive, root.path()).map_err(|e| named(&e))?;
            None
        }
    };
    if args.is_empty() {
        return Err(named(&"the image has neither Entrypoint nor Cmd"));
    }
    let workdir = if process.working_dir.is_empty() {
        "/".into()
    } else {
        process.working_dir
    };
    Ok(Source {
        root,
        module,
        args,
        env: process.env,
        workdir,
        user: process.user,
    })
}

impl Source {
    /// The module's bytes.
    pub fn module_bytes(&self) -> Result<(String, Vec<u8>), String> {
        let entry = slipway_module::Entrypoint::parse(self.args.first().map_or("", String::as_str));
        let path = match &self.module {
            Some(path) => path.clone(),
            // Unpacked below a private directory, symlinks and all: follow none of them out of it.
            None => self.root.path().join(entry.path.trim_start_matches('/')),
        };
        let inside = path
            .canonicalize()
            .map_err(|e| format!("{}: {e}", entry.path))?;
        let root = self.root.path().canonicalize().map_err(|e| e.to_string())?;
        if self.module.is_none() && !inside.starts_with(root) {
            return Err(format!("{}: a symlink that leaves the image", entry.path));
        }
        let bytes = std::fs::read(&inside).map_err(|e| format!("{}: {e}", inside.display()))?;
        Ok((entry.path, bytes))
    }
}

/// Unpacks an image for as long as it runs. Half of what is free there is left to others.
fn unpack(archive: &mut Archive<File>, root: &Path) -> Result<(), String> {
    let disk = rustix::fs::statvfs(root).map_err(|e| format!("{}: {e}", root.display()))?;
    let room = disk.f_bavail.saturating_mul(disk.f_frsize) / 2;
    archive.unpack(root, room).map(drop).map_err(|e| match e {
        ImageError::NoRoom if room < MAX_UNPACKED_BYTES => format!(
            "{e}, {room} bytes, half of what is free in {}: free some, or set TMPDIR to a directory that has more",
            root.parent().unwrap_or(root).display()
        ),
        ImageError::NoRoom => format!("{e}, {MAX_UNPACKED_BYTES} bytes: make it smaller"),
        e => e.to_string(),
    })
}
