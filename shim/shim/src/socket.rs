//! The pod's socket: where it is, who listens on it, and what killed shims leave of it.

use std::collections::HashSet;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api::ConnectRequest;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::{self, context};
use sha2::{Digest, Sha256};

use crate::flags::Flags;

/// Where containerd keeps the sockets of shims; inside its state directory's parent, which every installation has.
const SOCKETS: &str = "/run/containerd/s";
/// What tells this shim's sockets from others' there.
const PREFIX: &str = "slipway-";

/// The socket of a pod. Not containerd's own derivation: the node's runc shim uses that one, and would find this
/// shim's socket in its place.
pub fn path(flags: &Flags, group: &str) -> PathBuf {
    let hash = Sha256::digest(format!(
        "slipway/{}/{}/{group}",
        flags.address, flags.namespace
    ));
    let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
    Path::new(SOCKETS).join(format!("{PREFIX}{hex}"))
}

/// The socket of the delegate that this process starts for a pod. Short enough for sun_path.
pub fn delegates(group: &str) -> PathBuf {
    let short: String = group.chars().take(32).collect();
    Path::new(SOCKETS).join(format!("{PREFIX}{}-{short}", std::process::id()))
}

/// Binds a socket that only its owner can connect to.
pub fn bind(path: &Path) -> std::io::Result<UnixListener> {
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(mask);
    bound
}

/// Binds the pod's socket; `None` when a shim of this pod already answers on it.
pub fn listen(path: &Path) -> Result<Option<UnixListener>, String> {
    let error = |e: std::io::Error| format!("socket {}: {e}", path.display());
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(SOCKETS)
        .map_err(error)?;
    let bound = bind(path).or_else(|e| {
        if e.kind() != std::io::ErrorKind::AddrInUse || UnixStream::connect(path).is_ok() {
            return Err(e);
        }
        // Nobody listens: a shim that was killed has left it.
        std::fs::remove_file(path)?;
        bind(path)
    });
    match bound {
        Ok(listener) => Ok(Some(listener)),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => Ok(None),
        Err(e) => Err(error(e)),
    }
}

fn of_bundle(flags: &Flags) -> PathBuf {
    let pod = slipway_spec::preview(&flags.bundle).pod;
    let group = pod.unwrap_or_else(|| flags.id.clone());
    path(flags, &group)
}

/// Removes the socket of a shim that was killed; one that still answers keeps it.
pub fn unlink(flags: &Flags) {
    let path = of_bundle(flags);
    if UnixStream::connect(&path).is_err() {
        let _ = std::fs::remove_file(path);
    }
}

/// Whether the pod's shim lives and serves: a connection alone is also made to one that hangs.
pub fn shim_answers(flags: &Flags) -> bool {
    const PATIENCE: Duration = Duration::from_secs(2);
    let path = of_bundle(flags);
    // The common case, without a runtime.
    if UnixStream::connect(&path).is_err() {
        return false;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ask = async {
        let client = Client::connect(&format!("unix://{}", path.display())).await?;
        let request = ConnectRequest {
            id: flags.id.clone(),
            ..Default::default()
        };
        let context = context::with_duration(PATIENCE);
        TaskClient::new(client).connect(context, &request).await
    };
    let answer = runtime.map(|r| r.block_on(async { tokio::time::timeout(PATIENCE, ask).await }));
    // That there is no such container any more is an answer, too.
    matches!(answer, Ok(Ok(Ok(_) | Err(ttrpc::Error::RpcStatus(_)))))
}

/// Removes the sockets of shims that were killed before containerd had spoken to them: it calls no `delete` then.
pub fn sweep() {
    /// A socket's file is there a moment before the kernel's table has it.
    const YOUNG: Duration = Duration::from_secs(10);
    let old = |entry: &std::fs::DirEntry| {
        let made = entry.metadata().and_then(|m| m.modified());
        made.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > YOUNG))
    };
    let left = std::fs::read_dir(SOCKETS).into_iter().flatten().flatten();
    let left: Vec<PathBuf> = left
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(PREFIX.as_bytes())
        })
        .filter(old)
        .map(|entry| entry.path())
        .collect();
    if left.is_empty() {
        return;
    }
    // Read after the directory: who is not in it has nobody who listens.
    let Ok(table) = std::fs::read_to_string("/proc/self/net/unix") else {
        return;
    };
    let bound: HashSet<&str> = table
        .lines()
        .filter_map(|l| l.split(' ').next_back())
        .collect();
    for path in left {
        if path.to_str().is_some_and(|path| !bound.contains(path)) {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_socket_is_its_own() {
        let flags = Flags {
            address: "/a".into(),
            namespace: "n".into(),
            ..Flags::default()
        };
        assert_ne!(path(&flags, "a"), path(&flags, "b"));
        assert!(path(&flags, "a").as_os_str().len() < 108, "sun_path");
    }
}
