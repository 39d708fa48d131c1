//! containerd's configuration, text in and text out.
//!
//! | schema | the plugin with the runtimes | containerd |
//! |---|---|---|
//! | `version = 2` | `io.containerd.grpc.v1.cri` | 1.7, and 2 reads it |
//! | `version = 3` | `io.containerd.cri.v1.runtime` | 2 |
//! | `version = 4` | the same | 2.3 |

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};
use toml_edit::{Array, DocumentMut, Item, Table, TableLike, Value};

/// First and last line of what is added to a template, which is no TOML.
const BEGIN: &str = "# slipway: begin (written by `slipway install`)";
const END: &str = "# slipway: end";
/// First line of a file of our own.
const WRITTEN: &str = "# Written by `slipway install`; `slipway uninstall` removes it.";
/// A template of k3s and rke2 that adds to what they render.
const BASE_TEMPLATE: &str = "{{ template \"base\" . }}\n";
/// Options of runc's handler that Slipway's takes over for the pods' Linux containers.
const OPTIONS: [&str; 10] = [
    "BinaryName",
    "Root",
    "SystemdCgroup",
    "NoPivotRoot",
    "NoNewKeyring",
    "ShimCgroup",
    "IoUid",
    "IoGid",
    "CriuImagePath",
    "CriuWorkPath",
];
/// The type of runc's handlers.
const RUNC: &str = "io.containerd.runc.v2";
/// Names of the CRI plugin in `disabled_plugins`.
const CRI_PLUGINS: [&str; 3] = [
    "cri",
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.runtime",
];

/// The version that a configuration declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schema(pub i64);

impl Schema {
    /// The plugin that has the runtimes.
    pub fn plugin(self) -> &'static str {
        match self.0 {
            2 => "io.containerd.grpc.v1.cri",
            _ => "io.containerd.cri.v1.runtime",
        }
    }

    /// The version of a file's text.
    pub fn of(text: &str) -> Result<Self, String> {
        let version = parse(text)?.get("version").and_then(Item::as_integer);
        match version {
            Some(version @ 2..) => Ok(Self(version)),
            _ => Err(
                "version 1 of containerd's configuration: `containerd config migrate` makes one that is not outdated"
                    .into(),
            ),
        }
    }
}

/// What containerd is told of Slipway.
#[derive(Debug, Clone)]
pub struct Handlers {
    /// Their names.
    pub names: Vec<String>,
    /// Path of the shim.
    pub shim: String,
    /// Annotations that reach it.
    pub annotations: Vec<String>,
    /// Options of runc, and Slipway's own.
    pub options: Vec<(String, Value)>,
}

impl Handlers {
    /// The tables of the handlers, as a text to add to a configuration.
    pub fn section(&self, schema: Schema) -> String {
        let annotations = Value::from(self.annotations.iter().collect::<Array>());
        let mut text = String::new();
        for name in &self.names {
            let table = format!("plugins.\"{}\".containerd.runtimes.{name}", schema.plugin());
            text += &format!(
                "[{table}]\n{}  pod_annotations = {annotations}\n  container_annotations = {annotations}\n",
                self.program()
            );
            if !self.options.is_empty() {
                text += &format!("  [{table}.options]\n");
            }
            for (key, value) in &self.options {
                text += &format!("    {key} = {value}\n");
            }
        }
        text
    }

    /// The keys that name the shim. containerd asks no handlers but those of runc's type what they can do; without an answer
    /// the kubelet refuses user namespaces and recursive read-only mounts. But it drops options that runc does not have.
    fn program(&self) -> String {
        let shim = Value::from(self.shim.as_str());
        let runcs = |(key, _): &(String, Value)| OPTIONS.contains(&key.as_str());
        match self.options.iter().all(runcs) {
            true => format!("  runtime_type = \"{RUNC}\"\n  runtime_path = {shim}\n"),
            false => format!("  runtime_type = {shim}\n"),
        }
    }

    /// A file of its own that containerd imports.
    pub fn drop_in(&self, schema: Schema) -> String {
        format!(
            "{WRITTEN}\nversion = {}\n\n{}",
            schema.0,
            self.section(schema)
        )
    }

    /// Adds the handlers to a configuration. `effective` is what containerd makes of it now: where the file names no
    /// runtimes, containerd 1.7 would lose its default ones to ours, so they are written, too.
    pub fn add(&self, text: &str, effective: &Effective, ours: &Ours) -> Result<String, String> {
        let schema = Schema::of(text)?;
        let mut document = parse(text)?;
        let section = parse(&self.section(schema))?;
        let path = runtimes_path(schema);
        let new = descend(section.as_table(), &path).ok_or("no handlers")?;
        let runtimes = descend_or_make(document.as_table_mut(), &path)?;
        for (name, table) in effective.runtimes(schema) {
            // One of ours that is there but not wanted, as an alias of before, is no default.
            let default = !ours.shim(program(Some(table)));
            if default && !runtimes.contains_key(name) && !new.contains_key(name) {
                runtimes.insert(name, significant(table));
            }
        }
        for (name, table) in new.iter() {
            let same = runtimes
                .get(name)
                .is_some_and(|old| json(old) == json(table));
            if !same {
                runtimes.insert(name, table.clone());
            }
        }
        Ok(document.to_string())
    }
}

/// By what Slipway's part of a configuration is known: that of this installation, and of those that it takes the place of.
#[derive(Debug, Clone, Default)]
pub struct Ours {
    /// Paths of shims, as handlers name them.
    pub shims: Vec<String>,
    /// Names of handlers.
    pub names: Vec<String>,
    /// Files that the configuration imports.
    pub imports: Vec<PathBuf>,
}

impl Ours {
    fn shim(&self, program: Option<&str>) -> bool {
        program.is_some_and(|program| self.shims.iter().any(|shim| shim == program))
    }

    fn import(&self, import: &Value) -> bool {
        let path = import.as_str().map(Path::new);
        path.is_some_and(|path| self.imports.iter().any(|import| import == path))
    }

    /// Whether a text has anything of Slipway's.
    pub fn are_in(&self, text: &str) -> bool {
        let imports = self.imports.iter().map(|i| i.to_string_lossy());
        text.contains(BEGIN)
            || self.shims.iter().any(|shim| text.contains(shim))
            || imports.into_iter().any(|i| text.contains(i.as_ref()))
    }
}

/// Takes our handlers and imports out of a configuration.
pub fn remove(text: &str, ours: &Ours) -> Result<String, String> {
    let mut document = parse(text)?;
    if let Ok(schema) = Schema::of(text) {
        let path = runtimes_path(schema);
        if let Some(runtimes) = descend_mut(document.as_table_mut(), &path) {
            for name in &ours.names {
                if ours.shim(program(runtimes.get(name))) {
                    runtimes.remove(name);
                }
            }
        }
        prune(document.as_table_mut(), &path);
    }
    if let Some(imports) = document.get_mut("imports").and_then(Item::as_array_mut) {
        imports.retain(|i| !ours.import(i));
        if imports.is_empty() {
            document.remove("imports");
        }
    }
    Ok(document.to_string())
}

/// Makes a configuration import a file, if none of its patterns does already.
pub fn add_import(text: &str, import: &Path) -> Result<String, String> {
    let mut document = parse(text)?;
    let imports = document
        .entry("imports")
        .or_insert(Item::Value(Array::new().into()))
        .as_array_mut()
        .ok_or("`imports` is no list")?;
    let import = import.to_string_lossy();
    if !imports.iter().any(|i| i.as_str() == Some(&import)) {
        imports.push(import.as_ref());
    }
    Ok(document.to_string())
}

/// The directories of which a configuration imports all `*.toml`. It lies in `directory`, which relative ones are of.
pub fn imported_directories(text: &str, directory: &Path) -> Vec<PathBuf> {
    let Ok(document) = parse(text) else {
        return Vec::new();
    };
    let imports = document.get("imports").and_then(Item::as_array);
    let patterns = imports.into_iter().flatten().filter_map(Value::as_str);
    patterns
        .filter_map(|p| p.strip_suffix("/*.toml"))
        .filter(|d| !d.contains(['*', '?', '[']))
        .map(|d| directory.join(d))
        .collect()
}

/// What a configuration imports, as paths that may end in `*.toml`. It lies in `directory`, which relative ones are of.
pub fn imports(text: &str, directory: &Path) -> Vec<PathBuf> {
    let document: Option<DocumentMut> = text.parse().ok();
    let imports = document.as_ref().and_then(|d| d.get("imports")?.as_array());
    let patterns = imports.into_iter().flatten().filter_map(Value::as_str);
    patterns.map(|pattern| directory.join(pattern)).collect()
}

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

/// A configuration that may lie anywhere: its imports are relative to where it is.
pub fn absolute_imports(text: &str, directory: &Path) -> Result<String, String> {
    let mut document = parse(text)?;
    let imports = document.get_mut("imports").and_then(Item::as_array_mut);
    for import in imports.into_iter().flat_map(Array::iter_mut) {
        if let Some(path) = import.as_str() {
            *import = Value::from(directory.join(path).to_string_lossy().as_ref());
        }
    }
    Ok(document.to_string())
}

/// Whether a file is one that `slipway install` has written, of whatever installation.
pub fn is_drop_in(text: &str) -> bool {
    text.starts_with(WRITTEN)
}

/// Adds the section to a template, in the place of an earlier one; fails as [`remove_block`] does.
pub fn add_block(template: Option<&str>, section: &str) -> Result<String, String> {
    let mut text = template.map_or_else(|| Ok(BASE_TEMPLATE.to_owned()), remove_block)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(format!("{text}{BEGIN}\n{section}{END}\n"))
}

/// Takes the section out of a template. Where its last line is missing nobody knows what below it is somebody else's: an error.
pub fn remove_block(template: &str) -> Result<String, String> {
    let mut begun = None;
    let mut kept = String::new();
    for (index, line) in template.split_inclusive('\n').enumerate() {
        match (begun, line.trim_end()) {
            (None, BEGIN) => begun = Some(index + 1),
            (Some(_), END) => begun = None,
            (Some(_), BEGIN) => break,
            (Some(_), _) => {}
            (None, _) => kept += line,
        }
    }
    match begun {
        None => Ok(kept),
        Some(number) => Err(format!(
            "line {number}: the section of `slipway install` has lost its last line, `{END}`: add it where the section ends"
        )),
    }
}

/// A template that only adds to what is rendered anyway.
pub fn is_base_template(text: &str) -> bool {
    text.trim() == BASE_TEMPLATE.trim()
}

/// A configuration with no more than its version.
pub fn declares_nothing(text: &str) -> bool {
    parse(text).is_ok_and(|document| document.iter().all(|(key, _)| key == "version"))
}

/// What containerd makes of its configuration: `containerd config dump`.
#[derive(Debug)]
pub struct Effective(DocumentMut);

impl Effective {
    /// Reads a dump.
    pub fn parse(dump: &str) -> Result<Self, String> {
        parse(dump).map(Self)
    }

    fn runtimes(&self, schema: Schema) -> impl Iterator<Item = (&str, &Item)> {
        descend(self.0.as_table(), &runtimes_path(schema))
            .into_iter()
            .flat_map(TableLike::iter)
    }

    fn all_runtimes(&self) -> impl Iterator<Item = (&str, &Item)> {
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

/// A value that means the same as none: it need not be written, and options of a runtime that is written are dumped
/// without their defaults.
fn is_default(value: &Json) -> bool {
    match value {
        Json::Null | Json::Bool(false) => true,
        Json::Bool(true) => false,
        Json::Number(n) => n.as_f64() == Some(0.0),
        Json::String(s) => s.is_empty(),
        Json::Array(a) => a.is_empty(),
        Json::Object(o) => o.values().all(is_default),
    }
}

fn parse(text: &str) -> Result<DocumentMut, String> {
    text.parse::<DocumentMut>()
        .map_err(|e| format!("not TOML: {}", e.to_string().trim_end()))
}

fn runtimes_path(schema: Schema) -> [&'static str; 4] {
    ["plugins", schema.plugin(), "containerd", "runtimes"]
}

fn descend<'a>(table: &'a Table, path: &[&str]) -> Option<&'a dyn TableLike> {
    path.iter().try_fold(table as &dyn TableLike, |t, key| {
        t.get(key)?.as_table_like()
    })
}

fn descend_mut<'a>(table: &'a mut Table, path: &[&str]) -> Option<&'a mut dyn TableLike> {
    path.iter().try_fold(table as &mut dyn TableLike, |t, key| {
        t.get_mut(key)?.as_table_like_mut()
    })
}

fn descend_or_make<'a>(
    table: &'a mut Table,
    path: &[&str],
) -> Result<&'a mut dyn TableLike, String> {
    path.iter().try_fold(table as &mut dyn TableLike, |t, key| {
        let mut implicit = Table::new();
        implicit.set_implicit(true);
        t.entry(key)
            .or_insert(Item::Table(implicit))
            .as_table_like_mut()
            .ok_or_else(|| format!("`{key}` is no table"))
    })
}

/// Removes tables on this path that are empty and have no header of their own.
fn prune(table: &mut dyn TableLike, path: &[&str]) {
    let Some((key, rest)) = path.split_first() else {
        return;
    };
    let Some(Item::Table(inner)) = table.get_mut(key) else {
        return;
    };
    prune(inner, rest);
    if inner.is_empty() && inner.is_implicit() {
        table.remove(key);
    }
}

/// What containerd starts for a handler: the path, where it has one, else what it finds by the type.
fn program(table: Option<&Item>) -> Option<&str> {
    let table = table?.as_table_like()?;
    let text = |key| table.get(key)?.as_str().filter(|text| !text.is_empty());
    text("runtime_path").or_else(|| text("runtime_type"))
}

/// A table of a dump without the defaults.
fn significant(item: &Item) -> Item {
    let Some(table) = item.as_table_like() else {
        return item.clone();
    };
    let mut kept = Table::new();
    for (key, item) in table.iter() {
        match item {
            Item::Value(value) if is_default(&json_value(value)) => {}
            Item::Value(value) => {
                kept.insert(key, Item::Value(value.clone().decorated(" ", "")));
            }
            other => {
                let inner = significant(other);
                if inner.as_table_like().is_some_and(|t| !t.is_empty()) {
                    kept.insert(key, inner);
                }
            }
        }
    }
    Item::Table(kept)
}

fn json(item: &Item) -> Json {
    match item {
        Item::Value(value) => json_value(value),
        Item::Table(table) => Json::Object(json_table(table)),
        Item::ArrayOfTables(tables) => {
            Json::Array(tables.iter().map(|t| Json::Object(json_table(t))).collect())
        }
        Item::None => Json::Null,
    }
}

fn json_table(table: &dyn TableLike) -> Map<String, Json> {
    table
        .iter()
        .map(|(key, item)| (key.to_owned(), json(item)))
        .collect()
}

fn json_value(value: &Value) -> Json {
    match value {
        Value::String(s) => Json::from(s.value().as_str()),
        Value::Integer(n) => Json::from(*n.value()),
        Value::Float(n) => Json::from(*n.value()),
        Value::Boolean(b) => Json::from(*b.value()),
        Value::Datetime(d) => Json::from(d.value().to_string()),
        Value::Array(a) => Json::Array(a.iter().map(json_value).collect()),
        Value::InlineTable(t) => Json::Object(json_table(t)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIM: &str = "/opt/slipway/current/bin/containerd-shim-slipway-v1";

    fn handlers(names: &[&str]) -> Handlers {
        Handlers {
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            shim: SHIM.into(),
            annotations: vec!["slipway.dev/*".into()],
            options: vec![
                ("BinaryName".into(), "/usr/bin/runc".into()),
                ("SystemdCgroup".into(), true.into()),
            ],
        }
    }

    fn ours(names: &[String], imports: &[&Path]) -> Ours {
        Ours {
            shims: vec![SHIM.into()],
            names: names.to_vec(),
            imports: imports.iter().map(|i| (*i).to_owned()).collect(),
        }
    }

    fn nothing() -> Effective {
        Effective::parse("").unwrap()
    }

    /// Files as they are found on nodes.
    const FOUND: [&str; 5] = [
        "version = 2\n",
        "# Ours.\nversion = 2\nroot = \"/data\" # a disk\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    sandbox_image = \"p:1\"\n    [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n      default_runtime_name = \"runc\"\n      [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes]\n        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n          runtime_type = \"io.containerd.runc.v2\"\n          [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n            SystemdCgroup = true\n  # The end.\n  [plugins.\"io.containerd.internal.v1.opt\"]\n    path = \"/opt/containerd\"\n# Bye.\n",
        "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'overlayfs'\n",
        "version = 2\nplugins.\"io.containerd.grpc.v1.cri\".sandbox_image = \"p:1\"\n",
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes]\nrunc = { runtime_type = \"io.containerd.runc.v2\" }\n",
    ];

    #[test]
    fn adding_twice_is_adding_once_and_removing_gives_the_bytes_back() {
        for found in FOUND {
            let handlers = handlers(&["slipway", "wasmedge"]);
            let added = handlers.add(found, &nothing(), &Ours::default()).unwrap();
            assert_eq!(
                handlers.add(&added, &nothing(), &Ours::default()).unwrap(),
                added
            );
            let effective = Effective::parse(&added).unwrap();
            assert_eq!(effective.program("slipway"), Some(SHIM), "{added}");
            assert_eq!(effective.program("wasmedge"), Some(SHIM), "{added}");
            for line in found.lines() {
                assert!(added.contains(line), "{line:?} is not in {added}");
            }
            assert_eq!(remove(&added, &ours(&handlers.names, &[])).unwrap(), found);
        }
    }

    #[test]
    fn imports_come_and_go() {
        let import = Path::new("/etc/containerd/conf.d/slipway.toml");
        for found in FOUND {
            let added = add_import(found, import).unwrap();
            assert_eq!(add_import(&added, import).unwrap(), added);
            assert!(added.contains("/etc/containerd/conf.d/slipway.toml\""));
            assert_eq!(remove(&added, &ours(&[], &[import])).unwrap(), found);
        }
    }

    #[test]
    fn secrets_are_left_out_and_what_runs_pods_is_not() {
        let text = r#"
version = 2 # hush-1
[plugins."io.containerd.grpc.v1.cri".registry.configs."r.example.com".auth]
username = "hush-2"
password = "hush-3"
auth = "hush-4"
pin = 31337
[plugins."io.containerd.grpc.v1.cri".registry.configs."hush-5:x@r.example.com".tls]
insecure_skip_verify = true
[plugins."io.containerd.grpc.v1.cri".registry.headers]
Authorization = ["Bearer hush-6"]
Root = ["hush-9"]
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
endpoint = ["https://u:hush-7@r.example.com"]
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.slipway]
runtime_type = "/shim"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.slipway.options]
SystemdCgroup = true
[proxy_plugins.x]
address = "hush-8"
"#;
        let shown = without_secrets(text);
        assert!(
            !shown.contains("hush") && !shown.contains("31337"),
            "{shown}"
        );
        for line in [
            "version = 2",
            r#"plugins."io.containerd.grpc.v1.cri".containerd.runtimes.slipway.runtime_type = "/shim""#,
            r#"plugins."io.containerd.grpc.v1.cri".containerd.runtimes.slipway.options.SystemdCgroup = true"#,
            r#"plugins."io.containerd.grpc.v1.cri".registry.configs."r.example.com".auth.password = (left out)"#,
        ] {
            assert!(shown.lines().any(|l| l == line), "{line} is not in {shown}");
        }
        assert!(!without_secrets("password = hush").contains("hush"));
    }

    #[test]
    fn directories_are_known_that_are_imported_whole() {
        let text =
            "version = 3\nimports = ['/a/*.toml', 'conf.d/*.toml', '/b/c.toml', '/d*/*.toml']\n";
        let found = imported_directories(text, Path::new("/etc/containerd"));
        assert_eq!(
            found,
            [Path::new("/a"), Path::new("/etc/containerd/conf.d")]
        );
    }

    #[test]
    fn default_runtimes_are_kept_where_the_file_has_none() {
        let dump = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\nruntime_path = \"\"\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\nIoGid = 0\n";
        let effective = Effective::parse(dump).unwrap();
        let added = handlers(&["slipway"])
            .add("version = 2\n", &effective, &Ours::default())
            .unwrap();
        let after = Effective::parse(&added).unwrap();
        assert_eq!(after.program("runc"), Some("io.containerd.runc.v2"));
        assert!(!added.contains("IoGid"), "{added}");
    }

    #[test]
    fn an_alias_that_is_wanted_no_more_is_no_default_runtime() {
        let handlers = handlers(&["slipway", "wasmedge"]);
        let added = handlers
            .add("version = 2\n", &nothing(), &Ours::default())
            .unwrap();
        let effective = Effective::parse(&added).unwrap();
        let wanted = Handlers {
            names: vec!["slipway".into()],
            ..handlers
        };
        let again = wanted
            .add("version = 2\n", &effective, &ours(&[], &[]))
            .unwrap();
        assert!(!again.contains("wasmedge"), "{again}");
    }

    #[test]
    fn a_handler_of_somebody_elses_is_not_removed() {
        let text = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.wasmedge]\nruntime_type = 'io.containerd.wasmedge.v1'\n";
        let names = ["wasmedge".to_owned()];
        assert_eq!(remove(text, &ours(&names, &[])).unwrap(), text);
    }

    #[test]
    fn templates_get_one_block() {
        let section = handlers(&["slipway"]).section(Schema(3));
        let fresh = add_block(None, &section).unwrap();
        assert!(fresh.starts_with("{{ template \"base\" . }}\n# slipway: begin"));
        assert!(is_base_template(&remove_block(&fresh).unwrap()));
        let found = "{{ template \"base\" . }}\n[debug]\n  level = \"debug\"\n";
        let added = add_block(Some(found), &section).unwrap();
        assert_eq!(add_block(Some(&added), &section).unwrap(), added);
        assert_eq!(remove_block(&added).unwrap(), found);
    }

    #[test]
    fn a_block_without_its_end_takes_nothing_along() {
        let section = handlers(&["slipway"]).section(Schema(3));
        let whole = add_block(Some("[debug]\n"), &section).unwrap();
        let cut = whole.replace(END, "");
        for text in [format!("{cut}[plugins]\n"), cut.clone() + &whole] {
            for told in [remove_block(&text), add_block(Some(&text), &section)] {
                let told = told.unwrap_err();
                assert!(told.starts_with("line 2: ") && told.contains(END), "{told}");
            }
        }
    }

    #[test]
    fn options_are_those_of_runc() {
        let dump = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\noptions = { BinaryName = '/bin/runc', SystemdCgroup = false, Root = '', IoUid = 7 }\n";
        let options = Effective::parse(dump).unwrap().runc_options();
        let names: Vec<_> = options.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["BinaryName", "IoUid"]);
        assert_eq!(options[0].1.as_str(), Some("/bin/runc"));
        assert_eq!(options[1].1.as_integer(), Some(7));
    }

    #[test]
    fn a_handler_is_of_runcs_type_unless_it_has_options_that_runc_has_not() {
        let mut handlers = handlers(&["slipway"]);
        for (kind, path) in [(Some(RUNC), Some(SHIM)), (Some(SHIM), None)] {
            let added = handlers
                .add("version = 3\n", &nothing(), &Ours::default())
                .unwrap();
            let effective = Effective::parse(&added).unwrap();
            assert_eq!(effective.program("slipway"), Some(SHIM));
            let (_, table) = effective.all_runtimes().next().unwrap();
            assert_eq!(table["runtime_type"].as_str(), kind);
            assert_eq!(table.get("runtime_path").and_then(Item::as_str), path);
            let text = remove(&added, &ours(&handlers.names, &[])).unwrap();
            assert_eq!(text, "version = 3\n");
            handlers.options.push(("CacheBytes".into(), 7.into()));
        }
    }

    #[test]
    fn outdated_and_broken_files_are_refused_with_the_remedy() {
        for (text, word) in [
            ("", "migrate"),
            ("[plugins.cri]\n", "migrate"),
            ("version = ", "not TOML"),
        ] {
            let error = handlers(&["slipway"])
                .add(text, &nothing(), &Ours::default())
                .unwrap_err();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }

    #[test]
    fn own_handlers_may_come_and_go_and_no_others() {
        const RUNTIMES: &str = "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes";
        let with = |name: &str, shim: &str| {
            let text = format!("[{RUNTIMES}]\n[{RUNTIMES}.{name}]\nruntime_type = '{shim}'\n");
            Effective::parse(&text).unwrap()
        };
        let without = Effective::parse(&format!("[{RUNTIMES}]\n")).unwrap();
        let wanted = ["slipway".to_owned()];
        let ours = ours(&wanted, &[]);
        // Added, taken over from another directory, and an alias of an earlier installation.
        assert_eq!(
            without.difference(&with("slipway", SHIM), &wanted, &ours),
            None
        );
        let (elsewhere, here) = (with("slipway", "/x"), with("slipway", SHIM));
        assert_eq!(elsewhere.difference(&here, &wanted, &ours), None);
        assert_eq!(
            with("alias", SHIM).difference(&without, &wanted, &ours),
            None
        );
        let said = with("alias", "/x").difference(&without, &wanted, &ours);
        let said = said.unwrap();
        assert!(said.contains("alias"), "{said}");
    }

    #[test]
    fn a_change_elsewhere_is_found() {
        let [before, after] = [
            "a = 1\n[plugins.x]\nb = 2\n",
            "a = 1\nimports = ['y']\n[plugins.x]\nb = 3\n",
        ]
        .map(|t| Effective::parse(t).unwrap());
        assert_eq!(
            before.difference(&after, &[], &Ours::default()).unwrap(),
            "plugins.x.b is 3 instead of 2"
        );
        assert_eq!(before.difference(&before, &[], &Ours::default()), None);
        let text = "a = 1\n[plugins.x]\nb = 2\nc = ''\nd = { e = false }\n";
        let defaults = Effective::parse(text).unwrap();
        assert_eq!(defaults.difference(&before, &[], &Ours::default()), None);
    }

    #[test]
    fn the_socket_is_found_in_each_version() {
        for (dump, address) in [
            ("[grpc]\naddress = '/a'\n", Some("/a")),
            (
                "[grpc]\nuid = 0\n[plugins.'io.containerd.server.v1.grpc']\naddress = '/b'\n",
                Some("/b"),
            ),
            ("version = 3\n", None),
        ] {
            assert_eq!(Effective::parse(dump).unwrap().address(), address);
        }
    }
}
