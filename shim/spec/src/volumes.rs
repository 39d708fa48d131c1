//! The mounts that are volumes of the container.

use slipway_protocol::Mount;

use crate::plan::refuse;
use crate::user::{self, UserNamespace};
use crate::{Error, mount, oci, parse_options};

/// A volume that is made new gets the container's label; those that are the node's have their own.
pub fn labelled(mut mount: Mount, label: &str) -> Mount {
    if mount.flags & libc::MS_BIND == 0 && !label.is_empty() {
        // A label has commas.
        let context = format!("context=\"{label}\"");
        mount.data = match mount.data.as_str() {
            "" => context,
            data => format!("{data},{context}"),
        };
    }
    mount
}

/// Kernel file systems that every runtime adds and a WASI program must not see: whoever can write to
/// /proc/self/mem owns its engine's process. `/dev` itself is made by the guest.
pub fn is_kernel_mount(mount: &oci::Mount) -> bool {
    matches!(
        mount.kind.as_str(),
        "proc" | "sysfs" | "cgroup" | "cgroup2" | "devpts" | "mqueue"
    ) || (mount.destination == "/dev" && mount.kind == "tmpfs")
}

/// One mount, checked.
pub fn read(
    index: usize,
    mount: &oci::Mount,
    user: Option<&UserNamespace>,
) -> Result<Mount, Error> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    if !mount.destination.starts_with('/') {
        return Err(refuse(
            &field("destination"),
            format!("{:?} is not an absolute path", mount.destination),
        ));
    }
    for (name, value) in [
        ("destination", &mount.destination),
        ("source", &mount.source),
    ] {
        if value.contains('\0') {
            return Err(refuse(&field(name), "contains a NUL byte"));
        }
    }
    let mut parsed = parse_options(
        &mount.kind,
        &mount.source,
        &mount.destination,
        &mount.options,
    );
    if parsed.flags & libc::MS_BIND == 0 && parsed.kind != "tmpfs" {
        return Err(refuse(
            &field("type"),
            format!(
                "{:?} at {} is not supported: bind mounts and tmpfs are",
                mount.kind, mount.destination
            ),
        ));
    }
    if let Some(option) = mount::unknown(&parsed) {
        return Err(refuse(
            &field("options"),
            format!("{option:?} at {} is not supported", mount.destination),
        ));
    }
    parsed.idmapped = user::is_mapped(index, mount, user)?;
    Ok(parsed)
}
