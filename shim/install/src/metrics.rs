//! What the installer's pod serves over HTTP: the probes of the kubelet, and metrics in Prometheus' text form.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A caller that says nothing holds the others up for so long.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest request that is read.
const MAX_REQUEST: u64 = 8 << 10;

/// Serves until the process ends, in a thread of its own. `ready` says whether Slipway is installed.
///
/// # Errors
/// The address cannot be had.
pub fn serve(address: &str, cache: &Path, ready: Arc<AtomicBool>) -> Result<(), String> {
    let listener =
        TcpListener::bind(address).map_err(|e| format!("--metrics-address {address}: {e}"))?;
    let cache = cache.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A caller that has gone away needs no answer.
            let _ = answer(stream, &cache, ready.load(Ordering::Relaxed));
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream, cache: &Path, ready: bool) -> std::io::Result<()> {
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
        Some("/metrics") => ("200 OK", text(cache, ready)),
        _ => ("404 Not Found", "/metrics, /healthz, /readyz\n".to_owned()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// The metrics.
fn text(cache: &Path, installed: bool) -> String {
    let (mut entries, mut bytes) = (0u64, 0u64);
    for entry in std::fs::read_dir(cache).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_entry = Path::new(&name)
            .extension()
            .is_some_and(|e| e == "so" || e == "refused");
        if let (true, Ok(metadata)) = (is_entry, entry.metadata()) {
            entries += 1;
            bytes += metadata.len();
        }
    }
    let metric = |name: &str, help: &str, labels: &str, value: u64| {
        format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name}{labels} {value}\n")
    };
    let version = format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    metric("slipway_info", "The installer's version.", &version, 1)
        + &metric(
            "slipway_installed",
            "Whether Slipway is installed on this node.",
            "",
            u64::from(installed),
        )
        + &metric(
            "slipway_cache_entries",
            "Compiled artefacts in the node's cache.",
            "",
            entries,
        )
        + &metric(
            "slipway_cache_bytes",
            "Size of the compiled artefacts in the node's cache.",
            "",
            bytes,
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
        let text = text(cache.path(), true);
        for line in [
            "slipway_cache_entries 2\n",
            "slipway_cache_bytes 7\n",
            "slipway_installed 1\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
