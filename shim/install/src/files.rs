//! Files that are either as before or as after, whenever the machine stops.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::error::{Result, file};

/// The text of a file; `None` where there is none.
pub fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(file(path, "read")(e)),
    }
}

/// Writes a file beside and moves it into its place, with the owner and mode of what it replaces. Nobody's pattern
/// `*.toml` matches the one beside.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let path = &followed(path);
    let before = fs::metadata(path).ok();
    let new = beside(path, "new");
    let written = || -> io::Result<()> {
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        if let Some(before) = &before {
            chown(&new, Some(before.uid()), Some(before.gid()))?;
        }
        let mode = before.as_ref().map_or(0o644, |m| m.mode() & 0o7777);
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    written().map_err(file(path, "write"))?;
    sync_parent(path)
}

/// Gives the memory back that holds a file's content: it counts as that of the pod that has read or written it, which with a
/// whole tree is the first to be evicted from a node without memory.
pub fn forget(file: &File) {
    // Advice: whoever reads the file next reads the disk, or finds it still there.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

/// Removes a file, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(file(path, "remove")(e)),
    }
}

/// Makes a directory and those above it; the ones that were missing, innermost first.
pub fn make_directory(path: &Path) -> Result<Vec<PathBuf>> {
    let missing: Vec<_> = path
        .ancestors()
        .take_while(|p| !p.exists())
        .map(Path::to_owned)
        .collect();
    fs::create_dir_all(path).map_err(file(path, "create"))?;
    missing.iter().try_for_each(|p| sync_parent(p))?;
    Ok(missing)
}

/// A name in the same directory for what is not in its place yet.
pub fn beside(path: &Path, what: &str) -> PathBuf {
    let name = path
        .file_name()
        .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    path.with_file_name(format!(".{name}.slipway-{what}"))
}

/// The file that a link leads to: an administrator's link stays one.
fn followed(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// What was renamed or removed stays so.
pub fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent)
        .and_then(|d| d.sync_all())
        .map_err(file(parent, "sync"))
}

/// A file with this text, or none.
pub fn put(path: &Path, text: Option<&str>) -> Result<()> {
    match text {
        Some(text) => write(path, text),
        None => remove(path),
    }
}
