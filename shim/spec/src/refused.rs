//! Fields that would change what a program may do or sees, and that a Wasm container cannot have: refused by name.

use serde_json::Value;

use crate::oci;
use crate::{Error, plan::refuse};

/// The devices that the guest makes in a container's /dev (`devices.rs` there).
const DEVICES: [&str; 5] = [
    "/dev/full",
    "/dev/null",
    "/dev/random",
    "/dev/urandom",
    "/dev/zero",
];

/// False for what Go writes, or leaves out, where nothing is asked for.
pub(crate) fn given(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) => true,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// The first of these fields that has a value is an error.
fn none_given(fields: &[(&Value, &str, &str)]) -> Result<(), Error> {
    match fields.iter().find(|(value, ..)| given(value)) {
        Some((_, field, reason)) => Err(refuse(field, *reason)),
        None => Ok(()),
    }
}

/// Of the container's own process, or of an exec.
pub(crate) fn in_process(process: &oci::Process) -> Result<(), Error> {
    none_given(&[
        (
            &process.scheduler,
            "process.scheduler",
            "a Wasm container runs under the default policy; remove it, or use cpu.shares, cpu.idle or a quota",
        ),
        (
            &process.io_priority,
            "process.ioPriority",
            "not supported; remove it, or use linux.resources.blockIO",
        ),
        (
            &process.exec_cpu_affinity,
            "process.execCPUAffinity",
            "not supported; remove it, or use linux.resources.cpu.cpus",
        ),
    ])
}

/// Of the spec outside its process and its resources.
pub(crate) fn in_spec(spec: &oci::Spec) -> Result<(), Error> {
    let linux = &spec.linux;
    none_given(&[
        (
            &linux.net_devices,
            "linux.netDevices",
            "not supported; the pod's network plugin moves devices",
        ),
        (
            &linux.intel_rdt,
            "linux.intelRdt",
            "not supported; remove the RDT class",
        ),
        (
            &linux.memory_policy,
            "linux.memoryPolicy",
            "not supported; remove it, or use linux.resources.cpu.mems",
        ),
        (
            &linux.time_offsets,
            "linux.timeOffsets",
            "time namespaces are not supported; remove it",
        ),
    ])?;
    if !spec.domainname.is_empty() {
        return Err(refuse("domainname", "not supported; remove it"));
    }
    if !linux.seccomp.listener_path.is_empty() {
        return Err(refuse(
            "linux.seccomp.listenerPath",
            "no system call of a Wasm container is handed to an agent; remove it",
        ));
    }
    let device = |d: &&oci::Device| !DEVICES.contains(&d.path.as_str());
    if let Some(device) = linux.devices.iter().find(device) {
        return Err(refuse(
            "linux.devices",
            format!(
                "{}: a Wasm container has {} and no others; remove it (device plugins and securityContext.privileged add devices)",
                device.path,
                DEVICES.join(", ")
            ),
        ));
    }
    // A Wasm container has no /proc and no /sys: what is masked there is not there.
    let kernel = |path: &str| ["/proc", "/sys"].iter().any(|d| below(path, d));
    for (field, paths) in [
        ("linux.maskedPaths", &linux.masked_paths),
        ("linux.readonlyPaths", &linux.readonly_paths),
    ] {
        if let Some(path) = paths.iter().find(|path| !kernel(path)) {
            return Err(refuse(
                field,
                format!(
                    "{path}: only paths below /proc and /sys, which a Wasm container lacks, are taken; mount a read-only volume there"
                ),
            ));
        }
    }
    Ok(())
}

fn below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Of linux.resources.
pub(crate) fn in_resources(r: &oci::Resources) -> Result<(), Error> {
    none_given(&[
        (
            &r.memory.kernel_tcp,
            "linux.resources.memory.kernelTCP",
            "not supported; remove it: what sockets hold counts to the memory limit",
        ),
        (
            &r.memory.disable_oom_killer,
            "linux.resources.memory.disableOOMKiller",
            "a container over its memory limit is ended; remove it",
        ),
        (
            &r.memory.check_before_update,
            "linux.resources.memory.checkBeforeUpdate",
            "not supported; remove it: a limit below what is in use never kills, it refuses growth",
        ),
        (
            &r.block_io.leaf_weight,
            "linux.resources.blockIO.leafWeight",
            "gone from Linux since 5.0; remove it",
        ),
        (
            &r.network,
            "linux.resources.network",
            "not supported; remove it: cgroup version 2 has no classes and priorities of packets",
        ),
    ])?;
    let leaf = |d: &oci::WeightDevice| given(&d.leaf_weight);
    if r.block_io.weight_device.iter().any(leaf) {
        return Err(refuse(
            "linux.resources.blockIO.weightDevice.leafWeight",
            "gone from Linux since 5.0; remove it",
        ));
    }
    let size = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric());
    if let Some(bad) = r.hugepage_limits.iter().find(|h| !size(&h.page_size)) {
        return Err(refuse(
            "linux.resources.hugepageLimits.pageSize",
            format!("{:?} is not a size as 2MB or 1GB", bad.page_size),
        ));
    }
    if let Some(file) = r.unified.keys().find(|name| name.contains('/')) {
        return Err(refuse(
            "linux.resources.unified",
            format!("{file:?} is not the name of a file in a cgroup"),
        ));
    }
    Ok(())
}
