//! What a guest is to become.

use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::seccomp::LOADING_FILTERED;
use crate::{Error, Seccomp};

/// Bound of a launch body in bytes: the spec's strings, bounded before by the reader of config.json.
pub const MAX_LAUNCH: u64 = 32 << 20;

/// What a guest runs, as whom, and within which bounds.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
pub struct Program {
    /// argv of the program; `argv[0]` is the entrypoint, `path#function` allowed.
    pub args: Vec<String>,
    /// Environment of the program as `NAME=value`.
    pub env: Vec<String>,
    /// Working directory inside the container.
    pub cwd: String,
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// File mode creation mask; `None`: that of the guest's parent.
    pub umask: Option<u32>,
    /// Soft and hard limits by resource number of setrlimit(2).
    pub rlimits: Vec<(i32, u64, u64)>,
    /// CPU time in seconds after which the process is ended.
    pub cpu_time: Option<u64>,
    /// SIGTERM closes the sockets that listen and leaves the rest to the program.
    pub drain: bool,
    /// What the kernel lets the process call from the moment on that it loads the module; `None`: everything.
    pub seccomp: Option<Seccomp>,
    /// The AppArmor profile that the process is under before it loads the module; empty: that of the guest's parent.
    pub apparmor_profile: String,
    /// Its SELinux label, likewise.
    pub selinux_label: String,
    /// The guest is killed when the thread that has started it ends.
    pub with_parent: bool,
    /// How thoroughly its module is to be compiled.
    pub compile_mode: CompileMode,
}

/// As [`LOADING_FILTERED`], under an AppArmor profile.
const LOADING_PROFILED: &str = "; perhaps the profile of process.apparmorProfile forbids what loading a module takes: rules for it are file /artefact.so rm and network unix (unix send and receive)";

/// As [`LOADING_FILTERED`], under an SELinux label.
const LOADING_LABELLED: &str = "; perhaps the node's policy forbids process.selinuxLabel what loading a module takes: to read and map the cache's files and to use the shim's sockets";

impl Program {
    /// What the pod asks for that may be the cause where its module cannot be loaded, for people; empty where nothing is.
    pub fn loading_cause(&self) -> String {
        let causes = [
            (self.seccomp.is_some(), LOADING_FILTERED),
            (!self.apparmor_profile.is_empty(), LOADING_PROFILED),
            (!self.selinux_label.is_empty(), LOADING_LABELLED),
        ];
        let asked = causes.iter().filter(|(asked, _)| *asked);
        asked.map(|(_, cause)| *cause).collect()
    }
}

/// Everything a guest needs to become a container. Paths are of the host's mount namespace.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
pub struct Launch {
    /// What runs in it.
    pub program: Program,
    /// How the root file system is mounted, outermost last; empty: `root_path` is bound.
    pub root_mounts: Vec<Mount>,
    /// Directory with the mount points of this container that every pod's has: the lowest layer of an overlay root. Empty:
    /// none.
    pub mount_points: String,
    /// Directory with the root file system where there are no `root_mounts`.
    pub root_path: String,
    /// The root file system is read-only.
    pub root_readonly: bool,
    /// Volumes, in the spec's order.
    pub mounts: Vec<Mount>,
    /// SELinux label of the files in the guest's own file systems; empty: what the node's policy gives them.
    pub mount_label: String,
    /// Namespaces to join: path and CLONE_NEW… flag. An exec's are relative to the directory of the container's process. One of
    /// pids is joined last, by a new process.
    pub join: Vec<(String, i32)>,
    /// Namespaces to make: CLONE_NEW… flags (not pid, which needs a new process).
    pub unshare: i32,
    /// Host name for a new uts namespace; empty keeps the name.
    pub hostname: String,
    /// The user namespace that the program runs in: its ids are those inside.
    pub user_namespace: Option<UserNamespace>,
    /// The node's CA certificates at [`CA_CERTIFICATES`], where neither image nor volumes have that file.
    pub ca_certificates: bool,
    /// An empty directory that is the guest's to mount on, in its own namespace.
    pub skeleton: String,
    /// Directory of the artefact cache.
    pub cache_dir: String,
    /// Bound of the artefact cache in bytes.
    pub cache_bytes: u64,
    /// An exec: a descriptor of the directory in `/proc` of its container's process follows. Its file systems are shared, and
    /// nothing is mounted.
    pub is_exec: bool,
}

/// Which artefact is wanted.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq, Default)]
pub enum CompileMode {
    /// Optimised for small modules, quick for big ones.
    #[default]
    Auto,
    /// Compiled in a moment, runs slower.
    Quick,
    /// Fully optimised, whatever it takes.
    Full,
}

/// Modules up to this many bytes are compiled with all optimisation at once; above, a first start would wait too long:
/// 0.11 MB 2.7 s (0.2 s without), 1.7 MB 49 s (3.9 s), 14 MB 262 s on two cores.
pub const FULL_TIER_BYTES: u64 = 128 << 10;

impl CompileMode {
    /// True where a module of this many bytes is compiled with all optimisation now.
    pub fn is_full(self, size: u64) -> bool {
        match self {
            Self::Auto => size <= FULL_TIER_BYTES,
            Self::Quick => false,
            Self::Full => true,
        }
    }
}

/// What a pod has to resolve names by; CRI mounts both.
pub const RESOLVER_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Where a container has its CA certificates.
pub const CA_CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// One mount(2).
#[derive(Debug, Clone, Serialize, Deserialize, Default, PartialEq, Eq)]
pub struct Mount {
    /// Target inside the container; empty for the root.
    pub destination: String,
    /// File system type.
    pub kind: String,
    /// Device or directory.
    pub source: String,
    /// MS_… flags of mount(2), without propagation.
    pub flags: u64,
    /// MS_PRIVATE and the like, applied afterwards; 0 for none.
    pub propagation: u64,
    /// Read-only for submounts too.
    pub recursive_readonly: bool,
    /// File system options, comma-separated.
    pub data: String,
    /// Its files' ids are those inside the pod's user namespace.
    pub idmapped: bool,
}

/// A user namespace to join.
#[derive(Debug, Clone, Serialize, Deserialize, Default, PartialEq, Eq)]
pub struct UserNamespace {
    /// Where it is found.
    pub path: String,
    /// The host's id of the user who is 0 inside.
    pub root_uid: u32,
    /// The host's id of the group that is 0 inside.
    pub root_gid: u32,
}

/// Writes a launch body to a memfd, to be sent with [`ToGuest::Launch`].
///
/// # Errors
/// memfd_create's or write's; a body over [`MAX_LAUNCH`].
pub fn write_launch(launch: &Launch) -> Result<OwnedFd, Error> {
    let bytes = postcard::to_stdvec(launch)?;
    if bytes.len() as u64 > MAX_LAUNCH {
        return Err(Error::Encoding(postcard::Error::SerializeBufferFull));
    }
    let fd = rustix::fs::memfd_create(c"launch", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(&bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// Reads what [`write_launch`] wrote.
///
/// # Errors
/// read's; a body of another version.
pub fn read_launch(fd: OwnedFd) -> Result<Launch, Error> {
    let file = std::fs::File::from(fd);
    let size = file.metadata()?.len().min(MAX_LAUNCH);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    file.take(MAX_LAUNCH).read_to_end(&mut bytes)?;
    Ok(postcard::from_bytes(&bytes)?)
}
