//! The options of Slipway's handler in containerd's configuration: runc's, for the pod's Linux containers, and Slipway's own.
//!
//! A handler of runc's type has them as runc's message, with what runc knows alone. Any other has them as text.

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, Message};
use containerd_shim_protos::shim::oci::Options;
use serde::Deserialize;

/// The handler's `options` table. What is left out is as runc has it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Table {
    no_pivot_root: bool,
    no_new_keyring: bool,
    shim_cgroup: String,
    io_uid: u32,
    io_gid: u32,
    binary_name: String,
    root: String,
    systemd_cgroup: bool,
    criu_image_path: String,
    criu_work_path: String,
    /// Slipway's own.
    cache_bytes: Option<u64>,
}

/// Whether these are a handler's options, of runc's type or another.
pub fn is_options(any: &Any) -> bool {
    any.type_url.ends_with("containerd.runc.v1.Options") || has_text(any)
}

/// Whether these are options as text.
fn has_text(any: &Any) -> bool {
    any.type_url.ends_with("runtimeoptions.v1.Options")
}

/// The options as runc's shim wants them: its own message.
///
/// # Errors
/// The text is not TOML, or an option has another type; names it.
pub fn runc_options(any: Any) -> Result<Any, String> {
    if !has_text(&any) {
        return Ok(any);
    }
    let table = table(&any)?;
    let options = Options {
        no_pivot_root: table.no_pivot_root,
        no_new_keyring: table.no_new_keyring,
        shim_cgroup: table.shim_cgroup,
        io_uid: table.io_uid,
        io_gid: table.io_gid,
        binary_name: table.binary_name,
        root: table.root,
        systemd_cgroup: table.systemd_cgroup,
        criu_image_path: table.criu_image_path,
        criu_work_path: table.criu_work_path,
        ..Default::default()
    };
    Ok(Any {
        type_url: "containerd.runc.v1.Options".into(),
        value: options
            .write_to_bytes()
            .map_err(|e| format!("the handler's options: {e}"))?,
        ..Default::default()
    })
}

/// The bound of the artefact cache, where the options have one.
///
/// # Errors
/// As [`runc_options`].
pub fn cache_bytes(any: &Any) -> Result<Option<u64>, String> {
    match has_text(any) {
        true => Ok(table(any)?.cache_bytes),
        false => Ok(None),
    }
}

fn table(any: &Any) -> Result<Table, String> {
    let text = config_body(&any.value).unwrap_or_default();
    toml::from_str(&text)
        .map_err(|e| format!("the handler's options in containerd's configuration: {e}"))
}

/// Field 3 of runtimeoptions.v1.Options: the TOML of the handler's `options` table.
fn config_body(message: &[u8]) -> Option<String> {
    const CONFIG_BODY: u32 = (3 << 3) | 2;
    let mut input = CodedInputStream::from_bytes(message);
    while let Ok(Some(tag)) = input.read_raw_tag_or_eof() {
        let bytes = input.read_bytes().ok()?;
        if tag == CONFIG_BODY {
            return String::from_utf8(bytes).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(body: &str) -> Any {
        let mut value = vec![0x1a, u8::try_from(body.len()).unwrap()];
        value.extend_from_slice(body.as_bytes());
        Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value,
            ..Default::default()
        }
    }

    fn translated(body: &str) -> Options {
        let any = runc_options(text(body)).unwrap();
        assert_eq!(any.type_url, "containerd.runc.v1.Options");
        Options::parse_from_bytes(&any.value).unwrap()
    }

    #[test]
    fn all_of_runcs_options_reach_it() {
        let first = translated(
            "BinaryName = \"/x/runc\"\nRoot = '/r'\nSystemdCgroup = true # as the kubelet\nIoUid = 7\n",
        );
        let all = Options {
            binary_name: "/x/runc".into(),
            root: "/r".into(),
            systemd_cgroup: true,
            io_uid: 7,
            ..Default::default()
        };
        assert_eq!(first, all);
        let second = translated(
            "NoPivotRoot = true\nNoNewKeyring = true\nShimCgroup = \"/a = b\"\nIoGid = 8\nCriuWorkPath = \"/w\"\n",
        );
        let all = Options {
            no_pivot_root: true,
            no_new_keyring: true,
            shim_cgroup: "/a = b".into(),
            io_gid: 8,
            criu_work_path: "/w".into(),
            ..Default::default()
        };
        assert_eq!(second, all);
        assert_eq!(
            translated("CacheBytes = 1\nOther = [1]\n"),
            Options::default()
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = runc_options(text("SystemdCgroup = \"true\"\n")).unwrap_err();
        assert!(refused.contains("SystemdCgroup"), "{refused}");
        assert!(runc_options(text("= 3")).is_err());
    }

    #[test]
    fn the_caches_bound_is_an_option_of_slipways_own() {
        let any = text("CacheBytes = 1048576\n");
        assert_eq!(cache_bytes(&any), Ok(Some(1 << 20)));
        let refused = cache_bytes(&text("CacheBytes = \"1Gi\"\n")).unwrap_err();
        assert!(refused.contains("CacheBytes"), "{refused}");
        let runcs = Any {
            type_url: "containerd.runc.v1.Options".into(),
            ..any
        };
        assert_eq!(cache_bytes(&runcs), Ok(None));
    }

    #[test]
    fn runcs_own_options_stay_as_they_are() {
        let any = Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: vec![1, 2],
            ..Default::default()
        };
        assert_eq!(runc_options(any.clone()).unwrap(), any);
    }
}
