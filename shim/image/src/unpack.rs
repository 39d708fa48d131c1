//! Layers to files. All paths are resolved here, component by component, as if the directory were the root: the kernel
//! would follow a symbolic link of the image out of it.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use slipway_module::Compression;

use crate::compressed::decoder;
use crate::meter::{Allowance, Metered};
use crate::{ImageError, MAX_FILES, MAX_HEADER_BYTES, MAX_UNPACKED_BYTES};

/// What unpacking did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Files, directories and links made.
    pub files: u64,
    /// Bytes written to files.
    pub bytes: u64,
    /// Device nodes, FIFOs and others left out.
    pub skipped: u64,
}

/// What a file takes of a disk beside its size, in bytes: blocks, and its place among the files that the disk can have. ext4 has one for so
/// many bytes.
const FILE_BYTES: u64 = 16 << 10;
/// The permissions kept: not set-user-ID and set-group-ID.
pub(crate) const MODE_MASK: u32 = 0o1777;
/// As many symbolic links on one path as the kernel follows (path_resolution(7)).
const MAX_SYMLINKS: usize = 40;
/// The prefix of a file that deletes one of a lower layer (OCI image specification, layer.md, whiteouts).
pub(crate) const WHITEOUT: &[u8] = b".wh.";
/// The file that deletes all that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Unpacks verified layers, lowest first.
pub(crate) struct Unpacker<'a> {
    root: &'a Path,
    /// What may still be taken of the disk, in bytes.
    room: u64,
    layer: usize,
    unpacked: Unpacked,
}

impl<'a> Unpacker<'a> {
    pub fn new(root: &'a Path, room: u64) -> Unpacker<'a> {
        Unpacker {
            root,
            room: room.min(MAX_UNPACKED_BYTES),
            layer: 0,
            unpacked: Unpacked::default(),
        }
    }

    pub fn done(self) -> Unpacked {
        self.unpacked
    }

    /// Does the deletions of the next layer. They concern lower layers only, wherever they stand in their own: hence a
    /// pass before [`Unpacker::extract`].
    pub fn delete(&mut self, media_type: &str, layer: impl Read) -> Result<(), ImageError> {
        if self.layer == 0 {
            return Ok(());
        }
        self.for_each_entry(decompress(media_type, layer)?, |unpacker, path, _| {
            unpacker.white_out(path)
        })
    }

    /// Makes the files of the next layer.
    pub fn extract(&mut self, media_type: &str, layer: impl Read) -> Result<(), ImageError> {
        self.for_each_entry(decompress(media_type, layer)?, Self::entry)?;
        self.layer += 1;
        Ok(())
    }

    fn for_each_entry<R: Read>(
        &mut self,
        layer: R,
        mut visit: impl FnMut(&mut Self, &Path, &mut tar::Entry<'_, Metered<R>>) -> Result<(), Fault>,
    ) -> Result<(), ImageError> {
        let number = self.layer;
        let unreadable = |source| ImageError::Io {
            what: format!("layer {number}: reading its tar file"),
            source,
        };
        let allowance = Allowance::new();
        let mut tar = tar::Archive::new(Metered {
            inner: layer,
            allowance: allowance.clone(),
        });
        let mut entries = tar.entries().map_err(unreadable)?;
        let mut count = self.unpacked.files + self.unpacked.skipped;
        let mut remaining = MAX_UNPACKED_BYTES - self.unpacked.bytes;
        loop {
            allowance.set(MAX_HEADER_BYTES);
            let Some(entry) = entries.next() else {
                break;
            };
            let mut entry = entry.map_err(unreadable)?;
            count += 1;
            ImageError::bound("the number of files in the layers", count, MAX_FILES)?;
            let path = entry.path().map_err(unreadable)?.into_owned();
            allowance.set(remaining);
            visit(self, &path, &mut entry).map_err(|fault| match fault {
                Fault::Image(reason) => ImageError::BadLayer {
                    layer: number,
                    path: path.display().to_string(),
                    reason,
                },
                Fault::Io(source) => ImageError::Io {
                    what: format!("layer {number}: {}", path.display()),
                    source,
                },
                Fault::NoRoom => ImageError::NoRoom,
            })?;
            // To the end, so that nothing of this file is left to be read under the allowance of the next header.
            io::copy(&mut entry, &mut io::sink()).map_err(unreadable)?;
            remaining = allowance.get();
        }
        // To the end here, too: a compressed layer that was cut off says so at its end.
        allowance.set(remaining);
        io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(unreadable)?;
        Ok(())
    }

    /// Takes what a file of this size takes of the disk, whatever it is and whatever is deleted again.
    fn take(&mut self, size: u64) -> Result<(), Fault> {
        let taken = size.saturating_add(FILE_BYTES);
        self.room = self.room.checked_sub(taken).ok_or(Fault::NoRoom)?;
        Ok(())
    }

    /// Deletes what a whiteout names.
    fn white_out(&mut self, path: &Path) -> Result<(), Fault> {
        let Some(name) = path
            .file_name()
            .map(OsStrExt::as_bytes)
            .filter(|name| name.starts_with(WHITEOUT))
        else {
            return Ok(());
        };
        let parent = self.resolve(path.parent().unwrap_or(Path::new("")))?;
        if name == OPAQUE {
            for child in fs::read_dir(parent)? {
                remove(&child?.path())?;
            }
            return Ok(());
        }
        match &name[WHITEOUT.len()..] {
            b"" | b"." | b".." => Err(Fault::Image(
                "it deletes no file of its directory".to_owned(),
            )),
            // Further names with a second prefix are AUFS's own notes.
            name if name.starts_with(WHITEOUT) => Ok(()),
            name => Ok(remove(&parent.join(OsStr::from_bytes(name)))?),
        }
    }

    /// Makes one file, directory or link, in place of what lower layers have there.
    fn entry<R: Read>(&mut self, path: &Path, entry: &mut tar::Entry<'_, R>) -> Result<(), Fault> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let Some(target) = self.place(path)? else {
            return Ok(());
        };
        let is_directory =
            |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
        if !(kind.is_dir() && is_directory(&target)) {
            remove(&target)?;
        }
        self.take(entry.size())?;
        let mode = Permissions::from_mode(entry.header().mode()? & MODE_MASK);
        match kind {
            tar::EntryType::Directory => {
                if !is_directory(&target) {
                    fs::create_dir(&target)?;
                }
                own(&target, entry)?;
                fs::set_permissions(&target, mode)?;
            }
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let mut file = File::create_new(&target)?;
                self.unpacked.bytes += io::copy(entry, &mut file)?;
                own(&target, entry)?;
                file.set_permissions(mode)?;
                file.set_modified(modified(entry)?)?;
            }
            tar::EntryType::Symlink => {
                symlink(link_name(entry)?, &target)?;
                own(&target, entry)?;
            }
            tar::EntryType::Link => {
                let Some(original) = self.place(&link_name(entry)?)? else {
                    return Err(Fault::Image(
                        "it is a hard link to the root directory".to_owned(),
                    ));
                };
                if !fs::symlink_metadata(&original).is_ok_and(|metadata| !metadata.is_dir()) {
                    return Err(Fault::Image(format!(
                        "it is a hard link to {:?}, which is no file",
                        link_name(entry)?
                    )));
                }
                fs::hard_link(original, &target)?;
            }
            tar::EntryType::GNUSparse => {
                return Err(Fault::Image("sparse files are not supported".to_owned()));
            }
            _ => {
                self.unpacked.skipped += 1;
                return Ok(());
            }
        }
        self.unpacked.files += 1;
        Ok(())
    }

    /// Where an entry goes: a path below the root whose parent exists and holds no symbolic link. `None` for whiteouts and
    /// for the root itself.
    fn place(&mut self, path: &Path) -> Result<Option<PathBuf>, Fault> {
        if path
            .components()
            .any(|component| component == Component::ParentDir)
        {
            return Err(Fault::Image("the path contains `..`".to_owned()));
        }
        let Some(name) = path
            .file_name()
            .filter(|name| !name.as_bytes().starts_with(WHITEOUT))
        else {
            return Ok(None);
        };
        let parent = self.resolve(path.parent().unwrap_or(Path::new("")))?;
        Ok(Some(parent.join(name)))
    }

    /// The directory that `path` is when the root is this one, as chroot(2) would resolve it. Those missing are made.
    fn resolve(&mut self, path: &Path) -> Result<PathBuf, Fault> {
        let mut resolved = PathBuf::new();
        let mut pending: VecDeque<OsString> = names(path).collect();
        let mut symlinks = 0;
        while let Some(name) = pending.pop_front() {
            if name == ".." {
                resolved.pop();
                continue;
            }
            let candidate = self.root.join(&resolved).join(&name);
            match fs::symlink_metadata(&candidate) {
                Ok(metadata) if metadata.is_dir() => resolved.push(name),
                Ok(metadata) if metadata.is_symlink() => {
                    symlinks += 1;
                    if symlinks > MAX_SYMLINKS {
                        return Err(Fault::Image(
                            "the path has too many symbolic links".to_owned(),
                        ));
                    }
                    let target = fs::read_link(&candidate)?;
                    if target.is_absolute() {
                        resolved.clear();
                    }
                    for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
                        pending.push_front(name);
                    }
                }
                Ok(_) => {
                    return Err(Fault::Image(format!(
                        "{:?} is not a directory",
                        resolved.join(name)
                    )));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.take(0)?;
                    fs::create_dir(&candidate)?;
                    fs::set_permissions(&candidate, Permissions::from_mode(0o755))?;
                    resolved.push(name);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.root.join(resolved))
    }
}

/// Why one entry cannot be unpacked.
enum Fault {
    /// The image is to blame.
    Image(String),
    /// The file system is.
    Io(io::Error),
    /// There is no room for it.
    NoRoom,
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        Fault::Io(error)
    }
}

/// A path's names, with `..`, without the root and `.`.
fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    })
}

fn link_name<R: Read>(entry: &tar::Entry<'_, R>) -> Result<PathBuf, Fault> {
    let name = entry
        .link_name()?
        .ok_or_else(|| Fault::Image("it is a link to nothing".to_owned()))?;
    Ok(name.into_owned())
}

fn modified<R: Read>(entry: &tar::Entry<'_, R>) -> Result<SystemTime, Fault> {
    let seconds = Duration::from_secs(entry.header().mtime()?);
    SystemTime::UNIX_EPOCH
        .checked_add(seconds)
        .ok_or_else(|| Fault::Image("its time of modification is out of range".to_owned()))
}

/// Removes a file, link or directory with all it contains, if there is one. Follows no link.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Gives a file to its owner in the image, where the caller may.
fn own<R: Read>(path: &Path, entry: &tar::Entry<'_, R>) -> Result<(), Fault> {
    let id = |id: u64| {
        u32::try_from(id)
            .map_err(|_| Fault::Image(format!("the owner {id} is no user or group number")))
    };
    let (uid, gid) = (id(entry.header().uid()?)?, id(entry.header().gid()?)?);
    match lchown(path, Some(uid), Some(gid)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => Ok(other?),
    }
}

/// The tar file in a layer.
fn decompress<'r>(
    media_type: &str,
    layer: impl Read + 'r,
) -> Result<Box<dyn Read + 'r>, ImageError> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Box::new(BufReader::new(layer))),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => {
            Ok(Box::new(BufReader::new(decoder(Compression::Gzip, layer))))
        }
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            Ok(Box::new(BufReader::new(decoder(Compression::Zstd, layer))))
        }
        other => Err(ImageError::UnsupportedLayer(other.to_owned())),
    }
}
