//! The host of an installer's pod: what is changed there, systemd runs for it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use slipway_systemd::{Call, Property, Systemd};

use crate::cluster::Cluster;
use crate::layout::Layout;

/// In the directory of an installation's state: what the doctor hands over.
const REPORT: &str = "report";

/// How often the unit and its log are looked at.
pub(crate) const FOLLOW: Duration = Duration::from_millis(200);

/// The units on the host: of what changes the node, and of what only looks at it.
pub(crate) const UNIT: &str = "slipway-install.service";

const DOCTOR: &str = "slipway-doctor.service";

/// The host of an installer's pod.
#[derive(Debug)]
pub struct Host {
    /// Its install directory, as this pod sees it.
    pub dir: PathBuf,
    /// The install directory, as the host sees it.
    pub install_dir: PathBuf,
    /// Directory of systemd's private socket, as this pod sees it.
    pub systemd_dir: PathBuf,
}

impl Host {
    /// The program of an installed tree, as the host sees it.
    pub(crate) fn program(&self, tree: &str) -> PathBuf {
        Layout::new(&self.install_dir)
            .tree(tree)
            .join("bin/slipway")
    }

    /// Holds all other installers of this node up until it is dropped: two may run, where one was deleted by force. The lock is on
    /// a directory that both have and that nobody removes.
    pub(crate) fn alone(&self) -> Result<File, String> {
        let dir = &self.systemd_dir;
        let wrong = |e: std::io::Error| format!("{}: {e}", dir.display());
        let lock = File::open(dir).map_err(wrong)?;
        let locked = || flock(&lock, FlockOperation::LockExclusive);
        rustix::io::retry_on_intr(locked).map_err(|e| wrong(e.into()))?;
        Ok(lock)
    }

    fn systemd(&self) -> Result<Systemd, String> {
        let socket = self.systemd_dir.join("private");
        Systemd::connect_to(&socket)
            .map_err(failed)?
            .ok_or_else(|| {
                format!(
                    "{}: no systemd: mount the host's /run/systemd here",
                    socket.display()
                )
            })
    }

    /// Waits until a unit does nothing any more, and follows its log.
    pub(crate) fn settle(&self, unit: &str) -> Result<(), String> {
        let mut log = Log::open(Layout::new(&self.dir).log());
        settled(&mut self.systemd()?, unit, &mut log).map_err(failed)?;
        Ok(())
    }

    /// Has systemd run a command on the host, tells what it says, and waits for its end.
    pub(crate) fn run(
        &self,
        unit: &str,
        program: &Path,
        verb: &str,
        arguments: &[String],
    ) -> Result<(), String> {
        let mut systemd = self.systemd()?;
        // One that an earlier pod has started comes to its end first.
        let mut log = Log::open(Layout::new(&self.dir).log());
        settled(&mut systemd, unit, &mut log).map_err(failed)?;
        forget(&mut systemd, unit).map_err(failed)?;
        let mut command = vec![program.to_string_lossy().into_owned(), verb.to_owned()];
        // systemd would take it for a variable.
        command.extend(arguments.iter().map(|a| a.replace('$', "$$")));
        let description = format!("slipway {verb}");
        let properties = [
            Property::Text("Description", &description),
            Property::Text("Type", "oneshot"),
            // Its result can be asked for.
            Property::Bool("RemainAfterExit", true),
            Property::Command("ExecStart", &command),
        ];
        systemd
            .call(&Call::start_transient_unit(unit, &properties))
            .map_err(failed)?;
        let active = settled(&mut systemd, unit, &mut log).map_err(failed)?;
        let status = systemd.exit_status(unit).map_err(failed)?;
        forget(&mut systemd, unit).map_err(failed)?;
        match active.as_str() {
            "active" => Ok(()),
            _ => Err(format!(
                "slipway {verb} failed on the host with status {status}: its last lines are above, more with `journalctl -u {unit}`"
            )),
        }
    }

    /// What `slipway doctor` says on the host, and what Kubernetes says of this pod's node.
    ///
    /// # Errors
    /// Nothing is installed there, or systemd's word.
    pub fn report(&self, node: &str) -> Result<String, String> {
        let layout = Layout::new(&self.dir);
        let tree = layout.current().ok_or_else(|| {
            format!(
                "{}: nothing is installed yet: the installer's log says why",
                self.install_dir.display()
            )
        })?;
        let handed_over = |dir: &Path| Layout::new(dir).state().join(REPORT);
        let arguments = [
            "--report".to_owned(),
            handed_over(&self.install_dir).display().to_string(),
            "--install-dir".to_owned(),
            self.install_dir.display().to_string(),
        ];
        self.run(DOCTOR, &self.program(&tree), "doctor", &arguments)?;
        let path = handed_over(&self.dir);
        let report =
            std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        // Nobody else reads it.
        let _ = std::fs::remove_file(&path);
        let known = Cluster::of_this_pod().and_then(|cluster| cluster.node(node));
        let known = known.map_or_else(|e| e, |node| node.to_string());
        Ok(format!("{report}\n== Kubernetes\n{known}\n"))
    }
}

fn failed(e: std::io::Error) -> String {
    format!("systemd: {e}")
}

/// Waits until the unit does nothing any more; its state then.
fn settled(systemd: &mut Systemd, unit: &str, log: &mut Log) -> std::io::Result<String> {
    loop {
        let state = systemd.state(unit)?;
        log.follow();
        if !state.busy && ["active", "failed", "inactive"].contains(&state.active.as_str()) {
            return Ok(state.active);
        }
        std::thread::sleep(FOLLOW);
    }
}

/// The unit's name is free again.
fn forget(systemd: &mut Systemd, unit: &str) -> std::io::Result<()> {
    loop {
        let state = systemd.state(unit)?;
        match state.active.as_str() {
            "inactive" if !state.busy => return Ok(()),
            "failed" => systemd.call(&Call::reset_failed_unit(unit)).map(drop)?,
            "active" => systemd.call(&Call::stop_unit(unit)).map(drop)?,
            _ => {}
        }
        std::thread::sleep(FOLLOW);
    }
}

/// The log on the host, from now on.
struct Log {
    path: PathBuf,
    at: u64,
}

impl Log {
    fn open(path: PathBuf) -> Self {
        let at = std::fs::metadata(&path).map_or(0, |m| m.len());
        Self { path, at }
    }

    fn follow(&mut self) {
        let mut text = String::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.at))?;
            file.read_to_string(&mut text)
        });
        if let Ok(bytes) = read {
            self.at += bytes as u64;
            let _ = std::io::stdout().write_all(text.as_bytes());
        }
    }
}
