//! `delete`: what containerd calls when a shim is gone, or when a sandbox is: its holder was killed, and containerd has
//! closed its connection. It knows nothing but the bundle and the cgroups.

use std::io::Write;
use std::path::Path;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;
use slipway_cgroup::{Cgroup, Registration};
use slipway_spec::CgroupPath;

use crate::flags::Flags;
use crate::{delegate, events, members, socket};

/// Ends everything that the shim of this bundle has left, and answers for the container.
pub fn delete(flags: &Flags) -> Result<(), String> {
    // The containers of a pod whose sandbox has ended go on until they are stopped, as runc's do.
    let sandbox = members::are_noted(&flags.bundle);
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
    delegate::clean_up(flags);
    socket::unlink(flags);
    let members = members::read(&flags.bundle).into_iter();
    let of_members = members.map(|(_, path)| recorded(&path));
    let own = slipway_spec::read(&flags.bundle)
        .ok()
        .and_then(|plan| plan.cgroup);
    for path in of_members.chain(own) {
        if let Err(e) = Cgroup::new(&path).remove() {
            eprintln!("containerd-shim-slipway-v1: {e}");
        }
        // That of a Linux container, too: runc has stopped its unit only if its shim still had the time.
        Registration::end(&path);
    }
}

/// The cgroup that a path below the hierarchies' roots is, by the driver that names it.
fn recorded(path: &str) -> CgroupPath {
    let scope = |path: &Path| {
        let name = path.file_name()?.to_str()?.strip_suffix(".scope")?;
        let slice = path.parent()?.file_name()?.to_str()?;
        slice.ends_with(".slice").then(|| CgroupPath::Systemd {
            slice: slice.into(),
            prefix: String::new(),
            name: name.into(),
        })
    };
    scope(Path::new(path)).unwrap_or_else(|| CgroupPath::Cgroupfs(path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_cgroup_is_the_one_that_was() {
        for cgroup in [
            CgroupPath::Cgroupfs("/kubepods/pod1/a".into()),
            CgroupPath::Systemd {
                slice: "kubepods-besteffort-pod1.slice".into(),
                prefix: "cri-containerd".into(),
                name: "a".into(),
            },
        ] {
            let path = Cgroup::new(&cgroup).path();
            let recorded = recorded(&path);
            assert_eq!(Cgroup::new(&recorded).path(), path);
            let systemds = |path: &CgroupPath| matches!(path, CgroupPath::Systemd { .. });
            assert_eq!(systemds(&recorded), systemds(&cgroup));
        }
    }
}
