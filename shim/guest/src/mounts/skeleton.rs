//! The root of the guest process itself.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountAttrFlags, UnmountFlags, move_mount, unmount};
use slipway_cache::Artefact;
use slipway_protocol::{Launch, RESOLVER_FILES};

use super::reachable::{self, Processes};
use super::tree::{CLOSED, FROM_DESCRIPTOR, add_attributes, attach, clone_tree, new_tmpfs};
use super::volumes::{mount_certificates, mount_volume, open_node_certificates, open_source};
use super::{ROOTFS, root};
use crate::devices;
use crate::paths::{make_target, resolve};
use crate::user::User;

/// Bound of the skeleton's tmpfs: directories and empty files.
const OPTIONS: [(&str, &str); 3] = [("size", "64k"), ("nr_inodes", "64"), ("mode", "755")];

/// Files of the skeleton that others are mounted on. An empty one of the resolver's says what a missing one does.
const MOUNT_POINTS: [&str; 3] = ["artefact.so", "etc/resolv.conf", "etc/hosts"];

/// What the C library reads to resolve a name, beside the files of the pod.
const OWN_RESOLVER_FILES: [(&str, &str); 2] = [
    // All addresses that /etc/hosts has for a name, of both families; not only its first line's.
    ("etc/host.conf", "multi on\n"),
    // Names in the place of a port number: the crate wasmedge_wasi_socket asks for "http" with each name.
    (
        "etc/services",
        "ftp 21/tcp\nssh 22/tcp\nsmtp 25/tcp\ndomain 53/tcp\ndomain 53/udp\nhttp 80/tcp\nntp 123/udp\n\
         https 443/tcp\nhttps 443/udp\nsyslog 514/udp\n",
    ),
];

/// What the root of every guest has, made before it is known which container this one becomes; mounted nowhere yet.
pub struct Skeleton {
    tree: OwnedFd,
    /// The container's /dev, until it has a place.
    dev: Option<OwnedFd>,
}

impl Skeleton {
    /// Makes it, its files with a label where one is given, in the mount namespace that came with the process: from there nothing
    /// reaches the node's (`slipway_sys::Exec::read_only`).
    pub fn make(label: &str) -> Result<Self, String> {
        let error = |e: &dyn std::fmt::Display| format!("skeleton: {e}");
        let closed = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let tree = new_tmpfs(&OPTIONS, label, closed).map_err(|e| error(&e))?;
        for name in ["rootfs", "etc"] {
            rustix::fs::mkdirat(&tree, name, Mode::from_raw_mode(0o755)).map_err(|e| error(&e))?;
        }
        let empty = MOUNT_POINTS.map(|name| (name, ""));
        for (name, text) in OWN_RESOLVER_FILES.into_iter().chain(empty) {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&tree, name, flags, Mode::from_raw_mode(0o644))
                .map_err(|e| error(&e))?;
            fs::File::from(file)
                .write_all(text.as_bytes())
                .map_err(|e| error(&e))?;
        }
        let dev = Some(devices::make(label)?);
        Ok(Self { tree, dev })
    }

    /// Mounts the root file system and the volumes; returns the root. The order of the phases is safety.
    pub fn mount_rootfs(
        &mut self,
        launch: &Launch,
        user: Option<&User<'_>>,
    ) -> Result<OwnedFd, String> {
        // 1. What lies in the host's tree is opened before the skeleton is a part of it.
        let sources = Sources::open(launch)?;
        // 2. The root is mounted below the skeleton. A device node of an image is none, nor one of a volume that is mounted below
        //    later: only those of /dev can be opened.
        self.attach(launch)?;
        let rootfs = rootfs(launch);
        root::mount(launch, sources.root, user)?;
        let mut root = open_directory(&rootfs).map_err(|e| format!("rootfs: {e}"))?;
        root::close(&root)?;
        // 3. What is made from here on belongs to the root of the pod's user namespace.
        let _owner = match user {
            Some(user) => {
                // The one that is there is the host's.
                self.dev = None;
                Some(user.own_files()?)
            }
            None => None,
        };
        // 4. /dev, and the volumes above and below it.
        self.mount_dev(root.as_fd(), &launch.mount_label)?;
        for (m, source) in launch.mounts.iter().zip(sources.volumes) {
            if let (Some(user), Some(source), true) = (user, &source, m.idmapped) {
                user.map(
                    source,
                    &format!("mounts: {} at {}", m.source, m.destination),
                )?;
            }
            mount_volume(root.as_fd(), m, source)?;
            if is_root(&m.destination) {
                // It covers the image's root.
                root = open_directory(&rootfs).map_err(|e| format!("rootfs: {e}"))?;
                self.mount_dev(root.as_fd(), &launch.mount_label)?;
            }
        }
        if let Some(source) = sources.certificates {
            mount_certificates(root.as_fd(), &launch.mounts, source)?;
        }
        // 5. Last, what closes the root: mount points can be made in it until here.
        if !launch.program.cwd.is_empty() && launch.program.cwd != "/" {
            // Like runc: a working directory that the image lacks is made.
            let _ = make_target(root.as_fd(), &launch.program.cwd, true);
        }
        if launch.root_readonly {
            add_attributes(&root, libc::MOUNT_ATTR_RDONLY)
                .map_err(|e| format!("root.readonly: {e}"))?;
        }
        Ok(root)
    }

    /// Gives the skeleton its place in this mount namespace.
    fn attach(&self, launch: &Launch) -> Result<(), String> {
        let error = |e| format!("skeleton {}: {e}", launch.skeleton);
        let directory = open_directory(&launch.skeleton).map_err(error)?;
        attach(&self.tree, &directory).map_err(error)
    }

    fn mount_dev(&mut self, root: BorrowedFd<'_>, label: &str) -> Result<(), String> {
        // An image that is read-only and has no /dev gets none; a volume below it fails by its own name.
        let Ok(target) = make_target(root, "/dev", true) else {
            return Ok(());
        };
        let dev = self.dev.take().map_or_else(|| devices::make(label), Ok)?;
        attach(&dev, &target).map_err(|e| format!("/dev: {e}"))
    }

    /// Binds the artefact and the pod's resolver files, and makes the skeleton the root of this process.
    pub fn enter(self, launch: &Launch, artefact: &Artefact) -> Result<(), String> {
        let error = |what: &str| {
            let what = what.to_string();
            move |e: rustix::io::Errno| format!("skeleton: {what}: {e}")
        };
        let skeleton = launch.skeleton.as_str();
        let place = |tree: &OwnedFd, name: &str| {
            let target = format!("{skeleton}{name}");
            move_mount(tree, "", CWD, target, FROM_DESCRIPTOR).map_err(error(name))
        };
        place(&artefact_tree(artefact)?, "/artefact.so")?;
        let root = open_directory(&rootfs(launch)).map_err(error("rootfs"))?;
        for file in RESOLVER_FILES {
            if launch.mounts.iter().any(|m| m.destination == file) {
                // Below the root by its descriptor: by path, an absolute symlink of the image would lead into the node's tree.
                let found = resolve(root.as_fd(), file).map_err(error(file))?;
                let tree = clone_tree(&found, "", false).map_err(error(file))?;
                add_attributes(&tree, CLOSED | libc::MOUNT_ATTR_NOEXEC)
                    .map_err(|e| format!("skeleton: {file}: {e}"))?;
                place(&tree, file)?;
            }
        }
        let node = Processes::open()?;
        std::env::set_current_dir(skeleton).map_err(|e| format!("skeleton: {e}"))?;
        slipway_sys::pivot_to_current_dir().map_err(|e| format!("skeleton: {e}"))?;
        reachable::check(&node.mountinfo()?)?;
        if !launch.program.apparmor_profile.is_empty() {
            lay_over(&root).map_err(error("the container's root"))?;
        }
        add_attributes(&self.tree, CLOSED).map_err(|e| format!("skeleton: read-only: {e}"))
    }
}

/// Lays the container's root over the guest's own, for AppArmor: it names a file by its path from the topmost mount, and a profile
/// is written for the container's paths, `/data` and not `/rootfs/data`. The guest's root stays what it was: a path from it
/// begins below what lies over it, and above it, at `..`, is what does. So `/rootfs` leads there as before.
fn lay_over(root: &OwnedFd) -> rustix::io::Result<()> {
    move_mount(root, "", CWD, "/", FROM_DESCRIPTOR)?;
    // Where a volume at `/` is the root, what it has covered is still there.
    while rustix::fs::rmdir(ROOTFS) == Err(rustix::io::Errno::BUSY) {
        unmount(ROOTFS, UnmountFlags::DETACH)?;
    }
    rustix::fs::symlink("..", ROOTFS)
}

/// The artefact, to be mounted where the guest loads it from.
pub fn artefact_tree(artefact: &Artefact) -> Result<OwnedFd, String> {
    let tree = clone_tree(artefact.file(), "", false).map_err(|e| format!("artefact: {e}"))?;
    add_attributes(&tree, CLOSED).map_err(|e| format!("artefact: {e}"))?;
    Ok(tree)
}

/// Where the container's root is before the skeleton becomes the guest's.
pub fn rootfs(launch: &Launch) -> String {
    format!("{}/rootfs", launch.skeleton)
}

fn open_directory(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}

/// Whether a volume is the container's root itself.
fn is_root(destination: &str) -> bool {
    destination.split('/').all(|part| matches!(part, "" | "."))
}

/// Mounts of their own of what the container gets of the host's tree, attached nowhere yet.
struct Sources {
    /// The root, where it is a directory and no mounts of a snapshotter's.
    root: Option<OwnedFd>,
    /// In the order of the launch's mounts; a tmpfs has none.
    volumes: Vec<Option<OwnedFd>>,
    /// The node's CA certificates, where the pod asks for them.
    certificates: Option<OwnedFd>,
}

impl Sources {
    fn open(launch: &Launch) -> Result<Self, String> {
        let clone = || {
            clone_tree(CWD, &launch.root_path, true)
                .map_err(|e| format!("root.path {}: {e}", launch.root_path))
        };
        Ok(Self {
            root: launch.root_mounts.is_empty().then(clone).transpose()?,
            volumes: launch
                .mounts
                .iter()
                .map(open_source)
                .collect::<Result<_, _>>()?,
            certificates: launch
                .ca_certificates
                .then(open_node_certificates)
                .transpose()?,
        })
    }
}
