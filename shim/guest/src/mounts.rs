//! The file systems that a Wasm container sees, in the guest's own mount namespace: the node's never changes.
//!
//! ```text
//! /                 skeleton: a read-only tmpfs, the root of the guest process itself
//! ├── rootfs/       the container's root with its volumes; all that WASI gets, as the preopen "/"
//! ├── artefact.so   read-only bind of the cache's entry
//! └── etc/          resolv.conf and hosts of the pod, host.conf and services: for name resolution in an image that holds
//!                   nothing but a module
//! ```
//! Every path of the container is resolved below its root by openat2(2) with RESOLVE_IN_ROOT: a symlink of an image
//! cannot lead a mount anywhere else.
//!
//! Attributes are only ever added to a mount, by mount_setattr(2). A remount by mount(2) would replace all that it has, and so
//! take `nodev` off a root that is to be read-only. [`check_reachable`] compares the result with the kernel's list.

use std::ffi::CStr;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount,
    mount_change, move_mount, open_tree, unmount,
};
use slipway_cache::Artefact;
use slipway_protocol::{CA_CERTIFICATES, Launch, Mount, RESOLVER_FILES};
use slipway_sys::{MountAttributes, set_mount_attributes};

use crate::user::User;
use crate::{devices, path};

/// The container's root as the guest sees it after [`Skeleton::enter`]. It can be a link ([`lay_over`]): with `/.` it is a directory for
/// the engine, too, which follows none.
pub const ROOTFS: &str = "/rootfs";
/// The artefact as the guest sees it after [`Skeleton::enter`].
pub const ARTEFACT: &CStr = c"/artefact.so";
/// Bound of the skeleton's tmpfs: directories and empty files.
const SKELETON_OPTIONS: [(&str, &str); 3] = [("size", "64k"), ("nr_inodes", "64"), ("mode", "755")];
/// Bound of the container's /dev: devices, mount points and what programs put there.
const DEV_OPTIONS: [(&str, &str); 3] = [("size", "64k"), ("nr_inodes", "256"), ("mode", "755")];

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

/// Joins and makes the namespaces of the plan. New ones of pids and mounts came with the process; one of pids that is joined
/// is for its child.
pub fn enter_namespaces(launch: &Launch, container: Option<BorrowedFd<'_>>) -> Result<(), String> {
    for (ns, kind) in &launch.join {
        let file = open_namespace(ns, container)?;
        slipway_sys::setns(file.as_fd(), *kind)
            .map_err(|e| format!("linux.namespaces: join {ns}: {e}"))?;
    }
    unshare(launch.unshare & !libc::CLONE_NEWCGROUP)?;
    if launch.unshare & libc::CLONE_NEWNET != 0 {
        slipway_sys::set_loopback_up().map_err(|e| format!("loopback interface: {e}"))?;
    }
    if launch.unshare & libc::CLONE_NEWUTS != 0 && !launch.hostname.is_empty() {
        rustix::system::sethostname(launch.hostname.as_bytes())
            .map_err(|e| format!("hostname {:?}: {e}", launch.hostname))?;
    }
    Ok(())
}

/// A namespace's file; an exec's is found from its container's process.
pub fn open_namespace(path: &str, container: Option<BorrowedFd<'_>>) -> Result<OwnedFd, String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(container.unwrap_or(CWD), path, flags, Mode::empty())
        .map_err(|e| format!("linux.namespaces: {path}: {e}"))
}

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
        let nodev = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let tree = new_tmpfs(&SKELETON_OPTIONS, label, nodev).map_err(|e| error(&e))?;
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
        let dev = Some(new_dev(label)?);
        Ok(Self { tree, dev })
    }

    /// Mounts the root file system and the volumes; returns the root.
    pub fn mount_rootfs(
        &mut self,
        launch: &Launch,
        user: Option<&User<'_>>,
    ) -> Result<OwnedFd, String> {
        // What lies in the host's tree is opened before the skeleton is a part of it.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let given = match launch.root_mounts.is_empty() {
            true => Some(
                clone_tree(CWD, &launch.root_path, true)
                    .map_err(|e| format!("root.path {}: {e}", launch.root_path))?,
            ),
            false => None,
        };
        let volumes = launch
            .mounts
            .iter()
            .map(open_source)
            .collect::<Result<Vec<_>, _>>()?;
        let certificates = match launch.ca_certificates {
            true => Some(open_node_certificates()?),
            false => None,
        };
        let skeleton = launch.skeleton.as_str();
        let error = |e| format!("skeleton {skeleton}: {e}");
        let directory = rustix::fs::openat(CWD, skeleton, flags, Mode::empty()).map_err(error)?;
        attach(&self.tree, &directory).map_err(error)?;
        let rootfs = rootfs(launch);
        match given {
            Some(root) => move_mount(&root, "", CWD, rootfs.as_str(), FROM_DESCRIPTOR)
                .map_err(|e| format!("root.path {}: {e}", launch.root_path))?,
            None => {
                for m in &launch.root_mounts {
                    match user.filter(|_| m.idmapped) {
                        Some(user) => user.mount_root(m, &rootfs, skeleton)?,
                        None => mount_root(m, &rootfs, &launch.mount_points)?,
                    }
                }
            }
        }
        let open_root = || {
            rustix::fs::openat(CWD, rootfs.as_str(), flags, Mode::empty())
                .map_err(|e| format!("rootfs: {e}"))
        };
        let mut root = open_root()?;
        // A device node of an image is none, nor one of a volume below: only those of /dev can be opened.
        let attributes = MountAttributes {
            set: libc::MOUNT_ATTR_NODEV,
            propagation: libc::MS_SLAVE,
            ..MountAttributes::default()
        };
        set_mount_attributes(root.as_fd(), attributes, true)
            .map_err(|e| format!("rootfs: nodev and propagation: {e}"))?;
        let _owner = match user {
            Some(user) => {
                // The one that is there is the host's.
                self.dev = None;
                Some(user.own_files()?)
            }
            None => None,
        };
        self.mount_dev(root.as_fd(), &launch.mount_label)?;
        for (m, source) in launch.mounts.iter().zip(volumes) {
            if let (Some(user), Some(source), true) = (user, &source, m.idmapped) {
                user.map(
                    source,
                    &format!("mounts: {} at {}", m.source, m.destination),
                )?;
            }
            mount_volume(root.as_fd(), m, source)?;
            if m.destination
                .split('/')
                .all(|part| matches!(part, "" | "."))
            {
                // It covers the image's root.
                root = open_root()?;
                self.mount_dev(root.as_fd(), &launch.mount_label)?;
            }
        }
        if let Some(source) = certificates {
            mount_certificates(root.as_fd(), &launch.mounts, source)?;
        }
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

    fn mount_dev(&mut self, root: BorrowedFd<'_>, label: &str) -> Result<(), String> {
        // An image that is read-only and has no /dev gets none; a volume below it fails by its own name.
        let Ok(target) = make_target(root, "/dev", true) else {
            return Ok(());
        };
        let dev = self.dev.take().map_or_else(|| new_dev(label), Ok)?;
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
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, rootfs(launch), flags, Mode::empty())
            .map_err(error("rootfs"))?;
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
        check_reachable(&node.mountinfo()?)?;
        if !launch.program.apparmor_profile.is_empty() {
            lay_over(&root).map_err(error("the container's root"))?;
        }
        add_attributes(&self.tree, CLOSED | libc::MOUNT_ATTR_NOEXEC)
            .map_err(|e| format!("skeleton: read-only: {e}"))
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

/// What the guest's own mounts have: nothing can be written through them, and no device be opened.
const CLOSED: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
/// A tree that was cloned or made goes where it is told to.
const FROM_DESCRIPTOR: MoveMountFlags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;

/// A mount of its own, attached nowhere yet, of what lies at a path; an empty one means the descriptor itself.
pub fn clone_tree(at: impl AsFd, path: &str, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.is_empty());
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(at, path, flags)
}

/// Adds `MOUNT_ATTR_…` to one mount; what it has stays.
fn add_attributes(mount: &OwnedFd, set: u64) -> std::io::Result<()> {
    let attributes = MountAttributes {
        set,
        ..MountAttributes::default()
    };
    set_mount_attributes(mount.as_fd(), attributes, false)
}

/// The artefact, to be mounted where the guest loads it from.
fn artefact_tree(artefact: &Artefact) -> Result<OwnedFd, String> {
    let tree = clone_tree(artefact.file(), "", false).map_err(|e| format!("artefact: {e}"))?;
    add_attributes(&tree, CLOSED).map_err(|e| format!("artefact: {e}"))?;
    Ok(tree)
}

/// The node's procfs, which the guest loses with its old root.
struct Processes(OwnedFd);

impl Processes {
    fn open() -> Result<Self, String> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::openat(CWD, "/proc", flags, Mode::empty());
        open.map(Self).map_err(|e| format!("/proc: {e}"))
    }

    /// The mounts below this process's root, as the kernel lists them (proc_pid_mountinfo(5)).
    fn mountinfo(&self) -> Result<String, String> {
        let error = |e: std::io::Error| format!("/proc/self/mountinfo: {e}");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.0, "self/mountinfo", flags, Mode::empty());
        let mut text = String::new();
        fs::File::from(file.map_err(|e| error(e.into()))?)
            .read_to_string(&mut text)
            .map_err(error)?;
        Ok(text)
    }
}

/// What holds for all that a program can reach, whatever the pod asked for and whatever lies below a volume on the node: no
/// device but those of [`DEV`], and no procfs. Through `/proc/self/mem` a module would write to its own engine.
fn check_reachable(mountinfo: &str) -> Result<(), String> {
    for line in mountinfo.lines() {
        // id, parent, device, root, mount point, options, optional fields, -, type, source, options
        let fields = line.split_once(" - ");
        let (Some(at), Some(options), Some(kind)) = (
            line.split(' ').nth(4),
            line.split(' ').nth(5),
            fields.and_then(|(_, right)| right.split(' ').next()),
        ) else {
            return Err(format!(
                "/proc/self/mountinfo: a line of another form: {line:?}"
            ));
        };
        let inside = at.strip_prefix("/rootfs").unwrap_or(at);
        if kind == "proc" {
            return Err(no_procfs(inside));
        }
        if at != DEV && !options.split(',').any(|option| option == "nodev") {
            return Err(format!(
                "mounts: {inside}: devices could be opened there (nodev is missing)"
            ));
        }
    }
    Ok(())
}

/// Where the guest's own devices are.
const DEV: &str = "/rootfs/dev";

fn no_procfs(at: &str) -> String {
    format!(
        "mounts: {at}: a procfs, by which a module could write to its own engine, and see the node's processes: leave the volume out, or choose a directory of the node that has none below it"
    )
}

/// Where the container's root is before the skeleton becomes the guest's.
fn rootfs(launch: &Launch) -> String {
    format!("{}/rootfs", launch.skeleton)
}

/// A /dev of its own, mounted nowhere yet.
fn new_dev(label: &str) -> Result<OwnedFd, String> {
    let noexec = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let dev = new_tmpfs(&DEV_OPTIONS, label, noexec);
    let filled = dev.and_then(|dev| devices::populate(dev.as_fd()).map(|()| dev));
    filled.map_err(|e| format!("/dev: {e}"))
}

/// A tmpfs that is mounted nowhere yet; its files have an SELinux label where one is given.
fn new_tmpfs(
    options: &[(&str, &str)],
    label: &str,
    attributes: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (option, value) in options {
        fsconfig_set_string(&fs, *option, *value)?;
    }
    if !label.is_empty() {
        fsconfig_set_string(&fs, "context", label)?;
    }
    fsconfig_create(&fs)?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Mounts what is mounted nowhere yet.
fn attach(tree: &OwnedFd, target: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", flags)
}

/// The file systems of a container that runs, for an exec in it.
pub struct Shared {
    mounts: OwnedFd,
    /// The guest's root. The kernel would give what lies over it ([`lay_over`]).
    skeleton: OwnedFd,
    /// The directory in `/proc` of its process; it goes with this value, for it leads to the node's.
    process: OwnedFd,
}

impl Shared {
    /// Those of the guest with this directory in `/proc`.
    pub fn of(process: OwnedFd) -> Result<Self, String> {
        let mounts = open_namespace("ns/mnt", Some(process.as_fd()))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let skeleton = rustix::fs::openat(&process, "root", flags, Mode::empty())
            .map_err(|e| format!("the container's skeleton: {e}"))?;
        Ok(Self {
            mounts,
            skeleton,
            process,
        })
    }

    /// The container's root.
    pub fn rootfs(&self) -> Result<OwnedFd, String> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.process, "root/rootfs", flags, Mode::empty())
            .map_err(|e| format!("the container's root: {e}"))
    }

    /// Makes the container's skeleton the root of this process, with its own artefact in the place of the container's.
    pub fn enter(self, artefact: &Artefact) -> Result<(), String> {
        let error = |what: &str| {
            let what = what.to_string();
            move |e: rustix::io::Errno| format!("the container's skeleton: {what}: {e}")
        };
        // Cloned while this process is where the file was opened: elsewhere its mount could not be.
        let tree = artefact_tree(artefact)?;
        slipway_sys::setns(self.mounts.as_fd(), libc::CLONE_NEWNS)
            .map_err(|e| format!("the container's mounts: {e}"))?;
        rustix::process::fchdir(&self.skeleton)
            .and_then(|()| rustix::process::chroot("."))
            .map_err(error("root"))?;
        unshare(libc::CLONE_NEWNS)?;
        mount_change(
            "/",
            MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        )
        .map_err(error("propagation"))?;
        move_mount(&tree, "", CWD, ARTEFACT, FROM_DESCRIPTOR).map_err(error("artefact"))
    }
}

/// A new cgroup namespace, whose root is the cgroup that the process is in when it is made.
pub fn unshare_cgroup(launch: &Launch) -> Result<(), String> {
    unshare(launch.unshare & libc::CLONE_NEWCGROUP)
}

fn unshare(namespaces: i32) -> Result<(), String> {
    if namespaces == 0 {
        return Ok(());
    }
    slipway_sys::unshare(namespaces)
        .map_err(|e| format!("linux.namespaces: make {namespaces:#x}: {e}"))
}

/// One of the snapshotter's mounts, as containerd's mount package does it.
pub fn mount_root(m: &Mount, rootfs: &str, mount_points: &str) -> Result<(), String> {
    let error = |e: rustix::io::Errno| {
        format!(
            "rootfs: mount {} from {:?} ({}): {e}",
            m.kind, m.source, m.data
        )
    };
    let flags = MountFlags::from_bits_retain(m.flags as u32);
    if m.flags & libc::MS_BIND != 0 {
        let tree = clone_tree(CWD, &m.source, true).map_err(error)?;
        set_mount_attributes(tree.as_fd(), attributes(m.flags), false)
            .map_err(|e| format!("rootfs: options of {}: {e}", m.source))?;
        return move_mount(&tree, "", CWD, rootfs, FROM_DESCRIPTOR).map_err(error);
    }
    let with = |data: &str| {
        let data = path(data, "rootfs options")?;
        let source = m.source.as_str();
        mount(
            source,
            rootfs,
            m.kind.as_str(),
            flags,
            Some(data.as_c_str()),
        )
        .map_err(error)
    };
    match with_lowest_layer(m, mount_points) {
        // The kernel bounds how deep overlays lie on each other, and the installation may lie on one.
        Some(data) => with(&data).or_else(|_| with(&m.data)),
        None => with(&m.data),
    }
}

/// Options of an overlay with one more layer below all others. Made in the upper layer, each mount point would be a
/// write to the node's disk: 0.08 ms each on ext4.
fn with_lowest_layer(m: &Mount, layer: &str) -> Option<String> {
    /// The kernel takes one page.
    const MAX_OPTIONS: usize = 4095;
    if m.kind != "overlay" || layer.is_empty() || layer.contains([':', ',', '\\']) {
        return None;
    }
    let options = m.data.split(',').map(|option| match option {
        lower if lower.starts_with("lowerdir=") => format!("{lower}:{layer}"),
        other => other.to_string(),
    });
    let data = options.collect::<Vec<_>>().join(",");
    (data.len() <= MAX_OPTIONS).then_some(data)
}

/// A bind mount's source, cloned from the host's tree; tmpfs has none.
fn open_source(m: &Mount) -> Result<Option<OwnedFd>, String> {
    if m.flags & libc::MS_BIND == 0 {
        return Ok(None);
    }
    let error = |e| format!("mounts: source {} of {}: {e}", m.source, m.destination);
    let tree = clone_tree(CWD, &m.source, m.flags & libc::MS_REC != 0).map_err(error)?;
    // Those below it are found by `check_reachable`, when they have a place.
    match is_procfs(&tree).map_err(error)? {
        true => Err(no_procfs(&m.destination)),
        false => Ok(Some(tree)),
    }
}

fn mount_volume(root: BorrowedFd<'_>, m: &Mount, source: Option<OwnedFd>) -> Result<(), String> {
    let at = &m.destination;
    let error = |e: rustix::io::Errno| format!("mounts: {} at {at}: {e}", m.source);
    let directory = match &source {
        Some(fd) => is_directory(fd).map_err(error)?,
        None => true,
    };
    let target = make_target(root, at, directory)?;
    if is_directory(&target).map_err(error)? != directory {
        let (volume, there) = match directory {
            true => ("a directory", "a file"),
            false => ("a file", "a directory"),
        };
        return Err(format!(
            "mounts: {} at {at}: it is {volume}, and the container has {there} there: choose another path, or a part of the volume by subPath",
            m.source
        ));
    }
    if let Some(tree) = source {
        set_attributes(&tree, m)?;
        return attach(&tree, &target).map_err(error);
    }
    let flags = MountFlags::from_bits_retain(m.flags as u32);
    let data = path(&m.data, "mounts.options")?;
    mount(
        "tmpfs",
        magic(&target),
        "tmpfs",
        flags,
        Some(data.as_c_str()),
    )
    .map_err(error)?;
    // The descriptor still means what lies below the new mount.
    set_attributes(&resolve(root, at).map_err(error)?, m)
}

/// The node's CA certificates, where its distribution has them in one file: Debian, Alpine and Arch; Fedora; SUSE.
const NODE_CERTIFICATES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];

/// The first of them that the node has, cloned from its tree.
fn open_node_certificates() -> Result<OwnedFd, String> {
    let found = NODE_CERTIFICATES
        .iter()
        .find_map(|file| clone_tree(CWD, file, false).ok());
    found.ok_or_else(|| {
        format!(
            "annotations[slipway.dev/ca-certificates]: this node has none of {}: install its ca-certificates, or bring them by a volume",
            NODE_CERTIFICATES.join(", "),
        )
    })
}

/// Mounts the node's CA certificates where neither the image nor a volume has or hides that file.
fn mount_certificates(
    root: BorrowedFd<'_>,
    volumes: &[Mount],
    source: OwnedFd,
) -> Result<(), String> {
    let covered = |m: &Mount| Path::new(CA_CERTIFICATES).starts_with(&m.destination);
    if volumes.iter().any(covered) || resolve(root, CA_CERTIFICATES).is_ok() {
        return Ok(());
    }
    let m = Mount {
        destination: CA_CERTIFICATES.into(),
        source: "the node's CA certificates".into(),
        flags: libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NOEXEC,
        ..Mount::default()
    };
    mount_volume(root, &m, Some(source))
}

/// A volume's own attributes, and those of everything below it.
pub fn set_attributes(mounted: &OwnedFd, m: &Mount) -> Result<(), String> {
    let error = |e: std::io::Error| format!("mounts: options of {}: {e}", m.destination);
    let mut own = attributes(m.flags);
    let mut all = MountAttributes {
        set: libc::MOUNT_ATTR_NODEV,
        ..MountAttributes::default()
    };
    if m.recursive_readonly {
        all.set |= libc::MOUNT_ATTR_RDONLY;
    }
    match (m.propagation & !libc::MS_REC, m.propagation & libc::MS_REC) {
        (0, _) => all.propagation = libc::MS_PRIVATE,
        (propagation, 0) => own.propagation = propagation,
        (propagation, _) => all.propagation = propagation,
    }
    set_mount_attributes(mounted.as_fd(), all, true).map_err(error)?;
    match own == MountAttributes::default() {
        true => Ok(()),
        false => set_mount_attributes(mounted.as_fd(), own, false).map_err(error),
    }
}

/// mount(2)'s flags that a single mount has, as mount_setattr(2) takes them.
fn attributes(flags: u64) -> MountAttributes {
    const ATTRIBUTES: [(u64, u64, u64); 8] = [
        (libc::MS_RDONLY, libc::MOUNT_ATTR_RDONLY, 0),
        (libc::MS_NOSUID, libc::MOUNT_ATTR_NOSUID, 0),
        (libc::MS_NODEV, libc::MOUNT_ATTR_NODEV, 0),
        (libc::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC, 0),
        (libc::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME, 0),
        (
            libc::MS_RELATIME,
            libc::MOUNT_ATTR_RELATIME,
            libc::MOUNT_ATTR__ATIME,
        ),
        (
            libc::MS_NOATIME,
            libc::MOUNT_ATTR_NOATIME,
            libc::MOUNT_ATTR__ATIME,
        ),
        (
            libc::MS_STRICTATIME,
            libc::MOUNT_ATTR_STRICTATIME,
            libc::MOUNT_ATTR__ATIME,
        ),
    ];
    let wanted = ATTRIBUTES.iter().filter(|(flag, ..)| flags & flag != 0);
    wanted.fold(MountAttributes::default(), |all, (_, set, clear)| {
        MountAttributes {
            set: all.set | set,
            clear: all.clear | clear,
            ..all
        }
    })
}

/// A path below the container's root, symlinks followed as if the root were `/`.
pub fn resolve(root: BorrowedFd<'_>, at: &str) -> rustix::io::Result<OwnedFd> {
    openat2(
        root,
        at,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// A directory below the container's root, likewise; ENOTDIR where it is something else.
pub fn resolve_directory(root: BorrowedFd<'_>, at: &str) -> rustix::io::Result<OwnedFd> {
    let found = resolve(root, at)?;
    match is_directory(&found)? {
        true => not_procfs(&found).map(|()| found),
        false => Err(rustix::io::Errno::NOTDIR),
    }
}

fn is_directory(found: &OwnedFd) -> rustix::io::Result<bool> {
    Ok(rustix::fs::fstat(found)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// EACCES for what lies on a procfs: the node may have mounted one below a volume since the container's mounts were checked.
pub fn not_procfs(found: impl AsFd) -> rustix::io::Result<()> {
    match is_procfs(found)? {
        true => Err(rustix::io::Errno::ACCESS),
        false => Ok(()),
    }
}

/// Whether it lies on a procfs.
pub fn is_procfs(found: impl AsFd) -> rustix::io::Result<bool> {
    Ok(rustix::fs::fstatfs(found)?.f_type == libc::PROC_SUPER_MAGIC)
}

/// The container's own `/dev/null`; none where its root is read-only and has no `/dev`. After [`Skeleton::enter`].
pub fn own_null() -> Option<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let null = rustix::fs::openat(CWD, "/rootfs/dev/null", flags, Mode::empty()).ok()?;
    is_null(&null).then_some(null)
}

/// Whether a descriptor is a null device, whoever's.
pub fn is_null(fd: impl AsFd) -> bool {
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::fstat(fd)
        .is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFCHR && s.st_rdev == null)
}

/// A mount point below the container's root, made with its parents where it is missing.
fn make_target(root: BorrowedFd<'_>, at: &str, directory: bool) -> Result<OwnedFd, String> {
    let mut so_far = String::from("/");
    let mut parent = resolve(root, "/").map_err(|e| format!("mounts: {at}: {e}"))?;
    let mut parts = at
        .split('/')
        .filter(|p| !p.is_empty() && *p != ".")
        .peekable();
    while let Some(part) = parts.next() {
        so_far.push_str(part);
        let is_file = parts.peek().is_none() && !directory;
        let error = |e: rustix::io::Errno| format!("mounts: make {so_far} for {at}: {e}");
        parent = match resolve(root, &so_far) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => {
                if is_file {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                    rustix::fs::openat(&parent, part, flags, Mode::from_raw_mode(0o644))
                        .map(drop)
                        .map_err(error)?;
                } else {
                    rustix::fs::mkdirat(&parent, part, Mode::from_raw_mode(0o755))
                        .map_err(error)?;
                }
                resolve(root, &so_far).map_err(error)?
            }
            Err(e) => return Err(error(e)),
        };
        so_far.push('/');
    }
    Ok(parent)
}

/// A descriptor as a path for the calls that take only paths.
pub fn magic(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
