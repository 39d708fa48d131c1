//! containerd's configuration, text in and text out.
//!
//! | schema | the plugin with the runtimes | containerd |
//! |---|---|---|
//! | `version = 2` | `io.containerd.grpc.v1.cri` | 1.7, and 2 reads it |
//! | `version = 3` | `io.containerd.cri.v1.runtime` | 2 |
//! | `version = 4` | the same | 2.3 |

mod effective;
mod redact;
mod tables;
mod template;

use std::path::{Path, PathBuf};

use toml_edit::{Array, DocumentMut, Item, Value};

use self::tables::{
    descend, descend_mut, descend_or_make, json, parse, prune, runtimes_path, significant,
};

pub use self::effective::Effective;
pub use self::redact::without_secrets;
pub use self::template::{add_block, is_base_template, remove_block};

/// First line of a file of our own.
const WRITTEN: &str = "# Written by `slipway install`; `slipway uninstall` removes it.";
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
        text.contains(template::BEGIN)
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

/// A configuration with no more than its version.
pub fn declares_nothing(text: &str) -> bool {
    parse(text).is_ok_and(|document| document.iter().all(|(key, _)| key == "version"))
}

/// What containerd starts for a handler: the path, where it has one, else what it finds by the type.
fn program(table: Option<&Item>) -> Option<&str> {
    let table = table?.as_table_like()?;
    let text = |key| table.get(key)?.as_str().filter(|text| !text.is_empty());
    text("runtime_path").or_else(|| text("runtime_type"))
}

#[cfg(test)]
mod tests;
