//! What `-info` says that this runtime can do, in the OCI runtime spec's words (features.md): all that the node's runc can,
//! to which Linux containers go, and user namespaces, which Wasm containers have whatever runc can.

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use serde_json::{Map, Value, json};

/// containerd's name of the type; the value is JSON.
const TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The handler's features, from runc's.
pub fn handlers(runc: Option<&Any>) -> Any {
    let mut features = runc.map(parse).unwrap_or_default();
    let mut namespaces: Vec<Value> = features
        .get("linux")
        .and_then(|linux| linux.get("namespaces")?.as_array().cloned())
        .unwrap_or_default();
    if !namespaces.contains(&"user".into()) {
        namespaces.push("user".into());
    }
    merge(
        &mut features,
        json!({"linux": {"namespaces": namespaces, "mountExtensions": {"idmap": {"enabled": true}}}}),
    );
    Any {
        type_url: TYPE.into(),
        value: features.to_string().into_bytes(),
        ..Any::default()
    }
}

/// Whether a runtime with these features maps the ids of mounts; one that does not would leave the wish out silently.
pub fn map_ids(features: &Any) -> bool {
    parse(features)
        .pointer("/linux/mountExtensions/idmap/enabled")
        .and_then(Value::as_bool)
        .unwrap_or(false)
}

fn parse(features: &Any) -> Value {
    let value = serde_json::from_slice(&features.value).ok();
    value
        .filter(Value::is_object)
        .unwrap_or_else(|| Value::Object(Map::new()))
}

/// Sets what the second has in the first.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(text: &str) -> Any {
        Any {
            value: text.into(),
            ..Any::default()
        }
    }

    #[test]
    fn a_handler_maps_ids_and_keeps_what_runc_can() {
        for runc in [
            r#"{"mountOptions": ["rro"], "linux": {"namespaces": ["pid"], "mountExtensions": null}}"#,
            r#"{"mountOptions": ["rro"], "linux": {"mountExtensions": {"idmap": {"enabled": false}}}}"#,
        ] {
            assert!(!map_ids(&any(runc)));
            let features = handlers(Some(&any(runc)));
            assert!(map_ids(&features));
            let features = parse(&features);
            assert_eq!(features["mountOptions"], json!(["rro"]));
            let namespaces = features["linux"]["namespaces"].as_array();
            assert!(namespaces.is_some_and(|n| n.contains(&json!("user"))));
        }
        for runc in [None, Some(any("")), Some(any("7"))] {
            assert!(map_ids(&handlers(runc.as_ref())));
        }
    }
}
