//! What the installer's pod serves over HTTP: the probes of the kubelet, and metrics in Prometheus' text form.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use slipway_counters::{Snapshot, Text};

/// A caller that says nothing holds the others up for so long.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest request that is read.
const MAX_REQUEST: u64 = 8 << 10;

/// What the metrics of a node are made of.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// The artefact cache.
    pub cache_dir: PathBuf,
    /// Where the node's shims count.
    pub counters_dir: PathBuf,
}

impl Metrics {
    /// The metrics in Prometheus' text form.
    pub fn text(&self, installed: bool) -> String {
        let (mut entries, mut bytes) = (0u64, 0u64);
        for entry in std::fs::read_dir(&self.cache_dir)
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let is_entry = Path::new(&name)
                .extension()
                .is_some_and(|e| e == "so" || e == "refused");
            if let (true, Ok(metadata)) = (is_entry, entry.metadata()) {
                entries += 1;
                bytes += metadata.len();
            }
        }
        let mut text = Text::default();
        text.family("slipway_info", "The version of who tells this.", "gauge");
        let version = env!("CARGO_PKG_VERSION");
        text.sample("slipway_info", &[("version", version)], 1);
        text.gauge(
            "slipway_installed",
            "Whether Slipway is installed on this node.",
            u64::from(installed),
        );
        text.gauge(
            "slipway_cache_entries",
            "Compiled artefacts in the node's cache.",
            entries,
        );
        text.gauge(
            "slipway_cache_bytes",
            "Size of the compiled artefacts in the node's cache.",
            bytes,
        );
        text.family(
            "slipway_compile_queue",
            "Modules in the node's compile queue, by what they do.",
            "gauge",
        );
        let queue = slipway_queue::list(&self.cache_dir);
        for (state, compiling) in [("waiting", false), ("compiling", true)] {
            let jobs = queue.iter().filter(|job| job.compiling == compiling);
            text.sample("slipway_compile_queue", &[("state", state)], jobs.count());
        }
        text.counters(&Snapshot::read(&self.counters_dir));
        text.into()
    }
}

/// What an installer knows of itself and of its node.
#[derive(Debug, Default)]
pub struct Health {
    /// This installer has installed, with its own values, and the user wishes it.
    pub ready: AtomicBool,
    /// Slipway can be used on the node, whoever has installed it.
    pub installed: AtomicBool,
}

/// Serves until the process ends, in a thread of its own.
///
/// # Errors
/// The address cannot be had.
pub fn serve(address: &str, metrics: Metrics, health: Arc<Health>) -> Result<(), String> {
    let listener =
        TcpListener::bind(address).map_err(|e| format!("--metrics-address {address}: {e}"))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A caller that has gone away needs no answer.
            let _ = answer(stream, &metrics, &health);
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream, metrics: &Metrics, health: &Health) -> std::io::Result<()> {
    let ready = health.ready.load(Ordering::Relaxed);
    let installed = health.installed.load(Ordering::Relaxed);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = BufReader::new((&stream).take(MAX_REQUEST));
    let mut line = String::new();
    request.read_line(&mut line)?;
    let mut header = String::new();
    while request.read_line(&mut header)? > 0 && header != "\r\n" {
        header.clear();
    }
    let (status, body) = match line.split(' ').nth(1) {
        Some("/healthz") => ("200 OK", "ok\n".to_owned()),
        Some("/readyz") if ready => ("200 OK", "installed\n".to_owned()),
        Some("/readyz") => ("503 Service Unavailable", "not installed\n".to_owned()),
        Some("/metrics") => ("200 OK", metrics.text(installed)),
        _ => ("404 Not Found", "/metrics, /healthz, /readyz\n".to_owned()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_counted() {
        let cache = tempfile::tempdir().unwrap();
        for (name, size) in [
            ("a.so", 3),
            ("b.refused", 4),
            ("a.seen", 5),
            ("store.lock", 6),
        ] {
            std::fs::write(cache.path().join(name), vec![0; size]).unwrap();
        }
        let metrics = Metrics {
            cache_dir: cache.path().into(),
            counters_dir: cache.path().join("none"),
        };
        let text = metrics.text(true);
        for line in [
            "slipway_cache_entries 2\n",
            "slipway_cache_bytes 7\n",
            "slipway_installed 1\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
