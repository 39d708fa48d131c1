//! The root file system of an image to build: what is at each path, before any of it is written.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use crate::unpack::{MODE_MASK, WHITEOUT};
use crate::{ImageError, MAX_BLOB_BYTES, MAX_FILES};

/// Files of this host for an image. Contents, permissions and symbolic links are kept; owners, times, extended
/// attributes and set-user-ID are not, and each name of a hard link becomes a file of its own.
#[derive(Debug, Clone)]
pub struct Copied {
    /// A file or directory, or a symbolic link to one; links below a directory are not followed.
    pub source: PathBuf,
    /// Its absolute path in the image. A directory joins one that is there already.
    pub target: String,
}

/// What is at a path.
pub(crate) enum Node<'a> {
    Directory { mode: u32 },
    Module(&'a [u8]),
    File { source: PathBuf, mode: u32 },
    Link { target: PathBuf },
}

impl fmt::Display for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Directory { .. } => f.write_str("a directory"),
            Node::Module(_) => f.write_str("the module"),
            Node::File { source, .. } => write!(f, "the file {}", source.display()),
            Node::Link { target } => write!(f, "a symbolic link to {}", target.display()),
        }
    }
}

/// Nodes by their path without the leading `/`, so that a directory comes before what is in it.
#[derive(Default)]
pub(crate) struct Tree<'a> {
    pub nodes: BTreeMap<PathBuf, Node<'a>>,
    bytes: u64,
}

impl<'a> Tree<'a> {
    /// Puts a node at a path, with the directories above it. Nothing takes the place of another but a directory.
    pub fn put(&mut self, path: &Path, node: Node<'a>) -> Result<(), ImageError> {
        let above = path.ancestors().skip(1);
        for directory in above.filter(|path| !path.as_os_str().is_empty()) {
            let implied = || Node::Directory { mode: 0o755 };
            let there = self
                .nodes
                .entry(directory.to_owned())
                .or_insert_with(implied);
            if !matches!(there, Node::Directory { .. }) {
                return refuse(format!(
                    "/{} would be {there} and also a directory with {node} in it; copy them to different paths",
                    directory.display()
                ));
            }
        }
        if let Some(there) = self.nodes.get(path)
            && !matches!(
                (there, &node),
                (Node::Directory { .. }, Node::Directory { .. })
            )
        {
            return refuse(format!(
                "/{} would be {there} and also {node}; copy them to different paths",
                path.display()
            ));
        }
        self.nodes.insert(path.to_owned(), node);
        let count = self.nodes.len() as u64;
        ImageError::bound("the number of files in the image", count, MAX_FILES)
    }

    /// Puts files of this host.
    pub fn copy(&mut self, copied: &Copied) -> Result<(), ImageError> {
        let named = copied.source.display();
        let target = Path::new(&copied.target);
        let Ok(target) = target.strip_prefix("/") else {
            return refuse(format!(
                "{target:?} is not absolute; write it like {named}:/data"
            ));
        };
        if !target
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        {
            return refuse(format!(
                "/{} contains `..`; write the path without",
                target.display()
            ));
        }
        let source = fs::canonicalize(&copied.source).map_err(unreadable(&copied.source))?;
        if copied.target.ends_with('/') && !source.is_dir() {
            return refuse(format!(
                "{named} is no directory, but {:?} is the path of one; add the file's name to it",
                copied.target
            ));
        }
        let mut pending = vec![(source, target.components().collect::<PathBuf>())];
        while let Some((source, target)) = pending.pop() {
            let node = self.node(&source)?;
            if let Node::Directory { .. } = node {
                for child in fs::read_dir(&source).map_err(unreadable(&source))? {
                    let child = child.map_err(unreadable(&source))?;
                    pending.push((child.path(), target.join(child.file_name())));
                }
                // The root directory is the runtime's.
                if target.as_os_str().is_empty() {
                    continue;
                }
            }
            if target
                .file_name()
                .is_some_and(|name| name.as_bytes().starts_with(WHITEOUT))
            {
                return refuse(format!(
                    "{}: in an image, a name with .wh. in front deletes a file; rename it",
                    source.display()
                ));
            }
            self.put(&target, node)?;
        }
        Ok(())
    }

    fn node(&mut self, source: &Path) -> Result<Node<'a>, ImageError> {
        let metadata = fs::symlink_metadata(source).map_err(unreadable(source))?;
        let (kind, mode) = (
            metadata.file_type(),
            metadata.permissions().mode() & MODE_MASK,
        );
        if kind.is_dir() {
            Ok(Node::Directory { mode })
        } else if kind.is_file() {
            self.bytes = self.bytes.saturating_add(metadata.len());
            ImageError::bound("the copied files (bytes)", self.bytes, MAX_BLOB_BYTES)?;
            let source = source.to_owned();
            Ok(Node::File { source, mode })
        } else if kind.is_symlink() {
            let target = fs::read_link(source).map_err(unreadable(source))?;
            Ok(Node::Link { target })
        } else {
            refuse(format!(
                "{} is a device node, FIFO or socket; only files, directories and symbolic links go into an image",
                source.display()
            ))
        }
    }
}

fn refuse<T>(reason: String) -> Result<T, ImageError> {
    let option = "copy";
    Err(ImageError::Option { option, reason })
}

fn unreadable(path: &Path) -> impl FnOnce(std::io::Error) -> ImageError {
    let path = path.display().to_string();
    move |error| ImageError::Option {
        option: "copy",
        reason: format!("{path}: {error}"),
    }
}
