//! Tables of TOML: ways in them, and what they are as JSON, which compares.

use serde_json::{Map, Value as Json};
use toml_edit::{DocumentMut, Item, Table, TableLike, Value};

use super::Schema;

pub(super) fn parse(text: &str) -> Result<DocumentMut, String> {
    text.parse::<DocumentMut>()
        .map_err(|e| format!("not TOML: {}", e.to_string().trim_end()))
}

pub(super) fn runtimes_path(schema: Schema) -> [&'static str; 4] {
    ["plugins", schema.plugin(), "containerd", "runtimes"]
}

pub(super) fn descend<'a>(table: &'a Table, path: &[&str]) -> Option<&'a dyn TableLike> {
    path.iter().try_fold(table as &dyn TableLike, |t, key| {
        t.get(key)?.as_table_like()
    })
}

pub(super) fn descend_mut<'a>(
    table: &'a mut Table,
    path: &[&str],
) -> Option<&'a mut dyn TableLike> {
    path.iter().try_fold(table as &mut dyn TableLike, |t, key| {
        t.get_mut(key)?.as_table_like_mut()
    })
}

pub(super) fn descend_or_make<'a>(
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
pub(super) fn prune(table: &mut dyn TableLike, path: &[&str]) {
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

/// A value that means the same as none: it need not be written, and options of a runtime that is written are dumped
/// without their defaults.
pub(super) fn is_default(value: &Json) -> bool {
    match value {
        Json::Null | Json::Bool(false) => true,
        Json::Bool(true) => false,
        Json::Number(n) => n.as_f64() == Some(0.0),
        Json::String(s) => s.is_empty(),
        Json::Array(a) => a.is_empty(),
        Json::Object(o) => o.values().all(is_default),
    }
}

/// A table of a dump without the defaults.
pub(super) fn significant(item: &Item) -> Item {
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

pub(super) fn json(item: &Item) -> Json {
    match item {
        Item::Value(value) => json_value(value),
        Item::Table(table) => Json::Object(json_table(table)),
        Item::ArrayOfTables(tables) => {
            Json::Array(tables.iter().map(|t| Json::Object(json_table(t))).collect())
        }
        Item::None => Json::Null,
    }
}

pub(super) fn json_table(table: &dyn TableLike) -> Map<String, Json> {
    table
        .iter()
        .map(|(key, item)| (key.to_owned(), json(item)))
        .collect()
}

pub(super) fn json_value(value: &Value) -> Json {
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
