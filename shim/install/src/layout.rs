//! The installed trees, side by side:
//!
//! ```text
//! versions/VERSION-DIGEST/{bin,libexec,lib,share}   never changed once it is there
//! current                                           a link to one of them, which containerd's configuration names
//! state/                                            lock, journal, log
//! ```
//!
//! A running shim finds its tree by its own executable, so pods keep the version that they were started with.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result, file};
use crate::files;

/// What a tree consists of; a tree may lie in a directory with other things.
const PARTS: [&str; 4] = ["bin", "libexec", "lib", "share"];
const SHIM: &str = "bin/containerd-shim-slipway-v1";
/// Beginning of the names of trees that are being copied.
const NEW: &str = ".new-";

/// The directory of an installation.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

/// A tree that may be installed.
#[derive(Debug)]
pub struct Tree {
    /// Where it is.
    pub source: PathBuf,
    /// `VERSION-DIGEST`.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

impl Tree {
    /// Reads a tree.
    ///
    /// # Errors
    /// A part of it is missing or cannot be read.
    pub fn read(source: &Path) -> Result<Self> {
        let mut digest = Sha256::new();
        let mut bytes = 0;
        for path in walk(source)? {
            let from = source.join(&path);
            let metadata = fs::symlink_metadata(&from).map_err(file(&from, "read"))?;
            // Each part with its length: no two trees have the same bytes.
            let mut part = |bytes: &[u8]| {
                digest.update((bytes.len() as u64).to_le_bytes());
                digest.update(bytes);
            };
            part(path.as_os_str().as_bytes());
            part(&(metadata.mode() & 0o170_111).to_le_bytes());
            if metadata.is_symlink() {
                let target = fs::read_link(&from).map_err(file(&from, "read"))?;
                part(target.as_os_str().as_bytes());
            } else if metadata.is_file() {
                bytes += metadata.len();
                digest.update(metadata.len().to_le_bytes());
                let mut file_ = File::open(&from).map_err(file(&from, "read"))?;
                io::copy(&mut file_, &mut digest).map_err(file(&from, "read"))?;
                files::forget(&file_);
            }
        }
        let digest = digest.finalize();
        let digest: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
        Ok(Self {
            source: source.to_owned(),
            name: format!("{}-{digest}", env!("CARGO_PKG_VERSION")),
            bytes,
        })
    }
}

impl Layout {
    /// The installation in this directory.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The installation that a handler's shim is of, as [`Self::shim`] names it.
    pub fn of_shim(shim: &Path) -> Option<Self> {
        let mut roots = shim.ancestors().map(Self::new);
        roots.find(|layout| layout.shim() == shim)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of a tree.
    pub fn tree(&self, name: &str) -> PathBuf {
        self.versions().join(name)
    }

    /// Lock, journal and log.
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// The log of what was done.
    pub fn log(&self) -> PathBuf {
        self.state().join("log")
    }

    /// The shim as containerd's configuration names it.
    pub fn shim(&self) -> PathBuf {
        self.root.join("current").join(SHIM)
    }

    fn versions(&self) -> PathBuf {
        self.root.join("versions")
    }

    fn link(&self) -> PathBuf {
        self.root.join("current")
    }

    /// The tree that is current.
    pub fn current(&self) -> Option<String> {
        let target = fs::read_link(self.link()).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// Whether the tree is there.
    pub fn has(&self, name: &str) -> bool {
        self.tree(name).is_dir()
    }

    /// Copies a tree, if it is not there yet. It has its name once it is complete and on disk.
    ///
    /// # Errors
    /// The disk's.
    pub fn add(&self, tree: &Tree) -> Result<()> {
        let to = self.tree(&tree.name);
        if to.is_dir() {
            return Ok(());
        }
        files::make_directory(&self.versions())?;
        let new = self.versions().join(format!("{NEW}{}", tree.name));
        remove_tree(&new)?;
        copy(&tree.source, &new)?;
        fs::rename(&new, &to).map_err(file(&to, "rename"))?;
        files::sync_parent(&to)
    }

    /// Makes a tree the current one, or none.
    ///
    /// # Errors
    /// The disk's.
    pub fn select(&self, name: Option<&str>) -> Result<()> {
        let link = self.link();
        let new = files::beside(&link, "new");
        // Of a run that was killed.
        files::remove(&new)?;
        let Some(name) = name else {
            return files::remove(&link);
        };
        if self.current().as_deref() == Some(name) {
            return Ok(());
        }
        symlink(Path::new("versions").join(name), &new).map_err(file(&new, "link"))?;
        fs::rename(&new, &link).map_err(file(&link, "rename"))?;
        files::sync_parent(&link)
    }

    /// Removes the trees that nothing runs from, but this one; the names of those that stay because something does.
    ///
    /// # Errors
    /// The disk's.
    pub fn prune(&self, keep: Option<&str>) -> Result<Vec<String>> {
        let versions = self.versions();
        let entries = match fs::read_dir(&versions) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(file(&versions, "read")(e)),
        };
        let programs = programs();
        let mut busy = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if Some(name.as_str()) == keep {
                continue;
            }
            match programs.iter().any(|p| p.starts_with(&path)) {
                true => busy.push(name),
                false => remove_tree(&path)?,
            }
        }
        Ok(busy)
    }

    /// Removes what is left of an installation that containerd does not know any more; the trees that stay, because
    /// something runs from them.
    ///
    /// # Errors
    /// The disk's.
    pub fn retire(&self) -> Result<Vec<String>> {
        self.select(None)?;
        let busy = self.prune(None)?;
        if busy.is_empty() {
            remove_tree(&self.state())?;
            for directory in [&self.versions(), &self.root] {
                // Somebody else's files stay, and a directory that another file system is mounted on.
                let _ = fs::remove_dir(directory);
            }
        }
        Ok(busy)
    }

    /// Whether anything of an installation is here.
    pub fn has_traces(&self) -> bool {
        [self.versions(), self.state(), self.link()]
            .iter()
            .any(|path| path.symlink_metadata().is_ok())
    }

    /// A tree that is here: the current one, else this one, else any that is complete.
    pub fn any_tree(&self, preferred: &str) -> Option<String> {
        let current = self.current().filter(|name| self.has(name));
        let preferred = || self.has(preferred).then(|| preferred.to_owned());
        let any = || {
            let entries = fs::read_dir(self.versions()).ok()?.flatten();
            let mut names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
            names.find(|name| !name.starts_with(NEW))
        };
        current.or_else(preferred).or_else(any)
    }

    /// The ids of the pods whose shims run on this node from trees of this installation.
    pub fn pods(&self) -> Vec<String> {
        let versions = self.versions();
        let shims = processes().filter(|process| {
            let program = fs::read_link(process.join("exe")).unwrap_or_default();
            program.starts_with(&versions) && program.ends_with(SHIM)
        });
        let ids = shims.filter_map(|process| {
            let line = fs::read(process.join("cmdline")).ok()?;
            let words: Vec<_> = line
                .split(|b| *b == 0)
                .map(String::from_utf8_lossy)
                .collect();
            let id = words.iter().position(|w| w == "-id")?;
            Some(words.get(id + 1)?.to_string())
        });
        ids.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// The directories of /proc of all processes.
pub fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_name().as_bytes().iter().all(u8::is_ascii_digit))
        .map(|e| e.path())
}

/// The programs that run.
fn programs() -> BTreeSet<PathBuf> {
    processes()
        .filter_map(|p| fs::read_link(p.join("exe")).ok())
        .collect()
}

/// The paths in a tree, in order.
fn walk(root: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let mut left: Vec<PathBuf> = PARTS.iter().map(PathBuf::from).collect();
    while let Some(path) = left.pop() {
        let at = root.join(&path);
        let metadata = fs::symlink_metadata(&at).map_err(file(&at, "read a part of the tree"))?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&at).map_err(file(&at, "read"))? {
                let entry = entry.map_err(file(&at, "read"))?;
                left.push(path.join(entry.file_name()));
            }
        }
        paths.push(path);
    }
    paths.sort();
    Ok(paths)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(file(to, "create"))?;
    for path in walk(from)? {
        let (from, to) = (from.join(&path), to.join(&path));
        let metadata = fs::symlink_metadata(&from).map_err(file(&from, "read"))?;
        let copied = || -> io::Result<()> {
            if metadata.is_dir() {
                fs::create_dir(&to)?;
                fs::set_permissions(&to, fs::Permissions::from_mode(0o755))
            } else if metadata.is_symlink() {
                symlink(fs::read_link(&from)?, &to)
            } else {
                fs::copy(&from, &to)?;
                files::forget(&File::open(&from)?);
                let mode = if metadata.mode() & 0o111 == 0 {
                    0o644
                } else {
                    0o755
                };
                fs::set_permissions(&to, fs::Permissions::from_mode(mode))?;
                let copy = File::open(&to)?;
                copy.sync_all()?;
                files::forget(&copy);
                Ok(())
            }
        };
        copied().map_err(file(&to, "copy"))?;
    }
    // The names, too.
    let directories = walk(to)?
        .into_iter()
        .map(|p| to.join(p))
        .filter(|p| p.is_dir());
    for directory in directories.chain([to.to_owned()]) {
        File::open(&directory)
            .and_then(|d| d.sync_all())
            .map_err(file(&directory, "sync"))?;
    }
    Ok(())
}

/// Removes a directory with all in it.
///
/// # Errors
/// The disk's.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::File {
            path: path.to_owned(),
            doing: "remove",
            source: e,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> tempfile::TempDir {
        let source = tempfile::tempdir().unwrap();
        for part in PARTS {
            fs::create_dir(source.path().join(part)).unwrap();
        }
        fs::write(source.path().join(SHIM), text).unwrap();
        symlink("containerd-shim-slipway-v1", source.path().join("bin/link")).unwrap();
        fs::write(source.path().join("unrelated"), "x").unwrap();
        source
    }

    #[test]
    fn a_tree_is_named_by_what_is_in_it() {
        let [a, b, c] = ["1", "1", "2"].map(source);
        let [a, b, c] = [&a, &b, &c].map(|s| Tree::read(s.path()).unwrap().name);
        assert_eq!(a, b);
        assert_ne!(a, c);
    }

    #[test]
    fn trees_lie_side_by_side_until_they_are_pruned() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let (old, new) = (source("1"), source("2"));
        for tree in [&old, &new].map(|s| Tree::read(s.path()).unwrap()) {
            layout.add(&tree).unwrap();
            layout.select(Some(&tree.name)).unwrap();
            assert_eq!(layout.current(), Some(tree.name.clone()));
            // What was copied is the same tree.
            assert_eq!(
                Tree::read(&layout.tree(&tree.name)).unwrap().name,
                tree.name
            );
        }
        assert_eq!(fs::read_to_string(layout.shim()).unwrap(), "2");
        assert!(
            !layout
                .tree(&layout.current().unwrap())
                .join("unrelated")
                .exists()
        );
        let current = layout.current().unwrap();
        assert!(layout.prune(Some(&current)).unwrap().is_empty());
        assert_eq!(fs::read_dir(layout.versions()).unwrap().count(), 1);
        layout.select(None).unwrap();
        assert_eq!(layout.current(), None);
    }

    #[test]
    fn a_shim_tells_its_installation_unless_somebody_else_has_put_it_there() {
        let layout = Layout::new(Path::new("/opt/other"));
        let found = Layout::of_shim(&layout.shim()).unwrap();
        assert_eq!(found.root(), layout.root());
        for path in [
            "/opt/slipway/bin/containerd-shim-slipway-v1",
            "io.containerd.runc.v2",
        ] {
            assert!(Layout::of_shim(Path::new(path)).is_none(), "{path}");
        }
    }

    #[test]
    fn what_is_taken_away_leaves_nothing_even_of_an_installation_that_never_was_current() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(&root.path().join("opt"));
        assert!(!layout.has_traces());
        let source = source("1");
        let tree = Tree::read(source.path()).unwrap();
        layout.add(&tree).unwrap();
        assert!(layout.has_traces());
        assert_eq!(layout.current(), None);
        assert_eq!(layout.any_tree("other"), Some(tree.name.clone()));
        assert!(layout.retire().unwrap().is_empty());
        assert!(!layout.root().exists());
    }

    #[test]
    fn a_copy_that_was_interrupted_is_made_anew() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let source = source("1");
        let tree = Tree::read(source.path()).unwrap();
        let half = layout.versions().join(format!("{NEW}{}/bin", tree.name));
        fs::create_dir_all(&half).unwrap();
        fs::write(half.join("half"), "").unwrap();
        layout.add(&tree).unwrap();
        assert_eq!(
            Tree::read(&layout.tree(&tree.name)).unwrap().name,
            tree.name
        );
    }

    #[test]
    fn a_source_that_is_no_tree_is_an_error() {
        let empty = tempfile::tempdir().unwrap();
        let error = Tree::read(empty.path()).unwrap_err().to_string();
        assert!(error.contains("read a part of the tree"), "{error}");
    }
}
