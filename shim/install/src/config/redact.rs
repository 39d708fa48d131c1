//! A configuration for a report: without what may be secret.

use serde_json::Value as Json;
use toml_edit::DocumentMut;

use super::tables::json_table;

/// What a value is replaced by that nobody has declared harmless.
const LEFT_OUT: &str = "(left out)";
/// Keys of containerd's own tables, and of its plugins', whose values tell how pods are run and cannot be secret.
const HARMLESS: [&str; 40] = [
    "version",
    "root",
    "state",
    "temp",
    "imports",
    "disabled_plugins",
    "required_plugins",
    "oom_score",
    "grpc.address",
    "grpc.uid",
    "grpc.gid",
    "grpc.max_recv_message_size",
    "grpc.max_send_message_size",
    "*.v1.grpc\".address",
    "*.v1.ttrpc\".address",
    "*.v1.debug\".address",
    "ttrpc.address",
    "debug.address",
    "debug.level",
    "debug.format",
    "metrics.address",
    "*.snapshotter",
    "*.default_runtime_name",
    "*.runtime_type",
    "*.runtime_path",
    "*.sandboxer",
    "*.sandbox_mode",
    "*.pod_annotations",
    "*.container_annotations",
    "*.BinaryName",
    "*.Root",
    "*.CacheBytes",
    "*.ConfigPath",
    "*.bin_dir",
    "*.bin_dirs",
    "*.conf_dir",
    "*.config_path",
    "*.sandbox",
    "*.sandbox_image",
    "*.max_container_log_line_size",
];

/// A configuration as one line for each value, with those left out that may be secret: all but switches and what is known
/// to be harmless. Comments, and the words of a file that is no TOML, are left out, too.
pub fn without_secrets(text: &str) -> String {
    let Ok(document) = text.parse::<DocumentMut>() else {
        return "not TOML: left out".into();
    };
    let mut lines = Vec::new();
    show(
        "",
        &Json::Object(json_table(document.as_table())),
        &mut lines,
    );
    lines.join("\n")
}

fn show(path: &str, value: &Json, lines: &mut Vec<String>) {
    if let Json::Object(table) = value {
        for (key, value) in table {
            // A host with its user and password.
            let key = if key.contains('@') { LEFT_OUT } else { key };
            let key = match key.contains('.') {
                true => format!("{key:?}"),
                false => key.to_owned(),
            };
            let dot = if path.is_empty() { "" } else { "." };
            show(&format!("{path}{dot}{key}"), value, lines);
        }
        return;
    }
    let harmless = HARMLESS.iter().any(|known| match known.strip_prefix('*') {
        // Names below a registry are hosts and headers, which may be called anything.
        Some(end) => {
            let of_a_registry = path.contains(".registry.") && *end != *".config_path";
            path.starts_with("plugins.") && path.ends_with(end) && !of_a_registry
        }
        None => path == *known,
    });
    lines.push(match harmless || value.is_boolean() {
        true => format!("{path} = {value}"),
        false => format!("{path} = {LEFT_OUT}"),
    });
}
