//! `slipway doctor --report`: what a maintainer would ask for, in one text, without secrets.
//!
//! Nothing that a pod's author has written is in it but names: no environment, no arguments, no output. Of containerd's
//! configuration and log only what is known to be harmless.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use slipway_cache::{Kind, Options, Store};
use slipway_install::Cri;

use crate::args::{Doctor, Metrics};
use crate::doctor::Containerd;
use crate::terminal::bytes;
use crate::{metrics, top};

/// Lines of the log that are looked at, and that are shown.
const LOG_LINES: usize = 20_000;
const SHOWN_LINES: usize = 200;
/// From here on a line of the log may have a secret.
const SECRETS: [&str; 10] = [
    "password",
    "passwd",
    "secret",
    "token",
    "auth",
    "bearer",
    "credential",
    "apikey",
    "api_key",
    "env:",
];

/// Writes it; `checks` is what the doctor has found.
pub fn write(
    file: &Path,
    checks: &str,
    args: &Doctor,
    containerd: &Containerd,
) -> Result<(), String> {
    let text = text(checks, args, containerd);
    if file == Path::new("-") {
        print!("{text}");
        return Ok(());
    }
    let failed = |e: std::io::Error| format!("--report {}: {e}", file.display());
    // Made anew, so that it is this user's alone whatever was there.
    match fs::remove_file(file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let mut out = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(failed)?;
    out.write_all(text.as_bytes()).map_err(failed)
}

fn text(checks: &str, args: &Doctor, containerd: &Containerd) -> String {
    let metrics = metrics::text(&Metrics {
        install_dir: args.install_dir.clone(),
        cache_dir: args.store.cache_dir.clone().into(),
    });
    let sections = [
        ("checks", checks.to_owned()),
        ("machine", machine()),
        ("containerd", cri(containerd)),
        (
            "containerd's configuration",
            configuration(&containerd.config),
        ),
        ("artefact cache", cache(args)),
        ("Wasm containers", or_error(top::text(&args.state))),
        ("metrics", or_error(metrics)),
        (
            "containerd's log, lines of Slipway's",
            log(args, containerd),
        ),
    ];
    let mut text = format!(
        "Slipway {}: report of a node. Secrets are left out; it has names of pods, images' files and registries.\n",
        env!("CARGO_PKG_VERSION")
    );
    for (title, body) in sections {
        text += &format!("\n== {title}\n{}\n", body.trim_end());
    }
    text
}

fn or_error(text: Result<String, String>) -> String {
    text.unwrap_or_else(|e| e)
}

fn machine() -> String {
    let uname = rustix::system::uname();
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let of = |path: &str, key: &str| {
        let text = read(path);
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or("unknown")
            .trim_matches([' ', '"'])
            .to_owned()
    };
    let seconds = UNIX_EPOCH.elapsed().map_or(0, |now| now.as_secs());
    let cgroups = match Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        true => format!(
            "version 2: {}",
            read("/sys/fs/cgroup/cgroup.controllers").trim()
        ),
        false => "version 1".into(),
    };
    [
        format!("time: {seconds} s since 1970"),
        format!("system: {}", of("/etc/os-release", "PRETTY_NAME=")),
        format!(
            "kernel: {} {} {}",
            uname.release().to_string_lossy(),
            uname.version().to_string_lossy(),
            uname.machine().to_string_lossy()
        ),
        format!("processor: {}", of("/proc/cpuinfo", "model name\t:")),
        format!(
            "processors: {}",
            std::thread::available_parallelism().map_or(0, usize::from)
        ),
        format!(
            "memory: {}, available {}",
            of("/proc/meminfo", "MemTotal:"),
            of("/proc/meminfo", "MemAvailable:")
        ),
        format!("cgroups: {cgroups}"),
        format!("security modules: {}", read("/sys/kernel/security/lsm")),
        format!("load: {}", read("/proc/loadavg").trim()),
        format!(
            "pressure of memory: {}",
            read("/proc/pressure/memory").trim().replace('\n', "; ")
        ),
    ]
    .join("\n")
}

fn cri(containerd: &Containerd) -> String {
    match Cri::ask(&containerd.address) {
        Ok(cri) => {
            let handlers: Vec<_> = cri.handlers.iter().map(String::as_str).collect();
            format!("version: {}\nhandlers: {}", cri.version, handlers.join(" "))
        }
        Err(e) => e,
    }
}

/// The file, and what it imports by name or directory.
fn configuration(file: &Path) -> String {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) => return format!("{}: {e}", file.display()),
    };
    let directory = file.parent().unwrap_or(Path::new("/"));
    let imported = slipway_install::imports(&text, directory);
    let imported = imported.into_iter().flat_map(|pattern| matching(&pattern));
    let mut shown = format!(
        "-- {}\n{}",
        file.display(),
        slipway_install::without_secrets(&text)
    );
    for path in imported {
        let text = fs::read_to_string(&path);
        let text = text.map_or_else(|e| e.to_string(), |t| slipway_install::without_secrets(&t));
        shown += &format!("\n-- {}\n{text}", path.display());
    }
    shown
}

fn matching(pattern: &Path) -> Vec<PathBuf> {
    if !pattern.ends_with("*.toml") {
        return vec![pattern.to_owned()];
    }
    let entries = pattern.parent().map(fs::read_dir);
    let entries = entries.into_iter().flatten().flatten().flatten();
    let mut files: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    files
}

fn cache(args: &Doctor) -> String {
    let options = Options {
        max_bytes: args.store.cache_bytes,
    };
    let entries = match Store::open(&args.store.cache_dir, options).and_then(|s| s.list()) {
        Ok(entries) => entries,
        Err(e) => return e.to_string(),
    };
    let of = |kind: Kind| entries.iter().filter(|e| e.kind == kind).count();
    let used = entries.iter().filter(|e| e.in_use).count();
    format!(
        "{} artefacts, {} of them in use, {} refusals, {} of {}; {} to compile",
        of(Kind::Artefact),
        used,
        of(Kind::Refusal),
        bytes(entries.iter().map(|e| e.bytes).sum()),
        bytes(args.store.cache_bytes),
        slipway_queue::list(Path::new(&args.store.cache_dir)).len()
    )
}

fn log(args: &Doctor, containerd: &Containerd) -> String {
    let text = match &args.log {
        Some(file) => fs::read(file).map_err(|e| format!("--log {}: {e}", file.display())),
        None => journal(&containerd.unit),
    };
    match text {
        Ok(text) => own_lines(&String::from_utf8_lossy(&text)),
        Err(e) => e,
    }
}

fn journal(unit: &str) -> Result<Vec<u8>, String> {
    let lines = LOG_LINES.to_string();
    let arguments = ["-u", unit, "-n", &lines, "-o", "cat", "--no-pager", "-q"];
    let out = Command::new("journalctl").args(arguments).output();
    out.map(|out| out.stdout)
        .map_err(|e| format!("journalctl: {e}; give containerd's log with --log FILE"))
}

/// The last lines that name Slipway, but those of containerd's debugging, which have the whole spec of a container.
fn own_lines(text: &str) -> String {
    let debugging = |line: &str| line.contains("level=debug") || line.contains("level=trace");
    let of_slipway = |line: &&str| line.contains("slipway") && !debugging(line);
    let mut lines: Vec<_> = text
        .lines()
        .rev()
        .take(LOG_LINES)
        .filter(of_slipway)
        .take(SHOWN_LINES)
        .map(without_secrets)
        .collect();
    lines.reverse();
    lines.join("\n")
}

/// A line up to the first word after which a secret may come.
fn without_secrets(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let words = SECRETS.iter().filter_map(|word| lower.find(word));
    // https://user:password@host
    let user = lower.match_indices("://").find_map(|(at, _)| {
        let authority = lower[at + 3..].split(['/', ' ', '"']).next()?;
        authority.contains('@').then_some(at)
    });
    match words.chain(user).min() {
        Some(end) => format!("{} (left out)", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_slipways_are_shown_up_to_what_may_be_secret() {
        let log = "level=info msg=\"other\"\n\
            level=debug msg=\"spec of slipway: hush\"\n\
            level=info msg=\"pull https://u:hush@h/slipway\"\n\
            level=error msg=\"slipway: API_TOKEN=hush\"\n\
            level=error msg=\"slipway: Authorization: hush\"\n\
            level=info msg=\"compiled /app.wasm\" runtime=io.containerd.slipway.v1\n";
        let shown = own_lines(log);
        assert!(!shown.contains("hush"), "{shown}");
        assert_eq!(shown.lines().count(), 4, "{shown}");
        assert!(
            shown.ends_with(
                "level=info msg=\"compiled /app.wasm\" runtime=io.containerd.slipway.v1"
            )
        );
    }
}
