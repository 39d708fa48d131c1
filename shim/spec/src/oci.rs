//! config.json's fields as the OCI runtime spec names them. <https://github.com/opencontainers/runtime-spec>

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use syscalls::Sysno;

/// Go writes an empty list or map as `null`.
fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    d: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct Preview {
    #[serde(deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct Spec {
    pub process: Option<Process>,
    pub root: Root,
    pub hostname: String,
    pub domainname: String,
    #[serde(deserialize_with = "or_default")]
    pub mounts: Vec<Mount>,
    #[serde(deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
    pub linux: Linux,
    pub hooks: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Process {
    pub terminal: bool,
    pub user: User,
    #[serde(deserialize_with = "or_default")]
    pub args: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    pub cwd: String,
    #[serde(deserialize_with = "or_default")]
    pub rlimits: Vec<Rlimit>,
    pub oom_score_adj: Option<i32>,
    pub apparmor_profile: String,
    pub selinux_label: String,
    pub scheduler: Value,
    pub io_priority: Value,
    #[serde(rename = "execCPUAffinity")]
    pub exec_cpu_affinity: Value,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct User {
    pub uid: u32,
    pub gid: u32,
    pub umask: Option<u32>,
    #[serde(deserialize_with = "or_default")]
    pub additional_gids: Vec<u32>,
}

#[derive(Deserialize)]
pub(crate) struct Rlimit {
    #[serde(rename = "type")]
    pub kind: String,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct Root {
    pub path: String,
    pub readonly: bool,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Mount {
    pub destination: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub source: String,
    #[serde(deserialize_with = "or_default")]
    pub options: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub uid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "or_default")]
    pub gid_mappings: Vec<IdMapping>,
}

#[derive(Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdMapping {
    #[serde(rename = "containerID", default)]
    pub inside: u32,
    #[serde(rename = "hostID", default)]
    pub outside: u32,
    #[serde(default)]
    pub size: u32,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Linux {
    #[serde(deserialize_with = "or_default")]
    pub namespaces: Vec<Namespace>,
    pub cgroups_path: String,
    #[serde(deserialize_with = "or_default")]
    pub sysctl: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub resources: Resources,
    #[serde(deserialize_with = "or_default")]
    pub uid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "or_default")]
    pub gid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "or_default")]
    pub devices: Vec<Device>,
    pub net_devices: Value,
    #[serde(deserialize_with = "or_default")]
    pub seccomp: Seccomp,
    #[serde(deserialize_with = "or_default")]
    pub masked_paths: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub readonly_paths: Vec<String>,
    pub mount_label: String,
    pub intel_rdt: Value,
    pub memory_policy: Value,
    pub time_offsets: Value,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct Device {
    pub path: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Seccomp {
    pub default_action: String,
    pub default_errno_ret: Option<u32>,
    #[serde(deserialize_with = "or_default")]
    pub architectures: Vec<String>,
    pub flags: Option<Vec<String>>,
    pub listener_path: String,
    #[serde(deserialize_with = "or_default")]
    pub syscalls: Vec<Syscall>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Syscall {
    #[serde(deserialize_with = "or_default")]
    pub names: Vec<Call>,
    pub action: String,
    pub errno_ret: Option<u32>,
    #[serde(deserialize_with = "or_default")]
    pub args: Vec<SyscallArg>,
}

/// A system call by its number; `None`: this architecture has none of that name. A profile names hundreds, and a shim
/// shall not keep as many strings.
#[derive(Clone, Copy)]
pub(crate) struct Call(pub Option<u32>);

impl<'de> Deserialize<'de> for Call {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Name;
        impl serde::de::Visitor<'_> for Name {
            type Value = Call;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of a system call")
            }

            fn visit_str<E>(self, name: &str) -> Result<Call, E> {
                let call = name.parse().ok();
                Ok(Call(call.map(|call: Sysno| call.id() as u32)))
            }
        }
        d.deserialize_str(Name)
    }
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct SyscallArg {
    pub index: u32,
    pub value: u64,
    pub value_two: u64,
    pub op: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Resources {
    #[serde(deserialize_with = "or_default")]
    pub memory: Memory,
    #[serde(deserialize_with = "or_default")]
    pub cpu: Cpu,
    #[serde(deserialize_with = "or_default")]
    pub pids: Pids,
    #[serde(rename = "blockIO", deserialize_with = "or_default")]
    pub block_io: BlockIo,
    #[serde(deserialize_with = "or_default")]
    pub hugepage_limits: Vec<HugepageLimit>,
    pub network: Value,
    #[serde(deserialize_with = "or_default")]
    pub unified: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Memory {
    pub limit: Option<i64>,
    pub reservation: Option<i64>,
    pub swap: Option<i64>,
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: Value,
    pub swappiness: Option<u64>,
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: Value,
    pub check_before_update: Value,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct Cpu {
    pub shares: Option<u64>,
    pub quota: Option<i64>,
    pub burst: Option<u64>,
    pub period: Option<u64>,
    pub cpus: Option<String>,
    pub mems: Option<String>,
    pub idle: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct Pids {
    pub limit: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct BlockIo {
    pub weight: Option<u16>,
    pub leaf_weight: Value,
    #[serde(deserialize_with = "or_default")]
    pub weight_device: Vec<WeightDevice>,
    #[serde(deserialize_with = "or_default")]
    pub throttle_read_bps_device: Vec<ThrottleDevice>,
    #[serde(deserialize_with = "or_default")]
    pub throttle_write_bps_device: Vec<ThrottleDevice>,
    #[serde(rename = "throttleReadIOPSDevice", deserialize_with = "or_default")]
    pub throttle_read_iops_device: Vec<ThrottleDevice>,
    #[serde(rename = "throttleWriteIOPSDevice", deserialize_with = "or_default")]
    pub throttle_write_iops_device: Vec<ThrottleDevice>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct WeightDevice {
    pub major: i64,
    pub minor: i64,
    pub weight: Option<u16>,
    pub leaf_weight: Value,
}

#[derive(Deserialize)]
pub(crate) struct ThrottleDevice {
    pub major: i64,
    pub minor: i64,
    pub rate: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HugepageLimit {
    pub page_size: String,
    pub limit: u64,
}
