//! config.json's fields as the OCI runtime spec names them. <https://github.com/opencontainers/runtime-spec>

use serde::Deserialize;
use std::collections::BTreeMap;

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
    #[serde(deserialize_with = "or_default")]
    pub mounts: Vec<Mount>,
    #[serde(deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
    pub linux: Linux,
    pub hooks: Option<serde_json::Value>,
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
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct User {
    pub uid: u32,
    pub gid: u32,
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
#[serde(default)]
pub(crate) struct Mount {
    pub destination: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub source: String,
    #[serde(deserialize_with = "or_default")]
    pub options: Vec<String>,
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
    pub uid_mappings: Vec<serde_json::Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct Resources {
    #[serde(deserialize_with = "or_default")]
    pub memory: Memory,
    #[serde(deserialize_with = "or_default")]
    pub cpu: Cpu,
    #[serde(deserialize_with = "or_default")]
    pub pids: Pids,
    #[serde(deserialize_with = "or_default")]
    pub unified: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct Memory {
    pub limit: Option<i64>,
    pub reservation: Option<i64>,
    pub swap: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct Cpu {
    pub shares: Option<u64>,
    pub quota: Option<i64>,
    pub period: Option<u64>,
    pub cpus: Option<String>,
    pub mems: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct Pids {
    pub limit: Option<i64>,
}
