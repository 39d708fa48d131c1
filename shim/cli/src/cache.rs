//! `slipway cache`.

use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use slipway_cache::{Entry, Kind, Options, Removed, Store};
use slipway_module::Digest;
use slipway_queue::Queued;

use crate::args::{self, CacheCommand};
use crate::terminal::bytes;

/// Digits of a digest that people read.
const SHORT: usize = 16;

pub fn cache(command: &CacheCommand) -> Result<ExitCode, String> {
    match command {
        CacheCommand::Ls { json, store } => list(&open(store)?, *json),
        CacheCommand::Rm {
            digests,
            all,
            store,
        } => remove(&open(store)?, digests, *all),
    }
}

fn open(store: &args::Store) -> Result<Store, String> {
    Store::open(
        &store.cache_dir,
        Options {
            max_bytes: store.cache_bytes,
        },
    )
    .map_err(|e| e.to_string())
}

#[derive(serde::Serialize)]
struct Row {
    artefact: String,
    kind: &'static str,
    module: Option<String>,
    origin: Option<String>,
    tier: Option<String>,
    bytes: u64,
    last_used: u64,
    in_use: bool,
}

impl From<&Entry> for Row {
    fn from(e: &Entry) -> Self {
        Self {
            artefact: e.name.clone(),
            kind: match e.kind {
                Kind::Artefact => "artefact",
                Kind::Refusal => "refusal",
            },
            module: e.meta.as_ref().map(|m| m.module()),
            origin: e.meta.as_ref().map(|m| m.origin.clone()),
            tier: e.meta.as_ref().map(|m| m.key.tier.to_string()),
            bytes: e.bytes,
            last_used: seconds(e.last_used),
            in_use: e.in_use,
        }
    }
}

/// Of the compile queue: the size is the module's, and its last use is when it has come.
impl From<&Queued> for Row {
    fn from(q: &Queued) -> Self {
        Self {
            artefact: q.name.clone(),
            kind: state(q),
            module: Some(Digest::from(q.record.module.digest).to_string()),
            origin: Some(q.record.module.path.clone()),
            tier: Some(q.record.tier.to_string()),
            bytes: q.record.module.size,
            last_used: seconds(q.since),
            in_use: false,
        }
    }
}

/// What a job of the compile queue does.
pub fn state(queued: &Queued) -> &'static str {
    match queued.compiling {
        true => "compiling",
        false => "queued",
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn list(store: &Store, json: bool) -> Result<ExitCode, String> {
    let entries = store.list().map_err(|e| e.to_string())?;
    let queued = slipway_queue::list(Path::new(store.path()));
    let rows = entries.iter().map(Row::from);
    let rows: Vec<Row> = rows.chain(queued.iter().map(Row::from)).collect();
    if json {
        println!(
            "{}",
            serde_json::to_string_pretty(&rows).map_err(|e| e.to_string())?
        );
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{:SHORT$}  {:SHORT$}  {:5}  {:>10}  {:9}  FROM",
        "ARTEFACT", "MODULE", "TIER", "SIZE", "IN USE"
    );
    for row in rows {
        let short = |s: &str| s.chars().take(SHORT).collect::<String>();
        let tier = if row.kind == "refusal" {
            "-".into()
        } else {
            row.tier.unwrap_or_default()
        };
        println!(
            "{:SHORT$}  {:SHORT$}  {tier:5}  {:>10}  {:9}  {}",
            short(&row.artefact),
            short(&row.module.unwrap_or_default()),
            bytes(row.bytes),
            match row.kind {
                "queued" | "compiling" => row.kind,
                _ if row.in_use => "yes",
                _ => "no",
            },
            row.origin.unwrap_or_default()
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn remove(store: &Store, digests: &[String], all: bool) -> Result<ExitCode, String> {
    // What is compiled meanwhile does not come back.
    let (queued, awaited) = forget(store, digests, all)?;
    let mut removed = Removed::default();
    let mut add = |r: Removed| {
        removed.removed.extend(r.removed);
        removed.in_use.extend(r.in_use);
    };
    if all {
        add(store.remove_all().map_err(|e| e.to_string())?);
    }
    for digest in digests {
        add(store.remove(digest).map_err(|e| e.to_string())?);
    }
    println!(
        "removed {}, {}",
        removed.removed.len(),
        bytes(removed.removed.iter().map(|e| e.bytes).sum())
    );
    if queued > 0 {
        println!("not to be compiled any more: {queued}");
    }
    for entry in &removed.in_use {
        println!("in use, kept: {}", entry.name);
    }
    for name in &awaited {
        println!("a start waits for it, kept: {name}");
    }
    Ok(if removed.in_use.is_empty() && awaited.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Takes jobs out of the compile queue, by the digests that the store has taken for good: how many, and which stay.
fn forget(store: &Store, digests: &[String], all: bool) -> Result<(usize, Vec<String>), String> {
    let wanted = |queued: &Queued| {
        let module = Digest::from(queued.record.module.digest).to_string();
        let mut digests = digests.iter().map(|digest| digest.to_ascii_lowercase());
        all || digests.any(|digest| {
            let digits = digest.strip_prefix("sha256:").unwrap_or(&digest);
            queued.name.starts_with(digits) || module.starts_with(digits)
        })
    };
    let queued = slipway_queue::list(Path::new(store.path()));
    let names: Vec<&str> = queued
        .iter()
        .filter(|queued| wanted(queued))
        .map(|queued| queued.name.as_str())
        .collect();
    let kept = slipway_queue::forget(store.path(), &names)
        .map_err(|e| format!("compile queue of {}: {e}", store.path().display()))?;
    Ok((names.len() - kept.len(), kept))
}
