//! The null shim: a containerd shim that does as little as a shim can, the floor for benchmarks.
//!
//! A container is one sleeping process in the namespaces and cgroups of its spec. There is no rootfs, no
//! mount, no capability, no seccomp filter and no exec: **it isolates nothing and runs no image**.
//! Everything that containerd can see (task states, events, exit status) is done properly.
//!
//! `main` is argv → one action:
//! - `start` binds the pod's socket and forks; the child serves ([`server`]), the parent prints the address.
//!   Forking costs a third of a millisecond, where the usual second exec of the shim costs one to three.
//! - `delete` answers for a shim that died; `-info` names the runtime.
//!
//! The server is one thread and one epoll loop, with ttrpc's frames written by hand: an async runtime would
//! be the largest part of this shim's memory.

mod process;
mod publisher;
mod server;
mod spec;
mod task;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{self, Message};
use containerd_shim_protos::types::introspection::RuntimeInfo;

use task::Tasks;

/// containerd's directory for the sockets of shims (`pkg/shim/util_unix.go`).
const SOCKETS: &str = "/run/containerd/s";

/// Why a request, or the shim as a whole, failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}: not found")]
    NotFound(String),
    #[error("{0}")]
    Invalid(String),
    #[error("method {0} is not part of the null shim")]
    Unimplemented(String),
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    #[error("protobuf: {0}")]
    Protobuf(#[from] protobuf::Error),
}

type Result<T> = std::result::Result<T, Error>;

/// Names the file or step in an input/output error: `.map_err(io("cgroup.procs"))`.
fn io<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
    move |e| Error::Io(what.into(), e.into())
}

/// The flags containerd gives a shim (`core/runtime/v2/README.md`, "Commands"), as far as they matter here.
#[derive(Default)]
struct Flags {
    namespace: String,
    id: String,
    action: String,
}

impl Flags {
    fn parse(mut args: impl Iterator<Item = String>) -> Self {
        let mut flags = Self::default();
        while let Some(arg) = args.next() {
            match arg.trim_start_matches('-') {
                "namespace" => flags.namespace = args.next().unwrap_or_default(),
                "id" => flags.id = args.next().unwrap_or_default(),
                "address" | "publish-binary" | "bundle" | "socket" => drop(args.next()),
                "debug" => {}
                action => flags.action = action.to_owned(),
            }
        }
        flags
    }
}

fn main() -> ExitCode {
    let flags = Flags::parse(std::env::args().skip(1));
    let done = match flags.action.as_str() {
        "start" => start(flags),
        "delete" => delete(&flags),
        "info" => info(),
        other => Err(Error::Invalid(format!(
            "unknown action {other:?}: want start, delete or -info"
        ))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("containerd-shim-null-v1: {e}");
            ExitCode::FAILURE
        }
    }
}

/// `start`: prints the address of the pod's server, which it starts if there is none yet.
/// The working directory is the bundle, stdin holds options that nothing here needs.
fn start(flags: Flags) -> Result<()> {
    std::io::stdin()
        .read_to_end(&mut Vec::new())
        .map_err(io("stdin"))?;
    let group = spec::Spec::read(Path::new("."))?
        .sandbox_id()
        .unwrap_or(&flags.id)
        .to_owned();
    std::fs::create_dir_all(SOCKETS).map_err(io(SOCKETS))?;
    let socket = socket_of(&group);
    let listener = match UnixListener::bind(&socket) {
        Ok(listener) => listener,
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            if UnixStream::connect(&socket).is_ok() {
                return answer(&socket);
            }
            std::fs::remove_file(&socket).map_err(io(socket.to_string_lossy()))?;
            UnixListener::bind(&socket).map_err(io(socket.to_string_lossy()))?
        }
        Err(e) => return Err(Error::Io(socket.to_string_lossy().into_owned(), e)),
    };
    if process::daemonize().map_err(io("fork"))? {
        return answer(&socket);
    }
    let served = Tasks::new(flags.namespace).and_then(|tasks| server::serve(listener, tasks));
    // Gone already when two servers raced for it; nobody is left to tell.
    let _ = std::fs::remove_file(&socket);
    served
}

/// Path-based and private to root, unlike abstract sockets (CVE-2020-15257).
fn socket_of(group: &str) -> PathBuf {
    Path::new(SOCKETS).join(format!("null-{group}"))
}

/// Tells containerd where to connect. Version 2 is understood by containerd 1.7 and 2.x alike.
fn answer(socket: &Path) -> Result<()> {
    let address = socket.display();
    let json = format!(r#"{{"version":2,"address":"unix://{address}","protocol":"ttrpc"}}"#);
    std::io::stdout()
        .write_all(json.as_bytes())
        .map_err(io("stdout"))
}

/// `delete`: containerd calls it, in the bundle, when the shim is gone. Its processes went with it (see
/// [`process::Process::spawn`]); here go the socket and the cgroups, as far as they are still there.
fn delete(flags: &Flags) -> Result<()> {
    let spec = spec::Spec::read(Path::new("."))?;
    let _ = std::fs::remove_file(socket_of(spec.sandbox_id().unwrap_or(&flags.id)));
    for cgroup in spec.cgroups()? {
        let _ = std::fs::remove_dir(cgroup);
    }
    let mut response = DeleteResponse::new();
    response.exit_status = 128 + libc::SIGKILL as u32;
    response.exited_at = Some(task::now()).into();
    print(&response)
}

/// `-info`: containerd asks for the features of each configured runtime.
fn info() -> Result<()> {
    let mut info = RuntimeInfo::new();
    info.name = "io.containerd.null.v1".into();
    print(&info)
}

fn print(message: &impl Message) -> Result<()> {
    std::io::stdout()
        .write_all(&message.write_to_bytes()?)
        .map_err(io("stdout"))
}
