//! Restarting containerd, and waiting for what it is to answer then.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use slipway_systemd::Systemd;

use crate::cri::Cri;
use crate::error::{Error, Result, file};
use crate::journal::Journal;
use crate::report::Report;

/// How long a restart may take: k3s is a whole cluster.
const RESTART: Duration = Duration::from_secs(180);
/// How long containerd may take to answer CRI with the handlers, once its unit is active.
const HANDLERS: Duration = Duration::from_secs(30);
/// How often it is asked.
const INTERVAL: Duration = Duration::from_millis(200);

pub(crate) fn restart_containerd(journal: &Journal, report: &mut Report) -> Result<()> {
    let Some(unit) = &journal.unit else {
        return Err(Error::Containerd(
            "containerd is no service of systemd's: restart it yourself, with --no-restart".into(),
        ));
    };
    report.say(format!("restart {unit}"));
    let socket = Path::new(slipway_systemd::SOCKET);
    let systemd = Systemd::connect().map_err(file(socket, "connect"))?;
    let mut systemd = systemd
        .ok_or_else(|| Error::Containerd(format!("{}: no systemd runs here", socket.display())))?;
    systemd
        .restart(unit, RESTART)
        .map_err(|e| Error::Containerd(format!("restart {unit}: {e}")))
}

/// Waits until containerd answers, and as wanted.
pub(crate) fn wait(
    address: &Path,
    wanted: impl Fn(&Cri) -> bool,
) -> std::result::Result<(), String> {
    let started = Instant::now();
    loop {
        let reason = match Cri::ask(address) {
            Ok(cri) if wanted(&cri) => return Ok(()),
            Ok(cri) => {
                let handlers: Vec<_> = cri.handlers.into_iter().filter(|h| !h.is_empty()).collect();
                format!("containerd lists {}", handlers.join(", "))
            }
            Err(e) => e,
        };
        if started.elapsed() > HANDLERS {
            return Err(format!(
                "{reason}, {} s after it was restarted",
                HANDLERS.as_secs()
            ));
        }
        std::thread::sleep(INTERVAL);
    }
}

/// What a unit said last, where there is a journal.
pub(crate) fn last_words(unit: &str) -> String {
    let output = Command::new("journalctl")
        .args(["--no-pager", "--output=cat", "--lines=10", "--unit", unit])
        .output();
    output.map_or_else(
        |_| String::new(),
        |o| String::from_utf8_lossy(&o.stdout).trim().to_owned(),
    )
}
