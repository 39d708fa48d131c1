//! The handshake between whoever starts a guest (shim, command line) and the guest process.
//!
//! One `SOCK_SEQPACKET` pair; every packet is one postcard-encoded message, with descriptors where the table says so.
//!
//! ```text
//! host                                   guest
//!   ◀─ Waiting                             │  engine loaded
//!   Launch + [budget, body, process?, module?] ▶│  no privileges dropped, nothing hostile seen
//!   (makes the cgroup meanwhile)           │  joins namespaces, mounts
//!   Cgroup + [tasks…] ────────────────────▶│  moves itself there, resolves the entrypoint
//!   ◀─ NoEntrypoint                        │  only where the image has no such file, and no module was given
//!   Layer + [module] ─────────────────────▶│  the image is a Wasm artefact
//!   ◀─ NeedArtefact + [module]             │  only on a cache miss
//!   Artefact ─────────────────────────────▶│  look again
//!   ◀─ Unoptimised + [module]             │  only where the cache has a quick artefact in place of a full one
//!   ◀─ Resolved                            │  Create answers, where it has not done so during a long compile; the guest pivots,
//!                                          │  drops privileges, loads the artefact
//!   ◀─ Replaced + [pidfd]                  │  in place of Resolved, where the guest joins a pid namespace: it has pivoted and
//!                                          │  dropped its privileges, and goes on as a new process that was born there
//!   ◀─ Ready                               │
//!   Start + [stdin, stdout, stderr] ──────▶│  runs the entrypoint
//!   ◀─ Ended                               │  then exits
//! ```
//! The streams come last: to open containerd's FIFOs and close them again would end them for the runtime that a Linux
//! program is handed to.
//!
//! In place of any of its messages the guest may send `NotWasm`, `NoEntrypoint` or `Failed`; it waits for its end then,
//! so that an error of loading is Start's answer and not an exit of a container that never ran. An end without a message
//! means that it was killed: by SIGKILL, by the kernel's OOM killer, or by a fault that no handler could report.

use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

mod budget;
mod facts;
mod names;
mod printable;
mod seccomp;
mod timeline;
pub use budget::{
    Budget, BudgetPage, GuestShare, HostShare, MAX_SHARES, PAGE_BYTES, Refusal, Usage,
};
pub use facts::{Call, Facts, Purpose, aot_status};
pub use names::{encode_names, find_name};
pub use printable::printable;
use seccomp::LOADING_FILTERED;
pub use seccomp::{FORBIDDEN_CALL, Instruction, KILLED_CALL, Seccomp};
pub use timeline::Timeline;

/// The guest's end of the pair is this descriptor.
pub const CONTROL_FD: i32 = 3;
/// A packet's bound in bytes; a launch body is not a packet (it travels as a memfd).
pub const MAX_PACKET: usize = 64 << 10;
/// Bound of a launch body in bytes: the spec's strings, bounded before by the reader of config.json.
pub const MAX_LAUNCH: u64 = 32 << 20;
/// The longest text in a message, in bytes: the rest of it is left out. A spec's strings are longer than a packet may be.
const MAX_TEXT: usize = 16 << 10;
/// Most descriptors in one packet.
const MAX_FDS: usize = 16;

/// From the host to the guest.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToGuest {
    /// What to become: descriptors of the budget, of a [`Launch`], of the container's process for an exec, and of the module
    /// where it is no file of the container.
    Launch {
        /// Which of the budget's shares is this guest's.
        share: usize,
    },
    /// The cgroup is there: descriptors of files into which the guest writes `0` to move itself. None where it was born
    /// inside.
    Cgroup,
    /// The module is a layer of the image, not a file of its root: the packet's descriptor.
    Layer,
    /// The artefact was compiled (or the module refused): look it up again.
    Artefact,
    /// The artefact cannot be made; the text is the container's error.
    NoArtefact(#[serde(serialize_with = "cut")] String),
    /// Run the entrypoint on the three standard streams in the packet.
    Start {
        /// They are a terminal, which becomes the process's own.
        terminal: bool,
    },
}

/// From the guest to the host.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromGuest {
    /// The engine is loaded: what comes now is Launch.
    Waiting,
    /// The cache has no artefact of the module in the packet's descriptor.
    NeedArtefact {
        /// Which module.
        module: Module,
        /// What the cache said about a damaged entry, for the log.
        damaged: Option<String>,
    },
    /// The module in the packet's descriptor runs, but unoptimised: compiled in full, its next start would do better.
    Unoptimised(Module),
    /// The entrypoint is a program for Linux, not for this engine.
    NotWasm(#[serde(serialize_with = "cut")] String),
    /// The image's root file system has no such file (an artefact image has none at all).
    NoEntrypoint(#[serde(serialize_with = "cut")] String),
    /// The entrypoint is a module that this node can run, and its artefact is there. With the steps that led there.
    Resolved(Timeline),
    /// As `Resolved`, and another process goes on: born in the pid namespace that the guest was to join. Whoever is in there
    /// may trace the guest, so it comes without any power. The packet's descriptor is its pidfd.
    Replaced {
        /// Its id in the host's pid namespace; a child of the host.
        pid: i32,
        /// The steps so far.
        steps: Timeline,
    },
    /// The module is loaded, nothing of it has run. With the steps since `Resolved`.
    Ready(Timeline),
    /// Create failed; the text names file, offset or field, and the remedy.
    Failed(#[serde(serialize_with = "cut")] String),
    /// The program ended.
    Ended(End),
}

impl FromGuest {
    /// The message's name, for errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Waiting => "Waiting",
            Self::NeedArtefact { .. } => "NeedArtefact",
            Self::Unoptimised(_) => "Unoptimised",
            Self::NotWasm(_) => "NotWasm",
            Self::NoEntrypoint(_) => "NoEntrypoint",
            Self::Resolved(_) => "Resolved",
            Self::Replaced { .. } => "Replaced",
            Self::Ready(_) => "Ready",
            Self::Failed(_) => "Failed",
            Self::Ended(_) => "Ended",
        }
    }
}

/// A module as the cache knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Module {
    /// sha256 of its bytes.
    pub digest: [u8; 32],
    /// Size in bytes.
    pub size: u64,
    /// Where it was found, for messages.
    #[serde(serialize_with = "cut")]
    pub path: String,
    /// The engine's part of the artefact's key.
    pub engine: String,
}

/// How a program ended.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct End {
    /// Exit status as containers report it: the program's, or 128 + signal.
    pub status: u8,
    /// What to tell a person who did not read the program's own output; empty for an ordinary end.
    #[serde(serialize_with = "cut")]
    pub reason: String,
    /// A growth of memory was refused before an abnormal end.
    pub out_of_memory: bool,
}

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
    /// Wanted optimisation.
    pub tier: Tier,
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
pub enum Tier {
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

impl Tier {
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

/// A failure of the handshake itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other side is gone.
    #[error("the other side has closed the control socket")]
    Closed,
    /// The system call failed.
    #[error("control socket: {0}")]
    Io(#[from] io::Error),
    /// Whoever speaks is not the guest: the process with this id.
    #[error("control socket: a message of process {0}, which is not the guest")]
    Stranger(i32),
    /// Not a message of this version.
    #[error(
        "control socket: not a message of this version ({0}); shim and guest must come from one installation"
    )]
    Encoding(#[from] postcard::Error),
}

impl From<rustix::io::Errno> for Error {
    fn from(e: rustix::io::Errno) -> Self {
        Self::Io(e.into())
    }
}

/// Serialises a text that a person is to read, as far as there is room.
fn cut<S: serde::Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&text[..text.floor_char_boundary(MAX_TEXT)])
}

/// Encodes a message into one packet.
///
/// # Errors
/// [`Error::Encoding`] where the message is over [`MAX_PACKET`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let bytes = postcard::to_stdvec(message)?;
    if bytes.len() > MAX_PACKET {
        return Err(Error::Encoding(postcard::Error::SerializeBufferFull));
    }
    Ok(bytes)
}

/// Sends one message with descriptors. Blocks only when the socket's buffer is full.
///
/// # Errors
/// [`Error::Closed`] when the reader is gone.
pub fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), Error> {
    let bytes = encode(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    match rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    ) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Err(Error::Closed),
        Err(e) => Err(e.into()),
    }
}

/// A packet as it came.
#[derive(Debug)]
pub struct Packet {
    bytes: Vec<u8>,
    /// What it brought (close-on-exec). To close a descriptor of a stranger's can take as long as he likes (`SO_LINGER`).
    pub fds: Vec<OwnedFd>,
    /// The kernel's word for who sent it; only where [`pair`] has asked for it, at the host's end.
    pub sender: Option<i32>,
}

impl Packet {
    /// The message in it.
    ///
    /// # Errors
    /// [`Error::Encoding`], also where the packet goes on behind it.
    pub fn message<T: DeserializeOwned>(&self) -> Result<T, Error> {
        match postcard::take_from_bytes(&self.bytes)? {
            (message, []) => Ok(message),
            (_, _) => Err(Error::Encoding(postcard::Error::DeserializeBadEncoding)),
        }
    }
}

/// Receives one message with its descriptors (close-on-exec).
///
/// # Errors
/// [`Error::Closed`] at the end; `WouldBlock` in [`Error::Io`] on a non-blocking socket.
pub fn recv<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> Result<(T, Vec<OwnedFd>), Error> {
    let packet = recv_packet(socket)?;
    Ok((packet.message()?, packet.fds))
}

/// Receives one packet.
///
/// # Errors
/// As [`recv`], but for what is in it.
pub fn recv_packet(socket: BorrowedFd<'_>) -> Result<Packet, Error> {
    // Its size first: packets are small, and 64 KiB for each would stay with the process.
    let mut bytes = vec![0u8; size_of_next(socket)?];
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    // It is there: this neither waits nor is interrupted.
    let n = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?
    .bytes;
    bytes.truncate(n);
    let (mut fds, mut sender) = (Vec::new(), None);
    for message in ancillary.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(more) => fds.extend(more),
            RecvAncillaryMessage::ScmCredentials(who) => {
                sender = Some(who.pid.as_raw_nonzero().get());
            }
            _ => {}
        }
    }
    Ok(Packet { bytes, fds, sender })
}

/// Waits for a packet; its size in bytes.
fn size_of_next(socket: BorrowedFd<'_>) -> Result<usize, Error> {
    loop {
        match rustix::net::recv(socket, &mut [0u8; 0], RecvFlags::PEEK | RecvFlags::TRUNC) {
            Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET) => return Err(Error::Closed),
            Ok((_, size)) => return Ok(size.min(MAX_PACKET)),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
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

/// A new pair: the host's end, where the kernel says who has sent a packet, and the guest's.
///
/// # Errors
/// socketpair's.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (host, guest) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::sockopt::set_socket_passcred(&host, true)?;
    Ok((host, guest))
}

/// Convenience of callers that hold owned descriptors.
pub fn borrow(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_travels_with_its_descriptors() {
        let (host, guest) = pair().unwrap();
        let launch = Launch {
            program: Program {
                args: vec!["/a.wasm".into(); 20_000],
                ..Program::default()
            },
            ..Launch::default()
        };
        let body = write_launch(&launch).unwrap();
        send(host.as_fd(), &ToGuest::Launch { share: 0 }, &[body.as_fd()]).unwrap();
        let (message, mut fds) = recv::<ToGuest>(guest.as_fd()).unwrap();
        assert!(matches!(message, ToGuest::Launch { share: 0 }));
        let launch = read_launch(fds.pop().unwrap()).unwrap();
        assert_eq!(launch.program.args.len(), 20_000);
    }

    #[test]
    fn a_text_that_is_longer_than_a_packet_arrives_as_far_as_there_is_room() {
        let (host, guest) = pair().unwrap();
        let long = format!("{}é", "x".repeat(MAX_TEXT - 1)).repeat(64);
        send(guest.as_fd(), &FromGuest::Failed(long.clone()), &[]).unwrap();
        let (FromGuest::Failed(text), _) = recv(host.as_fd()).unwrap() else {
            panic!("another message");
        };
        assert_eq!(text, "x".repeat(MAX_TEXT - 1));
        let end = End {
            status: 1,
            reason: long.clone(),
            out_of_memory: false,
        };
        send(guest.as_fd(), &FromGuest::Ended(end), &[]).unwrap();
        assert!(recv::<FromGuest>(host.as_fd()).is_ok());
        send(host.as_fd(), &ToGuest::NoArtefact(long), &[]).unwrap();
    }

    #[test]
    fn a_closed_peer_is_an_error_and_not_a_signal() {
        let (host, guest) = pair().unwrap();
        drop(guest);
        assert!(matches!(
            send(host.as_fd(), &ToGuest::Start { terminal: false }, &[]),
            Err(Error::Closed)
        ));
        assert!(matches!(
            recv::<FromGuest>(host.as_fd()),
            Err(Error::Closed)
        ));
    }

    #[test]
    fn the_host_is_told_who_speaks() {
        let (host, guest) = pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        send(guest.as_fd(), &FromGuest::Waiting, &[null.as_fd()]).unwrap();
        let packet = recv_packet(host.as_fd()).unwrap();
        assert_eq!(packet.sender, i32::try_from(std::process::id()).ok());
        assert_eq!(packet.fds.len(), 1);
        assert!(matches!(packet.message(), Ok(FromGuest::Waiting)));
    }

    #[test]
    fn another_version_is_named() {
        let (host, guest) = pair().unwrap();
        rustix::net::send(&host, &[0xff; 9], SendFlags::empty()).unwrap();
        let error = recv::<FromGuest>(guest.as_fd()).unwrap_err().to_string();
        assert!(error.contains("one installation"), "{error}");
    }
}
