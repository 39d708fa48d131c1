//! `delete`: what containerd calls when a shim is gone, or when a sandbox is: its holder was killed, and containerd has
//! closed its connection. It knows nothing but the bundle and the cgroups.

use std::io::Write;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;
use slipway_cgroup::{Cgroup, Registration};
use slipway_spec::CgroupPath;

use crate::boot::Flags;
use crate::{delegate, events, socket};

/// In the sandbox's bundle: a line for every container of the pod, `id cgroup`.
pub const MEMBERS: &str = "slipway-members";

/// Ends everything that the shim of this bundle has left, and answers for the container.
pub fn delete(flags: &Flags) -> Result<(), String> {
    // The containers of a pod whose sandbox has ended go on until they are stopped, as runc's do.
    let sandbox = flags.bundle.join(MEMBERS).exists();
    if !(sandbox && socket::shim_answers(flags)) {
        clean_up(flags);
    }
    let response = DeleteResponse {
        pid: 0,
        exit_status: 137,
        exited_at: Some(events::now()).into(),
        ..DeleteResponse::default()
    };
    let bytes = response.write_to_bytes().map_err(|e| e.to_string())?;
    std::io::stdout()
        .write_all(&bytes)
        .map_err(|e| e.to_string())
}

fn clean_up(flags: &Flags) {
    // The delegate first: it would report the end of its containers to a shim that is gone.
    delegate::cleanup(flags);
    socket::unlink(flags);
    let members = std::fs::read_to_string(flags.bundle.join(MEMBERS)).unwrap_or_default();
    let mut left: Vec<String> = members
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(_, path)| remove_cgroup(path).err())
        .collect();
    if let Some(path) = slipway_spec::read(&flags.bundle)
        .ok()
        .and_then(|plan| plan.cgroup)
    {
        left.extend(Cgroup::new(&path).remove().err().map(|e| e.to_string()));
        Registration::end(&path);
    }
    for text in left {
        eprintln!("containerd-shim-slipway-v1: {text}");
    }
}

fn remove_cgroup(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Ok(());
    }
    Cgroup::new(&CgroupPath::Cgroupfs(path.into()))
        .remove()
        .map_err(|e| e.to_string())
}
