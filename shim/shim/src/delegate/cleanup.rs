//! What is left of a delegate whose shim has died.

use std::path::Path;
use std::time::Duration;

use super::program::delete_container;
use super::{DIRECTORY, PID_FILE};
use crate::flags::Flags;
use crate::members;

/// Poll interval while a `delete` without a runtime waits for a process to go.
const WHILE_KILLED: Duration = Duration::from_millis(5);

/// What is written down of a running delegate: its pid, its start time, its socket.
pub fn record(pid: i32, socket: &Path) -> String {
    let started = start_time(pid).unwrap_or_default();
    format!("{pid} {started} {}", socket.display())
}

/// Field 22 of /proc/PID/stat: a pid that was used again has another.
fn start_time(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?
        .1
        .split_whitespace()
        .nth(19)
        .map(String::from)
}

/// After the death of our shim: ends the delegate and its containers.
pub fn clean_up(flags: &Flags) {
    let file = flags.bundle.join(DIRECTORY).join(PID_FILE);
    let Ok(text) = std::fs::read_to_string(&file) else {
        return;
    };
    let mut fields = text.splitn(3, ' ');
    let (pid, started, socket) = (
        fields.next().and_then(|p| p.parse::<i32>().ok()),
        fields.next(),
        fields.next(),
    );
    if let Some(socket) = socket {
        let _ = std::fs::remove_file(socket);
    }
    if let Some(pid) = pid
        && start_time(pid).as_deref() == started
    {
        let _ = slipway_sys::kill(pid, libc::SIGKILL);
        for _ in 0..400 {
            if start_time(pid).as_deref() != started {
                break;
            }
            std::thread::sleep(WHILE_KILLED);
        }
    }
    let bundles = flags
        .bundle
        .canonicalize()
        .unwrap_or_else(|_| flags.bundle.clone());
    for (id, _) in members::read(&flags.bundle) {
        let Some(bundle) = bundles.parent().map(|p| p.join(&id)) else {
            continue;
        };
        // runc's shim leaves this in the bundles that are its own.
        if bundle.join("runtime").exists() || bundle.join("options.json").exists() {
            delete_container(&flags.namespace, &flags.address, &id, &bundle);
        }
    }
    let _ = std::fs::remove_file(file);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_time() {
        let own = start_time(std::process::id() as i32).unwrap();
        assert!(own.parse::<u64>().unwrap() > 0);
        assert_eq!(start_time(i32::MAX), None);
    }
}
