//! What containerd makes of its configuration.

use serde_json::Value as Json;
use toml_edit::{DocumentMut, Item, TableLike, Value};

use super::tables::{descend, is_default, json_table, json_value, parse, runtimes_path};
use super::{OPTIONS, Ours, RUNC, Schema, program};

/// Names of the CRI plugin in `disabled_plugins`.
const CRI_PLUGINS: [&str; 3] = [
    "cri",
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.runtime",
];

/// The answer of `containerd config dump`.
#[derive(Debug)]
pub struct Effective(DocumentMut);

impl Effective {
    /// Reads a dump.
    pub fn parse(dump: &str) -> Result<Self, String> {
        parse(dump).map(Self)
    }

    pub(super) fn runtimes(&self, schema: Schema) -> impl Iterator<Item = (&str, &Item)> {
        descend(self.0.as_table(), &runtimes_path(schema))
            .into_iter()
            .flat_map(TableLike::iter)
    }

    pub(super) fn all_runtimes(&self) -> impl Iterator<Item = (&str, &Item)> {
        self.runtimes(Schema(2)).chain(self.runtimes(Schema(3)))
    }

    /// The program of a handler.
    pub fn program(&self, name: &str) -> Option<&str> {
        self.all_runtimes().find_map(|(n, table)| {
            if n == name {
                program(Some(table))
            } else {
                None
            }
        })
    }

    /// The options of runc's handler that Slipway's takes over: of the default one where that is runc's.
    pub fn runc_options(&self) -> Vec<(String, Value)> {
        let is_runc = |name: &str| self.program(name) == Some(RUNC);
        let default = [Schema(2), Schema(3)].into_iter().find_map(|schema| {
            let [path @ .., _] = runtimes_path(schema);
            descend(self.0.as_table(), &path)?
                .get("default_runtime_name")?
                .as_str()
        });
        let name = default
            .into_iter()
            .chain(["runc"])
            .find(|name| is_runc(name));
        let runc = self.all_runtimes().find(|(n, _)| name == Some(*n));
        let options = runc.and_then(|(_, table)| table.as_table_like()?.get("options"));
        let Some(options) = options.and_then(Item::as_table_like) else {
            return Vec::new();
        };
        OPTIONS
            .into_iter()
            .filter_map(|key| Some((key.to_owned(), options.get(key)?.as_value()?)))
            .filter(|(_, value)| !is_default(&json_value(value)))
            .map(|(key, value)| (key, value.clone().decorated("", "")))
            .collect()
    }

    /// containerd's socket. With version 4 it is a plugin's.
    pub fn address(&self) -> Option<&str> {
        let tables: [&[&str]; 2] = [&["plugins", "io.containerd.server.v1.grpc"], &["grpc"]];
        tables
            .into_iter()
            .find_map(|path| descend(self.0.as_table(), path)?.get("address")?.as_str())
    }

    /// The name under which the CRI plugin is switched off.
    pub fn disabled_cri(&self) -> Option<&str> {
        let disabled = self.0.get("disabled_plugins").and_then(Item::as_array)?;
        disabled
            .iter()
            .filter_map(Value::as_str)
            .find(|name| CRI_PLUGINS.contains(name))
    }

    /// The handlers with their programs.
    pub fn programs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.all_runtimes()
            .filter_map(|(name, table)| Some((name, program(Some(table))?)))
    }

    /// Where the two differ, but for imports and the handlers: those that are wanted, and ours that are wanted no more.
    pub fn difference(&self, other: &Self, wanted: &[String], ours: &Ours) -> Option<String> {
        let [ours, theirs] = [self, other].map(|e| {
            let mut table = json_table(e.0.as_table());
            table.remove("imports");
            let mut json = Json::Object(table);
            for schema in [Schema(2), Schema(3)] {
                let runtimes = format!("/{}", runtimes_path(schema).join("/"));
                if let Some(Json::Object(runtimes)) = json.pointer_mut(&runtimes) {
                    runtimes.retain(|name, runtime| {
                        let mut programs = ["runtime_path", "runtime_type"]
                            .iter()
                            .map(|key| runtime[*key].as_str());
                        !wanted.contains(name) && !programs.any(|program| ours.shim(program))
                    });
                }
            }
            json
        });
        differing("", &ours, &theirs)
    }
}

/// The path of the first difference.
fn differing(path: &str, a: &Json, b: &Json) -> Option<String> {
    match (a, b) {
        (Json::Object(a), Json::Object(b)) => a.keys().chain(b.keys()).find_map(|key| {
            let path = format!("{path}.{key}");
            differing(
                &path,
                a.get(key).unwrap_or(&Json::Null),
                b.get(key).unwrap_or(&Json::Null),
            )
        }),
        _ if a == b || (is_default(a) && is_default(b)) => None,
        _ => Some(format!(
            "{} is {b} instead of {a}",
            path.trim_start_matches('.')
        )),
    }
}
