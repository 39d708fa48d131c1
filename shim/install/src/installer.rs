//! `slipway installer`: the pod of a DaemonSet. It touches nothing of the node's but `/opt/slipway`; what changes the node
//! is `slipway install` on the host, a transient unit that systemd runs for it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use slipway_systemd::{Call, Property, Systemd};

use crate::cluster::{Cluster, INSTALLED, STATE, UNINSTALLING, UNINSTALLING_BY_FORCE, VERSION};
use crate::journal::Lock;
use crate::layout::{Layout, Tree};
use crate::metrics::{self, Metrics};
use crate::report::say;

/// The units on the host: of what changes the node, and of what only looks at it.
const UNIT: &str = "slipway-install.service";
const DOCTOR: &str = "slipway-doctor.service";
/// In the directory of an installation's state: what the doctor hands over.
const REPORT: &str = "report";
/// How often the unit and its log are looked at.
const FOLLOW: Duration = Duration::from_millis(200);
/// How often the node's labels are looked at.
const WATCH: Duration = Duration::from_secs(5);
/// How long the kubelet may take to tell of the handlers: it asks containerd every few seconds, and tells every 10 s.
const KUBELET: Duration = Duration::from_secs(180);
/// How long somebody else may hold the lock.
const LOCK: Duration = Duration::from_secs(300);

/// The installer of one node.
#[derive(Debug)]
pub struct Installer {
    /// The Node's name.
    pub node: String,
    /// The tree in the image.
    pub source: PathBuf,
    /// The node as this pod sees it.
    pub host: Host,
    /// The artefact cache, as this pod sees it.
    pub cache_dir: PathBuf,
    /// Where metrics and probes are served.
    pub metrics_address: String,
    /// End when it is installed.
    pub once: bool,
    /// An uninstall removes files and cache, too.
    pub purge: bool,
    /// The handlers that the kubelet must tell of.
    pub handlers: Vec<String>,
    /// What `slipway install` and `slipway uninstall` are told.
    pub arguments: Vec<String>,
}

impl Installer {
    /// Installs, and then looks after the node until the process is ended.
    ///
    /// # Errors
    /// The node is as it was before: why.
    pub fn run(&self) -> Result<(), String> {
        let cluster = Cluster::of_this_pod()?;
        let ready = Arc::new(AtomicBool::new(false));
        if !self.once {
            let metrics = Metrics {
                cache_dir: self.cache_dir.clone(),
                counters_dir: slipway_counters::DIR.into(),
            };
            metrics::serve(&self.metrics_address, metrics, ready.clone())?;
        }
        if cluster.node(&self.node)?.uninstalling().is_none() {
            self.install(&cluster)?;
            ready.store(true, Ordering::Relaxed);
        }
        if self.once {
            return Ok(());
        }
        loop {
            if let Some(force) = cluster.node(&self.node)?.uninstalling() {
                ready.store(false, Ordering::Relaxed);
                self.uninstall(&cluster, force)?;
                say("idle: this node has been cleaned");
            }
            std::thread::sleep(WATCH);
        }
    }

    fn install(&self, cluster: &Cluster) -> Result<(), String> {
        let tree = Tree::read(&self.source).map_err(|e| e.to_string())?;
        cluster.label(&self.node, &[(INSTALLED, Some("false"))])?;
        let layout = Layout::new(&self.host.dir);
        {
            let _lock = self.lock(&layout)?;
            layout.add(&tree).map_err(|e| e.to_string())?;
        }
        let program = self.host.program(&tree.name);
        self.host.run(UNIT, &program, "install", &self.arguments)?;
        self.seen_by_the_kubelet(cluster)?;
        let labels = [
            (INSTALLED, Some("true")),
            (VERSION, Some(env!("CARGO_PKG_VERSION"))),
        ];
        cluster.label(&self.node, &labels)?;
        say(&format!("node {}: installed", self.node));
        Ok(())
    }

    fn uninstall(&self, cluster: &Cluster, force: bool) -> Result<(), String> {
        let layout = Layout::new(&self.host.dir);
        if let Some(tree) = layout.current() {
            let program = self.host.program(&tree);
            let mut arguments = self.arguments.clone();
            arguments.extend(force.then(|| "--force".to_owned()));
            arguments.extend(self.purge.then(|| "--purge".to_owned()));
            self.host.run(UNIT, &program, "uninstall", &arguments)?;
        }
        cluster.label(
            &self.node,
            &[(INSTALLED, None), (VERSION, None), (STATE, None)],
        )
    }

    /// Waits while somebody else works on the node.
    fn lock(&self, layout: &Layout) -> Result<Lock, String> {
        let started = Instant::now();
        loop {
            match Lock::take(layout, "installer") {
                Ok(lock) => return Ok(lock),
                Err(crate::Error::Locked { .. }) if started.elapsed() < LOCK => {
                    std::thread::sleep(FOLLOW)
                }
                Err(e) => return Err(e.to_string()),
            }
        }
    }

    /// Waits until the kubelet says that pods of the handlers can come. One that does not tell of handlers must be ready.
    fn seen_by_the_kubelet(&self, cluster: &Cluster) -> Result<(), String> {
        let started = Instant::now();
        loop {
            let node = cluster.node(&self.node)?;
            let listed =
                node.handlers.is_empty() || self.handlers.iter().all(|h| node.handlers.contains(h));
            if node.ready && listed {
                return Ok(());
            }
            if started.elapsed() > KUBELET {
                let what = if node.ready {
                    "does not list the handlers"
                } else {
                    "is not Ready"
                };
                return Err(format!(
                    "node {} {what} {} s after the installation",
                    self.node,
                    KUBELET.as_secs()
                ));
            }
            std::thread::sleep(FOLLOW);
        }
    }
}

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
    fn program(&self, tree: &str) -> PathBuf {
        Layout::new(&self.install_dir)
            .tree(tree)
            .join("bin/slipway")
    }

    /// Has systemd run a command on the host, tells what it says, and waits for its end.
    fn run(
        &self,
        unit: &str,
        program: &Path,
        verb: &str,
        arguments: &[String],
    ) -> Result<(), String> {
        let failed = |e: std::io::Error| format!("systemd: {e}");
        let socket = self.systemd_dir.join("private");
        let mut systemd = Systemd::connect_to(&socket)
            .map_err(failed)?
            .ok_or_else(|| {
                format!(
                    "{}: no systemd: mount the host's /run/systemd here",
                    socket.display()
                )
            })?;
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

/// The hook before the chart is deleted: has every node's installer clean its node, and waits for that.
///
/// # Errors
/// Pods still run, or nodes that were not cleaned: names them.
pub fn uninstall_cluster(classes: &[String], timeout: Duration, force: bool) -> Result<(), String> {
    let cluster = Cluster::of_this_pod()?;
    let pods = cluster.pods(classes)?;
    if !pods.is_empty() && !force {
        return Err(format!(
            "pods of Slipway exist: delete them first ({})",
            pods.join(", ")
        ));
    }
    let state = match force {
        true => UNINSTALLING_BY_FORCE,
        false => UNINSTALLING,
    };
    for node in cluster.nodes(INSTALLED)? {
        say(&format!("node {}: asked to uninstall", node.name));
        cluster.label(&node.name, &[(STATE, Some(state))])?;
    }
    let started = Instant::now();
    loop {
        let left = cluster.nodes(INSTALLED)?;
        if left.is_empty() {
            say("all nodes are clean");
            return Ok(());
        }
        if started.elapsed() > timeout {
            let names: Vec<_> = left.into_iter().map(|n| n.name).collect();
            return Err(format!(
                "not clean after {} s: {}",
                timeout.as_secs(),
                names.join(", ")
            ));
        }
        std::thread::sleep(WATCH.min(timeout));
    }
}
